//! Kind `libvirt`: a libvirt domain on this machine, through the program `virsh` (module `virsh`).
//!
//! rum starts a domain that is shut off, owns it, and shuts it down again when `rum up` ends. A
//! running domain is left as it is; a paused one is resumed, since nothing in it could answer.
//!
//! The agent is reached at the CID of the domain's `<vsock>` device, which is read while the domain
//! runs: with `auto='yes'` libvirt chooses it at each start. Or at a Unix socket that the user
//! names, for a vhost-user vsock that libvirt does not know.
//!
//! A hint wakes, a query decides, here too: an event of libvirt or a timer wakes, then the domain's
//! description shows whether this is still the same run. A failed query, for instance while
//! libvirtd restarts, never counts as the domain's end.
//!
//! After the first look-up every command names the domain by its UUID: virsh would take the name
//! `5` for the id of a running domain first.

use std::path::PathBuf;
use std::time::Duration;

use rum_shared::text::clean;
use rum_shared::transport::Endpoint;

pub use self::address::address;
pub use self::hypervisor::hypervisor;
use self::virsh::{DEADLINE, Events, Failed, Virsh};
use self::xml::Description;
use super::progress::{Progress, Tell};
use super::{GuestEnd, Stopped};
use crate::error::RumError;
pub use crate::guest::libvirt::attach_vsock::{Given, give_vsock};
use crate::guest::libvirt::error::{DomainErrors, MAX_NAME};

mod address;
mod attach_vsock;
mod error;
mod hypervisor;
#[cfg(test)]
mod tests;
mod virsh;
mod xml;

/// The system libvirt, which has the domains of virt-manager.
pub const DEFAULT_URI: &str = "qemu:///system";
/// The state of a domain that powered off, by itself or on request.
const POWERED_OFF: &str = "shut off (shutdown)";
/// Time for a domain to shut down when asked.
pub const GRACE: Duration = Duration::from_secs(60);
/// Interval of shutdown requests: a booting guest ignores them.
const ASK_AGAIN: Duration = Duration::from_secs(10);
/// Time for a start: saved memory may have to be read first.
const START_DEADLINE: Duration = Duration::from_secs(180);
/// Time for a domain to end after a forced stop. libvirt itself waits up to 15 s before it sends
/// SIGKILL, and 30 s in all.
const DESTROY_DEADLINE: Duration = Duration::from_secs(40);
/// Interval of queries without an event: at first, and at most.
const LOOK_SOON: Duration = Duration::from_secs(1);
const LOOK_LATE: Duration = Duration::from_secs(30);

/// Identifies a domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spec {
    /// Its name or UUID.
    pub domain: String,
    /// URI of the libvirt that has the domain.
    pub uri: String,
    /// Unix socket of the domain's vsock device, if that is not a `<vsock>`.
    pub socket: Option<PathBuf>,
}

impl Spec {
    /// Whether the domain is one of a libvirt that its user runs, with that user's rights.
    fn is_session(&self) -> bool {
        let path = self.uri.split('?').next().unwrap_or_default();
        path.ends_with("/session")
    }
}

/// A running domain.
#[derive(Debug)]
pub struct Libvirt {
    spec: Spec,
    domain: Domain,
    tell: Tell,
    /// rum started it, and it has run since.
    ours: bool,
    run: Option<u32>,
    endpoint: Option<Endpoint>,
    events: Option<Events>,
    pause: Duration,
    end: Option<GuestEnd>,
}

impl Libvirt {
    /// Finds the domain and starts or resumes it if necessary.
    ///
    /// # Errors
    /// libvirt cannot be reached, has no such domain, or cannot start it; the domain is in a state
    /// in which it cannot be used, or has no vsock device.
    pub async fn start(spec: &Spec, tell: Tell) -> Result<(Endpoint, Self), RumError> {
        let (domain, next) = Domain::find_usable(spec).await?;
        let mut this = Self {
            spec: spec.clone(),
            domain,
            tell,
            ours: false,
            run: None,
            endpoint: None,
            events: None,
            pause: LOOK_SOON,
            end: None,
        };
        match next {
            Next::Use => {}
            Next::Start => this.boot().await?,
            Next::Resume => {
                let name = this.domain.shown();
                this.tell.say(Progress::DomainResuming { name });
                let resumed = this.domain.run("resume", &[], START_DEADLINE).await;
                resumed.map_err(|failed| this.trouble().resume(failed))?;
            }
        }
        // Subscribe first: everything from now on must wake us.
        this.listen();
        let description = this
            .domain
            .describe()
            .await
            .map_err(|failed| this.trouble().look(failed))?;
        if description.run.is_none() {
            let state = this
                .domain
                .state()
                .await
                .map_err(|failed| this.trouble().look(failed))?;
            this.ours = false;
            return Err(this.trouble().ended_at_once(&state));
        }
        let endpoint = this.endpoint(&description)?;
        this.run = description.run;
        this.endpoint = Some(endpoint.clone());
        Ok((endpoint, this))
    }

    /// Why the domain cannot be used: the error of [`Libvirt::start`].
    pub async fn in_the_way(spec: &Spec) -> Option<RumError> {
        let look = async {
            let (domain, next) = Domain::find_usable(spec).await?;
            domain.check_vsock(spec, next != Next::Start).await
        };
        look.await.err()
    }

    async fn boot(&mut self) -> Result<(), RumError> {
        // Without a device there is no point in starting it.
        self.domain.check_vsock(&self.spec, false).await?;
        let name = self.domain.shown();
        self.tell.say(Progress::DomainStarting { name });
        // Set before the start: if we are dropped meanwhile, the domain is ended.
        self.ours = true;
        let started = self.domain.run("start", &[], START_DEADLINE).await;
        if let Err(failed) = started {
            // If virsh refused, somebody else may have started it; if virsh hung, the start is
            // ours.
            self.ours = matches!(failed, Failed::Broken(_));
            return Err(self.trouble().start(failed));
        }
        Ok(())
    }

    fn endpoint(&self, description: &Description) -> Result<Endpoint, RumError> {
        if let Some(socket) = &self.spec.socket {
            let socket = socket.clone();
            return Ok(Endpoint::Connect { socket });
        }
        match description.vsock.map(|vsock| vsock.cid) {
            Some(Some(cid)) => Ok(Endpoint::Vsock { cid }),
            Some(None) => Err(self.trouble().no_cid()),
            None => Err(self.trouble().no_vsock(true)),
        }
    }

    fn trouble(&self) -> DomainErrors<'_> {
        DomainErrors::of(&self.spec)
    }

    fn listen(&mut self) {
        self.events = match self.domain.virsh.events(&self.domain.uuid) {
            Ok(events) => Some(events),
            Err(error) => {
                tracing::debug!(%error, "no events from libvirt, looking from time to time");
                None
            }
        };
    }

    /// As [`super::Guest::ended`].
    pub async fn ended(&mut self) -> GuestEnd {
        loop {
            if let Some(end) = self.look().await {
                return end;
            }
            self.wake().await;
        }
    }

    /// Waits until the next query is due.
    async fn wake(&mut self) {
        let event = async {
            match &mut self.events {
                Some(events) => events.next().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            some = event => if some { self.pause = LOOK_SOON } else { self.events = None },
            () = tokio::time::sleep(self.pause) => {
                self.pause = (self.pause * 2).min(LOOK_LATE);
                if self.events.is_none() {
                    self.listen();
                }
            }
        }
    }

    /// Whether the domain has ended.
    async fn look(&mut self) -> Option<GuestEnd> {
        if self.end.is_some() {
            return self.end.clone();
        }
        let mut by_itself = false;
        let reason = match self.domain.describe().await {
            Ok(description) if description.run.is_some() => {
                if description.run == self.run {
                    return None;
                }
                // Somebody else ended and started it since.
                self.ours = false;
                self.run = description.run;
                match self.endpoint(&description) {
                    Ok(endpoint) if Some(&endpoint) == self.endpoint.as_ref() => return None,
                    Ok(_) => "was started anew, with another CID".to_owned(),
                    Err(_) => "was started anew, without a vsock device".to_owned(),
                }
            }
            Ok(_) => match self.domain.state().await {
                Ok(state) => {
                    by_itself = state == POWERED_OFF;
                    format!("is {state}")
                }
                Err(_) => "does not run any more".to_owned(),
            },
            Err(failed) => match self.domain.exists().await {
                // libvirt forgets a transient domain when it ends.
                Ok(false) => "is gone".to_owned(),
                _ => {
                    tracing::debug!(?failed, "cannot look at the domain");
                    return None;
                }
            },
        };
        self.ours = false;
        let reason = format!("{} {reason}", self.domain.in_words());
        Some(self.end.insert(GuestEnd { reason, by_itself }).clone())
    }

    /// As [`super::Guest::stop`].
    pub async fn stop(mut self, deadline: Duration) -> Stopped {
        let at_once = deadline.is_zero();
        if self.ours && !at_once {
            let boots = false;
            self.tell.say(Progress::PoweringOff { deadline, boots });
            let asking = async {
                loop {
                    if let Err(failed) = self.domain.run("shutdown", &[], DEADLINE).await {
                        tracing::debug!(?failed, "cannot ask the domain to shut down");
                    }
                    let ended = tokio::time::timeout(ASK_AGAIN, self.ended()).await;
                    if ended.is_ok() || !self.ours {
                        return;
                    }
                }
            };
            // The state after this shows whether it ended in time.
            let _ = tokio::time::timeout(deadline, asking).await;
        }
        if !self.ours {
            return Stopped::Clean;
        }
        let destroyed = self.domain.run("destroy", &[], DESTROY_DEADLINE).await;
        let gone = destroyed.is_ok() || self.look().await.is_some() || !self.ours;
        self.ours = false;
        match (gone, at_once) {
            (true, true) => Stopped::Killed,
            (true, false) => {
                // Which is all there is to tell.
                self.tell.say(Progress::SwitchedOff { deadline });
                Stopped::Clean
            }
            (false, _) => {
                tracing::warn!(?destroyed, "cannot end the domain");
                Stopped::Stuck
            }
        }
    }
}

impl Drop for Libvirt {
    fn drop(&mut self) {
        if !self.ours {
            return;
        }
        let options = [self.domain.option()];
        if let Err(error) = self.domain.virsh.let_go("destroy", &options) {
            tracing::warn!(%error, "cannot end {}", self.domain.in_words());
        }
    }
}

/// A known domain.
#[derive(Debug)]
struct Domain {
    virsh: Virsh,
    uuid: String,
    name: String,
}

impl Domain {
    async fn find(spec: &Spec) -> Result<Self, RumError> {
        let virsh = Virsh::new(&spec.uri);
        let known = known(&virsh).await;
        let mut known = known.map_err(|failed| DomainErrors::of(spec).connect(failed))?;
        let found = known
            .iter()
            .position(|(_, name)| *name == spec.domain)
            .or_else(|| known.iter().position(|(uuid, _)| *uuid == spec.domain));
        match found {
            Some(found) => {
                let (uuid, name) = known.swap_remove(found);
                Ok(Self { virsh, uuid, name })
            }
            None => {
                Err(DomainErrors::of(spec).unknown(known.iter().map(|(_, name)| name.as_str())))
            }
        }
    }

    /// As [`Domain::find`], with the step that its state requires; an error if that is up to the
    /// user.
    async fn find_usable(spec: &Spec) -> Result<(Self, Next), RumError> {
        let domain = Self::find(spec).await?;
        let trouble = DomainErrors::of(spec);
        let state = domain.state().await;
        let state = state.map_err(|failed| trouble.look(failed))?;
        match Next::of(&state) {
            Ok(next) => Ok((domain, next)),
            Err(command) => Err(trouble.state(&state, command)),
        }
    }

    /// Checks that the description has a way to the agent.
    async fn check_vsock(&self, spec: &Spec, runs: bool) -> Result<(), RumError> {
        let trouble = DomainErrors::of(spec);
        let description = self.describe().await;
        let description = description.map_err(|failed| trouble.look(failed))?;
        if spec.socket.is_none() && description.vsock.is_none() {
            Err(trouble.no_vsock(runs))
        } else {
            Ok(())
        }
    }

    /// Whether libvirt still has the domain.
    async fn exists(&self) -> Result<bool, Failed> {
        let known = known(&self.virsh).await?;
        Ok(known.iter().any(|(uuid, _)| *uuid == self.uuid))
    }

    /// For instance `paused (user)`.
    async fn state(&self) -> Result<String, Failed> {
        let options = ["--reason".to_owned()];
        let state = self.run("domstate", &options, DEADLINE).await?;
        Ok(clean(state.trim(), MAX_NAME))
    }

    async fn describe(&self) -> Result<Description, Failed> {
        let xml = self.run("dumpxml", &[], DEADLINE).await?;
        Description::parse(&xml).map_err(|error| {
            let message = format!("cannot read the description of {}", self.in_words());
            Failed::Broken(RumError::new(message).caused_by(clean(&error, MAX_NAME)))
        })
    }

    async fn run(
        &self,
        command: &str,
        more: &[String],
        deadline: Duration,
    ) -> Result<String, Failed> {
        let options = [&[self.option()], more].concat();
        self.virsh.run(command, &options, deadline).await
    }

    fn option(&self) -> String {
        format!("--domain={}", self.uuid)
    }

    fn shown(&self) -> String {
        clean(&self.name, MAX_NAME)
    }

    fn in_words(&self) -> String {
        format!("the domain `{}`", self.shown())
    }
}

/// UUIDs and names of all domains.
async fn known(virsh: &Virsh) -> Result<Vec<(String, String)>, Failed> {
    let options = ["--all", "--uuid", "--name"].map(str::to_owned);
    let list = virsh.run("list", &options, DEADLINE).await?;
    let pairs = list.lines().filter_map(|line| {
        // The UUID contains no space; a name may.
        let (uuid, name) = line.split_once(' ')?;
        Some((uuid.to_owned(), name.to_owned()))
    });
    Ok(pairs.collect())
}

/// The step that a domain's state requires.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    Use,
    Start,
    Resume,
}

impl Next {
    /// From the output of `virsh domstate --reason`. An error: rum would not change this state
    /// unasked; with the virsh command that helps, if there is one.
    fn of(state: &str) -> Result<Self, Option<&'static str>> {
        let (state, reason) = match state.split_once(" (") {
            Some((state, reason)) => (state, reason.trim_end_matches(')')),
            None => (state, "unknown"),
        };
        match (state, reason) {
            ("running" | "idle", _) => Ok(Self::Use),
            ("shut off", _) => Ok(Self::Start),
            // Not a domain that is paused during an operation, or whose disk is full.
            ("paused", "user" | "unknown" | "from snapshot") => Ok(Self::Resume),
            ("paused", "I/O error") => Err(Some("resume")),
            ("crashed", _) | ("paused", "crashed") => Err(Some("destroy")),
            ("pmsuspended", _) => Err(Some("dompmwakeup")),
            _ => Err(None),
        }
    }
}
