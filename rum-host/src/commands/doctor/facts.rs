//! What `rum doctor` finds by trying. Nothing is judged here.
//!
//! A namespace guest is really started, a command run in it and its agent asked, below a
//! directory that no other `rum` looks at; then it is ended. Nothing else is changed, and what
//! is opened is closed again.

use std::fs::OpenOptions;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use rum_agent::kernel::sock_diag::SockDiag;
use rum_agent::kernel::sockstat::Sockstat;
use rum_agent::kernel::tracepoint::Tracepoint;
use rum_shared::text::clean;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::process::{Gid, Resource, Uid};
use rustix::thread::UnshareFlags;

use crate::commands::check;
use crate::guest::libvirt;
use crate::guest::process::setup;
use crate::guest::qemu::kvm;
use crate::guest::{Guest, GuestError, GuestKind, GuestSpec, Link};
use crate::runtime_dir::isolation::Isolation;
use crate::runtime_dir::{self, RunningGuest, RuntimeDir};
use crate::stream::client;

/// For a guest to start and to answer; it takes milliseconds.
const GUEST_DEADLINE: Duration = Duration::from_secs(20);
/// For libvirt to answer: milliseconds, or a second where it is started on demand.
const LIBVIRT_DEADLINE: Duration = Duration::from_secs(5);
/// Longest text of another program that is shown, in bytes.
const MAX_TEXT: usize = 120;
/// The user and group `nobody`.
const NOBODY: u32 = 65_534;
/// `IOCTL_VM_SOCKETS_GET_LOCAL_CID` of linux/vm_sockets.h.
const GET_LOCAL_CID: rustix::ioctl::Opcode = 0x7b9;

/// Something that did not work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct No {
    /// What the kernel said, and on what.
    pub why: String,
    /// What helps, where whoever refused knows it.
    pub remedy: Option<String>,
}

impl No {
    fn new(why: impl ToString) -> Self {
        Self {
            why: why.to_string(),
            remedy: None,
        }
    }
}

/// What came of a trial.
pub type Tried<T = ()> = Result<T, No>;

/// What the trial guest showed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestFacts {
    /// What wakes its agent: `tracepoint`, `poll` or `none`.
    pub hint: String,
    /// What its agent reads listeners from: `netlink` or `proc`.
    pub source: String,
    /// Whether it has a user namespace of its own.
    pub user_namespace: bool,
    /// Whether more users and groups than the user's own are mapped in it.
    pub more_ids: bool,
}

/// Everything that was found.
#[derive(Debug, Clone)]
pub struct Facts {
    /// The effective user.
    pub uid: u32,
    /// The kernel's release, such as `6.1.0-18-amd64`.
    pub kernel: String,
    /// Whether an ordinary user can make a user namespace and a network namespace in it.
    pub user_namespaces: Tried,
    /// A namespace guest.
    pub guest: Tried<GuestFacts>,
    /// The tracepoint, opened by this process.
    pub tracepoint: Tried,
    /// `kernel.perf_event_paranoid`.
    pub perf_event_paranoid: Option<String>,
    /// A SOCK_DIAG dump by this process.
    pub sock_diag: Tried,
    /// The socket counters.
    pub sockstat: Tried,
    /// A socket of the family AF_VSOCK.
    pub vsock: Tried,
    /// This machine's own context id.
    pub local_cid: Tried<u32>,
    /// `/dev/vhost-vsock`, opened.
    pub vhost_vsock: Tried,
    /// Where `vhost-device-vsock` is.
    pub vhost_device_vsock: Option<PathBuf>,
    /// Whether a guest's instructions are executed through `/dev/kvm`.
    pub kvm: Tried,
    /// What `--version` of the QEMU for this machine's architecture says, cleaned.
    pub qemu: Tried<String>,
    /// Where `qemu-img` is.
    pub qemu_img: Option<PathBuf>,
    /// What libvirt runs, as virsh says, cleaned.
    pub libvirt: Tried<String>,
    /// Where `ssh` is.
    pub ssh: Option<PathBuf>,
    /// Where `ssh-keygen` is.
    pub ssh_keygen: Option<PathBuf>,
    /// Open files, soft and hard; None is unlimited.
    pub open_files: [Option<u64>; 2],
    /// Port 1 of this machine, bound for an instant.
    pub low_port: Tried,
    /// `net.ipv4.ip_unprivileged_port_start`.
    pub port_start: Option<String>,
    /// The directory of the guests, made if it was not there.
    pub runtime_dir: (PathBuf, Tried),
    /// The running guests.
    pub guests: Tried<Vec<RunningGuest>>,
}

/// Tries everything. To be called on the process's first thread, inside a tokio runtime; takes
/// some tens of milliseconds, and seconds more where KVM executes nothing or libvirt does not answer.
pub async fn gather() -> Facts {
    let base = runtime_dir::base();
    let dir = runtime_dir::private_dir(&base).map(drop);
    Facts {
        uid: rustix::process::geteuid().as_raw(),
        kernel: sysctl("kernel/osrelease").unwrap_or_default(),
        user_namespaces: user_namespaces(),
        guest: guest(&base).await,
        tracepoint: Tracepoint::open(None).map(drop).map_err(|error| No {
            remedy: error.hint().map(str::to_owned),
            why: chain(&error),
        }),
        perf_event_paranoid: sysctl("kernel/perf_event_paranoid"),
        sock_diag: SockDiag::open().map(drop).map_err(|e| No::new(chain(&e))),
        sockstat: Sockstat::open().map(drop).map_err(No::new),
        vsock: vsock_socket().map_err(No::new),
        local_cid: local_cid().map_err(|e| No::new(format!("/dev/vsock: {e}"))),
        vhost_vsock: open("/dev/vhost-vsock"),
        vhost_device_vsock: in_path("vhost-device-vsock"),
        kvm: kvm::works().await.map_err(No::new),
        qemu: qemu(),
        qemu_img: in_path("qemu-img"),
        libvirt: libvirt().await,
        ssh: in_path("ssh"),
        ssh_keygen: in_path("ssh-keygen"),
        open_files: {
            let limit = rustix::process::getrlimit(Resource::Nofile);
            [limit.current, limit.maximum]
        },
        low_port: low_port(),
        port_start: sysctl("net/ipv4/ip_unprivileged_port_start"),
        runtime_dir: (
            base,
            dir.map_err(|error| No {
                remedy: error.hint(),
                why: chain(&error),
            }),
        ),
        guests: runtime_dir::list().map_err(|error| No {
            remedy: error.hint(),
            why: chain(&error),
        }),
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    let texts: Vec<String> = causes.map(ToString::to_string).collect();
    texts.join(": ")
}

/// Starts a guest, runs a command in it, asks its agent, and ends it.
async fn guest(base: &Path) -> Tried<GuestFacts> {
    let no = |error: GuestError| No {
        remedy: error.hint(),
        why: chain(&error),
    };
    // A name that starts with a dot is no guest's, so that nobody else finds it.
    let below = base.join(format!(".doctor-{}", std::process::id()));
    let tried = async {
        let dir = RuntimeDir::create_in(&below, "guest").map_err(|e| no(e.into()))?;
        let dir = Arc::new(dir);
        let spec = GuestSpec {
            name: "guest".to_owned(),
            kind: GuestKind::Namespace(Isolation::default()),
            reset: false,
        };
        let link = Link::unheard(vec!["-q".to_owned()]);
        let guest = Guest::start(&spec, &dir, &link).await.map_err(no)?;
        let facts = tokio::time::timeout(GUEST_DEADLINE, ask(&guest)).await;
        guest.stop(GUEST_DEADLINE).await;
        facts.unwrap_or_else(|_| Err(No::new("the guest's agent does not answer")))
    };
    let tried = tried.await;
    // Empty by now, or it is not there.
    let _ = std::fs::remove_dir(&below);
    tried
}

async fn ask(guest: &Guest) -> Tried<GuestFacts> {
    let mut command = guest
        .spawn(&["true".into()], Path::new("/"))
        .map_err(|e| No::new(chain(&e)))?;
    let status = command.wait().await.map_err(No::new)?;
    if !status.success() {
        return Err(No::new(format!("`true` in the guest ended with {status}")));
    }
    let transport = guest.endpoint().clone().into();
    let (_session, info) = client::connect(&transport).await.map_err(No::new)?;
    Ok(GuestFacts {
        hint: info.hint,
        source: info.source,
        user_namespace: !setup::is_privileged(),
        more_ids: ["uid_map", "gid_map"].iter().all(|map| {
            let map = format!("/proc/{}/{map}", guest.init_pid().unwrap_or_default());
            std::fs::read_to_string(map).is_ok_and(|map| map.lines().count() > 1)
        }),
    })
}

/// Makes the namespaces in a child that never runs a program. As root it is nobody who tries.
fn user_namespaces() -> Tried {
    /// What the child says when all went well: nothing in it fails like this.
    const DONE: Errno = Errno::CANCELED;
    /// The same when it could not become an ordinary user.
    const NOT_NOBODY: Errno = Errno::NXIO;
    let is_root = rustix::process::geteuid().is_root();
    let attempt = move || {
        if is_root {
            rustix::thread::set_thread_gid(Gid::from_raw(NOBODY)).map_err(|_| NOT_NOBODY)?;
            rustix::thread::set_thread_uid(Uid::from_raw(NOBODY)).map_err(|_| NOT_NOBODY)?;
        }
        // In two steps: AppArmor may grant the first, but nothing in it.
        for space in [UnshareFlags::NEWUSER, UnshareFlags::NEWNET] {
            // SAFETY: no descriptors are unshared, and a child of fork(2) has one thread.
            unsafe { rustix::thread::unshare_unsafe(space) }?;
        }
        Err(io::Error::from(DONE))
    };
    let mut command = Command::new("/proc/self/exe");
    // SAFETY: the closure makes system calls only; it neither allocates nor takes a lock.
    unsafe { command.pre_exec(attempt) };
    match command
        .spawn()
        .map_err(|error| Errno::from_io_error(&error))
    {
        Err(Some(DONE)) => Ok(()),
        Err(Some(NOT_NOBODY)) => Err(No {
            why: "this root cannot become another user to try it".to_owned(),
            remedy: Some("run `rum doctor` as the user in question".to_owned()),
        }),
        Err(Some(error)) => Err(No {
            why: error.to_string(),
            remedy: Some(setup::user_namespace_hint()),
        }),
        // The closure always fails.
        Ok(_) | Err(None) => Err(No::new("it cannot be tried")),
    }
}

fn sysctl(path: &str) -> Option<String> {
    let text = std::fs::read_to_string(Path::new("/proc/sys").join(path)).ok()?;
    Some(text.trim().to_owned())
}

fn open(path: &str) -> Tried {
    let opened = OpenOptions::new().read(true).write(true).open(path);
    opened
        .map(drop)
        .map_err(|e| No::new(format!("{path}: {e}")))
}

fn low_port() -> Tried {
    match check::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 1))) {
        // Taken by somebody, but not refused to us.
        Ok(()) | Err(Errno::ADDRINUSE) => Ok(()),
        Err(error) => Err(No::new(error)),
    }
}

fn vsock_socket() -> io::Result<()> {
    let flags = SocketFlags::CLOEXEC;
    rustix::net::socket_with(AddressFamily::VSOCK, SocketType::STREAM, flags, None)?;
    Ok(())
}

fn local_cid() -> io::Result<u32> {
    let device = std::fs::File::open("/dev/vsock")?;
    // SAFETY: this ioctl of /dev/vsock writes one unsigned int.
    Ok(unsafe {
        rustix::ioctl::ioctl(&device, rustix::ioctl::Getter::<GET_LOCAL_CID, u32>::new())
    }?)
}

fn in_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|dir| dir.join(program))
        .find(|file| {
            rustix::fs::access(file, rustix::fs::Access::EXEC_OK).is_ok() && file.is_file()
        })
}

fn qemu() -> Tried<String> {
    // The machine's own name for its architecture is QEMU's, too.
    let program = format!("qemu-system-{}", std::env::consts::ARCH);
    let file = in_path(&program).ok_or_else(|| No::new(format!("no {program} in the PATH")))?;
    let said = Command::new(&file)
        .arg("--version")
        .stdin(Stdio::null())
        .output();
    let said = said.map_err(|e| No::new(format!("{}: {e}", file.display())))?;
    let text = String::from_utf8_lossy(&said.stdout);
    match text.lines().next() {
        Some(line) if said.status.success() => Ok(clean(line, MAX_TEXT)),
        _ => Err(No::new(format!(
            "{} --version: {}",
            file.display(),
            said.status
        ))),
    }
}

async fn libvirt() -> Tried<String> {
    let said = libvirt::hypervisor(LIBVIRT_DEADLINE).await;
    said.map(|text| clean(&text, MAX_TEXT)).map_err(|error| No {
        remedy: error.one_line_hint(),
        why: chain(&error),
    })
}
