//! A host that lies to a real agent.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Stdio;

use rum_agent::forward::MAX_READY;
use rum_shared::stream::link::MAX_SESSION_FRAMES;
use rum_shared::stream::rpc::{PROTOCOL, RumAgentClient};
use rum_shared::stream::session::{Limits, Session};
use rum_shared::transport::{Endpoint, Service, Transport};
use rum_tests::netns::in_netns;
use rum_tests::rum::{Rum, Setup, binary};
use rum_tests::wait::{DEADLINE, until};

use super::support::{connect, first_frame, flood, frame, item, peak_mib, recorded};

/// What the agent may have resident under all of these lies together, in MiB (a debug
/// build).
const MOST: u64 = 64;

struct Agent {
    rum: Rum,
    rpc: PathBuf,
    channel: PathBuf,
}

impl Agent {
    fn start() -> Self {
        let setup = Setup::new();
        let [rpc, channel] = ["rpc", "channel"].map(|name| setup.path().join(name));
        let unix = |path: &PathBuf| format!("unix:{}", path.display());
        let mut command = setup.command(binary("rum-agent"));
        command
            .args(["--rpc", &unix(&rpc), "--channel", &unix(&channel)])
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        let rum = setup.spawn(&mut command);
        rum.stderr.wait("watching");
        Self { rum, rpc, channel }
    }

    /// An honest host is served; it waits until there is room for it.
    fn serves_the_next(&self) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        let transport = Transport::from(Endpoint::Unix {
            rpc: self.rpc.clone(),
            channel: self.channel.clone(),
            net: None,
        });
        until("a session", || {
            runtime.block_on(async {
                let stream = transport.dial(Service::Rpc).await.ok()?;
                let session = Session::<RumAgentClient>::connect(stream, Limits::HOST);
                let session = session.await.ok()?;
                let client = session.client().clone();
                let info = session.call(DEADLINE, client.hello(PROTOCOL)).await;
                info.ok().filter(|info| info.protocol == PROTOCOL)
            })
        });
    }

    fn peak_mib(&self) -> u64 {
        peak_mib(self.rum.child.id())
    }
}

/// The agent closes what was opened by a peer that has said something wrong.
fn is_closed(mut stream: UnixStream) {
    stream.set_read_timeout(Some(DEADLINE)).expect("a socket");
    let mut rest = Vec::new();
    if let Err(error) = stream.read_to_end(&mut rest) {
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    }
}

#[test]
fn an_agent_outlives_every_lie_of_a_host() {
    in_netns(|| {
        let agent = Agent::start();
        let host = recorded("host");
        // Bytes that are no session, lengths that are too large, frames that are cut.
        let huge = [&[0xff; 4][..], b"rest"].concat();
        let cut = &host[..host.len() / 2];
        for lie in [b"GET / HTTP/1.1\r\n\r\n", &huge[..], &frame(b""), cut] {
            let mut stream = connect(&agent.rpc);
            stream.write_all(lie).expect("it fits");
            stream.shutdown(Shutdown::Write).expect("connected");
            is_closed(stream);
        }
        agent.serves_the_next();

        // Items of channels that nobody knows: many small ones, and large ones.
        let small = flood(connect(&agent.rpc), first_frame(&host), |n| item(n, 0));
        assert!(u64::from(small) <= 2 * MAX_SESSION_FRAMES, "{small}");
        let large = flood(connect(&agent.rpc), first_frame(&host), |n| item(n, 60_000));
        // What is in the socket's buffer was sent as well.
        let limit = Limits::AGENT.bytes / 60_000 + 16;
        assert!(u64::from(large) <= limit, "{large} of {limit}");
        agent.serves_the_next();

        // The same call again and again, without reading what it answers first.
        let calls = &host[first_frame(&host).len()..];
        let call = first_frame(calls).to_vec();
        let sent = flood(connect(&agent.rpc), first_frame(&host), |_| call.clone());
        assert!(u64::from(sent) <= 2 * MAX_SESSION_FRAMES, "{sent}");
        agent.serves_the_next();
        assert!(agent.peak_mib() <= MOST, "{} MiB", agent.peak_mib());
    });
}

#[test]
fn floods_of_sessions_and_channels_are_turned_away() {
    in_netns(|| {
        let agent = Agent::start();
        let sessions: Vec<_> = (0..300).map(|_| connect(&agent.rpc)).collect();
        agent.rum.stderr.wait("a session was refused");
        drop(sessions);
        agent.serves_the_next();
        // Channels that never say where to, some that say a port where nobody listens, an address with port 0,
        // and what no host says.
        let silent: Vec<_> = (0..500).map(|_| connect(&agent.channel)).collect();
        let headers = [
            &[0, 1][..],
            &[0xff, 0xff],
            &[0, 0, 4, 127, 0, 0, 1, 0, 0],
            &[0, 0, 7],
        ];
        for header in headers {
            let mut channel = connect(&agent.channel);
            channel.write_all(header).expect("some bytes");
            channel.set_read_timeout(Some(DEADLINE)).expect("a socket");
            let mut status = Vec::new();
            channel.read_to_end(&mut status).expect("an answer");
            assert_eq!(status.len(), 1, "{status:?}");
            assert_ne!(status[0], 0);
        }
        // Each has its deadline, which is a long one for as many as a host may have ready.
        let is_open = |mut stream: &UnixStream| {
            let read = stream.read(&mut [0]);
            matches!(read, Err(error) if error.kind() == ErrorKind::WouldBlock)
        };
        for silent in &silent {
            silent.set_nonblocking(true).expect("a socket");
        }
        until("the end of the silent", || {
            let open = silent.iter().filter(|stream| is_open(stream)).count();
            (open <= MAX_READY).then_some(())
        });
        agent.serves_the_next();
        assert!(agent.peak_mib() <= MOST, "{} MiB", agent.peak_mib());
    });
}
