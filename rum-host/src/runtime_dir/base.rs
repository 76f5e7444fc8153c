//! The base directory of this user's guests, and the directories that a guest must not see.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::{FILES, check_name, open_private};

/// The base directory of this user's guests; see the parent module for the rule.
pub fn base() -> PathBuf {
    let set = |key| std::env::var_os(key).filter(|value| !value.is_empty());
    let uid = rustix::process::geteuid().as_raw();
    choose_base(
        set("RUM_RUNTIME_DIR").map(PathBuf::from),
        set("XDG_RUNTIME_DIR").map(PathBuf::from),
        uid,
        |path| fs::symlink_metadata(path).is_ok_and(|meta| meta.is_dir() && meta.uid() == uid),
    )
}

/// A file in the place of a base directory, as seen from inside a guest. It contains the guest's
/// name. Its own name is not valid for a guest.
pub(crate) const INSIDE: &str = ".inside";

/// The rum guest that this process runs in, if the guest hides this base directory.
pub(crate) fn inside() -> Option<String> {
    let name = fs::read_to_string(base().join(INSIDE)).ok()?;
    check_name(&name).is_ok().then_some(name)
}

/// The directories that the guest with the runtime directory `path` must not see: every existing
/// base directory that this environment of the user `uid` can name. In a base directory with other
/// contents, only the guests' directories are hidden.
pub(crate) fn to_hide(path: &Path, uid: u32) -> Vec<PathBuf> {
    let set = |key| std::env::var_os(key).filter(|value| !value.is_empty());
    let rum = |dir: PathBuf| dir.join("rum");
    let mut named = vec![
        rum(PathBuf::from(format!("/run/user/{uid}"))),
        PathBuf::from(format!("/tmp/rum-{uid}")),
    ];
    named.extend(set("XDG_RUNTIME_DIR").map(|dir| rum(dir.into())));
    if uid == 0 {
        named.push("/run/rum".into());
    }
    let chosen = set("RUM_RUNTIME_DIR").map(PathBuf::from);
    let chosen = chosen.into_iter().chain(path.parent().map(Path::to_owned));
    let mut hidden = named;
    for base in chosen {
        let (guests, others) = entries(&base);
        if !others {
            hidden.push(base)
        } else {
            hidden.extend(guests)
        }
    }
    hidden.retain(|dir| dir.is_absolute() && open_private(dir).is_ok());
    hidden.sort();
    hidden.dedup();
    hidden
}

/// The guests' directories in `base`, and whether it has other contents.
fn entries(base: &Path) -> (Vec<PathBuf>, bool) {
    let names = |dir: &Path| {
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        entries.map(|entry| entry.file_name())
    };
    let is_guest = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str());
        let known = |file: std::ffi::OsString| FILES.iter().any(|known| file == **known);
        name.is_some_and(|name| check_name(name).is_ok()) && path.is_dir() && names(path).all(known)
    };
    let (guests, others): (Vec<_>, Vec<_>) =
        names(base).map(|name| base.join(name)).partition(is_guest);
    (guests, !others.is_empty())
}

/// Why `XDG_RUNTIME_DIR` is set but not used as this user's base directory.
pub fn passed_over() -> Option<String> {
    let set = |key| std::env::var_os(key).filter(|value| !value.is_empty());
    let xdg = PathBuf::from(set("XDG_RUNTIME_DIR")?);
    let uid = rustix::process::geteuid().as_raw();
    if uid == 0 || set("RUM_RUNTIME_DIR").is_some() || base().starts_with(&xdg) {
        return None;
    }
    let why = match fs::symlink_metadata(&xdg) {
        _ if !xdg.is_absolute() => "is not an absolute path".to_owned(),
        Err(error) => format!("cannot be used: {error}"),
        Ok(meta) if !meta.is_dir() => "is not a directory".to_owned(),
        Ok(meta) => format!("belongs to another user (uid {})", meta.uid()),
    };
    let (xdg, base) = (xdg.display(), base());
    let base = base.display();
    Some(format!(
        "XDG_RUNTIME_DIR {xdg} {why}; rum's sockets are in {base}"
    ))
}

/// The rule of the parent module's documentation. `ours` tests whether a directory exists and
/// belongs to this user.
pub(super) fn choose_base(
    given: Option<PathBuf>,
    xdg: Option<PathBuf>,
    uid: u32,
    ours: impl Fn(&Path) -> bool,
) -> PathBuf {
    if let Some(given) = given {
        return given;
    }
    if uid == 0 {
        return PathBuf::from("/run/rum");
    }
    xdg.into_iter()
        .chain([PathBuf::from(format!("/run/user/{uid}"))])
        .find(|path| path.is_absolute() && ours(path))
        .map_or_else(
            || PathBuf::from(format!("/tmp/rum-{uid}")),
            |path| path.join("rum"),
        )
}
