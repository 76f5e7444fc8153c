//! Bulk gives way: what one relay may do before others have their turn, and where those in bulk run.
//!
//! A relay whose sockets are always ready would never return to the event loop. After [`BUDGET`] bytes it
//! does. That alone is not enough beside many of them, since each has its budget before a small
//! relay has its turn, and since the kernel makes a thread that computes all the time wait longer than
//! one that mostly sleeps. So a relay that moves much moves to [`Bulk`], threads of their own, and
//! comes back when it moves little. It goes as it is: a future can be polled by any thread, and its
//! sockets stay with the event loop that they are registered with.
//!
//! Invariants: without bulk there are no further threads; a relay that moves is still owned by the
//! future that began it, and ends when that is dropped.

use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::task::Poll;

use tokio::runtime::{Builder, Runtime};
use tokio_util::task::AbortOnDropHandle;

use crate::threads;

/// Bytes that a relay moves before it returns to the event loop: two turns with a full buffer. Less costs
/// throughput, more costs others time.
const BUDGET: usize = 512 * 1024;
/// Bytes of one poll below which a relay is a small one.
const LITTLE: usize = 32 * 1024;
/// Bytes that were moved without a small poll between from which on a relay is bulk: a page and what
/// belongs to it is not.
const MUCH: usize = 1024 * 1024;
/// Small polls in a row after which it no longer is: bulk may stall for a moment.
const CALM: usize = 32;
/// Most threads for bulk; more do not make relays faster.
const MAX_WORKERS: usize = 8;

/// What a relay has moved of late.
#[derive(Debug, Default)]
pub struct Turn {
    /// Bytes since the relay was polled or gave way.
    moved: AtomicUsize,
    /// Bytes in polls without a small one between.
    much: AtomicUsize,
    /// Small polls in a row.
    calm: AtomicUsize,
}

impl Turn {
    /// Counts `bytes`, and gives way when the budget is used up.
    pub(super) async fn used(&self, bytes: usize) {
        let moved = self.moved.fetch_add(bytes, Relaxed) + bytes;
        if moved >= BUDGET {
            tokio::task::yield_now().await;
        }
    }

    /// A poll is over.
    fn over(&self) {
        match self.moved.swap(0, Relaxed) {
            // It only looked.
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

    /// Polls `relay` until it has ended, or `leave` says that it belongs elsewhere.
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

/// Threads for relays in bulk, which are started when the first one is. Clones share them.
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
        // The last owner may be a task, which must not wait.
        if let Some(Some(runtime)) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

impl Bulk {
    /// Runs what `relay` makes of its [`Turn`] to its end: here, and while it is bulk, there.
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
