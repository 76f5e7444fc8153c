//! The agent as a guest's first process: how it gets into a VM that rum boots.
//!
//! The kernel starts it as `rdinit=/rum/agent`, from the initramfs that rum made. PID 1 must become
//! the guest's own init, so it starts a child and then executes `/init`. The child, the keeper,
//! starts the agent and restarts it when it ends. Keeper and agent run from before the first module
//! is loaded until the machine stops, whatever the guest's init does to the root:
//!
//! - **They have their own root**: a tmpfs with /proc and /sys, in a mount namespace of its own.
//!   The guest's init empties and leaves the initramfs when it mounts the real root, and moves the
//!   mounts inside it away. Their own root also keeps no file system of the guest busy.
//! - **They are not killed**: when systemd leaves an initramfs it kills the remaining processes,
//!   except those of root whose name starts with `@` (systemd's "root storage daemons").
//! - **The keeper waits for vsock**: the guest's init loads the module, now or later.
//!
//! Invariant: whatever fails here, PID 1 becomes the guest's init; only the agent may be missing.

use std::ffi::OsString;
use std::io::{self, Read};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::Mode;
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
use rustix::net::{AddressFamily, SocketType};
use rustix::thread::UnshareFlags;

use crate::schedule::Backoff;

/// The agent's path in an initramfs made by rum.
const PATH: &str = "/rum/agent";
/// Mount point of the agent's own root: the directory that holds the agent in the initramfs.
const ROOT: &str = "/rum";
/// Names of the two processes; systemd spares them because of the `@`.
const KEEPER: &str = "@rum-keeper";
const AGENT: &str = "@rum-agent";
/// What the keeper starts: its own file, wherever that is now. The initramfs may be empty by then.
const OWN: &str = "/proc/self/exe";
/// Pauses before an agent that ended is restarted.
const RESTART: Backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(10));
/// An agent that ran this long was healthy: its restart waits for the first pause only.
const RAN_WELL: Duration = Duration::from_secs(30);
/// OOM score adjustment (proc(5)): keeper and agent are killed late when memory is short, since
/// without the agent the user cannot get in to see what uses it.
const OOM_SCORE: &str = "-900";
/// The guest's own init, in the kernel's order.
const INITS: [&str; 3] = ["/init", "/sbin/init", "/bin/sh"];
/// Pauses between two attempts to open a vsock socket, each of which may make the kernel look for its
/// module.
const VSOCK: Backoff = Backoff::new(Duration::from_millis(20), Duration::from_millis(500));

/// Role of this process in the boot of a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The kernel's first process.
    First,
    /// Its child, the agent's keeper.
    Keeper,
}

impl Role {
    /// The role of a process with this id and this name (the first word of its command line);
    /// `None` for the agent itself.
    pub fn of(pid: u32, name: &str) -> Option<Self> {
        match (pid, name) {
            (1, PATH) => Some(Self::First),
            (_, KEEPER) => Some(Self::Keeper),
            _ => None,
        }
    }
}

/// As PID 1: starts the agent, then becomes the guest's init, which gets the arguments and the
/// environment that the kernel passed. Returns only when there is no init.
pub fn first() -> ExitCode {
    if let Err(error) = start_child() {
        tell(&format!("the agent cannot be started: {error}"));
    }
    let args: Vec<OsString> = std::env::args_os().skip(1).collect();
    for init in INITS {
        let error = Command::new(init).args(&args).exec();
        if error.kind() != io::ErrorKind::NotFound {
            tell(&format!("{init} cannot be started: {error}"));
        }
    }
    tell("the guest has no init");
    ExitCode::FAILURE
}

/// Writes to the guest's console. Never panics on failure: the end of PID 1 is a kernel panic.
fn tell(line: &str) {
    rum_shared::lines::say_on_stderr(&format!("rum-agent: {line}\n"));
}

/// Starts the agent and returns once it no longer depends on this root.
fn start_child() -> io::Result<()> {
    let mut child = Command::new(PATH)
        .arg0(KEEPER)
        .stdin(Stdio::inherit())
        .stdout(Stdio::piped())
        .spawn()?;
    // The child sends nothing: it closes its end of the pipe, see `leave`. It is not waited for,
    // dead or alive.
    if let Some(mut ready) = child.stdout.take() {
        ready.read_to_end(&mut Vec::new())?;
    }
    Ok(())
}

/// As the child of PID 1: starts the agent and restarts it whenever it ends. Returns only when it
/// cannot begin.
pub fn keep() -> ExitCode {
    let _ = rustix::thread::set_name(c"rum-keeper");
    if let Err(error) = settle() {
        tell(&format!("the agent cannot leave the initramfs: {error}"));
        return ExitCode::FAILURE;
    }
    let mut restart = RESTART;
    loop {
        let begun = Instant::now();
        // Quiet: its log goes to the guest's console, where only problems are of interest.
        let ended = Command::new(OWN).arg0(AGENT).arg("--quiet").status();
        if begun.elapsed() >= RAN_WELL {
            restart.reset();
        }
        let how = ended.map_or_else(|error| error.to_string(), |status| status.to_string());
        tell(&format!("the agent ended ({how}) and is started again"));
        std::thread::sleep(restart.fail());
    }
}

/// Leaves its session and its root, then waits for vsock without a limit.
///
/// # Errors
/// It cannot get a root of its own.
fn settle() -> io::Result<()> {
    rustix::process::setsid()?;
    own_root()?;
    if let Err(error) = std::fs::write("/proc/self/oom_score_adj", OOM_SCORE) {
        tell(&format!("/proc/self/oom_score_adj: {error}"));
    }
    // PID 1 waits until this end of the pipe is closed everywhere.
    rustix::stdio::dup2_stdout(rustix::stdio::stderr())?;
    let mut retry = VSOCK;
    while rustix::net::socket(AddressFamily::VSOCK, SocketType::STREAM, None).is_err() {
        std::thread::sleep(retry.fail());
    }
    Ok(())
}

/// Moves into a root that only this process has.
fn own_root() -> io::Result<()> {
    // SAFETY: no descriptor table is unshared, and the process has one thread.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS)? };
    mount_change(
        "/",
        MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
    )?;
    let hardened = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("rum", ROOT, "tmpfs", hardened, c"mode=0755,size=64k")?;
    rustix::process::chdir(ROOT)?;
    for (directory, kind) in [("proc", "proc"), ("sys", "sysfs")] {
        rustix::fs::mkdir(directory, Mode::from_raw_mode(0o755))?;
        mount("rum", directory, kind, hardened, None)?;
    }
    rustix::process::chroot(".")?;
    rustix::process::chdir("/")?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_kernel_and_we_ourselves_boot() {
        assert_eq!(Role::of(1, "/rum/agent"), Some(Role::First));
        assert_eq!(Role::of(70, "@rum-keeper"), Some(Role::Keeper));
        assert_eq!(Role::of(71, "@rum-agent"), None);
        // A container's first process, and a user who runs the agent by hand.
        assert_eq!(Role::of(1, "rum-agent"), None);
        assert_eq!(Role::of(4711, "/rum/agent"), None);
        assert_eq!(Role::of(4711, "/usr/local/bin/rum-agent"), None);
    }
}
