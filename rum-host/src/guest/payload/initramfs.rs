//! Puts the agent into an initramfs: a small archive of our own in front of the given one.
//!
//! The kernel unpacks any number of concatenated archives, each compressed in its own way
//! (Documentation/driver-api/early-userspace/buffer-format.rst). Ours comes first and is not
//! compressed, so the next may start at any offset and is copied unchanged. Appending would not
//! always work: LZ4 streams of the kernel's kind have no end mark.
//!
//! The format is newc: for each file a header of hexadecimal numbers, its name and its content,
//! each padded to four bytes. With only three records, a crate is not worth it.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

/// The agent's path in the initramfs. With `rdinit=` and this path on the kernel's command line the
/// agent starts first, leaves a child that becomes the agent, and executes `/init`.
pub const RDINIT: &str = "/rum/agent";

/// Mode of a directory that its owner may write.
const DIRECTORY: u32 = 0o040_755;
/// Mode of a program that its owner may write.
const PROGRAM: u32 = 0o100_755;

/// Writes to `out` an initramfs with the agent at [`RDINIT`] and the content of `initrd`, which may
/// be compressed in any way that the kernel supports.
///
/// # Errors
/// `initrd` cannot be read or `out` cannot be written.
pub fn initramfs(initrd: Option<&Path>, out: &Path) -> io::Result<()> {
    // Opened before anything is written: a wrong path leaves nothing behind.
    let initrd = initrd.map(File::open).transpose()?;
    let mut file = File::create(out)?;
    file.write_all(&archive(super::agent()))?;
    if let Some(mut initrd) = initrd {
        io::copy(&mut initrd, &mut file)?;
    }
    Ok(())
}

/// The archive with `agent` in it.
fn archive(agent: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(agent.len() + 1024);
    record(&mut out, 1, "rum", DIRECTORY, &[]);
    record(&mut out, 2, RDINIT.trim_start_matches('/'), PROGRAM, agent);
    record(&mut out, 0, "TRAILER!!!", 0, &[]);
    out
}

/// One file, owned by root, with modification time 0.
fn record(out: &mut Vec<u8>, inode: u32, name: &str, mode: u32, content: &[u8]) {
    let size = u32::try_from(content.len()).expect("the agent has some megabytes");
    let name_size = u32::try_from(name.len() + 1).expect("names are those above");
    let links = 1;
    // inode, mode, uid, gid, links, mtime, size, device (2), device of a node (2), name, checksum
    let fields = [inode, mode, 0, 0, links, 0, size, 0, 0, 0, 0, name_size, 0];
    out.extend(b"070701");
    for field in fields {
        out.extend(format!("{field:08x}").bytes());
    }
    out.extend(name.bytes());
    out.push(0);
    pad(out);
    out.extend(content);
    pad(out);
}

fn pad(out: &mut Vec<u8>) {
    out.resize(out.len().next_multiple_of(4), 0);
}
