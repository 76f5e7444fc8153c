//! Lines for people: what `rum up` says, and the logs of rum and its helpers.
//!
//! A pipe that nobody reads and a terminal that is stopped (Ctrl+S) make a write wait for ever, a full disk
//! and a reader that is gone make it fail. Neither may decide over what a process is there for: the
//! first process of a guest must not end or hang for want of a place to say something. O_NONBLOCK is
//! no way out, because it belongs to the open file, which others share. So a thread writes, behind a
//! bounded queue. Lines that find no room, and those that cannot be written, are counted, and the
//! count is told once lines are taken again.
//!
//! Invariants: nothing here waits but [`Lines::flush`], which has a limit; no failure is passed on, but
//! that a pipe has no reader any more, to who asked for it; what is said together is one write.

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
/// How long a process that ends waits for its last lines to be written.
pub const LAST: Duration = Duration::from_secs(1);
/// Stack of the writing thread, in bytes: it only writes.
const STACK: usize = 64 * 1024;

/// Makes the line that tells of so many lost ones.
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

/// A way to say lines without waiting. Clones share one queue.
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
    /// Starts to write to `to`. `hung_up` is called, perhaps again, when that is a pipe whose reader is
    /// gone. Where no thread can be had every line is lost.
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
        // Ends with the process, or with the last of those that say something.
        let _ = thread::Builder::new()
            .name("output".to_owned())
            .stack_size(STACK)
            .spawn(move || write_all(to, &items, &lost, tell_lost, hung_up));
        lines
    }

    /// Says one or more whole lines.
    pub fn say(&self, text: impl Into<String>) {
        self.offer(text.into());
    }

    /// As [`Self::say`]. False: there is no thread that writes.
    fn offer(&self, text: String) -> bool {
        let lines = count(&text);
        let offered = self.queue.try_send(Item::Text(text));
        if offered.is_err() {
            self.lost.fetch_add(lines, Ordering::Relaxed);
        }
        !matches!(offered, Err(TrySendError::Disconnected(_)))
    }

    /// Waits until everything said so far is written or lost, at most for `limit`. For the very end;
    /// blocks the thread.
    pub fn flush(&self, limit: Duration) {
        let (done, wait) = mpsc::channel();
        if self.queue.try_send(Item::Flush(done)).is_ok() {
            // An error is the limit: nothing more can be done.
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
        // An error is one that waits no more.
        let _ = done.map(|done| done.send(()));
    }
}

static STDERR: OnceLock<Lines> = OnceLock::new();

/// This process's lines on stderr. They share one queue; the first call starts it, and decides how lost
/// lines are told.
pub fn stderr(tell_lost: TellLost) -> &'static Lines {
    STDERR.get_or_init(|| Lines::start(Standard::Stderr, tell_lost, || ()))
}

/// Says something on stderr: in its turn where [`stderr`] has been started, else at once.
pub fn say_on_stderr(text: &str) {
    match STDERR.get() {
        Some(lines) if lines.offer(text.to_owned()) => {}
        Some(_) => say_without_thread(text),
        // There is nobody to tell of an error.
        None => drop(Standard::Stderr.write_all(text.as_bytes())),
    }
}

/// Says something short on stderr, for a process that may not have another thread. Waits up to [`LAST`] for
/// room; then a pipe takes so much at once (pipe(7)).
pub fn say_without_thread(text: &str) {
    let stderr = rustix::stdio::stderr();
    // A second.
    let limit = Timespec::try_from(LAST).ok();
    let has_room = poll(&mut [PollFd::new(&stderr, PollFlags::OUT)], limit.as_ref());
    if has_room.is_ok_and(|ready| ready > 0) {
        let short = &text.as_bytes()[..text.len().min(rustix::pipe::PIPE_BUF)];
        // There is nobody to tell of an error.
        let _ = rustix::io::write(stderr, short);
    }
}

/// Waits up to [`LAST`] for what was said on stderr.
pub fn flush_stderr() {
    if let Some(lines) = STDERR.get() {
        lines.flush(LAST);
    }
}

/// A standard stream without the standard library's lock, which a write that waits would hold.
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
                // Whoever shares the open file has made it so.
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

    /// Far beyond what anything here takes.
    const PATIENCE: Duration = Duration::from_secs(60);

    /// A disk that is full for as many writes.
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
        // The queue has room again once something is read.
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
