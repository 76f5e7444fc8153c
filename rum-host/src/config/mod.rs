//! The configuration: `rum.toml` with the command line's overrides, as [`Settings`].
//!
//! A file is read in three passes, since facet-toml alone accepts too much (a port 70000 becomes
//! 4464, a misspelt key is ignored, the second of two equal keys wins):
//!
//! 1. the `toml` crate parses it strictly: `syntax`, duplicate keys, and all positions;
//! 2. `shape` compares that with the reflection of the raw structs: unknown keys, missing keys
//!    and wrong types; then facet-toml fills the structs of `raw`;
//! 3. `check` and `auto` check the values, `clash` finds collisions.
//!
//! Invariants: a [`ConfigError`] names line, column and what to write instead, and reports the
//! problems of one pass together; no text, however strange, makes this panic or take long.

mod auto;
mod check;
mod clash;
mod destination;
mod guest;
mod libvirt;
mod raw;
mod shape;
mod syntax;
pub mod values;

#[cfg(test)]
mod tests;

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use rum_shared::range::PortRanges;
use toml::de::DeTable;

pub use crate::error::located::{ConfigError, Located, MAX_PROBLEMS, Problem};
pub use auto::MAX_RULES;
pub use check::MAX_FORWARDS;
pub use raw::{AutoPortsConfig, Config, GuestConfig, PortConfig, PortOrAddress, RuleConfig};

use crate::error::RumError;
use crate::guest::GuestKind;
use crate::plan::{Binds, Policy};

/// The file that is read when none is named.
pub const FILE_NAME: &str = "rum.toml";
/// Largest file that is read, in bytes; a hand-written one has a few hundred.
pub const MAX_FILE: u64 = 1 << 20;
/// The guest's name when none is given.
pub const DEFAULT_NAME: &str = "default";
/// The host addresses of forwards when none are given.
pub const DEFAULT_BIND: &str = "localhost";

/// A checked configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Identifies the guest: 1 to 64 of `[A-Za-z0-9._-]`, not starting with a dot.
    pub name: String,
    /// The guest.
    pub guest: GuestKind,
    /// The forwards. No two static ones collide; the range of the automatic ones holds no host port
    /// of a static one.
    pub policy: Policy,
    /// The file this was read from; `None` if there was none.
    pub origin: Option<PathBuf>,
}

impl Settings {
    /// Adds the file of the settings: relative paths start at its directory.
    fn read_from(mut self, file: &Path) -> Self {
        self.guest.resolve(file.parent().unwrap_or(Path::new("")));
        self.origin = Some(file.to_owned());
        self
    }
}

/// The overrides of the command line.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Overrides {
    /// `--range`: replaces `[auto_ports] range`.
    pub ranges: Option<PortRanges>,
    /// `--bind`: replaces `[auto_ports] bind`.
    pub bind: Option<Binds>,
    /// `--name`: replaces `name`.
    pub name: Option<String>,
    /// `--root`: as `[guest] root = true`.
    pub root: bool,
    /// `--privileged`: as `[guest] privileged = true`.
    pub privileged: bool,
}

/// Reads the configuration: the file at `path`, else `rum.toml` in the current directory, else
/// the overrides alone.
///
/// # Errors
/// The file cannot be read or is wrong; there is neither file nor range; nothing is forwarded.
pub fn load(path: Option<&Path>, overrides: &Overrides) -> Result<Settings, RumError> {
    let file = path.unwrap_or(Path::new(FILE_NAME));
    let shown = file.display().to_string();
    match read(file) {
        Ok(text) => usable(Some(file), &text, &shown, overrides),
        Err(error) if error.kind() == io::ErrorKind::NotFound => match (path, &overrides.ranges) {
            (None, Some(_)) => usable(None, "", &shown, overrides),
            (Some(_), Some(_)) => Err(RumError::usage(format!("there is no {shown}"))
                .hint("leave out `-c`: with `--range` no file is needed")),
            (_, None) => Err(missing(&shown)),
        },
        Err(error) => Err(unreadable(&shown, &error)),
    }
}

/// The content of a file, or why it cannot be read: shows whether the file has changed.
pub type Content = Result<String, String>;

/// Reads `file` again, while the earlier configuration is in force.
pub fn load_again(file: &Path, overrides: &Overrides) -> (Content, Result<Settings, RumError>) {
    let shown = file.display().to_string();
    match read(file) {
        Ok(text) => {
            let settings = usable(Some(file), &text, &shown, overrides);
            (Ok(text), settings)
        }
        Err(error) => {
            let content = Err(error.to_string());
            let error = match error.kind() {
                io::ErrorKind::NotFound => RumError::usage(format!("{shown} is gone"))
                    .hint("put it back, or start `rum up` anew with `-c FILE`"),
                _ => unreadable(&shown, &error),
            };
            (content, Err(error))
        }
    }
}

/// The settings of `text`, if they forward something.
fn usable(
    origin: Option<&Path>,
    text: &str,
    shown: &str,
    overrides: &Overrides,
) -> Result<Settings, RumError> {
    let settings = parse_with(text, shown, overrides)?;
    let settings = match origin {
        Some(file) => settings.read_from(file),
        None => settings,
    };
    if settings.policy.hull().is_none() {
        return Err(nothing(shown));
    }
    if settings.policy.auto.is_none() && overrides.bind.is_some() {
        return Err(
            RumError::usage("`--bind` is for automatic forwards, and there are none")
                .hint("add `--range 5000-6000`, or write `bind` in [[ports]]"),
        );
    }
    Ok(settings)
}

/// The settings of the file at `path`, or else of the `rum.toml` in the current directory; `None`
/// without either. A file that forwards nothing is accepted here.
///
/// # Errors
/// There is no file at `path`; the file cannot be read or is wrong.
pub fn current(path: Option<&Path>) -> Result<Option<Settings>, RumError> {
    let file = path.unwrap_or(Path::new(FILE_NAME));
    match settings_in(file)? {
        None if path.is_some() => Err(RumError::usage(format!("there is no {}", file.display()))
            .hint("leave out `-c`, or name a file that is there")),
        settings => Ok(settings),
    }
}

/// The name of the guest that the current directory means: the one of its `rum.toml`; `None`
/// without such a file.
///
/// # Errors
/// There is a `rum.toml` which cannot be read or is wrong.
pub fn current_name() -> Result<Option<String>, RumError> {
    Ok(settings_in(Path::new(FILE_NAME))?.map(|settings| settings.name))
}

fn settings_in(file: &Path) -> Result<Option<Settings>, RumError> {
    let shown = file.display().to_string();
    match read(file) {
        Ok(text) => Ok(Some(parse(&text, &shown)?.read_from(file))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(unreadable(&shown, &error)),
    }
}

/// Reads `text`, which errors call `name`. A text that forwards nothing is accepted here.
///
/// # Errors
/// Everything that is wrong with it, as far as one pass sees.
pub fn parse(text: &str, name: &str) -> Result<Settings, ConfigError> {
    parse_with(text, name, &Overrides::default())
}

/// Like [`parse`], with `overrides` over what the text says.
///
/// # Errors
/// As [`parse`]; also when the two do not go together.
pub fn parse_with(text: &str, name: &str, overrides: &Overrides) -> Result<Settings, ConfigError> {
    // Windows editors write a byte order mark; positions are counted from after it.
    let body = text.strip_prefix('\u{feff}').unwrap_or(text);
    let failed = |problems| ConfigError::new(name, body, problems);
    let document =
        DeTable::parse(body).map_err(|error| failed(vec![syntax::problem(body, &error)]))?;
    let problems = shape::problems::<Config>(document.get_ref());
    if !problems.is_empty() {
        return Err(failed(problems));
    }
    let raw = facet_toml::from_str::<Config>(body).map_err(|error| {
        let span = error
            .span
            .map_or(0..0, |s| s.offset as usize..(s.offset + s.len) as usize);
        failed(vec![Problem::new(
            span,
            "near here",
            format!("this cannot be read: {}", error.kind),
            "write it in a simpler way, each key on a line of its own",
        )])
    })?;
    check::settings(body, document.get_ref(), &raw, overrides).map_err(failed)
}

/// Reads a file of at most [`MAX_FILE`] bytes of UTF-8. Refuses a directory and a FIFO, which may
/// never end or begin.
fn read(path: &Path) -> io::Result<String> {
    let invalid = |why: String| io::Error::new(io::ErrorKind::InvalidData, why);
    let kind = std::fs::metadata(path)?.file_type();
    if !kind.is_file() {
        let what = if kind.is_dir() {
            "a directory"
        } else {
            "not a regular file"
        };
        return Err(invalid(format!("it is {what}")));
    }
    let mut bytes = Vec::new();
    File::open(path)?
        .take(MAX_FILE + 1)
        .read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(invalid("it is larger than 1 MiB".into()));
    }
    String::from_utf8(bytes).map_err(|error| {
        let good = error.utf8_error().valid_up_to();
        let line = error.as_bytes()[..good]
            .iter()
            .filter(|b| **b == b'\n')
            .count()
            + 1;
        invalid(format!("line {line} is not UTF-8 text"))
    })
}

const EXAMPLE: &str = "[auto_ports]\nrange = \"5000-6000\"";

fn missing(file: &str) -> RumError {
    RumError::usage(format!("there is no {file}"))
        .hint("run `rum up --range 5000-6000`, or write one with these two lines:")
        .example(EXAMPLE)
}

fn nothing(file: &str) -> RumError {
    RumError::usage(format!("{file} forwards nothing"))
        .hint("add `--range 5000-6000`, or write these two lines into it:")
        .example(EXAMPLE)
}

fn unreadable(file: &str, error: &io::Error) -> RumError {
    RumError::usage(format!("cannot read {file}: {error}"))
        .hint("it should be a UTF-8 text file; name another with `-c FILE`")
}
