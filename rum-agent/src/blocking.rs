//! Work that waits, on a thread beside the one that does everything else.

use std::io;

use rum_shared::threads;

/// Runs `work` on a thread of its own.
///
/// # Errors
/// There is no thread to be had, as when the user's programs have forked up to his limit: tokio would
/// panic. Or `work` did.
pub(crate) async fn run<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<T> {
    threads::can_start(1)?;
    tokio::task::spawn_blocking(work)
        .await
        .map_err(io::Error::other)
}
