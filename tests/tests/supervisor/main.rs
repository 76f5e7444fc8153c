//! The host's loop against an agent that a test controls: what it believes, and when.

mod client;
mod clock;
mod timers;

use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use rum_host::plan::reconcile::Repair;
use rum_host::plan::{AutoPolicy, Policy};
use rum_host::supervisor::{Options, Stop, Summary, Supervisor};
use rum_host::ui::notice::Notice;
use rum_shared::stream::rpc::{OLDEST_PROTOCOL, PROTOCOL};
use rum_tests::fake_agent::FakeAgent;
use rum_tests::netns::in_netns;
use rum_tests::wait::DEADLINE;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;

struct Host {
    notices: mpsc::UnboundedReceiver<Notice>,
    seen: Vec<Notice>,
    stop: watch::Sender<Stop>,
    run: tokio::task::JoinHandle<Summary>,
    _agent: JoinSet<()>,
    _dir: tempfile::TempDir,
}

impl Host {
    fn start(agent: &FakeAgent) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let (endpoint, agent) = agent.serve(dir.path());
        let policy = Policy {
            auto: Some(AutoPolicy::new("5000-6000".parse().expect("a range"))),
            ..Policy::default()
        };
        let (stop, stopped) = watch::channel(Stop::Run);
        let (tx, notices) = mpsc::unbounded_channel();
        let supervisor = Supervisor::new(Options::new(endpoint, policy));
        let run = tokio::spawn(supervisor.run(stopped, move |notice| {
            let _ = tx.send(notice);
        }));
        Self {
            notices,
            seen: vec![],
            stop,
            run,
            _agent: agent,
            _dir: dir,
        }
    }

    async fn until(&mut self, what: impl Fn(&Notice) -> bool) -> Notice {
        loop {
            let next = tokio::time::timeout(DEADLINE, self.notices.recv()).await;
            let notice = next
                .unwrap_or_else(|_| panic!("waited in vain after {:?}", self.seen))
                .expect("the supervisor runs");
            self.seen.push(notice.clone());
            if what(&notice) {
                return notice;
            }
        }
    }

    async fn until_forwarded(&mut self, port: u16) {
        self.until(|n| matches!(n, Notice::Forwarded { guest, .. } if guest.port == port))
            .await;
    }

    async fn end(mut self) -> (Summary, Vec<Notice>) {
        self.stop.send_replace(Stop::Cut);
        let summary = self.run.await.expect("it ends");
        while let Ok(notice) = self.notices.try_recv() {
            self.seen.push(notice);
        }
        (summary, self.seen)
    }
}

fn run<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send) {
    in_netns(|| {
        // One thread: sockets are made in this thread's network namespace.
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        // By a clock of its own: a bound by tokio's is none where that stands still.
        let (tx, late) = oneshot::channel();
        std::thread::spawn(move || {
            std::thread::sleep(2 * DEADLINE);
            tx.send(())
        });
        runtime.expect("a runtime").block_on(async {
            tokio::select! {
                () = test() => {}
                _ = late => panic!("waited in vain"),
            }
        });
    });
}

async fn polls(agent: &FakeAgent, more: usize) {
    let mut polls = agent.polls.subscribe();
    let goal = *polls.borrow_and_update() + more;
    let reached = tokio::time::timeout(DEADLINE, polls.wait_for(|n| *n >= goal)).await;
    reached.expect("polls go on").expect("the agent lives");
}

#[test]
fn a_poll_that_is_answered_late_never_undoes_an_event() {
    run(async || {
        let agent = FakeAgent::new();
        agent.poll_gate.forget_permits(usize::MAX);
        let mut host = Host::start(&agent);
        agent.stream(&[5000]);
        host.until_forwarded(5000).await;
        for port in 5001..5006 {
            // The poll takes its answer, then the port opens and is told, then the answer
            // comes: without the new port.
            polls(&agent, 1).await;
            agent.stream(&[5000, port]);
            host.until_forwarded(port).await;
            agent.poll_gate.add_permits(1);
        }
        polls(&agent, 1).await;
        let (summary, seen) = host.end().await;
        assert_eq!(summary.repaired, 0, "{seen:?}");
        let stopped = seen
            .iter()
            .filter(|n| matches!(n, Notice::Stopped { guest, .. } if guest.port == 5000));
        assert_eq!(stopped.count(), 0, "{seen:?}");
    });
}

#[test]
fn an_agent_of_before_is_followed_too() {
    run(async || {
        let agent = FakeAgent {
            is_new: false,
            ..FakeAgent::new()
        };
        let mut host = Host::start(&agent);
        agent.stream(&[5000]);
        host.until_forwarded(5000).await;
        agent.stream(&[5001]);
        host.until_forwarded(5001).await;
        host.until(|n| matches!(n, Notice::Stopped { guest, .. } if guest.port == 5000))
            .await;
        let (summary, seen) = host.end().await;
        assert_eq!(summary.repaired, 0, "{seen:?}");
    });
}

#[test]
fn a_missed_event_is_repaired_after_a_second_look_and_counted() {
    run(async || {
        let agent = FakeAgent::new();
        let mut host = Host::start(&agent);
        agent.stream(&[5000]);
        host.until_forwarded(5000).await;
        *agent.polled.lock().expect("no panic") = Some(vec![5001]);
        host.until(|n| *n == Notice::Repaired(Repair::Opened(5001)))
            .await;
        host.until_forwarded(5001).await;
        *agent.polled.lock().expect("no panic") = None;
        let (summary, seen) = host.end().await;
        // The truth came back: what was repaired is repaired back, or was not yet.
        assert!(summary.repaired >= 2, "{seen:?}");
        assert!(
            seen.contains(&Notice::Repaired(Repair::Closed(5000))),
            "{seen:?}"
        );
    });
}

#[test]
fn an_agent_that_cannot_stream_is_polled() {
    run(async || {
        let agent = FakeAgent {
            can_watch: false,
            ..FakeAgent::new()
        };
        let mut host = Host::start(&agent);
        let connected = host
            .until(|n| matches!(n, Notice::AgentConnected { .. }))
            .await;
        assert!(
            connected.to_string().contains("checking once a second"),
            "{connected}"
        );
        agent.stream(&[5000]);
        host.until_forwarded(5000).await;
        agent.stream(&[]);
        host.until(|n| matches!(n, Notice::Stopped { .. })).await;
        assert_eq!(host.end().await.0.repaired, 0);
    });
}

#[test]
fn an_agent_of_another_version_is_served_and_said() {
    run(async || {
        let agent = FakeAgent {
            version: "0.0.9\u{1b}[2J",
            ..FakeAgent::new()
        };
        let mut host = Host::start(&agent);
        let connected = host
            .until(|n| matches!(n, Notice::AgentConnected { .. }))
            .await;
        assert!(connected.is_problem());
        let text = connected.to_string();
        assert!(!text.contains(char::is_control), "{text}");
        assert!(text.starts_with("Agent 0.0.9"), "{text}");
        let ours = concat!("rum is ", env!("CARGO_PKG_VERSION"));
        assert!(text.contains(ours), "{text}");
        agent.stream(&[5000]);
        host.until_forwarded(5000).await;
        host.end().await;
    });
}

#[test]
fn an_agent_of_another_protocol_is_served_or_said() {
    run(async || {
        let newer = FakeAgent {
            protocol: PROTOCOL + 1,
            ..FakeAgent::new()
        };
        let mut host = Host::start(&newer);
        newer.stream(&[5000]);
        host.until_forwarded(5000).await;
        host.end().await;
        let older = FakeAgent {
            version: "0.0.1",
            protocol: OLDEST_PROTOCOL - 1,
            ..FakeAgent::new()
        };
        let mut host = Host::start(&older);
        older.stream(&[5000]);
        let said = host
            .until(|n| matches!(n, Notice::AgentAwaited { .. }))
            .await;
        let text = said.to_string();
        for part in [
            "no longer understands rum-agent 0.0.1",
            "`rum agent install`",
        ] {
            assert!(text.contains(part), "{text}");
        }
        let (_, seen) = host.end().await;
        let served = seen.iter().any(|n| matches!(n, Notice::Forwarded { .. }));
        assert!(!served, "{seen:?}");
    });
}

#[test]
fn forwards_outlive_a_short_loss_and_an_end_closes_everything() {
    run(async || {
        let agent = FakeAgent::new();
        let mut host = Host::start(&agent);
        agent.stream(&[5000]);
        host.until_forwarded(5000).await;
        // Every session ends; the sockets stay, with nobody behind them.
        host._agent.abort_all();
        host.until(|n| matches!(n, Notice::AgentLost { .. })).await;
        let addr = SocketAddr::from(([127, 0, 0, 1], 5000));
        TcpStream::connect_timeout(&addr, Duration::from_secs(10)).expect("still bound");
        let (_, seen) = host.end().await;
        assert!(!seen.contains(&Notice::AutoForwardsDropped), "{seen:?}");
        let error = TcpStream::connect(addr).expect_err("closed");
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
    });
}
