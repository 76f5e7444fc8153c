//! What a guest sees of the file system: the caller's, with these exceptions.
//!
//! - **/proc** is the guest's own. For root, the host's /proc is neither beneath it nor mounted
//!   anywhere else, so no `umount` uncovers it. In the guest of an ordinary user the host's lies
//!   beneath and cannot be uncovered: mounts that a user namespace inherits are locked
//!   (mount_namespaces(7)).
//! - **rum's runtime directories** are empty: no control socket and no agent socket is reachable. A
//!   `rum up` inside creates its own there.
//! - **/tmp and /var/tmp**, with `private_tmp`; **/dev/pts**, with `private_pts`.
//!
//! All of it goes away with the mount namespace, and so with the guest.

use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};

use super::Failure;
use super::ids;
use crate::runtime_dir;
use crate::runtime_dir::isolation::Isolation;

/// Largest size of the file system that hides a runtime directory: a `rum up` inside has its
/// sockets there.
const HIDDEN_SIZE: &str = "1m";
/// The directories of `private_tmp` (systemd.exec(5), PrivateTmp=).
const TMP: [&str; 2] = ["/tmp", "/var/tmp"];

/// How to set up the guest.
#[derive(Debug, Clone)]
pub struct Furnishing {
    /// How far the guest is isolated.
    pub isolation: Isolation,
    /// Its runtime directory.
    pub path: PathBuf,
    /// The user who starts the guest.
    pub caller: Caller,
}

/// The user who starts a guest.
#[derive(Debug, Clone, Copy)]
pub struct Caller {
    /// The user id, outside.
    pub uid: u32,
    /// Whether the user needs no user namespace ([`super::setup::is_privileged`]).
    pub is_privileged: bool,
}

/// Arranges the new mount namespace.
pub fn arrange(furnishing: &Furnishing) -> Result<(), Failure> {
    let caller = furnishing.caller;
    // Slave rather than private: nothing done inside is visible outside, yet a file system that the
    // host unmounts does not stay busy as long as the guest lives.
    rustix::mount::mount_change(
        "/",
        MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC,
    )
    .map_err(|error| Failure::new("cannot cut the guest's mounts off from the host's", error))?;
    own_proc(caller.is_privileged)?;
    // Looked up before /tmp is covered, and hidden afterwards where they are still visible.
    let hidden = runtime_dir::to_hide(&furnishing.path, caller.uid);
    if furnishing.isolation.private_tmp {
        private_tmp()?;
    }
    if furnishing.isolation.private_pts {
        private_pts()?;
    }
    let name = furnishing.path.file_name().unwrap_or_default();
    for dir in hidden.iter().filter(|dir| dir.is_dir()) {
        hide(dir, name.as_encoded_bytes()).map_err(|error| {
            Failure::new(
                &format!("cannot hide {} from the guest", dir.display()),
                error,
            )
        })?;
    }
    Ok(())
}

/// Mounts the guest's own /proc. `is_root`: the mounts belong to no user namespace of their own.
fn own_proc(is_root: bool) -> Result<(), Failure> {
    let failed = |error: Errno| match error {
        // The kernel refuses a new /proc that would reveal more than the visible one
        // (mount_too_revealing in fs/namespace.c).
        Errno::PERM => Failure::new("cannot mount the guest's own /proc", error).hint(
            "parts of /proc are covered by other mounts, as container runtimes do it: start \
             the container with a plain /proc (podman run --security-opt unmask=ALL, \
             docker run --security-opt systempaths=unconfined)",
        ),
        error => Failure::new("cannot mount the guest's own /proc", error),
    };
    let others = if is_root {
        take_proc_away()
    } else {
        Vec::new()
    };
    mount_proc(Path::new("/proc")).map_err(failed)?;
    for other in others.iter().filter(|other| *other != Path::new("/proc")) {
        // A failure is ignored: the host's /proc is gone from there either way.
        let _ = mount_proc(other);
    }
    Ok(())
}

fn mount_proc(at: &Path) -> rustix::io::Result<()> {
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    rustix::mount::mount("proc", at, "proc", flags, None)
}

/// Unmounts the host's /proc everywhere, with the mounts inside it, and returns where it was.
/// Covers what cannot be unmounted: mounts are locked in a container that has a user namespace.
fn take_proc_away() -> Vec<PathBuf> {
    let mounts = fs::read("/proc/self/mountinfo").unwrap_or_default();
    let mounts: Vec<_> = mounts
        .split(|byte| *byte == b'\n')
        .filter_map(proc_mount)
        .collect();
    // In reverse order, since a later mount may lie in or over an earlier one.
    for mount in mounts.iter().rev() {
        let _ = rustix::mount::unmount(&mount.at, UnmountFlags::DETACH);
    }
    let whole = mounts.into_iter().filter(|mount| mount.whole);
    whole.map(|mount| mount.at).collect()
}

/// A mount of a /proc.
#[derive(Debug, PartialEq, Eq)]
struct ProcMount {
    at: PathBuf,
    /// The root of the /proc is mounted, not only a part of it.
    whole: bool,
}

/// Parses a line of mountinfo (proc_pid_mountinfo(5)); None if it is not a /proc.
fn proc_mount(line: &[u8]) -> Option<ProcMount> {
    let fields: Vec<_> = line.split(|byte| *byte == b' ').collect();
    let dash = fields.iter().position(|field| *field == b"-")?;
    let [_, _, _, root, at, ..] = fields.as_slice() else {
        return None;
    };
    (*fields.get(dash + 1)? == b"proc").then(|| ProcMount {
        at: PathBuf::from(std::ffi::OsString::from_vec(unescape(at))),
        whole: *root == b"/",
    })
}

/// Decodes mountinfo's octal escapes: `\040` and so on for space, tab, newline and backslash.
fn unescape(text: &[u8]) -> Vec<u8> {
    let mut rest = text;
    let mut plain = Vec::with_capacity(text.len());
    while let Some((first, more)) = rest.split_first() {
        let code = match more {
            [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', ..] if *first == b'\\' => {
                Some((a - b'0') * 64 + (b - b'0') * 8 + (c - b'0'))
            }
            _ => None,
        };
        plain.push(code.unwrap_or(*first));
        rest = if code.is_some() { &more[3..] } else { more };
    }
    plain
}

fn private_tmp() -> Result<(), Failure> {
    let mut done = None;
    for dir in TMP {
        let Ok(stat) = fs::metadata(dir) else {
            continue;
        };
        // /var/tmp may be a symbolic link to /tmp.
        if done == Some((stat.dev(), stat.ino())) {
            continue;
        }
        let flags = MountFlags::NOSUID | MountFlags::NODEV;
        rustix::mount::mount("tmpfs", dir, "tmpfs", flags, Some(c"mode=1777"))
            .map_err(|error| Failure::new(&format!("cannot mount the guest's own {dir}"), error))?;
        done = fs::metadata(dir).ok().map(|stat| (stat.dev(), stat.ino()));
    }
    Ok(())
}

/// Mounts a devpts whose group exists inside. The machine's terminals belong to the group `tty`,
/// which a user namespace may not map; sshd then cannot give a terminal to that group, and
/// allocates none.
fn private_pts() -> Result<(), Failure> {
    let group = ids::tty_group();
    let options = format!("newinstance,ptmxmode=0666,mode=0620,gid={group}");
    // The string has no zero byte: it is digits and words.
    let options = std::ffi::CString::new(options).unwrap_or_default();
    let flags = MountFlags::NOSUID | MountFlags::NOEXEC;
    let what = "cannot make the guest's own terminals";
    rustix::mount::mount(
        "devpts",
        "/dev/pts",
        "devpts",
        flags,
        Some(options.as_c_str()),
    )
    .map_err(|error| match error {
        // The kernel's error for a group that is not mapped.
        Errno::INVAL => Failure::new(what, format_args!("the group tty ({group}) is not mapped"))
            .hint(
                "install newuidmap (Debian's package uidmap) and give the user ranges: \
                     usermod --add-subuids 100000-165535 --add-subgids 100000-165535 USER",
            ),
        error => Failure::new(what, error),
    })?;
    let ptmx = "/dev/ptmx";
    if fs::symlink_metadata(ptmx).is_ok_and(|meta| meta.is_symlink()) {
        return Ok(());
    }
    rustix::mount::mount_bind("/dev/pts/ptmx", ptmx).map_err(|error| Failure::new(what, error))
}

/// Mounts an empty directory over `dir`, with a marker file for a `rum` inside.
fn hide(dir: &Path, guest: &[u8]) -> std::io::Result<()> {
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    let options = std::ffi::CString::new(format!("mode=0700,size={HIDDEN_SIZE}"))?;
    rustix::mount::mount("tmpfs", dir, "tmpfs", flags, Some(options.as_c_str()))?;
    fs::write(dir.join(runtime_dir::INSIDE), guest)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn proc_is_found_among_the_mounts() {
        let whole = b"22 28 0:21 / /proc rw,nosuid shared:5 - proc proc rw";
        let found = proc_mount(whole).unwrap();
        assert_eq!((found.at.to_str().unwrap(), found.whole), ("/proc", true));
        let part = b"90 80 0:21 /sys /srv/a\\040b\\134c/sys ro - proc none rw";
        let found = proc_mount(part).unwrap();
        assert_eq!(
            (found.at.to_str().unwrap(), found.whole),
            ("/srv/a b\\c/sys", false)
        );
        for other in [
            &b"23 28 0:22 / /proc/sys/fs/binfmt_misc rw - autofs systemd-1 rw"[..],
            b"24 28 0:23 / /dev rw - devtmpfs proc rw",
            b"24 28 0:23 / /dev rw - ",
            b"- proc",
            b"",
        ] {
            assert_eq!(proc_mount(other), None);
        }
    }

    #[test]
    fn escapes_that_are_none_stay() {
        for text in [&b"\\"[..], b"\\04", b"\\999", b"\\+12", b"a\\"] {
            assert_eq!(unescape(text), text);
        }
    }
}
