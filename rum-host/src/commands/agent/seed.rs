//! `rum agent seed`: a seed disk like those of rum's own VMs, for other VMs.
//!
//! Invariant: the same arguments make the same bytes. So a disk that is written again, with the
//! agent of a newer rum, is the same instance to cloud-init; other user data or another key make a
//! new instance.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::Path;

use crate::cli::agent::SeedArgs;
use crate::error::RumError;
use crate::guest::payload;
use crate::guest::payload::Seed;
use crate::guest::qemu::{read_key, read_text};

/// Writes the disk.
///
/// # Errors
/// An input cannot be read, or the disk cannot be written.
pub fn run(args: &SeedArgs) -> Result<(), RumError> {
    let user_data = args.user_data.as_deref().map(read_text).transpose()?;
    let key = args.ssh_key.as_deref().map(read_key).transpose()?;
    let (user_data, key) = (user_data.as_deref(), key.as_deref());
    let instance = instance([args.name.as_deref(), user_data, key]);
    let seed = Seed {
        name: args.name.as_deref(),
        instance: &instance,
        user_data,
        ssh_keys: key.as_slice(),
    };
    let path = &args.file;
    let failed = |error| {
        RumError::new(format!("cannot write {}", path.display()))
            .caused_by(error)
            .hint("name a file that you may write")
    };
    let image = payload::seed_image(&seed).map_err(failed)?;
    let mut file = match File::create_new(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => there(path, args.force)?,
        made => made.map_err(failed)?,
    };
    // In place, to keep the owner and label that libvirt gave the file.
    let length = u64::try_from(image.len()).unwrap_or(u64::MAX);
    file.write_all(&image)
        .and_then(|()| {
            if file.metadata()?.is_file() {
                file.set_len(length)
            } else {
                Ok(())
            }
        })
        .map_err(failed)?;
    super::super::print(&format!(
        "Wrote {shown}\nnext: give the VM {shown} as one more disk, and a vsock device\n",
        shown = path.display()
    ))
}

/// Opens what is at `path` to write over it.
fn there(path: &Path, force: bool) -> Result<File, RumError> {
    let shown = path.display();
    let failed = |error| RumError::new(format!("cannot open {shown}")).caused_by(error);
    if !force && !File::open(path).is_ok_and(payload::is_seed_disk) {
        return Err(RumError::new(format!(
            "{shown} is there already, and is no seed disk of rum's"
        ))
        .hint("name another file, or write over it with `--force`"));
    }
    File::options().write(true).open(path).map_err(failed)
}

/// An instance id that differs if any input differs. FNV-1a with 64 bits suffices for the inputs
/// that one user gives one VM.
fn instance(parts: [Option<&str>; 3]) -> String {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for part in parts {
        // The separator occurs in no text; a missing text differs from an empty one.
        let bytes = part.map_or(&[0xfe_u8][..], str::as_bytes);
        for byte in bytes.iter().chain(&[0xff]) {
            hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
    format!("rum-{hash:016x}")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn another_instance_is_one_that_was_given_something_else() {
        let given = [
            [None, None, None],
            [Some(""), None, None],
            [None, Some(""), None],
            [Some("ab"), Some("c"), None],
            [Some("a"), Some("bc"), None],
            [Some("a"), Some("bc"), Some("d")],
        ];
        let ids: std::collections::BTreeSet<_> = given.into_iter().map(instance).collect();
        assert_eq!(ids.len(), given.len());
        assert_eq!(instance(given[3]), instance(given[3]));
    }

    #[test]
    fn only_disks_of_ours_are_written_over() {
        let dir = tempfile::tempdir().unwrap();
        let args = |force, name: &str| SeedArgs {
            file: dir.path().join("seed.img"),
            name: Some(name.to_owned()),
            ssh_key: None,
            user_data: None,
            force,
        };
        let file = dir.path().join("seed.img");
        std::fs::write(&file, "a disk of somebody else's").unwrap();
        let error = run(&args(false, "a")).unwrap_err();
        assert!(
            error.one_line_hint().unwrap().contains("--force"),
            "{error}"
        );
        assert_eq!(std::fs::read(&file).unwrap(), b"a disk of somebody else's");
        run(&args(true, "a")).unwrap();
        let first = std::fs::read(&file).unwrap();
        run(&args(false, "a")).unwrap();
        assert!(std::fs::read(&file).unwrap() == first);
        run(&args(false, "b")).unwrap();
        assert!(std::fs::read(&file).unwrap() != first);
    }
}
