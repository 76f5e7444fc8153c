//! Progress of a guest while rum starts and runs it, and how it is reported.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// An event of a guest that rum runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// A VM is being started.
    Booting {
        /// The accelerator: "KVM" or "TCG".
        engine: &'static str,
        /// Why no faster accelerator is used.
        because: Option<String>,
    },
    /// The guest's writes go to an overlay of its image.
    Overlay {
        /// The image.
        image: String,
        /// Whether the overlay is new.
        fresh: bool,
    },
    /// The VM's processors run.
    Running {
        /// Since the start.
        after: Duration,
    },
    /// The VM is still booting.
    Boots {
        /// Since the start.
        after: Duration,
        /// The last line on its console, cleaned; None while there is none.
        line: Option<String>,
    },
    /// The agent answered for the first time.
    AgentUp {
        /// Since the start.
        after: Duration,
    },
    /// The agent has not answered for so long that something is probably wrong.
    AgentLate {
        /// Since the start.
        after: Duration,
        /// The guest.
        name: String,
    },
    /// One of the last lines of a log, cleaned.
    LogLine(String),
    /// The guest rebooted by itself, and its machine is started again.
    Rebooting {
        /// Pause before the start; not zero if the guest rebooted soon after each of its last
        /// starts.
        pause: Duration,
    },
    /// A libvirt domain is being started, which may take a while.
    DomainStarting {
        /// Its name, cleaned.
        name: String,
    },
    /// A paused libvirt domain is resumed.
    DomainResuming {
        /// Its name, cleaned.
        name: String,
    },
    /// The guest was asked to power off.
    PoweringOff {
        /// The time it has for that.
        deadline: Duration,
        /// Whether it still seems to be booting.
        boots: bool,
    },
    /// The guest did not power off in time and was switched off.
    SwitchedOff {
        /// The time it had.
        deadline: Duration,
    },
}

impl Progress {
    /// The event's name in JSON.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Booting { .. } => "guest-booting",
            Self::Overlay { .. } => "guest-overlay",
            Self::Running { .. } => "guest-running",
            Self::Boots { .. } => "guest-boots",
            Self::AgentUp { .. } => "guest-agent-up",
            Self::AgentLate { .. } => "guest-agent-late",
            Self::LogLine(_) => "guest-log",
            Self::Rebooting { .. } => "guest-rebooting",
            Self::DomainStarting { .. } => "guest-starting",
            Self::DomainResuming { .. } => "guest-resuming",
            Self::PoweringOff { .. } => "guest-powering-off",
            Self::SwitchedOff { .. } => "guest-switched-off",
        }
    }

    /// Whether the event is about a problem.
    pub fn is_problem(&self) -> bool {
        matches!(self, Self::AgentLate { .. } | Self::LogLine(_))
    }
}

impl fmt::Display for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Booting {
                engine,
                because: None,
            } => write!(f, "Booting with {engine}"),
            Self::Booting {
                engine,
                because: Some(why),
            } => write!(f, "Booting with {engine}, which is slow: {why}"),
            Self::Running { after } => write!(
                f,
                "VM started in {:.1} s; waiting for the agent",
                after.as_secs_f64()
            ),
            Self::Overlay { image, fresh: true } => write!(
                f,
                "The guest writes to an overlay of its own, {image} stays as it is"
            ),
            Self::Overlay { fresh: false, .. } => f.write_str(
                "Continuing with the disk of the last run (`rum up --reset` discards it)",
            ),
            Self::Boots { after, line } => write!(
                f,
                "Booting for {} s: {}",
                after.as_secs(),
                line.as_deref().unwrap_or("nothing on the console yet")
            ),
            Self::AgentUp { after } => write!(f, "Agent up after {:.1} s", after.as_secs_f64()),
            Self::AgentLate { after, name } => write!(
                f,
                "No agent after {} s, still waiting; `rum console --name {name}` shows the guest, \
                 whose last lines are",
                after.as_secs()
            ),
            Self::LogLine(line) => write!(f, "  | {line}"),
            Self::Rebooting { pause } if pause.is_zero() => {
                f.write_str("The guest reboots: starting its machine again")
            }
            Self::Rebooting { pause } => write!(
                f,
                "The guest reboots soon after each start: starting its machine again in {} s",
                pause.as_secs()
            ),
            Self::DomainStarting { name } => write!(f, "Starting the domain `{name}`"),
            Self::DomainResuming { name } => {
                write!(f, "Resuming the domain `{name}`, which was paused")
            }
            Self::PoweringOff { deadline, boots } => write!(
                f,
                "Powering the guest off: waiting up to {} s (Ctrl+C again to stop now){}",
                deadline.as_secs(),
                if *boots {
                    "; it is still booting and reacts later"
                } else {
                    ""
                }
            ),
            Self::SwitchedOff { deadline } => write!(
                f,
                "The guest did not power off within {} s and was switched off",
                deadline.as_secs()
            ),
        }
    }
}

/// Reports a guest's progress to the user.
#[derive(Clone)]
pub struct Tell(Arc<dyn Fn(Progress) + Send + Sync>);

impl Tell {
    /// Reports by calling `tell`, which must not block.
    pub fn new(tell: impl Fn(Progress) + Send + Sync + 'static) -> Self {
        Self(Arc::new(tell))
    }

    /// Reports one event.
    pub fn say(&self, progress: Progress) {
        (self.0)(progress);
    }
}

impl fmt::Debug for Tell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tell")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lines() {
        let (after, deadline) = (Duration::from_millis(3240), Duration::from_secs(60));
        let all = [
            Progress::Booting {
                engine: "KVM",
                because: None,
            },
            Progress::Booting {
                engine: "TCG",
                because: Some("cannot open /dev/kvm: Permission denied".to_owned()),
            },
            Progress::Overlay {
                image: "debian.qcow2".to_owned(),
                fresh: true,
            },
            Progress::Overlay {
                image: "debian.qcow2".to_owned(),
                fresh: false,
            },
            Progress::Running { after },
            Progress::Boots { after, line: None },
            Progress::Boots {
                after: Duration::from_secs(20),
                line: Some("[    2.7] systemd[1]: Reached target Basic System.".to_owned()),
            },
            Progress::AgentUp { after },
            Progress::AgentLate {
                after,
                name: "dev".to_owned(),
            },
            Progress::LogLine("Kernel panic".to_owned()),
            Progress::Rebooting {
                pause: Duration::ZERO,
            },
            Progress::Rebooting {
                pause: Duration::from_secs(4),
            },
            Progress::DomainStarting {
                name: "debian".to_owned(),
            },
            Progress::DomainResuming {
                name: "debian".to_owned(),
            },
            Progress::PoweringOff {
                deadline,
                boots: false,
            },
            Progress::PoweringOff {
                deadline,
                boots: true,
            },
            Progress::SwitchedOff { deadline },
        ];
        let lines: Vec<_> = all
            .iter()
            .map(|one| format!("{:<20}{one}", one.word()))
            .collect();
        insta::assert_snapshot!(lines.join("\n"));
    }
}
