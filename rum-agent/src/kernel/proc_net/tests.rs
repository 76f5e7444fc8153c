#![allow(clippy::unwrap_used)]

use std::fs;

use proptest::prelude::*;

use super::*;

const TCP: &str = include_str!("../../../../fixtures/proc_net/tcp-mixed.txt");
const TCP6: &str = include_str!("../../../../fixtures/proc_net/tcp6-mixed.txt");
const HEADER: &str = "  sl  local_address rem_address   st tx_queue rx_queue\n";

fn brief(mut sockets: Vec<Socket>) -> Vec<(u16, String, bool, u32)> {
    sockets.sort();
    sockets
        .into_iter()
        .map(|s| (s.port, s.ip.to_string(), s.dual_stack, s.uid))
        .collect()
}

fn row(port: u16, ip: &str, dual: bool, uid: u32) -> (u16, String, bool, u32) {
    (port, ip.to_owned(), dual, uid)
}

#[test]
fn real_files_are_read() {
    let v4 = parse(TCP, Family::V4, Endian::Little).unwrap();
    let twins: Vec<u64> = v4
        .iter()
        .filter(|s| s.port == 5002)
        .map(|s| s.inode)
        .collect();
    assert_eq!(twins.len(), 2);
    assert_ne!(twins[0], twins[1]);
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
    assert_eq!(
        brief(parse(TCP6, Family::V6, Endian::Little).unwrap()),
        [
            row(5003, "::", true, 0),
            // IPv6 only in truth: the file does not say.
            row(5004, "::", true, 0),
            row(5005, "::1", false, 0),
            row(5006, "127.0.0.1", false, 0),
        ]
    );
}

#[test]
fn a_big_endian_machine_prints_the_same_words_the_other_way() {
    let line =
        |address: &str| format!("{HEADER}   0: {address}:1389 0:0 0A 0:0 0:0 0 1000 0 24769 1 x\n");
    let one = |address: &str, family, endian| {
        parse(&line(address), family, endian).unwrap()[0]
            .ip
            .to_string()
    };
    assert_eq!(one("7F000001", Family::V4, Endian::Big), "127.0.0.1");
    assert_eq!(one("0100007F", Family::V4, Endian::Little), "127.0.0.1");
    let little = "B80D0120000000000000000001000000";
    let big = "20010DB8000000000000000000000001";
    assert_eq!(one(little, Family::V6, Endian::Little), "2001:db8::1");
    assert_eq!(one(big, Family::V6, Endian::Big), "2001:db8::1");
}

#[test]
fn a_malformed_line_is_an_error_with_its_number() {
    let good = "   0: 0100007F:1389 00000000:0000 0A 0:0 0:0 0 1000 0 24769 1 x\n";
    for (bad, what) in [
        (
            "1: 0100007F:1389 0:0 0A 0:0 0:0 0 1000 0\n",
            "inode is missing",
        ),
        (
            "1: 0100007F:1389 0:0 0A 0:0 0:0 0 -1 0 5\n",
            "`-1` is not a user id",
        ),
        (
            "1: 0100007F:1389 0:0 0A 0:0 0:0 0 1 0 x\n",
            "`x` is not an inode",
        ),
        ("1: 0100007F 0:0 0A 0:0 0:0 0 1 0 5\n", "not ADDRESS:PORT"),
        ("1: 0100007:1389 0:0 0A 0:0 0:0 0 1 0 5\n", "not an address"),
        (
            "1: +100007F:1389 0:0 0A 0:0 0:0 0 1 0 5\n",
            "not an address",
        ),
        ("1: é00007F:1389 0:0 0A 0:0 0:0 0 1 0 5\n", "not an address"),
        ("1: 0100007F:11389 0:0 0A 0:0 0:0 0 1 0 5\n", "not a port"),
        ("1: 0100007F:+389 0:0 0A 0:0 0:0 0 1 0 5\n", "not a port"),
        ("1: 0100007F:1389 0:0 LISTEN 0:0\n", "not a state"),
        ("1: 0100007F:1389 0:0\n", "st is missing"),
        // Not a listener, and wrong nevertheless.
        ("1: 0100007F:xyzw 0:0 01 0:0 0:0 0 1 0 5\n", "not a port"),
        ("\n", "local_address is missing"),
    ] {
        let text = format!("{HEADER}{good}{bad}{good}");
        let error = parse(&text, Family::V4, Endian::Little).unwrap_err();
        assert_eq!(error.line, 3, "{bad}");
        assert!(error.what.contains(what), "{bad}: {error}");
    }
    for text in ["", good] {
        let error = parse(text, Family::V4, Endian::Little).unwrap_err();
        assert_eq!(error.to_string(), "line 1: the header line is missing");
    }
    assert!(parse(TCP, Family::V6, Endian::Little).is_err());
    assert!(parse(TCP6, Family::V4, Endian::Little).is_err());
}

#[test]
fn a_missing_tcp6_is_no_ipv6_and_a_missing_tcp_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let mut proc = ProcNet::at(dir.path());
    assert!(matches!(proc.dump(), Err(DumpError::Io { .. })));

    fs::write(dir.path().join("tcp"), TCP).unwrap();
    assert_eq!(proc.dump().unwrap().len(), 7);
    fs::write(dir.path().join("tcp6"), TCP6).unwrap();
    assert_eq!(proc.dump().unwrap().len(), 11);

    fs::write(dir.path().join("tcp6"), "x").unwrap();
    let error = proc.dump().unwrap_err();
    assert!(matches!(error, DumpError::Line { .. }), "{error:?}");
    fs::write(dir.path().join("tcp6"), [0xff, 0xfe]).unwrap();
    assert!(proc.dump().is_err());
}

proptest! {
    #[test]
    fn no_text_panics(text in "([0-9A-F:é +\n-]| 0A |0100007F:1389){0,60}") {
        let _ = parse(&format!("{HEADER}{text}"), Family::V4, Endian::Little);
        let _ = parse(&format!("{HEADER}{text}"), Family::V6, Endian::Big);
    }

    #[test]
    fn every_address_and_port_comes_back(octets: [u8; 16], port in 1u16..) {
        let hex = |octets: &[u8], endian| -> String {
            octets.chunks(4).map(|word| {
                let word = [word[0], word[1], word[2], word[3]];
                format!("{:08X}", match endian {
                    Endian::Little => u32::from_le_bytes(word),
                    Endian::Big => u32::from_be_bytes(word),
                })
            }).collect()
        };
        for endian in [Endian::Little, Endian::Big] {
            let line = |octets| format!(
                "{HEADER} 0: {}:{port:04X} 0:0 0A 0:0 0:0 0 4294967295 0 4294967295 1\n",
                hex(octets, endian)
            );
            let v6 = parse(&line(&octets), Family::V6, endian).unwrap();
            prop_assert_eq!(v6[0].port, port);
            prop_assert_eq!(v6[0].ip, IpAddr::from(octets).to_canonical());
            let v4 = parse(&line(&octets[..4]), Family::V4, endian).unwrap();
            prop_assert_eq!(v4[0].ip, IpAddr::from([octets[0], octets[1], octets[2], octets[3]]));
            prop_assert_eq!(v4[0].uid, u32::MAX);
        }
    }
}
