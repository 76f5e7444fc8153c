#![allow(clippy::unwrap_used)]

use rum_shared::listener::BoundAddr;

use super::*;

fn bound(ip: &str, dual_stack: bool) -> BoundAddr {
    BoundAddr::new(ip.parse().unwrap(), dual_stack)
}

/// Bound to `lo`, which everybody has.
fn on_lo(ip: &str) -> BoundAddr {
    BoundAddr {
        device: 1,
        ..bound(ip, false)
    }
}

fn listener(addresses: &[BoundAddr]) -> Listener {
    Listener {
        addresses: addresses.to_vec(),
        ..Listener::bare(80)
    }
}

fn route(ip: &str, device: u32) -> Route {
    Route {
        ip: ip.parse().unwrap(),
        device,
    }
}

#[test]
fn loopback_comes_first_where_the_listener_takes_it() {
    for (addresses, expected) in [
        (vec![bound("0.0.0.0", false)], vec![route("127.0.0.1", 0)]),
        (vec![bound("::", false)], vec![route("::1", 0)]),
        (
            vec![bound("::", true)],
            vec![route("127.0.0.1", 0), route("::1", 0)],
        ),
        (vec![bound("::1", false)], vec![route("::1", 0)]),
        (
            vec![bound("::ffff:127.0.0.1", false)],
            vec![route("127.0.0.1", 0)],
        ),
        (vec![bound("127.0.0.2", false)], vec![route("127.0.0.2", 0)]),
        (
            vec![bound("172.17.0.1", false), bound("::1", false)],
            vec![route("::1", 0), route("172.17.0.1", 0)],
        ),
        // Whoever is bound to an interface may not take what comes from another.
        (
            vec![on_lo("0.0.0.0"), bound("10.0.0.1", false)],
            vec![route("10.0.0.1", 0), route("127.0.0.1", 1)],
        ),
        (vec![on_lo("fe80::1")], vec![route("fe80::1", 1)]),
        (vec![bound("fe80::1", false)], vec![]),
        (vec![], vec![]),
    ] {
        let found = routes(Some(&listener(&addresses)));
        assert_eq!(found, expected, "{addresses:?}");
    }
    assert_eq!(routes(None).len(), 2);
}

#[test]
fn what_cannot_be_reached_says_why() {
    let gone = BoundAddr {
        device: u32::MAX >> 1,
        ..bound("0.0.0.0", false)
    };
    for (addresses, why) in [
        (vec![], None),
        (vec![bound("127.0.0.1", false)], None),
        (vec![bound("::", true), gone], None),
        (vec![bound("127.9.9.9", false)], None),
        (vec![on_lo("127.0.0.1")], None),
        // TEST-NET-1 (RFC 5737).
        (
            vec![bound("192.0.2.1", false)],
            Some("the guest does not have the address 192.0.2.1"),
        ),
        (
            vec![on_lo("192.0.2.1")],
            Some("lo does not have the address 192.0.2.1"),
        ),
        (vec![gone], Some("its network interface is gone")),
        (
            vec![bound("fe80::1", false)],
            Some("it listens at a link-local address without an interface"),
        ),
    ] {
        let mut one = listener(&addresses);
        complete(&mut one);
        assert_eq!(one.unreachable.as_deref(), why, "{addresses:?}");
    }
    let mut one = listener(&[on_lo("127.0.0.1")]);
    complete(&mut one);
    let lo = Device {
        index: 1,
        name: "lo".to_owned(),
    };
    assert_eq!(one.devices, [lo]);
}

#[test]
fn those_that_loopback_does_not_reach_are_tried_again_in_turn() {
    let mut reach = Reach::default();
    let mut change = Change {
        opened: (1..=100u16)
            .map(|port| Listener {
                port,
                ..listener(&[bound("192.0.2.1", false)])
            })
            .collect(),
        ..Change::default()
    };
    change.opened.push(Listener::bare(443));
    reach.complete(&mut change);
    assert_eq!(reach.elsewhere.len(), 100);
    let mut told = change.opened.clone();
    let find = |told: &[Listener], port| told.iter().position(|l| l.port == port).unwrap();
    let found = reach.check(|port| told.get(find(&change.opened, port)));
    assert!(found.is_empty(), "{found:?}");
    // As if the address had been there when the host was told.
    told[find(&change.opened, 90)].unreachable = None;
    let found: Vec<u16> = (0..4)
        .flat_map(|_| reach.check(|port| told.get(find(&change.opened, port))))
        .collect();
    assert_eq!(found, [90]);
    change.closed = (1..=100).collect();
    change.opened.clear();
    reach.complete(&mut change);
    assert!(reach.elsewhere.is_empty());
}
