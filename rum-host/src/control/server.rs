//! The control socket of `rum up`.
//!
//! The socket is in the runtime directory (0700) and has mode 0600: who can connect is the same
//! user or root. Still a client is bounded: in number, and in what it may send. One is accepted
//! even at the limit of descriptors, so that it can be seen what is the matter.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use roam::{Rx, Tx};
use rum_shared::session::{Limits, serve};
use rum_shared::transport::{Acceptor, ListenAddr, Stream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::board::Board;
use super::model::{ControlInfo, Update, WatchRequest};
use super::peer;
use super::service::{HEARTBEAT, RumControl, RumControlDispatcher};
use crate::descriptors::{is_exhaustion, stand_in};

/// Clients at a time: each has two descriptors and some buffers.
const MAX_CLIENTS: usize = 64;
/// Pause after an accept that failed, or before the spare descriptor is asked for again (EMFILE and its
/// kin pass).
const ACCEPT_PAUSE: std::time::Duration = std::time::Duration::from_millis(200);

/// What a client asked `rum up` to do. Only ever raised.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Ask {
    /// Nothing yet.
    #[default]
    Nothing,
    /// To end.
    Stop,
    /// To end at once.
    Force,
}

/// The control socket, bound.
#[derive(Debug)]
pub struct Server {
    acceptor: Acceptor,
    service: Service,
    asked: watch::Receiver<Ask>,
}

#[derive(Debug, Clone)]
struct Service {
    /// Whether this client is inside a guest.
    inside: bool,
    info: ControlInfo,
    board: Arc<Board>,
    ask: watch::Sender<Ask>,
}

impl Server {
    /// Binds the socket at `path`. Call it inside a tokio runtime.
    ///
    /// # Errors
    /// As bind(2); AddrInUse when a live one is there.
    pub fn bind(path: &Path, info: ControlInfo, board: Arc<Board>) -> io::Result<Self> {
        let acceptor = ListenAddr::Unix(path.to_owned()).bind()?;
        let (ask, asked) = watch::channel(Ask::default());
        let service = Service {
            inside: false,
            info,
            board,
            ask,
        };
        Ok(Self {
            acceptor,
            service,
            asked,
        })
    }

    /// What clients asked for.
    pub fn asked(&self) -> watch::Receiver<Ask> {
        self.asked.clone()
    }

    /// Serves until dropped.
    pub async fn run(mut self) {
        let mut clients = JoinSet::new();
        let mut spare = None;
        let mut told = false;
        loop {
            spare = spare.or_else(|| stand_in().ok());
            tokio::select! {
                accepted = self.accept(&mut spare), if clients.len() < MAX_CLIENTS => match accepted {
                    Ok(stream) => {
                        told = false;
                        clients.spawn(client(stream, self.service.clone()));
                    }
                    Err(error) => {
                        if !std::mem::replace(&mut told, true) {
                            tracing::warn!(%error, "cannot accept on the control socket");
                        }
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
                Some(_) = clients.join_next() => {}
                () = tokio::time::sleep(ACCEPT_PAUSE), if spare.is_none() => {}
            }
        }
    }

    /// The next client, in the place of `spare` where there is no other. Cancel-safe.
    async fn accept(&mut self, spare: &mut Option<OwnedFd>) -> io::Result<Stream> {
        let mut accepted = self.acceptor.accept().await;
        if matches!(&accepted, Err(error) if is_exhaustion(error)) && spare.take().is_some() {
            accepted = self.acceptor.accept().await;
        }
        accepted.map(|(stream, _)| stream)
    }
}

async fn client(stream: Stream, mut service: Service) {
    service.inside = peer::is_inside(&stream);
    if let Err(error) = serve(stream, Limits::AGENT, RumControlDispatcher::new(service)).await {
        tracing::debug!(%error, "a client of the control socket");
    }
}

impl RumControl for Service {
    async fn hello(&self, _protocol: u32) -> ControlInfo {
        self.info.clone()
    }

    async fn watch(
        &self,
        request: WatchRequest,
        updates: Tx<Update>,
        mut stop: Rx<()>,
    ) -> Result<(), String> {
        let mut reader = self.board.reader(request.all, request.since);
        let send = async {
            loop {
                let next = tokio::time::timeout(HEARTBEAT, reader.next()).await;
                let update = next.unwrap_or_else(|_| Update::Events(Vec::new()));
                if let Err(error) = updates.send(update).await {
                    return Err(format!("the stream broke: {error}"));
                }
            }
        };
        tokio::select! {
            // Whatever comes, an item or the end: the reader wants no more.
            _ = stop.recv() => Ok(()),
            result = send => result,
        }
    }

    async fn retry(&self) -> Result<(), String> {
        self.board.retry();
        Ok(())
    }

    async fn stop(&self, force: bool) -> Result<(), String> {
        if self.inside {
            return Err("it is not stopped from inside a guest".to_owned());
        }
        self.ask.send_modify(|ask| {
            *ask = match (force, *ask) {
                (false, Ask::Nothing) => Ask::Stop,
                _ => Ask::Force,
            }
        });
        Ok(())
    }
}
