//! The view's two ways out: opening a URL in the browser, and copying an address to the clipboard.
//!
//! Both values come from `rum up`. Still, only values of the expected form are used.

use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use tokio::process::Child;

/// The program that opens URLs on a desktop.
const OPENER: &str = "xdg-open";
const BASE64: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// Whether `url` is an http or https URL without characters that a shell script might misinterpret.
fn is_ours(url: &str) -> bool {
    let rest = url
        .strip_prefix("http://")
        .or_else(|| url.strip_prefix("https://"));
    rest.is_some_and(|rest| {
        let good = |b: u8| b.is_ascii_alphanumeric() || b"-._~:/?%=[]".contains(&b);
        !rest.is_empty() && rest.bytes().all(good)
    })
}

/// Starts the browser, without a terminal, so that it cannot write into the view.
///
/// # Errors
/// The message for the user.
pub fn open(url: &str) -> Result<Child, String> {
    if !is_ours(url) {
        return Err("this URL is not opened: it is not a plain http URL".to_owned());
    }
    let mut command = Command::new(OPENER);
    command
        .arg(url)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    // SAFETY: setsid is one system call, which may be made between fork and exec.
    unsafe { command.pre_exec(|| Ok(rustix::process::setsid().map(drop)?)) };
    tokio::process::Command::from(command)
        .spawn()
        .map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => format!("open {url} yourself: there is no {OPENER}"),
            _ => format!("open {url} yourself: cannot run {OPENER}: {error}"),
        })
}

/// The message about the end of the process that opened `url`; `None` on success.
pub fn opened(url: &str, ended: &std::io::Result<std::process::ExitStatus>) -> Option<String> {
    match ended {
        Ok(status) if status.success() => None,
        Ok(status) => Some(format!("open {url} yourself: {OPENER} failed ({status})")),
        Err(error) => Some(format!("open {url} yourself: {OPENER} is lost: {error}")),
    }
}

/// The sequence that asks a terminal to copy `address` to its clipboard (OSC 52); `None` if it is
/// not an address.
pub fn copy(address: &str) -> Option<String> {
    address.parse::<SocketAddr>().ok()?;
    Some(format!(
        "\u{1b}]52;c;{}\u{1b}\\",
        base64(address.as_bytes())
    ))
}

/// Base64 of RFC 4648, with padding.
fn base64(bytes: &[u8]) -> String {
    let mut out = String::new();
    for chunk in bytes.chunks(3) {
        let get = |i: usize| u32::from(chunk.get(i).copied().unwrap_or(0));
        let bits = get(0) << 16 | get(1) << 8 | get(2);
        for i in 0..4 {
            out.push(if i <= chunk.len() {
                char::from(BASE64[(bits >> (18 - 6 * i)) as usize & 63])
            } else {
                '='
            });
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_web_addresses_are_opened() {
        for good in ["http://127.0.0.1:3000", "https://[::1]:8443/a?b=c%20d"] {
            assert!(is_ours(good), "{good}");
        }
        for bad in [
            "file:///etc/passwd",
            "javascript:alert(1)",
            "http://",
            "http://a b",
            "http://a;reboot",
            "http://$(x)",
            "-http://a",
            "http://a\u{1b}",
        ] {
            assert!(!is_ours(bad), "{bad}");
            assert!(open(bad).is_err());
        }
    }

    #[test]
    fn only_addresses_are_copied() {
        let encoded = copy("127.0.0.1:3000");
        assert_eq!(
            encoded.as_deref(),
            Some("\u{1b}]52;c;MTI3LjAuMC4xOjMwMDA=\u{1b}\\")
        );
        assert_eq!(copy("\u{1b}]52;c;\u{7}"), None);
    }

    #[test]
    fn base64_of_the_rfc() {
        let encoded = ["", "f", "fo", "foo", "foob", "fooba", "foobar"];
        let encoded = encoded.map(|text| base64(text.as_bytes()));
        let want = [
            "", "Zg==", "Zm8=", "Zm9v", "Zm9vYg==", "Zm9vYmE=", "Zm9vYmFy",
        ];
        assert_eq!(encoded, want);
    }
}
