//! Tables and properties of the policy.

#![allow(clippy::unwrap_used)]

use proptest::prelude::*;
use rum_shared::listener::Process;

use super::*;

fn listener(port: u16, process: &str) -> Listener {
    Listener {
        process: (!process.is_empty()).then(|| Process {
            pid: 1,
            name: process.into(),
            ..Process::default()
        }),
        ..Listener::bare(port)
    }
}

fn forward(host: Option<u16>) -> RuleAction {
    RuleAction::Forward { host, bind: None }
}

fn rule(guest: &str, process: &str, action: RuleAction) -> Rule {
    Rule {
        guest: (!guest.is_empty()).then(|| guest.parse().unwrap()),
        process: (!process.is_empty()).then(|| Pattern::new(process)),
        command: None,
        action,
        label: Some(format!("{guest} {process}")),
        drain: None,
    }
}

fn policy(rules: Vec<Rule>) -> Policy {
    Policy {
        auto: Some(AutoPolicy {
            exclude: "5432".parse().unwrap(),
            rules,
            ..AutoPolicy::new("5000-6000".parse().unwrap())
        }),
        ..Policy::default()
    }
}

/// The host address of the port after [`PROCESS_WAIT`], or why it has none.
fn outcome(policy: &Policy, port: u16, process: &str) -> String {
    let now = Instant::now();
    match policy.judge(&listener(port, process), now, now + PROCESS_WAIT) {
        Verdict::Forward(want) => want.host.to_string(),
        Verdict::Ignored { code, message } => format!("{code}: {message}"),
        other => format!("{other:?}"),
    }
}

#[test]
fn the_first_rule_that_matches_decides() {
    let policy = policy(vec![
        rule("5000-5100", "postgres*", forward(Some(15_000))),
        rule("5000-5009", "", RuleAction::Ignore),
        rule("", "?ode", RuleAction::Ignore),
        rule("5200,5205-5210", "", forward(Some(20_000))),
        rule("5200-5300", "", RuleAction::Ignore),
    ]);
    for (port, process, says) in [
        (4999, "postgres", "OutOfRange"),
        (5000, "postgres", "127.0.0.1:15000"),
        (5100, "postgres-worker", "127.0.0.1:15100"),
        (5101, "postgres", "127.0.0.1:5101"),
        (
            5000,
            "nginx",
            "rule: rule 2 ignores it (guest = \"5000-5009\")",
        ),
        (5000, "", "rule: rule 2 ignores it (guest = \"5000-5009\")"),
        (5050, "node", "rule: rule 3 ignores it (process = \"?ode\")"),
        (5050, "nodejs", "127.0.0.1:5050"),
        (5200, "", "127.0.0.1:20000"),
        (5209, "", "127.0.0.1:20009"),
        (5201, "", "rule: rule 5 ignores it (guest = \"5200-5300\")"),
        (
            5432,
            "postgres",
            "excluded: excluded by `exclude = \"5432\"`",
        ),
    ] {
        assert_eq!(outcome(&policy, port, process), says, "{port} {process}");
    }
    let label =
        |port, process| policy.label(Key::Auto(GuestPort(port)), Some(&listener(port, process)));
    assert_eq!(label(5000, "postgres"), Some("5000-5100 postgres*"));
    assert_eq!(label(5000, ""), Some("5000-5009 "));
    assert_eq!(label(5999, ""), None);
}

#[test]
fn a_process_has_several_names_and_a_command_line() {
    let pattern = |text: &str| (!text.is_empty()).then(|| Pattern::new(text));
    let node = Process {
        pid: 1,
        name: "MainThread".into(),
        program: "node".into(),
        script: "vite.js".into(),
        command: "node /srv/web/vite.js --host".into(),
    };
    let old = Process {
        pid: 1,
        name: "MainThread".into(),
        ..Process::default()
    };
    for (process, command, node_is, old_is) in [
        ("MainThread", "", true, true),
        ("node*", "", true, false),
        ("vite.??", "", true, false),
        ("*", "", true, true),
        ("?*", "", true, true),
        ("deno", "", false, false),
        ("", "*vite*", true, false),
        ("", "vite*", false, false),
        ("node", "*--host", true, false),
        ("node", "*--port", false, false),
        ("deno", "*vite*", false, false),
    ] {
        let rule = Rule {
            process: pattern(process),
            command: pattern(command),
            ..rule("5000", "", RuleAction::Ignore)
        };
        assert_eq!(rule.is_for(&node), node_is, "{process} {command}");
        assert_eq!(rule.is_for(&old), old_is, "{process} {command}");
    }
    let by_command = Rule {
        command: pattern("*vite*"),
        ..rule("", "", RuleAction::Ignore)
    };
    assert_eq!(by_command.to_string(), "command = \"*vite*\"");
    let policy = policy(vec![by_command]);
    let (now, mut listener) = (Instant::now(), listener(5001, ""));
    let until = now + PROCESS_WAIT;
    let waits = policy.judge(&listener, now, now);
    assert_eq!(waits, Verdict::AwaitingProcess { until });
    listener.process = Some(node);
    let known = policy.judge(&listener, now, now);
    assert!(matches!(
        known,
        Verdict::Ignored {
            code: ReasonCode::Rule,
            ..
        }
    ));
}

#[test]
fn what_cannot_be_reached_is_not_forwarded() {
    let policy = policy(vec![rule("5001", "", RuleAction::Ignore)]);
    let now = Instant::now();
    let judge = |port| {
        let listener = Listener {
            unreachable: Some("why".into()),
            ..listener(port, "")
        };
        policy.judge(&listener, now, now)
    };
    let why = "why".to_owned();
    assert_eq!(judge(5000), Verdict::Unreachable { why });
    assert!(matches!(judge(5001), Verdict::Ignored { .. }));
    assert_eq!(judge(22), Verdict::OutOfRange);
}

#[test]
fn only_a_port_that_a_name_could_decide_waits_for_it_and_not_for_ever() {
    let policy = policy(vec![
        rule("5000-5009", "", forward(None)),
        rule("5000-5100", "postgres*", RuleAction::Ignore),
    ]);
    let since = Instant::now();
    let at = |port, process, ms| {
        let now = since + Duration::from_millis(ms);
        policy.judge(&listener(port, process), since, now)
    };
    let until = since + PROCESS_WAIT;
    assert_eq!(at(5050, "", 0), Verdict::AwaitingProcess { until });
    assert_eq!(at(5050, "", 499), Verdict::AwaitingProcess { until });
    assert!(matches!(at(5050, "", 500), Verdict::Forward(_)));
    assert!(matches!(at(5050, "node", 0), Verdict::Forward(_)));
    assert!(matches!(at(5050, "postgres", 700), Verdict::Ignored { .. }));
    assert!(
        matches!(at(5000, "", 0), Verdict::Forward(_)),
        "an earlier rule has it"
    );
    assert!(
        matches!(at(5101, "", 0), Verdict::Forward(_)),
        "none is for it"
    );
}

#[test]
fn patterns_and_messages_hold_nothing_that_a_terminal_acts_on() {
    let rule = rule("", "a\u{1b}[2J*", RuleAction::Ignore);
    assert_eq!(rule.to_string(), "process = \"a\u{fffd}[2J*\"");
    let many: String = (0..400).map(|i| format!("{},", 5000 + 2 * i)).collect();
    let rule = Rule {
        guest: Some(many.trim_end_matches(',').parse().unwrap()),
        ..rule
    };
    assert!(rule.to_string().chars().count() < 100 + MAX_PATTERN);
    assert!(Pattern::new("a**").matches("abc") && !Pattern::new("a*").matches("ba"));
}

#[test]
fn what_overlaps() {
    let overlap = |a: &str, b: &str| overlap(a.parse().unwrap(), b.parse().unwrap());
    assert!(overlap("127.0.0.1", "127.0.0.1"));
    assert!(overlap("0.0.0.0", "127.0.0.1"));
    assert!(overlap("127.0.0.1", "::"));
    assert!(overlap("::1", "::"));
    assert!(!overlap("0.0.0.0", "::1"));
    assert!(!overlap("127.0.0.1", "127.0.0.2"));
}

fn any_rule() -> impl Strategy<Value = Rule> {
    let guest = prop::option::of((1u16..200, 0u16..30));
    let process = prop::option::of(prop::sample::select(vec!["a*", "b", "?"]));
    let host = prop::option::of(1u16..);
    let bind = prop::option::of(Just(IpAddr::from([127, 0, 0, 2])));
    (guest, process, host, bind, any::<bool>()).prop_map(|(guest, process, host, bind, ignore)| {
        let range = |(min, more)| PortRange::new(min, min + more).unwrap();
        Rule {
            guest: guest.map(|guest| PortRanges::new([range(guest)])),
            process: process.map(Pattern::new),
            command: None,
            action: if ignore {
                RuleAction::Ignore
            } else {
                RuleAction::Forward {
                    host,
                    bind: bind.map(Into::into),
                }
            },
            label: None,
            drain: None,
        }
    })
}

proptest! {
    /// Whatever the rules and the guest: a port is bound in one of its blocks or nowhere, and each
    /// replacement port is in a block as well.
    #[test]
    fn nothing_is_wanted_outside_the_blocks(
        rules in prop::collection::vec(any_rule(), 0..6),
        exclude in prop::collection::vec(1u16..200, 0..10),
        listeners in prop::collection::vec((1u16.., prop::sample::select(vec!["", "a", "ab", "b"])), 1..30),
        close in prop::collection::vec((1u16..200, prop::sample::select(vec!["", "a", "ab", "b"])), 1..30),
        waited: bool,
    ) {
        let single = |port: u16| PortRange::single(port).unwrap();
        let auto = AutoPolicy {
            exclude: PortRanges::new(exclude.into_iter().map(single)),
            rules,
            on_conflict: OnConflict::Next,
            ..AutoPolicy::new("10-150,65000-65535".parse().unwrap())
        };
        let policy = Policy { auto: Some(auto.clone()), ..Policy::default() };
        let blocks = auto.port_blocks();
        let since = Instant::now();
        let now = if waited { since + PROCESS_WAIT } else { since };
        for (port, process) in listeners.into_iter().chain(close) {
            let Verdict::Forward(want) = policy.judge(&listener(port, process), since, now) else {
                continue;
            };
            prop_assert!(auto.ranges.contains(port) && !auto.exclude.contains(port));
            let may = |at: HostAddr| blocks.iter().any(|t| t.may_bind(want.guest, at));
            prop_assert!(may(want.host), "{want:?}");
            for other in others(&want, &auto.port_blocks()).flatten() {
                prop_assert!(other != want.host.0.port());
                let at = HostAddr(SocketAddr::new(want.host.0.ip(), other));
                let lies_in = |t: &PortBlock| t.bind.first() == at.0.ip() && t.host().contains(other);
                prop_assert!(blocks.iter().any(lies_in), "{at}");
            }
        }
    }
}
