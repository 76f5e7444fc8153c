//! Finds the user whom an image lets in with rum's key.
//!
//! The images of each distribution have a usual user of their own, and the user's cloud-init file
//! may name another. The guest knows: cloud-init accepts a key for root only to print which user to
//! log in as instead (its `disable_root_opts`). So one login as root is tried, and the answer is
//! stored.

use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Child, Command, Stdio};

use super::not_started;
use crate::error::RumError;
use crate::guest::qemu::login::{User, user_name};

/// Most bytes of the guest's output that are read: one line matters.
const MAX_SAID: u64 = 4096;
/// Text before the user's name in that line.
const BEFORE: &str = "Please login as the user \"";

/// Asks the guest `name`, which `ssh` reaches under the name `host`.
///
/// # Errors
/// The guest does not report a user, or cannot be reached.
pub fn ask(name: &str, mut ssh: Command, host: &str) -> Result<User, RumError> {
    ssh.args([
        "-T",
        "-o",
        "BatchMode yes",
        "-o",
        "LogLevel ERROR",
        "-l",
        "root",
    ]);
    ssh.args(["--", host, "true"]);
    ssh.stdin(Stdio::null()).stdout(Stdio::piped());
    let child = ssh.spawn().map_err(not_started)?;
    let mut child = Reaped(child);
    let said = child
        .0
        .stdout
        .take()
        .map(|out| BufReader::new(out.take(MAX_SAID)));
    let lines = said
        .into_iter()
        .flat_map(|said| said.lines().map_while(Result::ok));
    // The guest would take ten seconds to hang up: one line is enough.
    if let Some(user) = lines.filter_map(|line| named_in(&line)).next() {
        return Ok(user);
    }
    match child.0.wait() {
        // An image that permits root logins.
        Ok(status) if status.success() => Ok(user_name("root").expect("root is a user's name")),
        _ => Err(
            RumError::new(format!("the guest `{name}` does not say who may log in to it")).hint(format!(
                "name a user: `rum ssh --name {name} USER@`; a disk that was first booted before rum had a \
                 key for it does not know that key, `rum up --reset` makes a new disk"
            )),
        ),
    }
}

/// The user that cloud-init's line names.
fn named_in(line: &str) -> Option<User> {
    let (_, rest) = line.split_once(BEFORE)?;
    let (name, _) = rest.split_once('"')?;
    user_name(name).ok()
}

/// A child that is killed on drop.
struct Reaped(Child);

impl Drop for Reaped {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// An ssh that writes `text` and ends with `code`.
    fn saying(text: &str, code: u8) -> Result<User, RumError> {
        let mut shell = Command::new("sh");
        shell.args(["-c", &format!("printf %s '{text}'; exit {code}"), "sh"]);
        ask("dev", shell, "rum-dev")
    }

    #[test]
    fn cloud_init_says_as_whom_to_come() {
        let line = "Please login as the user \"debian\" rather than the user \"root\".\n\n";
        assert_eq!(saying(line, 142).unwrap().as_str(), "debian");
        assert_eq!(saying("", 0).unwrap().as_str(), "root");
        for (said, code) in [
            ("", 255),
            ("Please login as the user \"-oProxyCommand=x\" rather", 142),
            ("Please login as the user \"", 142),
        ] {
            let error = saying(said, code).unwrap_err();
            assert!(error.one_line_hint().unwrap().contains("USER@"), "{error}");
        }
    }

    #[test]
    fn a_guest_that_talks_without_end_is_not_listened_to() {
        let mut shell = Command::new("sh");
        shell.args(["-c", "exec yes", "sh"]);
        ask("dev", shell, "rum-dev").unwrap_err();
    }
}
