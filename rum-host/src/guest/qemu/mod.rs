//! Kind `qemu`: a VM that rum boots, with its agent put in.
//!
//! ```text
//! rum ──── __rum-warden ──┬─ qemu-system-…          overlay, seed or initramfs: state directory
//!  │                      └─ vhost-device-vsock     only without /dev/vhost-vsock
//!  ├─ QMP ────────────────────┘                     sockets: runtime directory
//!  └─ vsock: the agent
//! ```
//!
//! The agent comes in with the initramfs of a kernel, or on a seed disk that cloud-init reads
//! ([`crate::payload`]). An image is never written: the guest's writes go to an overlay
//! (`overlay`), which stays.
//!
//! A guest may reboot: the VM stays, the agent comes back by itself. Only a kernel that reboots
//! before its agent was ever there ends the VM, since it would do so again and again.
//!
//! Invariants: none of the VM's processes outlives rum ([`crate::sandbox`]); nothing of it listens
//! on a network of the host (`command`); what its logs say is cleaned before it is shown.

use std::time::{Duration, Instant};

use rum_shared::transport::Endpoint;
use tokio::sync::watch;

use super::progress::{Progress, Tell};
use super::{GuestEnd, GuestError, GuestSpec, Link, Stopped};
use crate::runtime_dir::RuntimeDir;

mod command;
mod log;
mod overlay;
mod process;
mod qmp;
mod spec;
mod start;
mod state;

pub use spec::{Accel, Boot, Spec, SshKey};

use command::{Device, Engine};
use process::Process;
use qmp::{Event, Qmp};
use state::StateDir;

/// Without an agent for so long something is probably wrong; translated instructions take longer.
const AGENT_DEADLINE: Duration = Duration::from_secs(120);
const AGENT_DEADLINE_TCG: Duration = Duration::from_secs(240);
/// Time to power off: services of a distribution are stopped one after the other, and have things
/// to write. A kernel with an initramfs often has nobody who hears the button, and no disk.
const IMAGE_DEADLINE: Duration = Duration::from_secs(60);
const IMAGE_DEADLINE_TCG: Duration = Duration::from_secs(180);
const KERNEL_DEADLINE: Duration = Duration::from_secs(5);
/// Time for QEMU to quit when told, its caches written; and for what is killed to be gone.
const QUIT_DEADLINE: Duration = Duration::from_secs(10);
/// How often the length of the console's log is looked at.
const LOG_PERIOD: Duration = Duration::from_secs(10);
/// Lines of a log that are shown when something went wrong.
const TAIL: usize = 15;

/// A running VM.
#[derive(Debug)]
pub struct Qemu {
    name: String,
    kernel: bool,
    engine: Engine,
    process: Process,
    qmp: Qmp,
    state: StateDir,
    tell: Tell,
    started: Instant,
    agent: watch::Receiver<bool>,
    agent_was_up: bool,
    late_at: Option<tokio::time::Instant>,
    /// Why QEMU says that the machine stops.
    shutdown: Option<String>,
    end: Option<GuestEnd>,
}

/// What can happen to a VM.
enum Happened {
    Ended(String),
    Event(Event),
    AgentUp,
    Late,
    LogPeriod,
}

impl Qemu {
    /// Starts the VM. It boots when this returns.
    pub async fn start(
        guest: &GuestSpec,
        spec: &Spec,
        dir: &RuntimeDir,
        link: &Link,
    ) -> Result<(Endpoint, Self), GuestError> {
        let begun = Instant::now();
        let state = StateDir::open(&guest.name)?;
        let tell = link.tell.clone();
        let started = start::start(guest, spec, dir, &state, &tell).await?;
        let after = begun.elapsed();
        tell.say(Progress::Running { after });
        let endpoint = match started.device {
            Device::Vhost { cid } => Endpoint::Vsock { cid },
            Device::User => Endpoint::Connect {
                socket: dir.vsock_socket(),
            },
        };
        let patience = match started.engine {
            Engine::Kvm => AGENT_DEADLINE,
            Engine::Tcg => AGENT_DEADLINE_TCG,
        };
        let this = Self {
            name: guest.name.clone(),
            kernel: matches!(spec.boot, Boot::Kernel { .. }),
            engine: started.engine,
            process: started.process,
            qmp: started.qmp,
            state,
            tell,
            started: begun,
            agent: link.agent.clone(),
            agent_was_up: false,
            late_at: Some(tokio::time::Instant::now() + patience),
            shutdown: None,
            end: None,
        };
        Ok((endpoint, this))
    }

    /// Time to power off when asked.
    pub fn stop_deadline(&self) -> Duration {
        match (self.kernel, self.engine) {
            (true, _) => KERNEL_DEADLINE,
            (false, Engine::Kvm) => IMAGE_DEADLINE,
            (false, Engine::Tcg) => IMAGE_DEADLINE_TCG,
        }
    }

    /// As [`super::Guest::ended`].
    pub async fn ended(&mut self) -> GuestEnd {
        if let Some(end) = &self.end {
            return end.clone();
        }
        let mut qmp_is_there = true;
        loop {
            let late = async {
                match self.late_at {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            let up = async {
                match self.agent_was_up {
                    false if self.agent.wait_for(|up| *up).await.is_ok() => {}
                    _ => std::future::pending().await,
                }
            };
            let happened = tokio::select! {
                event = self.qmp.event(), if qmp_is_there => match event {
                    Some(event) => Happened::Event(event),
                    None => { qmp_is_there = false; continue }
                },
                ended = self.process.ended() => Happened::Ended(ended),
                () = up => Happened::AgentUp,
                () = late => Happened::Late,
                () = tokio::time::sleep(LOG_PERIOD) => Happened::LogPeriod,
            };
            match happened {
                Happened::Ended(how) => {
                    // What QEMU still said of the reason.
                    while let Some(event) = self.qmp.event().await {
                        self.event(event);
                    }
                    let reason = self.reason(how);
                    return self.end.insert(GuestEnd { reason }).clone();
                }
                Happened::Event(event) => self.event(event),
                Happened::AgentUp => self.agent_is_up().await,
                Happened::Late => self.agent_is_late(),
                Happened::LogPeriod => {
                    if let Err(error) = log::bound(&self.state.console_log()) {
                        tracing::debug!(%error, "cannot look after the console's log");
                    }
                    self.tell_of_boot();
                }
            }
        }
    }

    fn event(&mut self, event: Event) {
        match event {
            Event::Reset => self.tell.say(Progress::Rebooting),
            Event::Shutdown(reason) => self.shutdown = Some(reason),
            Event::Panicked => self.shutdown = Some("guest-panic".to_owned()),
        }
    }

    async fn agent_is_up(&mut self) {
        // From now on a reboot is one, even if this is dropped meanwhile and done again.
        if self.kernel {
            let reboot = "{\"reboot\":\"reset\"}";
            if let Err(error) = self.qmp.execute_with("set-action", reboot).await {
                tracing::warn!(%error, "the VM will end when its guest reboots");
            }
        }
        self.agent_was_up = true;
        self.late_at = None;
        let after = self.started.elapsed();
        self.tell.say(Progress::AgentUp { after });
    }

    fn agent_is_late(&mut self) {
        self.late_at = None;
        self.tell.say(Progress::AgentLate {
            after: self.started.elapsed(),
            name: self.name.clone(),
        });
        self.show(&self.state.console_log());
    }

    /// A distribution boots for long enough to make one wonder.
    fn tell_of_boot(&self) {
        let line = log::tail(&self.state.console_log(), 1).pop();
        if let (false, Some(line)) = (self.agent_was_up, line) {
            let after = self.started.elapsed();
            self.tell.say(Progress::StillBooting { after, line });
        }
    }

    fn show(&self, log: &std::path::Path) {
        for line in log::tail(log, TAIL) {
            self.tell.say(Progress::LogLine(line));
        }
    }

    /// Says why it ended, and shows what the logs know of it.
    fn reason(&self, how: String) -> String {
        let early = !self.agent_was_up;
        let (reason, guests_own) = match self.shutdown.as_deref() {
            Some("guest-shutdown") => ("it powered off".to_owned(), true),
            Some("guest-reset") => ("it rebooted before its agent was up".to_owned(), true),
            Some("guest-panic") => ("its kernel panicked".to_owned(), true),
            _ => (how, false),
        };
        if early {
            self.show(&self.state.console_log());
        }
        if !guests_own {
            self.show(&self.state.qemu_log());
        }
        reason
    }

    /// As [`super::Guest::stop`]: presses the power button, then switches it off.
    pub async fn stop(mut self, deadline: Duration) -> Stopped {
        if self.end.is_some() {
            return Stopped::Clean;
        }
        if !deadline.is_zero() && self.qmp.execute("system_powerdown").await.is_ok() {
            self.tell.say(Progress::PoweringOff { deadline });
            if tokio::time::timeout(deadline, self.process.ended())
                .await
                .is_ok()
            {
                return Stopped::Clean;
            }
            self.tell.say(Progress::SwitchedOff { deadline });
        }
        // QEMU writes its caches first.
        let quit = async {
            let _ = self.qmp.execute("quit").await;
            self.process.ended().await
        };
        if tokio::time::timeout(QUIT_DEADLINE, quit).await.is_ok() {
            return Stopped::Clean;
        }
        self.process.kill();
        match tokio::time::timeout(QUIT_DEADLINE, self.process.ended()).await {
            Ok(_) => Stopped::Killed,
            Err(_) => Stopped::Stuck,
        }
    }
}
