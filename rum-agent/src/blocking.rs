//! Runs blocking work on a thread of its own.
//!
//! Each piece of work gets a new thread. tokio's own pool panics where no thread can be started,
//! for instance when the user's programs have reached the process limit.

use std::io;
use std::thread;

use rum_shared::threads::STACK;
use tokio::sync::oneshot;

/// Runs `work` on a new thread, which ends with it. If the future is dropped, the work runs on and
/// its result is discarded.
///
/// # Errors
/// No thread can be started, or `work` panicked.
pub(crate) async fn run<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<T> {
    let (done, result) = oneshot::channel();
    let thread = thread::Builder::new().stack_size(STACK);
    thread.spawn(move || {
        // The send fails only if the caller no longer waits.
        let _ = done.send(work());
    })?;
    let lost = |_| io::Error::other("its thread ended without a result");
    result.await.map_err(lost)
}
