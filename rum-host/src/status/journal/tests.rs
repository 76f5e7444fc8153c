#![allow(clippy::unwrap_used)]
use proptest::prelude::*;

use super::*;
use crate::status::model::{Bytes, Connections, State as Port};
use crate::view::Mirror;

fn journal() -> Arc<Journal> {
    Arc::new(Journal {
        boot: "b".to_owned(),
        ..Journal::default()
    })
}

fn row(id: &str, port: u16, state: Port, total: u64) -> PortStatus {
    PortStatus {
        id: id.to_owned(),
        proto: "tcp".to_owned(),
        port,
        guest_addresses: Vec::new(),
        destination: None,
        host: None,
        host_addresses: Vec::new(),
        state,
        previous_state: None,
        reason: None,
        process: None,
        command: None,
        other_holders: Vec::new(),
        uid: None,
        label: None,
        url: None,
        connections: Connections {
            total,
            ..Connections::default()
        },
        bytes: Bytes::default(),
        since: String::new(),
        detected_us: None,
        forwarded_us: None,
    }
}

/// The update that `reader` gets without waiting.
fn now(reader: &mut Reader) -> Option<Update> {
    reader.ready()
}

fn events(update: Option<Update>) -> Vec<(u64, Op, String, Option<Port>)> {
    let Some(Update::Events(events)) = update else {
        panic!("{update:?}");
    };
    let port = |event: Event| match event.what {
        What::Port { op, port } => (event.seq, op, port.id, port.previous_state),
        what => panic!("{what:?}"),
    };
    events.into_iter().map(port).collect()
}

fn since(seq: u64) -> Option<Since> {
    let boot = "b".to_owned();
    Some(Since { boot, seq })
}

#[test]
fn a_snapshot_waits_for_fresh_counters_and_for_the_range() {
    let journal = journal();
    journal.put_agent(AgentStatus {
        state: AgentState::Connected,
        ..journal.agent()
    });
    let (mut some, mut all) = (journal.reader(false, None), journal.reader(true, None));
    let demand = *journal.demand().borrow();
    assert_eq!((demand.readers, demand.all, demand.fresh), (2, 1, 2));
    assert!(now(&mut some).is_none());
    journal.refreshed(1, false);
    assert!(matches!(
        now(&mut some),
        Some(Update::Snapshot { gap: false, .. })
    ));
    journal.refreshed(2, false);
    assert!(now(&mut all).is_none());
    journal.refreshed(2, true);
    assert!(matches!(now(&mut all), Some(Update::Snapshot { .. })));
    // A missing agent cannot report more.
    journal.refreshed(3, false);
    let mut third = journal.reader(true, None);
    journal.put_agent(AgentStatus {
        state: AgentState::Lost,
        ..journal.agent()
    });
    assert!(matches!(now(&mut third), Some(Update::Snapshot { .. })));
    drop((some, all, third));
    let demand = *journal.demand().borrow();
    assert_eq!((demand.readers, demand.all), (0, 0));
}

#[test]
fn rows_become_events_with_the_state_before() {
    let journal = journal();
    let mut reader = journal.reader(false, None);
    journal.refreshed(1, false);
    now(&mut reader).unwrap();
    assert!(now(&mut reader).is_none());
    journal.put_port(7, vec![row("a", 7, Port::Pending, 0)]);
    journal.put_port(7, vec![row("a", 7, Port::Pending, 0)]);
    journal.put_port(7, vec![row("a", 7, Port::Forwarded, 1)]);
    journal.put_port(
        7,
        vec![
            row("a", 7, Port::Forwarded, 2),
            row("b", 7, Port::Draining, 0),
        ],
    );
    journal.put_port(7, vec![]);
    let a = || "a".to_owned();
    let pending = Some(Port::Pending);
    assert_eq!(
        events(now(&mut reader)),
        [
            (1, Op::Added, a(), None),
            (2, Op::Changed, a(), pending),
            (3, Op::Changed, a(), pending),
            (4, Op::Added, "b".into(), None),
            (5, Op::Removed, a(), pending),
            (6, Op::Removed, "b".into(), None),
        ]
    );
    assert_eq!(journal.ports(), [0u16; 0]);
}

#[test]
fn a_reader_resumes_or_is_told_of_the_gap() {
    let journal = journal();
    let put = |n| journal.put_port(7, vec![row("a", 7, Port::Forwarded, n)]);
    (1..=3).for_each(put);
    journal.refreshed(9, false);
    let first = |since| now(&mut journal.reader(false, since));
    let seqs = |update| -> Vec<u64> { events(update).into_iter().map(|e| e.0).collect() };
    assert_eq!(seqs(first(since(1))), [2, 3]);
    assert_eq!(seqs(first(since(3))), [0u64; 0]);
    let gap = |update| matches!(update, Some(Update::Snapshot { gap: true, .. }));
    assert!(gap(first(since(4))), "from the future");
    let boot = "other".to_owned();
    assert!(gap(first(Some(Since { boot, seq: 1 }))), "another boot");
    let mut slow = journal.reader(false, None);
    now(&mut slow).unwrap();
    (4..=HISTORY as u64 + 4).for_each(put);
    assert!(gap(now(&mut slow)), "too slow");
    assert!(now(&mut slow).is_none());
    assert!(gap(first(since(3))), "too late");
}

#[tokio::test]
async fn whoever_waits_is_woken() {
    let journal = journal();
    let mut reader = journal.reader(false, None);
    let (update, ()) = tokio::join!(reader.next(), async { journal.refreshed(1, false) });
    assert!(matches!(update, Update::Snapshot { .. }));
    let put = async { journal.put_port(7, vec![row("a", 7, Port::Forwarded, 0)]) };
    let (update, ()) = tokio::join!(reader.next(), put);
    assert_eq!(events(Some(update)).len(), 1);
}

fn rows() -> impl Strategy<Value = (u16, Vec<PortStatus>)> {
    let one = (0usize..3, 0usize..8, 0u64..3);
    (1u16..5, prop::collection::vec(one, 0..3)).prop_map(|(port, rows)| {
        let rows = rows.into_iter().enumerate();
        let rows = rows.map(|(i, (id, state, total))| {
            row(&format!("{port}-{i}-{id}"), port, Port::ALL[state], total)
        });
        (port, rows.collect())
    })
}

proptest! {
    #[test]
    fn the_fold_of_the_events_is_the_snapshot(puts in prop::collection::vec(rows(), 0..40), read in 1usize..7) {
        let journal = journal();
        let mut reader = journal.reader(false, None);
        let mut known = Mirror::default();
        journal.refreshed(1, false);
        for (i, (port, rows)) in puts.into_iter().enumerate() {
            journal.put_port(port, rows);
            if i % read == 0 {
                while let Some(update) = now(&mut reader) {
                    known.apply(&update);
                }
            }
        }
        while let Some(update) = now(&mut reader) {
            known.apply(&update);
        }
        let mut fresh = Mirror::default();
        journal.refreshed(2, false);
        fresh.apply(&now(&mut journal.reader(false, None)).unwrap());
        prop_assert_eq!(known, fresh);
    }
}
