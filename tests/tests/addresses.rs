//! Host addresses that come and go while ports are bound there, as those of a VPN or a bridge do: what is
//! shown, what is said, and that clients are served again without anybody's doing.

use std::net::{SocketAddr, TcpStream};

use rum_host::status::model::{PortStatus, State};
use rum_tests::client::{host, talk};
use rum_tests::ip::ip;
use rum_tests::netns::in_netns;
use rum_tests::ports::until_port;
use rum_tests::rum::{Rum, Setup};
use rum_tests::wait::until;

/// What a new client at `at` gets for "on".
fn asks(at: &str) -> Option<String> {
    let at: SocketAddr = at.parse().expect("an address");
    talk(TcpStream::connect(at).ok()?, "on").ok()
}

fn code(port: &PortStatus) -> Option<&str> {
    port.reason.as_ref().map(|reason| reason.code.as_str())
}

fn until_state(setup: &Setup, state: State, reason: Option<&str>) {
    until_port(setup, "guest:5000", |port| {
        port.state == state && code(port) == reason
    });
}

/// How many lines have `text`.
fn said(up: &Rum, text: &str) -> usize {
    let lines = up.stderr.all();
    lines.iter().filter(|line| line.contains(text)).count()
}

/// An interface that is there on every machine.
const MAKE: &str = "link add rum0 type veth peer name rum1";
const GONE: &str = "This machine no longer has the address 192.0.2.1: 2 forwards there wait for it";
const BACK: &str = "This machine has the address 192.0.2.1 again: its forwards serve";

#[test]
fn an_address_that_goes_is_said_and_serves_again_when_it_is_back() {
    in_netns(|| {
        ip(MAKE);
        ip("link set rum0 up");
        ip("addr add 192.0.2.1/24 dev rum0");
        let setup = Setup::new();
        let (up, mut guest) = setup.start_guest(&["--range", "5000-6000", "--bind", "192.0.2.1"]);
        guest.tell("listen 127.0.0.1:5000 echo");
        guest.tell("listen 127.0.0.1:5001 echo");
        up.stderr.wait("Auto-forwarding 192.0.2.1:5000");
        up.stderr.wait("Auto-forwarding 192.0.2.1:5001");
        assert_eq!(asks("192.0.2.1:5000").as_deref(), Some("on"));
        let ways = [
            ("addr del 192.0.2.1/24 dev rum0", ""),
            ("link del rum0", MAKE),
        ];
        for (number, (go, make)) in ways.into_iter().enumerate() {
            ip(go);
            up.stderr.wait_nth(GONE, number + 1);
            until_state(&setup, State::Pending, Some("no-host-address"));
            if !make.is_empty() {
                ip(make);
                ip("link set rum0 up");
            }
            ip("addr add 192.0.2.1/24 dev rum0");
            assert_eq!(asks("192.0.2.1:5000").as_deref(), Some("on"), "at once");
            up.stderr.wait_nth(BACK, number + 1);
            until_state(&setup, State::Forwarded, None);
        }
        assert_eq!((said(&up, "192.0.2.1:5000"), said(&up, "Stopped")), (1, 0));
    });
}

#[test]
fn an_address_that_is_not_there_yet_is_waited_for() {
    in_netns(|| {
        ip(MAKE);
        ip("link set rum0 up");
        let setup = Setup::new();
        let (up, mut guest) = setup.start_guest(&["--range", "5000-6000", "--bind", "192.0.2.1"]);
        guest.tell("listen 127.0.0.1:5000 echo");
        up.stderr.wait(
            "Not forwarding guest:5000 yet: this machine does not have the address 192.0.2.1; \
             it forwards once it does",
        );
        until_state(&setup, State::Pending, Some("no-host-address"));
        ip("addr add 192.0.2.1/24 dev rum0");
        up.stderr.wait("Auto-forwarding 192.0.2.1:5000");
        assert_eq!(asks("192.0.2.1:5000").as_deref(), Some("on"));
        until_state(&setup, State::Forwarded, None);
        ip("addr del 192.0.2.1/24 dev rum0");
        up.stderr.wait("1 forward there waits for it");
        assert_eq!(
            said(&up, "again: its forwards serve"),
            0,
            "nobody missed it before"
        );
    });
}

#[test]
fn an_address_beside_that_goes_is_a_reason() {
    in_netns(|| {
        ip(MAKE);
        ip("link set rum0 up");
        ip("addr add 192.0.2.1/24 dev rum0");
        let setup = Setup::new();
        let config = "[auto_ports]\nrange = \"5000-6000\"\nbind = [\"127.0.0.1\", \"192.0.2.1\"]\n";
        std::fs::write(setup.path().join("rum.toml"), config).expect("a file");
        let (up, mut guest) = setup.start_guest(&[]);
        guest.tell("listen 127.0.0.1:5000 echo");
        up.stderr.wait("Auto-forwarding 127.0.0.1:5000");
        let served = || asks("192.0.2.1:5000");
        until("the address beside it", served);
        ip("addr del 192.0.2.1/24 dev rum0");
        until_state(&setup, State::Forwarded, Some("no-host-address"));
        let here = asks(&host(5000).to_string());
        assert_eq!(here.as_deref(), Some("on"));
        ip("addr add 192.0.2.1/24 dev rum0");
        until_state(&setup, State::Forwarded, None);
    });
}
