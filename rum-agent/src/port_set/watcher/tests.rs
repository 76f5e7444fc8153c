#![allow(clippy::unwrap_used)]

use std::time::Duration;

use rum_shared::range::PortRange;
use tokio::task::JoinSet;

use super::pending::{LOOKUP_COST, REPAIR_AFTER};
use super::recheck::PAUSES;
use super::*;
use crate::kernel::Socket;
use crate::kernel::tracepoint::Hint;
use crate::port_set::hub::{Subscription, Update};
use crate::port_set::source::fake::FakeKernel;

/// Inodes from here on belong to no process, so that no name turns up in between.
const NOBODY: u64 = 1 << 60;

struct Bench {
    kernel: FakeKernel,
    hints: mpsc::Sender<Hint>,
    hub: Arc<Hub>,
    refresh: Refresh,
    stop: CancellationToken,
    task: JoinSet<()>,
}

/// A watcher of a fake kernel in which `ports` listen.
fn bench(ports: &[u16]) -> Bench {
    bench_in(ports, NetNs::own())
}

/// The same, of an agent in the network namespace `here`.
fn bench_in(ports: &[u16], here: NetNs) -> Bench {
    let kernel = FakeKernel::default();
    kernel.with(|state| state.sockets = ports.iter().map(|port| socket(*port)).collect());
    let (hints, foreign) = mpsc::channel(4096);
    let hub = Arc::new(Hub::default());
    let (mut watcher, refresh) = Watcher::new(
        Source::Fake(kernel.clone()),
        Hints::default().also_from(foreign),
        hub.clone(),
    );
    watcher.here = here;
    let stop = CancellationToken::new();
    let mut task = JoinSet::new();
    task.spawn(watcher.run(stop.clone()));
    Bench {
        kernel,
        hints,
        hub,
        refresh,
        stop,
        task,
    }
}

fn socket(port: u16) -> Socket {
    Socket {
        port,
        ip: "127.0.0.1".parse().unwrap(),
        dual_stack: false,
        device: 0,
        uid: 0,
        inode: NOBODY + u64::from(port),
        cookie: Some(u64::from(port)),
    }
}

impl Bench {
    async fn subscribe(&self) -> Subscription {
        let mut subscription = self.hub.subscribe(PortRange::ALL).unwrap();
        assert!(matches!(subscription.next().await, Update::Snapshot { .. }));
        subscription
    }

    fn hint(&self, port: u16) {
        self.hints
            .try_send(Hint::Listen {
                port,
                pid: std::process::id(),
                at_ns: 1,
            })
            .unwrap();
    }

    fn dumps(&self) -> u32 {
        self.kernel.with(|state| state.dumps)
    }

    fn ports(&self) -> Vec<u16> {
        self.hub.current().iter().map(|l| l.port).collect()
    }

    /// Lets all that is under way happen: the paused clock runs on when nothing else can.
    async fn settle(&self) {
        tokio::time::sleep(Duration::from_secs(5)).await;
    }

    async fn end(mut self) {
        self.stop.cancel();
        self.task.join_next().await.unwrap().unwrap();
    }
}

fn ended(port: u16) -> Wake {
    Wake {
        ended: vec![port],
        ..Wake::default()
    }
}

async fn delta(subscription: &mut Subscription) -> Change {
    match subscription.next().await {
        Update::Delta(change) => change,
        Update::Snapshot { .. } => panic!("a delta was due"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_hint_leads_to_a_delta() {
    let bench = bench(&[80]);
    let mut changes = bench.subscribe().await;
    assert_eq!(bench.ports(), [80]);
    bench.kernel.with(|state| state.sockets.push(socket(81)));
    bench.hint(81);
    assert_eq!(delta(&mut changes).await.opened[0].port, 81);
    bench
        .kernel
        .with(|state| state.sockets.retain(|s| s.port != 80));
    bench.hints.try_send(Hint::Unlisten { port: 80 }).unwrap();
    assert_eq!(delta(&mut changes).await.closed, [80]);
    bench.end().await;
}

/// A container's processes may listen as often as they like: one look for each, not eight.
#[tokio::test(start_paused = true)]
async fn what_listens_in_another_network_namespace_is_looked_at_once() {
    let bench = bench_in(&[80], NetNs::nobodys());
    let mut changes = bench.subscribe().await;
    bench.settle().await;
    let before = bench.dumps();
    bench.hint(81);
    bench.settle().await;
    assert_eq!(bench.dumps() - before, 1);
    // Its socket may be ours all the same.
    bench.kernel.with(|state| state.sockets.push(socket(82)));
    bench.hint(82);
    assert_eq!(delta(&mut changes).await.opened[0].port, 82);
    bench.end().await;
}

/// Where many listen only the ports that a hint names are looked at, and nothing is lost by it.
#[tokio::test(start_paused = true)]
async fn among_many_a_change_is_looked_at_alone() {
    let many: Vec<u16> = (1000..1000 + 4 * LOOKUP_COST as u16).collect();
    let bench = bench(&many);
    let mut changes = bench.subscribe().await;
    bench.settle().await;
    let whole = bench.dumps();
    // Dumps of all, and of some ports, since.
    let dumps = || {
        let (all, scoped) = bench.kernel.with(|state| (state.dumps, state.scoped));
        (all - scoped - whole, scoped)
    };
    // It is there a moment late, while another one, of which no hint tells, has closed.
    bench.kernel.with(|state| {
        state.sockets.push(socket(80));
        state.sockets.retain(|s| s.port != 1001);
        (state.hide, state.hidden) = (1, vec![80]);
    });
    bench.hint(80);
    let change = delta(&mut changes).await;
    assert_eq!((change.opened[0].port, change.closed), (80, vec![]));
    bench
        .kernel
        .with(|state| state.sockets.retain(|s| s.port != 80));
    bench.hints.try_send(Hint::Unlisten { port: 80 }).unwrap();
    assert_eq!(delta(&mut changes).await.closed, [80]);
    // From a process that is hardly ours.
    bench.kernel.with(|state| state.sockets.push(socket(81)));
    let (port, pid, at_ns) = (81, 0, 1);
    let foreign = Hint::Listen { port, pid, at_ns };
    bench.hints.try_send(foreign).unwrap();
    assert_eq!(delta(&mut changes).await.opened[0].port, 81);
    assert_eq!(dumps(), (0, 0));
    // At an address that no lookup guesses, and then as one of two.
    let at = |ip: &str| Socket {
        ip: ip.parse().unwrap(),
        ..socket(82)
    };
    bench
        .kernel
        .with(|state| state.sockets.push(at("192.0.2.1")));
    bench.hint(82);
    assert_eq!(delta(&mut changes).await.opened[0].port, 82);
    assert_eq!(dumps(), (0, 1));
    bench
        .kernel
        .with(|state| state.sockets.push(at("127.0.0.1")));
    bench.hint(82);
    assert_eq!(delta(&mut changes).await.changed[0].addresses.len(), 2);
    bench
        .kernel
        .with(|state| state.sockets.retain(|s| *s != at("192.0.2.1")));
    bench.hints.try_send(Hint::Unlisten { port: 82 }).unwrap();
    assert_eq!(delta(&mut changes).await.changed[0].addresses.len(), 1);
    assert_eq!(dumps(), (0, 2));
    assert!(bench.ports().contains(&1001));
    // Without a port, or with many, all are looked at.
    bench.hints.try_send(Hint::Lost).unwrap();
    assert_eq!(delta(&mut changes).await.closed, [1001]);
    (2000..2005).for_each(|port| bench.hint(port));
    bench.settle().await;
    assert_eq!(dumps(), (2 + PAUSES.len() as u32, 2));
    // So it is when somebody asks meanwhile.
    bench.kernel.with(|state| state.sockets.push(socket(83)));
    bench.hint(83);
    assert!(bench.refresh.fresh().await.unwrap().contains(&83));
    assert_eq!(dumps().1, 2);
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_dump_that_comes_too_early_is_repeated() {
    for port in [81, 0] {
        let bench = bench(&[]);
        let mut changes = bench.subscribe().await;
        bench.settle().await;
        let before = Instant::now();
        bench.kernel.with(|state| {
            state.sockets.push(socket(81));
            (state.hide, state.hidden) = (4, vec![81]);
        });
        bench.hint(port);
        assert_eq!(delta(&mut changes).await.opened[0].port, 81);
        let looked: Duration = PAUSES[..4].iter().sum();
        assert!(before.elapsed() >= looked, "the looks are spaced");
        assert!(before.elapsed() < Duration::from_millis(20));
        bench.end().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_port_that_never_shows_up_is_given_up() {
    let bench = bench(&[]);
    bench.settle().await;
    let before = bench.dumps();
    bench.hint(81);
    bench.settle().await;
    assert_eq!(bench.dumps() - before, 1 + PAUSES.len() as u32);
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_quick_rebind_is_no_close() {
    let bench = bench(&[80]);
    let mut changes = bench.subscribe().await;
    // The old socket is gone, the new one is hinted but not hashed yet.
    bench.kernel.with(|state| state.sockets.clear());
    bench.hint(80);
    tokio::time::sleep(PAUSES[1]).await;
    assert_eq!(bench.ports(), [80]);
    let successor = Socket {
        inode: NOBODY,
        cookie: Some(9),
        ..socket(80)
    };
    bench.kernel.with(|state| state.sockets.push(successor));
    let change = delta(&mut changes).await;
    assert!(change.closed.is_empty() && change.opened.is_empty());
    assert_eq!(change.changed[0].inode, NOBODY);
    // If no new one comes, the port closes in the end.
    bench.kernel.with(|state| state.sockets.clear());
    bench.hint(80);
    assert_eq!(delta(&mut changes).await.closed, [80]);
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_storm_costs_a_bounded_number_of_dumps_and_loses_nothing() {
    let bench = bench(&[]);
    bench.settle().await;
    let (before, start) = (bench.dumps(), Instant::now());
    for port in 1..=1000 {
        bench.kernel.with(|state| state.sockets.push(socket(port)));
        bench.hint(port);
        if port % 10 == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        } else {
            tokio::task::yield_now().await;
        }
    }
    let storm = start.elapsed().as_millis() as u32;
    bench.settle().await;
    assert_eq!(bench.ports().len(), 1000);
    let dumps = bench.dumps() - before;
    assert!(dumps <= storm + 20, "{dumps} dumps in {storm} ms");
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_failed_dump_keeps_the_set_and_is_repeated() {
    let bench = bench(&[80]);
    let mut changes = bench.subscribe().await;
    bench.kernel.with(|state| {
        state.fail = 3;
        state.sockets = vec![socket(81)];
    });
    bench.hint(81);
    assert!(bench.refresh.fresh().await.is_err());
    assert_eq!(bench.ports(), [80]);
    let change = delta(&mut changes).await;
    assert_eq!((change.opened[0].port, &change.closed[..]), (81, &[80][..]));
    assert_eq!(bench.refresh.fresh().await.unwrap().len(), 1);
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_listener_that_a_dump_skips_stays() {
    let bench = bench(&[80, 90]);
    let mut changes = bench.subscribe().await;
    bench.kernel.with(|state| {
        (state.hide, state.hidden) = (1, vec![80]);
        state.sockets.retain(|s| s.port != 90);
    });
    bench.hints.try_send(Hint::Unlisten { port: 90 }).unwrap();
    assert_eq!(bench.refresh.fresh().await.unwrap().len(), 1);
    let change = delta(&mut changes).await;
    assert_eq!(change.closed, [90]);
    assert_eq!(bench.ports(), [80]);
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn what_only_a_request_finds_is_answered_at_once_and_told_later() {
    let bench = bench(&[80]);
    let mut changes = bench.subscribe().await;
    bench.settle().await;
    bench.kernel.with(|state| state.sockets.push(socket(81)));
    let before = Instant::now();
    assert_eq!(bench.refresh.fresh().await.unwrap().len(), 2);
    assert_eq!(bench.ports(), [80], "the host may find it itself");
    assert_eq!(delta(&mut changes).await.opened[0].port, 81);
    assert!(before.elapsed() >= REPAIR_AFTER);
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn requests_share_a_dump() {
    let bench = bench(&[80]);
    bench.settle().await;
    let before = bench.dumps();
    let mut callers = JoinSet::new();
    for _ in 0..200 {
        let refresh = bench.refresh.clone();
        callers.spawn(async move { refresh.fresh().await.unwrap().len() });
    }
    for ports in callers.join_all().await {
        assert_eq!(ports, 1);
    }
    let dumps = bench.dumps() - before;
    assert!(dumps <= 10, "{dumps} dumps for 200 requests");
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_wider_range_is_dumped_again() {
    let bench = bench(&[80]);
    bench.settle().await;
    bench.kernel.with(|state| state.sockets.push(socket(81)));
    let mut changes = bench.subscribe().await;
    if bench.ports() == [80] {
        delta(&mut changes).await;
    }
    assert_eq!(bench.ports(), [80, 81]);
    bench.end().await;
}

#[tokio::test]
async fn a_name_comes_after_the_port() {
    use std::os::fd::AsRawFd;
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let link = format!("/proc/self/fd/{}", listener.as_raw_fd());
    let target = std::fs::read_link(link).unwrap();
    let inode = target.to_str().unwrap();
    let inode = inode.trim_start_matches("socket:[").trim_end_matches(']');
    let ours = Socket {
        inode: inode.parse().unwrap(),
        ..socket(80)
    };
    let bench = bench(&[]);
    let mut changes = bench.subscribe().await;
    bench.kernel.with(|state| state.sockets.push(ours));
    bench.hint(80);
    assert_eq!(delta(&mut changes).await.opened[0].process, None);
    let named = delta(&mut changes).await;
    let process = named.changed[0].process.clone().unwrap();
    assert_eq!(process.pid, std::process::id());
    bench.end().await;
}

/// A guest that is frozen in the middle of a dump must not be slow for a multiple of that time.
#[tokio::test]
async fn a_stop_in_the_middle_of_a_dump_does_not_delay_the_next() {
    let kernel = FakeKernel::default();
    let hub = Arc::new(Hub::default());
    let (mut watcher, _refresh) = Watcher::new(Source::Fake(kernel.clone()), Hints::default(), hub);
    for port in [80, 81] {
        kernel.with(|state| state.sockets.push(socket(port)));
        if port == 80 {
            kernel.with(|state| state.stopped = Duration::from_millis(50));
        }
        watcher.absorb(ended(port));
        watcher.dump().await;
    }
    assert_eq!(watcher.table.set().len(), 2);
    watcher.absorb(ended(80));
    assert_eq!(watcher.pending.next(Instant::now()), Next::Dump);
}
