//! The ways to reach a program in a guest: rum, its peers, and no way at all (direct).
//!
//! All of them have the same job: a program listens on 127.0.0.1 of its namespace, and the
//! benchmark, in another namespace, reaches it at a port of its own 127.0.0.1.
//!
//! - `direct`: the program runs in the benchmark's namespace; the limit of the machine.
//! - `rum`: a namespace guest of `rum up`, as root.
//! - `pasta`: `pasta` makes the namespace; its loopback path (splice), since the client is local.
//! - `haproxy`: tcp mode, running in the guest's namespace and accepting on a socket that was
//!   bound outside and inherited (`bind fd@N`): one process and one hop, as rum and pasta have.
//! - `bare copy`, `bare splice`, `bare io_uring`: see [`crate::bare`]; the limits of a relay.
//! - `socat`: this version of it cannot inherit a listener, so it takes two: one accepts outside
//!   and connects to a Unix socket, on which the other, in the guest's namespace, accepts.
//!
//! Invariants: nothing outlives its [`Way`]; the program in the guest ends with its stdin.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rum_tests::guest::Guest;
use rum_tests::netns::in_netns;
use rum_tests::rum::binary;
use rum_tests::wait::until;
use tempfile::TempDir;

use crate::bare::Mode;
use crate::load::Target;
use crate::report::Report;

/// A kind of way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// No forward.
    Direct,
    /// This rum.
    Rum,
    /// Another build of rum, for comparison.
    OtherRum(PathBuf),
    /// `pasta -t PORT`.
    Pasta,
    /// Two of them.
    Socat,
    /// One hop.
    Haproxy,
    /// A relay that does nothing else.
    Bare(Mode),
}

impl Kind {
    /// How tables call it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Rum => "rum",
            Self::OtherRum(_) => "other rum",
            Self::Pasta => "pasta",
            Self::Socat => "socat",
            Self::Haproxy => "haproxy",
            Self::Bare(mode) => mode.name(),
        }
    }

    /// The program it needs and the Debian package that has it.
    fn needs(&self) -> Option<(&'static str, &'static str)> {
        match self {
            Self::Pasta => Some(("pasta", "passt")),
            Self::Socat => Some(("socat", "socat")),
            Self::Haproxy => Some(("haproxy", "haproxy")),
            Self::Direct | Self::Rum | Self::OtherRum(_) | Self::Bare(_) => None,
        }
    }

    /// Whether it can be used; notes how to get it if not.
    pub fn usable(&self, report: &mut Report) -> bool {
        let Some((program, package)) = self.needs() else {
            return true;
        };
        let there = is_there(program);
        if !there {
            report.note(&format!(
                "{program} is not there, so its rows are missing; `apt-get install {package}` gets it"
            ));
        }
        there
    }
}

/// Whether PATH has it.
fn is_there(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(program).is_file())
}

/// A process that is killed when dropped.
pub struct Killed(pub Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A way that is up.
pub struct Way {
    /// What it is.
    pub kind: Kind,
    host: SocketAddr,
    /// A port beside it, which the server opens when it is told.
    opens: bool,
    server: Option<Guest>,
    /// The program, or what runs it.
    program: Child,
    helpers: Vec<Child>,
    dir: TempDir,
}

impl Way {
    /// Starts the load server behind `kind`, reachable at `port`; waits until it answers.
    ///
    /// # Panics
    /// When something does not start.
    pub fn start(kind: Kind, port: u16) -> Self {
        Self::start_with(kind, port, false)
    }

    /// As [`Way::start`], and the port behind it is forwarded when the server [opens](Way::open) it.
    ///
    /// # Panics
    /// When something does not start, or for a kind that cannot.
    pub fn start_opening(kind: Kind, port: u16) -> Self {
        Self::start_with(kind, port, true)
    }

    fn start_with(kind: Kind, port: u16, opens: bool) -> Self {
        let dir = tempfile::Builder::new().prefix("rum-bench-").tempdir();
        let dir = dir.expect("a temporary directory");
        let me = std::env::current_exe().expect("own path");
        let mut command = match &kind {
            Kind::Direct => Command::new(&me),
            Kind::Rum => rum(&binary("rum"), &dir, port, opens, &me),
            Kind::OtherRum(path) => rum(path, &dir, port, opens, &me),
            Kind::Pasta if opens => pasta("auto", &me),
            Kind::Pasta => pasta(&format!("{port}"), &me),
            Kind::Socat | Kind::Haproxy | Kind::Bare(_) => {
                let mut command = Command::new(&me);
                command.arg("netns").arg(&me);
                command
            }
        };
        command.args(["server", &port.to_string()]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut program = command.spawn().expect("the guest starts");
        let mut way = Self {
            opens,
            server: Some(Guest::of(&mut program)),
            program,
            helpers: Vec::new(),
            host: SocketAddr::from(([127, 0, 0, 1], port)),
            dir,
            kind,
        };
        match way.kind {
            Kind::Socat => way.socat(),
            Kind::Haproxy => way.haproxy(),
            Kind::Bare(mode) => way.bare(mode, &me),
            _ => {}
        }
        until("an answer through the forward", || {
            crate::load::request(way.target(), 1).ok()
        });
        way
    }

    /// Where the benchmark reaches the program.
    pub fn target(&self) -> Target<'static> {
        Target::Tcp(self.host)
    }

    fn port(&self) -> u16 {
        self.host.port()
    }

    /// The port that [`Way::open`] opens.
    pub fn second_port(&self) -> u16 {
        self.port() + 1
    }

    /// Has the server listen on its second port; the clock right after.
    pub fn open(&mut self) -> u64 {
        let command = format!("open {}", self.second_port());
        self.server().tell(&command)
    }

    /// Has it close that.
    pub fn close(&mut self) -> u64 {
        self.server().tell("close")
    }

    fn server(&mut self) -> &mut Guest {
        self.server.as_mut().expect("it lives as long as this")
    }

    /// The guest's process, once it is in its namespace.
    fn guest(&self) -> u32 {
        let pid = self.program.id();
        until("the guest's namespace", || {
            // It has its own once the helper has become the server.
            let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
            (line.split(|b| *b == 0).nth(1) == Some(b"server")).then_some(())
        });
        pid
    }

    /// A command in the guest's namespace (util-linux's nsenter).
    fn inside(&self, program: &str) -> Command {
        let pid = self.guest();
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net=/proc/{pid}/ns/net"))
            .arg(program);
        command
    }

    fn socat(&mut self) {
        let socket = self.dir.path().join("s");
        let mut inside = self.inside("socat");
        inside.args(["-t", "60"]);
        inside.arg(format!(
            "UNIX-LISTEN:{},fork,backlog=1024",
            socket.display()
        ));
        inside.arg(format!("TCP:127.0.0.1:{},nodelay", self.port()));
        self.help(&mut inside);
        until("socat's socket", || socket.exists().then_some(()));
        let mut outside = Command::new("socat");
        outside.args(["-t", "60"]);
        outside.arg(format!(
            "TCP-LISTEN:{},bind=127.0.0.1,fork,reuseaddr,backlog=1024,nodelay",
            self.port()
        ));
        outside.arg(format!("UNIX-CONNECT:{}", socket.display()));
        self.help(&mut outside);
    }

    fn bare(&mut self, mode: Mode, me: &Path) {
        let listener = listener(self.port());
        let numbers = [self.guest().to_string(), listener.as_raw_fd().to_string()];
        let mut command = Command::new(me);
        command.args(["bare", mode.name()]).args(numbers);
        command.arg(self.port().to_string());
        inherit(&mut command, &listener);
        self.help(&mut command);
    }

    /// Its ports are always there: where nothing listens behind one, a client is closed at once.
    fn haproxy(&mut self) {
        let last = if self.opens {
            self.second_port()
        } else {
            self.port()
        };
        let ports = self.port()..=last;
        let listeners: Vec<_> = ports.map(|port| (port, listener(port))).collect();
        let file = self.dir.path().join("haproxy.cfg");
        let mut config = "global\n  maxconn 4000\ndefaults\n  mode tcp\n  option splice-auto\n  \
                          retries 0\n  timeout connect 10s\n  timeout client 60s\n  \
                          timeout server 60s\n"
            .to_owned();
        for (port, listener) in &listeners {
            let fd = listener.as_raw_fd();
            config +=
                &format!("listen forward{port}\n  bind fd@{fd}\n  server guest 127.0.0.1:{port}\n");
        }
        fs::write(&file, config).expect("a file");
        let mut command = self.inside("haproxy");
        command.arg("-db").arg("-q").arg("-f").arg(file);
        for (_, listener) in &listeners {
            inherit(&mut command, listener);
        }
        self.help(&mut command);
    }

    fn help(&mut self, command: &mut Command) {
        command.stdin(Stdio::null()).stdout(Stdio::null());
        // A group of its own: what it forks ends with it.
        command.process_group(0).stderr(Stdio::null());
        let child = command.spawn().expect("the peer starts");
        self.helpers.push(child);
    }
}

impl Drop for Way {
    fn drop(&mut self) {
        for helper in &mut self.helpers {
            if let Some(group) = rustix::process::Pid::from_raw(helper.id() as i32) {
                let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
            }
            let _ = helper.wait();
        }
        // The server ends with its stdin, and what runs it with the server.
        drop(self.server.take());
        for _ in 0..500 {
            if let Ok(Some(_)) = self.program.try_wait() {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = self.program.kill();
        let _ = self.program.wait();
    }
}

/// A listener for a peer to inherit.
fn listener(port: u16) -> TcpListener {
    let listener = TcpListener::bind(("127.0.0.1", port)).expect("a free port");
    // std's own backlog is small: listen(2) again raises it.
    rustix::net::listen(&listener, 1024).expect("a listener");
    listener
}

/// Has `command` inherit `listener` under its number.
fn inherit(command: &mut Command, listener: &TcpListener) {
    let fd = listener.as_raw_fd();
    // SAFETY: fcntl(2) alone, which is async-signal-safe, on a descriptor that `listener`
    // keeps open until the child runs.
    unsafe {
        command.pre_exec(move || match libc::fcntl(fd, libc::F_SETFD, 0) {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        });
    }
}

fn rum(rum: &Path, dir: &TempDir, port: u16, opens: bool, program: &Path) -> Command {
    let mut command = Command::new(rum);
    let range = format!("{port}-{}", port + u16::from(opens));
    command.args(["up", "-q", "--range", &range, "--"]);
    command.arg(program).current_dir(dir.path());
    command.env("RUM_RUNTIME_DIR", dir.path().join("run"));
    command.env("RUM_STATE_DIR", dir.path().join("state"));
    command
}

/// pasta with the given `-t`, without what the work does not need: UDP, and the other direction,
/// of which the looks that `-t auto` takes are a part (without `-T auto` there are none).
/// It takes the name of an interface with a default route for its own device: see [`route`].
pub fn pasta(ports: &str, program: &Path) -> Command {
    let mut command = Command::new("pasta");
    command.args(["-f", "-q", "--runas", "0", "--config-net", "-t", ports]);
    let other = if ports == "auto" { "auto" } else { "none" };
    command.args(["-T", other, "-u", "none", "-U", "none", "--"]);
    // It says what it cannot have as root; a pasta that does not forward is noticed.
    command.arg(program).stderr(Stdio::null());
    command
}

/// Gives the calling thread's namespace a default route that leads nowhere. pasta refuses to
/// start without one; nothing is ever sent there.
pub fn route() {
    if !is_there("pasta") {
        return;
    }
    let steps = [
        "link add rum0 type veth peer name rum1",
        "address add 192.0.2.1/24 dev rum0",
        "link set rum0 up",
        "link set rum1 up",
        "route add default via 192.0.2.2",
    ];
    for step in steps {
        let done = Command::new("ip").args(step.split(' ')).status();
        if !done.is_ok_and(|status| status.success()) {
            eprintln!("`ip {step}` failed: pasta will not start without a default route");
        }
    }
}

/// Becomes `program` in a new network namespace.
pub fn netns(program: &str, args: &[&str]) -> std::io::Error {
    in_netns(|| Command::new(program).args(args).exec())
}
