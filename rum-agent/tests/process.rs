//! The agent as a process of its own: descriptors, signals, refusals.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rum_shared::stream::rpc::{PROTOCOL, RumAgentClient};
use rum_shared::stream::session::{Limits, Session};
use rum_shared::transport::{Endpoint, Service, Transport};
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStderr, Command};
use tokio::time::timeout;

/// No test waits for it; it ends one that hangs.
const DEADLINE: Duration = Duration::from_secs(60);

struct Agent {
    child: Child,
    log: Lines<BufReader<ChildStderr>>,
    dir: tempfile::TempDir,
}

/// Starts an agent behind `prefix` (a command that executes it) and waits until it listens.
async fn start(prefix: &[&str], args: &[&str]) -> Agent {
    let dir = tempfile::tempdir().unwrap();
    let mut child = command(prefix, dir.path())
        .args(args)
        .kill_on_drop(true)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut log = BufReader::new(child.stderr.take().unwrap()).lines();
    wait_for(&mut log, "watching").await;
    Agent { child, log, dir }
}

fn command(prefix: &[&str], dir: &Path) -> Command {
    let agent = env!("CARGO_BIN_EXE_rum-agent");
    let mut words = prefix.iter().copied().chain([agent]);
    let mut command = Command::new(words.next().unwrap());
    let socket = |name: &str| format!("unix:{}", dir.join(name).display());
    command
        .args(words)
        .args(["--rpc", &socket("rpc"), "--channel", &socket("channel")]);
    command
}

async fn wait_for(log: &mut Lines<BufReader<ChildStderr>>, text: &str) {
    let found = async {
        while let Some(line) = log.next_line().await.unwrap() {
            if line.contains(text) {
                return;
            }
        }
        panic!("the agent ended before it said `{text}`");
    };
    timeout(DEADLINE, found).await.unwrap();
}

impl Agent {
    fn transport(&self) -> Transport {
        let path = |name| -> PathBuf { self.dir.path().join(name) };
        Transport::from(Endpoint::Unix {
            rpc: path("rpc"),
            channel: path("channel"),
            net: None,
        })
    }

    async fn hello(&self) {
        let stream = self.transport().dial(Service::Rpc).await.unwrap();
        let session = Session::<RumAgentClient>::connect(stream, Limits::HOST)
            .await
            .unwrap();
        let hello = session.client().hello(PROTOCOL);
        let info = session.call(DEADLINE, hello).await.unwrap();
        assert_eq!(info.version, env!("CARGO_PKG_VERSION"));
    }
}

#[tokio::test]
async fn an_agent_without_descriptors_recovers() {
    // Few enough that the connections below use them up, whatever the agent holds itself.
    let limited = ["sh", "-c", "ulimit -n 40 && exec \"$0\" \"$@\""];
    let mut agent = start(&limited, &["--hint", "poll"]).await;
    let mut connections = Vec::new();
    for _ in 0..50 {
        connections.push(agent.transport().dial(Service::Channel).await.unwrap());
    }
    wait_for(&mut agent.log, "could not be accepted").await;
    drop(connections);
    agent.hello().await;
}

#[tokio::test]
async fn a_signal_ends_it_cleanly() {
    for signal in [rustix::process::Signal::TERM, rustix::process::Signal::INT] {
        let mut agent = start(&[], &[]).await;
        agent.hello().await;
        let pid = rustix::process::Pid::from_raw(agent.child.id().unwrap() as i32).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
        let status = timeout(DEADLINE, agent.child.wait())
            .await
            .unwrap()
            .unwrap();
        assert_eq!(status.code(), Some(0));
    }
}

#[tokio::test]
async fn a_forced_tracepoint_that_is_refused_is_an_error() {
    // The kernel never gives it to a user namespace.
    let inside = ["unshare", "--user", "--map-root-user"];
    let dir = tempfile::tempdir().unwrap();
    let output = command(&inside, dir.path())
        .args(["--hint", "tracepoint"])
        .output();
    let output = timeout(DEADLINE, output).await.unwrap().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(
        text.contains("error: the hint `tracepoint` cannot be used: "),
        "{text}"
    );
    assert!(text.contains("hint: "), "{text}");

    // Unforced, the agent polls and says why.
    let mut agent = start(&inside, &[]).await;
    agent.hello().await;
    agent.child.start_kill().unwrap();
}
