//! `rum up`: start or find the guest, run the user's command in it, forward until something
//! ends it, and leave nothing behind.
//!
//! What can end it: the command, the guest, a signal, or the reader of stdout. Then it stops
//! accepting, gives connections the drain time, ends the guest and what is in it, and returns
//! the exit code. A second signal cuts all of that short. A signal
//! that rum's caller ignores is none of them ([`crate::signals`]).
//!
//! Who gets Ctrl+C: with a command the terminal is the command's, and the terminal driver sends
//! SIGINT to it as well as to rum, which lets the first one be. A second one soon after is
//! rum's, and so is every SIGTERM.
//!
//! SIGHUP makes it read its configuration file again (`reload`). Without such a file, and when
//! its terminal is gone, it ends rum as SIGTERM does.

use std::io::IsTerminal;
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rum_shared::lines::LAST;
use tokio::process::Child;
use tokio::signal::unix::SignalKind;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio_util::task::AbortOnDropHandle;

use crate::cli::{GlobalArgs, UpArgs};
use crate::commands::up::hangup::Terminals;
use crate::commands::up::reload::{Reload, Report};
use crate::config::Settings;
use crate::control::server::{Ask, Server};
use crate::control::streams::Streams;
use crate::error::RumError;
use crate::exit;
use crate::guest::payload;
use crate::guest::progress::Tell;
use crate::guest::{Guest, GuestEnd, GuestError, GuestKind, GuestSpec, Link, Stopped};
use crate::limits;
use crate::plan::policy::Policy;
use crate::runtime_dir::{self, RuntimeDir};
use crate::signals::Signals;
use crate::stack;
use crate::status::journal::{Journal, timestamp};
use crate::status::model::{CONTROL_PROTOCOL, ControlInfo};
use crate::supervisor::{Options, Stop, Summary, Supervisor};
use crate::ui::LogFormat;
use crate::ui::notice::Notice;
use crate::ui::output::{Output, Target};

pub(crate) mod hangup;
pub mod reload;

/// Time for a command to end whose guest is gone.
const COMMAND_DEADLINE: Duration = Duration::from_secs(5);
/// When the command has ended its own connections are over, or as good as: time for the last
/// bytes on their way to a client.
const LAST_BYTES: Duration = Duration::from_secs(1);
/// Two Ctrl+C within this time are meant for rum, not for the command.
const TWICE: Duration = Duration::from_secs(2);

/// Why it ends.
#[derive(Debug)]
enum End {
    Command(ExitStatus),
    Guest(GuestEnd),
    Signal(i32),
    /// `rum down`, at once or not.
    Asked(Ask),
    /// Nobody reads stdout any more.
    Reader,
}

impl End {
    fn exit_code(&self) -> u8 {
        let signalled = |n: i32| exit::SIGNAL_BASE.saturating_add(u8::try_from(n).unwrap_or(0));
        match self {
            Self::Command(status) => match status.code() {
                Some(code) => u8::try_from(code).unwrap_or(exit::FAILED),
                None => std::os::unix::process::ExitStatusExt::signal(status)
                    .map_or(exit::FAILED, signalled),
            },
            Self::Guest(end) if end.by_itself => exit::OK,
            Self::Guest(_) => exit::FAILED,
            Self::Asked(_) => exit::OK,
            Self::Signal(number) => signalled(*number),
            Self::Reader => signalled(rustix::process::Signal::PIPE.as_raw()),
        }
    }

    /// In words, for those who watch.
    fn reason(&self) -> String {
        match self {
            Self::Command(status) => format!("its command ended ({status})"),
            Self::Guest(end) => format!("the guest ended: {}", end.reason),
            Self::Asked(_) => "rum down".to_owned(),
            Self::Signal(number) => format!("signal {number}"),
            Self::Reader => "nobody reads its output any more".to_owned(),
        }
    }
}

/// The two ways to the user: lines about ports, and lines about rum.
#[derive(Clone)]
struct Ui {
    data: Output,
    rest: Output,
}

impl Ui {
    fn new(command: bool, global: &GlobalArgs) -> Self {
        let start = |target| Output::start(target, global.quiet, global.log_format);
        let rest = start(Target::Stderr);
        let data = if command {
            rest.clone()
        } else {
            start(Target::Stdout)
        };
        Self { data, rest }
    }

    fn say(&self, notice: &Notice) {
        if notice.is_about_a_port() {
            self.data.say(notice)
        } else {
            self.rest.say(notice)
        }
    }
}

/// Runs `rum up`, whose other threads have the name `threads`. Must be called on the process's first
/// thread, on which helper processes rely.
///
/// # Errors
/// The configuration is wrong, or the guest or the command cannot be started.
pub async fn up(
    args: &UpArgs,
    settings: &Settings,
    global: &GlobalArgs,
    threads: &str,
) -> Result<u8, RumError> {
    let verbose = global.verbose > 1;
    refuse(args, settings)?;
    let mut signals = Signals::new().map_err(limits::failed("handle signals"))?;
    let ui = Ui::new(!args.command.is_empty(), global);
    if let Some(why) = runtime_dir::passed_over() {
        tracing::warn!("{why}");
    }
    let dir = Arc::new(RuntimeDir::create(&settings.name)?);
    let spec = GuestSpec {
        name: settings.name.clone(),
        kind: settings.guest.clone(),
        reset: args.reset,
    };
    // Its log shares our terminal: problems only, unless more is wanted.
    let log = if verbose { "-v" } else { "-q" };
    let mut agent_args = vec![
        log.to_owned(),
        "--hand-over".to_owned(),
        format!("--host-threads={threads}"),
    ];
    if global.log_format == LogFormat::Json {
        agent_args.push("--log-json".to_owned());
    }
    agent_args.extend_from_slice(&args.agent_arg);
    let (agent_up, agent) = watch::channel(0);
    let tell = Tell::new({
        let ui = ui.clone();
        move |progress| ui.say(&Notice::Guest(progress))
    });
    let link = Link {
        agent_args,
        tell,
        agent,
    };
    let guest = tokio::select! {
        guest = Guest::start(&spec, &dir, &link) => guest,
        number = signals.next() => return Ok(End::Signal(number).exit_code()),
    };
    let guest = guest.inspect_err(|_| ui.rest.flush(LAST))?;
    if matches!(settings.guest, GuestKind::Namespace(_)) && rustix::process::geteuid().is_root() {
        ui.say(&Notice::NoBoundary);
    }
    let info = control_info(settings);
    let journal = Arc::new(Journal::new(info.boot.clone(), reload::status(settings)));
    let control = Server::bind(&dir, info, journal.clone())
        .map_err(limits::failed("listen on the control socket"))?;
    let streams = match &settings.guest {
        // It is entered without a network.
        GuestKind::Namespace(_) => None,
        _ => Some(Streams::bind(&dir).map_err(limits::failed("listen on the stream socket"))?),
    };
    let asked = control.asked();
    let command = start_command(&guest, args)?;
    let (new_policy, policy) = watch::channel(settings.policy.clone());
    let reload = Reload::new(settings, args.overrides(), new_policy, journal.clone());
    let options = Options {
        stream: !args.no_stream,
        puts_agent: matches!(settings.guest, GuestKind::Namespace(_) | GuestKind::Qemu(_)),
        journal: journal.clone(),
        changes: Some(policy.clone()),
        ..Options::new(guest.endpoint().clone(), settings.policy.clone())
    };
    let (stop, stopped) = watch::channel(Stop::Run);
    let supervisor = tokio::spawn({
        let ui = ui.clone();
        async move {
            let tell = move |notice| {
                if matches!(notice, Notice::AgentConnected { .. }) {
                    agent_up.send_modify(|times| *times += 1);
                }
                ui.say(&notice);
            };
            let supervisor = Supervisor::new(options).serving(streams);
            supervisor.run(stopped, tell).await
        }
    });
    let mut running = Running {
        guest,
        command,
        supervisor,
        stop,
        signals,
        asked,
        reload: reload.map(|reload| Reloading::start(reload, &ui)),
        ui,
        policy,
        journal,
        _control: AbortOnDropHandle::new(tokio::spawn(control.run())),
    };
    let end = running.until_the_end().await;
    let code = end.exit_code();
    running.shut_down(end).await;
    Ok(code)
}

/// What does not go with the guest's kind, before anything is started.
fn refuse(args: &UpArgs, settings: &Settings) -> Result<(), RumError> {
    if !args.command.is_empty() && !matches!(settings.guest, GuestKind::Namespace(_)) {
        let kind = settings.guest.name().to_owned();
        return Err(GuestError::NoCommands { kind }.into());
    }
    if args.root && !matches!(settings.guest, GuestKind::Namespace(_)) {
        return Err(RumError::usage("`--root` is for namespace guests")
            .hint("leave it out: a VM has a root of its own"));
    }
    if args.privileged && !matches!(settings.guest, GuestKind::Namespace(_)) {
        return Err(RumError::usage("`--privileged` is for namespace guests")
            .hint("leave it out: root in a VM has all of root's capabilities there"));
    }
    if matches!(settings.guest, GuestKind::Namespace(_))
        && let Some(limit) = payload::too_small_a_limit()
    {
        let message = format!("a file may have no more than {limit} bytes here (RLIMIT_FSIZE)");
        return Err(
            RumError::new(message).hint("`ulimit -f unlimited`, if `ulimit -H -f` allows it")
        );
    }
    if matches!(settings.guest, GuestKind::Namespace(_))
        && let Some(limit) = stack::too_small_a_limit()
    {
        let kib = limit / 1024;
        let message = format!("a stack may have no more than {kib} KiB here (RLIMIT_STACK)");
        return Err(RumError::new(message).hint(
            "`ulimit -s 8192` in another shell: the hard limit, `ulimit -H -s`, only goes down",
        ));
    }
    if args.reset && !settings.guest.has_disk() {
        return Err(
            RumError::usage("`--reset` discards what a guest wrote to its image")
                .hint("leave it out: this guest has no `image`"),
        );
    }
    Ok(())
}

fn control_info(settings: &Settings) -> ControlInfo {
    ControlInfo {
        protocol: CONTROL_PROTOCOL,
        version: crate::VERSION.to_owned(),
        name: settings.name.clone(),
        kind: settings.guest.name().to_owned(),
        pid: std::process::id(),
        boot: format!("{:016x}", fastrand::u64(..)),
        started: timestamp(),
    }
}

fn start_command(guest: &Guest, args: &UpArgs) -> Result<Option<Child>, RumError> {
    match args.command.as_slice() {
        [] => Ok(None),
        command => Ok(Some(guest.spawn(command, &args.workdir.path())?)),
    }
}

/// The watch on the configuration.
struct Reloading {
    asked: Arc<Notify>,
    terminals: Terminals,
    _task: AbortOnDropHandle<()>,
}

impl Reloading {
    fn start(reload: Reload, ui: &Ui) -> Self {
        let (asked, ui) = (reload.asked(), ui.clone());
        let run = reload.run(move |told| match told {
            Report::Notice(notice) => ui.say(&notice),
            Report::Error(error) => ui.rest.report(&error),
        });
        Self {
            asked,
            terminals: Terminals::now(),
            _task: AbortOnDropHandle::new(tokio::spawn(run)),
        }
    }
}

/// Everything that runs.
struct Running {
    guest: Guest,
    command: Option<Child>,
    supervisor: JoinHandle<Summary>,
    stop: watch::Sender<Stop>,
    signals: Signals,
    asked: watch::Receiver<Ask>,
    ui: Ui,
    policy: watch::Receiver<Policy>,
    /// None: there is no file to read again.
    reload: Option<Reloading>,
    journal: Arc<Journal>,
    _control: AbortOnDropHandle<()>,
}

impl Running {
    async fn until_the_end(&mut self) -> End {
        let mut interrupted: Option<Instant> = None;
        let terminal = std::io::stdin().is_terminal();
        loop {
            let command = async {
                match &mut self.command {
                    Some(child) => child.wait().await,
                    None => std::future::pending().await,
                }
            };
            let number = tokio::select! {
                status = command => match status {
                    // Killed with the guest, which is the reason then.
                    Ok(_) if self.guest.is_ending() => {
                        return End::Guest(self.guest.ended().await);
                    }
                    Ok(status) => return End::Command(status),
                    Err(error) => {
                        return End::Guest(GuestEnd {
                            reason: format!("its command is lost: {error}"),
                            by_itself: false,
                        });
                    }
                },
                end = self.guest.ended() => return End::Guest(end),
                () = self.ui.data.closed().cancelled() => return End::Reader,
                ask = asked(&mut self.asked, Ask::Stop) => return End::Asked(ask),
                number = self.signals.next() => number,
            };
            if number == SignalKind::hangup().as_raw_value()
                && let Some(reload) = &self.reload
                && !reload.terminals.hung_up().await
            {
                reload.asked.notify_one();
                continue;
            }
            let again = interrupted.is_some_and(|at| at.elapsed() < TWICE);
            let Some(child) = &self.command else {
                return End::Signal(number);
            };
            if number != SignalKind::interrupt().as_raw_value() || again {
                return End::Signal(number);
            }
            interrupted = Some(Instant::now());
            // A terminal has sent it to the command already.
            if let Some(pid) = child.id().filter(|_| !terminal) {
                forward_interrupt(pid);
            }
        }
    }

    async fn shut_down(mut self, end: End) {
        self.reload = None;
        let drain = self.policy.borrow().drain;
        let drain = match &end {
            End::Command(_) => drain.min(LAST_BYTES),
            End::Guest(end) => {
                let reason = end.reason.clone();
                self.ui.say(&Notice::GuestEnded { reason });
                Duration::ZERO
            }
            End::Asked(Ask::Force) => Duration::ZERO,
            End::Signal(_) | End::Reader | End::Asked(_) => {
                self.ui.say(&Notice::Stopping { drain });
                drain
            }
        };
        self.journal.put_bye(end.reason());
        self.stop.send_replace(Stop::Drain(drain));
        let mut forced = matches!(end, End::Asked(Ask::Force));
        loop {
            tokio::select! {
                ended = &mut self.supervisor => {
                    if let Err(error) = ended {
                        tracing::error!(%error, "the supervisor failed");
                    }
                    break;
                }
                () = force(&mut self.signals, &mut self.asked, forced) => {
                    forced = true;
                    self.stop.send_replace(Stop::Cut);
                }
            }
        }
        let deadline = if forced {
            Duration::ZERO
        } else {
            self.guest.stop_deadline()
        };
        let begun = Instant::now();
        let stopped = tokio::select! {
            stopped = self.guest.stop(deadline) => stopped,
            // Dropping the guest kills it at once.
            () = force(&mut self.signals, &mut self.asked, forced) => {
                if !forced {
                    self.ui.say(&Notice::GuestKilled { after: None });
                }
                Stopped::Clean
            }
        };
        match stopped {
            Stopped::Clean => {}
            Stopped::Killed if forced => {}
            Stopped::Killed => self.ui.say(&Notice::GuestKilled {
                after: Some(begun.elapsed()),
            }),
            Stopped::Stuck => tracing::error!("something in the guest cannot be killed"),
        }
        if let Some(mut child) = self.command {
            // Its other half was in the guest.
            let _ = tokio::time::timeout(COMMAND_DEADLINE, child.wait()).await;
        }
        self.ui.data.flush(LAST);
        self.ui.rest.flush(LAST);
    }
}

/// Waits until a client of the control socket has asked for `level`.
async fn asked(asked: &mut watch::Receiver<Ask>, level: Ask) -> Ask {
    match asked.wait_for(|ask| *ask >= level).await {
        Ok(ask) => *ask,
        // The socket is gone, and with it whoever could ask.
        Err(_) => std::future::pending().await,
    }
}

/// Waits for the word to end at once: one more signal, or a client that says so.
async fn force(signals: &mut Signals, ask: &mut watch::Receiver<Ask>, forced: bool) {
    tokio::select! {
        _ = signals.next() => {}
        _ = asked(ask, Ask::Force), if !forced => {}
    }
}

fn forward_interrupt(pid: u32) {
    let pid = i32::try_from(pid)
        .ok()
        .and_then(rustix::process::Pid::from_raw);
    if let Some(pid) = pid {
        // It may have ended just now; then its status comes next.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::INT);
    }
}
