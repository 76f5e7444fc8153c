//! An agent that lies to a real `rum up`, behind a socket that speaks `CONNECT`.

mod liar;

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rum_shared::listener::{BoundAddr, Listener, Process};
use rum_shared::stream::link::MAX_SESSION_FRAMES;
use rum_shared::stream::rpc::WatchEvent;
use rum_tests::client;
use rum_tests::fake_agent::FakeAgent;
use rum_tests::netns::in_netns;
use rum_tests::rum::{Rum, Setup};
use rum_tests::wait::until;

use self::liar::{Device, Liar};
use super::support::{first_frame, flood, frame, item, peak_mib, recorded};

/// What `rum up` may have resident under these lies, in MiB (a debug build).
const MOST: u64 = 96;

struct Host {
    setup: Setup,
    device: Device,
    rum: Rum,
}

impl Host {
    /// A `rum up` in front of an honest agent, which says that something listens on port 6000.
    fn start() -> Self {
        let setup = Setup::new();
        let device = Device::start(setup.path());
        let config = format!(
            "[guest]\nkind = \"unix\"\nsocket = \"{}\"\n\
             [auto_ports]\nrange = \"5000-6000\"\n\
             [[ports]]\nhost = 8080\nguest = 80\n",
            setup.path().join("vm").display()
        );
        std::fs::write(setup.path().join("rum.toml"), config).expect("a file");
        // The log has the reason of each attempt, the notice only the first in a row.
        let mut command = setup.rum(["up"]);
        let rum = setup.start_command(command.env("RUST_LOG", "rum_host=debug"));
        let host = Self { setup, device, rum };
        host.serves_an_honest_one(6000);
        host
    }

    /// An honest agent comes: its `port` is forwarded, and it is polled.
    fn serves_an_honest_one(&self, port: u16) {
        let agent = FakeAgent::new();
        agent.stream(&[port]);
        let polls = agent.polls.subscribe();
        self.device.be(liar::served(agent));
        let line = format!("Auto-forwarding 127.0.0.1:{port} ");
        self.rum.stdout.wait(&line);
        until("a poll", || (*polls.borrow() > 0).then_some(()));
    }

    /// What the forward of port 80 and everything else cost so far is bounded, and no escape
    /// sequence got through.
    fn is_sound(&self) {
        client::connect(8080);
        let peak = peak_mib(self.rum.child.id());
        assert!(peak <= MOST, "{peak} MiB");
        for line in [self.rum.stdout.all(), self.rum.stderr.all()].concat() {
            let harmful = |c: char| c.is_control() && c != '\t';
            assert!(!line.contains(harmful), "{line:?}");
        }
    }
}

fn delta(generation: u64, opened: Vec<Listener>) -> WatchEvent {
    WatchEvent::Delta {
        generation,
        opened,
        changed: vec![],
        closed: vec![],
    }
}

fn snapshot(listeners: Vec<Listener>) -> WatchEvent {
    WatchEvent::Snapshot {
        generation: 5,
        source: "\u{1b}[2J".repeat(1000),
        listeners,
    }
}

/// Says `events`, then nothing more, not even heartbeats.
fn tells(events: impl IntoIterator<Item = WatchEvent>) -> Liar {
    let events: Vec<_> = events.into_iter().collect();
    Liar::new(move |n| events.get(n).cloned())
}

/// Says that nothing listens, then nothing at all, not even by a knock.
fn falls_silent(device: Device) -> Liar {
    Liar::new(move |n| {
        device.knock(false);
        (n == 0).then(|| snapshot(vec![]))
    })
}

#[test]
fn rum_says_what_it_saw_and_serves_the_next() {
    in_netns(|| {
        let host = Host::start();
        let bare = Listener::bare;
        let named = Listener {
            process: Some(Process {
                pid: 1,
                name: "\u{1b}]0;x\u{7}".repeat(20),
                ..Process::default()
            }),
            ..bare(5000)
        };
        let any = BoundAddr::new(std::net::Ipv6Addr::UNSPECIFIED.into(), true);
        let spread = Listener {
            addresses: vec![any; 9],
            ..bare(5000)
        };
        let escapes = "\u{1b}[31m\u{202e}\r\n".repeat(5000);
        let lies = [
            (
                tells([snapshot(vec![bare(22)])]),
                "port 22 is outside 80-6000",
            ),
            (
                tells([snapshot((1..=65_535).map(bare).collect())]),
                "port 1 is outside",
            ),
            (
                tells([snapshot(vec![bare(5000); 70_000])]),
                "a list of 70000 ports",
            ),
            (
                tells([snapshot(vec![]), delta(5, vec![])]),
                "Agent lost: generation 5 came after 5",
            ),
            (
                tells([snapshot(vec![]), delta(3, vec![])]),
                "Agent lost: generation 3 came after 5",
            ),
            (tells([delta(1, vec![])]), "before the first snapshot"),
            (
                tells([snapshot(vec![named])]),
                "a process name of 120 bytes",
            ),
            (tells([snapshot(vec![spread])]), "has 9 addresses"),
            // It falls silent, and knocks as one would that has no session.
            (
                tells([snapshot(vec![])]),
                "Agent lost: the agent asks for a new connection",
            ),
            (
                falls_silent(host.device.clone()),
                "Agent lost: no heartbeat for 4 s",
            ),
            (
                tells([]).refusing(&escapes),
                "\u{fffd}[31m\u{fffd}\u{fffd}\u{fffd}",
            ),
        ];
        let mut port = 5001;
        for (lie, said) in lies {
            host.device.be(liar::served(lie));
            host.rum.stderr.wait(said);
            host.device.knock(true);
            host.serves_an_honest_one(port);
            port += 1;
        }
        // What is no session at all, or one of another service.
        let cut = recorded("agent");
        let cut = &cut[..first_frame(&cut).len() - 1];
        let raw: [(&[u8], &str); 3] = [
            (&[0xff; 8], "handshake failed"),
            (&frame(b"\x1b[2J"), "handshake failed"),
            (cut, "no answer within 5s"),
        ];
        for (n, (bytes, said)) in raw.into_iter().enumerate() {
            let bytes = bytes.to_vec();
            host.device.be(move |mut stream: UnixStream| {
                let _ = stream.write_all(&bytes);
                // Until rum closes it.
                let _ = std::io::copy(&mut stream, &mut std::io::sink());
            });
            host.rum.stderr.wait_nth(said, if n == 1 { 2 } else { 1 });
        }
        host.device.be(liar::served_as_another_service());
        host.rum
            .stderr
            .wait("`rum agent install` tells how to update one");
        host.serves_an_honest_one(port);
        host.is_sound();
        drop(host.setup);
    });
}

#[test]
fn floods_cost_bounded_memory_and_a_part_of_a_processor() {
    in_netns(|| {
        let host = Host::start();
        let agent = recorded("agent");
        for size in [0, 100_000] {
            let (told, sent) = std::sync::mpsc::channel();
            let said = agent.clone();
            host.device.be(move |stream: UnixStream| {
                let _ = told.send(flood(stream, &said, |n| item(n, size)));
            });
            let sent = sent.recv().expect("rum connects");
            assert!(u64::from(sent) <= 2 * MAX_SESSION_FRAMES, "{sent}");
            host.serves_an_honest_one(5000 + u16::from(size > 0));
        }

        // Changes without end: after what an honest agent may need at once they are only read at
        // the rate that is stated, here one each half second. roam lets a sender be 16 ahead.
        let told = Arc::new(AtomicU64::new(0));
        let count = told.clone();
        host.device.be(liar::served(Liar::new(move |n| {
            count.fetch_add(1, Ordering::Relaxed);
            let generation = n as u64 + 6;
            Some(match n {
                0 => snapshot(vec![]),
                _ => WatchEvent::Delta {
                    generation,
                    opened: vec![],
                    changed: vec![],
                    closed: vec![5000; 65_535],
                },
            })
        })));
        let reach = |n| {
            until("a flood", || {
                (told.load(Ordering::Relaxed) >= n).then(Instant::now)
            })
        };
        let before = reach(20);
        let took = reach(36) - before;
        assert!(
            took >= Duration::from_secs(3),
            "16 large changes in {took:?}"
        );
        host.serves_an_honest_one(5002);
        host.is_sound();
        drop(host.setup);
    });
}

#[test]
fn lies_on_a_channel_reset_its_client_and_nobody_else() {
    in_netns(|| {
        let host = Host::start();
        let lies: [&[u8]; 5] = [
            // No such status; frames that are too long, or cut; a reset; nothing at all.
            &[9],
            &[0, 0, 4, 0, 1],
            &[0, 0, 0, 0, 9, b'a'],
            &[0, 0xff, 0xff, 0xff, 0xff],
            &[],
        ];
        for lie in lies {
            host.device.channels(move |mut stream| {
                let _ = stream.write_all(lie);
                let _ = stream.shutdown(Shutdown::Write);
                let _ = std::io::copy(&mut stream, &mut std::io::sink());
            });
            let mut client = client::connect(8080);
            let end = client.read_to_end(&mut Vec::new());
            assert_eq!(
                end.expect_err("no clean end").kind(),
                ErrorKind::ConnectionReset
            );
        }
        // Data after the end: what was before it arrives, then the connection is reset.
        host.device.channels(|mut stream| {
            let _ = stream.write_all(&[0, 0, 0, 0, 1, b'a', 0, 0, 0, 0, 0, 0, 0, 1, b'b']);
            let _ = std::io::copy(&mut stream, &mut std::io::sink());
        });
        let mut client = client::connect(8080);
        let mut text = Vec::new();
        match client.read_to_end(&mut text) {
            Ok(_) => assert_eq!(text, b"a"),
            Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
        }
        until("a reset", || client.write_all(b"x").err());
        // Frames without end, to a client that reads some and leaves, and to one that never reads.
        let (told, ended) = std::sync::mpsc::channel();
        host.device.channels(move |stream| {
            let sent = flood(stream, &[0], |_| [&[0, 1, 0, 0][..], &[7; 65_536]].concat());
            let _ = told.send(sent);
        });
        let idle = client::connect(8080);
        let mut client = client::connect(8080);
        client
            .read_exact(&mut vec![0; 8 << 20])
            .expect("it is carried");
        drop((client, idle));
        for _ in 0..2 {
            ended.recv().expect("a channel ends with its client");
        }
        host.serves_an_honest_one(5000);
        host.is_sound();
        drop(host.setup);
    });
}
