//! Files of `rum ssh` in a guest's state directory (0700): rum's own key pair, the host keys of the
//! guest's sshd, and the name of the user for logins.

use std::fs;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::process::Command;

use crate::guest::qemu::is_public_key;

/// Bytes that are read of a file of ours: no key or name is longer.
const MAX_FILE: u64 = 4096;

/// Longest name of a user, in bytes (useradd(8)).
const MAX_USER: usize = 32;

/// The name of a user in a guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User(String);

impl User {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A user's name: letters, digits, `.`, `_` and `-`, which is not first.
///
/// # Errors
/// What it has to be.
pub fn user_name(text: &str) -> Result<User, String> {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    let fits = (1..=MAX_USER).contains(&text.len());
    if fits && !text.starts_with('-') && text.bytes().all(good) {
        Ok(User(text.to_owned()))
    } else {
        Err(format!(
            "a user's name has up to {MAX_USER} letters, digits, `.`, `_` and `-`"
        ))
    }
}

/// Paths of these files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Files {
    /// The private key; the public one is beside it.
    pub key: PathBuf,
    /// As known_hosts in `~/.ssh`.
    pub known_hosts: PathBuf,
    user: PathBuf,
}

impl Files {
    /// Those in the directory `dir`.
    pub fn in_dir(dir: &Path) -> Self {
        Self {
            key: dir.join("id_ed25519"),
            known_hosts: dir.join("known_hosts"),
            user: dir.join("ssh-user"),
        }
    }

    fn public(&self) -> PathBuf {
        self.key.with_extension("pub")
    }

    /// Removes what belongs to an earlier disk of the guest: its host keys and its user.
    pub fn forget(&self) {
        for file in [&self.known_hosts, &self.user] {
            // A missing file is fine. ssh refuses what stays, and names the file.
            let _ = fs::remove_file(file);
        }
    }

    /// Whether there is a key pair.
    pub fn has_key(&self) -> bool {
        self.public_key().is_some()
    }

    /// The public key of a pair, if both halves are there.
    fn public_key(&self) -> Option<String> {
        if !self.key.is_file() {
            return None;
        }
        let key = read(&self.public()).ok()?;
        let key = key.trim();
        is_public_key(key).then(|| key.to_owned())
    }

    /// The public key of the pair, which ssh-keygen(1) makes if there is none.
    ///
    /// # Errors
    /// Why there is none, in words.
    pub async fn make_key(&self, guest: &str) -> Result<String, String> {
        if let Some(key) = self.public_key() {
            return Ok(key);
        }
        for half in [&self.key, &self.public()] {
            // ssh-keygen would ask whether to overwrite it, and reports a file that cannot be
            // removed.
            let _ = fs::remove_file(half);
        }
        let mut keygen = Command::new("ssh-keygen");
        keygen.args(["-q", "-t", "ed25519", "-N", "", "-C"]);
        keygen.arg(format!("rum-{guest}")).arg("-f").arg(&self.key);
        let made = keygen
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output()
            .await;
        let made = made.map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => "there is no ssh-keygen (install openssh-client)".to_owned(),
            _ => format!("cannot run ssh-keygen: {error}"),
        })?;
        self.public_key().ok_or_else(|| {
            let said = String::from_utf8_lossy(&made.stderr);
            format!("ssh-keygen made none ({}): {}", made.status, said.trim())
        })
    }

    /// The user that the guest reported before.
    pub fn user(&self) -> Option<User> {
        user_name(read(&self.user).ok()?.trim()).ok()
    }

    /// Remembers that user.
    pub fn remember(&self, user: &User) {
        if let Err(error) = fs::write(&self.user, format!("{}\n", user.as_str())) {
            // The guest is asked again next time.
            tracing::debug!(%error, "cannot remember the guest's user");
        }
    }
}

fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    fs::File::open(path)?
        .take(MAX_FILE)
        .read_to_string(&mut text)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[tokio::test]
    async fn a_key_is_made_once_and_anew_if_half_of_it_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::in_dir(dir.path());
        assert!(!files.has_key());
        let first = files.make_key("dev").await.unwrap();
        assert!(
            first.starts_with("ssh-ed25519 ") && first.ends_with(" rum-dev"),
            "{first}"
        );
        assert!(files.has_key());
        let mode = fs::metadata(&files.key).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(files.make_key("dev").await.unwrap(), first);
        fs::remove_file(&files.key).unwrap();
        assert!(!files.has_key());
        let second = files.make_key("dev").await.unwrap();
        assert_ne!(second, first);
        fs::write(files.public(), "no key\n").unwrap();
        assert_ne!(files.make_key("dev").await.unwrap(), second);
    }

    #[test]
    fn a_new_disk_has_another_sshd() {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::in_dir(dir.path());
        files.remember(&user_name("debian").unwrap());
        assert_eq!(files.user().unwrap().as_str(), "debian");
        fs::write(&files.known_hosts, "rum-dev ssh-ed25519 AAAA\n").unwrap();
        files.forget();
        assert!(files.user().is_none() && !files.known_hosts.exists());
        fs::write(dir.path().join("ssh-user"), "-oProxyCommand=x\n").unwrap();
        assert!(files.user().is_none());
    }
}
