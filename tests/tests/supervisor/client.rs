//! When the connections to an agent are made, given up, tried again and polled.

use std::os::unix::net::UnixListener;
use std::time::Duration;

use rum_host::stream::backoff::{FIRST, LAST};
use rum_host::stream::client::{AgentClient, AgentEvent, LinkState, POLL_PERIOD};
use rum_shared::range::PortRange;
use rum_shared::stream::rpc::HEARTBEAT_DEADLINE;
use rum_shared::stream::session::Limits;
use rum_shared::transport::{Endpoint, Transport};
use rum_tests::fake_agent::FakeAgent;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::clock::{Clock, STEP, is};

struct Client {
    clock: Clock,
    agent: FakeAgent,
    dir: tempfile::TempDir,
    events: mpsc::Receiver<AgentEvent>,
    link: watch::Receiver<LinkState>,
    retry_now: watch::Sender<()>,
    poll_now: watch::Sender<()>,
    _range: watch::Sender<PortRange>,
    tasks: JoinSet<()>,
}

impl Client {
    /// A client whose agent is not there yet.
    fn start() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let (events_tx, events) = mpsc::channel(1000);
        let (link_tx, link) = watch::channel(LinkState::Down);
        let (range_tx, range) = watch::channel(PortRange::ALL);
        let (retry_now, retry_rx) = watch::channel(());
        let (poll_now, poll_rx) = watch::channel(());
        let client = AgentClient {
            transport: Transport::from(Endpoint::Unix {
                rpc: dir.path().join("rpc"),
                channel: dir.path().join("channel"),
                net: None,
            }),
            range,
            stream: true,
            retry_now: retry_rx,
        };
        let mut tasks = JoinSet::new();
        tasks.spawn(client.run(events_tx, link_tx, poll_rx));
        Self {
            clock: Clock::stop(),
            agent: FakeAgent::new(),
            dir,
            events,
            link,
            retry_now,
            poll_now,
            _range: range_tx,
            tasks,
        }
    }

    /// Starts its agent, which lives as long as what this returns.
    fn serve(&self) -> JoinSet<()> {
        self.agent.serve(self.dir.path()).1
    }

    /// With an agent whose snapshot has arrived.
    async fn connected() -> (Self, JoinSet<()>) {
        let mut client = Self::start();
        let agent = client.serve();
        client.until_heard().await;
        (client, agent)
    }

    async fn until_heard(&mut self) {
        let events = &mut self.events;
        let heard = || matches!(events.try_recv(), Ok(AgentEvent::Watch { .. })).then_some(());
        self.clock.until(heard).await;
    }

    /// The next loss: why, when the next attempt is made, and how long it took to come.
    async fn lost(&mut self) -> (String, Duration, Duration) {
        let events = &mut self.events;
        let lost = || {
            let events = std::iter::from_fn(|| events.try_recv().ok());
            let mut lost = events.filter_map(|event| match event {
                AgentEvent::Lost { reason, retry } => Some((reason, retry)),
                _ => None,
            });
            lost.next()
        };
        let ((reason, retry), took) = self.clock.until(lost).await;
        (reason, retry.expect("it tries again"), took)
    }

    /// How long the next poll takes to come.
    async fn polled(&mut self) -> Duration {
        let mut polls = self.agent.polls.subscribe();
        polls.mark_unchanged();
        let polled = || polls.has_changed().expect("the agent lives").then_some(());
        self.clock.until(polled).await.1
    }
}

#[tokio::test]
async fn attempts_come_after_growing_delays() {
    let mut client = Client::start();
    let mut step = FIRST;
    let mut delay = Duration::ZERO;
    for _ in 0..10 {
        let (_, retry, took) = client.lost().await;
        assert!(is(took, delay), "{took:?} instead of {delay:?}");
        assert!(step / 2 <= retry && retry <= step, "{retry:?} of {step:?}");
        (delay, step) = (retry, (step * 2).min(LAST));
    }
    assert_eq!(step, LAST);
    // Somebody asks for it: at once.
    client.retry_now.send_replace(());
    assert_eq!(client.lost().await.2, Duration::ZERO);
}

#[tokio::test]
async fn only_a_connection_that_lasts_makes_the_next_delay_short() {
    let (mut client, mut agent) = Client::connected().await;
    // The first in a row that does not last is excused: an agent that restarts.
    let mut most = [FIRST, FIRST * 2, FIRST * 4].into_iter();
    let mut least = [FIRST / 2, FIRST, FIRST * 2].into_iter();
    for (least, most) in least.by_ref().zip(most.by_ref()) {
        drop(agent);
        let (reason, retry, _) = client.lost().await;
        assert!(least <= retry && retry <= most, "{retry:?}: {reason}");
        agent = client.serve();
        client.until_heard().await;
    }
    client.clock.advance(Duration::from_millis(510)).await;
    drop(agent);
    assert!(client.lost().await.1 <= FIRST);
}

#[tokio::test]
async fn an_agent_without_a_heartbeat_is_lost() {
    let (mut client, _agent) = Client::connected().await;
    client.clock.advance(Duration::from_secs(30)).await;
    while let Ok(event) = client.events.try_recv() {
        assert!(!matches!(event, AgentEvent::Lost { .. }), "{event:?}");
    }
    client.agent.silent.send_replace(true);
    let LinkState::Streaming(heard) = *client.link.borrow() else {
        panic!("no stream");
    };
    let ago = Instant::now().into_std() - heard;
    let (reason, _, took) = client.lost().await;
    assert_eq!(reason, "no heartbeat for 4 s");
    assert!(is(took + ago, HEARTBEAT_DEADLINE), "{took:?} + {ago:?}");
}

#[tokio::test]
async fn an_agent_that_never_answers_is_given_up() {
    let mut client = Client::start();
    // In its backlog every connection is taken, and that is all.
    let _deaf = UnixListener::bind(client.dir.path().join("rpc")).expect("a socket");
    let (_, retry, _) = client.lost().await;
    let (reason, _, took) = client.lost().await;
    assert!(
        is(took, retry + Limits::HOST.handshake),
        "{took:?}: {reason}"
    );
}

#[tokio::test]
async fn a_poll_comes_each_second_however_busy_the_stream_is() {
    let (mut client, _agent) = Client::connected().await;
    // The first needs a session of its own, which is made right after a heartbeat.
    client.polled().await;
    for _ in 0..5 {
        let took = client.polled().await;
        assert!(is(took, POLL_PERIOD), "{took:?}");
    }
    let before = *client.agent.polls.borrow();
    for change in 0..100 {
        client.agent.stream(&[5000 + change]);
        client.clock.advance(Duration::from_millis(90)).await;
        while client.events.try_recv().is_ok() {}
    }
    // Each comes a step late at most.
    let polls = *client.agent.polls.borrow() - before;
    assert!((8..=9).contains(&polls), "{polls}");
    // And when it is asked for.
    client.clock.advance(Duration::from_millis(200)).await;
    client.poll_now.send_replace(());
    assert_eq!(client.polled().await, Duration::ZERO);
    assert!(is(client.polled().await, POLL_PERIOD));
}

#[tokio::test]
async fn polls_do_not_pile_up_behind_a_slow_one() {
    let (mut client, _agent) = Client::connected().await;
    client.polled().await;
    client.agent.poll_gate.forget_permits(usize::MAX);
    client.polled().await;
    let held = *client.agent.polls.borrow();
    client.clock.advance(Duration::from_millis(2500)).await;
    assert_eq!(*client.agent.polls.borrow(), held);
    client.agent.poll_gate.add_permits(1000);
    let took = client.polled().await;
    assert!(is(took, POLL_PERIOD), "{took:?}");
    assert!(is(client.polled().await, POLL_PERIOD));
}

#[tokio::test]
async fn a_poll_without_an_answer_is_given_up_and_the_next_asks_anew() {
    let (mut client, _agent) = Client::connected().await;
    client.polled().await;
    client.agent.poll_gate.forget_permits(usize::MAX);
    client.polled().await;
    // The next in a session of its own, right after a heartbeat.
    let took = client.polled().await;
    let deadline = Duration::from_secs(3);
    let least = deadline + POLL_PERIOD;
    assert!(
        least <= took && took <= least + POLL_PERIOD + 3 * STEP,
        "{took:?}"
    );
    assert!(client.tasks.try_join_next().is_none());
}
