//! The clock of the loop and of what runs beside it: tokio's, so that its timers and its moments
//! agree, and a test can stop both. The pure core is told the time and reads none.

use std::time::Instant;

/// Now.
pub fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// Waits until `deadline`; without one, for ever.
pub async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

/// A clock that stands still until a test moves it. tokio's paused clock moves by itself as soon as
/// every task waits, also where one waits for a socket.
#[cfg(test)]
pub(crate) mod stopped {
    use std::sync::mpsc;
    use std::time::Duration;

    /// Turns of the runtime after which all has happened that can without the clock, as long as
    /// everything is in one thread and over sockets of this machine.
    const TURNS: usize = 300;

    /// Stops the clock of this runtime for as long as it is kept.
    pub struct Clock {
        /// tokio's clock does not move by itself while a blocking task runs: one waits for this to go.
        _held: mpsc::Sender<()>,
    }

    impl Clock {
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

        /// Moves on by `time` in one go, and lets happen what is due.
        pub async fn advance(&self, time: Duration) {
            self.settle().await;
            tokio::time::advance(time).await;
            self.settle().await;
        }
    }
}
