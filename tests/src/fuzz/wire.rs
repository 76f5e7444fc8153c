//! What a peer sends: the other side of a guest, of a device, or of the control socket.

use std::io::{Cursor, Write as _};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use facet::Facet;
use roam::{Link as _, LinkRx as _, facet_postcard};
use rum_host::status::model::{ControlInfo, Update, WatchRequest};
use rum_host::stream::validate::StreamValidator;
use rum_shared::bytes::channel::{Decoder, DialStatus, Event, MAX_FRAME};
use rum_shared::range::PortRange;
use rum_shared::stream::link;
use rum_shared::stream::link::Usage;
use rum_shared::stream::rpc::{
    AgentInfo, ListeningPortsResponse, PROTOCOL, RumAgentClient, RumAgentDispatcher, WatchEvent,
};
use rum_shared::stream::session::{Limits, Session, serve};
use rum_shared::transport::{Stream, read_connect_answer};
use tokio::runtime::Runtime;

use super::text;
use crate::fake_agent::FakeAgent;

/// Longest frame that the target `frames` takes: short, so that it is often exceeded.
const FRAME: usize = 256;
/// Longest input that fits into a socket's buffer, whatever else is there.
const MAX_SENT: usize = 64 * 1024;

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime")
}

/// Frames of the RPC link: as long as they say, none too long, in order, nothing left out.
pub fn frames(data: &[u8]) {
    let reader = Cursor::new(data.to_vec());
    let usage = Arc::new(Usage::new(u64::MAX));
    let (link, _writer) = link::pair(reader, tokio::io::sink(), FRAME, usage);
    let (_sender, mut receiver) = link.split();
    let mut expected = data;
    runtime().block_on(async {
        while let Ok(Some(frame)) = receiver.recv().await {
            let frame = frame.as_bytes();
            assert!(frame.len() <= FRAME);
            let (length, rest) = expected.split_first_chunk().expect("a length");
            assert_eq!(u32::from_le_bytes(*length) as usize, frame.len());
            let (payload, rest) = rest.split_at(frame.len());
            assert_eq!(payload, frame);
            expected = rest;
        }
    });
    // What was not handed out is no whole frame, or one that is too long.
    if let Some((length, rest)) = expected.split_first_chunk() {
        let length = u32::from_le_bytes(*length) as usize;
        assert!(length > FRAME || length > rest.len());
    }
}

/// A whole session with a peer that says `data` and closes: the first byte picks the side.
pub fn session(data: &[u8]) {
    let Some((&first, said)) = data.split_first() else {
        return;
    };
    let (mut peer, ours) = UnixStream::pair().expect("two sockets");
    let said = &said[..said.len().min(MAX_SENT)];
    peer.write_all(said).expect("it fits into the buffer");
    peer.shutdown(std::net::Shutdown::Write).expect("connected");
    ours.set_nonblocking(true).expect("a socket");
    runtime().block_on(async {
        let stream = tokio::net::UnixStream::from_std(ours).expect("a socket");
        let stream = Stream::Unix(stream);
        if first & 1 == 0 {
            let agent = FakeAgent::new();
            agent.stream(&[5000]);
            let _ = serve(stream, Limits::AGENT, RumAgentDispatcher::new(agent)).await;
            return;
        }
        let session = Session::<RumAgentClient>::connect(stream, Limits::HOST).await;
        let Ok(session) = session else { return };
        let client = session.client().clone();
        let minute = Duration::from_secs(60);
        let _ = session.call(minute, client.hello(PROTOCOL)).await;
        let _ = session.call(minute, client.listening_ports(1, 9)).await;
    });
}

/// What the decoder says, in one text: payload bytes, `E` and `R`, and whether it failed.
fn decode<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> (Vec<u8>, String, bool) {
    let (mut decoder, mut bytes, mut ends) = (Decoder::default(), Vec::new(), String::new());
    for mut piece in pieces {
        loop {
            match decoder.next(&mut piece) {
                Ok(Some(Event::Data(data))) => {
                    assert!(!data.is_empty() && data.len() <= MAX_FRAME);
                    bytes.extend_from_slice(data);
                }
                Ok(Some(Event::End)) => ends.push('E'),
                Ok(Some(Event::Reset)) => ends.push('R'),
                Ok(None) => break,
                Err(_) => return (bytes, ends, true),
            }
        }
        assert!(piece.is_empty());
    }
    (bytes, ends, false)
}

/// A status byte, then frames: they mean the same however they arrive.
pub fn channel(data: &[u8]) {
    let Some((&status, framed)) = data.split_first() else {
        return;
    };
    let known = DialStatus::from(status) as u8;
    assert!(known == status || known == DialStatus::Failed as u8);
    let whole = decode(std::iter::once(framed));
    assert!(whole.0.len() <= framed.len());
    let step = usize::from(status) + 1;
    assert_eq!(decode(framed.chunks(step)), whole);
    assert_eq!(decode(framed.chunks(1)), whole);
}

/// The answer of a device: no byte after its line feed is taken.
pub fn connect(data: &[u8]) {
    let mut reader = data;
    let answer = runtime().block_on(read_connect_answer(&mut reader, 2222));
    let taken = &data[..data.len() - reader.len()];
    assert!(taken.len() <= 64);
    match answer {
        Ok(()) => assert!(taken.starts_with(b"OK ") && taken.ends_with(b"\n")),
        Err(error) => {
            let text = error.to_string();
            assert!(!text.contains(char::is_control), "{text:?}");
        }
    }
}

/// A message, if it is one; then it can be written and read again.
fn decoded<T: Facet<'static> + PartialEq + std::fmt::Debug>(data: &[u8]) -> Option<T> {
    let message: T = facet_postcard::from_slice(data).ok()?;
    let bytes = facet_postcard::to_vec(&message).expect("what was read can be written");
    let again: T = facet_postcard::from_slice(&bytes).expect("what was written can be read");
    assert_eq!(again, message);
    Some(message)
}

/// Messages of the control socket, and of the agent's stream: the first byte picks which.
pub fn control(data: &[u8]) {
    let Some((&kind, data)) = data.split_first() else {
        return;
    };
    match kind % 6 {
        0 => {
            if let Some(update) = decoded::<Update>(data) {
                text::show(update);
            }
        }
        1 => drop(decoded::<WatchRequest>(data)),
        2 => drop(decoded::<ControlInfo>(data)),
        3 => {
            let Some(event) = decoded::<WatchEvent>(data) else {
                return;
            };
            let range = PortRange::new(1024, 40_000).expect("a range");
            let mut validator = StreamValidator::new(range);
            let Ok(checked) = validator.check(&event) else {
                return;
            };
            // A checked item passes the check, but for its generation.
            let again = StreamValidator::new(range).check(&checked);
            assert_eq!(again, Ok(checked));
        }
        4 => drop(decoded::<AgentInfo>(data)),
        _ => drop(decoded::<ListeningPortsResponse>(data)),
    }
}
