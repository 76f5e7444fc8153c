//! Keeps bulk transfers from delaying others: how much one relay may do in a turn, and where bulk
//! runs.
//!
//! A relay whose sockets are always ready would never return to the event loop, so it returns after
//! [`BUDGET`] bytes. With many such relays that is not enough: each uses its budget before a small
//! relay gets its turn, and the kernel schedules a thread that computes all the time later than one
//! that mostly sleeps. So a relay that moves much data moves to [`Bulk`], a set of threads, and
//! comes back when it moves little. It moves as it is: any thread can poll a future, and its
//! sockets stay registered with their event loop.
//!
//! Invariants: without bulk there are no further threads; a moved relay is still owned by the
//! future that began it, and ends when that is dropped.

use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::task::Poll;

use tokio::runtime::{Builder, Runtime};
use tokio_util::task::AbortOnDropHandle;

use crate::threads;

/// Bytes that a relay moves before it returns to the event loop: two turns with a full buffer. A
/// smaller budget costs throughput, a larger one delays others.
const BUDGET: usize = 512 * 1024;
/// Bytes moved in one poll below which the poll counts as small.
const LITTLE: usize = 32 * 1024;
/// Bytes moved without a small poll in between that make a relay bulk: more than a web page with
/// its resources.
const MUCH: usize = 1024 * 1024;
/// Small polls in a row that end bulk: bulk may stall for a moment.
const CALM: usize = 32;
/// Most threads for bulk; more do not make relays faster.
const MAX_WORKERS: usize = 8;

/// What a relay has moved recently.
#[derive(Debug, Default)]
pub struct Turn {
    /// Bytes since the relay was polled or last yielded.
    moved: AtomicUsize,
    /// Bytes since the last small poll.
    much: AtomicUsize,
    /// Small polls in a row.
    calm: AtomicUsize,
}

impl Turn {
    /// Counts `bytes`, and yields when the budget is used up.
    pub(super) async fn used(&self, bytes: usize) {
        let moved = self.moved.fetch_add(bytes, Relaxed) + bytes;
        if moved >= BUDGET {
            tokio::task::yield_now().await;
        }
    }

    /// A poll is over.
    fn over(&self) {
        match self.moved.swap(0, Relaxed) {
            // Nothing was moved.
            0 => {}
            moved if moved < LITTLE => {
                self.much.store(0, Relaxed);
                self.calm.fetch_add(1, Relaxed);
            }
            moved => {
                self.much.fetch_add(moved, Relaxed);
                self.calm.store(0, Relaxed);
            }
        }
    }

    /// Polls `relay` until it has ended, or `leave` reports that it must run elsewhere.
    async fn run<T>(
        &self,
        relay: &mut Pin<Box<dyn Future<Output = T> + Send>>,
        leave: impl Fn(&Self) -> bool,
    ) -> Option<T> {
        std::future::poll_fn(|cx| {
            let polled = relay.as_mut().poll(cx);
            self.over();
            match polled {
                Poll::Ready(end) => Poll::Ready(Some(end)),
                Poll::Pending if leave(self) => Poll::Ready(None),
                Poll::Pending => Poll::Pending,
            }
        })
        .await
    }

    fn is_bulk(&self) -> bool {
        self.much.load(Relaxed) >= MUCH
    }

    fn is_calm(&self) -> bool {
        self.calm.load(Relaxed) >= CALM
    }
}

/// Threads for bulk relays, started with the first one. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Bulk(Arc<Threads>);

#[derive(Debug, Default)]
struct Threads(OnceLock<Option<Runtime>>);

impl Threads {
    /// None if they could not be started: then bulk stays where it is.
    fn get(&self) -> Option<&Runtime> {
        let start = || {
            let cores = std::thread::available_parallelism().map_or(1, usize::from);
            let workers = cores.saturating_sub(1).clamp(1, MAX_WORKERS);
            let started = threads::can_start(workers).and_then(|()| {
                Builder::new_multi_thread()
                    .thread_name("rum-bulk")
                    .thread_stack_size(threads::STACK)
                    .worker_threads(workers)
                    .enable_all()
                    .build()
            });
            if let Err(error) = &started {
                tracing::debug!(%error, "no threads for relays in bulk");
            }
            started.ok()
        };
        self.0.get_or_init(start).as_ref()
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        // The last owner may be a task, which must not block.
        if let Some(Some(runtime)) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

impl Bulk {
    /// Runs the relay that `relay` makes of its [`Turn`] to its end: on this thread, and on those
    /// while it is bulk.
    pub async fn run<T, R>(&self, relay: impl FnOnce(Arc<Turn>) -> R) -> T
    where
        T: Send + 'static,
        R: Future<Output = T> + Send + 'static,
    {
        let turn = Arc::new(Turn::default());
        let mut relay: Pin<Box<dyn Future<Output = T> + Send>> = Box::pin(relay(turn.clone()));
        loop {
            if let Some(end) = turn.run(&mut relay, Turn::is_bulk).await {
                return end;
            }
            let Some(threads) = self.0.get() else {
                return relay.await;
            };
            turn.calm.store(0, Relaxed);
            let there = turn.clone();
            let task = threads.spawn(async move {
                let end = there.run(&mut relay, Turn::is_calm).await;
                (end, relay)
            });
            let done = match AbortOnDropHandle::new(task).await {
                Ok(done) => done,
                Err(error) => match error.try_into_panic() {
                    Ok(panic) => std::panic::resume_unwind(panic),
                    // The threads end only with their last owner, and this is one.
                    Err(_) => std::future::pending().await,
                },
            };
            if let Some(end) = done.0 {
                return end;
            }
            relay = done.1;
            turn.much.store(0, Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::time::Duration;

    use super::*;

    fn on_a_thread_for_bulk() -> bool {
        std::thread::current().name() == Some("rum-bulk")
    }

    #[tokio::test]
    async fn what_moves_much_leaves_and_comes_back() {
        let bulk = Bulk::default();
        let relay = |turn: Arc<Turn>| async move {
            for there in [true, false, true] {
                let bytes = if there { BUDGET } else { 1 };
                while on_a_thread_for_bulk() != there {
                    turn.used(bytes).await;
                    tokio::task::yield_now().await;
                }
            }
            "done"
        };
        let done = tokio::time::timeout(Duration::from_secs(60), bulk.run(relay)).await;
        assert_eq!(done.unwrap(), "done");
    }

    #[tokio::test]
    async fn what_moves_little_needs_no_thread() {
        let bulk = Bulk::default();
        let relay = |turn: Arc<Turn>| async move {
            for _ in 0..1000 {
                turn.used(LITTLE - 1).await;
                tokio::task::yield_now().await;
            }
        };
        bulk.run(relay).await;
        assert!(bulk.0.0.get().is_none());
    }

    #[tokio::test]
    async fn what_is_dropped_ends_wherever_it_is() {
        let (alive, ended) = tokio::sync::oneshot::channel::<()>();
        let bulk = Bulk::default();
        let relay = |turn: Arc<Turn>| async move {
            let _alive = alive;
            loop {
                turn.used(BUDGET).await;
            }
        };
        tokio::select! {
            () = bulk.run(relay) => {}
            () = async { while bulk.0.0.get().is_none() { tokio::task::yield_now().await } } => {}
        }
        let gone = tokio::time::timeout(Duration::from_secs(60), ended).await;
        assert!(gone.unwrap().is_err());
    }
}
