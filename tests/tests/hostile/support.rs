//! What all of them need: bytes that look like a session's, floods, and how much memory was used.

use std::fs;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread;

use rum_tests::wait::until;

/// The most memory that process `pid` ever had resident, in MiB (VmHWM, proc_pid_status(5)).
pub fn peak_mib(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kib.expect("a number of kB") / 1024
}

/// What a real `side` (`host` or `agent`) once said in a session: its handshake first.
pub fn recorded(side: &str) -> Vec<u8> {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../fixtures/corpus/session");
    let mut bytes = fs::read(Path::new(dir).join(side)).expect("a recording");
    // The first byte is for the fuzzer.
    bytes.remove(0);
    bytes
}

/// A frame of the RPC link.
pub fn frame(payload: &[u8]) -> Vec<u8> {
    [&(payload.len() as u32).to_le_bytes(), payload].concat()
}

/// The first frame of `bytes`: of a recording, the handshake.
pub fn first_frame(bytes: &[u8]) -> &[u8] {
    let (length, _) = bytes.split_first_chunk().expect("a frame");
    &bytes[..4 + u32::from_le_bytes(*length) as usize]
}

/// An item of roam's channel `id`, with `size` bytes in it: connection 0, message 8 (channel), the
/// channel's number (three bytes of a varint), body 0 (item).
pub fn item(id: u32, size: usize) -> Vec<u8> {
    let id = [
        id as u8 | 0x80,
        (id >> 7) as u8 | 0x80,
        (id >> 14) as u8 & 0x7f,
    ];
    let head = [&[0, 8], &id[..], &[0]].concat();
    frame(&[&head[..], &vec![0x55; size]].concat())
}

/// A peer that says `start`, then `flood(n)` for n = 0, 1, 2 and so on until it is cut off, reading
/// whatever it is told meanwhile. Returns how many of those it got rid of.
pub fn flood(stream: UnixStream, start: &[u8], mut flood: impl FnMut(u32) -> Vec<u8>) -> u32 {
    let mut reader = stream.try_clone().expect("a descriptor");
    let drain = thread::spawn(move || std::io::copy(&mut reader, &mut std::io::sink()));
    let mut writer = stream;
    let mut sent = 0;
    if writer.write_all(start).is_ok() {
        while writer.write_all(&flood(sent)).is_ok() {
            sent += 1;
        }
    }
    // It was cut off: the other half ends as well.
    let _ = drain.join();
    sent
}

/// Connects to a Unix socket, waiting for room in its backlog.
pub fn connect(path: &PathBuf) -> UnixStream {
    until("room in the backlog", || UnixStream::connect(path).ok())
}
