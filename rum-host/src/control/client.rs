//! The client end of the control socket: how `rum ports` and other commands talk to a `rum up`.

use std::future::{Future as _, poll_fn};
use std::task::Poll;
use std::time::Duration;

use futures_util::FutureExt as _;
use roam::{Rx, Tx};
use rum_shared::stream::session::{Session, SessionError};
use rum_shared::transport::{Endpoint, Service, Transport};
use tokio_util::task::AbortOnDropHandle;

use super::places;
use super::service::{HEARTBEAT_DEADLINE, LIMITS, RumControlClient};
use crate::VERSION;
use crate::error::RumError;
use crate::runtime_dir::RunningGuest;
pub use crate::status::model::Since;
use crate::status::model::{CONTROL_PROTOCOL, ControlInfo, Stay, Update, WatchRequest};

/// Deadline for the answer to a call.
const CALL_DEADLINE: Duration = Duration::from_secs(3);

/// Why a `rum up` gives no answer.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// It cannot be reached, or has ended.
    #[error("the `rum up` of guest `{name}` does not answer: {why}")]
    Gone {
        /// The guest.
        name: String,
        /// The error.
        why: String,
    },
    /// It has no place for another client that stays.
    #[error("the `rum up` of guest `{name}` takes no more watchers: {why}")]
    Full {
        /// The guest.
        name: String,
        /// Its answer.
        why: String,
    },
    /// Its version speaks another protocol.
    #[error("the `rum up` of guest `{name}` is rum {version}, this is rum {VERSION}")]
    Version {
        /// The guest.
        name: String,
        /// Its version.
        version: String,
    },
}

impl ControlError {
    /// What the user can do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Gone { .. } => {
                "look whether it is just starting or ending, stopped (Ctrl+Z), or out of file \
                 descriptors; `rum down --force` ends it in any case"
            }
            Self::Full { .. } => {
                "end one of them, such as a forgotten `rum ports --watch`; `rum ports` answers at \
                 any time"
            }
            Self::Version { .. } => {
                "end it (`rum down --force`) and start it again with this version"
            }
        }
    }
}

impl From<ControlError> for RumError {
    fn from(error: ControlError) -> Self {
        let hint = error.hint();
        Self::new(error.to_string()).hint(hint)
    }
}

/// A session with a `rum up`.
pub struct Control {
    name: String,
    session: Session<RumControlClient>,
    info: ControlInfo,
}

impl Control {
    /// Connects to the `rum up` that holds `guest`.
    ///
    /// # Errors
    /// It does not answer within some seconds, or speaks another protocol.
    pub async fn connect(guest: &RunningGuest) -> Result<Self, ControlError> {
        let name = guest.name.clone();
        let gone = |error: &dyn ToString| ControlError::Gone {
            name: name.clone(),
            why: error.to_string(),
        };
        let socket = guest.control_socket();
        let endpoint = Endpoint::Unix {
            rpc: socket.clone(),
            channel: socket,
            net: None,
        };
        let dialled = Transport::from(endpoint).dial(Service::Rpc).await;
        let stream = dialled.map_err(|e| gone(&e))?;
        let session = Session::<RumControlClient>::connect(stream, LIMITS)
            .await
            .map_err(|e| gone(&e))?;
        let client = session.client().clone();
        let info = session
            .call(CALL_DEADLINE, client.hello(CONTROL_PROTOCOL))
            .await
            .map_err(|e| gone(&e))?;
        if info.protocol != CONTROL_PROTOCOL {
            let version = rum_shared::text::clean(&info.version, 64);
            return Err(ControlError::Version { name, version });
        }
        Ok(Self {
            name,
            session,
            info,
        })
    }

    fn gone(&self, error: &dyn ToString) -> ControlError {
        ControlError::Gone {
            name: self.name.clone(),
            why: error.to_string(),
        }
    }

    /// Information about the `rum up` that answered.
    pub fn info(&self) -> &ControlInfo {
        &self.info
    }

    /// Asks the `rum up` to end, with `force` at once.
    ///
    /// # Errors
    /// It is gone.
    pub async fn stop(&self, force: bool) -> Result<(), ControlError> {
        let client = self.session.client().clone();
        let asked = self.session.call(CALL_DEADLINE, client.stop(force)).await;
        asked.map_err(|error| self.gone(&error))
    }

    /// Asks for a place for a client that stays.
    async fn stay(&self, stay: Stay, reader: u64) -> Result<(), ControlError> {
        let client = self.session.client().clone();
        let deadline = places::WAIT + CALL_DEADLINE;
        let asked = self.session.call(deadline, client.stay(stay, reader));
        asked.await.map_err(|error| match error {
            SessionError::Remote(why) => ControlError::Full {
                name: self.name.clone(),
                why,
            },
            error => self.gone(&error),
        })
    }

    /// Asks the `rum up` to try a lost agent at once.
    ///
    /// # Errors
    /// It is gone.
    pub async fn retry(&self) -> Result<(), ControlError> {
        let client = self.session.client().clone();
        let asked = self.session.call(CALL_DEADLINE, client.retry()).await;
        asked.map_err(|error| self.gone(&error))
    }
}

/// One watch on a running `rum up`: a snapshot, then events.
pub struct Feed {
    guest: RunningGuest,
    all: bool,
    /// Why this reader stays, and its number for that.
    stay: Option<(Stay, u64)>,
    control: Control,
    updates: Rx<Update>,
    /// Dropping it ends the stream at the server.
    _stop: Tx<()>,
    /// The call, which must be polled for the stream to flow.
    _call: AbortOnDropHandle<()>,
    /// The latest event that was returned.
    seq: u64,
}

impl Feed {
    /// Starts to watch the `rum up` that holds `guest`. `all`: every port of the guest, not only
    /// those in the range. `stay` is why a lasting watch stays connected. With `since`, the watch
    /// resumes after that event if possible; the first update shows whether it did.
    ///
    /// # Errors
    /// It does not answer within some seconds, or speaks another protocol.
    pub async fn open(
        guest: &RunningGuest,
        all: bool,
        stay: Option<Stay>,
        since: Option<Since>,
    ) -> Result<Self, ControlError> {
        let stay = stay.map(|stay| (stay, fastrand::u64(..)));
        Self::open_as(guest, all, stay, since).await
    }

    async fn open_as(
        guest: &RunningGuest,
        all: bool,
        stay: Option<(Stay, u64)>,
        since: Option<Since>,
    ) -> Result<Self, ControlError> {
        let control = Control::connect(guest).await?;
        if let Some((why, reader)) = stay {
            control.stay(why, reader).await?;
        }
        let (tx, updates) = roam::channel();
        let (stop, stop_rx) = roam::channel();
        let client = control.session.client().clone();
        let seq = since.as_ref().map_or(0, |since| since.seq);
        let request = WatchRequest { all, since };
        let mut call = Box::pin(
            async move {
                // The receiver sees how the call ends.
                let _ = client.watch(request, tx, stop_rx).await;
            }
            .fuse(),
        );
        // The first poll binds the channels, which must not be used before.
        let _ = poll_fn(|context| Poll::Ready(call.as_mut().poll(context))).await;
        Ok(Self {
            guest: guest.clone(),
            all,
            stay,
            control,
            updates,
            _stop: stop,
            _call: AbortOnDropHandle::new(tokio::spawn(call)),
            seq,
        })
    }

    /// Information about the `rum up` that answered.
    pub fn info(&self) -> &ControlInfo {
        self.control.info()
    }

    /// The session, for other calls.
    pub fn control(&self) -> &Control {
        &self.control
    }

    /// The next update; waits while nothing happens. Cancel-safe.
    ///
    /// # Errors
    /// The `rum up` is gone, or was silent for `HEARTBEAT_DEADLINE`.
    pub async fn next(&mut self) -> Result<Update, ControlError> {
        loop {
            if self.control.session.is_worn() {
                self.renew().await?;
            }
            let received = tokio::select! {
                biased;
                received = tokio::time::timeout(HEARTBEAT_DEADLINE, self.updates.recv()) => received,
                () = self.control.session.closed() => {
                    return Err(self.control.gone(&SessionError::Closed));
                }
            };
            let silent = || format!("nothing heard for {} s", HEARTBEAT_DEADLINE.as_secs());
            let item = received.map_err(|_| self.control.gone(&silent()))?;
            let item = item.map_err(|error| self.control.gone(&format!("{error:?}")))?;
            let item = item.ok_or_else(|| self.control.gone(&SessionError::Closed))?;
            match &*item {
                Update::Events(events) => match events.last() {
                    // A heartbeat.
                    None => continue,
                    Some(last) => self.seq = last.seq,
                },
                Update::Snapshot { seq, .. } => self.seq = *seq,
            }
            return Ok((*item).clone());
        }
    }

    /// A session may receive only a bounded amount. Resumes in a new session.
    async fn renew(&mut self) -> Result<(), ControlError> {
        let since = Since {
            boot: self.info().boot.clone(),
            seq: self.seq,
        };
        *self = Self::open_as(&self.guest, self.all, self.stay, Some(since)).await?;
        Ok(())
    }
}
