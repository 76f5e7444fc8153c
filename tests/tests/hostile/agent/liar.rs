//! A device that speaks `CONNECT`, knocks whether or not its agent has a session, and leads to whatever
//! agent a test wants.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread;

use roam::{DriverReplySink, Handler, Rx, Tx};
use rum_shared::RPC_PORT;
use rum_shared::stream::rpc::{
    AgentInfo, CAP_LISTENERS, ListeningPortsResponse, PROTOCOL, ReadyResponse, RumAgent,
    RumAgentDispatcher, WatchEvent, v1,
};
use rum_shared::stream::session::{Limits, serve};
use rum_shared::transport::Stream;

type Behaviour = Arc<dyn Fn(UnixStream) + Send + Sync>;

/// The device. Its threads end with their connections or with the process.
#[derive(Clone)]
pub struct Device(Arc<Mutex<State>>);

struct State {
    sessions: Behaviour,
    channels: Behaviour,
    open: Vec<UnixStream>,
    knocks: bool,
}

impl Device {
    /// Listens on `vm` in `dir`. It closes all sessions and channels until it is told otherwise.
    pub fn start(dir: &Path) -> Self {
        let device = Self(Arc::new(Mutex::new(State {
            sessions: Arc::new(drop),
            channels: Arc::new(drop),
            open: vec![],
            knocks: true,
        })));
        let listener = UnixListener::bind(dir.join("vm")).expect("a new directory");
        let accepting = device.clone();
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let device = accepting.clone();
                thread::spawn(move || device.serve(stream));
            }
        });
        let knock = dir.join("vm_2224");
        let knocking = device.clone();
        thread::spawn(move || {
            // More often than any agent would; it ends with the directory.
            while knock.parent().is_some_and(Path::exists) {
                if knocking.state().knocks {
                    let _ = UnixStream::connect(&knock);
                }
                thread::sleep(std::time::Duration::from_millis(1));
            }
        });
        device
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().expect("no holder panics")
    }

    /// From now on sessions are served by `sessions`; those that are open are cut.
    pub fn be(&self, sessions: impl Fn(UnixStream) + Send + Sync + 'static) {
        let mut state = self.state();
        state.sessions = Arc::new(sessions);
        for stream in state.open.drain(..) {
            // Fails only if it is closed.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Whether it goes on knocking.
    pub fn knock(&self, knocks: bool) {
        self.state().knocks = knocks;
    }

    /// From now on channels are served by `channels`, after the port was read.
    pub fn channels(&self, channels: impl Fn(UnixStream) + Send + Sync + 'static) {
        self.state().channels = Arc::new(channels);
    }

    fn serve(&self, mut stream: UnixStream) {
        let mut line = vec![];
        while line.last() != Some(&b'\n') {
            let mut byte = [0];
            if stream.read_exact(&mut byte).is_err() {
                return;
            }
            line.push(byte[0]);
        }
        if stream.write_all(b"OK 1\n").is_err() {
            return;
        }
        let behaviour = if line == format!("CONNECT {RPC_PORT}\n").as_bytes() {
            let mut state = self.state();
            state.open.push(stream.try_clone().expect("a descriptor"));
            state.sessions.clone()
        } else {
            // rum makes channels ready long before it says a port.
            if stream.read_exact(&mut [0; 2]).is_err() {
                return;
            }
            self.state().channels.clone()
        };
        behaviour(stream);
    }
}

/// Serves `handler` on each session.
fn serve_with<H>(handler: impl Fn() -> H + Send + Sync) -> impl Fn(UnixStream) + Send + Sync
where
    H: Handler<DriverReplySink> + 'static,
{
    move |stream| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        stream.set_nonblocking(true).expect("a socket");
        runtime.block_on(async {
            let stream = tokio::net::UnixStream::from_std(stream).expect("a socket");
            // How it ends is up to rum.
            let _ = serve(Stream::Unix(stream), Limits::AGENT, handler()).await;
        });
    }
}

/// Serves `agent` on each session.
pub fn served<A>(agent: A) -> impl Fn(UnixStream) + Send + Sync
where
    A: RumAgent + Clone + Send + Sync + 'static,
{
    serve_with(move || RumAgentDispatcher::new(agent.clone()))
}

/// Serves something that knows none of the agent's calls.
pub fn served_as_another_service() -> impl Fn(UnixStream) + Send + Sync {
    serve_with(|| other::OtherDispatcher::new(other::Nothing))
}

mod other {
    #![allow(missing_docs)]

    #[roam::service]
    pub trait Other {
        async fn other(&self) -> u32;
    }

    #[derive(Clone)]
    pub struct Nothing;

    impl Other for Nothing {
        async fn other(&self) -> u32 {
            0
        }
    }
}

/// An agent whose stream says what a function says for 0, 1, 2 and so on, and nothing after None.
#[derive(Clone)]
pub struct Liar {
    tell: Arc<dyn Fn(usize) -> Option<WatchEvent> + Send + Sync>,
    refusal: Option<String>,
}

impl Liar {
    pub fn new(tell: impl Fn(usize) -> Option<WatchEvent> + Send + Sync + 'static) -> Self {
        Self {
            tell: Arc::new(tell),
            refusal: None,
        }
    }

    /// Refuses to stream, for this reason.
    pub fn refusing(mut self, reason: &str) -> Self {
        self.refusal = Some(reason.to_owned());
        self
    }
}

impl RumAgent for Liar {
    async fn hello(&self, _protocol: u32) -> AgentInfo {
        let noise = || "\u{1b}[2J\u{202e}".repeat(2000);
        AgentInfo {
            protocol: PROTOCOL,
            version: noise(),
            hostname: noise(),
            boot_id: noise(),
            instance: 1,
            source: noise(),
            hint: noise(),
            capabilities: std::iter::once(CAP_LISTENERS.to_owned())
                .chain((0..5000).map(|n| n.to_string()))
                .collect(),
        }
    }

    async fn ping(&self) -> Result<ReadyResponse, String> {
        Ok(ReadyResponse { ready: true })
    }

    async fn listening_ports(&self, _: u16, _: u16) -> Result<ListeningPortsResponse, String> {
        Ok(ListeningPortsResponse {
            ports: vec![0; 1 << 20],
        })
    }

    async fn watch_ports(
        &self,
        _: u16,
        _: u16,
        _: Tx<v1::WatchEvent>,
        _: Rx<()>,
    ) -> Result<(), String> {
        Err("a host of today does not ask".to_owned())
    }

    async fn watch_listeners(
        &self,
        _: u16,
        _: u16,
        events: Tx<WatchEvent>,
        mut stop: Rx<()>,
    ) -> Result<(), String> {
        if let Some(refusal) = &self.refusal {
            return Err(refusal.clone());
        }
        let tell = async {
            let mut n = 0;
            while let Some(event) = (self.tell)(n) {
                if events.send(event).await.is_err() {
                    return;
                }
                n += 1;
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            _ = stop.recv() => Ok(()),
            () = tell => Ok(()),
        }
    }
}
