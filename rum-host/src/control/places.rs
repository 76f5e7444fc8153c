//! Places for the clients of a control socket that stay: those who follow the ports, and those who wait for
//! one. Others, commands, are done in an instant and need none, so nobody who stays is in their way.
//!
//! A place belongs to a reader and not to a session: a reader that goes on in another session, because the
//! old one is worn, has it in both meanwhile.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::status::model::Stay;

/// Readers that follow the ports: each has two descriptors, some buffers, and gets all events.
pub const MAX_FOLLOWING: usize = 64;
/// Readers that wait for a port.
pub const MAX_WAITING: usize = 64;
/// How long a reader waits for a place: somebody who does not read loses his within this time.
pub const WAIT: Duration = Duration::from_secs(3);

/// One place. It is free when all who have it are gone.
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
    /// The place of `reader`, or a free one as soon as there is one.
    ///
    /// # Errors
    /// There is none, in words.
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
        // Nothing that can panic is done between two writes under the lock.
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
        // Another session of one that has a place, which outlives the first.
        let renewed = places.take(Stay::Follow, 3).await.unwrap();
        drop(taken.remove(3));
        places.take(Stay::Follow, 64).await.unwrap_err();
        drop(renewed);
        places.take(Stay::Follow, 64).await.unwrap();
        places.take(Stay::Wait, 0).await.unwrap();
    }
}
