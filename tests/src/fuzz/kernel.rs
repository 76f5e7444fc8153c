//! What the guest's kernel says. It is believed more than any peer, but kernels differ.

use rum_agent::kernel::answer::Answer;
use rum_agent::kernel::proc_net::{Endian, Family};
use rum_agent::kernel::{Socket, destroy, perf_ring, proc_net as proc_file, tracefs, tracepoint};

/// Sockets that the text has no room for, or that cannot be, were made up.
fn check(sockets: &[Socket], most: usize) {
    assert!(sockets.len() <= most, "{} of {most}", sockets.len());
    for socket in sockets {
        assert!(!socket.dual_stack || socket.ip.is_unspecified());
        assert_eq!(socket.ip, socket.ip.to_canonical());
    }
}

/// Text of /proc/net/tcp or tcp6.
pub fn proc_net(data: &[u8]) {
    let Some((&first, text)) = data.split_first() else {
        return;
    };
    let family = [Family::V4, Family::V6][usize::from(first & 1)];
    let endian = [Endian::Little, Endian::Big][usize::from(first >> 1 & 1)];
    let text = String::from_utf8_lossy(text);
    if let Ok(sockets) = proc_file::parse(&text, family, endian) {
        check(&sockets, text.lines().count());
    }
}

/// Netlink datagrams with their lengths, as one answer and as destroy events.
pub fn sock_diag(data: &[u8]) {
    let mut rest = data;
    let mut answer: Option<Answer> = None;
    while let Some((length, after)) = rest.split_first_chunk::<4>() {
        let length = u32::from_le_bytes(*length) as usize;
        let (datagram, after) = after.split_at(length.min(after.len()));
        rest = after;
        // A netlink header has 16 bytes.
        assert!(destroy::events(datagram).count() <= datagram.len() / 16 + 1);
        // Offset of nlmsg_seq in struct nlmsghdr: the answer to whatever was asked.
        let request = datagram.get(8..12).and_then(|bytes| bytes.try_into().ok());
        let answer =
            answer.get_or_insert_with(|| Answer::new(request.map_or(0, u32::from_ne_bytes)));
        if answer.feed(datagram).is_err() || answer.is_done() {
            break;
        }
    }
    if let Some(answer) = answer {
        check(&answer.into_sockets(), data.len() / 16);
    }
}

/// A ring, and where its reader and its writer are.
pub fn perf(data: &[u8]) {
    const FORMAT: &str = include_str!("../../../fixtures/tracefs/format-inet_sock_set_state");
    let event = tracefs::parse_format(FORMAT).expect("a real one");
    let Some((tail, rest)) = data.split_first_chunk() else {
        return;
    };
    let Some((head, rest)) = rest.split_first_chunk() else {
        return;
    };
    let (tail, head) = (u64::from_le_bytes(*tail), u64::from_le_bytes(*head));
    let size = match rest.len() {
        0 => return,
        length => 1 << length.ilog2(),
    };
    let ring = &rest[..size];
    let Some(parts) = perf_ring::spans(size, tail, head) else {
        assert!(head.wrapping_sub(tail) > size as u64);
        return;
    };
    let bytes = parts.map(|part| &ring[part]).concat();
    assert_eq!(bytes.len() as u64, head.wrapping_sub(tail));
    let hints = perf_ring::records(&bytes).map(|record| tracepoint::hint(&event, record));
    // A record has a header of 8 bytes; the rest of what cannot be read is one more.
    assert!(hints.count() <= bytes.len() / 8 + 1);
}

/// The `format` file of a tracepoint.
pub fn format(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    if let Ok(event) = tracefs::parse_format(&text) {
        // A sample shorter than the fields is no panic either.
        let sample = perf_ring::Record::Sample {
            pid: 1,
            at_ns: 1,
            raw: data,
        };
        let _ = tracepoint::hint(&event, sample);
        assert!(!tracepoint::filter(&event, 1, u16::MAX, None).contains('\0'));
    }
}
