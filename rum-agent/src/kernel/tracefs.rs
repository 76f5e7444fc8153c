//! Step 1: where the tracepoint `sock:inet_sock_set_state` is and how its samples are laid out.
//!
//! tracefs has a file `format` for each event, with the event's number and the place of every
//! field; kernels differ, so nothing is assumed. The file is looked for where tracefs is usually
//! mounted. Where it is mounted nowhere, a detached mount of our own is made (fsopen(2),
//! fsmount(2)) and dropped with its descriptor: no path of the machine changes.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};

/// Where tracefs is usually mounted, new and old.
const MOUNTS: [&str; 2] = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];
/// The event below a mount.
const FORMAT: &str = "events/sock/inet_sock_set_state/format";
/// Largest `format` file that is read; the real one has 3 KiB.
const MAX_FORMAT: u64 = 64 * 1024;
/// Largest offset of a field that is believed.
const MAX_OFFSET: usize = 4096;

/// What is needed to read samples of the event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Event {
    /// The event's number, for perf_event_open(2).
    pub id: u64,
    /// Offset of `oldstate`, 4 bytes.
    pub old_state: usize,
    /// Offset of `newstate`, 4 bytes.
    pub new_state: usize,
    /// Offset of `sport`, 2 bytes in host order.
    pub sport: usize,
    /// Size of `protocol` in bytes: one before Linux 5.6, where 262 (MPTCP) does not fit.
    pub protocol_size: usize,
}

/// What is wrong with a `format` file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// No line `ID: number`.
    #[error("no line `ID: NUMBER`")]
    Id,
    /// A field is missing or has another size.
    #[error("no usable field `{0}`")]
    Field(&'static str),
}

/// Why the event's description cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum TracefsError {
    /// tracefs cannot be reached.
    #[error("tracefs cannot be read ({tried})")]
    NoTracefs {
        /// What each place answered.
        tried: String,
    },
    /// The kernel is too old or was built without it.
    #[error("the kernel has no event sock:inet_sock_set_state")]
    NoEvent,
    /// The description cannot be used.
    #[error("the description of sock:inet_sock_set_state cannot be used")]
    Format(#[from] FormatError),
}

impl TracefsError {
    /// What would help, for a `hint:` line.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::NoTracefs { .. } => {
                Some("mount tracefs at /sys/kernel/tracing, or give the agent CAP_SYS_ADMIN")
            }
            Self::NoEvent => Some("use Linux 4.16 or newer, built with CONFIG_EVENT_TRACING"),
            Self::Format(_) => None,
        }
    }
}

/// Reads the text of a `format` file (Documentation/trace/events.rst).
///
/// # Errors
/// [`FormatError`] when something needed is missing or unusable.
pub fn parse_format(text: &str) -> Result<Event, FormatError> {
    let id = text
        .lines()
        .find_map(|line| line.strip_prefix("ID:"))
        .and_then(|id| id.trim().parse().ok())
        .ok_or(FormatError::Id)?;
    // The offset of a field and its size, which must be one of `sizes`.
    let field = |name: &'static str, sizes: &[usize]| {
        text.lines()
            .filter_map(parse_field)
            .find(|(found, ..)| *found == name)
            .filter(|(_, offset, size)| *offset <= MAX_OFFSET && sizes.contains(size))
            .map(|(_, offset, size)| (offset, size))
            .ok_or(FormatError::Field(name))
    };
    Ok(Event {
        id,
        old_state: field("oldstate", &[4])?.0,
        new_state: field("newstate", &[4])?.0,
        sport: field("sport", &[2])?.0,
        protocol_size: field("protocol", &[1, 2])?.1,
    })
}

/// Name, offset and size of `\tfield:TYPE NAME;\toffset:N;\tsize:N;\tsigned:N;`.
fn parse_field(line: &str) -> Option<(&str, usize, usize)> {
    let mut parts = line.split(';').map(str::trim);
    let name = parts.next()?.strip_prefix("field:")?.rsplit(' ').next()?;
    let offset = parts.next()?.strip_prefix("offset:")?.parse().ok()?;
    let size = parts.next()?.strip_prefix("size:")?.parse().ok()?;
    Some((name, offset, size))
}

/// Finds the event: at the usual places, then in a detached mount.
///
/// # Errors
/// [`TracefsError::NoTracefs`] with what each place answered, [`TracefsError::NoEvent`]
/// when tracefs is there without the event, [`TracefsError::Format`].
pub fn find() -> Result<Event, TracefsError> {
    let mut tried = String::new();
    let mut note = |place: &str, error: io::Error| {
        let separator = if tried.is_empty() { "" } else { "; " };
        // Writing to a String cannot fail.
        let _ = write!(tried, "{separator}{place}: {error}");
    };
    for mount in MOUNTS {
        match File::open(Path::new(mount).join(FORMAT)).and_then(read) {
            Ok(text) => return Ok(parse_format(&text)?),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if Path::new(mount).join("events").exists() {
                    return Err(TracefsError::NoEvent);
                }
                note(mount, error);
            }
            Err(error) => note(mount, error),
        }
    }
    match read_detached() {
        Ok(text) => Ok(parse_format(&text)?),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(TracefsError::NoEvent),
        Err(error) => {
            note("a mount of our own", error);
            Err(TracefsError::NoTracefs { tried })
        }
    }
}

/// The `format` file through a mount that has no path.
fn read_detached() -> io::Result<String> {
    let context = fsopen("tracefs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(&context)?;
    let mount = fsmount(
        &context,
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::MOUNT_ATTR_RDONLY
            | MountAttrFlags::MOUNT_ATTR_NOSUID
            | MountAttrFlags::MOUNT_ATTR_NODEV
            | MountAttrFlags::MOUNT_ATTR_NOEXEC,
    )?;
    let file = rustix::fs::openat(
        &mount,
        FORMAT,
        OFlags::RDONLY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    read(file.into())
}

fn read(file: File) -> io::Result<String> {
    let mut text = String::new();
    file.take(MAX_FORMAT).read_to_string(&mut text)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use proptest::prelude::*;

    const FORMAT: &str = include_str!("../../../fixtures/tracefs/format-inet_sock_set_state");

    #[test]
    fn a_real_format_is_read() {
        let event = parse_format(FORMAT).unwrap();
        assert_eq!(
            event,
            Event {
                id: 2287,
                old_state: 16,
                new_state: 20,
                sport: 24,
                protocol_size: 2,
            }
        );
    }

    #[test]
    fn what_is_missing_is_named() {
        for (from, to, error) in [
            ("ID: 2287", "ID: many", FormatError::Id),
            ("ID:", "Id:", FormatError::Id),
            ("oldstate;", "elder;", FormatError::Field("oldstate")),
            (
                "newstate;\toffset:20;\tsize:4",
                "newstate;\toffset:20;\tsize:8",
                FormatError::Field("newstate"),
            ),
            (
                "sport;\toffset:24",
                "sport;\toffset:x",
                FormatError::Field("sport"),
            ),
            (
                "sport;\toffset:24",
                "sport;\toffset:99999",
                FormatError::Field("sport"),
            ),
            ("protocol;", "protocol", FormatError::Field("protocol")),
        ] {
            let text = FORMAT.replace(from, to);
            assert_ne!(text, FORMAT, "{from} is not in the fixture");
            assert_eq!(parse_format(&text), Err(error));
        }
        assert_eq!(parse_format(""), Err(FormatError::Id));
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "(\tfield:|offset:|size:|ID: |[a-z0-9;: \n]){0,40}") {
            let _ = parse_format(&text);
        }
    }
}
