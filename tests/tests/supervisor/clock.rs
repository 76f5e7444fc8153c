//! A clock that stands still until it is told to move.
//!
//! tokio's paused clock moves by itself as soon as every task waits, also where one waits for a
//! socket. Here all sockets are Unix sockets within one thread, so whatever is on its way has
//! arrived after a few turns of the runtime, and only then the clock moves on.

use std::sync::mpsc;
use std::time::Duration;

use tokio::time::Instant;

/// Turns of the runtime after which nothing is on its way: a session is made in a tenth of them.
const TURNS: usize = 300;
/// How far it moves at once: two events that are further apart are seen one after the other.
pub const STEP: Duration = Duration::from_millis(5);

pub struct Clock {
    /// tokio's clock does not move by itself while a blocking task runs: one waits for this to go.
    _held: mpsc::Sender<()>,
}

impl Clock {
    /// Stops the clock of this runtime.
    pub fn stop() -> Self {
        tokio::time::pause();
        let (held, wait) = mpsc::channel::<()>();
        tokio::task::spawn_blocking(move || wait.recv());
        Self { _held: held }
    }

    /// Lets happen whatever can without the clock.
    pub async fn settle(&self) {
        for _ in 0..TURNS {
            tokio::task::yield_now().await;
        }
    }

    /// Moves on by `time`, and lets happen what is due.
    pub async fn advance(&self, time: Duration) {
        let end = Instant::now() + time;
        self.settle().await;
        while let Some(left) = end.checked_duration_since(Instant::now())
            && !left.is_zero()
        {
            tokio::time::advance(left.min(STEP)).await;
            self.settle().await;
        }
    }

    /// Moves on until `what` gives a value: that, and how long it took. Timers are rounded up to
    /// milliseconds, and [`STEP`] is the resolution.
    pub async fn until<T>(&self, mut what: impl FnMut() -> Option<T>) -> (T, Duration) {
        let start = Instant::now();
        self.settle().await;
        loop {
            if let Some(value) = what() {
                return (value, start.elapsed());
            }
            assert!(start.elapsed() < Duration::from_secs(120), "never");
            tokio::time::advance(STEP).await;
            self.settle().await;
        }
    }
}

/// Whether `took` is `time`, as far as one can see.
pub fn is(took: Duration, time: Duration) -> bool {
    time <= took && took <= time + 3 * STEP
}
