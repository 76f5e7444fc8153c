#![allow(clippy::unwrap_used)]

use std::net::IpAddr;

use proptest::prelude::*;

use super::*;

const V4: &[u8] = include_bytes!("../../../../fixtures/netlink/dump-v4.bin");
const V6: &[u8] = include_bytes!("../../../../fixtures/netlink/dump-v6.bin");
const TWINS: &[u8] = include_bytes!("../../../../fixtures/netlink/dump-v4-600-twins.bin");
const FOUND: &[u8] = include_bytes!("../../../../fixtures/netlink/lookup-found.bin");
const MISSING: &[u8] = include_bytes!("../../../../fixtures/netlink/lookup-missing.bin");
const REFUSED: &[u8] = include_bytes!("../../../../fixtures/netlink/refused.bin");

/// The datagrams of a fixture, each with its length before it.
fn datagrams(mut file: &'static [u8]) -> Vec<&'static [u8]> {
    let mut datagrams = Vec::new();
    while let Some((length, rest)) = file.split_first_chunk::<4>() {
        let (datagram, rest) = rest.split_at(u32::from_le_bytes(*length) as usize);
        datagrams.push(datagram);
        file = rest;
    }
    datagrams
}

fn read(sequence: u32, file: &'static [u8]) -> Answer {
    let mut answer = Answer::new(sequence);
    for datagram in datagrams(file) {
        assert!(!answer.is_done());
        answer.feed(datagram).unwrap();
    }
    answer
}

fn brief(answer: Answer) -> Vec<(u16, String, bool, u32)> {
    let mut sockets = answer.into_sockets();
    assert!(sockets.iter().all(|s| s.inode != 0 && s.cookie != Some(0)));
    sockets.sort();
    sockets
        .into_iter()
        .map(|s| (s.port, s.ip.to_string(), s.dual_stack, s.uid))
        .collect()
}

#[test]
fn a_real_dump_of_each_family_is_read() {
    let v4 = read(7, V4);
    assert!(v4.is_done() && !v4.is_interrupted());
    let row = |port, ip: &str, dual, uid| (port, ip.to_owned(), dual, uid);
    assert_eq!(
        brief(v4),
        [
            row(1, "0.0.0.0", false, 0),
            row(5000, "0.0.0.0", false, 0),
            row(5001, "127.0.0.1", false, 1000),
            row(5001, "127.0.0.2", false, 0),
            row(5002, "0.0.0.0", false, 0),
            row(5002, "0.0.0.0", false, 0),
            row(65535, "0.0.0.0", false, 0),
        ]
    );
    let v6 = read(8, V6);
    assert!(v6.is_done());
    assert_eq!(
        brief(v6),
        [
            row(5003, "::", true, 0),
            row(5004, "::", false, 0),
            row(5005, "::1", false, 0),
            row(5006, "127.0.0.1", false, 0),
        ]
    );
}

#[test]
fn a_dump_of_several_datagrams_is_whole_only_at_its_end() {
    let all = datagrams(TWINS);
    assert!(all.len() > 2, "the fixture spans {} datagrams", all.len());
    let mut answer = Answer::new(12);
    for datagram in &all[..all.len() - 1] {
        answer.feed(datagram).unwrap();
        assert!(!answer.is_done());
    }
    answer.feed(all[all.len() - 1]).unwrap();
    assert!(answer.is_done());
    let twin: IpAddr = "127.0.0.3".parse().unwrap();
    let twins = answer.sockets().iter().filter(|s| s.ip == twin).count();
    assert_eq!(twins, 600);
}

#[test]
fn lookups_and_refusals() {
    let found = read(9, FOUND);
    assert_eq!(found.sockets().len(), 1);
    assert_eq!(found.sockets()[0].port, 5000);

    for (sequence, file) in [(10, MISSING), (11, REFUSED)] {
        let error = Answer::new(sequence).feed(datagrams(file)[0]).unwrap_err();
        let DumpError::Io { source, .. } = error else {
            panic!("{error:?}");
        };
        assert_eq!(source.kind(), io::ErrorKind::NotFound);
    }
}

#[test]
fn the_answer_to_another_request_is_refused() {
    let error = Answer::new(6).feed(datagrams(V4)[0]).unwrap_err();
    assert!(matches!(error, DumpError::Malformed(_)), "{error:?}");
}

#[test]
fn an_interrupted_dump_and_an_error_at_the_end_are_noticed() {
    let all = datagrams(V4);
    let mut first = all[0].to_vec();
    // The flags of the first message (NLM_F_DUMP_INTR).
    first[6] |= 0x10;
    let mut answer = Answer::new(7);
    answer.feed(&first).unwrap();
    assert!(answer.is_interrupted());

    // The errno inside NLMSG_DONE, whose payload follows the last header.
    let mut last = all[all.len() - 1].to_vec();
    let at = last.len() - 4;
    last[at..].copy_from_slice(&(-12i32).to_ne_bytes());
    let error = Answer::new(7).feed(&last).unwrap_err();
    assert!(matches!(error, DumpError::Io { .. }), "{error:?}");
}

#[test]
fn no_cut_datagram_passes_for_a_whole_dump() {
    for file in [V4, V6] {
        let sequence = if file == V4 { 7 } else { 8 };
        let all = datagrams(file);
        let last = all[all.len() - 1];
        for length in 0..last.len() {
            let mut answer = Answer::new(sequence);
            let result = answer.feed(&last[..length]);
            assert!(
                result.is_err() || !answer.is_done(),
                "cut to {length} of {} bytes",
                last.len()
            );
        }
    }
}

proptest! {
    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let _ = Answer::new(7).feed(&bytes);
        let _ = messages(&bytes).count();
    }

    /// Bytes changed in a real datagram get further than random ones.
    #[test]
    fn no_damage_panics(
        file in prop::sample::select(vec![V4, V6, FOUND, MISSING]),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        length: prop::sample::Index,
    ) {
        let mut bytes = datagrams(file)[0].to_vec();
        for (at, value) in damage {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        bytes.truncate(length.index(bytes.len()) + 1);
        let _ = messages(&bytes).count();
        let _ = Answer::new(7).feed(&bytes);
    }
}
