//! The gate of a `CONNECT` transport: while the guest may be away, nothing moves on it from here.
//!
//! vhost-device-vsock (0.3.0) ends for good when anything happens on its host's side while the
//! guest's driver is away: its worker finds a queue that is not ready, and gives up. That is the
//! time from a reset to the next boot's driver, and that for which QEMU holds the machine
//! (`stop`). A byte will do, and so will a close or a `CONNECT`. It also panics when a `CONNECT`
//! is closed before its `OK`.
//!
//! So the gate is open only for [`SILENCE`] after the agent was heard: a knock, or bytes on a
//! stream of the RPC, which brings a heartbeat each second. While it is shut, writes wait, and
//! streams that are dropped are *parked*: kept as they are. The next sign of life, which may be a
//! byte on a parked stream of the RPC, opens it: writes go on, parked streams are closed. A
//! `CONNECT` that is given up is parked until it was answered, gate open or not.
//!
//! What is left: what moves between a reset and the end of [`SILENCE`]. rum itself then has
//! nothing to say, since it polls right after a heartbeat, but a client may.
//!
//! A device and a guest answer one `CONNECT` after the other. So that clients without number, who have
//! waited for the guest to come back, leave room for the RPC, no more than [`MAX_CONNECTS`] channels
//! wait for their answer at once.
//!
//! Invariants: a stream is closed by [`Gate`] or by its peer, never both; at most [`MAX_PARKED`]
//! are kept.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::Service;
use crate::stream::rpc::HEARTBEAT;

/// An agent that was not heard for so long may be away: a heartbeat, and room for a busy guest.
pub const SILENCE: Duration = HEARTBEAT.saturating_add(Duration::from_millis(500));
/// Most streams that are kept, each of which is a descriptor; the oldest goes first.
const MAX_PARKED: usize = 1024;
/// Bytes that are read at once from a parked stream.
const CHUNK: usize = 4096;
/// Channels that wait for the answer to their `CONNECT` at once.
const MAX_CONNECTS: usize = 64;

/// A gate, shared by all streams to one guest.
#[derive(Debug, Clone)]
pub struct Gate {
    state: Arc<Mutex<State>>,
    connects: Arc<Semaphore>,
}

impl Default for Gate {
    fn default() -> Self {
        Self {
            state: Arc::default(),
            connects: Arc::new(Semaphore::new(MAX_CONNECTS)),
        }
    }
}

/// It is no part of where a guest is.
impl PartialEq for Gate {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Gate {}

#[derive(Debug, Default)]
struct State {
    /// When the agent was last heard. None: not yet, and nothing is held back.
    heard: Option<Instant>,
    /// The agent has no heartbeat, so that its silence says nothing.
    unguarded: bool,
    /// Streams that wait to write, by their number.
    writers: HashMap<u64, Waker>,
    parked: VecDeque<Parked>,
    /// Whoever waits for a sign of life.
    waiting: Option<Waker>,
    last_number: u64,
}

#[derive(Debug)]
struct Parked {
    stream: UnixStream,
    service: Service,
    answered: bool,
}

impl State {
    fn is_open(&self) -> bool {
        let fresh = |heard: Instant| heard.elapsed() <= SILENCE;
        self.unguarded || self.heard.is_none_or(fresh)
    }
}

impl Gate {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing in here panics half-way.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `CONNECT` may be said to `service`, and until its answer is there what is returned
    /// is to be kept.
    pub(super) async fn turn(&self, service: Service) -> Option<OwnedSemaphorePermit> {
        match service {
            Service::Rpc => None,
            // Never closed.
            Service::Channel => self.connects.clone().acquire_owned().await.ok(),
        }
    }

    /// The agent was heard: opens the gate for [`SILENCE`], and closes what is parked.
    pub fn heard(&self) {
        let mut state = self.lock();
        state.heard = Some(Instant::now());
        state.writers.drain().for_each(|(_, waker)| waker.wake());
        // One that was never answered stays until it is.
        let answered = |p: &Parked| p.answered || !is_silent(&p.stream);
        state.parked.retain(|parked| !answered(parked));
    }

    /// Whether the agent sends heartbeats. If not, its silence says nothing, and the gate stays
    /// open.
    pub fn guard(&self, heartbeats: bool) {
        self.lock().unguarded = !heartbeats;
    }

    /// Completes when bytes arrive on a parked stream of the RPC: the agent lives, and still takes
    /// it for a session. Cancel-safe; for one caller at a time.
    pub async fn sign_of_life(&self) {
        std::future::poll_fn(|cx| {
            let mut state = self.lock();
            state.waiting = Some(cx.waker().clone());
            let mut alive = false;
            // Its end is no sign: the device may say so by itself. Nothing hears of its close.
            state.parked.retain(|parked| match parked.read(cx) {
                Poll::Ready(Ok(0) | Err(_)) => false,
                Poll::Ready(Ok(_)) => {
                    alive = true;
                    true
                }
                Poll::Pending => true,
            });
            if alive {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        })
        .await;
    }

    /// How many streams are parked.
    #[cfg(test)]
    pub(super) fn parked(&self) -> usize {
        self.lock().parked.len()
    }

    fn park(&self, parked: Parked) {
        // What has arrived by now is no sign of life of later.
        if parked.service == Service::Rpc {
            while matches!(parked.stream.try_read(&mut [0; CHUNK]), Ok(1..)) {}
        }
        let mut state = self.lock();
        if state.parked.len() == MAX_PARKED {
            tracing::debug!("too many streams wait for the guest, the oldest is closed");
            state.parked.pop_front();
        }
        state.parked.push_back(parked);
        if let Some(waiting) = state.waiting.take() {
            waiting.wake();
        }
    }
}

/// Whether nothing has arrived on `stream`, neither a byte nor its end.
fn is_silent(stream: &UnixStream) -> bool {
    let tried = stream.try_read(&mut [0]);
    matches!(tried, Err(error) if error.kind() == io::ErrorKind::WouldBlock)
}

impl Parked {
    /// Reads what arrives, but not from a channel: to make room for a guest's bytes is an event
    /// for the device, too.
    fn read(&self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.service == Service::Channel {
            return Poll::Pending;
        }
        loop {
            std::task::ready!(self.stream.poll_read_ready(cx))?;
            match self.stream.try_read(&mut [0; CHUNK]) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                done => return Poll::Ready(done),
            }
        }
    }
}

/// A stream behind a gate.
#[derive(Debug)]
pub struct Gated {
    /// None only while it is dropped.
    stream: Option<UnixStream>,
    service: Service,
    gate: Gate,
    number: u64,
    answered: bool,
}

impl Gated {
    /// A stream on which `CONNECT` was just said.
    pub(super) fn new(stream: UnixStream, service: Service, gate: &Gate) -> Self {
        let mut state = gate.lock();
        state.last_number += 1;
        let number = state.last_number;
        drop(state);
        Self {
            stream: Some(stream),
            service,
            gate: gate.clone(),
            number,
            answered: false,
        }
    }

    /// The device has answered, or has closed it.
    pub(super) fn answered(&mut self) {
        self.answered = true;
    }

    fn stream(&mut self) -> Pin<&mut UnixStream> {
        Pin::new(self.stream.as_mut().expect("taken by drop only"))
    }

    /// Ready when the gate is open.
    fn poll_open(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = self.gate.lock();
        if state.is_open() {
            return Poll::Ready(());
        }
        state.writers.insert(self.number, cx.waker().clone());
        Poll::Pending
    }
}

impl Drop for Gated {
    fn drop(&mut self) {
        let mut state = self.gate.lock();
        state.writers.remove(&self.number);
        let open = state.is_open();
        drop(state);
        if let Some(stream) = self.stream.take().filter(|_| !(open && self.answered)) {
            self.gate.park(Parked {
                stream,
                service: self.service,
                answered: self.answered,
            });
        }
    }
}

impl AsFd for Gated {
    fn as_fd(&self) -> BorrowedFd<'_> {
        let stream = self.stream.as_ref();
        stream.expect("taken by drop only").as_fd()
    }
}

impl AsyncRead for Gated {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        let read = this.stream().poll_read(cx, buf);
        // Bytes of a channel may have lain here for long; those of the RPC are read as they come.
        if this.service == Service::Rpc && buf.filled().len() > before {
            this.gate.heard();
        }
        read
    }
}

impl AsyncWrite for Gated {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        std::task::ready!(this.poll_open(cx));
        this.stream().poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        std::task::ready!(this.poll_open(cx));
        this.stream().poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().stream().poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        std::task::ready!(this.poll_open(cx));
        this.stream().poll_shutdown(cx)
    }
}
