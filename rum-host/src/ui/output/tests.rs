#![allow(clippy::unwrap_used)]

use std::net::SocketAddr;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex};

use rum_shared::lines::QUEUE;
use rum_shared::listener::Process;
use rum_shared::stream::rpc::AgentInfo;

use super::*;
use crate::forward::bind_failure::{BindFailure, Hold};
use crate::plan::reconcile::Repair;
use crate::plan::{Destination, GuestPort, HostAddr, Key};

/// Longer than any loaded machine needs; a test that reaches it fails.
const DEADLINE: Duration = Duration::from_secs(60);

#[derive(Clone, Default)]
struct Shared(Arc<Mutex<Vec<u8>>>);

impl Shared {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A writer that reports each write and waits for the test's permission.
struct Stuck {
    waiting: Sender<()>,
    go: Receiver<()>,
    to: Shared,
}

impl Write for Stuck {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let _ = self.waiting.send(());
        let _ = self.go.recv_timeout(DEADLINE);
        self.to.write(bytes)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Gone;

impl Write for Gone {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(io::ErrorKind::BrokenPipe.into())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn stopped(guest: u16) -> Notice {
    still_open(guest, 0, None)
}

fn still_open(guest: u16, connections: u32, drain: Option<Duration>) -> Notice {
    Notice::Stopped {
        key: Key::Auto(GuestPort(guest)),
        host: HostAddr(([127, 0, 0, 1], guest).into()),
        guest: Destination::own(guest),
        connections,
        drain,
    }
}

fn all() -> Vec<Notice> {
    let host = |text: &str| HostAddr(text.parse().unwrap());
    let auto = Key::Auto(GuestPort(5000));
    let forwarded = |key, at, guest, instead: Option<&str>| Notice::Forwarded {
        key,
        host: host(at),
        guest: Destination::own(guest),
        instead_of: instead.map(host),
    };
    let blocked = |reason| Notice::Blocked {
        key: auto,
        host: host("127.0.0.1:5000"),
        guest: Destination::own(5000),
        reason,
    };
    let postgres = Process {
        pid: 4121,
        name: "postgres".into(),
        ..Process::default()
    };
    let info = AgentInfo {
        protocol: 1,
        version: env!("CARGO_PKG_VERSION").into(),
        hostname: "dev".into(),
        boot_id: String::new(),
        instance: 7,
        source: "netlink".into(),
        hint: "tracepoint".into(),
        capabilities: vec![],
    };
    let (streaming, polled) = (true, false);
    vec![
        Notice::AgentAwaited {
            reason: "no answer".into(),
        },
        Notice::AgentMissing {
            after: Duration::from_secs(20),
        },
        Notice::AgentConnected {
            info: info.clone(),
            streaming,
        },
        Notice::AgentConnected {
            info: info.clone(),
            streaming: polled,
        },
        Notice::AgentConnected {
            info: AgentInfo {
                version: "0.0.9".into(),
                ..info
            },
            streaming,
        },
        forwarded(
            Key::Static(host("127.0.0.1:8080")),
            "127.0.0.1:8080",
            80,
            None,
        ),
        forwarded(auto, "127.0.0.1:5000", 5000, None),
        forwarded(auto, "[::1]:5001", 5000, Some("[::1]:5000")),
        stopped(5000),
        still_open(5000, 1, Some(Duration::from_secs(10))),
        still_open(5000, 2, None),
        blocked(BindFailure::Taken {
            holder: None,
            by: Hold::Listener,
        }),
        blocked(BindFailure::Taken {
            holder: Some(postgres.clone()),
            by: Hold::Connection,
        }),
        blocked(BindFailure::Taken {
            holder: None,
            by: Hold::TimeWait,
        }),
        blocked(BindFailure::Taken {
            holder: Some(postgres),
            by: Hold::Listener,
        }),
        blocked(BindFailure::Privileged),
        blocked(BindFailure::NoAddress),
        blocked(BindFailure::Other("no descriptors".into())),
        Notice::AddressGone {
            ip: [192, 0, 2, 1].into(),
            forwards: 1,
        },
        Notice::AddressGone {
            ip: [192, 0, 2, 1].into(),
            forwards: 2,
        },
        Notice::AddressBack {
            ip: [192, 0, 2, 1].into(),
        },
        Notice::Repaired(Repair::Opened(5000)),
        Notice::Repaired(Repair::Closed(5000)),
        Notice::AgentLost {
            reason: "no heartbeat for 4 s".into(),
            grace: Duration::from_secs(15),
        },
        Notice::Forwarded {
            key: Key::Static(host("127.0.0.1:8080")),
            host: host("127.0.0.1:8080"),
            guest: SocketAddr::from(([172, 17, 0, 2], 80)).into(),
            instead_of: None,
        },
        Notice::AutoForwardsDropped,
        Notice::Cut {
            guest: Destination::own(5000),
            connections: 1,
        },
        Notice::Cut {
            guest: Destination::own(5000),
            connections: 2,
        },
        Notice::GuestEnded {
            reason: "its init was killed".into(),
        },
        Notice::GuestKilled {
            after: Some(Duration::from_secs(5)),
        },
        Notice::GuestKilled { after: None },
        Notice::Stopping {
            drain: Duration::from_secs(10),
        },
    ]
}

#[test]
fn every_line() {
    let shared = Shared::default();
    let output = Output::to(shared.clone(), false, LogFormat::Text);
    all().iter().for_each(|notice| output.say(notice));
    output.flush(DEADLINE);
    insta::assert_snapshot!(shared.text().replace(env!("CARGO_PKG_VERSION"), "OURS"));
}

#[test]
fn every_line_as_json() {
    let at = Timestamp::UNIX_EPOCH;
    let mut text: String = all()
        .iter()
        .map(|notice| json::notice(notice, at))
        .collect();
    text += &json::omitted("7 lines were not shown", at);
    text += &json::notice(
        &Notice::GuestEnded {
            reason: "\u{1b}[2J\n{\"".into(),
        },
        at,
    );
    assert!(!text.contains('\u{1b}'));
    insta::assert_snapshot!(text.replace(env!("CARGO_PKG_VERSION"), "OURS"));
}

#[test]
fn errors_as_json() {
    let at = Timestamp::UNIX_EPOCH;
    let bind = RumError::new("cannot bind\n127.0.0.1:80")
        .caused_by(io::Error::from_raw_os_error(13))
        .hint("write this:")
        .example("a = 1\nb = 2");
    let file = "name = \"\"\n[[ports]]\nhost = 70000\nguest = 1\n";
    let config = crate::config::parse(file, "rum.toml").unwrap_err();
    let text = json::error(&bind, at) + &json::error(&config.into(), at);
    insta::assert_snapshot!(text);
}

#[test]
fn quiet_leaves_the_problems() {
    let shared = Shared::default();
    let output = Output::to(shared.clone(), true, LogFormat::Text);
    all().iter().for_each(|notice| output.say(notice));
    output.flush(DEADLINE);
    let problems = all().iter().filter(|m| m.is_problem()).count();
    assert_eq!(shared.text().lines().count(), problems);
    assert!(!shared.text().contains("orwarding 127"));
}

#[test]
fn a_line_cannot_act_on_the_terminal() {
    let shared = Shared::default();
    let output = Output::to(shared.clone(), false, LogFormat::Text);
    output.say(&Notice::GuestEnded {
        reason: "\u{1b}[2J\nForwarding".into(),
    });
    output.flush(DEADLINE);
    assert_eq!(
        shared.text(),
        "The guest ended: \u{fffd}[2J\u{fffd}Forwarding\n"
    );
}

#[test]
fn a_reader_that_does_not_read_delays_nobody_and_is_told_what_it_missed() {
    let shared = Shared::default();
    let (waiting, is_waiting) = mpsc::channel();
    let (let_go, go) = mpsc::channel();
    let output = Output::to(
        Stuck {
            waiting,
            go,
            to: shared.clone(),
        },
        false,
        LogFormat::Text,
    );
    output.say(&stopped(1));
    // The writer holds the first line; the queue is empty and takes QUEUE more.
    is_waiting.recv_timeout(DEADLINE).unwrap();
    for guest in 0..u16::try_from(QUEUE).unwrap() + 7 {
        output.say(&stopped(guest));
    }
    drop(let_go);
    output.flush(DEADLINE);
    while !shared.text().contains("forwarding 4095") {
        output.flush(DEADLINE);
    }
    let text = shared.text();
    assert!(text.contains("(7 lines were dropped"));
    assert_eq!(text.lines().count(), QUEUE + 2);
}

#[test]
fn a_reader_that_went_away_is_noticed_and_is_no_error() {
    let output = Output::to(Gone, false, LogFormat::Text);
    output.say(&stopped(1));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    runtime.block_on(async {
        tokio::time::timeout(DEADLINE, output.closed().cancelled())
            .await
            .unwrap();
    });
    output.say(&stopped(1));
    output.flush(DEADLINE);
}

#[test]
fn levels() {
    let level = |quiet, verbose| {
        level(&Style {
            quiet,
            verbose,
            ..Default::default()
        })
    };
    assert_eq!(level(true, 0), LevelFilter::ERROR);
    assert_eq!(level(false, 0), LevelFilter::WARN);
    assert_eq!(level(false, 2), LevelFilter::DEBUG);
    assert_eq!(level(false, 9), LevelFilter::TRACE);
}
