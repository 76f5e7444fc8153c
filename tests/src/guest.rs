//! Drives the `guest` program over its stdin and stdout.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout};

/// The pipes of a running `guest` program.
pub struct Guest {
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
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
            stdin,
            stdout: BufReader::new(stdout),
        }
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
        writeln!(self.stdin, "{command}").expect("the guest reads its stdin");
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
