//! Parses the short texts of a configuration: names, addresses, durations. Shared by `rum.toml` and
//! the command line, so that both accept the same and report the same errors.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use rum_shared::listener::{self, MAX_COMMAND};
use rum_shared::text::clean;

use crate::plan::policy::{Binds, MAX_BINDS, MAX_PATTERN};

/// Longest name; it becomes a part of socket paths, which end at 108 bytes (unix(7)).
pub const MAX_NAME: usize = 64;
/// Longest `drain`: longer would look like a hang.
pub const MAX_DRAIN: Duration = Duration::from_secs(60 * 60);

/// Longest label, in characters: a column of a table.
pub const MAX_LABEL: usize = 64;

/// An invalid text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invalid {
    /// What is wrong.
    pub message: String,
    /// What to write instead.
    pub hint: String,
}

impl Invalid {
    pub(super) fn new(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            hint: hint.into(),
        }
    }
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", self.message, self.hint)
    }
}

impl std::error::Error for Invalid {}

/// A guest's name: 1 to [`MAX_NAME`] of `[A-Za-z0-9._-]`, not starting with a dot.
///
/// # Errors
/// What is wrong with it.
pub fn name(text: &str) -> Result<String, Invalid> {
    let hint = "use 1 to 64 letters, digits, `.`, `_` or `-`, the first not a `.`";
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let message = if text.is_empty() {
        "the name is empty".to_owned()
    } else if text.len() > MAX_NAME {
        format!("the name is {} bytes long", text.len())
    } else if let Some(c) = text.chars().find(|c| !allowed(*c)) {
        format!("a name cannot contain `{}`", c.escape_debug())
    } else if text.starts_with('.') {
        "a name cannot start with a dot".to_owned()
    } else {
        return Ok(text.to_owned());
    };
    Err(Invalid::new(message, hint))
}

/// An IP address of this machine, without a port.
///
/// # Errors
/// What is wrong with it, with the address that was probably meant.
pub fn address(text: &str) -> Result<IpAddr, Invalid> {
    if let Ok(ip) = text.parse::<IpAddr>() {
        return Ok(ip.to_canonical());
    }
    let write = |ip: &str| format!("write an IP address, such as \"{ip}\"");
    Err(match text {
        "" => Invalid::new("the address is empty", write("127.0.0.1")),
        "localhost" => Invalid::new(
            "`localhost` is 127.0.0.1 and ::1",
            "write it alone, not in a list",
        ),
        "*" => Invalid::new(
            "`*` is not an IP address",
            "write \"0.0.0.0\" for all addresses of this machine",
        ),
        _ => {
            let bare = text.trim_start_matches('[').trim_end_matches(']');
            if let Ok(socket) = text.parse::<SocketAddr>() {
                Invalid::new(
                    format!("`{text}` has a port"),
                    format!("write the address alone: \"{}\"", socket.ip()),
                )
            } else if let Ok(ip) = bare.parse::<IpAddr>() {
                Invalid::new(
                    format!("`{text}` has brackets"),
                    format!("write the address alone: \"{ip}\""),
                )
            } else if text.starts_with(|c: char| c.is_ascii_alphabetic()) && !text.contains(':') {
                Invalid::new(format!("`{text}` is a host name"), write("127.0.0.1"))
            } else {
                Invalid::new(
                    format!("`{text}` is not an IP address"),
                    "write an address of this machine, such as \"127.0.0.1\" or \"::1\"",
                )
            }
        }
    })
}

/// Where to bind: `localhost`, or addresses of this machine, separated by commas.
///
/// # Errors
/// What is wrong with it.
pub fn binds(text: &str) -> Result<Binds, Invalid> {
    binds_of(&text.split(',').map(str::trim).collect::<Vec<_>>())
}

/// Where to bind: `localhost` alone, or 1 to [`MAX_BINDS`] addresses of this machine.
///
/// # Errors
/// What is wrong with them.
pub fn binds_of(texts: &[&str]) -> Result<Binds, Invalid> {
    if texts == ["localhost"] {
        return Ok(Binds::LOCALHOST);
    }
    let addresses = texts.iter().map(|text| address(text));
    let addresses: Vec<IpAddr> = addresses.collect::<Result<_, _>>()?;
    for (index, ip) in addresses.iter().enumerate() {
        if addresses[..index].contains(ip) {
            return Err(Invalid::new(
                format!("{ip} is there twice"),
                "write each address once",
            ));
        }
    }
    Binds::new(&addresses).ok_or_else(|| match addresses.len() {
        0 => Invalid::new(
            "there is no address",
            "write \"localhost\", or an address of this machine",
        ),
        n => Invalid::new(
            format!("{n} addresses are too many"),
            format!("write at most {MAX_BINDS}, or \"0.0.0.0\" for all of this machine"),
        ),
    })
}

/// A duration with its unit, `500ms`, `10s`, `2m` or `1h`, at most [`MAX_DRAIN`]; `0` needs none.
///
/// # Errors
/// What is wrong with it.
pub fn duration(text: &str) -> Result<Duration, Invalid> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let example = "write a number and a unit: \"500ms\", \"10s\" or \"2m\"; \"0\" cuts at once";
    if number.is_empty() {
        return Err(Invalid::new(format!("`{text}` is not a duration"), example));
    }
    // A number too large for u64 is above any limit, whatever its unit.
    let number: u64 = number.parse().unwrap_or(u64::MAX);
    let millis = match unit.trim() {
        "" if number == 0 => 0,
        "" => {
            return Err(Invalid::new(
                format!("`{text}` has no unit"),
                format!("write \"{text}s\" for seconds, or \"{text}ms\", \"{text}m\""),
            ));
        }
        "ms" => number,
        "s" => number.saturating_mul(1000),
        "m" => number.saturating_mul(60 * 1000),
        "h" => number.saturating_mul(60 * 60 * 1000),
        other => {
            return Err(Invalid::new(
                format!("`{other}` is not a unit of time"),
                example,
            ));
        }
    };
    let duration = Duration::from_millis(millis);
    if duration > MAX_DRAIN {
        return Err(Invalid::new(
            format!("`{text}` is longer than an hour"),
            "write at most \"1h\"",
        ));
    }
    Ok(duration)
}

/// `keepalive`: whole seconds, as the kernel counts them (TCP_KEEPIDLE, tcp(7)); at least one.
///
/// # Errors
/// What is wrong with it.
pub fn keepalive(text: &str) -> Result<Duration, Invalid> {
    let hint = "write whole seconds or minutes, \"1s\" to \"1h\", such as \"30s\"";
    let silence = duration(text).map_err(|invalid| Invalid::new(invalid.message, hint))?;
    if silence.is_zero() || silence.subsec_nanos() > 0 {
        let message = format!("`{text}` is no number of whole seconds above 0");
        return Err(Invalid::new(message, hint));
    }
    Ok(silence)
}

/// The user's name for a port: 1 to [`MAX_LABEL`] characters, cleaned.
///
/// # Errors
/// What is wrong with it.
pub fn label(text: &str) -> Result<String, Invalid> {
    let hint = "write a short name, such as \"web\", or remove `label`";
    match text.chars().count() {
        _ if text.trim().is_empty() => Err(Invalid::new("the label is empty", hint)),
        n if n > MAX_LABEL => Err(Invalid::new(
            format!("the label is {n} characters long"),
            format!("write at most {MAX_LABEL}"),
        )),
        _ => Ok(clean(text, MAX_LABEL)),
    }
}

/// A pattern of process names, of at most [`listener::MAX_NAME`] characters beside its `*`.
///
/// # Errors
/// What is wrong with it; also when no name can be like it.
pub fn pattern(text: &str) -> Result<String, Invalid> {
    like(text, "name of the process", listener::MAX_NAME, "postgres*")
}

/// A pattern of command lines, of at most [`MAX_COMMAND`] characters beside its `*`.
///
/// # Errors
/// What is wrong with it; also when no command line can be like it.
pub fn command(text: &str) -> Result<String, Invalid> {
    like(text, "command line", MAX_COMMAND, "*vite*")
}

/// A pattern of texts that are cut after `most` characters.
fn like(text: &str, what: &str, most: usize, example: &str) -> Result<String, Invalid> {
    let plain = text.chars().filter(|c| *c != '*').count();
    if text.is_empty() {
        let hint = format!("write a text or a pattern, such as \"{example}\"");
        return Err(Invalid::new(format!("the {what} is empty"), hint));
    }
    if plain > most {
        let message = format!("no {what} is so long");
        let hint = format!("it is cut after {most} characters: write a shorter pattern");
        return Err(Invalid::new(message, hint));
    }
    if text.chars().count() > MAX_PATTERN {
        let message = format!("the pattern is longer than {MAX_PATTERN} characters");
        return Err(Invalid::new(message, "write one `*` instead of several"));
    }
    if clean(text, MAX_PATTERN) != text {
        let message = "the pattern has a control character, which names never have here";
        return Err(Invalid::new(message, "write `?` for it"));
    }
    Ok(text.to_owned())
}

/// Least memory of a VM, in MiB: no current Linux boots with less.
pub const MIN_MEMORY: u32 = 64;
/// Most memory of a VM, in MiB: 1 TiB. More is a typing error.
pub const MAX_MEMORY: u32 = 1 << 20;

/// Least disk of a VM, in MiB, and most, 64 TiB: more is a typing error.
pub const MIN_DISK: u32 = 64;
/// See [`MIN_DISK`].
pub const MAX_DISK: u32 = 64 << 20;

/// A size of memory, `512M` or `2G`, as MiB from [`MIN_MEMORY`] to [`MAX_MEMORY`].
///
/// # Errors
/// What is wrong with it.
pub fn memory(text: &str) -> Result<u32, Invalid> {
    size(text, "memory", MIN_MEMORY, MAX_MEMORY)
}

/// A size of a disk, `512M` or `20G`, as MiB from [`MIN_DISK`] to [`MAX_DISK`].
///
/// # Errors
/// What is wrong with it.
pub fn disk(text: &str) -> Result<u32, Invalid> {
    size(text, "disk", MIN_DISK, MAX_DISK)
}

fn size(text: &str, what: &str, least: u32, most: u32) -> Result<u32, Invalid> {
    let example = "write a number and a unit: \"512M\" or \"2G\"";
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    if number.is_empty() {
        let message = format!("`{text}` is not a size of {what}");
        return Err(Invalid::new(message, example));
    }
    let number: u32 = number.parse().unwrap_or(u32::MAX);
    let mib = match unit.trim() {
        "M" | "MiB" => number,
        "G" | "GiB" => number.saturating_mul(1024),
        "" => {
            return Err(Invalid::new(
                format!("`{text}` has no unit"),
                format!("write \"{text}M\" for mebibytes, or \"{text}G\" for gibibytes"),
            ));
        }
        other => {
            let message = format!("`{other}` is not a unit of {what}");
            return Err(Invalid::new(message, example));
        }
    };
    if mib < least {
        return Err(Invalid::new(
            format!("`{text}` is too little for a VM"),
            format!("write at least \"{least}M\""),
        ));
    }
    if mib > most {
        let message = format!("`{text}` is more than {}G", most / 1024);
        return Err(Invalid::new(message, example));
    }
    Ok(mib)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn durations() {
        let ms = |text| duration(text).unwrap().as_millis();
        assert_eq!(ms("0"), 0);
        assert_eq!(ms("500ms"), 500);
        assert_eq!(ms("10s"), 10_000);
        assert_eq!(ms("10 s"), 10_000);
        assert_eq!(ms("2m"), 120_000);
        assert_eq!(ms("1h"), 3_600_000);
        for (text, part) in [
            ("10", "\"10s\""),
            ("", "not a duration"),
            ("-1s", "not a duration"),
            ("1.5s", "not a unit"),
            ("10sec", "`sec`"),
            ("3601s", "an hour"),
            ("99999999999999999999h", "an hour"),
        ] {
            let said = duration(text).unwrap_err().to_string();
            assert!(said.contains(part), "{text}: {said}");
        }
    }

    #[test]
    fn times_of_silence() {
        assert_eq!(keepalive("30s"), Ok(Duration::from_secs(30)));
        assert_eq!(keepalive("1000ms"), Ok(Duration::from_secs(1)));
        for (text, part) in [
            ("0", "above 0"),
            ("500ms", "whole seconds"),
            ("30", "no unit"),
            ("2h", "an hour"),
            ("yes", "not a duration"),
        ] {
            let said = keepalive(text).unwrap_err().to_string();
            assert!(
                said.contains(part) && said.contains("\"30s\""),
                "{text}: {said}"
            );
        }
    }

    #[test]
    fn sizes_of_disks() {
        assert_eq!(disk("20G"), Ok(20 * 1024));
        assert_eq!(disk("65536G"), Ok(MAX_DISK));
        let said = disk("65537G").unwrap_err().to_string();
        assert!(said.contains("65536G"), "{said}");
    }

    #[test]
    fn sizes_of_memory() {
        assert_eq!(memory("512M"), Ok(512));
        assert_eq!(memory("64 MiB"), Ok(64));
        assert_eq!(memory("2G"), Ok(2048));
        assert_eq!(memory("1024GiB"), Ok(MAX_MEMORY));
        for (text, part) in [
            ("", "not a size"),
            ("-1M", "not a size"),
            ("512", "\"512M\""),
            ("512MB", "`MB`"),
            ("512m", "`m`"),
            ("1.5G", "not a unit"),
            ("63M", "too little"),
            ("0G", "too little"),
            ("1025G", "1024G"),
            ("99999999999999M", "1024G"),
        ] {
            let said = memory(text).unwrap_err().to_string();
            assert!(said.contains(part), "{text}: {said}");
        }
    }

    #[test]
    fn addresses() {
        assert_eq!(address("127.0.0.1").unwrap().to_string(), "127.0.0.1");
        assert_eq!(address("::1").unwrap().to_string(), "::1");
        assert_eq!(address("::ffff:10.0.0.1").unwrap().to_string(), "10.0.0.1");
        for (text, part) in [
            ("localhost", "alone, not in a list"),
            ("dev.example.org", "is a host name"),
            ("127.0.0.1:80", "alone: \"127.0.0.1\""),
            ("[::1]:80", "alone: \"::1\""),
            ("[::1]", "brackets"),
            ("*", "0.0.0.0"),
            ("", "empty"),
            ("127.0.1", "not an IP address"),
            ("fe80::1%eth0", "not an IP address"),
        ] {
            let said = address(text).unwrap_err().to_string();
            assert!(said.contains(part), "{text}: {said}");
        }
    }

    #[test]
    fn lists_of_addresses() {
        let read = |text: &str| binds(text).map(|binds| binds.to_string());
        for text in [
            "localhost",
            "127.0.0.1",
            "127.0.0.1,::1",
            "::,0.0.0.0,10.0.0.1,10.0.0.2",
        ] {
            assert_eq!(read(text).unwrap(), text);
        }
        assert_eq!(read(" ::1 , 127.0.0.1").unwrap(), "::1,127.0.0.1");
        for (text, part) in [
            ("localhost,10.0.0.1", "alone"),
            ("10.0.0.1,10.0.0.1", "twice"),
            ("127.0.0.1,::ffff:127.0.0.1", "twice"),
            ("10.0.0.1,10.0.0.2,10.0.0.3,10.0.0.4,10.0.0.5", "at most 4"),
            ("", "empty"),
            ("10.0.0.1,", "empty"),
        ] {
            let said = binds(text).unwrap_err().to_string();
            assert!(said.contains(part), "{text}: {said}");
        }
        assert!(
            binds_of(&[])
                .unwrap_err()
                .to_string()
                .contains("no address")
        );
    }

    #[test]
    fn labels() {
        assert_eq!(label("web (dev)").unwrap(), "web (dev)");
        assert_eq!(label("a\u{1b}[2J").unwrap(), "a\u{fffd}[2J");
        assert!(label(&"ä".repeat(MAX_LABEL)).is_ok());
        label(&"ä".repeat(MAX_LABEL + 1)).unwrap_err();
        label(" ").unwrap_err();
    }

    #[test]
    fn patterns() {
        for text in [
            "postgres*",
            "?",
            "*",
            "a b",
            "postgres-exporter",
            &"x".repeat(listener::MAX_NAME),
        ] {
            assert_eq!(pattern(text).unwrap(), text);
        }
        for (text, part) in [
            ("", "empty"),
            (&"x".repeat(listener::MAX_NAME + 1), "shorter"),
            ("a\tb", "control"),
            (&"*".repeat(MAX_PATTERN + 1), "one `*`"),
        ] {
            let said = pattern(text).unwrap_err().to_string();
            assert!(said.contains(part), "{text}: {said}");
        }
        assert_eq!(command("* --port *").unwrap(), "* --port *");
        let long = "x".repeat(MAX_COMMAND + 1);
        assert!(command(&long).unwrap_err().to_string().contains("shorter"));
    }

    #[test]
    fn names() {
        assert_eq!(name("dev-1.a_B").unwrap(), "dev-1.a_B");
        assert!(name(&"x".repeat(MAX_NAME)).is_ok());
        for text in ["", ".", "..", ".dev", "a/b", "a b", "ä", "a\u{1b}", "a\0"] {
            name(text).unwrap_err();
        }
        name(&"x".repeat(MAX_NAME + 1)).unwrap_err();
    }
}
