//! Guests: where the programs run whose ports are forwarded. One file per kind.
//!
//! A kind says where its agent is dialled ([`Guest::endpoint`]) and, if rum started the guest, how
//! it ends. The rest of rum does not tell kinds apart: a new kind is a file here and an arm in
//! [`Guest`]'s functions.
//!
//! Invariant: a guest that rum started is gone once its [`Guest`] is stopped ([`Guest::stop`]) or
//! dropped (killed at once).

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rum_shared::transport::Endpoint;
use tokio::process::Child;
use tokio::sync::watch;

use self::progress::Tell;
use crate::error::RumError;
use crate::guest::process::Failure;
use crate::limits;
use crate::runtime_dir::isolation::Isolation;
use crate::runtime_dir::{RuntimeDir, RuntimeDirError};

pub mod libvirt;
pub(crate) mod namespace;
pub mod payload;
pub mod process;
pub mod progress;
pub mod qemu;
impl From<GuestError> for RumError {
    fn from(error: GuestError) -> Self {
        if let GuestError::Libvirt(error) = error {
            return error;
        }
        let mut this = Self::new(error.to_string());
        if let Some(hint) = error.hint() {
            this = this.hint(hint);
        }
        if let Some(example) = error.example() {
            this = this.example(example);
        }
        match std::error::Error::source(&error).map(ToString::to_string) {
            Some(source) => this.caused_by(source),
            None => this,
        }
    }
}

impl From<RuntimeDirError> for RumError {
    fn from(error: RuntimeDirError) -> Self {
        GuestError::from(error).into()
    }
}

#[cfg(test)]
mod tests;
mod unix;
mod vsock;

/// The program to re-execute: valid even after its file was replaced, and reachable from inside.
pub const SELF: &str = "/proc/self/exe";

/// The kind of a guest, with its settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GuestKind {
    /// Namespaces on this machine, made by rum.
    Namespace(Isolation),
    /// A VM that rum boots.
    Qemu(Box<qemu::Spec>),
    /// A running VM with an agent in it, addressed by its context id (CID).
    Vsock {
        /// The VM's CID.
        cid: u32,
    },
    /// A running VM whose vsock device is a Unix socket on the host.
    Unix {
        /// The device's socket.
        socket: PathBuf,
    },
    /// A libvirt domain with an agent in it.
    Libvirt(libvirt::Spec),
}

impl GuestKind {
    /// Its name in the configuration.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Namespace(_) => NAMESPACE,
            Self::Qemu(_) => "qemu",
            Self::Vsock { .. } => "vsock",
            Self::Unix { .. } => "unix",
            Self::Libvirt(_) => "libvirt",
        }
    }
}

impl GuestKind {
    /// Endpoint of the agent in a guest that rum does not start; None for the other kinds.
    pub fn running_endpoint(&self) -> Option<Endpoint> {
        match self {
            Self::Namespace(_) | Self::Qemu(_) | Self::Libvirt(_) => None,
            Self::Vsock { cid } => Some(vsock::endpoint(*cid)),
            Self::Unix { socket } => Some(unix::endpoint(socket)),
        }
    }

    /// Resolves the relative paths of a VM's files against `dir`, the configuration's directory.
    pub fn resolve(&mut self, dir: &Path) {
        if let Self::Qemu(spec) = self {
            let home = std::env::var_os("HOME").map(PathBuf::from);
            spec.resolve(dir, home.as_deref());
        }
    }

    /// Whether the guest has a disk of its own, which a start can discard.
    pub fn has_disk(&self) -> bool {
        matches!(self, Self::Qemu(spec) if matches!(spec.boot, qemu::Boot::Image(_)))
    }
}

/// [`GuestKind::name`] of the only kind in which rum can run commands.
pub(crate) const NAMESPACE: &str = "namespace";

/// The guest to start or to find.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestSpec {
    /// The guest's name, also that of its runtime directory.
    pub name: String,
    /// Its kind.
    pub kind: GuestKind,
    /// Whether to discard what an earlier guest of that name wrote to its disk.
    pub reset: bool,
}

/// Connects a guest that is being started to the rest of rum.
#[derive(Debug, Clone)]
pub struct Link {
    /// Arguments of an agent that rum itself starts on this machine.
    pub agent_args: Vec<String>,
    /// Reports progress to the user.
    pub tell: Tell,
    /// How often rum has connected to the guest's agent.
    pub agent: watch::Receiver<u64>,
}

impl Link {
    /// For a guest whose progress nobody follows.
    pub fn unheard(agent_args: Vec<String>) -> Self {
        Self {
            agent_args,
            tell: Tell::new(drop),
            agent: watch::channel(0).1,
        }
    }
}

/// Why a guest cannot be started, or a command cannot run in it.
#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    /// The runtime directory cannot be used.
    #[error(transparent)]
    RuntimeDir(#[from] RuntimeDirError),
    /// A helper process could not set the guest up.
    #[error("cannot start the guest: {}", .0.message)]
    Setup(Failure),
    /// A libvirt domain cannot be used; libvirt's error has its own words.
    #[error(transparent)]
    Libvirt(RumError),
    /// A VM cannot be started.
    #[error("{}", .0.message)]
    Vm(Box<VmError>),
    /// A system call failed.
    #[error("cannot {action}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// The kernel's error.
        source: io::Error,
    },
    /// rum cannot run commands in this kind of guest.
    #[error("rum cannot run a command in a guest of kind `{kind}`")]
    NoCommands {
        /// The kind.
        kind: String,
    },
    /// An empty command line.
    #[error("there is no command to run")]
    NoCommand,
    /// No running guest has that name.
    #[error("no guest `{name}` is running{}", names(.running))]
    NotRunning {
        /// The name asked for.
        name: String,
        /// Those that are.
        running: Vec<String>,
    },
    /// The command runs inside a guest, which hides the guests outside.
    #[error("this is inside the guest `{guest}`, which hides the `rum up` outside")]
    Inside {
        /// The guest around this process.
        guest: String,
    },
    /// No guest runs.
    #[error("no guest is running")]
    NoneRunning,
    /// Several guests run and the user named none.
    #[error("more than one guest is running: {}", .running.join(", "))]
    Ambiguous {
        /// Their names.
        running: Vec<String>,
    },
    /// The guest is being started or is just ending.
    #[error("the guest `{name}` is starting up or shutting down")]
    NotReady {
        /// The guest.
        name: String,
    },
    /// The guest's runtime directory was removed, and the present one does not lead into the guest.
    #[error(
        "nothing leads into guest `{name}` any more: its runtime directory was removed while it ran"
    )]
    NoWayIn {
        /// The guest.
        name: String,
    },
}

/// Why a VM cannot be started.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VmError {
    message: String,
    hint: Option<String>,
    lines: Vec<String>,
}

fn names(running: &[String]) -> String {
    match running {
        [] => String::new(),
        names => format!(" (running: {})", names.join(", ")),
    }
}

impl GuestError {
    /// A VM cannot be started.
    pub(crate) fn vm(message: impl Into<String>) -> Self {
        Self::Vm(Box::new(VmError {
            message: message.into(),
            ..VmError::default()
        }))
    }

    /// Adds a hint to an error about a VM.
    pub(crate) fn with_hint(mut self, hint: impl Into<String>) -> Self {
        if let Self::Vm(error) = &mut self {
            error.hint = Some(hint.into());
        }
        self
    }

    /// Adds the last lines of a log to an error about a VM.
    pub(crate) fn with_lines(mut self, lines: Vec<String>) -> Self {
        if let Self::Vm(error) = &mut self {
            error.lines = lines;
        }
        self
    }

    /// Lines to show below the hint.
    pub(crate) fn example(&self) -> Option<String> {
        match self {
            Self::Vm(error) if !error.lines.is_empty() => Some(error.lines.join("\n")),
            _ => None,
        }
    }

    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::RuntimeDir(error) => error.hint(),
            Self::Vm(error) => error.hint.clone(),
            Self::Setup(failure) => failure.hint.clone(),
            Self::Io { source, .. } => limits::hint(source).map(str::to_owned),
            Self::NoCommands { .. } => Some(
                "commands are for guests of kind `namespace`; log in to a VM with `rum ssh`"
                    .to_owned(),
            ),
            Self::NotRunning { running, .. } if !running.is_empty() => {
                Some(format!("name one of them, as in `--name {}`", running[0]))
            }
            Self::NotRunning { .. } | Self::NoneRunning => {
                Some("start one with `rum up`".to_owned())
            }
            Self::Inside { .. } => Some("run it outside of the guest".to_owned()),
            Self::Ambiguous { running } => {
                let first = running.first()?;
                Some(format!("name the one you mean, as in `--name {first}`"))
            }
            Self::NoCommand => Some("put it behind `--`".to_owned()),
            Self::NotReady { .. } => Some("wait for its `rum up` to say that it is up".to_owned()),
            Self::NoWayIn { name } => Some(format!(
                "what runs in it and its forwards go on; to enter it, end it with `rum down --name {name}` \
                 and start `rum up` again"
            )),
            // A libvirt error has its own hint.
            Self::Libvirt(_) => None,
        }
    }
}

/// How a guest ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestEnd {
    /// Completes the sentence "the guest ended:", for instance "its init was killed by signal 9".
    pub reason: String,
    /// The guest was ended from inside in the usual way: a power-off, which is no failure.
    pub by_itself: bool,
}

/// How [`Guest::stop`] went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stopped {
    /// Nothing had to be stopped, or everything ended when asked.
    Clean,
    /// What was left at the deadline was killed.
    Killed,
    /// Something did not end even when killed: it is stuck in the kernel.
    Stuck,
}

/// A running guest.
#[derive(Debug)]
pub struct Guest {
    endpoint: Endpoint,
    kind: GuestKind,
    running: Running,
}

/// What rum keeps of a running guest, by kind.
#[derive(Debug)]
enum Running {
    Namespace(Box<namespace::Namespace>),
    Qemu(Box<qemu::Qemu>),
    Libvirt(Box<libvirt::Libvirt>),
    /// rum did not start this guest.
    Found,
}

/// Time for the guest's processes to end after SIGTERM.
const STOP_DEADLINE: Duration = Duration::from_secs(5);

/// Why this machine cannot start a guest of this kind: the errors of [`Guest::start`]. Starts
/// nothing. A namespace guest can only be tried, which `rum doctor` does.
pub async fn in_the_way(kind: &GuestKind) -> Vec<GuestError> {
    match kind {
        GuestKind::Namespace(_) => vec![],
        GuestKind::Qemu(vm) => qemu::in_the_way(vm).await,
        GuestKind::Libvirt(domain) => {
            let found = libvirt::Libvirt::in_the_way(domain).await;
            found.map(GuestError::Libvirt).into_iter().collect()
        }
        GuestKind::Vsock { cid } => vsock::in_the_way(*cid).await.into_iter().collect(),
        GuestKind::Unix { socket } => unix::in_the_way(socket).into_iter().collect(),
    }
}

impl Guest {
    /// Starts or finds the guest, and publishes in `dir` what `rum exec` needs. The agent can be
    /// dialled when this returns, though an agent in a VM may take time to answer.
    pub async fn start(
        spec: &GuestSpec,
        dir: &Arc<RuntimeDir>,
        link: &Link,
    ) -> Result<Self, GuestError> {
        let kind = spec.kind.clone();
        let (endpoint, running) = match &kind {
            GuestKind::Namespace(isolation) => {
                let guest = namespace::Namespace::start(dir, *isolation, &link.agent_args);
                let (endpoint, guest) = guest.await?;
                (endpoint, Running::Namespace(Box::new(guest)))
            }
            GuestKind::Qemu(vm) => {
                let (endpoint, guest) = qemu::Qemu::start(spec, vm, dir, link).await?;
                (endpoint, Running::Qemu(Box::new(guest)))
            }
            GuestKind::Libvirt(domain) => {
                let started = libvirt::Libvirt::start(domain, link.tell.clone()).await;
                let (endpoint, guest) = started.map_err(GuestError::Libvirt)?;
                (endpoint, Running::Libvirt(Box::new(guest)))
            }
            GuestKind::Vsock { cid } => (vsock::endpoint(*cid), Running::Found),
            GuestKind::Unix { socket } => (unix::endpoint(socket), Running::Found),
        };
        let this = Self {
            endpoint,
            kind,
            running,
        };
        let inside = match (&this.running, &this.kind) {
            (Running::Namespace(guest), GuestKind::Namespace(isolation)) => {
                Some((guest.init(), *isolation))
            }
            _ => None,
        };
        dir.publish(this.kind.name(), inside)?;
        Ok(this)
    }

    /// Where the agent is dialled.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Starts `command` in the guest, in the directory `workdir` (empty: the caller's), in our
    /// process group, with our standard streams and environment. The child is a process of rum
    /// outside the guest. Its exit code is the command's: 128 + N after signal N; 125, 126 and 127
    /// as in env(1). SIGTERM to the child reaches the command; killing the child kills the command.
    pub fn spawn(&self, command: &[OsString], workdir: &Path) -> Result<Child, GuestError> {
        match &self.running {
            Running::Namespace(guest) => guest.spawn(command, workdir),
            Running::Qemu(_) | Running::Libvirt(_) | Running::Found => {
                Err(GuestError::NoCommands {
                    kind: self.kind.name().to_owned(),
                })
            }
        }
    }

    /// Id of the guest's first process on this machine, for kinds that have one.
    pub fn init_pid(&self) -> Option<u32> {
        match &self.running {
            Running::Namespace(guest) => Some(guest.init().pid()),
            Running::Qemu(_) | Running::Libvirt(_) | Running::Found => None,
        }
    }

    /// Whether the guest has begun to end, so that this is why its processes end.
    pub fn is_ending(&self) -> bool {
        match &self.running {
            Running::Namespace(guest) => guest.is_ending(),
            Running::Qemu(_) | Running::Libvirt(_) | Running::Found => false,
        }
    }

    /// Completes when the guest has ended by itself; never for a guest that rum did not start.
    /// Cancel-safe.
    pub async fn ended(&mut self) -> GuestEnd {
        match &mut self.running {
            Running::Namespace(guest) => guest.ended().await,
            Running::Qemu(guest) => guest.ended().await,
            Running::Libvirt(guest) => guest.ended().await,
            Running::Found => std::future::pending().await,
        }
    }

    /// How long [`Guest::stop`] should wait.
    pub fn stop_deadline(&self) -> Duration {
        match &self.running {
            Running::Namespace(_) | Running::Found => STOP_DEADLINE,
            Running::Qemu(guest) => guest.stop_deadline(),
            Running::Libvirt(_) => libvirt::GRACE,
        }
    }

    /// Ends the guest if rum started it. Asks everything inside to end (SIGTERM, or a VM's power
    /// button), kills what is left after `deadline`, and returns when the guest is gone.
    pub async fn stop(self, deadline: Duration) -> Stopped {
        match self.running {
            Running::Namespace(guest) => guest.stop(deadline).await,
            Running::Qemu(guest) => guest.stop(deadline).await,
            Running::Libvirt(guest) => guest.stop(deadline).await,
            Running::Found => Stopped::Clean,
        }
    }
}
