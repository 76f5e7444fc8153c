//! `virsh` as a child process: one command, one bounded answer, within a deadline.
//!
//! No user input can become an option: it is passed as `--name=VALUE`. The locale is C, since texts
//! such as `shut off` are parsed. A child has a session of its own, so Ctrl+C does not reach it,
//! and it finds no terminal on which to ask for a password: it fails instead.

use std::io;
use std::process::Stdio;
use std::time::Duration;

use rum_shared::text::clean;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, ChildStdout, Command};

use crate::error::RumError;

/// libvirt answers in milliseconds; one that is started on demand takes seconds.
pub const DEADLINE: Duration = Duration::from_secs(20);
/// Longest output that is read. The description of a large domain has some 100 KB.
const MAX_OUTPUT: u64 = 4 << 20;
/// Longest error output that is read, and how much of it is shown.
const MAX_MESSAGE: u64 = 4 << 10;
const MAX_SHOWN: usize = 400;

/// The connection that commands go to.
#[derive(Debug, Clone)]
pub struct Virsh {
    uri: String,
}

/// The error output of a command that libvirt refused, cleaned, without `error:`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Refusal(pub String);

/// Why a command did not succeed.
#[derive(Debug)]
pub enum Failed {
    /// virsh ran and failed.
    Refused(Refusal),
    /// virsh cannot be run, or does not answer.
    Broken(RumError),
}

impl Virsh {
    /// Commands for libvirt at `uri`.
    pub fn new(uri: &str) -> Self {
        let uri = uri.to_owned();
        Self { uri }
    }

    /// The URI, cleaned for a terminal.
    pub fn uri(&self) -> String {
        clean(&self.uri, MAX_SHOWN)
    }

    /// Runs `command` with `options` and returns its output. The child is killed at the deadline
    /// and when this is dropped, which does not undo what libvirt has begun.
    pub async fn run(
        &self,
        command: &str,
        options: &[String],
        deadline: Duration,
    ) -> Result<String, Failed> {
        self.run_with(command, options, "", deadline).await
    }

    /// As [`Virsh::run`], with `input`, which fits into a pipe, as /dev/stdin.
    pub async fn run_with(
        &self,
        command: &str,
        options: &[String],
        input: &'static str,
        deadline: Duration,
    ) -> Result<String, Failed> {
        let mut virsh = Command::from(self.command(command, options));
        if !input.is_empty() {
            virsh.stdin(Stdio::piped());
        }
        let mut child = virsh
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| Failed::Broken(cannot_run(error)))?;
        let stdout = child.stdout.take().expect("it is a pipe");
        let stderr = child.stderr.take().expect("it is a pipe");
        let stdin = child.stdin.take();
        let all = async {
            if let Some(mut stdin) = stdin {
                stdin.write_all(input.as_bytes()).await?;
            }
            let (output, message) = tokio::join!(
                read(stdout, MAX_OUTPUT),
                // A few bytes more, so that the truncation is visible.
                read(stderr, MAX_MESSAGE)
            );
            io::Result::Ok((child.wait().await?, output?, message?))
        };
        let answer = tokio::time::timeout(deadline, all).await;
        let (status, output, message) = match answer {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => {
                let error = RumError::new(format!("cannot read what `virsh {command}` says"))
                    .caused_by(error);
                return Err(Failed::Broken(error));
            }
            Err(_) => {
                let message = format!("`virsh {command}` did not answer within {deadline:?}");
                let hint = format!("try it by hand: `virsh --connect={} list`", self.uri());
                return Err(Failed::Broken(RumError::new(message).hint(hint)));
            }
        };
        if status.success() {
            Ok(output)
        } else {
            Err(Failed::Refused(refusal(&message, &status.to_string())))
        }
    }

    /// Subscribes to lifecycle events of the domain with this UUID.
    pub fn events(&self, uuid: &str) -> io::Result<Events> {
        let options = ["--event=lifecycle", "--loop", &format!("--domain={uuid}")];
        let mut command = self.command("event", &options.map(str::to_owned));
        end_with_us(&mut command);
        let mut child = Command::from(command)
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let lines = child.stdout.take().expect("it is a pipe");
        Ok(Events {
            lines,
            _child: child,
        })
    }

    /// Starts `command` and lets it run, even after rum's end.
    pub fn let_go(&self, command: &str, options: &[String]) -> io::Result<()> {
        self.command(command, options)
            .stdout(Stdio::null())
            .spawn()
            .map(drop)
    }

    fn command(&self, command: &str, options: &[String]) -> std::process::Command {
        use std::os::unix::process::CommandExt;
        let mut virsh = std::process::Command::new("virsh");
        virsh
            .args(["--quiet", &format!("--connect={}", self.uri), command])
            .args(options)
            .env("LC_ALL", "C")
            .stdin(Stdio::null())
            .stderr(Stdio::null());
        let leave = || Ok(rustix::process::setsid().map(drop)?);
        // SAFETY: between fork and exec only async-signal-safe calls are allowed: this is one
        // system call.
        unsafe { virsh.pre_exec(leave) };
        virsh
    }
}

/// Event lines. A line only says that something happened; a query follows.
#[derive(Debug)]
pub struct Events {
    lines: ChildStdout,
    _child: Child,
}

impl Events {
    /// Waits for the next lines; false at the end of the stream. Cancel-safe.
    pub async fn next(&mut self) -> bool {
        let mut some = [0; 4096];
        matches!(self.lines.read(&mut some).await, Ok(1..))
    }
}

/// Ends the child when the thread that starts it ends: the main thread, where `rum up` runs.
fn end_with_us(command: &mut std::process::Command) {
    use std::os::unix::process::CommandExt;
    let signal = Some(rustix::process::Signal::TERM);
    let ask = move || Ok(rustix::process::set_parent_process_death_signal(signal)?);
    // SAFETY: as above, one system call.
    unsafe { command.pre_exec(ask) };
}

async fn read(from: impl AsyncRead + Unpin, max: u64) -> io::Result<String> {
    let mut bytes = Vec::new();
    from.take(max).read_to_end(&mut bytes).await?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn cannot_run(error: io::Error) -> RumError {
    match error.kind() {
        io::ErrorKind::NotFound => RumError::new("`virsh` is not installed, or not in PATH").hint(
            "install libvirt's clients: the package is `libvirt-clients` on Debian and Ubuntu, \
             `libvirt-client` on Fedora, `libvirt` on Arch",
        ),
        _ => RumError::new("cannot run `virsh`").caused_by(error),
    }
}

/// Extracts the reason: virsh first says what failed, which the caller says better.
pub(super) fn refusal(message: &str, status: &str) -> Refusal {
    let lines = message.lines().filter_map(|line| {
        let line = line.trim();
        let line = line.strip_prefix("error: ").unwrap_or(line);
        (!line.is_empty()).then_some(line)
    });
    let lines: Vec<_> = lines.collect();
    match lines.as_slice() {
        [] => Refusal(format!("virsh ended with {status}")),
        [only] => Refusal(clean(only, MAX_SHOWN)),
        [_, why @ ..] => Refusal(clean(&why.join(": "), MAX_SHOWN)),
    }
}
