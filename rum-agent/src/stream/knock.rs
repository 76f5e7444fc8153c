//! Tells a host that waits for the agent that it is there (see `rum_shared::transport`).
//!
//! A stream has a heartbeat, by which its host knows; a session without one may be that of a host that
//! lost its stream and waits, on a device where what is dropped stays open for a while.
//!
//! Invariant: silent as long as somebody has a stream; a knock carries no fact.

use std::time::Duration;

use rum_shared::range::PortRange;
use rum_shared::transport::KnockTarget;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::trace;

/// Mean time between two knocks.
const INTERVAL: Duration = Duration::from_secs(1);
/// A knock comes up to this much earlier or later, so that many guests do not knock as one.
const JITTER: Duration = Duration::from_millis(200);

/// Knocks at `target` while nobody has a stream (`streamed`, see [`crate::port_set::hub::Hub::hull`], is none),
/// until `stop` is cancelled.
pub async fn run(
    target: KnockTarget,
    mut streamed: watch::Receiver<Option<PortRange>>,
    stop: CancellationToken,
) {
    let knocking = async {
        while streamed.wait_for(Option::is_none).await.is_ok() {
            // Nobody need be listening: the next knock comes anyway.
            if let Err(error) = target.knock().await {
                trace!("nobody heard a knock: {error}");
            }
            tokio::time::sleep(pause(random_byte())).await;
        }
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = knocking => {}
    }
}

/// The pause that belongs to a random byte.
fn pause(random: u8) -> Duration {
    INTERVAL - JITTER + JITTER * 2 * u32::from(random) / 255
}

/// A random byte, or the middle without a source of them.
fn random_byte() -> u8 {
    let mut byte = [128];
    // Cannot fail with these flags once the kernel has booted; jitter is not worth an error.
    let _ = rustix::rand::getrandom(&mut byte, rustix::rand::GetRandomFlags::empty());
    byte[0]
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use tokio::net::UnixListener;

    #[test]
    fn pauses_stay_within_the_jitter() {
        assert_eq!(pause(0), Duration::from_millis(800));
        assert_eq!(pause(255), Duration::from_millis(1200));
    }

    #[tokio::test(start_paused = true)]
    async fn knocks_come_about_each_second() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("knock");
        let listener = UnixListener::bind(&path).unwrap();
        let (_hull, streamed) = watch::channel(None);
        let knocking = run(KnockTarget::Unix(path), streamed, CancellationToken::new());
        let test = async {
            listener.accept().await.unwrap();
            for _ in 0..5 {
                let last = tokio::time::Instant::now();
                listener.accept().await.unwrap();
                let pause = last.elapsed();
                // Timers are rounded up to milliseconds.
                let longest = INTERVAL + JITTER + Duration::from_millis(1);
                assert!(INTERVAL - JITTER <= pause && pause <= longest, "{pause:?}");
            }
        };
        tokio::select! {
            () = knocking => unreachable!("nobody stops it"),
            () = test => {}
        }
    }

    #[tokio::test]
    async fn knocks_only_without_a_stream() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("knock");
        let listener = UnixListener::bind(&path).unwrap();
        let (hull, streamed) = watch::channel(Some(PortRange::ALL));
        let stop = CancellationToken::new();
        let knocking = run(KnockTarget::Unix(path), streamed, stop.clone());
        let test = async {
            for _ in 0..100 {
                tokio::task::yield_now().await;
            }
            let early = std::pin::pin!(listener.accept());
            assert!(
                futures_poll(early).await.is_none(),
                "a knock during a stream"
            );
            hull.send_replace(None);
            for _ in 0..2 {
                listener.accept().await.unwrap();
            }
            stop.cancel();
        };
        tokio::join!(knocking, test);
    }

    async fn futures_poll<F: Future + Unpin>(mut future: F) -> Option<F::Output> {
        std::future::poll_fn(|cx| match std::pin::Pin::new(&mut future).poll(cx) {
            std::task::Poll::Ready(output) => std::task::Poll::Ready(Some(output)),
            std::task::Poll::Pending => std::task::Poll::Ready(None),
        })
        .await
    }
}
