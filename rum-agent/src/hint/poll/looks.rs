//! The thread that looks at the socket counters.
//!
//! A thread, since a look is to cost little more than to wake up: through the event loop, which every
//! 4 ms would ask all that it waits for and set its timer anew, it takes half as much again. And
//! only a thread of its own can tell what its looks cost, wake-ups included.
//!
//! Invariant: it ends with its [`Looks`].

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rum_shared::threads::STACK;
use rustix::time::ClockId;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::kernel::sockstat::{Fingerprint, Sockstat};
use crate::schedule::Share;
use crate::used;

/// Looks take at most one part in so many of a processor: 4 ms are kept up to 80 us a look, which
/// takes some 30 on a machine of its own and a multiple under emulation.
const SHARE: u32 = 50;
/// What may be saved up of that: a look that was slow by chance delays no other.
const ROOM: Duration = Duration::from_millis(100);

/// The thread.
#[derive(Debug)]
pub struct Looks {
    shared: Arc<Shared>,
    /// Taken when dropped.
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    changed: Notify,
    stop: AtomicBool,
}

impl Looks {
    /// Looks at `counters`, at once and then `every` so often.
    ///
    /// # Errors
    /// There is no thread to be had.
    pub fn start(counters: Sockstat, every: Duration) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let of_thread = shared.clone();
        let thread = thread::Builder::new().stack_size(STACK);
        let thread = thread.spawn(move || of_thread.look(counters, every))?;
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    /// Completes when the counters have changed since the last completion; the first time at once.
    /// Cancel-safe.
    pub async fn changed(&self) {
        self.shared.changed.notified().await;
    }
}

impl Drop for Looks {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // It ends at once. If it panicked, that was said then.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn look(&self, mut counters: Sockstat, every: Duration) {
        let mut share = Share::new(Instant::now(), SHARE, ROOM);
        let mut last: Option<Fingerprint> = None;
        let mut spent = used(ClockId::ThreadCPUTime);
        while !self.stop.load(Ordering::Relaxed) {
            let began = Instant::now();
            // Unreadable ones tell nothing: there is a full dump now and then.
            if let Ok(now) = counters.read()
                && last != Some(now)
            {
                last = Some(now);
                self.changed.notify_one();
            }
            // With what it took to get here.
            let now = used(ClockId::ThreadCPUTime);
            share.count(began, now.saturating_sub(spent));
            spent = now;
            let next = share.earliest().max(began + every);
            // May end early, which makes one more look.
            thread::park_timeout(next.saturating_duration_since(Instant::now()));
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn a_new_listener_is_noticed() {
        let looks = Looks::start(Sockstat::open().unwrap(), Duration::from_millis(1)).unwrap();
        looks.changed().await;
        let mut open = Vec::new();
        for _ in 0..20 {
            // Another test may close one at the same time.
            let two = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
            open.push(two);
            looks.changed().await;
        }
    }

    #[test]
    fn the_thread_ends_at_once_however_rarely_it_looks() {
        let hour = Duration::from_secs(3600);
        // Threads have the name of the one that starts them.
        rustix::thread::set_name(c"looks-of-test").unwrap();
        let mine = || {
            let tasks = std::fs::read_dir("/proc/self/task").unwrap().flatten();
            let names = tasks.filter_map(|t| std::fs::read_to_string(t.path().join("comm")).ok());
            names.filter(|name| name == "looks-of-test\n").count()
        };
        let looks = Looks::start(Sockstat::open().unwrap(), hour).unwrap();
        assert_eq!(mine(), 2);
        // Waits for its end, in an hour if it did not hear of it.
        drop(looks);
        assert_eq!(mine(), 1);
    }
}
