//! The event of an ordinary user's guest: seccomp notifications of `listen()`, whoever calls it,
//! whatever was stopped, killed or has ended meanwhile.

use std::fs::File;
use std::io::Write;
use std::process::{Command, Stdio};

use rum_tests::guest::Guest;
use rum_tests::netns::in_netns;
use rum_tests::rum::{Setup, agent_below, binary};
use rum_tests::wait::until;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

const RANGE: [&str; 2] = ["--range", "5000-9999"];

/// Waits until `port` is forwarded; whether an event told of it. Asks as the guest's owner, the
/// only one who is answered.
fn is_told(setup: &Setup, port: u16) -> bool {
    let id = format!("guest:{port}");
    until(&format!("{id} to be forwarded"), || {
        let output = setup.rum(["ports", "--json"]).output().expect("rum ports");
        let all: Value = serde_json::from_slice(&output.stdout).ok()?;
        let mut ports = all["ports"].as_array()?.iter();
        let port = ports.find(|port| port["id"] == *id && port["state"] == "forwarded")?;
        Some(port["detected_us"].is_u64())
    })
}

/// Lets `listen` listen on one port after the other, from `first`, until one was told of by an
/// event. A single one may be seen by chance before its event is.
fn until_told(setup: &Setup, first: u16, mut listen: impl FnMut(u16)) {
    let told = (first..first + 50).any(|port| {
        listen(port);
        is_told(setup, port)
    });
    assert!(told, "no event for 50 ports from {first}");
}

fn listens(guest: &mut Guest) -> impl FnMut(u16) + '_ {
    |port| {
        guest.tell(&listen(port));
    }
}

fn listen(port: u16) -> String {
    format!("listen 127.0.0.1:{port} hello")
}

#[test]
fn an_event_tells_of_a_listen_also_after_the_agent_was_killed() {
    in_netns(|| {
        let setup = Setup::ordinary_user();
        let (mut rum, mut guest) = setup.start_guest(&RANGE);
        rum.stderr.wait("connected (events: seccomp)");
        until_told(&setup, 5000, listens(&mut guest));
        rum.kill_agent();
        rum.stderr.wait_nth("connected (events: seccomp)", 2);
        until_told(&setup, 6000, listens(&mut guest));
        guest.send("exit 0");
        assert_eq!(rum.wait().code(), Some(0));
    });
}

#[test]
fn what_rum_exec_left_behind_is_told_of() {
    in_netns(|| {
        let setup = Setup::ordinary_user();
        let rum = setup.start(["up", RANGE[0], RANGE[1]]);
        rum.stderr.wait("connected (events: seccomp)");
        let commands = setup.path().join("commands");
        let mut mkfifo = Command::new("mkfifo");
        let made = mkfifo.args(["-m", "666"]).arg(&commands).status();
        assert!(made.expect("mkfifo").success());
        let mut exec = setup.rum(["exec", "--", "sh", "-c"]);
        exec.arg("setsid \"$0\" <commands >/dev/null 2>&1 &");
        let mut exec = exec.arg(binary("guest"));
        exec = exec.stdin(Stdio::null());
        assert!(exec.status().expect("rum exec").success());
        // rum exec has ended; this waits for what it left behind.
        let mut commands = File::options().write(true).open(commands).expect("a fifo");
        until_told(&setup, 5000, |port| {
            writeln!(commands, "{}", listen(port)).expect("it reads");
        });
    });
}

#[test]
fn nobody_who_is_stopped_holds_up_a_listen() {
    in_netns(|| {
        let setup = Setup::ordinary_user();
        let (mut rum, mut guest) = setup.start_guest(&RANGE);
        rum.stderr.wait("connected (events: seccomp)");
        let agent = agent_below(rum.child.id()).expect("an agent");
        let agent = Pid::from_raw(agent as i32).expect("not 0");
        rum.signal(Signal::STOP);
        kill_process(agent, Signal::STOP).expect("it lives");
        // More than the pipe to the agent holds.
        guest.tell("many 5000 1000");
        rum.signal(Signal::CONT);
        kill_process(agent, Signal::CONT).expect("it lives");
        for port in [5000, 5999] {
            is_told(&setup, port);
        }
        until_told(&setup, 6000, listens(&mut guest));
        guest.send("exit 0");
        assert_eq!(rum.wait().code(), Some(0));
    });
}

/// Asks to listen on sockets that another thread closes while the holder looks at them, so that the holder's
/// duplicate is the last one now and then (some 2 of 100 times). They linger for a minute: they are connected, and have bytes that
/// nobody reads. Another listen() must not wait for that.
const CLOSED_WHILE_LOOKED_AT: &str = r#"
import ctypes, os, random, socket, struct, sys, threading, time
libc = ctypes.CDLL(None)
server = socket.socket()
server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
server.bind(("127.0.0.1", 0))
server.listen()

def lingering():
    near = socket.socket()
    near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    near.connect(server.getsockname())
    far, _ = server.accept()
    near.setblocking(False)
    try:
        while True:
            near.send(b"x" * 65536)
    except BlockingIOError:
        pass
    near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 60))
    return near.detach(), far

for attempt in range(1000):
    fd, far = lingering()
    go, steps = threading.Event(), random.randrange(300)
    def close():
        go.wait()
        for _ in range(steps):
            pass
        os.close(fd)
    closing = threading.Thread(target=close)
    closing.start()
    go.set()
    libc.listen(fd, 1)
    start = time.monotonic()
    with socket.create_server(("127.0.0.1", 0)):
        took = time.monotonic() - start
    # Its reset ends what lingers.
    far.close()
    closing.join()
    if took > 30:
        sys.exit(f"attempt {attempt}: another listen() took {took:.1f} s")
"#;

#[test]
fn a_socket_that_lingers_holds_up_no_other_listen() {
    in_netns(|| {
        let setup = Setup::ordinary_user();
        let mut command = setup.rum(["up", RANGE[0], RANGE[1], "--"]);
        command.args(["python3", "-c", CLOSED_WHILE_LOOKED_AT]);
        let mut rum = setup.start_command(&mut command);
        assert_eq!(rum.wait().code(), Some(0));
        rum.stderr.wait("connected (events: seccomp)");
    });
}

/// The kernel asks about neither.
#[test]
fn a_listen_by_io_uring_or_of_another_abi_is_found() {
    in_netns(|| {
        let setup = Setup::ordinary_user();
        let (rum, mut guest) = setup.start_guest(&RANGE);
        rum.stderr.wait("connected (events: seccomp)");
        for (way, port) in [("uring", 5000), ("i386", 5001)] {
            guest.tell(&format!("{way} 127.0.0.1:{port} hello"));
            assert!(!is_told(&setup, port), "{way}");
        }
        // Beside them the others are told of as ever.
        until_told(&setup, 6000, listens(&mut guest));
    });
}

/// The second is refused its notifications, since the first has them.
#[test]
fn a_guest_in_a_guest_polls() {
    in_netns(|| {
        let setup = Setup::ordinary_user();
        let mut command = setup.rum(["up", "--name", "outer", RANGE[0], RANGE[1], "--"]);
        let inner = ["up", "--name", "inner", RANGE[0], RANGE[1], "--"];
        command.arg(binary("rum")).args(inner).args(["sh", "-c"]);
        command.arg("echo 'listen 127.0.0.1:5000 hello' | { cat; exec sleep 1000; } | \"$0\"");
        command.arg(binary("guest")).stdin(Stdio::null());
        let rum = setup.start_command(&mut command);
        rum.stderr.wait("connected (events: seccomp)");
        rum.stderr.wait("connected (events: poll)");
        // Once by the inner and, since that listens in the outer guest, once by the outer.
        rum.stderr.wait_nth("Auto-forwarding 127.0.0.1:5000", 2);
    });
}
