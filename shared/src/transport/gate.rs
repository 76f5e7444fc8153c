//! The gate of a `CONNECT` transport: while the guest may be away, nothing moves on it from here.
//!
//! vhost-device-vsock (0.3.0) exits when anything happens on its host's side while the guest's driver
//! is away: its worker finds a queue that is not ready, and gives up. The driver is away from a reset
//! to the next boot, and while QEMU holds the machine (`stop`). A byte is enough, and so is a close or
//! a `CONNECT`. The device also panics when a `CONNECT` is closed before its `OK`.
//!
//! So the gate is open only for [`SILENCE`] after the agent was heard: a knock, or bytes on a
//! stream of the RPC, which brings a heartbeat each second. While the gate is shut, writes and dials
//! wait, and streams that are dropped are *parked*: kept as they are. The next sign of life, which may
//! be a byte on a parked stream of the RPC, opens the gate: writes go on, parked streams are closed. A
//! `CONNECT` that is given up is parked until it is answered, gate open or not.
//!
//! The gate does not cover the time between a reset and the end of [`SILENCE`]. rum itself sends
//! nothing then, since it polls right after a heartbeat ([`Gate::pause`]), but a client may.
//!
//! A device and a guest answer one `CONNECT` after the other. No more than [`MAX_CONNECTS`] channels
//! wait for their answer at once, so that many clients, which have waited for the guest to come back,
//! leave room for the RPC.
//!
//! Invariants: a gate that has heard nothing yet is open, so one that no stream goes through never
//! shuts; a stream is closed by [`Gate`] or by its peer, never both; at most [`MAX_PARKED`] are kept.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;
use tokio::sync::{Notify, Semaphore, SemaphorePermit};
use tokio::time::{Instant, sleep};

use super::Service;

/// The agent sends something on a watch stream at least this often.
pub const HEARTBEAT: Duration = Duration::from_secs(1);
/// An agent that was not heard for so long may be away: a heartbeat, and room for a busy guest.
pub const SILENCE: Duration = HEARTBEAT.saturating_add(Duration::from_millis(500));
/// A guest cannot have gone away so soon after its agent was heard.
const FRESH: Duration = Duration::from_millis(100);
/// Most streams that are kept, each of which is a descriptor; the oldest goes first.
const MAX_PARKED: usize = 1024;
/// Bytes that are read at once from a parked stream.
const CHUNK: usize = 4096;
/// Channels that wait for the answer to their `CONNECT` at once.
const MAX_CONNECTS: usize = 64;

/// A gate, shared by all streams to one guest.
#[derive(Debug, Clone)]
pub(super) struct Gate(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    connects: Semaphore,
    /// Wakes those who wait for the next sign of life.
    signs: Notify,
}

impl Default for Gate {
    fn default() -> Self {
        Self(Arc::new(Shared {
            state: Mutex::default(),
            connects: Semaphore::new(MAX_CONNECTS),
            signs: Notify::new(),
        }))
    }
}

#[derive(Debug, Default)]
struct State {
    /// When the agent was last heard. None: not yet, and nothing is held back.
    heard: Option<Instant>,
    /// The agent sends no heartbeats, so that its silence means nothing.
    unguarded: bool,
    /// Streams that wait to write, by their number.
    writers: HashMap<u64, Waker>,
    parked: VecDeque<Parked>,
    /// Whoever waits for a byte on a parked stream.
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
    /// The last sign of life, where the next one is sure to come.
    fn sign(&self) -> Option<Instant> {
        self.heard.filter(|_| !self.unguarded)
    }

    fn was_heard_within(&self, time: Duration) -> bool {
        self.sign().is_none_or(|heard| heard.elapsed() <= time)
    }

    fn is_open(&self) -> bool {
        self.was_heard_within(SILENCE)
    }
}

impl Gate {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing in here panics half-way.
        let state = self.0.state.lock();
        state.unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for permission to send `CONNECT` for a channel. Hold the permit until the answer is there.
    pub(super) async fn turn(&self) -> Option<SemaphorePermit<'_>> {
        // Never closed.
        let permit = self.0.connects.acquire().await.ok();
        self.until_heard_within(SILENCE).await;
        permit
    }

    /// Waits until the agent was heard just now.
    pub(super) async fn until_just_heard(&self) {
        self.until_heard_within(FRESH).await;
    }

    async fn until_heard_within(&self, time: Duration) {
        loop {
            // Made before the look: from then on it misses no sign.
            let sign = self.0.signs.notified();
            if self.lock().was_heard_within(time) {
                return;
            }
            sign.await;
        }
    }

    /// Waits for about `period`: until right after a sign of life, if the agent gives any. Then the
    /// guest is surely there for what is sent next.
    pub(super) async fn pause(&self, period: Duration) {
        if self.lock().sign().is_none() {
            return sleep(period).await;
        }
        sleep(period / 2).await;
        self.0.signs.notified().await;
    }

    /// The agent was heard: opens the gate for [`SILENCE`], and closes what is parked.
    pub(super) fn heard(&self) {
        let mut state = self.lock();
        state.heard = Some(Instant::now());
        state.writers.drain().for_each(|(_, waker)| waker.wake());
        // One that was never answered stays until it is.
        let answered = |p: &Parked| p.answered || !is_silent(&p.stream);
        state.parked.retain(|parked| !answered(parked));
        drop(state);
        self.0.signs.notify_waiters();
    }

    /// Whether the agent sends heartbeats. If not, the gate stays open.
    pub(super) fn guard(&self, heartbeats: bool) {
        self.lock().unguarded = !heartbeats;
    }

    /// Completes when bytes arrive on a parked stream of the RPC: the agent lives, and still takes
    /// it for a session. Cancel-safe; for one caller at a time.
    pub(super) async fn sign_of_life(&self) {
        std::future::poll_fn(|cx| {
            let mut state = self.lock();
            state.waiting = Some(cx.waker().clone());
            let mut alive = false;
            // An end proves nothing: the device can cause it. Nor does the device see the close then.
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
        // What has arrived by now proves nothing about later.
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
