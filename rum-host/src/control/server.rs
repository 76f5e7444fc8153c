//! The control socket of `rum up`.
//!
//! The socket is in the runtime directory (0700) and has mode 0600: who can connect is the same
//! user or root. Still a client is bounded: in number, and in what it may send. One is accepted
//! even at the limit of descriptors, so that it can be seen what is the matter. Those who stay have places of
//! their own ([`super::places`]), so that commands always find one. Where all are
//! in use, a client that does not read what it was sent gives its own up for the next one.
//!
//! The socket is looked after: when somebody removes it, or the directory, both are made anew.

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

/// With so many clients it is looked who does not read, so that his place is soon that of the next.
const MANY: usize = 64;
/// Clients beside those that stay: a command, such as `rum down`, is done in an instant.
const KEPT: usize = 16;
/// Clients at a time: each has two descriptors and some buffers.
const MAX_CLIENTS: usize = MAX_FOLLOWING + MAX_WAITING + KEPT;
/// One that stays without a place for it may lose its connection, where all are in use.
const BRIEF: Duration = Duration::from_secs(5);
/// A client that has not read all for this long may lose its place.
const BEHIND: Duration = Duration::from_secs(1);
/// The socket's place is looked at this often: `rum` finds nobody while it is gone.
pub(super) const LOOK: Duration = Duration::from_secs(1);
/// Pause after an accept that failed, or before the spare descriptor is asked for again (EMFILE and its
/// kin pass).
pub(super) const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

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
    /// That of this client, if it stays and is there.
    seat: Weak<OnceLock<Seat>>,
}

impl Server {
    /// Binds the socket of `dir`, which it looks after. Call it inside a tokio runtime.
    ///
    /// # Errors
    /// As bind(2); AddrInUse when a live one is there.
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

    /// What clients asked for.
    pub fn asked(&self) -> watch::Receiver<Ask> {
        self.asked.clone()
    }

    /// Serves until dropped.
    pub async fn run(mut self) {
        let mut clients = Clients::default();
        let mut look = tokio::time::interval(LOOK);
        let mut spare = None;
        let (mut told, mut told_gone) = (false, false);
        loop {
            spare = spare.or_else(|| stand_in().ok());
            clients.make_room(clock::now());
            tokio::select! {
                accepted = self.accept(&mut spare), if clients.tasks.len() < MAX_CLIENTS => match accepted {
                    Ok(stream) => {
                        told = false;
                        clients.serve(stream, self.service.clone());
                    }
                    Err(error) => {
                        if !std::mem::replace(&mut told, true) {
                            tracing::warn!(%error, "cannot accept on the control socket");
                        }
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
                Some(_) = clients.tasks.join_next() => {}
                _ = look.tick() => match self.look_after() {
                    Ok(()) => told_gone = false,
                    Err(error) if !std::mem::replace(&mut told_gone, true) => {
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

    /// Makes anew what somebody removed: the directory, what is in it, and the socket.
    fn look_after(&mut self) -> Result<(), RumError> {
        let Some(dir) = self.dir.upgrade() else {
            // rum ends.
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

    /// The next client, in the place of `spare` where there is no other. Cancel-safe.
    async fn accept(&mut self, spare: &mut Option<OwnedFd>) -> io::Result<Stream> {
        let accepted = self.socket.accept().await;
        if matches!(&accepted, Err(error) if is_exhaustion(error)) && spare.take().is_some() {
            return self.socket.accept().await;
        }
        accepted
    }
}

/// Those who are served.
#[derive(Debug, Default)]
struct Clients {
    tasks: JoinSet<()>,
    /// Those that can be ended: for one more descriptor each, where there was one.
    served: Vec<Served>,
}

#[derive(Debug)]
struct Served {
    task: AbortHandle,
    socket: OwnedFd,
    /// Since when it is there.
    since: Instant,
    /// Since when it is seen not to have read all that it was sent.
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

    /// Where more than [`MANY`] are there, ends the one that has not read what it was sent for
    /// the longest time, from [`BEHIND`] on. A reader that is alive has read all, but for moments. Where no
    /// more can come, ends the one that is there for the longest time without a place.
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
            // Its session sees the end of the stream.
            let _ = rustix::net::shutdown(&client.socket, rustix::net::Shutdown::Both);
        }
    }
}

/// How many bytes the other end has not read (SIOCOUTQ, which unix(7) has as well).
fn unread(socket: &OwnedFd) -> libc::c_int {
    let mut bytes = 0;
    // SAFETY: TIOCOUTQ, which is the number of SIOCOUTQ, writes an int.
    match unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &mut bytes) } {
        0 => bytes,
        _ => 0,
    }
}

/// Serves one client, whose `seat` is free again when it is gone.
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
        // A client that asks twice has its first one.
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
            // Whatever comes, an item or the end: the reader wants no more.
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
