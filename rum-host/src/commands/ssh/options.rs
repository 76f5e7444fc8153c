//! The options with which ssh(1) reaches a guest, for its command line and for `~/.ssh/config`.

use std::path::Path;
use std::process::Command;

use super::{Files, PORT, program};
use crate::error::RumError;
use crate::guest::qemu::login::User;
use crate::runtime_dir::RunningGuest;

/// What a path would have to be for ssh to read it unchanged.
const ODD: &str =
    "set RUM_STATE_DIR to a path without quotes, backslashes, `${` and control characters";
/// Where rum looks for guests: given on to the proxy, since a desktop's programs do not have what a shell sets.
const RUNTIME_DIR: &str = "RUM_RUNTIME_DIR";

/// See the module. Each is a line of ssh_config(5).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    host: String,
    lines: Vec<String>,
    has_key: bool,
}

impl Options {
    /// Those for `guest`, whose `files` may have a key.
    ///
    /// # Errors
    /// A path that cannot be written for ssh.
    pub fn new(guest: &RunningGuest, files: &Files) -> Result<Self, RumError> {
        let program = std::env::current_exe()
            .map_err(|error| RumError::new("cannot find this program").caused_by(error))?;
        let runtime_dir = std::env::var_os(RUNTIME_DIR).filter(|dir| !dir.is_empty());
        let runtime_dir = runtime_dir.map(std::path::absolute).transpose();
        let runtime_dir = runtime_dir
            .map_err(|error| RumError::new("cannot find RUM_RUNTIME_DIR").caused_by(error))?;
        let has_key = files.has_key() && guest.kind.as_deref() == Some("qemu");
        let proxy = proxy_command(&program, runtime_dir.as_deref(), &guest.name)?;
        Self::of(&guest.name, &proxy, files, has_key)
    }

    fn of(name: &str, proxy: &str, files: &Files, has_key: bool) -> Result<Self, RumError> {
        let host = format!("rum-{name}");
        let mut lines = vec![
            format!("HostKeyAlias {host}"),
            format!("Port {PORT}"),
            format!("ProxyCommand {proxy}"),
            // Over vsock nobody can be in between; a disk that is thrown away takes its keys along.
            "StrictHostKeyChecking accept-new".to_owned(),
            format!("UserKnownHostsFile {}", quoted(&files.known_hosts)?),
            // A guest is trusted with nothing of its host.
            "ForwardAgent no".to_owned(),
        ];
        if has_key {
            lines.push(format!("IdentityFile {}", quoted(&files.key)?));
            // The keys of an agent come first, and sshd hangs up after the sixth.
            lines.push("IdentitiesOnly yes".to_owned());
        }
        Ok(Self {
            host,
            lines,
            has_key,
        })
    }

    /// Whether rum has a key of its own for the guest.
    pub fn has_key(&self) -> bool {
        self.has_key
    }

    /// The guest's name for ssh.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// An ssh with these options.
    pub fn ssh(&self) -> Command {
        let mut ssh = program();
        for line in &self.lines {
            ssh.args(["-o", line]);
        }
        ssh
    }

    /// A block for `~/.ssh/config`.
    pub fn block(&self, user: Option<&User>) -> String {
        let mut text = format!("Host {}\n", self.host);
        for line in &self.lines {
            text += &format!("  {line}\n");
        }
        if let Some(user) = user {
            text += &format!("  User {}\n", user.as_str());
        }
        text
    }
}

/// A path as ssh_config(5) reads it in double quotes, `%` being its own.
fn quoted(path: &Path) -> Result<String, RumError> {
    let text = printable(path)?;
    if text.contains(['"', '\\']) || text.contains("${") {
        return Err(odd(path));
    }
    Ok(format!("\"{}\"", text.replace('%', "%%")))
}

fn printable(path: &Path) -> Result<&str, RumError> {
    let text = path
        .to_str()
        .filter(|text| !text.contains(char::is_control));
    text.ok_or_else(|| odd(path))
}

fn odd(path: &Path) -> RumError {
    RumError::new(format!("ssh cannot be told of the path {path:?}")).hint(ODD)
}

/// The command line that ssh gives to the caller's shell; `%p` is the port.
fn proxy_command(
    program: &Path,
    runtime_dir: Option<&Path>,
    name: &str,
) -> Result<String, RumError> {
    let word = |path: &Path| Ok::<_, RumError>(shell_word(printable(path)?));
    let environment = match runtime_dir {
        Some(dir) => format!("env {RUNTIME_DIR}={} ", word(dir)?),
        None => String::new(),
    };
    Ok(format!(
        "{environment}{} ssh-proxy --name {name} %p",
        word(program)?
    ))
}

/// One word for a shell, and nothing that ssh replaces.
fn shell_word(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._+-".contains(c);
    if text.chars().all(plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''").replace('%', "%%"))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::guest::qemu::login::user_name;

    #[test]
    fn the_block_is_whole() {
        let files = Files::in_dir(Path::new("/home/me/.local/state/rum/dev"));
        let proxy = proxy_command(Path::new("/usr/bin/rum"), None, "dev").unwrap();
        let options = Options::of("dev", &proxy, &files, true).unwrap();
        let user = user_name("debian").unwrap();
        insta::assert_snapshot!("block", options.block(Some(&user)));
        let options = Options::of("dev", &proxy, &files, false).unwrap();
        let without = options.block(None);
        assert!(
            !without.contains("Identit") && !without.contains("User "),
            "{without}"
        );
    }

    #[test]
    fn odd_paths_reach_ssh_unchanged_or_not_at_all() {
        let quote = |path: &str| quoted(Path::new(path));
        assert_eq!(quote("/a b/100%").unwrap(), "\"/a b/100%%\"");
        for path in ["/a\"b", "/a\\b", "/a\nb", "/${HOME}"] {
            assert!(quote(path).is_err(), "{path}");
        }
        let (program, dir) = (Path::new("/my rum's/100%"), Path::new("/run/a b"));
        let line = proxy_command(program, Some(dir), "dev").unwrap();
        assert_eq!(
            line,
            r"env RUM_RUNTIME_DIR='/run/a b' '/my rum'\''s/100%%' ssh-proxy --name dev %p"
        );
    }
}
