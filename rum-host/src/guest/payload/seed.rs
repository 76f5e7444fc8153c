//! The seed disk of a cloud image, which cloud-init's data source NoCloud reads at boot.
//!
//! A vfat volume with the label CIDATA and a few files in its root:
//!
//! | file | what it is |
//! |---|---|
//! | `meta-data` | the instance's id, the host name, the ssh keys |
//! | `user-data` | the user's, untouched, whatever its format |
//! | `vendor-data` | our part: a boot hook that installs the agent |
//! | `rum-agent`, `install-rum-agent` | what it installs, and how |
//!
//! Vendor data is cloud-init's place for the provider of a machine. It avoids merging: of two
//! cloud-configs with a `runcmd` each only one would remain, and user data may be a script, a
//! template or compressed. A boot hook runs early and at each boot, so the agent is in place before
//! services start, and is updated when the host's rum is. cloud-init adds the keys in the meta-data
//! to those in the user data.

use std::io::{self, Cursor, Read, Write as _};
use std::ops::Range;
use std::path::Path;

use fatfs::{FileSystem, FormatVolumeOptions, FsOptions};

use super::{AGENT, INSTALLER, agent, installer};

/// Space for the file system's tables and for partly used clusters.
const SLACK: usize = 512 * 1024;
/// The volume label that NoCloud looks for: 11 bytes.
const LABEL: [u8; 11] = *b"CIDATA     ";
/// The volume's serial number, which identifies a disk made by rum.
const SERIAL: u32 = u32::from_le_bytes(*b"rum\x01");
/// Position of serial number and label in the first sector of FAT12 and FAT16.
const MARK: Range<usize> = 39..54;
/// NoCloud requires user data; this is empty.
const NO_USER_DATA: &str = "#cloud-config\n{}\n";
/// The boot hook that installs the agent.
const VENDOR_DATA: &str = include_str!("boothook.sh");

/// The content of a seed disk, besides the agent.
#[derive(Debug, Clone, Copy)]
pub struct Seed<'a> {
    /// Becomes the host name; `None`: the guest keeps its own.
    pub name: Option<&'a str>,
    /// The instance id: a new one makes cloud-init repeat its once-per-instance steps.
    pub instance: &'a str,
    /// The user data, in any format that cloud-init accepts.
    pub user_data: Option<&'a str>,
    /// Public ssh keys for the image's usual user, each in one line.
    pub ssh_keys: &'a [&'a str],
}

/// Writes the disk to the file `out`.
///
/// # Errors
/// When `out` cannot be written.
pub fn seed_disk(seed: &Seed<'_>, out: &Path) -> io::Result<()> {
    std::fs::write(out, seed_image(seed)?)
}

/// Whether `file` is a disk that [`seed_disk`] wrote.
pub fn is_seed_disk(mut file: impl Read) -> bool {
    let mut head = [0; MARK.end];
    let ours = [&SERIAL.to_le_bytes()[..], &LABEL].concat();
    file.read_exact(&mut head).is_ok() && head[MARK] == ours
}

/// The bytes of the disk.
///
/// # Errors
/// None is known.
pub fn seed_image(seed: &Seed<'_>) -> io::Result<Vec<u8>> {
    let (meta_data, installer) = (meta_data(seed), installer());
    let files: [(&str, &[u8]); 5] = [
        ("meta-data", meta_data.as_bytes()),
        (
            "user-data",
            seed.user_data.unwrap_or(NO_USER_DATA).as_bytes(),
        ),
        ("vendor-data", VENDOR_DATA.as_bytes()),
        (AGENT, agent()),
        (INSTALLER, installer.as_bytes()),
    ];
    volume(&files)
}

/// A vfat volume with `files` in its root.
fn volume(files: &[(&str, &[u8])]) -> io::Result<Vec<u8>> {
    let size: usize = files.iter().map(|(_, content)| content.len()).sum();
    let mut disk = Cursor::new(vec![0; (size + SLACK).next_multiple_of(SLACK)]);
    let options = FormatVolumeOptions::new()
        .volume_label(LABEL)
        .volume_id(SERIAL);
    fatfs::format_volume(&mut disk, options)?;
    let volume = FileSystem::new(&mut disk, FsOptions::new())?;
    for (name, content) in files {
        volume.root_dir().create_file(name)?.write_all(content)?;
    }
    volume.unmount()?;
    Ok(disk.into_inner())
}

/// The file `meta-data`, as YAML.
fn meta_data(seed: &Seed<'_>) -> String {
    let mut text = format!("instance-id: {}\n", quoted(seed.instance));
    if let Some(name) = seed.name {
        // Guest names may contain an underscore, host names may not.
        let host = name.replace('_', "-");
        text += &format!("local-hostname: {}\n", quoted(&host));
    }
    if !seed.ssh_keys.is_empty() {
        text += "public-keys:\n";
    }
    for key in seed.ssh_keys {
        text += &format!("  - {}\n", quoted(key.trim()));
    }
    text
}

/// `text` as a double-quoted YAML string.
fn quoted(text: &str) -> String {
    facet_json::to_string(text).expect("a string always has a JSON form")
}
