//! `rum ssh-proxy`: ssh's ProxyCommand. Relays between its standard streams and a port of the guest.

use std::cell::Cell;
use std::time::{Duration, Instant};

use rum_shared::bytes::channel;
use rum_shared::bytes::channel::{Connected, Decoder, DialStatus, END, Event, LENGTH};
use rum_shared::destination::Destination;
use rum_shared::transport::{Endpoint, Stream};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use super::AGAIN;
use crate::error::RumError;
use crate::forward::Refusal;
use crate::runtime_dir::RunningGuest;
use crate::ui::output;

/// How long a VM that rum boots may take until its sshd listens. Without KVM that is a minute or two.
const BOOT: Duration = Duration::from_secs(180);
/// Bytes that are relayed at once.
const CHUNK: usize = 32 * 1024;

/// Connects to `port` of `guest`, and relays.
///
/// # Errors
/// There is no way to it, or the connection was cut.
pub async fn proxy(guest: &RunningGuest, port: u16) -> Result<(), RumError> {
    let channel = connect(guest, port).await?;
    let relayed = relay(channel, tokio::io::stdin(), tokio::io::stdout()).await;
    relayed.map_err(|error| {
        RumError::new(format!("the connection into `{}` was cut", guest.name)).caused_by(error)
    })
}

/// A channel to `port`. One that rum boots is given the time to do so.
async fn connect(guest: &RunningGuest, port: u16) -> Result<Stream, RumError> {
    let deadline = (guest.kind.as_deref() == Some("qemu")).then(|| Instant::now() + BOOT);
    let mut told = false;
    loop {
        let (error, passes) = match dial(guest, port).await {
            Ok(channel) => return Ok(channel),
            Err(failed) => failed,
        };
        if !passes || deadline.is_none_or(|deadline| Instant::now() >= deadline) || !guest.is_held()
        {
            return Err(error);
        }
        if !std::mem::replace(&mut told, true) {
            output::tell(&format!("Waiting while `{}` boots: {error}", guest.name));
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// One try. An error, and whether it may be another one in a moment.
async fn dial(guest: &RunningGuest, port: u16) -> Result<Stream, (RumError, bool)> {
    let name = &guest.name;
    let socket = guest.streams_socket();
    let endpoint = Endpoint::Unix {
        rpc: socket.clone(),
        channel: socket,
        net: None,
    };
    let status = match channel::dial(&endpoint.into(), Destination::own(port)).await {
        Ok(Ok(Connected::Framed(channel))) => return Ok(channel),
        // `rum up` hands no socket over.
        Ok(Ok(Connected::Direct(_))) => DialStatus::Failed,
        Ok(Err(status)) => status,
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
            let error = RumError::new(format!("no agent answers in `{name}`"))
                .hint(format!("`rum ports --name {name}` says how it stands"));
            return Err((error, true));
        }
        Err(error) => {
            let error = RumError::new(format!(
                "the `rum up` of guest `{name}` gives no connection"
            ))
            .caused_by(error)
            .hint("look whether it is just ending, or of an older version");
            return Err((error, false));
        }
    };
    let words = Refusal::Agent(status).words(Destination::own(port));
    let error = RumError::new(format!("port {port} of `{name}`: {words}"));
    let refused = status == DialStatus::Refused;
    let error = if refused {
        error.hint("it needs an sshd: `apt install openssh-server` in the guest, or another way in")
    } else {
        error
    };
    Err((error, refused))
}

/// Relays between the streams and the framed `channel`, until that has ended. An input that has ended is an
/// ssh that is gone: nobody is told that the rest was cut.
async fn relay(
    channel: Stream,
    input: impl AsyncRead + Unpin,
    output: impl AsyncWrite + Unpin,
) -> std::io::Result<()> {
    let (from_guest, to_guest) = tokio::io::split(channel);
    let gone = Cell::new(false);
    tokio::select! {
        ended = down(from_guest, output) => if gone.get() { Ok(()) } else { ended },
        never = up(input, to_guest, &gone) => match never {},
    }
}

/// From the input to the guest; notes in `gone` that it has ended. What became of the connection is seen by the other direction.
async fn up(
    mut input: impl AsyncRead + Unpin,
    mut guest: impl AsyncWrite + Unpin,
    gone: &Cell<bool>,
) -> std::convert::Infallible {
    let mut frame = vec![0; LENGTH + CHUNK];
    loop {
        // An input that fails has ended.
        let read = input.read(&mut frame[LENGTH..]).await.unwrap_or(0);
        gone.set(read == 0);
        let sent = match read {
            0 => guest.write_all(&END).await,
            read => {
                frame[..LENGTH].copy_from_slice(&channel::length(read));
                guest.write_all(&frame[..LENGTH + read]).await
            }
        };
        if read == 0 || sent.is_err() {
            return std::future::pending().await;
        }
    }
}

/// From the guest to the output, until its direction has ended.
async fn down(
    mut guest: impl AsyncRead + Unpin,
    mut output: impl AsyncWrite + Unpin,
) -> std::io::Result<()> {
    let (mut decoder, mut chunk) = (Decoder::default(), vec![0; CHUNK]);
    loop {
        let read = guest.read(&mut chunk).await?;
        let mut rest = &chunk[..read];
        if read == 0 {
            return Err(std::io::ErrorKind::ConnectionReset.into());
        }
        while let Some(event) = decoder.next(&mut rest).map_err(std::io::Error::other)? {
            match event {
                Event::Data(bytes) => output.write_all(bytes).await?,
                Event::End => return output.shutdown().await,
                Event::Reset => return Err(std::io::ErrorKind::ConnectionReset.into()),
            }
        }
        output.flush().await?;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use tokio::net::UnixStream;

    use super::*;

    /// What a relay writes that reads `input` and gets `frames`; what it sends; how it ends.
    async fn relayed(
        input: impl AsyncRead + Unpin,
        sends: usize,
        frames: &[u8],
    ) -> (Vec<u8>, Vec<u8>, std::io::Result<()>) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (mut from_relay, mut to_relay) = theirs.into_split();
        let (mut output, mut sent) = (Vec::new(), vec![0; sends]);
        let theirs = async {
            from_relay.read_exact(&mut sent).await.unwrap();
            to_relay.write_all(frames).await.unwrap();
            drop(to_relay);
        };
        let (ended, ()) = tokio::join!(relay(Stream::Unix(ours), input, &mut output), theirs);
        (output, sent, ended)
    }

    #[tokio::test]
    async fn bytes_and_ends_are_frames() {
        let answer = [&channel::length(5)[..], b"hello", &END].concat();
        let question = [&channel::length(8)[..], b"question", &END].concat();
        let (output, sent, ended) = relayed(&b"question"[..], question.len(), &answer).await;
        ended.unwrap();
        assert_eq!(output, b"hello");
        assert_eq!(sent, question);
    }

    #[tokio::test]
    async fn what_is_cut_is_no_end_but_to_those_who_are_gone() {
        let cut = [&channel::length(5)[..], b"hel"].concat();
        for frames in [&cut[..], &channel::RESET] {
            let (_input, open) = tokio::io::duplex(1);
            let (_, _, ended) = relayed(open, 0, frames).await;
            let error = ended.unwrap_err();
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
            let (_, _, ended) = relayed(&b""[..], END.len(), frames).await;
            ended.unwrap();
        }
    }
}
