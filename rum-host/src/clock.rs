//! The clock of the host's loop and of the tasks beside it. It is tokio's clock, so timers and
//! timestamps agree, and a test can pause both. The pure core gets the time as an argument and
//! reads no clock.

use std::time::Instant;

/// The current time.
pub fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// Waits until `deadline`, or for ever if there is none.
pub async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

/// A clock that stands still until a test moves it. tokio's paused clock is no substitute: it
/// advances by itself once every task waits, even if one of them waits for a socket.
#[cfg(test)]
pub(crate) mod stopped {
    use std::sync::mpsc;
    use std::time::Duration;

    /// Number of scheduler turns after which everything that does not need the clock has happened,
    /// if all tasks run on one thread and use only local sockets.
    const TURNS: usize = 300;

    /// Stops the clock of this runtime until the value is dropped.
    pub struct Clock {
        /// tokio's clock does not advance by itself while a blocking task runs. One such task waits
        /// until this sender is dropped.
        _held: mpsc::Sender<()>,
    }

    impl Clock {
        pub fn stop() -> Self {
            tokio::time::pause();
            let (held, wait) = mpsc::channel::<()>();
            tokio::task::spawn_blocking(move || wait.recv());
            Self { _held: held }
        }

        /// Lets everything happen that does not need the clock.
        pub async fn settle(&self) {
            for _ in 0..TURNS {
                tokio::task::yield_now().await;
            }
        }

        /// Advances the clock by `time` in one step, and lets everything happen that is due.
        pub async fn advance(&self, time: Duration) {
            self.settle().await;
            tokio::time::advance(time).await;
            self.settle().await;
        }
    }
}
