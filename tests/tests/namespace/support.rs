//! A stage for one guest: its own runtime directory, its own mark on every process.

use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::io::{BufRead, BufReader, Read};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::FdFlags;
use rustix::process::{Pid, Signal, kill_process};

/// Far beyond what anything here takes: only a failing test waits that long.
const PATIENCE: Duration = Duration::from_secs(60);
/// Variable that marks every process of a stage.
const MARK: &str = "RUM_TEST_MARK";
/// Name of the guest on each stage.
pub const GUEST: &str = "dev";

/// As whom the stand-in for rum runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Who {
    Root,
    User,
}

/// The ordinary user: an id that owns nothing.
pub const USER: u32 = 12345;

pub struct Stage {
    pub who: Who,
    pub dir: tempfile::TempDir,
    mark: String,
    holder: File,
}

impl Stage {
    pub fn new(who: Who) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        assert!(
            rustix::process::geteuid().is_root(),
            "these tests become root and an ordinary user by turns: run them as root"
        );
        let dir = tempfile::Builder::new()
            .prefix("rum")
            .permissions(Permissions::from_mode(0o700))
            .tempdir()
            .unwrap();
        if who == Who::User {
            chown(dir.path(), Some(USER), Some(USER)).unwrap();
        }
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        Self {
            who,
            dir,
            mark: format!("{}-{number}", std::process::id()),
            holder: File::open(env!("CARGO_BIN_EXE_guest-holder")).unwrap(),
        }
    }

    /// The stand-in's path for each process that was started with [`Stage::command`] and what
    /// that starts: it works for a user who may not enter the build directory.
    pub fn holder(&self) -> String {
        format!("/proc/self/fd/{}", self.holder.as_raw_fd())
    }

    /// A process on this stage.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        command
            .env(MARK, &self.mark)
            .env("RUM_RUNTIME_DIR", self.dir.path())
            .current_dir("/usr");
        if self.who == Who::User {
            command.uid(USER).gid(USER);
        }
        let holder = self.holder.as_raw_fd();
        let keep = move || {
            // SAFETY: open as long as the stage is, which starts this child.
            let holder = unsafe { BorrowedFd::borrow_raw(holder) };
            Ok(rustix::io::fcntl_setfd(holder, FdFlags::empty())?)
        };
        // SAFETY: one system call, nothing else.
        unsafe { command.pre_exec(keep) };
        command
    }

    pub fn rum(&self, args: &[&str]) -> Command {
        let mut command = self.command(self.holder());
        command.args(args);
        command
    }

    /// Runs to the end.
    pub fn run(&self, args: &[&str]) -> Output {
        self.rum(args).stdin(Stdio::null()).output().unwrap()
    }

    /// Runs in the guest to the end.
    pub fn exec(&self, command: &[&str]) -> Output {
        self.run(&[&["exec", GUEST], command].concat())
    }

    /// Starts the guest.
    pub fn up(&self) -> Up {
        let mut command = self.rum(&["up", GUEST]);
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap());
        let init = read_line(&mut lines);
        let init = init.strip_prefix("init ").unwrap().parse().unwrap();
        Up { child, lines, init }
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(GUEST).join(name)
    }

    /// What the agent answers: its process id inside, and its arguments. None if it ends first.
    pub fn ask_agent(&self) -> Option<(u32, String)> {
        let mut answer = String::new();
        let mut stream = UnixStream::connect(self.file("agent-rpc.sock")).unwrap();
        stream.read_to_string(&mut answer).unwrap();
        let (pid, args) = answer.trim().split_once(' ')?;
        Some((pid.parse().unwrap(), args.to_owned()))
    }

    /// The living processes that carry this stage's mark.
    pub fn processes(&self) -> Vec<u32> {
        let mark = format!("{MARK}={}", self.mark);
        let has_mark = |pid: &u32| {
            fs::read(format!("/proc/{pid}/environ")).is_ok_and(|environ| {
                environ
                    .split(|byte| *byte == 0)
                    .any(|v| v == mark.as_bytes())
            })
        };
        all_pids().into_iter().filter(has_mark).collect()
    }

    /// The one process of this stage whose command line contains `text`.
    pub fn find(&self, text: &str) -> u32 {
        let holds = |pid: &u32| {
            fs::read(format!("/proc/{pid}/cmdline"))
                .is_ok_and(|line| String::from_utf8_lossy(&line).contains(text))
        };
        until(text, || {
            let mut found = self.processes().into_iter().filter(holds);
            found.next().filter(|_| found.next().is_none())
        })
    }

    /// Waits until nothing is left: no process, no namespace `net`, no file.
    pub fn assert_empty(&self, net: u64) {
        until("no process of the guest", || {
            self.processes().is_empty().then_some(())
        });
        until("no namespace of the guest", || {
            all_pids()
                .iter()
                .all(|pid| net_namespace(*pid) != Some(net))
                .then_some(())
        });
        until("no runtime directory", || {
            (fs::read_dir(self.dir.path()).unwrap().count() == 0).then_some(())
        });
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        for pid in self.processes() {
            kill(pid, Signal::KILL);
        }
    }
}

/// A guest that is held.
pub struct Up {
    pub child: Child,
    pub lines: BufReader<ChildStdout>,
    pub init: u32,
}

impl Up {
    /// Ends it in order and returns how that went.
    pub fn stop(mut self) -> String {
        drop(self.child.stdin.take());
        let line = read_line(&mut self.lines);
        assert!(self.child.wait().unwrap().success());
        line
    }
}

pub fn read_line(lines: &mut impl BufRead) -> String {
    let mut line = String::new();
    lines.read_line(&mut line).unwrap();
    line.trim_end().to_owned()
}

fn all_pids() -> Vec<u32> {
    fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect()
}

/// Which network namespace a process is in; None if it is gone.
pub fn net_namespace(pid: u32) -> Option<u64> {
    Some(fs::metadata(format!("/proc/{pid}/ns/net")).ok()?.ino())
}

pub fn kill(pid: u32, signal: Signal) {
    let pid = Pid::from_raw(pid.try_into().unwrap()).unwrap();
    // It may just have ended.
    let _ = kill_process(pid, signal);
}

/// Waits until `check` has an answer.
pub fn until<T>(what: &str, mut check: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = check() {
            return value;
        }
        assert!(Instant::now() < deadline, "waited in vain for: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A terminal whose session leader runs `command`; returns our side of it.
pub fn on_a_terminal(mut command: Command) -> (Child, File) {
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    let ours: OwnedFd =
        openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
    grantpt(&ours).unwrap();
    unlockpt(&ours).unwrap();
    let path = ptsname(&ours, Vec::new()).unwrap().into_string().unwrap();
    let open = || File::options().read(true).write(true).open(&path).unwrap();
    command.stdin(open()).stdout(open()).stderr(open());
    let take = || {
        rustix::process::setsid()?;
        rustix::process::ioctl_tiocsctty(rustix::stdio::stdin())?;
        Ok(())
    };
    // SAFETY: two system calls, nothing else.
    unsafe { command.pre_exec(take) };
    (command.spawn().unwrap(), File::from(ours))
}

/// Reads from a terminal until `text` has come; returns everything up to it.
pub fn expect(terminal: &mut File, text: &str) -> String {
    let mut seen = Vec::new();
    let mut byte = [0];
    while !String::from_utf8_lossy(&seen).ends_with(text) {
        let mut ready = [PollFd::new(terminal, PollFlags::IN)];
        let patience = Timespec::try_from(PATIENCE).unwrap();
        let ready = poll(&mut ready, Some(&patience)).unwrap() > 0;
        let read = if ready {
            terminal.read(&mut byte).ok()
        } else {
            None
        };
        assert_eq!(
            read,
            Some(1),
            "waited in vain for {text:?}, after:\n{}",
            String::from_utf8_lossy(&seen)
        );
        seen.push(byte[0]);
    }
    String::from_utf8_lossy(&seen).into_owned()
}
