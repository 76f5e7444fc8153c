//! What a guest tells of itself while rum starts and runs it, and the way it is told.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::notice::Notice;

/// Something that happened to a guest of rum's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// A domain of libvirt is started, which may take a while.
    DomainStarting {
        /// Its name, cleaned.
        name: String,
    },
    /// A domain of libvirt that was paused goes on.
    DomainResuming {
        /// Its name, cleaned.
        name: String,
    },
    /// It was asked to power off.
    PoweringOff {
        /// How long it has.
        deadline: Duration,
    },
    /// It did not, and was switched off.
    SwitchedOff {
        /// How long it had.
        deadline: Duration,
    },
}

impl Progress {
    /// Whether it tells of a problem.
    pub fn is_problem(&self) -> bool {
        matches!(self, Self::SwitchedOff { .. })
    }
}

impl fmt::Display for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DomainStarting { name } => write!(f, "Starting the domain `{name}`"),
            Self::DomainResuming { name } => {
                write!(f, "Resuming the domain `{name}`, which was paused")
            }
            Self::PoweringOff { deadline } => write!(
                f,
                "Powering the guest off within {} s, again to force",
                deadline.as_secs()
            ),
            Self::SwitchedOff { deadline } => write!(
                f,
                "The guest did not power off within {} s and was switched off",
                deadline.as_secs()
            ),
        }
    }
}

/// The way to the user, for a guest.
#[derive(Clone)]
pub struct Tell(Arc<dyn Fn(Notice) + Send + Sync>);

impl Tell {
    /// A way that calls `tell`, which must not block.
    pub fn new(tell: impl Fn(Notice) + Send + Sync + 'static) -> Self {
        Self(Arc::new(tell))
    }

    /// Tells.
    pub fn say(&self, progress: Progress) {
        (self.0)(Notice::Guest(progress));
    }
}

impl fmt::Debug for Tell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tell")
    }
}
