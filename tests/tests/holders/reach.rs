//! Listeners that loopback does not reach are served where they are, or not said to be forwarded.

use rum_tests::netns::in_netns;
use rum_tests::rum::Setup;

use super::support::{Stage, read_from};

const RANGE: &str = "[auto_ports]\nrange = \"5000-5009\"\n";

/// Listens at ADDRESS on PORT, bound to interface DEVICE unless that is `-`, with the socket option
/// IP_FREEBIND, and tells every client its name.
const SERVE: &str = "import socket, sys
address, port, device, text = sys.argv[1:]
s = socket.socket(socket.AF_INET6 if ':' in address else socket.AF_INET)
s.setsockopt(0, 15, 1)
scope = 0 if device == '-' else socket.if_nametoindex(device)
if scope and not address.startswith('fe80'):
    s.setsockopt(socket.SOL_SOCKET, 25, device.encode() + b'\\0')
if ':' in address:
    s.setsockopt(41, 26, 1)
    s.bind((address, int(port), 0, scope if address.startswith('fe80') else 0))
else:
    s.bind((address, int(port)))
s.listen()
while True:
    c, _ = s.accept()
    c.sendall(text.encode())
    c.close()
";

pub fn what_is_bound_to_an_interface_is_served_through_it(setup: Setup) {
    in_netns(|| {
        let mut stage = Stage::new(setup, RANGE);
        stage.network(
            "ip link add eth7 type veth peer name eth8
            ip addr add 10.9.0.1/24 dev eth7
            ip addr add fd00:9::1/64 dev eth7 nodad
            ip addr add fe80::9/64 dev eth7 nodad
            ip link set eth8 up
            ip link set eth7 up",
        );
        for (port, address, device) in [
            (5000, "10.9.0.1", "-"),
            (5001, "0.0.0.0", "eth7"),
            (5002, "10.9.0.1", "eth7"),
            (5003, "fe80::9", "eth7"),
            (5004, "fd00:9::1", "eth7"),
            (5005, "::", "eth7"),
            (5006, "0.0.0.0", "lo"),
        ] {
            let name = format!("{address}%{device}");
            stage.python(
                "serve.py",
                SERVE,
                &[address, &port.to_string(), device, &name],
            );
            let shown = stage.until(port, &name, |port| port["state"] == "forwarded");
            let shown = shown["guest_addresses"][0].as_str().unwrap_or_default();
            assert_eq!(shown, name.trim_end_matches("%-"));
            assert_eq!(read_from(port), name, "{port}");
        }
        // The other end of the cable has no address, so nothing can be told to go there.
        stage.python("serve.py", SERVE, &["0.0.0.0", "5007", "eth8", "nowhere"]);
        let shown = stage.until(5007, "a reason", |port| port["reason"].is_object());
        assert_eq!(shown["state"], "pending");
        assert_eq!(shown["reason"]["code"], "unreachable");
        let message = shown["reason"]["message"].as_str().expect("a text");
        assert!(
            message.contains("bound to eth8, which has no address"),
            "{message}"
        );
        stage.network("ip addr add 10.10.0.1/24 dev eth8");
        stage.until(5007, "an address", |port| port["state"] == "forwarded");
        assert_eq!(read_from(5007), "nowhere");
    });
}

pub fn an_address_that_is_not_there_is_not_forwarded_until_it_is(setup: Setup) {
    in_netns(|| {
        let mut stage = Stage::new(setup, RANGE);
        stage.python("serve.py", SERVE, &["192.0.2.7", "5000", "-", "free"]);
        let shown = stage.until(5000, "a reason", |port| port["reason"].is_object());
        assert_eq!(shown["state"], "pending");
        assert_eq!(shown["host"], serde_json::Value::Null);
        let message = shown["reason"]["message"].as_str().expect("a text");
        assert!(
            message.ends_with("the guest does not have the address 192.0.2.7"),
            "{message}"
        );
        assert!(read_from(5000).contains("refused"), "nothing is bound");
        stage.network("ip addr add 192.0.2.7/32 dev lo");
        stage.until(5000, "the address", |port| port["state"] == "forwarded");
        assert_eq!(read_from(5000), "free");
        stage.network("ip addr del 192.0.2.7/32 dev lo");
        let gone = stage.until(5000, "no address", |port| port["state"] == "pending");
        assert_eq!(gone["reason"]["code"], "unreachable");
    });
}
