//! Kind `qemu`: a VM that rum boots with an agent inside.
//!
//! ```text
//! rum ──── __rum-warden ──┬─ qemu-system-…          overlay, seed or initramfs: state directory
//!  │                      └─ vhost-device-vsock     only without /dev/vhost-vsock
//!  ├─ QMP ────────────────────┘                     sockets: runtime directory
//!  └─ vsock: the agent
//! ```
//!
//! The agent comes in the initramfs of a kernel, or on a seed disk that cloud-init reads
//! ([`crate::guest::payload`]). rum never writes an image: the guest's writes go to an overlay
//! (`overlay`), which stays.
//!
//! A guest may reboot. QEMU then exits (`-action reboot=shutdown`) and reports a reset, not a
//! power-off, and rum starts it again with a new vsock device. vhost-device-vsock exits for good
//! when anything happens on its host side while the guest's driver is away, as in a reboot. rum
//! does the same with /dev/vhost-vsock, where a reset in place would work: one way is simpler than
//! two, it costs some tenths of a second, and connections of the old boot end at once instead of at
//! their next byte. Disk, logs, CID and sockets stay. `reboots` limits the rate.
//!
//! Invariants: none of the VM's processes outlives rum ([`crate::guest::process`]); none listens on
//! a network of the host (`command`); lines of its logs are cleaned before they are shown.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rum_shared::transport::Endpoint;
use tokio::sync::watch;

use super::progress::{Progress, Tell};
use super::{GuestEnd, GuestError, GuestSpec, Link, Stopped};
use crate::runtime_dir::RuntimeDir;

mod arch;
mod command;
mod firmware;
mod given;
pub(crate) mod kvm;
mod log;
pub(crate) mod login;
mod overlay;
mod process;
mod qmp;
mod reboots;
mod spec;
mod start;
mod state;

pub use given::{read_key, read_text};
pub use spec::{Accel, Boot, Spec, SshKey, is_public_key};
pub use start::in_the_way;
pub use state::StateDir;

use command::{Device, Engine};
use process::Process;
use qmp::{Event, Qmp};
use reboots::{Next, Reboots};
use start::Launcher;

/// If the agent has not answered by then something is probably wrong; emulation takes longer.
const AGENT_DEADLINE: Duration = Duration::from_secs(120);
const AGENT_DEADLINE_TCG: Duration = Duration::from_secs(240);
/// Time to power off: a distribution stops its services one after the other, and they have data to
/// write. A kernel with an initramfs often ignores the power button and has no disk.
const IMAGE_DEADLINE: Duration = Duration::from_secs(60);
const IMAGE_DEADLINE_TCG: Duration = Duration::from_secs(180);
const KERNEL_DEADLINE: Duration = Duration::from_secs(5);
/// Interval of pressing the power button: a booting guest ignores it.
const PRESS_AGAIN: Duration = Duration::from_secs(3);
/// Time for QEMU to write its caches and quit; and for a killed process to be gone.
const QUIT_DEADLINE: Duration = Duration::from_secs(10);
/// Interval of checking the console's log: its length, and the progress of a boot.
const LOG_PERIOD: Duration = Duration::from_secs(10);
/// Lines of a log that are shown when something went wrong.
const TAIL: usize = 15;
/// QEMU's reason for its end when the guest resets.
const REBOOTED: &str = "guest-reset";
/// QEMU's reason when the guest powers off.
const POWERED_OFF: &str = "guest-shutdown";

/// A VM: running, or between two boots.
#[derive(Debug)]
pub struct Qemu {
    name: String,
    kernel: bool,
    launcher: Arc<Launcher>,
    machine: Machine,
    state: StateDir,
    tell: Tell,
    /// When this boot began.
    started: Instant,
    agent: watch::Receiver<u64>,
    /// Number of connections to the agent when this boot began.
    agent_before: u64,
    agent_was_up: bool,
    late_at: Option<tokio::time::Instant>,
    /// QEMU's reason for stopping the machine.
    shutdown: Option<String>,
    reboots: Reboots,
    end: Option<GuestEnd>,
}

/// The processes.
enum Machine {
    /// They run.
    On {
        process: Box<Process>,
        /// None once QEMU has closed it.
        qmp: Option<Qmp>,
    },
    /// The processes are being started again, perhaps after a pause.
    Off(Restart),
}

/// Stored, so that a caller that stops waiting does not cancel it.
type Restart = Pin<Box<dyn Future<Output = Result<start::Running, GuestError>> + Send>>;

impl Machine {
    fn on((process, qmp): start::Running) -> Self {
        Self::On {
            process: Box::new(process),
            qmp: Some(qmp),
        }
    }

    /// The next event of QEMU. Cancel-safe.
    async fn next(&mut self) -> Happened {
        match self {
            Self::Off(restart) => match restart.await {
                Ok(running) => Happened::Started(Box::new(running)),
                Err(error) => Happened::NotStarted(error),
            },
            Self::On { process, qmp } => {
                // QMP ends first, whatever ended QEMU, and so the reason is read before.
                if let Some(open) = qmp {
                    match open.event().await {
                        Some(event) => return Happened::Event(event),
                        None => *qmp = None,
                    }
                }
                Happened::Ended(process.ended().await)
            }
        }
    }
}

impl fmt::Debug for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::On { .. } => "On",
            Self::Off(_) => "Off",
        })
    }
}

/// An event of a VM.
enum Happened {
    Ended(String),
    Started(Box<start::Running>),
    NotStarted(GuestError),
    Event(Event),
    AgentUp,
    Late,
    LogPeriod,
}

impl Qemu {
    /// Starts the VM. It is booting when this returns.
    pub async fn start(
        guest: &GuestSpec,
        spec: &Spec,
        dir: &Arc<RuntimeDir>,
        link: &Link,
    ) -> Result<(Endpoint, Self), GuestError> {
        let begun = Instant::now();
        let state = StateDir::open(&guest.name)?;
        let tell = link.tell.clone();
        let (launcher, running) = start::start(guest, spec, dir, &state, &tell).await?;
        let endpoint = match launcher.device() {
            Device::Vhost { cid } => Endpoint::Vsock { cid },
            Device::User => Endpoint::Connect {
                socket: dir.vsock_socket(),
            },
        };
        let kernel = matches!(spec.boot, Boot::Kernel { .. });
        let mut this = Self {
            name: guest.name.clone(),
            kernel,
            launcher: Arc::new(launcher),
            machine: Machine::on(running),
            state,
            tell,
            started: begun,
            agent: link.agent.clone(),
            agent_before: 0,
            agent_was_up: false,
            late_at: None,
            shutdown: None,
            reboots: Reboots::new(kernel),
            end: None,
        };
        this.boots();
        Ok((endpoint, this))
    }

    /// The machine was started, for the first time or again.
    fn boots(&mut self) {
        self.agent_before = *self.agent.borrow();
        self.agent_was_up = false;
        self.shutdown = None;
        let patience = match self.launcher.engine() {
            Engine::Kvm => AGENT_DEADLINE,
            Engine::Tcg => AGENT_DEADLINE_TCG,
        };
        self.late_at = Some(tokio::time::Instant::now() + patience);
        let after = self.started.elapsed();
        self.tell.say(Progress::Running { after });
    }

    /// Time to power off when asked.
    pub fn stop_deadline(&self) -> Duration {
        match (self.kernel, self.launcher.engine()) {
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
        loop {
            let late = async {
                match self.late_at {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            let on = matches!(self.machine, Machine::On { .. });
            let before = self.agent_before;
            let up = async {
                if self.agent_was_up || self.agent.wait_for(|up| *up > before).await.is_err() {
                    std::future::pending().await
                }
            };
            let happened = tokio::select! {
                happened = self.machine.next() => happened,
                () = up, if on => Happened::AgentUp,
                () = late => Happened::Late,
                () = tokio::time::sleep(LOG_PERIOD) => Happened::LogPeriod,
            };
            let end = match happened {
                Happened::Ended(how) => self.machine_ended(how),
                Happened::NotStarted(error) => Some(self.not_started(&error)),
                Happened::Started(running) => {
                    self.machine = Machine::on(*running);
                    self.boots();
                    None
                }
                Happened::Event(event) => {
                    self.event(event);
                    None
                }
                Happened::AgentUp => {
                    self.agent_is_up();
                    None
                }
                Happened::Late => {
                    self.agent_is_late();
                    None
                }
                Happened::LogPeriod => {
                    self.boots_still();
                    if let Err(error) = log::bound(&self.state.console_log()) {
                        tracing::debug!(%error, "cannot look after the console's log");
                    }
                    None
                }
            };
            if let Some(reason) = end {
                // A power-off from inside counts as the guest's own end only if the agent had been
                // up.
                let by_itself = self.agent_was_up && self.shutdown.as_deref() == Some(POWERED_OFF);
                return self.end.insert(GuestEnd { reason, by_itself }).clone();
            }
        }
    }

    /// The processes have ended. Returns why the guest ended, or None if it is started again.
    fn machine_ended(&mut self, how: String) -> Option<String> {
        if self.shutdown.as_deref() != Some(REBOOTED) {
            return Some(self.reason(how));
        }
        // The agent may have connected without this loop having seen it yet.
        let agent = self.agent_was_up || *self.agent.borrow() > self.agent_before;
        match self.reboots.next(self.started.elapsed(), agent) {
            Next::GiveUp(times) => Some(self.gave_up(times)),
            Next::Start(pause) => {
                self.tell.say(Progress::Rebooting { pause });
                self.late_at = None;
                self.started = Instant::now() + pause;
                let launcher = self.launcher.clone();
                self.machine = Machine::Off(Box::pin(async move {
                    tokio::time::sleep(pause).await;
                    launcher.restart().await
                }));
                None
            }
        }
    }

    fn event(&mut self, event: Event) {
        match event {
            Event::Shutdown(reason) => self.shutdown = Some(reason),
            Event::Panicked => self.shutdown = Some("guest-panic".to_owned()),
        }
    }

    fn agent_is_up(&mut self) {
        self.agent_was_up = true;
        self.late_at = None;
        let after = self.started.elapsed();
        self.tell.say(Progress::AgentUp { after });
    }

    /// Reports the progress of the boot from the console.
    fn boots_still(&self) {
        if !self.agent_was_up && matches!(self.machine, Machine::On { .. }) {
            let after = self.started.elapsed();
            let line = log::tail(&self.state.console_log(), 1).pop();
            self.tell.say(Progress::Boots { after, line });
        }
    }

    fn agent_is_late(&mut self) {
        self.late_at = None;
        self.tell.say(Progress::AgentLate {
            after: self.started.elapsed(),
            name: self.name.clone(),
        });
        self.show(&self.state.console_log());
    }

    fn show(&self, log: &std::path::Path) {
        for line in log::last_words(log, TAIL) {
            self.tell.say(Progress::LogLine(line));
        }
    }

    /// As [`Qemu::reason`], for a guest that only reboots.
    fn gave_up(&self, times: u32) -> String {
        self.show(&self.state.console_log());
        match times {
            1 => "it rebooted before its agent was up".to_owned(),
            _ => format!("it rebooted {times} times in a row before its agent was up"),
        }
    }

    /// As [`Qemu::reason`], for a machine that could not be started again.
    fn not_started(&self, error: &GuestError) -> String {
        for line in error.example().iter().flat_map(|lines| lines.lines()) {
            self.tell.say(Progress::LogLine(line.to_owned()));
        }
        format!("it rebooted, and {error}")
    }

    /// The reason of the end; shows the logs' last lines.
    fn reason(&self, how: String) -> String {
        let early = !self.agent_was_up;
        let (reason, guests_own) = match self.shutdown.as_deref() {
            Some(POWERED_OFF) => ("it powered off".to_owned(), true),
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
    pub async fn stop(self, deadline: Duration) -> Stopped {
        // Between two boots there is nothing to power off; dropping this ends what was started.
        let Machine::On { mut process, qmp } = self.machine else {
            return Stopped::Clean;
        };
        if self.end.is_some() {
            return Stopped::Clean;
        }
        let mut qmp = qmp;
        let mut ask = async |command| match &mut qmp {
            Some(qmp) => qmp.execute(command).await.is_ok(),
            None => false,
        };
        if !deadline.is_zero() && ask("system_powerdown").await {
            let boots = !self.agent_was_up;
            self.tell.say(Progress::PoweringOff { deadline, boots });
            let ended = async {
                while tokio::time::timeout(PRESS_AGAIN, process.ended())
                    .await
                    .is_err()
                {
                    ask("system_powerdown").await;
                }
            };
            if tokio::time::timeout(deadline, ended).await.is_ok() {
                return Stopped::Clean;
            }
            self.tell.say(Progress::SwitchedOff { deadline });
        }
        // QEMU writes its caches first.
        let quit = async {
            ask("quit").await;
            process.ended().await
        };
        if tokio::time::timeout(QUIT_DEADLINE, quit).await.is_ok() {
            return Stopped::Clean;
        }
        process.kill();
        match tokio::time::timeout(QUIT_DEADLINE, process.ended()).await {
            Ok(_) => Stopped::Killed,
            Err(_) => Stopped::Stuck,
        }
    }
}
