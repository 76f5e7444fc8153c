//! The thread that reads the socket counters.
//!
//! A thread of its own, because a read costs little more than the wake-up. Through the event loop,
//! which polls all its sources and re-arms its timer every 4 ms, it costs half as much again. And
//! only a separate thread can measure the cost of its reads, wake-ups included.
//!
//! Invariant: the thread ends with its [`Looks`].

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

/// The reads take at most this fraction of a processor: at one part in 50 the 4 ms interval holds
/// up to 80 us a read. A read takes some 30 us on real hardware and a multiple of that under
/// emulation.
const SHARE: u32 = 50;
/// Unused time that may accumulate: one slow read delays no other.
const ROOM: Duration = Duration::from_millis(100);

/// The thread.
#[derive(Debug)]
pub struct Looks {
    shared: Arc<Shared>,
    /// Taken on drop.
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    changed: Notify,
    stop: AtomicBool,
}

impl Looks {
    /// Reads `counters`, at once and then at intervals of `every`.
    ///
    /// # Errors
    /// The thread cannot be started.
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
            // The thread ends at once. A panic of it was reported when it happened.
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
            // An unreadable file is ignored: the regular full dump covers it.
            if let Ok(now) = counters.read()
                && last != Some(now)
            {
                last = Some(now);
                self.changed.notify_one();
            }
            // Includes the cost of the wake-up.
            let now = used(ClockId::ThreadCPUTime);
            share.count(began, now.saturating_sub(spent));
            spent = now;
            let next = share.earliest().max(began + every);
            // May return early, which only causes one more read.
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
        // A new thread inherits the name of the thread that starts it.
        rustix::thread::set_name(c"looks-of-test").unwrap();
        let mine = || {
            let tasks = std::fs::read_dir("/proc/self/task").unwrap().flatten();
            let names = tasks.filter_map(|t| std::fs::read_to_string(t.path().join("comm")).ok());
            names.filter(|name| name == "looks-of-test\n").count()
        };
        let looks = Looks::start(Sockstat::open().unwrap(), hour).unwrap();
        assert_eq!(mine(), 2);
        // Joins the thread; if drop did not wake it, this would take an hour.
        drop(looks);
        assert_eq!(mine(), 1);
    }
}
