//! Output lines for people: the messages of `rum up`, and the logs of rum and its helpers.
//!
//! A write blocks for good on a pipe without a reader's read or on a stopped terminal (Ctrl+S), and
//! fails on a full disk or a closed pipe. Neither may affect a process's task: the first process of
//! a guest must not end or hang because it cannot print. O_NONBLOCK does not help, because it
//! belongs to the open file description, which others share. So a thread writes, behind a bounded
//! queue. Lines that do not fit, and those that cannot be written, are counted, and the count is
//! printed once lines can be written again.
//!
//! Invariants: nothing here blocks but [`Lines::flush`], which has a limit; the only failure
//! reported, on request, is that a pipe has no reader any more; the text of one call is one write.

use std::borrow::Cow;
use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, Sender, SyncSender, TrySendError};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::AsFd;
use rustix::io::Errno;

/// Lines that wait for a slow reader: more than the largest burst, 500 listeners at once.
pub const QUEUE: usize = 4096;
/// How long an ending process waits for its last lines to be written.
pub const LAST: Duration = Duration::from_secs(1);
/// Stack of the writing thread, in bytes: it only writes.
const STACK: usize = 64 * 1024;

/// Makes the line that reports a number of lost lines.
pub type TellLost = fn(u64) -> String;

/// How many lines were lost, in words.
pub fn lost(lines: u64) -> String {
    match lines {
        1 => "1 line was dropped: it could not be written".to_owned(),
        _ => format!("{lines} lines were dropped: they could not be written"),
    }
}

/// [`lost`] as a line among others.
pub fn lost_line(lines: u64) -> String {
    format!("({})\n", lost(lines))
}

/// A writer of lines that never blocks. Clones share one queue.
#[derive(Debug, Clone)]
pub struct Lines {
    queue: SyncSender<Item>,
    lost: Arc<AtomicU64>,
}

#[derive(Debug)]
enum Item {
    /// Whole lines.
    Text(String),
    /// Everything before it was written, or is lost.
    Flush(Sender<()>),
}

impl Lines {
    /// Starts the thread that writes to `to`. `hung_up` is called, perhaps repeatedly, when `to` is
    /// a pipe without a reader. If no thread can be started every line is lost.
    pub fn start(
        to: impl Write + Send + 'static,
        tell_lost: TellLost,
        hung_up: impl Fn() + Send + 'static,
    ) -> Self {
        let (queue, items) = mpsc::sync_channel(QUEUE);
        let lost = Arc::new(AtomicU64::new(0));
        let lines = Self {
            queue,
            lost: lost.clone(),
        };
        // The thread ends with the process, or with the last clone.
        let _ = thread::Builder::new()
            .name("output".to_owned())
            .stack_size(STACK)
            .spawn(move || write_all(to, &items, &lost, tell_lost, hung_up));
        lines
    }

    /// Queues one or more whole lines.
    pub fn say(&self, text: impl Into<String>) {
        self.offer(text.into());
    }

    /// As [`Self::say`]. False: no thread writes.
    fn offer(&self, text: String) -> bool {
        let lines = count(&text);
        let offered = self.queue.try_send(Item::Text(text));
        if offered.is_err() {
            self.lost.fetch_add(lines, Ordering::Relaxed);
        }
        !matches!(offered, Err(TrySendError::Disconnected(_)))
    }

    /// Waits until every queued line is written or lost, at most for `limit`. For the very end;
    /// blocks the thread.
    pub fn flush(&self, limit: Duration) {
        let (done, wait) = mpsc::channel();
        if self.queue.try_send(Item::Flush(done)).is_ok() {
            // An error is the timeout, after which nothing more can be done.
            let _ = wait.recv_timeout(limit);
        }
    }
}

/// A log writes records, each in one piece.
impl Write for Lines {
    fn write(&mut self, record: &[u8]) -> io::Result<usize> {
        self.say(String::from_utf8_lossy(record));
        Ok(record.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn count(text: &str) -> u64 {
    text.lines().count() as u64
}

fn write_all(
    mut to: impl Write,
    items: &Receiver<Item>,
    lost: &AtomicU64,
    tell_lost: TellLost,
    hung_up: impl Fn(),
) {
    let mut write = |text: &str| {
        let written = to.write_all(text.as_bytes()).and_then(|()| to.flush());
        if written
            .as_ref()
            .is_err_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
        {
            hung_up();
        }
        written.is_ok()
    };
    for item in items {
        let done = match item {
            Item::Text(text) if write(&text) => None,
            Item::Text(text) => {
                lost.fetch_add(count(&text), Ordering::Relaxed);
                continue;
            }
            Item::Flush(done) => Some(done),
        };
        let missing = lost.swap(0, Ordering::Relaxed);
        if missing > 0 && !write(&tell_lost(missing)) {
            lost.fetch_add(missing, Ordering::Relaxed);
        }
        // The send fails only if `flush` no longer waits.
        let _ = done.map(|done| done.send(()));
    }
}

static STDERR: OnceLock<Lines> = OnceLock::new();

/// This process's lines on stderr. They share one queue; the first call starts it and sets how lost
/// lines are reported.
pub fn stderr(tell_lost: TellLost) -> &'static Lines {
    STDERR.get_or_init(|| Lines::start(Standard::Stderr, tell_lost, || ()))
}

/// Writes `text` to stderr: in its turn if [`stderr`] has been started, else at once.
pub fn say_on_stderr(text: &str) {
    match STDERR.get() {
        Some(lines) if lines.offer(text.to_owned()) => {}
        Some(_) => say_without_thread(text),
        // A failed write has nowhere to be reported.
        None => drop(Standard::Stderr.write_all(text.as_bytes())),
    }
}

/// Writes a short text to stderr, for a process that may not have another thread. Waits up to
/// [`LAST`] for space; a pipe then accepts this much at once (pipe(7)).
pub fn say_without_thread(text: &str) {
    let stderr = rustix::stdio::stderr();
    // A second.
    let limit = Timespec::try_from(LAST).ok();
    let has_room = poll(&mut [PollFd::new(&stderr, PollFlags::OUT)], limit.as_ref());
    if has_room.is_ok_and(|ready| ready > 0) {
        let short = &text.as_bytes()[..text.len().min(rustix::pipe::PIPE_BUF)];
        // A failed write has nowhere to be reported.
        let _ = rustix::io::write(stderr, short);
    }
}

/// Waits up to [`LAST`] until the lines for stderr are written.
pub fn flush_stderr() {
    if let Some(lines) = STDERR.get() {
        lines.flush(LAST);
    }
}

/// A standard stream without the standard library's lock, which a blocked write would hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standard {
    /// Descriptor 1.
    Stdout,
    /// Descriptor 2.
    Stderr,
}

impl Write for Standard {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let fd = match self {
            Self::Stdout => rustix::stdio::stdout(),
            Self::Stderr => rustix::stdio::stderr(),
        };
        loop {
            match rustix::io::write(fd, bytes) {
                // Another process that shares the open file description has set O_NONBLOCK.
                Err(Errno::AGAIN) => {
                    poll(
                        &mut [PollFd::from_borrowed_fd(fd.as_fd(), PollFlags::OUT)],
                        None,
                    )?;
                }
                written => return Ok(written?),
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The log's way to stderr, see [`say_on_stderr`].
#[derive(Debug, Clone, Copy, Default)]
pub struct Log;

impl Write for Log {
    fn write(&mut self, record: &[u8]) -> io::Result<usize> {
        let text: Cow<'_, str> = String::from_utf8_lossy(record);
        say_on_stderr(&text);
        Ok(record.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::fs::File;
    use std::io::Read;
    use std::sync::Mutex;

    use super::*;

    /// Far longer than anything here takes.
    const PATIENCE: Duration = Duration::from_secs(60);

    /// A disk that is full for this many writes.
    #[derive(Clone, Default)]
    struct Disk(Arc<Mutex<(usize, String)>>);

    impl Write for Disk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let mut disk = self.0.lock().unwrap();
            if disk.0 > 0 {
                disk.0 -= 1;
                return Err(io::ErrorKind::StorageFull.into());
            }
            disk.1.push_str(std::str::from_utf8(bytes).unwrap());
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_a_full_disk_did_not_take_is_told_when_it_takes_lines_again() {
        let disk = Disk::default();
        disk.0.lock().unwrap().0 = 2;
        let lines = Lines::start(disk.clone(), lost_line, || panic!("it has no reader"));
        for text in ["a\n", "b\nc\n", "d\n"] {
            lines.say(text);
        }
        lines.flush(PATIENCE);
        let text = disk.0.lock().unwrap().1.clone();
        assert_eq!(
            text,
            "d\n(3 lines were dropped: they could not be written)\n"
        );
    }

    #[test]
    fn a_device_that_is_always_full_ends_nothing() {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let lines = Lines::start(full, lost_line, || panic!("it has no reader"));
        lines.say("a\n");
        lines.flush(PATIENCE);
        lines.say("b\n");
        lines.flush(PATIENCE);
        assert_eq!(lines.lost.load(Ordering::Relaxed), 2);
    }

    #[test]
    fn a_pipe_that_nobody_reads_delays_nobody_and_then_tells_how_much_is_missing() {
        let (mut reader, writer) = io::pipe().unwrap();
        let lines = Lines::start(writer, lost_line, || ());
        let long = "x".repeat(1000) + "\n";
        let all = QUEUE + 1000;
        for _ in 0..all {
            lines.say(long.as_str());
        }
        lines.flush(Duration::from_millis(1));
        let waiting = thread::spawn(move || {
            let mut text = String::new();
            reader.read_to_string(&mut text).unwrap();
            text
        });
        // The queue has space again once something is read.
        while lines.lost.load(Ordering::Relaxed) > 0 {
            lines.say("y\n");
            lines.flush(PATIENCE);
        }
        drop(lines);
        let text = waiting.join().unwrap();
        // Perhaps in several pieces: the pipe takes some before the queue is full.
        let told = text.lines().filter_map(|line| line.strip_prefix('('));
        let told = told.map(|line| line.split(' ').next().unwrap().parse::<usize>().unwrap());
        let told: usize = told.sum();
        let came = text.lines().filter(|line| line.starts_with('x')).count();
        assert!(
            came < all && told >= all - came,
            "{came} of {all}, {told} told"
        );
    }

    #[test]
    fn a_reader_that_is_gone_is_told_of() {
        let (reader, writer) = io::pipe().unwrap();
        drop(reader);
        let (sender, gone) = mpsc::channel();
        let lines = Lines::start(writer, lost_line, move || {
            let _ = sender.send(());
        });
        lines.say("a\n");
        gone.recv_timeout(PATIENCE).unwrap();
    }
}
