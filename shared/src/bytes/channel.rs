//! Step 6 of the data flow: the protocol of the forward channel.
//!
//! The host sends a [`Header`]: the guest port as two bytes, big-endian. Port 0, on which nothing
//! listens, introduces the other kinds of header, which an older agent does not know: it answers
//! [`DialStatus::Denied`]. The agent dials and answers with one [`DialStatus`] byte. From then on
//! both directions are framed alike: four bytes of length, big-endian, then that many bytes. Length
//! 0 means that this direction has ended, [`RESET`] that the connection was reset. So a half-close
//! survives transports that lose a shutdown, and a channel that ends without an end frame was
//! broken.
//!
//! Invariants: no frame is longer than [`MAX_FRAME`]; a [`Decoder`] copies and holds no payload, at
//! most three bytes of a length; only a reset may follow an end, nothing a reset.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsFd;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::bytes::handover;
pub use crate::bytes::header::Header;
use crate::bytes::header::{IPV4, IPV6, SOCKETS};
use crate::destination::Destination;
use crate::netns::NetCookie;
use crate::transport::{Endpoint, Service, Stream, Transport};

/// Longest payload of one frame, in bytes. A reader need not buffer a frame, so this only detects
/// invalid lengths.
pub const MAX_FRAME: usize = 256 * 1024;
/// Bytes of a frame's length.
pub const LENGTH: usize = 4;
/// The end frame: this direction has ended, the other continues.
pub const END: [u8; LENGTH] = [0; LENGTH];
/// The reset frame: the connection was reset.
pub const RESET: [u8; LENGTH] = [0xff; LENGTH];

/// The agent's answer to a channel header: one byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum DialStatus {
    /// Connected.
    Connected = 0,
    /// Nothing listens on the port any more.
    Refused = 1,
    /// The listener's address cannot be reached.
    Unreachable = 2,
    /// The listener did not answer in time.
    TimedOut = 3,
    /// The agent has no free descriptors or channels.
    Exhausted = 4,
    /// Port 0 or otherwise not allowed.
    Denied = 5,
    /// Anything else.
    Failed = 6,
    /// No local port is free for one more connection (EADDRNOTAVAIL, connect(2)).
    NoLocalPort = 7,
}

impl From<u8> for DialStatus {
    /// Later agents may have further reasons: an unknown byte is [`DialStatus::Failed`].
    fn from(byte: u8) -> Self {
        match byte {
            0 => Self::Connected,
            1 => Self::Refused,
            2 => Self::Unreachable,
            3 => Self::TimedOut,
            4 => Self::Exhausted,
            5 => Self::Denied,
            7 => Self::NoLocalPort,
            _ => Self::Failed,
        }
    }
}

/// Host side: requests `destination` and waits for the status. Has no deadline: an agent may never
/// answer, so call it under a timeout and drop the stream when that expires.
///
/// # Errors
/// The stream's; [`io::ErrorKind::UnexpectedEof`] if it ends before the status.
pub async fn open(
    mut stream: Stream,
    destination: Destination,
) -> io::Result<Result<Connected, DialStatus>> {
    stream
        .write_all(&Header::Destination(destination).bytes())
        .await?;
    answered(stream, None).await
}

/// As [`open`], over a new stream of `transport`.
///
/// # Errors
/// Those of [`Transport::dial`] and of [`open`].
pub async fn dial(
    transport: &Transport,
    destination: Destination,
) -> io::Result<Result<Connected, DialStatus>> {
    let header = Header::Destination(destination).bytes();
    let stream = transport.dial_saying(Service::Channel, &header).await?;
    match transport.endpoint() {
        Endpoint::Unix { net, .. } => answered(stream, *net).await,
        // A device or a VM cannot pass a socket of this kernel.
        Endpoint::Vsock { .. } | Endpoint::Connect { .. } => plainly_answered(stream).await,
    }
}

/// Waits for the answer of an agent that cannot hand over a socket: the kernel drops attached
/// descriptors (unix(7): a receiver without a control buffer gets none).
async fn plainly_answered(mut stream: Stream) -> io::Result<Result<Connected, DialStatus>> {
    Ok(match DialStatus::from(stream.read_u8().await?) {
        DialStatus::Connected => Ok(Connected::Framed(stream)),
        status => Err(status),
    })
}

/// Waits for the answer to a header. A socket attached to it must belong to `net`.
async fn answered(
    stream: Stream,
    net: Option<NetCookie>,
) -> io::Result<Result<Connected, DialStatus>> {
    let Stream::Unix(unix) = &stream else {
        return plainly_answered(stream).await;
    };
    let (status, socket) = handover::receive(unix, net).await?;
    Ok(match (DialStatus::from(status), socket) {
        (DialStatus::Connected, Some(socket)) => Ok(Connected::Direct(socket)),
        (DialStatus::Connected, None) => Ok(Connected::Framed(stream)),
        (status, _) => Err(status),
    })
}

/// The host's result of a request for a port.
#[derive(Debug)]
pub enum Connected {
    /// The agent relays; the stream is framed from here on.
    Framed(Stream),
    /// The agent shares our kernel and handed over the connected socket.
    Direct(TcpStream),
}

/// Agent side: reads the host's request; `None` if it is of an unknown kind. Has no deadline: call
/// it under a timeout.
///
/// # Errors
/// The reader's; [`io::ErrorKind::UnexpectedEof`] if it ends before the header does.
pub async fn read_header(reader: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Header>> {
    let port = reader.read_u16().await?;
    if port != 0 {
        return Ok(Some(Header::Destination(Destination::own(port))));
    }
    let ip: IpAddr = match reader.read_u8().await? {
        SOCKETS => return Ok(Some(Header::Sockets)),
        IPV4 => Ipv4Addr::from(reader.read_u32().await?).into(),
        IPV6 => Ipv6Addr::from(reader.read_u128().await?).into(),
        _ => return Ok(None),
    };
    let (port, ip) = (reader.read_u16().await?, Some(ip));
    Ok(Some(Header::Destination(Destination { port, ip })))
}

/// Agent side: answers that it is connected and hands `socket` over if the transport can carry one;
/// otherwise returns it, to be relayed.
///
/// # Errors
/// The stream's.
pub async fn hand_over(
    stream: &mut Stream,
    socket: std::net::TcpStream,
) -> io::Result<Option<std::net::TcpStream>> {
    let Stream::Unix(unix) = stream else {
        write_status(stream, DialStatus::Connected).await?;
        return Ok(Some(socket));
    };
    handover::send(unix, DialStatus::Connected as u8, socket.as_fd()).await?;
    Ok(None)
}

/// Agent side: answers a header. The single byte fits into any socket buffer, so this does not wait
/// for the host.
///
/// # Errors
/// The stream's.
pub async fn write_status(stream: &mut Stream, status: DialStatus) -> io::Result<()> {
    stream.write_u8(status as u8).await
}

/// A length that no frame has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a frame of {0} bytes, more than {MAX_FRAME}")]
pub struct FrameTooLong(pub u32);

/// The next event of a framed stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event<'a> {
    /// Bytes of a frame, never empty; frame boundaries have no meaning.
    Data(&'a [u8]),
    /// This direction has ended.
    End,
    /// The connection was reset.
    Reset,
}

/// Splits a stream into frames as its bytes arrive, in pieces of any size.
#[derive(Debug, Clone, Default)]
pub struct Decoder {
    /// Payload bytes of the current frame still to come.
    payload: usize,
    length: [u8; LENGTH],
    /// Bytes of `length` already read.
    seen: usize,
}

impl Decoder {
    /// The next event in `input`, which is advanced past it; `None` when more bytes are
    /// needed, and then `input` is empty.
    ///
    /// # Errors
    /// [`FrameTooLong`]; the stream cannot be read any further.
    pub fn next<'a>(&mut self, input: &mut &'a [u8]) -> Result<Option<Event<'a>>, FrameTooLong> {
        while !input.is_empty() {
            if self.payload > 0 {
                let (data, rest) = input.split_at(self.payload.min(input.len()));
                self.payload -= data.len();
                *input = rest;
                return Ok(Some(Event::Data(data)));
            }
            let (part, rest) = input.split_at((LENGTH - self.seen).min(input.len()));
            self.length[self.seen..self.seen + part.len()].copy_from_slice(part);
            self.seen += part.len();
            *input = rest;
            if self.seen < LENGTH {
                break;
            }
            self.seen = 0;
            match self.length {
                END => return Ok(Some(Event::End)),
                RESET => return Ok(Some(Event::Reset)),
                length => {
                    let length = u32::from_be_bytes(length);
                    self.payload = length as usize;
                    if self.payload > MAX_FRAME {
                        return Err(FrameTooLong(length));
                    }
                }
            }
        }
        Ok(None)
    }
}

/// The length of a frame with `payload` bytes, as it is written before them.
///
/// `payload` is 1 to [`MAX_FRAME`].
pub fn length(payload: usize) -> [u8; LENGTH] {
    debug_assert!((1..=MAX_FRAME).contains(&payload));
    (payload as u32).to_be_bytes()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;
    use tokio::net::UnixStream;

    fn frame(payload: &[u8]) -> Vec<u8> {
        [&length(payload.len()), payload].concat()
    }

    /// Everything in `pieces`: the payload bytes, then `E` or `R` events as text.
    fn decode<'a>(
        pieces: impl IntoIterator<Item = &'a [u8]>,
    ) -> Result<(Vec<u8>, String), FrameTooLong> {
        let (mut decoder, mut data, mut ends) = (Decoder::default(), vec![], String::new());
        for mut piece in pieces {
            while let Some(event) = decoder.next(&mut piece)? {
                match event {
                    Event::Data(bytes) => {
                        assert!(!bytes.is_empty());
                        data.extend_from_slice(bytes);
                    }
                    Event::End => ends.push('E'),
                    Event::Reset => ends.push('R'),
                }
            }
            assert!(piece.is_empty());
        }
        Ok((data, ends))
    }

    #[test]
    fn split_at_every_byte() {
        let stream = [frame(b"hello "), frame(b"world"), END.to_vec()].concat();
        for at in 0..=stream.len() {
            let (head, tail) = stream.split_at(at);
            let whole = (b"hello world".to_vec(), "E".to_string());
            assert_eq!(decode([head, tail]).unwrap(), whole);
        }
        assert_eq!(decode([&RESET[..]]).unwrap().1, "R");
    }

    #[test]
    fn lengths_have_a_limit() {
        let first = |n: u32| Decoder::default().next(&mut &n.to_be_bytes()[..]).map(drop);
        assert_eq!(first(MAX_FRAME as u32), Ok(()));
        for n in [MAX_FRAME as u32 + 1, 0x8000_0000, 0xffff_fffe] {
            assert_eq!(first(n), Err(FrameTooLong(n)));
        }
    }

    fn header_of(bytes: &mut &[u8]) -> io::Result<Option<Header>> {
        let runtime = tokio::runtime::Builder::new_current_thread().build();
        runtime.unwrap().block_on(read_header(bytes))
    }

    proptest! {
        #[test]
        fn pieces_do_not_matter(
            payloads in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..300), 0..6),
            cuts in prop::collection::vec(1usize..50, 1..20),
        ) {
            let mut stream: Vec<u8> = payloads.iter().flat_map(|p| frame(p)).collect();
            stream.extend(END);
            let (mut pieces, mut rest) = (vec![], &stream[..]);
            for cut in cuts.iter().cycle() {
                let (piece, more) = rest.split_at((*cut).min(rest.len()));
                pieces.push(piece);
                rest = more;
                if rest.is_empty() { break; }
            }
            prop_assert_eq!(decode(pieces).unwrap(), (payloads.concat(), "E".to_string()));
        }

        #[test]
        fn no_bytes_panic(pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..8)) {
            let _ = decode(pieces.iter().map(Vec::as_slice));
        }

        #[test]
        fn headers_come_back_and_no_byte_behind_them_is_taken(
            port in 1u16.., ip: Option<IpAddr>, sockets: bool, behind: Vec<u8>,
        ) {
            let header = if sockets { Header::Sockets } else { Header::Destination(Destination { port, ip }) };
            let sent = [header.bytes(), behind.clone()].concat();
            let mut rest = &sent[..];
            prop_assert_eq!(header_of(&mut rest).unwrap(), Some(header));
            prop_assert_eq!(rest, behind);
        }

        #[test]
        fn any_bytes_are_a_header_or_none(bytes: Vec<u8>) {
            let _ = header_of(&mut &bytes[..]);
        }

        #[test]
        fn every_status_byte_means_something(byte: u8) {
            let status = DialStatus::from(byte);
            prop_assert!(status as u8 == byte || status == DialStatus::Failed);
        }
    }

    #[tokio::test]
    async fn header_and_status_cross() {
        let pair = || {
            let (a, b) = UnixStream::pair().unwrap();
            (Stream::Unix(a), Stream::Unix(b))
        };
        let ((host, mut agent), (lost, mut gone)) = (pair(), pair());
        let agent = async {
            let asked = read_header(&mut agent).await.unwrap();
            assert_eq!(asked, Some(Header::Destination(Destination::own(50_000))));
            write_status(&mut agent, DialStatus::Unreachable)
                .await
                .unwrap();
            read_header(&mut gone).await.unwrap();
            drop(gone);
        };
        let host = async {
            let refused = open(host, Destination::own(50_000))
                .await
                .unwrap()
                .unwrap_err();
            assert_eq!(refused, DialStatus::Unreachable);
            let error = open(lost, Destination::own(1)).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        };
        tokio::join!(agent, host);
    }
}
