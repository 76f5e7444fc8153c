//! The files that a user gives for an image: cloud-init's user data, a public key.

use std::fs;
use std::io;
use std::path::Path;

use super::spec::is_public_key;
use crate::guest::GuestError;

/// Largest user-data or key that is read, in bytes: what fits into a seed disk many times over.
const MAX_FILE: u64 = 1 << 20;

/// The public key in `path`.
///
/// # Errors
/// It cannot be read, or holds something else.
pub fn read_key(path: &Path) -> Result<String, GuestError> {
    let text = read_text(path)?;
    let key = text.trim();
    if is_public_key(key) {
        return Ok(key.to_owned());
    }
    let shown = path.display();
    Err(if key.contains("PRIVATE KEY") {
        GuestError::vm(format!(
            "{shown} is a private key, which must not leave this machine"
        ))
        .with_hint(format!("name the public one: {shown}.pub"))
    } else {
        GuestError::vm(format!("{shown} holds no public key on one line")).with_hint(
            "it is to be a file as ssh-keygen(1) writes it, such as ~/.ssh/id_ed25519.pub",
        )
    })
}

/// The text in `path`.
///
/// # Errors
/// It cannot be read, or is too long.
pub fn read_text(path: &Path) -> Result<String, GuestError> {
    let read = || {
        let length = fs::metadata(path)?.len();
        match length {
            0..=MAX_FILE => fs::read_to_string(path),
            _ => Err(io::Error::other("it is larger than 1 MiB")),
        }
    };
    read().map_err(|error| {
        GuestError::vm(format!("cannot read {}: {error}", path.display()))
            .with_hint("cloud-init's user data and ssh keys are text files; in rum.toml their paths start at its directory")
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_private_key_stays_where_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("id");
        let key = |text: &str| {
            fs::write(&file, text).unwrap();
            read_key(&file)
        };
        let public = "ssh-ed25519 AAAAC3Nza me@here";
        assert_eq!(key(&format!("{public}\n")).unwrap(), public);
        let private = "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1r\n";
        let error = key(private).unwrap_err();
        assert!(error.to_string().contains("is a private key"), "{error}");
        assert!(error.hint().unwrap().contains("id.pub"));
        for other in ["", "AAAAC3Nza", "ssh-rsa AAAA a\nssh-rsa AAAA b\n"] {
            let error = key(other).unwrap_err();
            assert!(error.to_string().contains("no public key"), "{error}");
        }
    }
}
