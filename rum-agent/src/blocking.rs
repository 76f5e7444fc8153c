//! Work that waits, on a thread beside the one that does everything else.
//!
//! A thread for each piece, instead of tokio's own for such work: that panics where no thread can be
//! had, as when the user's programs have forked up to his limit.

use std::io;
use std::thread;

use rum_shared::threads::STACK;
use tokio::sync::oneshot;

/// Runs `work` on a thread of its own, which ends with it. Dropped, it lets the work go on for nobody.
///
/// # Errors
/// There is no thread to be had, or `work` panicked.
pub(crate) async fn run<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<T> {
    let (done, result) = oneshot::channel();
    let thread = thread::Builder::new().stack_size(STACK);
    thread.spawn(move || {
        // An error is one that waits no more.
        let _ = done.send(work());
    })?;
    let lost = |_| io::Error::other("its thread ended without a result");
    result.await.map_err(lost)
}
