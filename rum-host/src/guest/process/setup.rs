//! Makes the namespaces of a guest, in two halves.
//!
//! The keeper calls [`unshare`]. Root gets network, PID, mount and UTS namespaces. An ordinary user
//! gets a user namespace too, in which their uid and gid are mapped to themselves ([`super::ids`]);
//! or to root on request, which programs such as PostgreSQL's initdb refuse. The UTS namespace
//! keeps a host name that is set inside from the host. The IPC namespace stays the caller's: see
//! [`super::sysv`].
//!
//! The keeper's child, the first process of the new PID namespace, calls [`furnish`] before it
//! executes init. Only there can the guest's own /proc be mounted, and only until the exec does an
//! ordinary user have the capabilities for it.

use std::fs;
use std::ops::Range;
use std::os::fd::OwnedFd;

use rum_shared::netns::NetCookie;
use rustix::io::Errno;
use rustix::ioctl::Setter;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::thread::{CapabilitySet, UnshareFlags};

use super::Failure;
use super::ids::Mapper;
use super::mounts::{Caller, Furnishing};

const DISABLED: &str = "user namespaces are not available to ordinary users on this machine";

/// Moves this process into new namespaces; its next child is PID 1 of a new PID namespace. `root`:
/// an ordinary user is root there.
pub fn unshare(root: bool) -> Result<(), Failure> {
    let spaces =
        UnshareFlags::NEWNET | UnshareFlags::NEWPID | UnshareFlags::NEWNS | UnshareFlags::NEWUTS;
    if is_privileged() {
        // SAFETY: the flags do not include FILES, and this process has one thread.
        return unsafe { rustix::thread::unshare_unsafe(spaces) }
            .map_err(|error| Failure::new("cannot make namespaces", error));
    }
    let failed = |error| Failure::io("cannot start a process", &error);
    let mapper = Mapper::start(root).map_err(failed)?;
    // SAFETY: as above.
    unsafe { rustix::thread::unshare_unsafe(spaces | UnshareFlags::NEWUSER) }.map_err(|error| {
        match error {
            Errno::PERM | Errno::ACCESS | Errno::NOSPC | Errno::INVAL | Errno::USERS => {
                Failure::new(DISABLED, error).hint(user_namespace_hint())
            }
            error => Failure::new("cannot make namespaces", error),
        }
    })?;
    mapper.map().map_err(|(file, error)| {
        Failure::new(DISABLED, format_args!("cannot write {file}: {error}"))
            .hint(user_namespace_hint())
    })
}

/// Whether this process needs no user namespace. Root in a container often does.
pub(crate) fn is_privileged() -> bool {
    let needed = CapabilitySet::SYS_ADMIN | CapabilitySet::NET_ADMIN;
    rustix::process::geteuid().is_root()
        && rustix::thread::capabilities(None).is_ok_and(|sets| sets.effective.contains(needed))
}

/// Names the sysctl that disables user namespaces, if a known one does.
pub(crate) fn user_namespace_hint() -> String {
    let is = |name: &str, value: &str| {
        let path = format!("/proc/sys/{}", name.replace('.', "/"));
        fs::read_to_string(path).is_ok_and(|text| text.trim() == value)
    };
    let set = |name: &str, value: &str| {
        format!("as root: sysctl -w {name}={value} (and in /etc/sysctl.d to keep it)")
    };
    if is("kernel.unprivileged_userns_clone", "0") {
        set("kernel.unprivileged_userns_clone", "1")
    } else if is("user.max_user_namespaces", "0") {
        set("user.max_user_namespaces", "10000")
    } else if is("kernel.apparmor_restrict_unprivileged_userns", "1") {
        set("kernel.apparmor_restrict_unprivileged_userns", "0")
            + ", or give rum an AppArmor profile that allows `userns`"
    } else {
        "inside a container its seccomp profile must allow unshare and mount \
         (docker run --security-opt seccomp=unconfined); elsewhere see the sysctls \
         kernel.unprivileged_userns_clone, kernel.apparmor_restrict_unprivileged_userns and \
         user.max_user_namespaces, or run rum as root"
            .to_owned()
    }
}

/// The user who starts a guest. Must be called outside the guest.
pub fn caller() -> Caller {
    Caller {
        uid: rustix::process::geteuid().as_raw(),
        is_privileged: is_privileged(),
    }
}

/// Sets up the new namespaces: mounts ([`super::mounts`]), `lo` up, every port free for every user.
pub fn furnish(furnishing: &Furnishing) -> Result<(), Failure> {
    super::mounts::arrange(furnishing)?;
    scatter_pids();
    loopback_up().map_err(|error| Failure::new("cannot bring up the guest's `lo`", error))?;
    let start = "/proc/sys/net/ipv4/ip_unprivileged_port_start";
    fs::write(start, "0").map_err(|error| Failure::new("cannot free the ports below 1024", error))
}

/// Range of the first process id of a guest. Every kernel's largest id (`pid_max` in proc(5)) is
/// above it.
const FIRST_PIDS: Range<u32> = 1_000..32_000;

/// Makes the guest's process ids start at a random number. Otherwise all guests have the same few
/// small ids, and a program that reads the id of another guest from a lock file mistakes a process
/// of its own for it (as `pg_ctl start` does). Kernels without CONFIG_CHECKPOINT_RESTORE count from
/// 1.
fn scatter_pids() {
    let last = fastrand::u32(FIRST_PIDS).to_string();
    let _ = fs::write("/proc/sys/kernel/ns_last_pid", last);
}

/// The network namespace of this process; None on a kernel that has no cookie for it.
pub fn net_cookie() -> Option<NetCookie> {
    NetCookie::of(datagram_socket().ok()?).ok()
}

/// `struct ifreq` of netdevice(7) with `ifr_flags`.
#[repr(C)]
struct InterfaceFlags {
    name: [u8; 16],
    flags: i16,
    rest: [u8; 22],
}

const SIOCSIFFLAGS: rustix::ioctl::Opcode = 0x8914;
const IFF_UP: i16 = 1;

fn datagram_socket() -> rustix::io::Result<OwnedFd> {
    let (kind, flags) = (SocketType::DGRAM, SocketFlags::CLOEXEC);
    rustix::net::socket_with(AddressFamily::INET, kind, flags, None)
}

fn loopback_up() -> rustix::io::Result<()> {
    let socket = datagram_socket()?;
    let mut request = InterfaceFlags {
        name: [0; 16],
        flags: IFF_UP,
        rest: [0; 22],
    };
    request.name[..2].copy_from_slice(b"lo");
    // SAFETY: SIOCSIFFLAGS reads a `struct ifreq` of 40 bytes, the layout of `InterfaceFlags`, and
    // writes nothing.
    unsafe { rustix::ioctl::ioctl(&socket, Setter::<SIOCSIFFLAGS, _>::new(request)) }
}
