//! Static forwards that lead to an address in the guest's networks: a container there, which is a network
//! namespace behind a veth, with a real server in it.

use std::fs::{self, File};
use std::io::Read;
use std::os::fd::AsRawFd;
use std::process::Stdio;

use rum_host::status::model::{PortStatus, State};
use rum_tests::client::{connect, exchange, host};
use rum_tests::device::Defects;
use rum_tests::guest::Guest;
use rum_tests::ip::ip;
use rum_tests::machine::Machine;
use rum_tests::netns::{self, in_netns};
use rum_tests::ports::until_port;
use rum_tests::rum::{Rum, Setup, below};
use rum_tests::wait::until;

const CONFIG: &str = r#"
[[ports]]
host = 8080
guest = "172.17.0.2:80"
[[ports]]
host = 8081
guest = "[fd00::2]:80"
[auto_ports]
range = "5000-6000"
"#;
const V4: &str = "static:127.0.0.1:8080";
const V6: &str = "static:127.0.0.1:8081";

/// The network of a container.
struct Container {
    namespace: File,
}

impl Container {
    /// One that is reached from `guest` alone.
    fn of(guest: &File) -> Self {
        let namespace = in_netns(|| File::open("/proc/thread-self/ns/net"));
        let namespace = namespace.expect("the thread's network namespace");
        let path = format!("/proc/{}/fd/{}", std::process::id(), namespace.as_raw_fd());
        netns::inside(guest, || {
            ip(&format!(
                "link add c0 type veth peer name eth0 netns {path}"
            ));
            ip("addr add 172.17.0.1/24 dev c0");
            ip("addr add fd00::1/64 dev c0 nodad");
            ip("link set c0 up");
        });
        netns::inside(&namespace, || {
            ip("addr add 172.17.0.2/24 dev eth0");
            ip("addr add fd00::2/64 dev eth0 nodad");
            ip("link set eth0 up");
        });
        Self { namespace }
    }

    /// A server in it that sends back what it gets, on port 80 of all its addresses.
    fn serve(&self, setup: &Setup) -> Rum {
        let mut socat = setup.command("socat");
        socat.args(["TCP6-LISTEN:80,ipv6only=0,reuseaddr,fork", "PIPE"]);
        socat.stdin(Stdio::null()).stdout(Stdio::null());
        netns::inside(&self.namespace, || setup.spawn(&mut socat))
    }
}

fn until_shown(setup: &Setup, id: &str, state: State, code: Option<&str>) -> PortStatus {
    until_port(setup, id, |port| {
        let reason = port.reason.as_ref().map(|reason| reason.code.as_str());
        (port.state, reason) == (state, code)
    })
}

/// Why the last client of `id` was reset, once it was.
fn refused(setup: &Setup, id: &str) -> String {
    let port = until_shown(setup, id, State::Pending, Some("refused"));
    port.reason.map(|reason| reason.message).unwrap_or_default()
}

fn is_reset(port: u16) {
    connect(port).read(&mut [0]).expect_err("a reset");
}

fn is_served(port: u16) {
    let text = "0123456789abcdef".repeat(1 << 12);
    until("an echo", || {
        exchange(port, &text).ok().filter(|echo| *echo == text)
    });
}

/// What a `rum up` of `setup`, with [`CONFIG`], does for a `guest` whose network is `namespace`.
fn leads_to_a_container(setup: &Setup, guest: &mut Guest, namespace: &File) {
    for id in [V4, V6] {
        until_shown(setup, id, State::Forwarded, Some("not-watched"));
    }
    // The guest does not know that network.
    is_reset(8080);
    let why = refused(setup, V4);
    assert!(
        why.contains("the guest does not reach that address"),
        "{why}"
    );

    let container = Container::of(namespace);
    is_reset(8080);
    until("that nothing listens", || {
        refused(setup, V4)
            .contains("nothing listens there")
            .then_some(())
    });
    let server = container.serve(setup);
    for (port, id, ip) in [(8080, V4, "172.17.0.2"), (8081, V6, "fd00::2")] {
        is_served(port);
        let shown = until_shown(setup, id, State::Forwarded, None);
        assert_eq!(
            (shown.port, &shown.guest_addresses[..]),
            (80, &[ip.to_owned()][..])
        );
        assert!(
            shown.connections.total > 0 && shown.bytes.to_host > 0,
            "{shown:?}"
        );
    }

    // The guest's own port of that number is another one, and nobody's wish.
    drop(server);
    guest.tell("listen 127.0.0.1:80 echo");
    for port in [8080, 8081] {
        until("a reset", || connect(port).read(&mut [0]).err());
    }
    let why = refused(setup, V4);
    assert!(why.ends_with("because nothing listens there"), "{why}");
    let _server = container.serve(setup);
    is_served(8080);
    until_shown(setup, V4, State::Forwarded, None);

    // It is wished for, and then the container's again.
    let file = setup.path().join("rum.toml");
    let config = fs::read_to_string(&file).expect("its configuration");
    let own = config.replace("\"172.17.0.2:80\"", "80");
    guest.tell("close 127.0.0.1:80");
    guest.tell("listen 127.0.0.1:80 reset");
    fs::write(&file, own).expect("a file");
    until_port(setup, V4, |port| port.destination.is_none());
    until("the guest's own", || exchange(8080, "?").err());
    fs::write(&file, config).expect("a file");
    until_port(setup, V4, |port| {
        port.destination.as_deref() == Some("172.17.0.2:80")
    });
    is_served(8080);
    let said = setup.rum(["ports"]).output().expect("rum starts");
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    let line = said
        .lines()
        .find(|line| line.starts_with("80\tforwarded\t127.0.0.1:8080\t"));
    assert!(
        line.is_some_and(|line| line.contains("\t172.17.0.2\t")),
        "{said}"
    );
    let waited = setup.rum(["wait", "8080", "--timeout", "30s"]).output();
    let waited = waited.expect("rum starts");
    assert_eq!(
        String::from_utf8_lossy(&waited.stdout),
        format!("{}\n", host(8080))
    );
}

#[test]
fn a_namespace_guest_leads_to_a_container_of_its_own() {
    in_netns(|| {
        let setup = Setup::new();
        fs::write(setup.path().join("rum.toml"), CONFIG).expect("a file");
        let (rum, mut guest) = setup.start_guest(&[]);
        rum.stderr
            .wait("Forwarding 127.0.0.1:8080 → guest:172.17.0.2:80");
        rum.stderr.wait("connected (events");
        let program = below(rum.child.id(), "rum-agent").expect("its agent");
        leads_to_a_container(&setup, &mut guest, &netns::of(program));
    });
}

#[test]
fn a_guest_behind_a_device_leads_to_a_container_of_its_own() {
    in_netns(|| {
        let mut machine = Machine::boot(Defects::default(), CONFIG);
        let _agent = machine.start_agent(&[]);
        let rum = machine.start_rum();
        rum.stderr.wait("connected (events");
        let namespace = netns::of(machine.program.child.id());
        leads_to_a_container(&machine.setup.clone(), &mut machine.guest, &namespace);
    });
}
