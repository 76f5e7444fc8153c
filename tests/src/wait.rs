//! Waiting on conditions. A deadline here only bounds how long a failing test hangs: it is
//! far above anything a loaded machine needs, and no test measures with it.

use std::time::{Duration, Instant};

/// After this a condition counts as never coming true.
pub const DEADLINE: Duration = Duration::from_secs(120);

/// Waits until `condition` gives a value.
///
/// # Panics
/// When it does not within [`DEADLINE`].
pub fn until<T>(what: &str, condition: impl FnMut() -> Option<T>) -> T {
    until_within(DEADLINE, what, condition)
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
