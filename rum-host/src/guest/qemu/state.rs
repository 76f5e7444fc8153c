//! The state directory of a VM: the files that outlast it. `BASE/NAME`, mode 0700; BASE is
//!
//! 1. `$RUM_STATE_DIR`, if set;
//! 2. `/var/lib/rum` for root;
//! 3. `$XDG_STATE_HOME/rum`, if that is set;
//! 4. `~/.local/state/rum`.
//!
//! Only the process that holds the guest's runtime directory may write here.

use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use super::login::Files;
use crate::guest::GuestError;
use crate::runtime_dir;

/// A VM's state directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateDir(PathBuf);

impl StateDir {
    /// The directory of the guest `name`; created if it does not exist.
    pub fn open(name: &str) -> Result<Self, GuestError> {
        let set = |key| std::env::var_os(key).filter(|value| !value.is_empty());
        let base = choose_base(
            set("RUM_STATE_DIR").map(PathBuf::from),
            set("XDG_STATE_HOME").map(PathBuf::from),
            set("HOME").map(PathBuf::from),
            rustix::process::geteuid().is_root(),
        );
        let base = base.ok_or_else(|| {
            GuestError::vm("there is no place for the VM's state")
                .with_hint("set RUM_STATE_DIR to a directory of your own")
        })?;
        Self::open_in(&base, name)
    }

    /// As [`StateDir::open`], below `base`.
    pub fn open_in(base: &Path, name: &str) -> Result<Self, GuestError> {
        let failed = |path: &Path, error: std::io::Error| {
            GuestError::vm(format!("cannot create {}: {error}", path.display()))
                .with_hint("RUM_STATE_DIR can name another directory for what VMs leave")
        };
        let base = std::path::absolute(base).map_err(|error| failed(base, error))?;
        let path = base.join(name);
        let mut all = fs::DirBuilder::new();
        all.recursive(true).mode(0o700);
        all.create(&path).map_err(|error| failed(&path, error))?;
        runtime_dir::open_private(&path).map_err(|error| {
            let hint = "make it yours alone (chmod 700), or set RUM_STATE_DIR to another directory";
            GuestError::vm(error.to_string()).with_hint(hint)
        })?;
        Ok(Self(path))
    }

    /// The output of the serial console.
    pub fn console_log(&self) -> PathBuf {
        self.0.join("console.log")
    }

    /// The output of QEMU and its vsock device.
    pub fn qemu_log(&self) -> PathBuf {
        self.0.join("qemu.log")
    }

    /// The kernel's initramfs with the agent in it.
    pub fn initramfs(&self) -> PathBuf {
        self.0.join("initramfs")
    }

    /// The UEFI firmware's variables.
    pub fn uefi_vars(&self) -> PathBuf {
        self.0.join("uefi-vars")
    }

    /// The guest's writes to its image.
    pub fn overlay(&self) -> PathBuf {
        self.0.join("overlay.qcow2")
    }

    /// The identity of the image below the overlay.
    pub fn base(&self) -> PathBuf {
        self.0.join("overlay.base")
    }

    /// The files of `rum ssh`.
    pub fn ssh(&self) -> Files {
        Files::in_dir(&self.0)
    }

    /// The disk that brings the agent to an image.
    pub fn seed(&self) -> PathBuf {
        self.0.join("seed.img")
    }
}

fn choose_base(
    given: Option<PathBuf>,
    xdg: Option<PathBuf>,
    home: Option<PathBuf>,
    root: bool,
) -> Option<PathBuf> {
    let root = root.then(|| PathBuf::from("/var/lib/rum"));
    // The XDG specification ignores relative paths.
    let xdg = xdg.filter(|path| path.is_absolute());
    given
        .or(root)
        .or(xdg.map(|path| path.join("rum")))
        .or(home.map(|path| path.join(".local/state/rum")))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_base_follows_the_rule() {
        let path = |text: &str| Some(PathBuf::from(text));
        let home = || path("/home/me");
        assert_eq!(choose_base(path("s"), path("/x"), home(), true), path("s"));
        assert_eq!(
            choose_base(None, path("/x"), home(), true),
            path("/var/lib/rum")
        );
        assert_eq!(choose_base(None, path("/x"), home(), false), path("/x/rum"));
        let local = path("/home/me/.local/state/rum");
        assert_eq!(choose_base(None, path("x"), home(), false), local);
        assert_eq!(choose_base(None, None, None, false), None);
    }

    #[test]
    fn it_is_ours_alone_or_refused() {
        let base = tempfile::tempdir().unwrap();
        let below = base.path().join("a/b");
        let state = StateDir::open_in(&below, "dev").unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&below), mode(&state.0)), (0o700, 0o700));
        fs::set_permissions(&state.0, fs::Permissions::from_mode(0o755)).unwrap();
        let error = StateDir::open_in(&below, "dev").unwrap_err();
        assert!(error.to_string().contains("0755"), "{error}");
        assert!(error.hint().unwrap().contains("chmod 700"));
    }
}
