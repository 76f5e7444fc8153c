//! The description of a VM: the checked keys of `[guest]`.

use std::path::{Path, PathBuf};

/// A VM as the configuration describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spec {
    /// What to boot from.
    pub boot: Boot,
    /// Processors, from 1 to 255.
    pub cpus: u16,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// Least size of its disk in MiB, for images; `None`: the image's size.
    pub disk_mib: Option<u32>,
    /// Whether to boot by UEFI and not BIOS, for images; `None`: the default of the architecture.
    pub uefi: Option<bool>,
    /// How to run it.
    pub accel: Accel,
    /// More arguments for QEMU; they come last.
    pub args: Vec<String>,
    /// A cloud-init file, for images.
    pub user_data: Option<PathBuf>,
    /// A public key that may log in, for images.
    pub ssh_key: Option<SshKey>,
}

/// What to boot from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Boot {
    /// A disk image, which rum never writes: the guest's writes go to an overlay.
    Image(PathBuf),
    /// A Linux kernel.
    Kernel {
        /// The kernel.
        kernel: PathBuf,
        /// Its initramfs. None: it has one built in.
        initrd: Option<PathBuf>,
        /// Text added to the kernel's command line.
        append: String,
    },
}

impl Boot {
    /// The image or the kernel.
    pub fn file(&self) -> &Path {
        match self {
            Self::Image(image) => image,
            Self::Kernel { kernel, .. } => kernel,
        }
    }
}

/// How to run it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accel {
    /// By KVM if that works, else by TCG.
    Auto,
    /// By the processor.
    Kvm,
    /// By translation, which works everywhere and is slow.
    Tcg,
}

/// Whether `text` is one public key without options before it. As in authorized_keys(5), the key
/// type comes first.
pub fn is_public_key(text: &str) -> bool {
    let kinds = ["ssh-", "ecdsa-", "sk-ssh-", "sk-ecdsa-"];
    let named = kinds.iter().any(|kind| text.starts_with(kind));
    named && text.contains(' ') && !text.contains(char::is_control)
}

/// A public ssh key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SshKey {
    /// The key itself.
    Text(String),
    /// Its file.
    File(PathBuf),
}

impl Spec {
    /// Resolves relative paths against `dir`, and those that begin with `~/` against `home`.
    pub fn resolve(&mut self, dir: &Path, home: Option<&Path>) {
        let resolve = |path: &mut PathBuf| match (path.strip_prefix("~"), home) {
            (Ok(rest), Some(home)) => *path = home.join(rest),
            _ => *path = dir.join(&*path),
        };
        match &mut self.boot {
            Boot::Image(image) => resolve(image),
            Boot::Kernel { kernel, initrd, .. } => {
                resolve(kernel);
                initrd.iter_mut().for_each(resolve);
            }
        }
        self.user_data.iter_mut().for_each(resolve);
        if let Some(SshKey::File(file)) = &mut self.ssh_key {
            resolve(file);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_start_at_the_file_that_names_them() {
        let mut spec = Spec {
            boot: Boot::Kernel {
                kernel: "/boot/vmlinuz".into(),
                initrd: Some("initrd".into()),
                append: String::new(),
            },
            cpus: 1,
            memory_mib: 64,
            disk_mib: None,
            uefi: None,
            accel: Accel::Auto,
            args: Vec::new(),
            user_data: Some("a/b".into()),
            ssh_key: Some(SshKey::File("~/.ssh/id.pub".into())),
        };
        spec.resolve(Path::new("/vm"), Some(Path::new("/home/me")));
        let Boot::Kernel { kernel, initrd, .. } = &spec.boot else {
            panic!("{spec:?}");
        };
        assert_eq!(kernel, Path::new("/boot/vmlinuz"));
        assert_eq!(initrd.as_deref(), Some(Path::new("/vm/initrd")));
        assert_eq!(spec.user_data.as_deref(), Some(Path::new("/vm/a/b")));
        let key = SshKey::File("/home/me/.ssh/id.pub".into());
        assert_eq!(spec.ssh_key, Some(key));
    }
}
