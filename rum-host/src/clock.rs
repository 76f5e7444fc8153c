//! The clock of the loop and of what runs beside it: tokio's, so that its timers and its moments
//! agree, and a test can stop both. The pure core is told the time and reads none.

use std::time::Instant;

/// Now.
pub fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}
