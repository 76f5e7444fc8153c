//! Guests of kind `unix`, end to end: a real `rum up` in one network namespace, a real agent in
//! another, and between them a small `CONNECT` device with the defects of real ones.
//!
//! What the device does not do is the point: no half-close crosses it. So every end that a
//! client or a server sees came in a frame of rum's.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::thread;

use rum_shared::{CHANNEL_PORT, RPC_PORT};
use rum_tests::client::{connect, exchange, host};
use rum_tests::guest::Guest;
use rum_tests::monotonic_ns;
use rum_tests::netns::in_netns;
use rum_tests::rum::{Rum, Setup, binary};
use rum_tests::wait::until;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// The device: a Unix socket on the host, behind it the agent's two. Its threads end with their
/// connections, the one that accepts with the process.
#[derive(Clone)]
struct Device {
    dir: PathBuf,
    connects: Arc<Mutex<Vec<Connect>>>,
}

/// A `CONNECT` that the device got.
#[derive(Clone)]
struct Connect {
    port: u32,
    /// Both ends, if somebody listened behind.
    ends: Option<Arc<(UnixStream, UnixStream)>>,
}

impl Device {
    fn start(dir: &Path) -> Self {
        let device = Self {
            dir: dir.to_owned(),
            connects: Arc::default(),
        };
        let listener = UnixListener::bind(device.socket("vm")).expect("a new directory");
        let accepting = device.clone();
        thread::spawn(move || {
            for host in listener.incoming().map_while(Result::ok) {
                let device = accepting.clone();
                thread::spawn(move || device.serve(host));
            }
        });
        device
    }

    fn socket(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn connects(&self) -> Vec<Connect> {
        self.connects.lock().expect("no holder panics").clone()
    }

    fn serve(&self, mut host: UnixStream) {
        let Some(port) = read_connect(&mut host) else {
            return;
        };
        let name = match port {
            RPC_PORT => "rpc",
            CHANNEL_PORT => "channel",
            _ => "nothing",
        };
        let guest = UnixStream::connect(self.socket(name));
        if guest.is_ok() {
            // The number is the device's own, and means nothing.
            let answer = format!("OK {}\n", monotonic_ns() as u32);
            if host.write_all(answer.as_bytes()).is_err() {
                return;
            }
        }
        let connect = Connect {
            port,
            ends: guest.ok().map(|guest| Arc::new((host, guest))),
        };
        let all = || self.connects.lock().expect("no holder panics");
        all().push(connect.clone());
        // Nobody listens behind: closed at once, without a word.
        let Some(ends) = connect.ends else { return };
        let to_host = ends.clone();
        thread::spawn(move || copy_to_host(&to_host));
        copy_to_guest(&ends);
    }
}

/// An end of the guest's sending side is lost on the way; only when the guest has closed, the
/// host learns of it.
fn copy_to_host(ends: &(UnixStream, UnixStream)) {
    let (mut host, mut guest) = (&ends.0, &ends.1);
    let mut buffer = [0; 16 << 10];
    while let Ok(n @ 1..) = guest.read(&mut buffer) {
        if host.write_all(&buffer[..n]).is_err() {
            return cut(ends);
        }
    }
    // No event is asked for, so only the hang-up of both directions ends this (poll(2)).
    let _ = poll(&mut [PollFd::new(&guest, PollFlags::empty())], None);
    cut(ends);
}

/// The port of `CONNECT port`. Read byte by byte, since what follows belongs to the stream.
fn read_connect(host: &mut UnixStream) -> Option<u32> {
    let mut line = vec![];
    while line.last() != Some(&b'\n') {
        let mut byte = [0];
        host.read_exact(&mut byte).ok()?;
        line.push(byte[0]);
    }
    let line = String::from_utf8(line).ok()?;
    line.strip_prefix("CONNECT ")?.trim_end().parse().ok()
}

/// An end of the host's sending side is taken for the end of the whole connection.
fn copy_to_guest(ends: &(UnixStream, UnixStream)) {
    let (mut host, mut guest) = (&ends.0, &ends.1);
    let mut buffer = [0; 16 << 10];
    while let Ok(n @ 1..) = host.read(&mut buffer) {
        if guest.write_all(&buffer[..n]).is_err() {
            break;
        }
    }
    cut(ends);
}

/// Closes a connection on both sides.
fn cut(ends: &(UnixStream, UnixStream)) {
    // Fails only if the other side has closed already.
    let _ = ends.0.shutdown(Shutdown::Both);
    let _ = ends.1.shutdown(Shutdown::Both);
}

/// A guest without an agent: the guest program in a network namespace of its own.
struct Machine {
    setup: Setup,
    device: Device,
    program: Rum,
    guest: Guest,
}

impl Machine {
    fn boot() -> Self {
        let setup = Setup::new();
        let device = Device::start(setup.path());
        let socket = device.socket("vm");
        let config = format!(
            "[guest]\nkind = \"unix\"\nsocket = \"{}\"\n\
             [auto_ports]\nrange = \"5000-6000\"\n\
             [[ports]]\nhost = 8080\nguest = 80\n",
            socket.display()
        );
        std::fs::write(setup.path().join("rum.toml"), config).expect("a file");
        let mut program = in_netns(|| {
            let mut command = setup.command(binary("guest"));
            setup.spawn(command.stdin(Stdio::piped()).stdout(Stdio::piped()))
        });
        let guest = Guest::of(&mut program.child);
        Self {
            setup,
            device,
            program,
            guest,
        }
    }

    /// Starts an agent beside the guest program.
    fn start_agent(&self) -> Rum {
        let unix = |name| format!("unix:{}", self.device.socket(name).display());
        let mut command = self.setup.command(binary("rum-agent"));
        command
            .args(["--rpc", &unix("rpc"), "--channel", &unix("channel")])
            .args(["--knock", &unix("vm_2224")])
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        let namespace = format!("/proc/{}/ns/net", self.program.child.id());
        let namespace = std::fs::File::open(namespace).expect("the guest runs");
        // A thread that has entered a namespace does not come back.
        let start = || {
            let kind = Some(LinkNameSpaceType::Network);
            move_into_link_name_space(std::os::fd::AsFd::as_fd(&namespace), kind)
                .expect("this test runs as root");
            self.setup.spawn(&mut command)
        };
        thread::scope(|scope| scope.spawn(start).join()).expect("the agent starts")
    }

    /// Starts `rum up` in the caller's network namespace.
    fn start_rum(&self) -> Rum {
        self.setup.start(["up"])
    }
}

/// A machine with an agent, and a `rum` that is connected to it.
fn connected() -> (Machine, Rum, Rum) {
    let machine = Machine::boot();
    let agent = machine.start_agent();
    let rum = machine.start_rum();
    rum.stderr.wait("connected (events");
    (machine, agent, rum)
}

#[test]
fn ports_follow_the_guest_through_the_device() {
    in_netns(|| {
        let (mut machine, _agent, rum) = connected();
        for round in 1..=3 {
            machine.guest.tell("listen 127.0.0.1:5000 echo");
            let line = "Auto-forwarding 127.0.0.1:5000 → guest:5000";
            rum.stdout.wait_nth(line, round);
            assert_eq!(exchange(5000, "through").expect("echo"), "through");
            machine.guest.tell("close 127.0.0.1:5000");
            rum.stdout.wait_nth("Stopped forwarding 5000", round);
            until("the host port to be closed", || {
                match TcpStream::connect(host(5000)) {
                    Err(error) if error.kind() == ErrorKind::ConnectionRefused => Some(()),
                    _ => None,
                }
            });
        }
    });
}

#[test]
fn half_close_needs_nothing_from_the_device() {
    in_netns(|| {
        let (mut machine, _agent, rum) = connected();
        // The client ends first and still gets the whole answer.
        machine.guest.tell("listen 127.0.0.1:5000 late");
        rum.stdout.wait("Auto-forwarding 127.0.0.1:5000");
        let text = "0123456789abcdef".repeat(1 << 16);
        for _ in 0..5 {
            let answer = exchange(5000, &text).expect("the late answer");
            assert!(answer == text, "{} bytes of {}", answer.len(), text.len());
        }
        // The server ends first and still hears the client.
        machine.guest.tell("listen 127.0.0.1:5001 greet-then-read");
        rum.stdout.wait("Auto-forwarding 127.0.0.1:5001");
        let mut stream = connect(5001);
        let mut greeting = String::new();
        stream.read_to_string(&mut greeting).expect("its end");
        assert_eq!(greeting, "greetings");
        stream
            .write_all(text.as_bytes())
            .expect("the way in is open");
        stream.shutdown(Shutdown::Write).expect("a socket");
        let heard = machine.guest.line();
        assert!(heard == format!("heard {text}"), "{} bytes", heard.len());
    });
}

#[test]
fn a_reset_crosses_the_device() {
    in_netns(|| {
        let (mut machine, _agent, rum) = connected();
        machine.guest.tell("listen 127.0.0.1:5000 reset");
        rum.stdout.wait("Auto-forwarding 127.0.0.1:5000");
        let mut stream = connect(5000);
        stream.write_all(b"!").expect("connected");
        let error = stream.read(&mut [0; 8]).expect_err("not a clean end");
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        // Nothing listens on the static forward's port: a reset too.
        let error = exchange(8080, "?").expect_err("nothing listens");
        assert!(
            [ErrorKind::ConnectionReset, ErrorKind::BrokenPipe].contains(&error.kind()),
            "{error}"
        );
    });
}

#[test]
fn an_agent_that_is_killed_resets_its_connections_and_the_next_one_takes_over() {
    in_netns(|| {
        let (mut machine, mut agent, rum) = connected();
        machine.guest.tell("listen 127.0.0.1:5000 echo");
        rum.stdout.wait("Auto-forwarding 127.0.0.1:5000");
        for round in 1..=2 {
            let mut stream = connect(5000);
            stream.write_all(b"a").expect("connected");
            stream.read_exact(&mut [0]).expect("echo");
            // Dropping kills.
            drop(agent);
            let error = stream.read(&mut [0; 8]).expect_err("not a clean end");
            assert_eq!(error.kind(), ErrorKind::ConnectionReset);
            rum.stderr.wait_nth("Agent lost", round);
            // The forward stays: a client is accepted.
            connect(5000);
            agent = machine.start_agent();
            rum.stderr.wait_nth("connected (events", round + 1);
            assert_eq!(exchange(5000, "back").expect("echo"), "back");
            let port = 5000 + round;
            machine.guest.tell(&format!("listen 127.0.0.1:{port} echo"));
            rum.stdout
                .wait(&format!("Auto-forwarding 127.0.0.1:{port} "));
        }
        let lines = rum.stdout.all();
        assert!(!lines.iter().any(|l| l.contains("Stopped")), "{lines:?}");
    });
}

#[test]
fn a_stream_that_is_lost_alone_comes_back() {
    in_netns(|| {
        let (mut machine, _agent, rum) = connected();
        let sessions = || {
            let mut all = machine.device.connects();
            all.retain(|c| c.port == RPC_PORT);
            all
        };
        // The first is the stream, the next the poll's, which lives on and must not keep the
        // agent from knocking.
        until("the poll to connect", || {
            (sessions().len() >= 2).then_some(())
        });
        let stream = sessions().remove(0);
        cut(&stream.ends.expect("the agent listens"));
        rum.stderr.wait("Agent lost");
        rum.stderr.wait_nth("connected (events", 2);
        machine.guest.tell("listen 127.0.0.1:5000 echo");
        rum.stdout.wait("Auto-forwarding 127.0.0.1:5000");
        assert_eq!(exchange(5000, "back").expect("echo"), "back");
    });
}

#[test]
fn channels_are_ready_before_the_clients() {
    in_netns(|| {
        let (mut machine, _agent, _rum) = connected();
        let channels = |n: usize| {
            until(&format!("{n} channels"), || {
                let all = machine.device.connects();
                let channels = all.iter().filter(|c| c.port == CHANNEL_PORT);
                (channels.count() == n).then_some(())
            });
        };
        channels(4);
        machine.guest.tell("listen 127.0.0.1:5000 echo");
        for round in 1..=3 {
            until("the port", || TcpStream::connect(host(5000)).ok());
            assert_eq!(exchange(5000, "at once").expect("echo"), "at once");
            // One for the client that only looked, one for the other.
            channels(4 + 2 * round);
        }
    });
}

#[test]
fn commands_are_refused_with_a_hint() {
    in_netns(|| {
        let machine = Machine::boot();
        let _agent = machine.start_agent();
        let mut rum = machine.setup.start(["up", "--", "true"]);
        assert!(!rum.wait().success());
        rum.stderr
            .wait("cannot run a command in a guest of kind `unix`");
        rum.stderr.wait("hint: ");
    });
}

#[test]
fn the_device_is_left_alone_until_the_agent_knocks() {
    in_netns(|| {
        let mut machine = Machine::boot();
        machine.guest.tell("listen 127.0.0.1:80 echo");
        machine.guest.tell("listen 127.0.0.1:5000 echo");
        let rum = machine.start_rum();
        rum.stdout.wait("Forwarding 127.0.0.1:8080");
        let knocks = machine.device.socket("vm_2224");
        until("rum to listen for knocks", || knocks.exists().then_some(()));
        // Not even a client that waits is a reason to connect.
        let mut early = connect(8080);
        early.write_all(b"a").expect("accepted");
        let early_connects: Vec<u32> = machine.device.connects().iter().map(|c| c.port).collect();
        assert_eq!(early_connects, [0u32; 0]);
        let _agent = machine.start_agent();
        rum.stdout.wait("Auto-forwarding 127.0.0.1:5000");
        assert_eq!(exchange(5000, "awake").expect("echo"), "awake");
        early.read_exact(&mut [0]).expect("it waited for the agent");
        // The agent listens before it knocks: nobody asked for it earlier than that.
        let connects = machine.device.connects();
        let early = connects.iter().filter(|c| c.ends.is_none()).count();
        assert_eq!(early, 0, "of {}", connects.len());
    });
}

#[test]
fn without_rum_up_the_agent_tells_of_its_ports() {
    in_netns(|| {
        let mut machine = Machine::boot();
        machine.guest.tell("listen 127.0.0.1:5000 echo");
        machine.guest.tell("listen 127.0.0.1:4000 echo");
        let _agent = machine.start_agent();
        let ports = |args: &[&str]| {
            until("the agent's answer", || {
                let output = machine.setup.rum(["ports"].iter().chain(args)).output();
                let output = output.expect("rum starts");
                let texts = [output.stdout, output.stderr].map(String::from_utf8);
                let [stdout, stderr] = texts.map(|text| text.expect("UTF-8"));
                output.status.success().then_some((stdout, stderr))
            })
        };
        let (stdout, stderr) = ports(&[]);
        assert!(stdout.starts_with("5000\tpending\t-\t"), "{stdout}");
        assert_eq!(stdout.lines().count(), 1, "{stdout}");
        assert!(stderr.contains("nothing is forwarded"), "{stderr}");
        assert!(stderr.contains("hint: start it with `rum up`"), "{stderr}");
        let (stdout, _) = ports(&["--all", "--json"]);
        assert!(stdout.contains("\"code\":\"not-running\""), "{stdout}");
        assert!(stdout.contains("\"state\":\"out-of-range\""), "{stdout}");
    });
}
