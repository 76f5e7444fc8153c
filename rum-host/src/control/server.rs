//! The server of `rum up`'s control socket.
//!
//! The socket is in the runtime directory (0700) and has mode 0600, so only the same user and root
//! can connect. Clients are still bounded, in number and in what they may send. A client is
//! accepted even at the limit of descriptors, so that the user can see what is wrong. Clients that
//! stay have their own places (`control::places`), so commands always find one. When all
//! connections are in use, a client that does not read its data is closed in favour of the next
//! one.
//!
//! The server recreates the socket or its directory if either is removed.

use std::error::Error as _;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use roam::{Rx, Tx};
use rum_shared::stream::session::{Limits, serve};
use rum_shared::transport::Stream;
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};

use super::peer;
use super::places::{MAX_FOLLOWING, MAX_WAITING, Place as Seat, Places};
use super::service::{HEARTBEAT, RumControl, RumControlDispatcher};
use super::socket::Socket;
use crate::clock;
use crate::descriptors::{is_exhaustion, stand_in};
use crate::error::RumError;
use crate::runtime_dir::{Mended, RuntimeDir};
use crate::status::journal::Journal;
use crate::status::model::{ControlInfo, Stay, Update, WatchRequest};

/// From this many clients on, the server looks for clients that do not read, so that a place is
/// soon free.
const MANY: usize = 64;
/// Most clients beside those that stay: a command, such as `rum down`, finishes in an instant.
const KEPT: usize = 16;
/// Most clients at a time. Each has two descriptors and some buffers.
const MAX_CLIENTS: usize = MAX_FOLLOWING + MAX_WAITING + KEPT;
/// When all connections are in use, a client without a place may lose its connection after this
/// time.
const BRIEF: Duration = Duration::from_secs(5);
/// A client that has unread data for this long may lose its connection.
const BEHIND: Duration = Duration::from_secs(1);
/// Interval of checks that the socket still exists: while it is missing, `rum` commands find no
/// `rum up`.
pub(super) const LOOK: Duration = Duration::from_secs(1);
/// Pause after a failed accept, and before the next attempt to reserve the spare descriptor (EMFILE
/// and similar errors pass).
pub(super) const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// What clients have asked `rum up` to do. The value only ever increases.
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

/// The bound control socket.
#[derive(Debug)]
pub struct Server {
    socket: Socket,
    dir: Weak<RuntimeDir>,
    service: Service,
    asked: watch::Receiver<Ask>,
}

#[derive(Debug, Clone)]
struct Service {
    /// Whether this client is inside a guest.
    inside: bool,
    info: ControlInfo,
    journal: Arc<Journal>,
    ask: watch::Sender<Ask>,
    places: Places,
    /// The place of this client, if it stays and is still connected.
    seat: Weak<OnceLock<Seat>>,
}

impl Server {
    /// Binds the socket of `dir`, which the server then looks after. Call it inside a tokio
    /// runtime.
    ///
    /// # Errors
    /// As bind(2); AddrInUse if another live socket is there.
    pub fn bind(
        dir: &Arc<RuntimeDir>,
        info: ControlInfo,
        journal: Arc<Journal>,
    ) -> io::Result<Self> {
        let socket = Socket::bind(dir.control_socket())?;
        let (ask, asked) = watch::channel(Ask::default());
        let service = Service {
            inside: false,
            info,
            journal,
            ask,
            places: Places::default(),
            seat: Weak::new(),
        };
        Ok(Self {
            socket,
            dir: Arc::downgrade(dir),
            service,
            asked,
        })
    }

    /// The clients' requests to end.
    pub fn asked(&self) -> watch::Receiver<Ask> {
        self.asked.clone()
    }

    /// Serves until dropped.
    pub async fn run(mut self) {
        let mut clients = Clients::default();
        let mut look = tokio::time::interval(LOOK);
        let mut spare = None;
        let (mut warned, mut warned_gone) = (false, false);
        loop {
            spare = spare.or_else(|| stand_in().ok());
            clients.make_room(clock::now());
            tokio::select! {
                accepted = self.accept(&mut spare), if clients.tasks.len() < MAX_CLIENTS => match accepted {
                    Ok(stream) => {
                        warned = false;
                        clients.serve(stream, self.service.clone());
                    }
                    Err(error) => {
                        if !std::mem::replace(&mut warned, true) {
                            tracing::warn!(%error, "cannot accept on the control socket");
                        }
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
                Some(_) = clients.tasks.join_next() => {}
                _ = look.tick() => match self.look_after() {
                    Ok(()) => warned_gone = false,
                    Err(error) if !std::mem::replace(&mut warned_gone, true) => {
                        let why = error.source().map_or(String::new(), |why| format!(": {why}"));
                        tracing::warn!(
                            "the runtime directory was removed, `rum ports` and `rum down` no longer find \
                             this `rum up`: {error}{why}"
                        );
                    }
                    Err(_) => {}
                },
                () = tokio::time::sleep(ACCEPT_PAUSE), if spare.is_none() || clients.is_full() => {}
            }
        }
    }

    /// Recreates what was removed: the directory, its contents, and the socket.
    fn look_after(&mut self) -> Result<(), RumError> {
        let Some(dir) = self.dir.upgrade() else {
            // rum is ending.
            return Ok(());
        };
        let mended = dir.mend()?;
        let is_there = self.socket.is_there();
        if mended == Mended::Whole && is_there {
            return Ok(());
        }
        if !is_there {
            let failed =
                |error| RumError::new("cannot listen on the control socket").caused_by(error);
            self.socket.make_anew().map_err(failed)?;
        }
        let dir = dir.path().display();
        tracing::warn!(
            "{dir} was removed while in use; `rum ports` and `rum down` find this `rum up` again"
        );
        Ok(())
    }

    /// The next client, accepted with the descriptor of `spare` if no other is free. Cancel-safe.
    async fn accept(&mut self, spare: &mut Option<OwnedFd>) -> io::Result<Stream> {
        let accepted = self.socket.accept().await;
        if matches!(&accepted, Err(error) if is_exhaustion(error)) && spare.take().is_some() {
            return self.socket.accept().await;
        }
        accepted
    }
}

/// The connected clients.
#[derive(Debug, Default)]
struct Clients {
    tasks: JoinSet<()>,
    /// Clients that can be closed. This costs one more descriptor each; a client without one is
    /// missing here.
    served: Vec<Served>,
}

#[derive(Debug)]
struct Served {
    task: AbortHandle,
    socket: OwnedFd,
    /// When it connected.
    since: Instant,
    /// Since when it is known to have unread data.
    behind: Option<Instant>,
    seat: Weak<OnceLock<Seat>>,
}

impl Clients {
    fn serve(&mut self, stream: Stream, mut service: Service) {
        let seat = Arc::new(OnceLock::new());
        service.seat = Arc::downgrade(&seat);
        let has_seat = service.seat.clone();
        let socket = stream.as_fd().try_clone_to_owned();
        let task = self.tasks.spawn(client(stream, service, seat));
        self.served.extend(socket.ok().map(|socket| Served {
            task,
            socket,
            since: clock::now(),
            behind: None,
            seat: has_seat,
        }));
    }

    fn is_full(&self) -> bool {
        self.tasks.len() >= MANY
    }

    /// With more than [`MANY`] clients, closes the one that has had unread data for longest, if for
    /// at least [`BEHIND`]. A live reader has unread data only for moments. When all connections
    /// are in use, closes the client that has been connected for longest without a place.
    fn make_room(&mut self, now: Instant) {
        self.served.retain(|client| !client.task.is_finished());
        if !self.is_full() {
            return;
        }
        for client in &mut self.served {
            match unread(&client.socket) {
                0 => client.behind = None,
                _ => {
                    client.behind.get_or_insert(now);
                }
            }
        }
        let behind = self.served.iter().enumerate();
        let behind = behind.filter_map(|(at, client)| Some((client.behind?, at)));
        let behind = behind.min().filter(|(since, _)| now >= *since + BEHIND);
        let behind = behind.filter(|_| self.tasks.len() > MANY);
        let brief = || {
            let seated = |c: &Served| c.seat.upgrade().is_some_and(|seat| seat.get().is_some());
            let all = self.served.iter().enumerate();
            let brief = all.filter(|(_, client)| !seated(client));
            let oldest = brief.map(|(at, client)| (client.since, at)).min()?;
            (self.tasks.len() >= MAX_CLIENTS && now >= oldest.0 + BRIEF).then_some(oldest)
        };
        if let Some((_, at)) = behind.or_else(brief) {
            let client = self.served.swap_remove(at);
            // The client's session sees EOF.
            let _ = rustix::net::shutdown(&client.socket, rustix::net::Shutdown::Both);
        }
    }
}

/// Number of bytes that the peer has not read (SIOCOUTQ, which Unix sockets support too, see
/// unix(7)).
fn unread(socket: &OwnedFd) -> libc::c_int {
    let mut bytes = 0;
    // SAFETY: TIOCOUTQ, which has the same number as SIOCOUTQ, writes an int.
    match unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &mut bytes) } {
        0 => bytes,
        _ => 0,
    }
}

/// Serves one client. Its `seat` becomes free when the client is gone.
async fn client(stream: Stream, mut service: Service, seat: Arc<OnceLock<Seat>>) {
    service.inside = peer::is_inside(&stream);
    if let Err(error) = serve(stream, Limits::AGENT, RumControlDispatcher::new(service)).await {
        tracing::debug!(%error, "a client of the control socket");
    }
    drop(seat);
}

impl RumControl for Service {
    async fn hello(&self, _protocol: u32) -> ControlInfo {
        self.info.clone()
    }

    async fn stay(&self, stay: Stay, reader: u64) -> Result<(), String> {
        let seat = self.places.take(stay, reader).await?;
        // A client that asks twice keeps its first place.
        if let Some(own) = self.seat.upgrade() {
            let _ = own.set(seat);
        }
        Ok(())
    }

    async fn watch(
        &self,
        request: WatchRequest,
        updates: Tx<Update>,
        mut stop: Rx<()>,
    ) -> Result<(), String> {
        let mut reader = self.journal.reader(request.all, request.since);
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
            // An item or EOF: either way, the reader wants no more.
            _ = stop.recv() => Ok(()),
            result = send => result,
        }
    }

    async fn retry(&self) -> Result<(), String> {
        self.journal.retry();
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
