//! The seed disk of a cloud image: what cloud-init's data source NoCloud reads at boot.
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
//! Vendor data is what cloud-init has for those who make a machine for others. It spares us to
//! merge: two cloud-configs with a `runcmd` each would leave one of them, and user data may be
//! a script, a template or compressed. A hook runs early and at each boot, so the agent is in
//! place before services start, and is replaced when the host's rum is. Keys in the meta-data
//! are added to those that the user data has.

use std::io::{self, Cursor, Read, Write as _};
use std::ops::Range;
use std::path::Path;

use fatfs::{FileSystem, FormatVolumeOptions, FsOptions};

use super::{AGENT, INSTALLER, agent, installer};

/// Space for the file system's own tables and for what each file leaves unused.
const SLACK: usize = 512 * 1024;
/// The label that NoCloud looks for, as the volume has it: 11 bytes.
const LABEL: [u8; 11] = *b"CIDATA     ";
/// The volume's serial number, by which a disk of ours is known.
const SERIAL: u32 = u32::from_le_bytes(*b"rum\x01");
/// Where serial number and label are in the first sector, with the tables of this size (FAT12, FAT16).
const MARK: Range<usize> = 39..54;
/// NoCloud wants user data; this says nothing.
const NO_USER_DATA: &str = "#cloud-config\n{}\n";
/// The boot hook that installs the agent.
const VENDOR_DATA: &str = include_str!("boothook.sh");

/// What is in a seed disk beside the agent.
#[derive(Debug, Clone, Copy)]
pub struct Seed<'a> {
    /// Becomes the host name; `None`: the guest's own stays.
    pub name: Option<&'a str>,
    /// The instance's id: cloud-init does what it does once whenever this is another one.
    pub instance: &'a str,
    /// The user's own user data, in any format that cloud-init takes.
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
        // Our names may have an underscore, host names may not.
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

/// A YAML string in double quotes, whatever is in it.
fn quoted(text: &str) -> String {
    facet_json::to_string(text).expect("a string always has a JSON form")
}
