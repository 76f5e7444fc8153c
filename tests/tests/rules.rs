//! Rules of `rum.toml`, end to end: what is excluded, moved, ignored and labelled.

use std::fs;
use std::io::ErrorKind;
use std::net::TcpStream;
use std::process::{Child, Stdio};

use rum_host::status::model::State;
use rum_tests::client::{exchange, host};
use rum_tests::guest::Guest;
use rum_tests::netns::in_netns;
use rum_tests::ports::until_port;
use rum_tests::rum::{Rum, Setup, binary};

fn refused(port: u16) -> bool {
    match TcpStream::connect(host(port)) {
        Err(error) => error.kind() == ErrorKind::ConnectionRefused,
        Ok(_) => false,
    }
}

fn up(config: &str) -> (Setup, Rum, Guest) {
    let setup = Setup::new();
    fs::write(setup.path().join("rum.toml"), config).expect("a file");
    let (rum, guest) = setup.start_guest(&[]);
    // From now on there is a guest for `rum exec`.
    rum.stderr.wait("connected");
    (setup, rum, guest)
}

/// The guest program once more, in the guest, under another name.
fn exec_as(setup: &Setup, name: &str) -> (Child, Guest) {
    let program = setup.path().join(name);
    fs::copy(binary("guest"), &program).expect("a copy");
    let mut command = setup.rum(["exec", "--"]);
    command.arg(program);
    let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
    let mut child = child.expect("exec starts");
    let guest = Guest::of(&mut child);
    (child, guest)
}

#[test]
fn excluded_and_ignored_ports_stay_closed_and_say_why() {
    in_netns(|| {
        let (setup, rum, mut guest) = up("[auto_ports]
range = \"5000-6000\"
exclude = \"5001,5500-5599\"
[[auto_ports.rule]]
guest = \"5002-5003\"
action = \"ignore\"
label = \"metrics\"
");
        for port in [5001, 5550, 5002, 5003, 5004] {
            guest.tell(&format!("listen 127.0.0.1:{port} echo"));
        }
        // The last one is forwarded, and was seen after the others.
        rum.stderr.wait("Auto-forwarding 127.0.0.1:5004");
        for port in [5001, 5550, 5002, 5003] {
            assert!(refused(port), "{port}");
        }
        let reason = |id| {
            let port = until_port(&setup, id, |port| port.state == State::Ignored);
            let reason = port.reason.expect("a reason");
            (reason.code, reason.message, port.label)
        };
        let (code, message, _) = reason("guest:5550");
        assert_eq!(code, "excluded");
        assert_eq!(message, "excluded by `exclude = \"5500-5599\"`");
        let (code, message, label) = reason("guest:5003");
        assert_eq!(code, "rule");
        assert_eq!(message, "rule 1 ignores it (guest = \"5002-5003\")");
        assert_eq!(label.as_deref(), Some("metrics"));
    });
}

#[test]
fn a_rule_moves_ports_to_its_own_and_names_them() {
    in_netns(|| {
        let (setup, rum, mut guest) = up("[[ports]]
host = 8080
guest = 5000
label = \"front\\u001b[31m\"
[auto_ports]
range = \"5000-6000\"
[[auto_ports.rule]]
guest = \"5000-5100\"
host = 15000
bind = \"127.0.0.2\"
label = \"back\"
");
        guest.tell("listen 127.0.0.1:5007 echo");
        rum.stderr
            .wait("Auto-forwarding 127.0.0.2:15007 → guest:5007");
        TcpStream::connect("127.0.0.2:15007").expect("forwarded");
        assert!(refused(5007));
        guest.tell("listen 127.0.0.1:5101 echo");
        rum.stderr.wait("Auto-forwarding 127.0.0.1:5101");
        assert_eq!(exchange(5101, "here").expect("echo"), "here");
        let forwarded = |id| until_port(&setup, id, |port| port.state == State::Forwarded);
        let moved = forwarded("guest:5007");
        assert_eq!(moved.label.as_deref(), Some("back"));
        assert_eq!(moved.host.as_deref(), Some("127.0.0.2:15007"));
        assert_eq!(forwarded("guest:5101").label, None);
        // What the file says is cleaned, too.
        let front = until_port(&setup, "static:127.0.0.1:8080", |_| true);
        assert_eq!(front.label.as_deref(), Some("front\u{fffd}[31m"));
    });
}

#[test]
fn a_rule_goes_by_the_name_of_the_process() {
    in_netns(|| {
        let (setup, rum, mut other) = up("[auto_ports]
range = \"5000-6000\"
[[auto_ports.rule]]
process = \"postgres*\"
guest = \"5000-5100\"
host = 15000
label = \"database\"
[[auto_ports.rule]]
process = \"secret-?\"
action = \"ignore\"
");
        let (mut child, mut postgres) = exec_as(&setup, "postgres-main");
        let (mut hidden, mut secret) = exec_as(&setup, "secret-1");
        for round in 1..=3 {
            postgres.tell("listen 127.0.0.1:5000 echo");
            rum.stderr
                .wait_nth("Auto-forwarding 127.0.0.1:15000 → guest:5000", round);
            assert_eq!(exchange(15_000, "named").expect("echo"), "named");
            postgres.tell("close 127.0.0.1:5000");
            rum.stderr.wait_nth("Stopped forwarding 5000", round);
        }
        postgres.tell("listen 127.0.0.1:5000 echo");
        let row = until_port(&setup, "guest:5000", |port| port.state == State::Forwarded);
        assert_eq!(row.label.as_deref(), Some("database"));
        // The same rule is not for others, and the next one is for no other name.
        other.tell("listen 127.0.0.1:5001 echo");
        rum.stderr.wait("Auto-forwarding 127.0.0.1:5001");
        secret.tell("listen 127.0.0.1:5200 echo");
        let row = until_port(&setup, "guest:5200", |port| port.state == State::Ignored);
        let message = row.reason.expect("a reason").message;
        assert_eq!(message, "rule 2 ignores it (process = \"secret-?\")");
        assert!(refused(5200));
        drop((postgres, secret));
        child.wait().expect("a child");
        hidden.wait().expect("a child");
    });
}
