//! Drives the `guest` program over its stdin and stdout, or over a connection.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::process::Child;

use vsock::VsockStream;

use crate::wait::patience;

/// The pipes of a running `guest` program.
pub struct Guest {
    stdin: Box<dyn Write + Send + Sync>,
    stdout: BufReader<Box<dyn Read + Send + Sync>>,
}

impl Guest {
    /// Takes the pipes of `child`.
    ///
    /// # Panics
    /// When its stdin and stdout are not piped.
    pub fn of(child: &mut Child) -> Self {
        let stdin = child.stdin.take().expect("stdin is piped");
        let stdout = child.stdout.take().expect("stdout is piped");
        Self {
            stdin: Box::new(stdin),
            stdout: BufReader::new(Box::new(stdout)),
        }
    }

    /// Takes the connection that a guest program made. It must answer within [`patience`].
    ///
    /// # Errors
    /// As dup(2).
    pub fn over(stream: UnixStream) -> std::io::Result<Self> {
        stream.set_read_timeout(Some(patience()))?;
        Ok(Self {
            stdin: Box::new(stream.try_clone()?),
            stdout: BufReader::new(Box::new(stream)),
        })
    }

    /// As [`Guest::over`], for one that came through the kernel's own vsock.
    ///
    /// # Errors
    /// As dup(2).
    pub fn over_vsock(stream: VsockStream) -> std::io::Result<Self> {
        stream.set_read_timeout(Some(patience()))?;
        Ok(Self {
            stdin: Box::new(stream.try_clone()?),
            stdout: BufReader::new(Box::new(stream)),
        })
    }

    /// Sends a command; returns the guest's clock right after it was carried out.
    ///
    /// # Panics
    /// When the guest answers with an error or is gone.
    pub fn tell(&mut self, command: &str) -> u64 {
        self.send(command);
        self.answer()
    }

    /// The guest's clock right after it carried out the last command that was sent.
    ///
    /// # Panics
    /// When the guest answers with an error or is gone.
    pub fn answer(&mut self) -> u64 {
        let answer = self.line();
        match answer.strip_prefix("ok ").map(str::parse) {
            Some(Ok(ns)) => ns,
            _ => panic!("the guest answered `{answer}`"),
        }
    }

    /// Sends a command without waiting for the answer.
    ///
    /// # Panics
    /// When the guest is gone.
    pub fn send(&mut self, command: &str) {
        let line = format!("{command}\n");
        // In one piece: each write to a vsock is a packet.
        self.stdin
            .write_all(line.as_bytes())
            .expect("the guest reads its stdin");
        self.stdin.flush().expect("the guest reads its stdin");
    }

    /// The next line that the guest printed.
    ///
    /// # Panics
    /// When the guest is gone.
    pub fn line(&mut self) -> String {
        let mut line = String::new();
        let n = self.stdout.read_line(&mut line).expect("a line of text");
        assert!(n > 0, "the guest is gone");
        line.trim_end().to_owned()
    }
}
