//! The overlay: receives a guest's writes to its image, so that the image stays unchanged.
//!
//! A qcow2 file with the image as its backing file. It fits only that very image: if the image has
//! changed since, the overlay's content no longer matches it. So the image's path, size and
//! modification time are stored next to the overlay, and written after it: an overlay without them
//! was never used, and is made anew.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use facet::Facet;
use rum_shared::text::clean;
use tokio::process::Command;

use super::state::StateDir;
use crate::guest::GuestError;

/// The program that makes overlays.
const QEMU_IMG: &str = "qemu-img";
/// Most characters of the program's output that are shown.
const MAX_SAID: usize = 300;

/// The image below an overlay, and the guest to which it belongs.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Base {
    image: PathBuf,
    size: u64,
    /// Seconds and nanoseconds since 1970.
    changed: (i64, i64),
    /// cloud-init's instance id: it changes with the overlay.
    instance: String,
}

impl Base {
    fn of(image: &Path, instance: String) -> io::Result<Self> {
        let image = fs::canonicalize(image)?;
        let meta = fs::metadata(&image)?;
        Ok(Self {
            size: meta.len(),
            changed: (meta.mtime(), meta.mtime_nsec()),
            image,
            instance,
        })
    }

    fn write(&self) -> Vec<u8> {
        let (seconds, nanos) = self.changed;
        let mut text = format!("{} {} {seconds} {nanos} ", self.instance, self.size).into_bytes();
        text.extend(self.image.as_os_str().as_bytes());
        text
    }

    fn read(text: &[u8]) -> Option<Self> {
        let mut fields = text.splitn(5, |byte| *byte == b' ');
        let mut field = || std::str::from_utf8(fields.next()?).ok();
        let instance = field()?.to_owned();
        let size = field()?.parse().ok()?;
        let changed = (field()?.parse().ok()?, field()?.parse().ok()?);
        let image = std::ffi::OsString::from_vec(fields.next()?.to_vec()).into();
        Some(Self {
            image,
            size,
            changed,
            instance,
        })
    }
}

/// An existing overlay.
#[derive(Debug)]
pub struct Overlay {
    /// cloud-init's instance id.
    pub instance: String,
    /// Whether it has not been written yet.
    pub fresh: bool,
}

/// Makes the overlay over `image`, or finds the existing one; with `reset` always makes a new one.
///
/// # Errors
/// The image cannot be read or has changed since; `qemu-img` is missing or fails.
pub async fn prepare(image: &Path, state: &StateDir, reset: bool) -> Result<Overlay, GuestError> {
    let fresh = format!("rum-{:016x}", fastrand::u64(..));
    let mut base = Base::of(image, fresh).map_err(|error| unreadable(image, &error))?;
    let known = fs::read(state.base()).ok().filter(|_| !reset);
    if let Some(known) = known.and_then(|text| Base::read(&text))
        && state.overlay().exists()
    {
        base.instance.clone_from(&known.instance);
        if known == base {
            return Ok(Overlay {
                instance: known.instance,
                fresh: false,
            });
        }
        let what = if known.image == base.image {
            format!("{} has changed", base.image.display())
        } else {
            format!("the image was {}", known.image.display())
        };
        return Err(GuestError::vm(format!(
            "{what} since the guest wrote to its overlay, and the two no longer fit together"
        ))
        .with_hint("`rum up --reset` starts anew and discards what the guest wrote"));
    }
    let _ = fs::remove_file(state.base());
    let format = Info::of(&base.image).await?.format;
    let overlay = state.overlay();
    let create: &[&OsStr] = &[
        "create".as_ref(),
        "-q".as_ref(),
        "-f".as_ref(),
        "qcow2".as_ref(),
        "-F".as_ref(),
        format.as_ref(),
        "-b".as_ref(),
        base.image.as_ref(),
        overlay.as_ref(),
    ];
    run(create).await?;
    fs::write(state.base(), base.write()).map_err(|error| {
        let path = state.base();
        GuestError::vm(format!("cannot write {}: {error}", path.display()))
    })?;
    Ok(Overlay {
        instance: base.instance,
        fresh: true,
    })
}

/// Grows the disk of `overlay` to at least `mib` MiB. Growing the file system in it is up to the
/// guest.
///
/// # Errors
/// The disk is larger already; `qemu-img` fails.
pub async fn grow(overlay: &Path, mib: u32) -> Result<(), GuestError> {
    let now = Info::of(overlay).await?.virtual_size;
    if grows(now, mib)? {
        let size = format!("{mib}M");
        let resize: &[&OsStr] = &[
            "resize".as_ref(),
            "-q".as_ref(),
            "-f".as_ref(),
            "qcow2".as_ref(),
            overlay.as_ref(),
            size.as_ref(),
        ];
        run(resize).await?;
    }
    Ok(())
}

/// Whether a disk of `now` bytes has to grow to have `mib` MiB; an error if it is larger.
fn grows(now: u64, mib: u32) -> Result<bool, GuestError> {
    let wanted = u64::from(mib) << 20;
    if now > wanted {
        let now = now.div_ceil(1 << 20);
        let error = GuestError::vm(format!("the disk has {now} MiB already, and only grows"));
        return Err(error.with_hint(format!(
            "write `disk = \"{now}M\"` or more, or leave it out"
        )));
    }
    Ok(now < wanted)
}

/// Whether an overlay over `image` could be made, with a disk of `mib` MiB.
///
/// # Errors
/// As for [`prepare`] and [`grow`].
pub async fn look(image: &Path, mib: Option<u32>) -> Result<(), GuestError> {
    let base = Base::of(image, String::new()).map_err(|error| unreadable(image, &error))?;
    let now = Info::of(&base.image).await?.virtual_size;
    mib.map_or(Ok(false), |mib| grows(now, mib)).map(|_| ())
}

fn unreadable(image: &Path, error: &io::Error) -> GuestError {
    let image = image.display();
    GuestError::vm(format!("cannot read the image {image}: {error}"))
        .with_hint("`image` in [guest] is the path of a disk, relative to rum.toml")
}

/// The output of `qemu-img info`.
#[derive(Debug, Facet)]
#[facet(rename_all = "kebab-case")]
struct Info {
    format: String,
    /// The disk's size in the guest, in bytes.
    virtual_size: u64,
}

impl Info {
    async fn of(disk: &Path) -> Result<Self, GuestError> {
        let info: &[&OsStr] = &["info".as_ref(), "--output=json".as_ref(), disk.as_ref()];
        Self::read(&run(info).await?)
    }

    fn read(info: &[u8]) -> Result<Self, GuestError> {
        let error = |_| {
            GuestError::vm(format!(
                "{QEMU_IMG} does not tell format and size of a disk"
            ))
        };
        facet_json::from_slice(info).map_err(error)
    }
}

async fn run(args: &[&OsStr]) -> Result<Vec<u8>, GuestError> {
    let mut command = Command::new(QEMU_IMG);
    let output = command.args(args).kill_on_drop(true).output().await;
    let output = output.map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => GuestError::vm(format!("{QEMU_IMG} is not installed"))
            .with_hint("install it: `apt install qemu-utils`, or `dnf install qemu-img`"),
        _ => GuestError::vm(format!("cannot run {QEMU_IMG}: {error}")),
    })?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said = clean(said.trim(), MAX_SAID);
    Err(GuestError::vm(said).with_hint("`image` in [guest] is a disk that QEMU can read"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_it_lies_over_is_read_as_written() {
        let base = Base {
            image: "/srv/my images/a\nb.qcow2".into(),
            size: 7,
            changed: (-1, 5),
            instance: "rum-1".to_owned(),
        };
        assert_eq!(Base::read(&base.write()), Some(base));
        for bad in ["", "rum-1", "rum-1 7 8 9", "rum-1 x 8 9 /a"] {
            assert_eq!(Base::read(bad.as_bytes()), None, "{bad:?}");
        }
    }

    #[test]
    fn the_format_is_that_of_the_image_itself() {
        let info = br#"{"virtual-size": 1048576, "filename": "a", "format": "qcow2",
            "actual-size": 200704, "format-specific": {"type": "qcow2", "data": {"compat": "1.1"}},
            "children": [{"name": "file", "info": {"format": "file"}}], "dirty-flag": false}"#;
        let read = Info::read(info).unwrap();
        assert_eq!((&*read.format, read.virtual_size), ("qcow2", 1 << 20));
        Info::read(b"{}").unwrap_err();
    }
}
