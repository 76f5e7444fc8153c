//! Places for control clients that stay connected: those that follow the ports, and those that wait
//! for one. Commands finish in an instant and need no place, so clients that stay cannot block
//! them.
//!
//! A place belongs to a reader, not to a session. A reader that resumes in a new session, because
//! the old one needs renewal, keeps its place across both.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::status::model::Stay;

/// Most readers that follow the ports. Each has two descriptors and some buffers, and gets all
/// events.
pub const MAX_FOLLOWING: usize = 64;
/// Most readers that wait for a port.
pub const MAX_WAITING: usize = 64;
/// How long a reader waits for a place. A client that does not read loses its own within this time.
pub const WAIT: Duration = Duration::from_secs(3);

/// One place. It becomes free when all its owners are gone.
pub type Place = Arc<OwnedSemaphorePermit>;

/// See the module.
#[derive(Debug, Clone)]
pub struct Places {
    following: Kind,
    waiting: Kind,
}

#[derive(Debug, Clone)]
struct Kind {
    free: Arc<Semaphore>,
    taken: Arc<Mutex<HashMap<u64, Weak<OwnedSemaphorePermit>>>>,
}

impl Default for Places {
    fn default() -> Self {
        let kind = |places| Kind {
            free: Arc::new(Semaphore::new(places)),
            taken: Arc::default(),
        };
        Self {
            following: kind(MAX_FOLLOWING),
            waiting: kind(MAX_WAITING),
        }
    }
}

impl Places {
    /// The place of `reader`, or else the next free one.
    ///
    /// # Errors
    /// No place becomes free within [`WAIT`]; the error says so in words.
    pub async fn take(&self, stay: Stay, reader: u64) -> Result<Place, String> {
        let (kind, most, what) = match stay {
            Stay::Follow => (&self.following, MAX_FOLLOWING, "follow its ports"),
            Stay::Wait => (&self.waiting, MAX_WAITING, "wait for its ports"),
        };
        let full = || format!("{most} others {what}, and more have no place");
        kind.take(reader).await.ok_or_else(full)
    }
}

impl Kind {
    async fn take(&self, reader: u64) -> Option<Place> {
        if let Some(place) = self.known().get(&reader).and_then(Weak::upgrade) {
            return Some(place);
        }
        let free = self.free.clone().acquire_owned();
        let place = tokio::time::timeout(WAIT, free).await.ok()?.ok()?;
        let place = Arc::new(place);
        let mut known = self.known();
        known.retain(|_, place| place.strong_count() > 0);
        known.insert(reader, Arc::downgrade(&place));
        Some(place)
    }

    fn known(&self) -> std::sync::MutexGuard<'_, HashMap<u64, Weak<OwnedSemaphorePermit>>> {
        // Nothing between two writes under the lock can panic.
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_place_is_its_readers_until_that_is_gone() {
        let places = Places::default();
        let mut taken = Vec::new();
        for reader in 0..64 {
            taken.push(places.take(Stay::Follow, reader).await.unwrap());
        }
        let refused = places.take(Stay::Follow, 64).await.unwrap_err();
        assert_eq!(
            refused,
            "64 others follow its ports, and more have no place"
        );
        // Another session of a reader with a place, which outlives its first session.
        let renewed = places.take(Stay::Follow, 3).await.unwrap();
        drop(taken.remove(3));
        places.take(Stay::Follow, 64).await.unwrap_err();
        drop(renewed);
        places.take(Stay::Follow, 64).await.unwrap();
        places.take(Stay::Wait, 0).await.unwrap();
    }
}
