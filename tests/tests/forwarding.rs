//! The main job, end to end: a real `rum up` with a namespace guest, real listeners in it, real
//! connections to the host ports. Each test has a network namespace of its own as its host, so
//! the same ports serve all of them at once.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener};

use rum_host::status::model::{PortStatus, State};
use rum_tests::Fnv;
use rum_tests::client::{connect, exchange, host, until_refused};
use rum_tests::netns::in_netns;
use rum_tests::ports::{follow, until_port};
use rum_tests::rum::Setup;

const RANGE: [&str; 2] = ["--range", "5000-6000"];

#[test]
fn a_listener_is_reachable_and_gone_with_it() {
    in_netns(|| {
        let (rum, mut guest) = Setup::new().start_guest(&RANGE);
        for round in 1..=3 {
            guest.tell("listen 127.0.0.1:5000 echo");
            let line = "Auto-forwarding 127.0.0.1:5000 → guest:5000";
            rum.stderr.wait_nth(line, round);
            assert_eq!(
                exchange(5000, "over and out").expect("echo"),
                "over and out"
            );
            guest.tell("close 127.0.0.1:5000");
            rum.stderr.wait_nth("Stopped forwarding 5000", round);
            until_refused(5000);
        }
        // Outside the range nothing happens: 5001 comes after it and is seen.
        guest.tell("listen 127.0.0.1:4999 echo");
        guest.tell("listen 127.0.0.1:5001 echo");
        rum.stderr.wait("127.0.0.1:5001");
        until_refused(4999);
    });
}

#[test]
fn every_kind_of_address_is_reached() {
    in_netns(|| {
        let (rum, mut guest) = Setup::new().start_guest(&RANGE);
        let listeners = [
            "listen 127.0.0.1:5001 echo",
            "listen 0.0.0.0:5002 echo",
            "listen [::1]:5003 echo",
            "v6only [::]:5004 echo",
            "listen [::]:5005 echo",
            "listen 127.0.0.9:5006 echo",
            "mptcp 127.0.0.1:5007 echo",
        ];
        for (port, listener) in (5001..).zip(listeners) {
            guest.tell(listener);
            rum.stderr.wait(&format!("→ guest:{port}"));
            assert_eq!(exchange(port, listener).expect(listener), listener);
        }
        let lines = rum.stderr.all();
        let mptcp = lines.iter().filter(|l| l.contains("guest:5007")).count();
        assert_eq!(mptcp, 1, "an MPTCP listener is one port: {lines:?}");
    });
}

#[test]
fn twins_and_both_families_are_one_port_that_stays_up() {
    in_netns(|| {
        let (rum, mut guest) = Setup::new().start_guest(&RANGE);
        guest.tell("twin 127.0.0.1:5000 echo");
        rum.stderr.wait("Auto-forwarding 127.0.0.1:5000");
        guest.tell("twin 127.0.0.1:5000 echo");
        guest.tell("v6only [::1]:5000 echo");
        guest.tell("close 127.0.0.1:5000");
        assert_eq!(exchange(5000, "still").expect("a twin lives"), "still");
        guest.tell("close 127.0.0.1:5000");
        // Rebound at once on another address: also one port that stays.
        guest.tell("listen 127.0.0.2:5000 echo");
        guest.tell("close [::1]:5000");
        guest.tell("listen 127.0.0.1:5001 echo");
        rum.stderr.wait("127.0.0.1:5001");
        assert_eq!(exchange(5000, "still").expect("rebound"), "still");
        let lines = rum.stderr.all();
        assert!(!lines.iter().any(|l| l.contains("Stopped")), "{lines:?}");
    });
}

#[test]
fn a_listener_that_was_shut_down_is_gone_while_its_socket_lives() {
    in_netns(|| {
        let (rum, mut guest) = Setup::new().start_guest(&RANGE);
        guest.tell("listen 127.0.0.1:5000 silent");
        rum.stderr.wait("Auto-forwarding 127.0.0.1:5000");
        guest.tell("shutdown 127.0.0.1:5000");
        rum.stderr.wait("Stopped forwarding 5000");
        until_refused(5000);
    });
}

#[test]
fn half_close_works_in_both_directions() {
    in_netns(|| {
        let (rum, mut guest) = Setup::new().start_guest(&RANGE);
        // The client ends first and still gets the whole answer.
        guest.tell("listen 127.0.0.1:5000 late");
        rum.stderr.wait("127.0.0.1:5000");
        let text = "x".repeat(3_000_000);
        assert_eq!(exchange(5000, &text).expect("the late answer"), text);
        // The server ends first and still hears the client.
        guest.tell("listen 127.0.0.1:5001 greet-then-read");
        rum.stderr.wait("127.0.0.1:5001");
        let mut stream = connect(5001);
        let mut greeting = String::new();
        stream.read_to_string(&mut greeting).expect("its end");
        assert_eq!(greeting, "greetings");
        stream.write_all(b"good night").expect("the way in is open");
        stream.shutdown(Shutdown::Write).expect("a socket");
        assert_eq!(guest.line(), "heard good night");
    });
}

#[test]
fn bytes_arrive_unchanged_and_a_reset_stays_a_reset() {
    in_netns(|| {
        let (rum, mut guest) = Setup::new().start_guest(&RANGE);
        guest.tell("listen 127.0.0.1:5000 sink");
        guest.tell("listen 127.0.0.1:5001 reset");
        rum.stderr.wait("127.0.0.1:5000");
        rum.stderr.wait("127.0.0.1:5001");
        let mut hash = Fnv::default();
        let mut stream = connect(5000);
        let mut block = vec![0u8; 70_001];
        let mut count = 0;
        for round in 0..500u32 {
            for (i, byte) in block.iter_mut().enumerate() {
                *byte = (i as u32 ^ round.wrapping_mul(2_654_435_761)) as u8;
            }
            hash.update(&block);
            count += block.len();
            stream.write_all(&block).expect("the sink reads");
        }
        stream.shutdown(Shutdown::Write).expect("a socket");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("the answer");
        assert_eq!(answer.trim(), format!("{count} {:016x}", hash.value()));

        let mut stream = connect(5001);
        stream.write_all(b"!").expect("connected");
        let error = stream.read(&mut [0; 8]).expect_err("not a clean end");
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    });
}

#[test]
fn connections_go_on_after_their_listener_closed() {
    in_netns(|| {
        let setup = Setup::new();
        let (rum, mut guest) = setup.start_guest(&RANGE);
        guest.tell("listen 127.0.0.1:5000 echo");
        rum.stderr.wait("Auto-forwarding 127.0.0.1:5000");
        let mut stream = connect(5000);
        let mut byte = [0];
        stream.write_all(b"a").expect("connected");
        stream.read_exact(&mut byte).expect("echo");
        guest.tell("close 127.0.0.1:5000");
        rum.stderr
            .wait("Stopped forwarding 5000 (1 connection still open)");
        until_refused(5000);
        let mut echoes = |text: &[u8; 1]| {
            stream.write_all(text).expect("it goes on");
            stream.read_exact(&mut byte).expect("it goes on");
            assert_eq!(&byte, text);
        };
        echoes(b"b");
        let draining = |port: &PortStatus| port.state == State::Draining;
        let shown = until_port(&setup, "guest:5000", draining);
        assert_eq!(shown.connections.now, 1);
        // It is a connection of the next one, and none that drains.
        guest.tell("listen 127.0.0.1:5000 echo");
        rum.stderr.wait_nth("Auto-forwarding 127.0.0.1:5000", 2);
        echoes(b"c");
        assert_eq!(exchange(5000, "new").expect("echo"), "new");
        let ports = follow(&setup, "what is forwarded", |known| {
            Some(
                known
                    .ports()
                    .map(|p| (p.id.clone(), p.state))
                    .collect::<Vec<_>>(),
            )
        });
        assert_eq!(ports, [("guest:5000".to_owned(), State::Forwarded)]);
    });
}

#[test]
fn a_drain_time_of_zero_cuts() {
    in_netns(|| {
        let setup = Setup::new();
        let config = "[auto_ports]\nrange = \"5000-6000\"\ndrain = \"0\"\n";
        std::fs::write(setup.path().join("rum.toml"), config).expect("a file");
        let (rum, mut guest) = setup.start_guest(&[]);
        guest.tell("listen 127.0.0.1:5000 echo");
        rum.stderr.wait("Auto-forwarding 127.0.0.1:5000");
        let mut stream = connect(5000);
        stream.write_all(b"a").expect("connected");
        stream.read_exact(&mut [0]).expect("echo");
        guest.tell("close 127.0.0.1:5000");
        let error = stream.read(&mut [0; 8]).expect_err("cut");
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    });
}

#[test]
fn a_taken_host_port_is_reported_and_taken_when_free() {
    in_netns(|| {
        let holder = TcpListener::bind(host(5000)).expect("free in this namespace");
        let (rum, mut guest) = Setup::new().start_guest(&RANGE);
        guest.tell("listen 127.0.0.1:5000 echo");
        let line = rum.stderr.wait("Not forwarding guest:5000 yet");
        assert!(line.contains("is taken by"), "{line}");
        assert!(line.contains(&std::process::id().to_string()), "{line}");
        // Everything else goes on.
        guest.tell("listen 127.0.0.1:5001 echo");
        rum.stderr.wait("Auto-forwarding 127.0.0.1:5001");
        drop(holder);
        rum.stderr.wait("Auto-forwarding 127.0.0.1:5000");
        assert_eq!(exchange(5000, "mine").expect("echo"), "mine");
    });
}

#[test]
fn the_next_free_port_is_taken_where_that_is_wanted() {
    in_netns(|| {
        let _holder = TcpListener::bind(host(5000)).expect("free in this namespace");
        let setup = Setup::new();
        let config = "[auto_ports]\nrange = \"5000-6000\"\non_conflict = \"next\"\n";
        std::fs::write(setup.path().join("rum.toml"), config).expect("a file");
        let (rum, mut guest) = setup.start_guest(&[]);
        guest.tell("listen 127.0.0.1:5000 echo");
        rum.stderr
            .wait("Auto-forwarding 127.0.0.1:5001 → guest:5000");
        assert_eq!(exchange(5001, "next").expect("echo"), "next");
    });
}

#[test]
fn static_forwards_and_the_range_work_side_by_side() {
    in_netns(|| {
        let setup = Setup::new();
        let config = "name = \"side\"\n[[ports]]\nhost = 8080\nguest = 80\n\
                      [[ports]]\nhost = 8081\nguest = 5001\n\
                      [auto_ports]\nrange = \"5000-6000\"\n";
        std::fs::write(setup.path().join("rum.toml"), config).expect("a file");
        let (rum, mut guest) = setup.start_guest(&[]);
        rum.stderr.wait("Forwarding 127.0.0.1:8080 → guest:80");
        // Nothing listens yet: the connection is reset, not left hanging or closed cleanly.
        let error = exchange(8080, "?").expect_err("nothing listens");
        assert!(
            [ErrorKind::ConnectionReset, ErrorKind::BrokenPipe].contains(&error.kind()),
            "{error}"
        );
        guest.tell("listen 127.0.0.1:80 echo");
        guest.tell("listen 127.0.0.1:5001 echo");
        rum.stderr.wait("Auto-forwarding 127.0.0.1:5001");
        for port in [8080, 8081, 5001] {
            assert_eq!(exchange(port, "hello").expect("echo"), "hello");
        }
    });
}

#[test]
fn five_hundred_listeners_at_once() {
    in_netns(|| {
        let (rum, mut guest) = Setup::new().start_guest(&RANGE);
        guest.tell("many 5100 500");
        for port in (5100..5600).rev() {
            rum.stderr
                .wait(&format!("Auto-forwarding 127.0.0.1:{port} "));
        }
        guest.tell("close-many 5100 500");
        for port in (5100..5600).rev() {
            rum.stderr.wait(&format!("Stopped forwarding {port}"));
            until_refused(port);
        }
    });
}

#[test]
fn the_agent_may_be_killed_at_any_time() {
    in_netns(|| {
        let (rum, mut guest) = Setup::new().start_guest(&RANGE);
        guest.tell("listen 127.0.0.1:5000 echo");
        rum.stderr.wait("Auto-forwarding 127.0.0.1:5000");
        let mut stream = connect(5000);
        stream.write_all(b"a").expect("connected");
        stream.read_exact(&mut [0]).expect("echo");
        for round in 1..=3 {
            rum.kill_agent();
            // The connection does not need it: its socket was handed over.
            stream.write_all(b"b").expect("the connection lives");
            stream.read_exact(&mut [0]).expect("echo");
            rum.stderr.wait_nth("Agent lost", round);
            // Missed while it was away, or seen by the new one: the result is the same.
            guest.tell(&format!("listen 127.0.0.1:{} echo", 5000 + round));
            rum.stderr.wait_nth("connected (events", round + 1);
            rum.stderr
                .wait(&format!("Auto-forwarding 127.0.0.1:{} ", 5000 + round));
            assert_eq!(exchange(5000, "back").expect("echo"), "back");
        }
        let lines = rum.stderr.all();
        assert!(!lines.iter().any(|l| l.contains("Stopped")), "{lines:?}");
    });
}

#[test]
fn what_no_event_told_is_repaired_by_the_poll_and_counted() {
    in_netns(|| {
        let blind = ["--range", "5000-6000", "--agent-arg=--hint=none"];
        let (rum, mut guest) = Setup::new().start_guest(&blind);
        rum.stderr.wait("connected (events: none");
        // The agent looks by itself after the subscription, and after each repair: what happens
        // just before that is told. With three ports that is once the odd changes, once the even.
        for round in 1..=2 {
            for port in 5000..5003 {
                guest.tell(&format!("listen 127.0.0.1:{port} echo"));
                let forwarded = format!("Auto-forwarding 127.0.0.1:{port}");
                rum.stderr.wait_nth(&forwarded, round);
                assert_eq!(exchange(port, "late").expect("echo"), "late");
            }
            for port in 5000..5003 {
                guest.tell(&format!("close 127.0.0.1:{port}"));
                let stopped = format!("Stopped forwarding {port}");
                rum.stderr.wait_nth(&stopped, round);
            }
        }
        let lines = rum.stderr.all();
        let found = |what: &str| {
            let mut found = lines.iter().filter(|l| l.contains("no event reported it"));
            found.any(|line| line.contains(what))
        };
        assert!(found("open") && found("closed"), "{lines:?}");
    });
}

#[test]
fn both_sources_and_both_hints_do_the_job() {
    for args in [
        ["--agent-arg=--hint=poll", "--agent-arg=--source=netlink"],
        ["--agent-arg=--hint=poll", "--agent-arg=--source=proc"],
        ["--agent-arg=--hint=tracepoint", "--agent-arg=--source=proc"],
    ] {
        in_netns(|| {
            let args = [RANGE[0], RANGE[1], args[0], args[1]];
            let (rum, mut guest) = Setup::new().start_guest(&args);
            guest.tell("listen [::1]:5000 echo");
            rum.stderr.wait("Auto-forwarding 127.0.0.1:5000");
            assert_eq!(exchange(5000, "hi").expect("echo"), "hi");
            guest.tell("close [::1]:5000");
            rum.stderr.wait("Stopped forwarding 5000");
            let lines = rum.stderr.all();
            assert!(
                !lines.iter().any(|l| l.contains("no event reported it")),
                "{lines:?}"
            );
        });
    }
}

#[test]
fn a_healthy_run_repairs_nothing() {
    in_netns(|| {
        let (rum, mut guest) = Setup::new().start_guest(&["--range", "5000-6000", "-v"]);
        for round in 0..40u16 {
            let first = 5000 + round * 20;
            guest.tell(&format!("many {first} 20"));
            // On a busy machine one that is gone sooner is never heard of.
            let last = first + 19;
            rum.stderr
                .wait(&format!("Auto-forwarding 127.0.0.1:{last} "));
            guest.tell(&format!("close-many {first} 20"));
        }
        guest.tell("listen 127.0.0.1:6000 echo");
        rum.stderr.wait("Auto-forwarding 127.0.0.1:6000");
        rum.stderr.wait("Stopped forwarding 5799");
        let lines = rum.stderr.all();
        assert!(
            !lines.iter().any(|l| l.contains("no event reported it")),
            "{lines:?}"
        );
    });
}
