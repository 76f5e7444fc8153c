//! When the loop gives up, tries again, looks a second time and cuts.

use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixListener;
use std::time::Duration;

use rum_host::plan::CONFLICT_RETRY;
use rum_host::plan::reconcile::{CONFIRM_AFTER, Repair};
use rum_host::supervisor::{GRACE, PAUSE, Stop};
use rum_host::ui::notice::Notice;
use rum_tests::client::host;
use rum_tests::fake_agent::FakeAgent;

use crate::clock::{Clock, is};
use crate::{Host, run};

impl Host {
    /// How long such a notice takes to come.
    async fn takes(&mut self, clock: &Clock, what: impl Fn(&Notice) -> bool) -> Duration {
        let notices = &mut self.notices;
        let come = || {
            std::iter::from_fn(|| notices.try_recv().ok())
                .any(|notice| what(&notice))
                .then_some(())
        };
        clock.until(come).await.1
    }
}

fn is_stopped(notice: &Notice) -> bool {
    matches!(notice, Notice::Stopped { .. })
}

fn is_forwarded(notice: &Notice) -> bool {
    matches!(notice, Notice::Forwarded { .. })
}

#[test]
fn the_forwards_of_a_lost_agent_stay_for_the_grace_time() {
    run(async || {
        let clock = Clock::stop();
        let agent = FakeAgent::new();
        let mut host = Host::start(&agent);
        agent.stream(&[5000]);
        host.takes(&clock, is_forwarded).await;
        host._agent.abort_all();
        host.takes(&clock, |n| matches!(n, Notice::AgentLost { .. }))
            .await;
        let took = host
            .takes(&clock, |n| *n == Notice::AutoForwardsDropped)
            .await;
        assert!(is(took, GRACE), "{took:?}");
        let took = host.takes(&clock, is_stopped).await;
        assert!(is(took, PAUSE), "{took:?}");
    });
}

#[test]
fn a_port_that_is_tried_before_it_is_taken_is_told_once() {
    run(async || {
        let clock = Clock::stop();
        let agent = FakeAgent::new();
        let mut host = Host::start(&agent);
        agent.stream(&[5000]);
        host.takes(&clock, is_forwarded).await;
        for _ in 0..3 {
            agent.stream(&[]);
            clock.advance(PAUSE / 2).await;
            agent.stream(&[5000]);
            clock.advance(PAUSE * 2).await;
            assert_eq!(host.notices.try_recv().ok(), None);
        }
        // One that is tried for a moment, and not taken, has stopped.
        agent.stream(&[]);
        let took = host.takes(&clock, is_stopped).await;
        assert!(is(took, PAUSE), "{took:?}");
        // At the end nothing is held back.
        agent.stream(&[5000]);
        host.takes(&clock, is_forwarded).await;
        agent.stream(&[]);
        clock.settle().await;
        assert_eq!(host.notices.try_recv().ok(), None);
        let (_, seen) = host.end().await;
        assert!(matches!(seen[..], [Notice::Stopped { .. }]), "{seen:?}");
    });
}

#[test]
fn an_address_that_stays_taken_during_a_pause_is_told_once() {
    run(async || {
        let _taken = TcpListener::bind("[::1]:5000").expect("a free port");
        let clock = Clock::stop();
        let agent = FakeAgent::new();
        let mut host = Host::start(&agent);
        agent.stream(&[5000]);
        let blocked = |n: &Notice| matches!(n, Notice::Blocked { .. });
        host.until(blocked).await;
        agent.stream(&[]);
        clock.advance(PAUSE / 2).await;
        agent.stream(&[5000]);
        // Time for whoever looks who has it, again and again.
        clock.advance(PAUSE * 200).await;
        assert_eq!(host.notices.try_recv().ok(), None);
        agent.stream(&[]);
        host.takes(&clock, is_stopped).await;
        agent.stream(&[5000]);
        host.takes(&clock, is_forwarded).await;
        // A look may have to wait for its turn, which is a matter of time.
        host.takes(&clock, blocked).await;
    });
}

#[test]
fn a_taken_port_is_tried_again_after_a_while() {
    run(async || {
        let taken = TcpListener::bind(host(5000)).expect("a free port");
        let clock = Clock::stop();
        let agent = FakeAgent::new();
        let mut host = Host::start(&agent);
        agent.stream(&[5000]);
        // Who has it is found out in a thread of its own.
        host.until(|n| matches!(n, Notice::Blocked { .. })).await;
        clock.advance(CONFLICT_RETRY).await;
        drop(taken);
        let took = host.takes(&clock, is_forwarded).await;
        assert!(!took.is_zero() && took <= CONFLICT_RETRY, "{took:?}");
    });
}

#[test]
fn what_a_poll_tells_differently_is_asked_again_soon() {
    run(async || {
        let clock = Clock::stop();
        let agent = FakeAgent::new();
        let mut host = Host::start(&agent);
        agent.stream(&[5000]);
        host.takes(&clock, is_forwarded).await;
        clock.advance(Duration::from_secs(3)).await;
        *agent.polled.lock().expect("no panic") = Some(vec![5000, 5001]);
        let mut polls = agent.polls.subscribe();
        polls.mark_unchanged();
        let polled = || polls.has_changed().expect("it lives").then_some(());
        clock.until(polled).await;
        let repaired = Notice::Repaired(Repair::Opened(5001));
        let took = host.takes(&clock, |n| *n == repaired).await;
        assert!(is(took, CONFIRM_AFTER), "{took:?}");
    });
}

#[test]
fn an_end_gives_connections_their_time_and_then_cuts_them() {
    for (stop, time) in [
        (Stop::Drain(Duration::from_secs(5)), Duration::from_secs(5)),
        (Stop::Cut, Duration::ZERO),
    ] {
        run(async || {
            let clock = Clock::stop();
            let agent = FakeAgent::new();
            let mut host = Host::start(&agent);
            agent.stream(&[5000]);
            host.takes(&clock, is_forwarded).await;
            // A connection waits for the answer to come through its channel.
            let channel = host._dir.path().join("channel");
            let _deaf = UnixListener::bind(channel).expect("a socket");
            let _client = TcpStream::connect(rum_tests::client::host(5000)).expect("bound");
            clock.settle().await;
            host.stop.send_replace(stop);
            let ended = || host.run.is_finished().then_some(());
            let took = clock.until(ended).await.1;
            assert!(is(took, time), "{took:?}");
        });
    }
}
