//! Runs the real `rum` binary and watches what it says.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Instant;

use rustix::process::{Pid, Signal};
use tempfile::TempDir;

use crate::guest::Guest;
use crate::wait::{patience, until};

/// The path of a binary of this workspace, built for the same profile as the caller.
///
/// # Panics
/// When it has not been built.
pub fn binary(name: &str) -> PathBuf {
    let exe = std::env::current_exe().expect("own path");
    let dir = exe
        .ancestors()
        .find(|dir| dir.join(name).is_file())
        .unwrap_or_else(|| panic!("{name} is not built: run `cargo build --workspace --bins`"));
    dir.join(name)
}

/// When a line came, and the line.
pub type Line = (Instant, String);

/// Lines that a process wrote, as they come.
#[derive(Clone, Default)]
pub struct Lines(Arc<(Mutex<Vec<Line>>, Condvar)>);

impl Lines {
    fn read(&self, from: impl Read + Send + 'static) {
        let lines = self.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(from).split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line).into_owned();
                let (all, changed) = &*lines.0;
                let line = (Instant::now(), line);
                all.lock().expect("no reader panics").push(line);
                changed.notify_all();
            }
        });
    }

    /// All lines so far.
    ///
    /// # Panics
    /// Never: no thread panics while it holds the lock.
    pub fn all(&self) -> Vec<String> {
        let lines = self.0.0.lock().expect("no reader panics");
        lines.iter().map(|(_, line)| line.clone()).collect()
    }

    /// The lines that have come since `moment`, and when.
    ///
    /// # Panics
    /// Never: no thread panics while it holds the lock.
    pub fn since(&self, moment: Instant) -> Vec<Line> {
        let lines = self.0.0.lock().expect("no reader panics");
        lines
            .iter()
            .filter(|(at, _)| *at >= moment)
            .cloned()
            .collect()
    }

    /// Waits for the `n`th line (from 1) that contains `text`.
    ///
    /// # Panics
    /// When it does not come.
    pub fn wait_nth(&self, text: &str, n: usize) -> String {
        let start = Instant::now();
        let (all, changed) = &*self.0;
        let mut lines = all.lock().expect("no reader panics");
        loop {
            let mut found = lines.iter().filter(|(_, line)| line.contains(text));
            if let Some((_, line)) = found.nth(n - 1) {
                return line.clone();
            }
            let left = patience().saturating_sub(start.elapsed());
            if left.is_zero() {
                // Others still want to read them.
                drop(lines);
                panic!("no `{text}` (time {n})");
            }
            lines = changed
                .wait_timeout(lines, left)
                .expect("no reader panics")
                .0;
        }
    }

    /// Waits for a line that contains `text`.
    ///
    /// # Panics
    /// When it does not come.
    pub fn wait(&self, text: &str) -> String {
        self.wait_nth(text, 1)
    }
}

/// The user and group `nobody`: ordinary users without any capability.
const NOBODY: u32 = 65_534;

/// Where and how to run `rum`: a runtime directory of its own.
#[derive(Clone)]
pub struct Setup {
    /// Working directory, with the runtime directory in it. Removed with the last user.
    pub dir: Arc<TempDir>,
    /// Run as this user, else as the caller.
    pub uid: Option<u32>,
}

impl Setup {
    /// As the caller (root, in the tests).
    ///
    /// # Panics
    /// When no temporary directory can be made.
    pub fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("rum-").tempdir();
        Self {
            dir: Arc::new(dir.expect("a temporary directory")),
            uid: None,
        }
    }

    /// As an ordinary user without any capability.
    ///
    /// # Panics
    /// When the caller is not root.
    pub fn ordinary_user() -> Self {
        Self::of_user(NOBODY)
    }

    /// As [`Self::ordinary_user`], with that user id: for what the kernel counts for each user.
    ///
    /// # Panics
    /// When the caller is not root.
    pub fn of_user(uid: u32) -> Self {
        let setup = Self {
            uid: Some(uid),
            ..Self::new()
        };
        std::os::unix::fs::chown(setup.path(), setup.uid, setup.uid)
            .expect("these tests run as root");
        setup
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// A command with this set-up's user, directory and environment.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        command
            .current_dir(self.path())
            .env("RUM_RUNTIME_DIR", self.path().join("run"))
            .env("RUM_STATE_DIR", self.path().join("state"))
            .env("HOME", self.path())
            .env_remove("RUST_LOG")
            .env_remove("XDG_RUNTIME_DIR");
        if let Some(uid) = self.uid {
            command.uid(uid).gid(uid);
        }
        // A shell that runs these tests in the background has them, and so `rum`, ignore SIGINT.
        let heed = || {
            // SAFETY: no handler is installed.
            unsafe { libc::signal(libc::SIGINT, libc::SIG_DFL) };
            Ok(())
        };
        // SAFETY: one system call, nothing else.
        unsafe { command.pre_exec(heed) };
        command
    }

    /// `rum` with arguments.
    pub fn rum<S: AsRef<std::ffi::OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        let mut command = self.command(binary("rum"));
        command.args(args);
        command
    }

    /// Starts `command`, whose stderr is watched.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn spawn(&self, command: &mut Command) -> Rum {
        let mut child = command.stderr(Stdio::piped()).spawn().expect("rum starts");
        let stderr = Lines::default();
        stderr.read(child.stderr.take().expect("stderr is piped"));
        Rum {
            child,
            stdout: Lines::default(),
            stderr,
            _setup: self.clone(),
        }
    }

    /// Starts `rum` with arguments; no stdin.
    pub fn start<S: AsRef<std::ffi::OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Rum {
        let mut command = self.rum(args);
        self.start_command(&mut command)
    }

    /// Starts `command`, a `rum`; no stdin.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn start_command(&self, command: &mut Command) -> Rum {
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut rum = self.spawn(command);
        let stdout = rum.child.stdout.take().expect("stdout is piped");
        rum.stdout.read(stdout);
        rum
    }

    /// Starts `rum up ARGS -- guest` and takes the guest program's pipes.
    pub fn start_guest(&self, args: &[&str]) -> (Rum, Guest) {
        let guest = binary("guest");
        let mut command = self.rum(["up"].iter().chain(args));
        command.arg("--").arg(guest);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut rum = self.spawn(&mut command);
        let guest = Guest::of(&mut rum.child);
        (rum, guest)
    }

    /// Runs the guest program in the guest of a running `rum up`, by `rum exec`, and takes its
    /// pipes. The child is that `rum exec`.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn exec_guest(&self) -> (Child, Guest) {
        let mut command = self.rum(["exec", "--"]);
        command.arg(binary("guest"));
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut exec = command.spawn().expect("exec starts");
        let guest = Guest::of(&mut exec);
        (exec, guest)
    }
}

impl Default for Setup {
    fn default() -> Self {
        Self::new()
    }
}

/// A running `rum`. Killed when dropped.
pub struct Rum {
    /// The process.
    pub child: Child,
    /// What it writes to stdout (empty when a guest program owns stdout).
    pub stdout: Lines,
    /// What it writes to stderr.
    pub stderr: Lines,
    _setup: Setup,
}

impl Rum {
    /// Sends a signal.
    ///
    /// # Panics
    /// When the process has been reaped.
    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).expect("rum is still there");
    }

    /// Kills the agent that runs below it.
    ///
    /// # Panics
    /// When there is none.
    pub fn kill_agent(&self) {
        let agent = until("an agent below rum", || agent_below(self.child.id()));
        let pid = Pid::from_raw(agent as i32).expect("not 0");
        // Gone already is as good.
        let _ = rustix::process::kill_process(pid, Signal::KILL);
    }

    /// Waits for the end.
    ///
    /// # Panics
    /// When it does not end.
    pub fn wait(&mut self) -> ExitStatus {
        until("the end of rum", || {
            self.child.try_wait().expect("a child of ours")
        })
    }
}

impl Drop for Rum {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- rum's stdout\n{}", self.stdout.all().join("\n"));
            eprintln!("--- rum's stderr\n{}", self.stderr.all().join("\n"));
        }
    }
}

/// The process id of the agent among the descendants of `pid`.
pub fn agent_below(pid: u32) -> Option<u32> {
    below(pid, "rum-agent")
}

/// The process id of a process among the descendants of `pid` whose command line contains `text`.
pub fn below(pid: u32, text: &str) -> Option<u32> {
    let mut queue = vec![pid];
    while let Some(pid) = queue.pop() {
        let cmdline = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        if cmdline.contains(text) {
            return Some(pid);
        }
        let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).ok();
        for task in tasks.into_iter().flatten().flatten() {
            let children = std::fs::read_to_string(task.path().join("children"));
            let children = children.unwrap_or_default();
            queue.extend(
                children
                    .split_whitespace()
                    .filter_map(|p| p.parse::<u32>().ok()),
            );
        }
    }
    None
}
