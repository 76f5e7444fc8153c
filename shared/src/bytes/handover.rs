//! Steps 5 and 6 of the data flow where host and agent share a kernel: the agent hands over the
//! connected socket, and the host relays to it directly, one hop instead of two.
//!
//! The agent's status byte carries the socket (SCM_RIGHTS, unix(7)). Both sides have to agree: the
//! agent hands over only with its option set; the host accepts only a connected TCP socket of the
//! guest's network namespace and closes anything else.
//!
//! Faster still is [`request`]: the host asks for sockets that are not connected yet. A socket
//! belongs to the network namespace in which it was made, so the host can connect it by itself.
//!
//! Invariants: at most one descriptor is accepted, or [`OFFER`] unconnected ones, close-on-exec;
//! the sender closes its own copy; both sides set O_NONBLOCK, which all holders share. A host
//! without a free descriptor for the attached one gets an error, not a message without a socket.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType, ipproto,
    recvmsg, sendmsg, socket_with, sockopt,
};
use tokio::io::Interest;
use tokio::net::{TcpStream, UnixStream};

use crate::bytes::header::Header;
use crate::netns::NetCookie;
use crate::transport::{Endpoint, Service, Stream, Transport};

/// Number of unconnected sockets that an agent offers at once.
pub const OFFER: usize = 16;
/// Time for the agent's offer.
const REQUEST_DEADLINE: Duration = Duration::from_secs(5);

/// Host side: asks the agent for unconnected IPv4 TCP sockets of the guest, at most [`OFFER`].
///
/// # Errors
/// The dial's and those of [`receive`], but for the socket's being connected;
/// [`io::ErrorKind::TimedOut`] after 5 s. With any other descriptor among them all are closed.
pub async fn request(transport: &Transport) -> io::Result<Vec<OwnedFd>> {
    let requested = async {
        let header = Header::Sockets.bytes();
        let dialled = transport.dial_saying(Service::Channel, &header).await?;
        let Stream::Unix(stream) = dialled else {
            return Ok(Vec::new());
        };
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(OFFER))];
        let received = receive_all(&stream, &mut space).await?;
        let net = match transport.endpoint() {
            Endpoint::Unix { net, .. } => *net,
            _ => None,
        };
        let sockets = received.sockets.into_iter();
        sockets.map(|socket| checked(socket, net)).collect()
    };
    let timed = tokio::time::timeout(REQUEST_DEADLINE, requested).await;
    timed.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// Agent side: answers [`Header::Sockets`].
///
/// # Errors
/// Those of socket(2) and of the stream.
pub async fn offer(stream: &UnixStream) -> io::Result<()> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = |_| socket_with(AddressFamily::INET, SocketType::STREAM, flags, None);
    let sockets: Vec<OwnedFd> = (0..OFFER).map(socket).collect::<Result<_, Errno>>()?;
    let sockets: Vec<BorrowedFd<'_>> = sockets.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(OFFER))];
    send_all(stream, 0, &sockets, &mut space).await
}

/// Sends one byte with `socket` attached.
///
/// # Errors
/// The stream's.
pub async fn send(stream: &UnixStream, byte: u8, socket: BorrowedFd<'_>) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    send_all(stream, byte, &[socket], &mut space).await
}

/// Sends one byte with `sockets` attached, for which `space` is made.
async fn send_all(
    stream: &UnixStream,
    byte: u8,
    sockets: &[BorrowedFd<'_>],
    space: &mut [MaybeUninit<u8>],
) -> io::Result<()> {
    stream
        .async_io(Interest::WRITABLE, || {
            let mut ancillary = SendAncillaryBuffer::new(space);
            // The buffer has exactly this size.
            ancillary.push(SendAncillaryMessage::ScmRights(sockets));
            let bytes = [byte];
            let data = [IoSlice::new(&bytes)];
            sendmsg(stream, &data, &mut ancillary, SendFlags::NOSIGNAL)?;
            Ok(())
        })
        .await
}

/// Receives one byte and, if one is attached, a connected TCP socket, which must belong to `net`.
///
/// # Errors
/// The stream's; [`io::ErrorKind::UnexpectedEof`] at its end; [`io::ErrorKind::InvalidData`] if
/// something else is attached; EMFILE if no descriptor is free.
pub async fn receive(
    stream: &UnixStream,
    net: Option<NetCookie>,
) -> io::Result<(u8, Option<TcpStream>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut received = receive_all(stream, &mut space).await?;
    let socket = received.sockets.pop();
    if !received.sockets.is_empty() || (socket.is_some() && received.cut) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "the agent handed over more than one descriptor",
        ));
    }
    let socket = socket.map(|socket| connected(socket, net)).transpose()?;
    Ok((received.byte, socket))
}

/// A message.
struct Received {
    byte: u8,
    sockets: Vec<OwnedFd>,
    /// More was attached than fits.
    cut: bool,
}

/// Receives one byte and the attached descriptors, as many as `space` holds.
async fn receive_all(stream: &UnixStream, space: &mut [MaybeUninit<u8>]) -> io::Result<Received> {
    stream
        .async_io(Interest::READABLE, || {
            let mut ancillary = RecvAncillaryBuffer::new(space);
            let mut byte = [0];
            let mut data = [IoSliceMut::new(&mut byte)];
            let received = recvmsg(stream, &mut data, &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
            if received.bytes == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let attached = ancillary.drain().filter_map(|message| match message {
                RecvAncillaryMessage::ScmRights(sockets) => Some(sockets),
                _ => None,
            });
            let sockets: Vec<OwnedFd> = attached.flatten().collect();
            // Some attached descriptors have not arrived (recvmsg(2)). The kernel reports a full
            // descriptor table only this way (scm_detach_fds, net/core/scm.c).
            let cut = received.flags.contains(ReturnFlags::CTRUNC);
            if cut && sockets.is_empty() {
                return Err(Errno::MFILE.into());
            }
            Ok(Received {
                byte: byte[0],
                sockets,
                cut,
            })
        })
        .await
}

/// `socket` as a TCP stream, if it is one and connected.
fn connected(socket: OwnedFd, net: Option<NetCookie>) -> io::Result<TcpStream> {
    let socket = checked(socket, net)?;
    rustix::net::getpeername(&socket)?;
    TcpStream::from_std(socket.into())
}

/// `socket`, non-blocking, if it is a TCP socket of `net`.
fn checked(socket: OwnedFd, net: Option<NetCookie>) -> io::Result<OwnedFd> {
    let fd = socket.as_fd();
    let family = sockopt::socket_domain(fd)?;
    let is_tcp = [AddressFamily::INET, AddressFamily::INET6].contains(&family)
        && sockopt::socket_type(fd)? == SocketType::STREAM
        && sockopt::socket_protocol(fd)? == Some(ipproto::TCP);
    if !is_tcp {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "the agent handed over something that is no TCP socket",
        ));
    }
    // A socket of the host's own namespace would connect the client to something on the host.
    if let Some(net) = net
        && NetCookie::of(fd)? != net
    {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "the agent handed over a socket that is not of its guest",
        ));
    }
    rustix::io::ioctl_fionbio(fd, true)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn a_connected_socket_arrives_and_works() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap())
            .await
            .unwrap();
        let (mut server, _) = listener.accept().await.unwrap();
        let (agent, host) = UnixStream::pair().unwrap();
        send(&agent, 7, client.as_fd()).await.unwrap();
        drop((client, agent));
        let (byte, received) = receive(&host, None).await.unwrap();
        assert_eq!(byte, 7);
        received.unwrap().write_all(b"over").await.unwrap();
        let mut text = String::new();
        server.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "over");
    }

    #[tokio::test]
    async fn a_byte_alone_and_an_end_are_told_apart() {
        let (mut agent, host) = UnixStream::pair().unwrap();
        agent.write_all(&[3]).await.unwrap();
        assert!(matches!(receive(&host, None).await, Ok((3, None))));
        drop(agent);
        let error = receive(&host, None).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[tokio::test]
    async fn a_socket_of_another_network_is_refused() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap());
        let client = client.await.unwrap();
        let here = NetCookie::of(&client).unwrap();
        let (agent, host) = UnixStream::pair().unwrap();
        for (net, is_taken) in [(here, true), (NetCookie(here.0 + 1), false)] {
            send(&agent, 0, client.as_fd()).await.unwrap();
            assert_eq!(receive(&host, Some(net)).await.is_ok(), is_taken);
        }
    }

    #[tokio::test]
    async fn anything_else_is_refused() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let file = std::fs::File::open("/dev/null").unwrap();
        let udp = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let (agent, host) = UnixStream::pair().unwrap();
        for wrong in [file.as_fd(), udp.as_fd(), host.as_fd(), listener.as_fd()] {
            send(&agent, 0, wrong).await.unwrap();
            receive(&host, None).await.unwrap_err();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_agent_that_offers_nothing_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let [rpc, channel] = ["rpc", "channel"].map(|name| dir.path().join(name));
        let _deaf = tokio::net::UnixListener::bind(&channel).unwrap();
        let start = tokio::time::Instant::now();
        let endpoint = Endpoint::Unix {
            rpc,
            channel,
            net: None,
        };
        let error = request(&endpoint.into()).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert_eq!(start.elapsed(), REQUEST_DEADLINE);
    }

    #[tokio::test]
    async fn one_at_a_time() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap());
        let client = client.await.unwrap();
        let (agent, host) = UnixStream::pair().unwrap();
        // With and without more descriptors than fit (SCM_MAX_FD, include/net/scm.h).
        for count in [2, 253] {
            let sockets = vec![client.as_fd(); count];
            let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
            let mut ancillary = SendAncillaryBuffer::new(&mut space);
            assert!(ancillary.push(SendAncillaryMessage::ScmRights(&sockets)));
            let data = [IoSlice::new(&[0])];
            sendmsg(&agent, &data, &mut ancillary, SendFlags::NOSIGNAL).unwrap();
            let error = receive(&host, None).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        }
        send(&agent, 0, client.as_fd()).await.unwrap();
        assert!(receive(&host, None).await.unwrap().1.is_some());
    }
}
