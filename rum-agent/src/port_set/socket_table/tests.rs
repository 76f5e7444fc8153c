#![allow(clippy::unwrap_used)]

use super::*;
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::net::IpAddr;

fn socket(port: u16, ip: &str, inode: u64) -> Socket {
    Socket {
        port,
        ip: ip.parse().unwrap(),
        dual_stack: false,
        device: 0,
        uid: 0,
        inode,
        cookie: Some(inode),
    }
}

fn fold(truth: &mut SocketTable, dump: &[Socket], now: u64) -> Option<Change> {
    truth.fold(&Scope::All, dump.to_vec(), [], now)
}

#[test]
fn the_first_fold_reports_even_an_empty_set() {
    let mut truth = SocketTable::default();
    assert_eq!(fold(&mut truth, &[], 1).unwrap().generation, 1);
    assert_eq!(fold(&mut truth, &[], 2), None);
}

#[test]
fn twins_and_both_families_are_one_port() {
    let mut truth = SocketTable::default();
    let all = [
        socket(80, "::", 3),
        socket(80, "0.0.0.0", 1),
        socket(80, "0.0.0.0", 2),
        socket(0, "0.0.0.0", 9),
    ];
    let change = fold(&mut truth, &all, 5).unwrap();
    assert_eq!(change.opened.len(), 1);
    let ips: Vec<_> = change.opened[0].addresses.iter().map(|a| a.ip).collect();
    assert_eq!(
        ips,
        ["0.0.0.0".parse::<IpAddr>().unwrap(), "::".parse().unwrap()]
    );
    // A twin of the named socket ends: nothing that a user could see differs.
    assert_eq!(fold(&mut truth, &[all[0].clone(), all[1].clone()], 6), None);
    assert_eq!(fold(&mut truth, &[], 7).unwrap().closed, [80]);
}

#[test]
fn a_socket_that_takes_over_is_changed_not_closed() {
    let mut truth = SocketTable::default();
    fold(&mut truth, &[socket(80, "::1", 1)], 5);
    let change = fold(&mut truth, &[socket(80, "::1", 2)], 6).unwrap();
    assert!(change.opened.is_empty() && change.closed.is_empty());
    assert_eq!((change.changed[0].inode, change.changed[0].seen_ns), (2, 6));
}

fn process(pid: u32) -> Process {
    Process {
        pid,
        name: format!("p{pid}"),
        ..Process::default()
    }
}

/// Takes note of the processes that hold some sockets of port 80.
fn name(truth: &mut SocketTable, holders: &[(u64, Option<u32>)]) -> Option<Change> {
    let holders = holders
        .iter()
        .map(|(inode, pid)| ((80, *inode), pid.map(process)));
    truth.name(&holders.collect())
}

fn nameless(truth: &SocketTable) -> Vec<u64> {
    truth.nameless(80).map(|(_, inode)| inode).collect()
}

#[test]
fn a_name_survives_as_long_as_its_socket() {
    let mut truth = SocketTable::default();
    fold(&mut truth, &[socket(80, "0.0.0.0", 5)], 5);
    assert_eq!(nameless(&truth), [5]);
    assert_eq!(name(&mut truth, &[(6, Some(7))]), None, "of another socket");
    let change = name(&mut truth, &[(5, Some(7))]).unwrap();
    assert_eq!((change.generation, change.changed.len()), (2, 1));
    assert_eq!(name(&mut truth, &[(5, Some(7))]), None, "said once");
    assert_eq!(nameless(&truth), [] as [u64; 0]);
    // A twin with a smaller inode joins: the first socket stays in front.
    let twins = [socket(80, "0.0.0.0", 5), socket(80, "0.0.0.0", 1)];
    assert_eq!(fold(&mut truth, &twins, 9), None);
    // One that takes connections first, of the same process: it is in front from now on.
    let nearer = [twins.to_vec(), vec![socket(80, "127.0.0.1", 2)]].concat();
    let change = fold(&mut truth, &nearer, 10).unwrap();
    let now = &change.changed[0];
    assert_eq!((now.inode, now.seen_ns, &now.process), (2, 5, &None));
    assert_eq!(now.others.len(), 1);
    let change = name(&mut truth, &[(2, Some(7))]).unwrap();
    assert_eq!(change.changed[0].process, Some(process(7)));
    assert_eq!(change.changed[0].others, []);
    let change = fold(&mut truth, &twins, 11).unwrap();
    assert_eq!(change.changed[0].process, Some(process(7)), "as before");
    fold(&mut truth, &twins[1..], 12);
    assert_eq!(truth.set().get(80).unwrap().process, None);
    assert!(truth.seconds.is_empty());
}

#[test]
fn two_programs_on_one_port_are_both_told_and_which_is_reached() {
    let mut truth = SocketTable::default();
    let v6 = socket(80, "::1", 2);
    let second = socket(80, "127.0.0.2", 3);
    fold(&mut truth, &[v6.clone(), second.clone()], 5);
    assert_eq!(nameless(&truth), [2, 3]);
    let change = name(&mut truth, &[(2, Some(20)), (3, Some(30))]).unwrap();
    let told = &change.changed[0];
    assert_eq!(told.process, Some(process(20)));
    let other = |ip: &str, pid| Holder {
        address: BoundAddr::new(ip.parse().unwrap(), false),
        process: process(pid),
    };
    assert_eq!(told.others, [other("127.0.0.2", 30)]);
    // A third one comes, to whom connections go from now on.
    let first = socket(80, "127.0.0.1", 1);
    let all = [first, v6.clone(), second.clone()];
    let change = fold(&mut truth, &all, 6).unwrap();
    assert_eq!(change.changed[0].process, None);
    assert_eq!(nameless(&truth), [1]);
    let change = name(&mut truth, &[(1, Some(10))]).unwrap();
    let told = &change.changed[0];
    assert_eq!(told.process, Some(process(10)));
    assert_eq!(told.others, [other("127.0.0.2", 30), other("::1", 20)]);
    // Nobody who can be seen holds it any more.
    let change = name(&mut truth, &[(3, None)]).unwrap();
    assert_eq!(change.changed[0].others, [other("::1", 20)]);
    // The first one goes: the next is reached, whose name is known.
    let change = fold(&mut truth, &[v6, second], 7).unwrap();
    assert_eq!(change.changed[0].process, Some(process(20)));
    assert_eq!(change.changed[0].others, []);
}

#[test]
fn a_holder_that_is_lost_is_told() {
    let mut truth = SocketTable::default();
    fold(&mut truth, &[socket(80, "::1", 5)], 5);
    name(&mut truth, &[(5, Some(7))]);
    let change = name(&mut truth, &[(5, Some(8))]).unwrap();
    assert_eq!(change.changed[0].process, Some(process(8)));
    let change = name(&mut truth, &[(5, None)]).unwrap();
    assert_eq!(change.changed[0].process, None);
    assert_eq!(truth.touch([80, 81]).unwrap().changed.len(), 1);
    assert_eq!(truth.touch([81]), None);
}

#[test]
fn a_missing_address_is_asked_about() {
    let mut truth = SocketTable::default();
    let (v4, v6) = (socket(80, "0.0.0.0", 1), socket(80, "::", 2));
    fold(&mut truth, &[v4.clone(), v6.clone()], 5);
    let missing = |dump: &mut [Socket]| truth.missing(&Scope::All, dump);
    assert_eq!(missing(&mut []), [v4.clone(), v6.clone()]);
    assert_eq!(missing(&mut [v4.clone()]), std::slice::from_ref(&v6));
    // A twin on the same address took over: nothing to ask.
    assert_eq!(missing(&mut [socket(80, "::", 3), v4.clone()]), []);
    let only = |port| Scope::Ports(BTreeSet::from([port]));
    assert_eq!(truth.missing(&only(80), &mut []), [v4, v6]);
    assert_eq!(truth.missing(&only(81), &mut []), []);
}

#[test]
fn addresses_are_bounded_and_keep_the_reachable_ones() {
    let mut all: Vec<_> = (1..=20)
        .map(|i| socket(80, &format!("10.0.0.{i}"), i))
        .collect();
    all.push(socket(80, "::", 30));
    all.push(socket(80, "127.0.0.1", 31));
    let mut truth = SocketTable::default();
    let change = fold(&mut truth, &all, 1).unwrap();
    let kept = &change.opened[0].addresses;
    assert_eq!(kept.len(), MAX_ADDRESSES);
    assert!(kept.iter().any(|a| a.ip.is_unspecified()));
    assert!(kept.iter().any(|a| a.ip.is_loopback()));
    assert!(kept.is_sorted());
}

/// Ports, addresses and inodes of what truly listens; few enough that they collide.
fn state() -> impl Strategy<Value = BTreeSet<(u16, bool, u64)>> {
    prop::collection::btree_set((1u16..6, any::<bool>(), 1u64..4), 0..10)
}

/// All, or some of those ports and one that nothing listens on.
fn scope() -> impl Strategy<Value = Scope> {
    prop_oneof![
        Just(Scope::All),
        prop::collection::btree_set(1u16..7, 0..3).prop_map(Scope::Ports),
    ]
}

proptest! {
    /// Dumps skip sockets at will, the kernel answers truly when asked: the set is the truth
    /// after each fold, so a stable port never closes. A dump of some ports makes it the truth
    /// about those, and leaves the others.
    #[test]
    fn skipped_sockets_never_close_a_port(
        steps in prop::collection::vec(
            (state(), prop::collection::vec(any::<bool>(), 10), scope()),
            1..12,
        ),
    ) {
        let mut truth = SocketTable::default();
        let mut folded = ListenerSet::default();
        let mut before: Vec<Socket> = Vec::new();
        for (now, (state, skip, scope)) in steps.into_iter().enumerate() {
            let scope = if now == 0 { Scope::All } else { scope };
            let mut state: Vec<Socket> = state
                .into_iter()
                .map(|(port, v6, inode)| socket(
                    port,
                    if v6 { "::" } else { "127.0.0.1" },
                    u64::from(port) * 100 + u64::from(v6) * 10 + inode,
                ))
                .filter(|s| scope.covers(s.port))
                .collect();
            state.extend(before.iter().filter(|s| !scope.covers(s.port)).cloned());
            state.sort_unstable();
            let mut dump: Vec<Socket> = state
                .iter()
                .filter(|s| scope.covers(s.port))
                .zip(&skip)
                // A socket that no dump has shown yet may be skipped too, but then it is not
                // known and nothing is claimed about it: only the known ones are skipped here.
                .filter(|(s, skip)| !(**skip && before.iter().any(|b| address(b) == address(s))))
                .map(|(s, _)| s.clone())
                .collect();
            let exists = |s: &Socket| state.iter().any(|t| address(t) == address(s));
            let missing = truth.missing(&scope, &mut dump);
            let alive: Vec<_> = missing.into_iter().filter(exists).collect();
            if let Some(change) = truth.fold(&scope, dump, alive, now as u64) {
                prop_assert_eq!(change.generation, folded.generation + 1);
                folded.apply(&change);
            }
            prop_assert_eq!(&folded, truth.set());
            let ports: BTreeSet<u16> = state.iter().map(|s| s.port).collect();
            prop_assert!(folded.iter().map(|l| l.port).eq(ports));
            for listener in folded.iter() {
                let twins: Vec<_> = state.iter().filter(|s| s.port == listener.port).cloned().collect();
                prop_assert_eq!(&listener.addresses, &addresses(&twins));
            }
            before = state;
        }
    }
}

#[test]
fn an_opened_port_knows_its_event_once() {
    let mut truth = SocketTable::default();
    truth.hint(80, 3);
    let opened = |change: Option<Change>| change.unwrap().opened[0].hinted_ns;
    assert_eq!(opened(fold(&mut truth, &[socket(80, "::", 1)], 5)), Some(3));
    // Other details change, the event stays that of the opening.
    let twice = [socket(80, "::", 1), socket(80, "0.0.0.0", 2)];
    let change = fold(&mut truth, &twice, 6).unwrap();
    assert_eq!(change.changed[0].hinted_ns, Some(3));
    fold(&mut truth, &[], 7);
    assert_eq!(opened(fold(&mut truth, &[socket(80, "::", 3)], 8)), None);
    // Without a number it counts for whatever opens, until it is over.
    truth.hint(0, 9);
    fold(&mut truth, &[], 9);
    assert_eq!(
        opened(fold(&mut truth, &[socket(80, "::", 4)], 10)),
        Some(9)
    );
    truth.forget_unknown();
    fold(&mut truth, &[], 11);
    assert_eq!(opened(fold(&mut truth, &[socket(80, "::", 5)], 12)), None);
    // Hints that never came true do not pile up.
    (1..=MAX_HINTED as u64 * 2).for_each(|n| truth.hint((n % 60_000) as u16 + 1, n));
    assert!(truth.hinted.len() <= MAX_HINTED);
}
