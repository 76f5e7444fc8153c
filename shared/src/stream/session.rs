//! Step 3 of the data flow: a guarded roam session. Nothing waits for ever and nothing grows
//! without bound.
//!
//! Roam alone has no deadline for its handshake, leaves a call hanging that is made after the
//! peer died, and keeps a session open while a channel of it lives. So roam's session loop and
//! the link's writer are futures that *we* own: [`serve`] runs them inside its own future,
//! [`Session`] in one task that it aborts when dropped. Without them roam's own tasks (one
//! driver, one task a call) have nothing left to wait for and end.
//!
//! Invariants: every wait has a deadline or ends with the session; a session receives a
//! bounded amount ([`crate::stream::link`]) and keeps what calls leave behind, so a long-lived
//! caller renews it when [`Session::is_worn`] says so: make the new one, then drop the old.

#[cfg(test)]
mod tests;

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use roam::{Caller, DriverCaller, DriverReplySink, Handler, RequestCall, RoamError, SelfRef};
use tokio::io::{ReadHalf, WriteHalf};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::stream::link;
use crate::stream::link::{Link, Usage, Writer};
use crate::text::clean;
use crate::transport::Stream;

/// Calls after which a caller makes a new session: the agent keeps about 2.2 KB for each one
/// that it has answered until the session ends.
pub const CALLS_PER_SESSION: u32 = 256;
/// Most calls that one session may make of us; then it ends. Above what an honest caller makes,
/// and at 2.2 KB each a bound for what one session can make us keep.
pub const MAX_CALLS: u32 = 4 * CALLS_PER_SESSION;
/// Longest error text of a peer that is passed on, in characters.
const MAX_ERROR_TEXT: usize = 300;

/// What a side accepts from its peer.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Largest frame that is read, in bytes.
    pub frame: usize,
    /// Most bytes that are read in all: then the session ends. At half of it a caller renews.
    pub bytes: u64,
    /// Time for the handshake.
    pub handshake: Duration,
}

impl Limits {
    /// What an agent accepts: calls and credit, all of them small.
    pub const AGENT: Self = Self {
        frame: 64 * 1024,
        bytes: 4 * 1024 * 1024,
        handshake: Duration::from_secs(5),
    };
    /// What a host accepts: a snapshot of all 65,535 ports with eight addresses and a name
    /// each has about 15.5 MB. Decoded, a frame of tiny items takes some 15 times its size.
    pub const HOST: Self = Self {
        frame: 16 * 1024 * 1024,
        bytes: 64 * 1024 * 1024,
        handshake: Duration::from_secs(5),
    };
}

/// Why a session could not be made or a call not be answered.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The peer is gone, the session ended, or the peer gave the call up.
    #[error("the connection was closed")]
    Closed,
    /// No answer in time.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    /// The peer does not know the method.
    #[error("the other side does not know this call")]
    UnknownMethod,
    /// The peer could not read the call, or its answer could not be read.
    #[error("the answer could not be understood")]
    Invalid,
    /// The peer answered with an error of its own. Cleaned for a terminal.
    #[error("{0}")]
    Remote(String),
    /// There is no connection to have one on. Cleaned for a terminal.
    #[error("{0}")]
    Unreachable(String),
    /// The handshake failed. Cleaned for a terminal.
    #[error("handshake failed: {0}")]
    Handshake(String),
}

/// The calling side of a session. Dropping it ends the session, its streams included.
pub struct Session<C> {
    client: C,
    caller: DriverCaller,
    usage: Arc<Usage>,
    calls: AtomicU32,
    _running: AbortOnDropHandle<()>,
}

impl<C: From<DriverCaller> + Clone> Session<C> {
    /// Makes a session over `stream` as its initiator.
    ///
    /// # Errors
    /// [`SessionError::Handshake`], also when it takes longer than `limits` allow.
    pub async fn connect(stream: Stream, limits: Limits) -> Result<Self, SessionError> {
        let usage = Arc::new(Usage::new(limits.bytes));
        let (link, writer) = split(stream, limits, &usage);
        let builder = roam::initiator(link);
        let (caller, running) = handshake(limits, writer, async move |keep: Keep| {
            let builder = builder.spawn_fn(move |session| keep.keep(session));
            let (caller, _) = builder.establish::<DriverCaller>(()).await?;
            Ok(caller)
        })
        .await?;
        Ok(Self {
            client: C::from(caller.clone()),
            caller,
            usage,
            calls: AtomicU32::new(0),
            _running: AbortOnDropHandle::new(tokio::spawn(running.run())),
        })
    }

    /// The generated client. Never await its calls bare: use [`Session::call`].
    pub fn client(&self) -> &C {
        &self.client
    }

    /// Awaits a call of [`Session::client`], until it is answered, the session ends, or
    /// `deadline` has passed. Giving a call up does not tell the peer.
    ///
    /// # Errors
    /// As [`SessionError`] lists them, but for its handshake.
    pub async fn call<T, E: ToString>(
        &self,
        deadline: Duration,
        call: impl Future<Output = Result<T, RoamError<E>>>,
    ) -> Result<T, SessionError> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        tokio::select! {
            biased;
            answer = call => answer.map_err(SessionError::from),
            () = self.closed() => Err(SessionError::Closed),
            () = tokio::time::sleep(deadline) => Err(SessionError::Timeout(deadline)),
        }
    }

    /// Completes when the session has ended, for whatever reason.
    pub async fn closed(&self) {
        self.caller.closed().await;
    }

    /// It has received half of what one session may, or made [`CALLS_PER_SESSION`] calls: make a new
    /// one before dropping this.
    pub fn is_worn(&self) -> bool {
        self.usage.is_worn() || self.calls.load(Ordering::Relaxed) >= CALLS_PER_SESSION
    }
}

impl<E: ToString> From<RoamError<E>> for SessionError {
    fn from(error: RoamError<E>) -> Self {
        match error {
            RoamError::User(error) => Self::Remote(clean(&error.to_string(), MAX_ERROR_TEXT)),
            RoamError::UnknownMethod => Self::UnknownMethod,
            RoamError::InvalidPayload => Self::Invalid,
            RoamError::Cancelled => Self::Closed,
        }
    }
}

/// Serves `handler` on `stream` until the session ends (the future may be dropped: that ends
/// the session and everything that runs for it), at the latest with the call after
/// [`MAX_CALLS`].
///
/// # Errors
/// [`SessionError::Handshake`]; later ends are no errors.
pub async fn serve<H>(stream: Stream, limits: Limits, handler: H) -> Result<(), SessionError>
where
    H: Handler<DriverReplySink> + 'static,
{
    let usage = Arc::new(Usage::new(limits.bytes));
    let (link, writer) = split(stream, limits, &usage);
    let (handler, spent) = Counted::new(handler);
    let builder = roam::acceptor(link);
    let (_caller, running) = handshake(limits, writer, async move |keep: Keep| {
        let builder = builder.spawn_fn(move |session| keep.keep(session));
        let (caller, _) = builder.establish::<DriverCaller>(handler).await?;
        Ok(caller)
    })
    .await?;
    tokio::select! {
        () = running.run() => {}
        () = spent.cancelled() => tracing::debug!("a session ended: it has made all its calls"),
    }
    Ok(())
}

/// A handler that takes [`MAX_CALLS`] and then has the session ended.
struct Counted<H> {
    handler: H,
    calls: AtomicU32,
    spent: CancellationToken,
}

impl<H> Counted<H> {
    /// Counts the calls of `handler`; the token is cancelled by the one that is too many.
    fn new(handler: H) -> (Self, CancellationToken) {
        let spent = CancellationToken::new();
        let counted = Self {
            handler,
            calls: AtomicU32::new(0),
            spent: spent.clone(),
        };
        (counted, spent)
    }
}

impl<H: Handler<DriverReplySink>> Handler<DriverReplySink> for Counted<H> {
    async fn handle(&self, call: SelfRef<RequestCall<'static>>, reply: DriverReplySink) {
        if self.calls.fetch_add(1, Ordering::Relaxed) >= MAX_CALLS {
            return self.spent.cancel();
        }
        self.handler.handle(call, reply).await;
    }
}

type Reader = ReadHalf<Stream>;
type StreamWriter = Writer<WriteHalf<Stream>>;

fn split(stream: Stream, limits: Limits, usage: &Arc<Usage>) -> (Link<Reader>, StreamWriter) {
    let (reader, writer) = tokio::io::split(stream);
    link::pair(reader, writer, limits.frame, Arc::clone(usage))
}

/// Roam's session loop.
type SessionLoop = Pin<Box<dyn Future<Output = ()> + Send>>;
/// The link's writer.
type WriterLoop = Pin<Box<dyn Future<Output = io::Result<()>> + Send>>;

/// Takes the session loop that roam would spawn.
struct Keep(oneshot::Sender<SessionLoop>);

impl Keep {
    fn keep(self, session: SessionLoop) {
        // The receiver is gone only if the handshake was given up: then the loop goes, too.
        let _ = self.0.send(session);
    }
}

/// What has to run for a session to live. Dropping it ends the session.
struct Running {
    session: SessionLoop,
    writer: WriterLoop,
}

impl Running {
    async fn run(self) {
        tokio::select! {
            () = self.session => {}
            ended = self.writer => {
                if let Err(error) = ended {
                    tracing::debug!(%error, "a session ended: its stream cannot be written");
                }
            }
        }
    }
}

/// Runs `establish` and the link's writer until the handshake is done.
async fn handshake(
    limits: Limits,
    writer: StreamWriter,
    establish: impl AsyncFnOnce(Keep) -> Result<DriverCaller, roam::SessionError>,
) -> Result<(DriverCaller, Running), SessionError> {
    let failed =
        |why: &dyn ToString| SessionError::Handshake(clean(&why.to_string(), MAX_ERROR_TEXT));
    let mut writer: WriterLoop = Box::pin(writer.run());
    let (keep, kept) = oneshot::channel();
    let caller = tokio::select! {
        biased;
        established = establish(Keep(keep)) => established.map_err(|e| failed(&e))?,
        ended = &mut writer => {
            let why = ended.err().map_or("the stream closed".into(), |e| e.to_string());
            return Err(failed(&why));
        }
        () = tokio::time::sleep(limits.handshake) => {
            return Err(failed(&format!("no answer within {:?}", limits.handshake)));
        }
    };
    let session = kept
        .await
        .map_err(|_| failed(&"the session did not start"))?;
    Ok((caller, Running { session, writer }))
}
