//! Clients wait as the kernel would let them wait without rum, and what rum shows says so: programs
//! that do not accept yet, listeners that close, and the two addresses of `localhost`.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::thread;

use rum_shared::bytes::relay;
use rum_tests::client::{connect, dial, exchange, talk};
use rum_tests::netns::{self, in_netns};
use rum_tests::rum::{Rum, Setup};
use rum_tests::wait::until;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use serde_json::{Value, json};

const RANGE: [&str; 2] = ["--range", "5000-6000"];

/// A real server that listens, and accepts nobody before it is told to.
const STOPPED_AT_A_BREAKPOINT: &str = r#"
import socket, sys, threading
deaf = socket.create_server(("127.0.0.1", 5000), backlog=1)
well = socket.create_server(("127.0.0.1", 5001), backlog=128)
def serve(listener):
    while True:
        client, _ = listener.accept()
        threading.Thread(target=echo, args=(client,), daemon=True).start()
def echo(client):
    while data := client.recv(4096):
        client.sendall(data)
    client.close()
threading.Thread(target=serve, args=(well,), daemon=True).start()
sys.stdin.readline()
threading.Thread(target=serve, args=(deaf,), daemon=True).start()
sys.stdin.read()
"#;

fn roots_and_users(test: impl Fn(Setup) + Sync) {
    for setup in [Setup::new(), Setup::ordinary_user()] {
        in_netns(|| test(setup.clone()));
    }
}

/// `rum up` with that server.
fn breakpoint(setup: &Setup) -> (Rum, ChildStdin) {
    let mut command = setup.rum(["up"].iter().chain(&RANGE));
    command.args(["--", "python3", "-c", STOPPED_AT_A_BREAKPOINT]);
    let mut rum = setup.spawn(command.stdin(Stdio::piped()).stdout(Stdio::null()));
    let stdin = rum.child.stdin.take().expect("it is piped");
    for port in [5000, 5001] {
        rum.stderr
            .wait(&format!("Auto-forwarding 127.0.0.1:{port}"));
    }
    (rum, stdin)
}

/// Sends `text` and waits for it.
fn echoed(mut client: TcpStream, text: &str) {
    client.write_all(text.as_bytes()).expect("never reset");
    let mut echo = vec![0; text.len()];
    client
        .read_exact(&mut echo)
        .expect("served, and never reset");
    assert_eq!(echo, text.as_bytes());
}

/// Waits until `rum ports` shows the port with this id as `condition` says.
fn until_shown(setup: &Setup, id: &str, condition: impl Fn(&Value) -> bool) -> Value {
    until(id, || {
        let shown = setup.rum(["ports", "--json"]).output().expect("rum starts");
        let shown: Value = serde_json::from_slice(&shown.stdout).ok()?;
        let ports = shown["ports"].as_array()?;
        let port = ports.iter().find(|port| port["id"] == id)?;
        condition(port).then(|| port.clone())
    })
}

/// Waits until it is forwarded, with a reason that has this code.
fn until_reason(setup: &Setup, id: &str, code: &str) -> Value {
    let has = |port: &Value| port["state"] == "forwarded" && port["reason"]["code"] == code;
    until_shown(setup, id, has)
}

#[test]
fn a_full_accept_queue_is_waited_for() {
    roots_and_users(|setup| {
        let (_rum, mut stdin) = breakpoint(&setup);
        let clients: Vec<_> = (0..12).map(|n| (n, connect(5000))).collect();
        // Not accepted by the program are ten of them.
        until_reason(&setup, "guest:5000", "not-accepted");
        stdin.write_all(b"\n").expect("it reads");
        let talking = clients.into_iter().map(|(n, client)| {
            // Without a half-close: that, the kernel answers with a reset at times, in a full queue.
            thread::spawn(move || echoed(client, &format!("client {n}")))
        });
        for client in talking.collect::<Vec<_>>() {
            client.join().expect("as it was without rum");
        }
        let none = |port: &Value| port["connections"]["now"] == 0;
        let shown = until_shown(&setup, "guest:5000", none);
        assert_eq!(shown["connections"]["total"], 12);
        assert_eq!(
            (&shown["connections"]["refused"], &shown["reason"]),
            (&0.into(), &Value::Null)
        );
    });
}

#[test]
fn clients_of_a_program_that_accepts_nobody_cost_others_nothing() {
    in_netns(|| {
        let setup = Setup::new();
        let (_rum, _stdin) = breakpoint(&setup);
        // More than may wait for one program: the others wait in the kernel's queue.
        let waiting: Vec<_> = (0..800).map(|_| connect(5000)).collect();
        let shown = until_reason(&setup, "guest:5000", "not-accepted");
        let now = shown["connections"]["now"].as_u64();
        assert!(now.is_some_and(|now| now < 800), "{shown}");
        for n in 0..100 {
            let text = format!("number {n}");
            assert_eq!(exchange(5001, &text).expect("served at once"), text);
        }
        // They give up, and are not waited for any more.
        waiting.iter().for_each(relay::prepare);
        drop(waiting);
        let few = |port: &Value| port["connections"]["now"].as_u64().is_some_and(|n| n <= 2);
        until_shown(&setup, "guest:5000", few);
    });
}

#[test]
fn what_clients_meet_is_shown_until_they_meet_something_else() {
    in_netns(|| {
        let setup = Setup::new();
        let config = "[[ports]]\nhost = 8080\nguest = 80\n[auto_ports]\nrange = \"5000\"\n";
        std::fs::write(setup.path().join("rum.toml"), config).expect("a file");
        let (rum, mut guest) = setup.start_guest(&["--privileged"]);
        rum.stderr.wait("Forwarding 127.0.0.1:8080");
        let id = "static:127.0.0.1:8080";
        let shown = |state: &str, reason: Value| {
            let is = |port: &Value| port["state"] == state && port["reason"]["code"] == reason;
            until_shown(&setup, id, is)
        };
        connect(8080).read(&mut [0]).expect_err("nobody listens");
        shown("pending", "not-listening".into());
        guest.tell("listen 127.0.0.1:80 echo");
        // What was before it is counted, and no news any more.
        let now = shown("forwarded", Value::Null);
        assert_eq!(now["connections"]["refused"], 1);
        assert_eq!(exchange(8080, "hello").expect("echo"), "hello");

        // A firewall rejects them.
        let reject = "-p tcp --dport 80 -j REJECT --reject-with tcp-reset";
        guest.tell(&format!("sh iptables -I INPUT {reject}"));
        until("a reset", || connect(8080).read(&mut [0]).err());
        let now = shown("forwarded", "refused".into());
        let message = now["reason"]["message"].as_str().unwrap_or_default();
        assert!(message.contains("though a program listens"), "{message}");
        guest.tell(&format!("sh iptables -D INPUT {reject}"));
        until("an echo", || {
            exchange(8080, "again").ok().filter(|echo| echo == "again")
        });
        shown("forwarded", Value::Null);

        // Or leads them to where a program listens.
        guest.tell("close 127.0.0.1:80");
        shown("pending", "not-listening".into());
        guest.tell("listen 127.0.0.1:8081 echo");
        let lead = "-t nat -I OUTPUT -p tcp --dport 80 -j REDIRECT --to-ports 8081";
        guest.tell(&format!("sh iptables {lead}"));
        until("an echo", || {
            exchange(8080, "led").ok().filter(|echo| echo == "led")
        });
        shown("forwarded", "led-elsewhere".into());
        guest.tell("close 127.0.0.1:8081");
        until("a reset", || connect(8080).read(&mut [0]).err());
        shown("pending", "not-listening".into());
    });
}

/// [`exchange`] with the port on the host's IPv6 loopback.
fn exchange_v6(port: u16, text: &str) -> std::io::Result<String> {
    talk(dial(SocketAddr::from((Ipv6Addr::LOCALHOST, port)))?, text)
}

#[test]
fn localhost_is_both_loopback_addresses() {
    roots_and_users(|setup| {
        let other = TcpListener::bind((Ipv6Addr::LOCALHOST, 5000)).expect("free");
        let (rum, mut guest) = setup.start_guest(&RANGE);
        guest.tell("listen 127.0.0.1:5000 echo");
        guest.tell("listen 127.0.0.1:5001 echo");
        // Another program has one of the two: told, and shown.
        let line = rum
            .stderr
            .wait("Not forwarding [::1]:5000 → guest:5000 yet");
        assert!(line.contains("clients that use this address"), "{line}");
        let shown = until_reason(&setup, "guest:5000", "host-port-taken");
        assert_eq!(shown["host_addresses"], json!(["127.0.0.1:5000"]));
        let message = shown["reason"]["message"].as_str().unwrap_or_default();
        assert!(message.starts_with("[::1]:5000 is taken"), "{message}");
        assert_eq!(exchange(5000, "v4").expect("echo"), "v4");
        assert_eq!(exchange_v6(5001, "v6").expect("echo"), "v6");
        // It is taken when it is free, and one counter counts both.
        drop(other);
        let both = json!(["127.0.0.1:5000", "[::1]:5000"]);
        let shown = until_shown(&setup, "guest:5000", |port| port["host_addresses"] == both);
        assert_eq!((&shown["host"], &shown["reason"]), (&both[0], &Value::Null));
        assert_eq!(exchange_v6(5000, "v6").expect("echo"), "v6");
        let counted = |port: &Value| port["connections"]["total"] == 2;
        until_shown(&setup, "guest:5000", counted);
        guest.tell("close 127.0.0.1:5000");
        until("both to be closed", || {
            let addresses = [
                SocketAddr::from(([127, 0, 0, 1], 5000)),
                SocketAddr::from((Ipv6Addr::LOCALHOST, 5000)),
            ];
            let all = addresses.iter().all(|a| TcpStream::connect(a).is_err());
            all.then_some(())
        });
    });
}

#[test]
fn an_address_alone_is_exactly_that() {
    in_netns(|| {
        let setup = Setup::new();
        let (rum, mut guest) = setup.start_guest(&["--range", "5000", "--bind", "127.0.0.1"]);
        guest.tell("listen 127.0.0.1:5000 echo");
        rum.stderr.wait("Auto-forwarding 127.0.0.1:5000");
        exchange_v6(5000, "nobody").expect_err("not asked for");
        TcpListener::bind((Ipv6Addr::LOCALHOST, 5000)).expect("free for others");
    });
}

#[test]
fn a_host_port_that_a_connection_has_is_named_as_that() {
    roots_and_users(|setup| {
        let server = TcpListener::bind("127.0.0.1:0").expect("a port");
        let to = server.local_addr().expect("bound");
        let flags = SocketFlags::CLOEXEC;
        let outgoing = socket_with(AddressFamily::INET, SocketType::STREAM, flags, None);
        let outgoing = outgoing.expect("a socket");
        let local = SocketAddr::from(([127, 0, 0, 1], 5000));
        rustix::net::bind(&outgoing, &local).expect("free");
        rustix::net::connect(&outgoing, &to).expect("it listens");
        let (rum, mut guest) = setup.start_guest(&RANGE);
        guest.tell("listen 127.0.0.1:5000 echo");
        rum.stderr
            .wait("127.0.0.1:5000 is the local end of a connection");
        let conflict = |port: &Value| port["state"] == "conflict";
        let shown = until_shown(&setup, "guest:5000", conflict);
        assert_eq!(shown["reason"]["code"], "host-port-taken");
        let (served, _) = server.accept().expect("connected");
        // Whoever ends it last has the port free at once.
        drop(served);
        until("its end", || rustix::io::read(&outgoing, &mut [0]).ok());
        drop(outgoing);
        rum.stderr.wait("Auto-forwarding 127.0.0.1:5000");
        assert_eq!(exchange(5000, "free").expect("echo"), "free");
    });
}

#[test]
fn a_guest_without_a_free_local_port_is_named_as_that() {
    in_netns(|| {
        let setup = Setup::new();
        let (rum, mut guest) = setup.start_guest(&RANGE);
        guest.tell("listen 127.0.0.1:5000 echo");
        rum.stderr.wait("Auto-forwarding 127.0.0.1:5000");
        guest.tell("sh echo 40000 40001 >/proc/sys/net/ipv4/ip_local_port_range");
        // A connection from each of them to the same listener, and no third.
        let mut all: Vec<_> = (0..3).map(|_| connect(5000)).collect();
        let served = all
            .iter_mut()
            .map(|client| client.write_all(b"x").and_then(|()| client.read(&mut [0])));
        let served = served.filter(|read| matches!(read, Ok(1))).count();
        assert_eq!(served, 2);
        let shown = until_reason(&setup, "guest:5000", "refused");
        let message = shown["reason"]["message"].as_str().unwrap_or_default();
        assert!(message.contains("no free local port"), "{message}");
        drop(all);
        guest.tell("sh echo 32768 60999 >/proc/sys/net/ipv4/ip_local_port_range");
        assert_eq!(exchange(5000, "again").expect("echo"), "again");
    });
}

/// A server that says what becomes of each of its clients.
const WATCHES_ITS_CLIENTS: &str = r#"
import socket, sys, threading
server = socket.create_server(("127.0.0.1", 5000))
def serve(client):
    say("somebody %r" % client.recv(1))
    try:
        say("the end %r" % client.recv(1))
    except OSError as error:
        say("gone: %s" % error)
def say(line):
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
while True:
    threading.Thread(target=serve, args=(server.accept()[0],), daemon=True).start()
"#;

/// A machine beside this one, at the other end of a cable.
struct Beside(Child);

impl Beside {
    /// This one is 10.88.0.1.
    fn new() -> Self {
        let mut sleep = Command::new("unshare");
        sleep.args(["--net", "sleep", "infinity"]);
        let beside = Self(sleep.spawn().expect("unshare starts"));
        let own = fs::read_link("/proc/thread-self/ns/net").expect("a namespace");
        let its = format!("/proc/{}/ns/net", beside.0.id());
        until("a namespace", || {
            fs::read_link(&its).ok().filter(|n| *n != own)
        });
        shell(&format!(
            "ip link add cable type veth peer name far netns {pid}
            ip addr add 10.88.0.1/24 dev cable
            ip link set cable up
            nsenter --net=/proc/{pid}/ns/net ip addr add 10.88.0.2/24 dev far
            nsenter --net=/proc/{pid}/ns/net ip link set far up",
            pid = beside.0.id()
        ));
        beside
    }

    /// A connection from there to `address`.
    fn dial(&self, address: SocketAddr) -> TcpStream {
        let namespace = netns::of(self.0.id());
        netns::inside(&namespace, || dial(address).expect("it accepts"))
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn shell(script: &str) {
    let done = Command::new("sh").args(["-ec", script]).status();
    assert!(done.expect("sh starts").success(), "{script}");
}

#[test]
fn a_client_that_vanishes_is_noticed_as_soon_as_the_user_asks_for() {
    const FORWARDS: &str = "[auto_ports]\nrange = \"5000\"\nbind = \"10.88.0.1\"\n";
    const WITH: &str = "keepalive = \"1s\"\n";
    roots_and_users(|setup| {
        let file = setup.path().join("rum.toml");
        // In force from the start, or by a reload.
        let reload = setup.uid.is_some();
        let first = if reload { "" } else { WITH };
        fs::write(&file, format!("{first}{FORWARDS}")).expect("a file");
        let beside = Beside::new();
        let mut command = setup.rum(["up", "--", "python3", "-c", WATCHES_ITS_CLIENTS]);
        let rum = setup.start_command(&mut command);
        rum.stderr.wait("Auto-forwarding 10.88.0.1:5000");
        if reload {
            fs::write(&file, format!("{WITH}{FORWARDS}")).expect("a file");
            rum.stderr.wait("Configuration reloaded");
        }
        let mut clients: Vec<_> = (0..2)
            .map(|_| beside.dial(SocketAddr::from(([10, 88, 0, 1], 5000))))
            .collect();
        for (client, n) in clients.iter_mut().zip(1..) {
            client.write_all(b"x").expect("it is read");
            rum.stdout.wait_nth("somebody", n);
        }
        shell("ip link set cable down");
        rum.stdout.wait_nth("gone: [Errno 104]", 2);
        until_shown(&setup, "guest:5000", |port| port["connections"]["now"] == 0);
        drop(clients);
    });
}
