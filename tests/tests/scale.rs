//! Many ports.

use std::collections::BTreeSet;
use std::fs;
use std::net::TcpListener;

use rum_host::status::model::{PortStatus, State};
use rum_tests::client::{exchange, host};
use rum_tests::netns::in_netns;
use rum_tests::ports::{follow, until_port};
use rum_tests::rum::Setup;
use rustix::process::{Resource, Signal, getrlimit, setrlimit};

const FIRST: u16 = 20_000;
const MANY: u16 = 2000;
/// The inodes of all sockets that listen on the host, by port.
fn listening() -> BTreeSet<(String, String)> {
    let table = fs::read_to_string("/proc/thread-self/net/tcp").expect("/proc");
    let lines = table.lines().skip(1);
    let columns = lines.map(|line| line.split_whitespace().collect::<Vec<_>>());
    let listening = columns.filter(|columns| columns[3] == "0A");
    listening
        .map(|columns| (columns[1].to_owned(), columns[9].to_owned()))
        .collect()
}

/// Raises the limit of descriptors, which the guest program inherits.
fn many_descriptors() {
    let mut files = getrlimit(Resource::Nofile);
    files.current = files.maximum;
    setrlimit(Resource::Nofile, files).expect("below the hard limit");
}

#[test]
fn thousands_of_ports_outlive_the_agent() {
    many_descriptors();
    in_netns(|| {
        let setup = Setup::new();
        let (rum, mut guest) = setup.start_guest(&["--range", "20000-29999"]);
        guest.tell(&format!("many {FIRST} {MANY}"));
        let all_forwarded = || {
            follow(&setup, "all forwarded", |known| {
                let forwarded = known.ports().filter(|p| p.state == State::Forwarded);
                (forwarded.count() == usize::from(MANY)).then_some(())
            });
        };
        all_forwarded();
        let before = listening();
        assert!(before.len() >= usize::from(MANY));
        rum.stderr.wait("connected (events");
        rum.kill_agent();
        rum.stderr.wait("Agent lost");
        rum.stderr.wait_nth("connected (events", 2);
        all_forwarded();
        assert_eq!(listening(), before, "each port is bound by the same socket");
        // What it tells comes after all that it found when it came back.
        guest.tell("listen 127.0.0.1:29999 echo");
        until_port(&setup, "guest:29999", |p| p.state == State::Forwarded);
        assert_eq!(exchange(29_999, "one more").expect("echo"), "one more");
        assert!(listening().is_superset(&before));
        // What closes ends in one go, too.
        guest.tell(&format!("close-many {FIRST} {MANY}"));
        follow(&setup, "one is left", |known| {
            (known.ports().count() == 1).then_some(())
        });
        assert!(listening().is_disjoint(&before));
    });
}

/// `taken` host ports from [`FIRST`] on are somebody else's, and the guest listens on `listening`.
/// rum says so, is at once where one becomes free, and ends when it is told to.
fn taken_ports_keep_nobody_waiting(setup: &Setup, config: &str, taken: u16, listening: u16) {
    let take = |port| TcpListener::bind(host(port)).expect("a host port");
    let mut others: Vec<_> = (FIRST..FIRST + taken).map(take).collect();
    let range = format!("{FIRST}-{}", FIRST + taken - 1);
    let config = format!("[auto_ports]\nrange = \"{range}\"\nbind = \"127.0.0.1\"\n{config}\n");
    fs::write(setup.path().join("rum.toml"), config).expect("a file");
    let (mut rum, mut guest) = setup.start_guest(&[]);
    guest.tell(&format!("many {FIRST} {listening}"));
    let is_known = |port: &PortStatus| {
        let holder = port
            .reason
            .as_ref()
            .and_then(|reason| reason.holder.as_ref());
        port.state == State::Conflict && holder.is_some_and(|h| h.pid == std::process::id())
    };
    follow(setup, "all taken, and by whom", |known| {
        let taken = known.ports().filter(|port| is_known(port)).count();
        (taken == usize::from(listening)).then_some(())
    });
    drop(others.remove(usize::from(listening) / 2));
    follow(setup, "the free one in use", |known| {
        let mut ports = known.ports();
        ports
            .any(|port| port.state == State::Forwarded)
            .then_some(())
    });
    rum.signal(Signal::TERM);
    assert_eq!(rum.wait().code(), Some(143));
}

#[test]
fn thousands_of_taken_ports_are_waited_for_aside() {
    many_descriptors();
    in_netns(|| {
        let setup = Setup::new();
        taken_ports_keep_nobody_waiting(&setup, r#"on_conflict = "wait""#, 5000, 5000);
    });
}

#[test]
fn hundreds_of_ports_look_for_another_in_vain_aside() {
    many_descriptors();
    in_netns(|| {
        let setup = Setup::new();
        taken_ports_keep_nobody_waiting(&setup, r#"on_conflict = "next""#, 1000, 400);
    });
}
