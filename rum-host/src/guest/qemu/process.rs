//! The processes of a VM, seen from rum's side: a warden and its lifeline (see
//! [`crate::guest::process`]).

use std::ffi::OsString;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};
use std::process::Stdio;

use tokio::io::AsyncWriteExt;
use tokio::process::{Child, ChildStdin, Command};

use crate::guest::GuestError;
use crate::guest::namespace::{StatusLines, inherit, io_error};
use crate::guest::process::status::Status;
use crate::guest::process::{SELF, START, WARDEN};
use crate::runtime_dir::RuntimeDir;

/// A warden and the programs that it runs; dropping it kills them.
#[derive(Debug)]
pub struct Process {
    warden: Child,
    lifeline: Option<ChildStdin>,
    status: StatusLines,
}

impl Process {
    /// Starts the first of `programs`; their output goes to `log`.
    pub fn start(
        dir: &RuntimeDir,
        programs: &[Vec<OsString>],
        log: File,
    ) -> Result<Self, GuestError> {
        let lock = dir.lock().map_err(io_error("keep the lock"))?;
        let mut command = Command::new(SELF);
        command
            .arg0("rum")
            .arg(WARDEN)
            .arg(dir.path())
            .arg(lock.as_raw_fd().to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log);
        for program in programs {
            command.arg(program.len().to_string()).args(program);
        }
        inherit(&mut command, &[lock.as_fd()]);
        let mut warden = command.spawn().map_err(io_error("start the VM's warden"))?;
        let lifeline = warden.stdin.take();
        let stdout = warden.stdout.take().expect("its standard output is a pipe");
        Ok(Self {
            warden,
            lifeline,
            status: StatusLines::new(stdout),
        })
    }

    /// Starts the next program.
    pub async fn start_next(&mut self) {
        if let Some(lifeline) = &mut self.lifeline {
            // The write fails only if the warden has ended, which is handled elsewhere.
            let _ = lifeline.write_all(&[START]).await;
        }
    }

    /// Waits until all programs have ended. Returns how, with the program's name first.
    /// Cancel-safe; must not be called again once it has completed.
    pub async fn ended(&mut self) -> String {
        let mut said = None;
        while let Some(status) = self.status.next().await {
            if let Status::Ended(text) | Status::Error(text) = status {
                said = Some(text);
            }
        }
        let warden = self.warden.wait().await;
        said.unwrap_or_else(|| match warden {
            Ok(status) => format!("its warden ended ({status})"),
            Err(error) => format!("its warden is lost: {error}"),
        })
    }

    /// Kills the programs.
    pub fn kill(&mut self) {
        self.lifeline = None;
    }
}
