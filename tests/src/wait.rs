//! Waiting on conditions. A deadline here only bounds how long a failing test hangs: it is
//! far above anything a loaded machine needs, and no test measures with it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// After this a condition counts as never coming true.
pub const DEADLINE: Duration = Duration::from_secs(120);

/// What this process waits instead, in seconds.
static PATIENCE: AtomicU64 = AtomicU64::new(DEADLINE.as_secs());

/// Makes this process wait up to `seconds` for a condition: in a VM nothing is as fast.
pub fn be_patient(seconds: u64) {
    PATIENCE.store(seconds, Ordering::Relaxed);
}

/// After this a condition counts as never coming true in this process: [`DEADLINE`], unless
/// [`be_patient`] said otherwise.
pub fn patience() -> Duration {
    Duration::from_secs(PATIENCE.load(Ordering::Relaxed))
}

/// Waits until `condition` gives a value.
///
/// # Panics
/// When it does not within [`patience`].
pub fn until<T>(what: &str, condition: impl FnMut() -> Option<T>) -> T {
    until_within(patience(), what, condition)
}

/// As [`until`], for what takes long by itself.
///
/// # Panics
/// When it does not within `deadline`.
pub fn until_within<T>(
    deadline: Duration,
    what: &str,
    mut condition: impl FnMut() -> Option<T>,
) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(start.elapsed() < deadline, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}
