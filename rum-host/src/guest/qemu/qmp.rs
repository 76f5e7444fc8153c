//! QMP, QEMU's control channel: one JSON object per line on a Unix socket.
//!
//! The client sends `execute` with an `id`, the server answers with that id, and sends events in
//! between. Only a handful of commands and events are needed, so this implements just those: the
//! crate `qapi` builds QEMU's whole schema (forty crates) for the same five words.
//!
//! Events that arrive before an awaited answer are kept for [`Qmp::event`]. QEMU is trusted, but
//! the cost of a line is bounded all the same, and a line that is not understood is skipped.

use std::collections::VecDeque;
use std::io;
use std::path::Path;

use facet::Facet;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

/// Longest line that is read, in bytes; usual ones have a few hundred.
const MAX_LINE: usize = 1 << 20;
/// Most events that are kept; older ones are dropped first.
const MAX_EVENTS: usize = 64;

/// A connection to QMP, ready for commands.
#[derive(Debug)]
pub struct Qmp {
    stream: UnixStream,
    buffer: Vec<u8>,
    events: VecDeque<Event>,
    last_id: u64,
}

/// An event of QEMU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The machine stops for good, for this reason in QEMU's words (`guest-shutdown`, …).
    Shutdown(String),
    /// The guest's kernel reported a panic.
    Panicked,
}

/// The fields of a server's line that are needed here.
#[derive(Debug, Facet)]
struct Line {
    id: Option<u64>,
    event: Option<String>,
    data: Option<Data>,
    error: Option<Problem>,
}

#[derive(Debug, Facet)]
struct Data {
    reason: Option<String>,
}

#[derive(Debug, Facet)]
struct Problem {
    desc: String,
}

impl Qmp {
    /// Connects and negotiates. Completes when the machine is set up: QEMU does not answer before.
    /// Fails at once if there is no socket.
    pub async fn connect(path: &Path) -> io::Result<Self> {
        let mut this = Self {
            stream: UnixStream::connect(path).await?,
            buffer: Vec::new(),
            events: VecDeque::new(),
            last_id: 0,
        };
        this.execute("qmp_capabilities").await?;
        Ok(this)
    }

    /// Runs a command. No command used here takes arguments.
    ///
    /// # Errors
    /// QEMU's error; `UnexpectedEof` when QEMU is gone.
    pub async fn execute(&mut self, command: &str) -> io::Result<()> {
        self.last_id += 1;
        let id = self.last_id;
        let text = format!("{{\"execute\":\"{command}\",\"id\":{id}}}\n");
        self.stream.write_all(text.as_bytes()).await?;
        loop {
            let line = self.line().await?;
            match (line.id, line.error) {
                (Some(answered), None) if answered == id => return Ok(()),
                (Some(answered), Some(problem)) if answered == id => {
                    return Err(io::Error::other(problem.desc));
                }
                _ => {
                    if self.events.len() == MAX_EVENTS {
                        self.events.pop_front();
                    }
                    self.events.extend(event(line.event, line.data));
                }
            }
        }
    }

    /// The next event; None when QEMU is gone. Cancel-safe.
    pub async fn event(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.events.pop_front() {
                return Some(event);
            }
            let line = self.line().await.ok()?;
            self.events.extend(event(line.event, line.data));
        }
    }

    /// The next line that can be parsed. Cancel-safe.
    async fn line(&mut self) -> io::Result<Line> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<_> = self.buffer.drain(..=end).collect();
                match facet_json::from_slice(&line[..end]) {
                    Ok(line) => return Ok(line),
                    Err(error) => tracing::debug!(%error, "a line of QMP was not understood"),
                }
                continue;
            }
            if self.buffer.len() > MAX_LINE {
                return Err(io::ErrorKind::InvalidData.into());
            }
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }
}

fn event(name: Option<String>, data: Option<Data>) -> Option<Event> {
    let reason = || data.and_then(|data| data.reason).unwrap_or_default();
    match name.as_deref()? {
        "SHUTDOWN" => Some(Event::Shutdown(reason())),
        "GUEST_PANICKED" => Some(Event::Panicked),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use tokio::io::{AsyncBufReadExt, BufReader};
    use tokio::net::UnixListener;

    use super::*;

    const GREETING: &str = "{\"QMP\": {\"version\": {\"qemu\": {\"micro\": 22, \"minor\": 2, \
        \"major\": 7}, \"package\": \"Debian\"}, \"capabilities\": [\"oob\"]}}\r\n";

    /// Answers one command after the other with these lines, then goes.
    async fn served(answers: &[&str]) -> (io::Result<Qmp>, Vec<String>) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("qmp");
        let listener = UnixListener::bind(&path).unwrap();
        let server = async {
            let (stream, _) = listener.accept().await.unwrap();
            let mut stream = BufReader::new(stream);
            stream.write_all(GREETING.as_bytes()).await.unwrap();
            let mut heard = Vec::new();
            for answer in answers {
                let mut line = String::new();
                stream.read_line(&mut line).await.unwrap();
                heard.push(line);
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
            heard
        };
        let client = async {
            let mut qmp = Qmp::connect(&path).await?;
            for _ in 1..answers.len() {
                qmp.execute("quit").await?;
            }
            Ok(qmp)
        };
        let (qmp, heard) = tokio::join!(client, server);
        (qmp, heard)
    }

    #[tokio::test]
    async fn answers_are_told_from_events_and_none_is_lost() {
        let panicked = "{\"timestamp\": {\"seconds\": 1, \"microseconds\": 2}, \
            \"event\": \"GUEST_PANICKED\", \"data\": {\"action\": \"pause\"}}\r\n";
        let others = "{\"event\": \"RTC_CHANGE\", \"data\": {\"offset\": 78}}\r\nnot JSON\r\n\
            {\"event\": \"STOP\"}\r\n{\"return\": {}, \"id\": 77}\r\n";
        let shutdown = "{\"event\": \"SHUTDOWN\", \"data\": {\"guest\": true, \
            \"reason\": \"guest-shutdown\"}}\r\n";
        let first = "{\"return\": {}, \"id\": 1}\r\n".to_owned();
        let second =
            format!("{panicked}{others}{{\"id\": 2, \"return\": [1, {{}}]}}\r\n{shutdown}");
        let (qmp, heard) = served(&[&first, &second]).await;
        let mut qmp = qmp.unwrap();
        assert_eq!(qmp.event().await, Some(Event::Panicked));
        let reason = Event::Shutdown("guest-shutdown".to_owned());
        assert_eq!(qmp.event().await, Some(reason));
        assert_eq!(qmp.event().await, None);
        assert!(heard[0].contains("\"qmp_capabilities\""), "{heard:?}");
        assert!(heard[1].contains("\"quit\""), "{heard:?}");
    }

    #[tokio::test]
    async fn what_qemu_refuses_and_its_end_are_errors() {
        let refused = "{\"id\": 1, \"error\": {\"class\": \"GenericError\", \"desc\": \"no\"}}\n";
        let (qmp, _) = served(&[refused]).await;
        assert_eq!(qmp.unwrap_err().to_string(), "no");
        let (qmp, _) = served(&["{\"return\": {}, "]).await;
        assert_eq!(qmp.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
