#![allow(clippy::unwrap_used)]
use std::net::SocketAddr;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use rum_shared::bytes::channel::DialStatus;
use rum_shared::listener::{BoundAddr, Device, Holder, Process};

use super::*;
use crate::forward::Refusal;
use crate::forward::bind_failure::Hold;
use crate::plan::{OnConflict, Want};

const PORT: GuestPort = GuestPort(5000);

fn host(port: u16) -> HostAddr {
    HostAddr(SocketAddr::from(([127, 0, 0, 1], port)))
}

fn listener() -> Listener {
    let addr = |ip: &str, dual_stack| BoundAddr::new(ip.parse().unwrap(), dual_stack);
    Listener {
        addresses: vec![
            addr("127.0.0.1", false),
            addr("::", true),
            addr("::", false),
        ],
        uid: 33,
        inode: 9,
        process: Some(Process {
            pid: 12,
            name: "nginx".into(),
            ..Process::default()
        }),
        seen_ns: 5_200_000,
        hinted_ns: Some(5_000_000),
        ..Listener::bare(5000)
    }
}

fn forward() -> Verdict {
    Verdict::Forward(Want {
        guest: Destination::own(5000),
        host: host(5000),
        binds: host(5000).0.ip().into(),
        on_conflict: OnConflict::Wait,
    })
}

fn stale() -> Knowledge {
    Knowledge::Stale {
        since: Instant::now(),
        reason: "reset".into(),
    }
}

fn facts<'a>(listener: Option<&'a Listener>, knowledge: &'a Knowledge) -> Facts<'a> {
    Facts {
        port: PORT,
        listener,
        verdict: listener.map(|_| forward()),
        label: None,
        ranges: Some("5000-6000".into()),
        forwards: Vec::new(),
        draining: Vec::new(),
        knowledge,
    }
}

fn bound(key: Key, stats: &Stats) -> Forward<'_> {
    Forward {
        key,
        guest: Destination::own(5000),
        standing: Standing::Bound {
            at: host(5000),
            stats,
            took: Some(Duration::from_micros(400)),
            beside: vec![],
            lacks: None,
        },
        label: Some("web"),
    }
}

/// State, and code, message and hint of the only row.
fn state_of(facts: &Facts<'_>) -> (State, String) {
    let [row] = &rows(facts)[..] else {
        panic!("{:?}", rows(facts));
    };
    let text = row.reason.as_ref().map_or(String::new(), |r| {
        let hint = r.hint.as_deref().unwrap_or("-");
        format!("{} | {} | {hint}", r.code, r.message)
    });
    (row.state, text)
}

#[test]
fn several_programs_on_one_port_are_named_and_the_one_that_is_reached() {
    let mut listener = listener();
    listener.addresses[0].device = 3;
    listener.devices = vec![Device {
        index: 3,
        name: "eth0".into(),
    }];
    listener.others = vec![Holder {
        address: listener.addresses[0],
        process: Process {
            pid: 15,
            name: "node".into(),
            ..Process::default()
        },
    }];
    let stats = Stats::default();
    let mut facts = facts(Some(&listener), &Knowledge::Current);
    facts.forwards = vec![bound(Key::Auto(PORT), &stats)];
    let row = rows(&facts).remove(0);
    assert_eq!(row.state, State::Forwarded);
    assert_eq!(row.guest_addresses[0], "127.0.0.1%eth0");
    let reason = row.reason.expect("a reason");
    assert_eq!(reason.code, "several-programs");
    assert_eq!(
        reason.message,
        "nginx (pid 12) is reached; node (pid 15) listens on the same port at 127.0.0.1%eth0"
    );
    let other = &row.other_holders[0];
    assert_eq!((&*other.address, other.process.pid), ("127.0.0.1%eth0", 15));
}

/// Docker starts a process for each address of a published port.
#[test]
fn another_proxy_of_the_same_container_is_no_other_program() {
    let proxy = |pid: u32, container: &str| Process {
        pid,
        name: "docker-proxy".into(),
        program: "docker-proxy".into(),
        command: format!("docker-proxy -container-ip {container} -container-port 80"),
        ..Process::default()
    };
    let mut listener = listener();
    listener.process = Some(proxy(20, "172.17.0.2"));
    let other = |process| Holder {
        address: listener.addresses[0],
        process,
    };
    listener.others = vec![other(proxy(21, "172.17.0.2"))];
    let stats = Stats::default();
    let shown = |listener: &Listener| {
        let mut facts = facts(Some(listener), &Knowledge::Current);
        facts.forwards = vec![bound(Key::Auto(PORT), &stats)];
        rows(&facts).remove(0)
    };
    let row = shown(&listener);
    assert_eq!((row.reason, row.other_holders.len()), (None, 1));
    listener.others.push(other(proxy(22, "172.17.0.3")));
    let message = shown(&listener).reason.expect("a reason").message;
    assert_eq!(
        message,
        "docker-proxy (pid 20) is reached; docker-proxy (pid 22) listens on the same port at 127.0.0.1"
    );
}

#[test]
fn what_nothing_can_connect_to_is_not_forwarded() {
    let listener = Listener {
        unreachable: Some("the guest does not have the address 10.0.0.1".into()),
        ..listener()
    };
    let stats = Stats::default();
    let mut bound_facts = facts(Some(&listener), &Knowledge::Current);
    bound_facts.forwards = vec![bound(Key::Static(host(8080)), &stats)];
    let mut facts = facts(Some(&listener), &Knowledge::Current);
    let why = listener.unreachable.clone().expect("it");
    facts.verdict = Some(Verdict::Unreachable { why });
    for facts in [bound_facts, facts] {
        let row = rows(&facts).remove(0);
        assert_eq!(row.state, State::Pending);
        let reason = row.reason.expect("a reason");
        assert_eq!(reason.code, "unreachable");
        assert!(
            reason
                .message
                .ends_with("the guest does not have the address 10.0.0.1")
        );
    }
}

#[test]
fn forwarded_is_bound_and_listened_on() {
    let (listener, stats) = (listener(), Stats::default());
    stats.active.store(2, Relaxed);
    stats.bytes.from_tcp.store(10, Relaxed);
    let mut facts = facts(Some(&listener), &Knowledge::Current);
    facts.forwards.push(bound(Key::Auto(PORT), &stats));
    let row = &rows(&facts)[0];
    assert_eq!((row.state, &row.reason), (State::Forwarded, &None));
    assert_eq!(row.id, "guest:5000");
    assert_eq!(row.host.as_deref(), Some("127.0.0.1:5000"));
    assert_eq!(row.url.as_deref(), Some("http://127.0.0.1:5000/"));
    assert_eq!(row.guest_addresses, ["127.0.0.1", "*", "::"]);
    assert_eq!((row.connections.now, row.bytes.to_guest), (2, 10));
    assert_eq!((row.detected_us, row.forwarded_us), (Some(200), Some(400)));
    assert_eq!(row.uid, Some(33));
    assert_eq!(row.process.as_ref().unwrap().name, "nginx");
    assert_eq!(row.label.as_deref(), Some("web"));
}

#[test]
fn a_forward_that_cannot_accept_says_so() {
    let (listener, stats) = (listener(), Stats::default());
    stats.exhausted.store(true, Relaxed);
    let mut facts = facts(Some(&listener), &Knowledge::Current);
    facts.forwards.push(bound(Key::Auto(PORT), &stats));
    let (state, text) = state_of(&facts);
    assert_eq!(state, State::Forwarded);
    assert_eq!(
        text,
        "exhausted | connections wait: rum has no file descriptors or memory left | \
         close some connections, or start rum with a higher `ulimit -n`"
    );
}

#[test]
fn what_the_last_client_met_is_told_until_another_meets_something_else() {
    let (listener, stats) = (listener(), Stats::default());
    let state_of = |listener| {
        let mut facts = facts(listener, &Knowledge::Current);
        facts.forwards.push(bound(Key::Static(host(5000)), &stats));
        let (state, text) = state_of(&facts);
        (
            state,
            text.split(" | ").next().unwrap_or_default().to_owned(),
        )
    };
    let refused = Err(Refusal::Agent(DialStatus::Refused));
    assert_eq!(state_of(None), (State::Pending, "not-listening".into()));
    stats.ended(stats.turn(), Ok(()));
    assert_eq!(state_of(None), (State::Forwarded, "led-elsewhere".into()));
    stats.ended(stats.turn(), refused);
    assert_eq!(state_of(None), (State::Pending, "not-listening".into()));
    assert_eq!(
        state_of(Some(&listener)),
        (State::Forwarded, "refused".into())
    );
    stats.ended(stats.turn(), Ok(()));
    assert_eq!(state_of(Some(&listener)), (State::Forwarded, String::new()));
    // The program ends: its success says nothing about the next one, nor does a late answer.
    let before = stats.turn();
    stats.changed_hands();
    assert_eq!(state_of(None), (State::Pending, "not-listening".into()));
    stats.ended(before, Ok(()));
    assert_eq!(state_of(None), (State::Pending, "not-listening".into()));
    assert_eq!(stats.refused.load(Relaxed), 1);
}

#[test]
fn of_an_address_only_the_last_client_tells() {
    let (listener, stats) = (listener(), Stats::default());
    let guest = Destination::from(SocketAddr::from(([172, 17, 0, 2], 5000)));
    let row = |knowledge| {
        let mut facts = facts(Some(&listener), knowledge);
        let key = Key::Static(host(5000));
        facts.verdict = Some(Verdict::OutOfRange);
        facts.forwards.push(Forward {
            guest,
            ..bound(key, &stats)
        });
        // The listener on that port of the guest itself has its own row.
        let [own, forward] = <[PortStatus; 2]>::try_from(rows(&facts)).unwrap();
        assert_eq!((own.state, own.destination), (State::OutOfRange, None));
        forward
    };
    let forward = row(&Knowledge::Current);
    assert_eq!(forward.destination.as_deref(), Some("172.17.0.2:5000"));
    assert_eq!(forward.guest_addresses, ["172.17.0.2"]);
    assert_eq!(
        (forward.process, forward.uid, forward.detected_us),
        (None, None, None)
    );
    let state_of = |knowledge| {
        let row = row(knowledge);
        let reason = row.reason.map(|reason| (reason.code, reason.message));
        (row.state, reason.unwrap_or_default())
    };
    let (state, (code, _)) = state_of(&Knowledge::Current);
    assert_eq!((state, &*code), (State::Forwarded, "not-watched"));
    stats.ended(stats.turn(), Ok(()));
    let served = (State::Forwarded, Default::default());
    assert_eq!(state_of(&Knowledge::Current), served);
    for (status, why) in [
        (DialStatus::Refused, "nothing listens there"),
        (DialStatus::Denied, "older than this rum"),
    ] {
        stats.ended(stats.turn(), Err(Refusal::Agent(status)));
        let (state, (code, message)) = state_of(&Knowledge::Current);
        assert_eq!((state, &*code), (State::Pending, "refused"));
        assert!(message.contains(why), "{message}");
    }
    let (state, (code, _)) = state_of(&Knowledge::Awaited(None));
    assert_eq!((state, &*code), (State::Pending, "agent-awaited"));
    let (state, (code, _)) = state_of(&stale());
    assert_eq!((state, &*code), (State::Lost, "agent-lost"));
}

#[test]
fn bound_is_not_enough() {
    let (listener, stats) = (listener(), Stats::default());
    let is_static = Key::Static(host(5000));
    for (listener, knowledge, state, code) in [
        (None, Knowledge::Current, State::Pending, "not-listening"),
        (
            None,
            Knowledge::Awaited(None),
            State::Pending,
            "agent-awaited",
        ),
        (
            Some(&listener),
            stale(),
            State::Lost,
            "agent-lost | the agent is lost: reset",
        ),
        (
            None,
            Knowledge::Forgotten {
                reason: "reset".into(),
            },
            State::Lost,
            "agent-lost",
        ),
    ] {
        let mut facts = facts(listener, &knowledge);
        facts.forwards.push(bound(is_static, &stats));
        let (is, text) = state_of(&facts);
        assert_eq!(is, state);
        assert!(text.starts_with(code), "{text}");
        assert_eq!(rows(&facts)[0].id, "static:127.0.0.1:5000");
    }
}

#[test]
fn a_block_says_why_and_what_to_do() {
    let listener = listener();
    let holder = Process {
        pid: 4711,
        name: "postgres".into(),
        ..Process::default()
    };
    let other = BindFailure::Other("no descriptors".into());
    for (reason, state, text) in [
        (
            Some(BindFailure::Taken {
                holder: Some(holder),
                by: Hold::Listener,
            }),
            State::Conflict,
            "host-port-taken | 127.0.0.1:5000 is taken by postgres (pid 4711) | \
             free it, or set on_conflict = \"next\"",
        ),
        (
            Some(BindFailure::Taken {
                holder: None,
                by: Hold::Listener,
            }),
            State::Conflict,
            "host-port-taken | 127.0.0.1:5000 is taken | free it, or set on_conflict = \"next\"",
        ),
        (
            Some(BindFailure::Privileged),
            State::RefusedPrivileged,
            "host-port-privileged | binding 127.0.0.1:5000 needs privilege, as for any port below 1024 | \
             choose a host port from 1024 up, run rum as root, or lower \
             net.ipv4.ip_unprivileged_port_start",
        ),
        (
            Some(BindFailure::NoAddress),
            State::Pending,
            "no-host-address | this machine does not have the address 127.0.0.1 | \
             give it to an interface, then it serves by itself; or change `bind`",
        ),
        (
            Some(other),
            State::Pending,
            "bind-failed | cannot bind 127.0.0.1:5000: no descriptors | -",
        ),
        (
            None,
            State::Pending,
            "bind-failed | 127.0.0.1:5000 is not bound yet | -",
        ),
    ] {
        let mut facts = facts(Some(&listener), &Knowledge::Current);
        facts.forwards.push(Forward {
            key: Key::Auto(PORT),
            guest: Destination::own(5000),
            standing: Standing::Blocked {
                at: host(5000),
                reason: reason.as_ref(),
            },
            label: None,
        });
        assert_eq!(state_of(&facts), (state, text.to_owned()));
        assert_eq!(rows(&facts)[0].host, None);
    }
}

#[test]
fn a_host_address_that_has_gone_is_a_reason_and_where_it_decides_nothing_is_forwarded() {
    let (listener, stats) = (listener(), Stats::default());
    let other = HostAddr("192.0.2.1:5000".parse().unwrap());
    for (gone, state) in [(host(5000), State::Pending), (other, State::Forwarded)] {
        let mut facts = facts(Some(&listener), &Knowledge::Current);
        let mut forward = bound(Key::Auto(PORT), &stats);
        if let Standing::Bound { lacks, .. } = &mut forward.standing {
            *lacks = Some((gone, &BindFailure::NoAddress));
        }
        facts.forwards.push(forward);
        let ip = gone.0.ip();
        let text = format!("no-host-address | this machine does not have the address {ip}");
        let hint = BindFailure::NoAddress.hint().unwrap();
        let (is, said) = state_of(&facts);
        assert_eq!(is, state);
        assert_eq!(said, format!("{text} | {hint}"));
    }
}

#[test]
fn what_is_not_forwarded_says_so_unless_a_static_forward_leads_there() {
    let (listener, stats) = (listener(), Stats::default());
    let mut facts = facts(Some(&listener), &Knowledge::Current);
    facts.verdict = Some(Verdict::OutOfRange);
    let hint = "widen `range` to take in 5000";
    let text = format!("not-in-range | not in range = \"5000-6000\" | {hint}");
    assert_eq!(state_of(&facts), (State::OutOfRange, text));
    facts.forwards.push(bound(Key::Static(host(8080)), &stats));
    assert_eq!(state_of(&facts).0, State::Forwarded);
}

#[test]
fn draining_keeps_its_id_until_the_port_is_back() {
    let (listener, old, new) = (listener(), Stats::default(), Stats::default());
    old.active.store(1, Relaxed);
    let draining = || Draining {
        key: Key::Auto(PORT),
        guest: Destination::own(5000),
        at: host(5000),
        stats: &old,
        limited: false,
        label: None,
    };
    let mut gone = facts(None, &Knowledge::Current);
    gone.draining.push(draining());
    let row = &rows(&gone)[0];
    assert_eq!(
        (row.id.as_str(), row.state),
        ("guest:5000", State::Draining)
    );
    let reason = row.reason.as_ref().unwrap();
    assert_eq!(reason.message, "closed; 1 connection left");
    let mut back = facts(Some(&listener), &Knowledge::Current);
    back.forwards.push(bound(Key::Auto(PORT), &new));
    back.draining.extend([draining(), draining()]);
    let ids: Vec<_> = rows(&back).into_iter().map(|r| (r.id, r.state)).collect();
    let named = |id: &str, state| (id.to_owned(), state);
    assert_eq!(
        ids,
        [
            named("guest:5000", State::Forwarded),
            named("guest:5000#2", State::Draining),
            named("guest:5000#3", State::Draining),
        ]
    );
}

#[test]
fn what_a_rule_says_is_the_reason() {
    let (listener, knowledge) = (listener(), Knowledge::Current);
    let with = |verdict| Facts {
        verdict: Some(verdict),
        label: Some("metrics"),
        ..facts(Some(&listener), &knowledge)
    };
    let ignored = with(Verdict::Ignored {
        code: ReasonCode::Rule,
        message: "rule 2 ignores it".into(),
    });
    let hint = "write a rule for 5000 before it";
    let says = format!("rule | rule 2 ignores it | {hint}");
    assert_eq!(state_of(&ignored), (State::Ignored, says));
    assert_eq!(rows(&ignored)[0].label.as_deref(), Some("metrics"));
    let until = std::time::Instant::now();
    let says = "awaiting-process | a rule waits for the name of its process | -";
    let waits = with(Verdict::AwaitingProcess { until });
    assert_eq!(state_of(&waits), (State::Pending, says.to_owned()));
}
