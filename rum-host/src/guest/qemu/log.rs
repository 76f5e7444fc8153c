//! The logs of a VM: shows their last lines and bounds their size.
//!
//! The guest writes its console, so every line is cleaned, and a log that has grown is truncated.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rum_shared::text::clean;

/// Most of a file that is read for its last lines, in bytes.
const MAX_TAIL: u64 = 32 << 10;
/// Longest line that is shown, in characters.
const MAX_LINE: usize = 200;
/// Longest log, in bytes, before it is truncated: weeks of an ordinary console.
const MAX_LOG: u64 = 16 << 20;
/// What is kept of it then, in bytes.
const KEPT: u64 = 1 << 20;

/// Opens a log to append to, emptied.
///
/// # Errors
/// As open(2).
pub fn create(path: &Path) -> io::Result<File> {
    let file = open(path)?;
    file.set_len(0)?;
    Ok(file)
}

/// Opens a log to append to.
///
/// # Errors
/// As open(2).
pub fn open(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.create(true).append(true).mode(0o600).open(path)
}

/// Start of Linux's panic message (panic, kernel/panic.c); a long trace may follow.
const PANIC: &str = "Kernel panic - not syncing";

/// As [`tail`], preceded by the kernel's panic message if that is further up.
pub fn last_words(path: &Path, lines: usize) -> Vec<String> {
    let all = tail(path, usize::MAX);
    let from = all.len().saturating_sub(lines);
    let panic = all[..from].iter().rfind(|line| line.contains(PANIC));
    panic.into_iter().chain(&all[from..]).cloned().collect()
}

/// The last `lines` non-empty lines, safe for a terminal. Empty if there is no such file.
pub fn tail(path: &Path, lines: usize) -> Vec<String> {
    let end = last_bytes(path, MAX_TAIL).unwrap_or_default();
    // Colours are removed, other control characters are made visible.
    let text = String::from_utf8_lossy(&end).replace('\r', "");
    let text = anstream::adapter::strip_str(&text).to_string();
    let all: Vec<_> = text
        .lines()
        .map(|line| clean(line.trim_end(), MAX_LINE))
        .filter(|line| !line.is_empty())
        .collect();
    all[all.len().saturating_sub(lines)..].to_vec()
}

/// Truncates the log at `path` if it is too long. Its writer appends, and so continues at the new
/// end.
///
/// # Errors
/// Those of the system calls.
pub fn bound(path: &Path) -> io::Result<()> {
    if fs::metadata(path)?.len() <= MAX_LOG {
        return Ok(());
    }
    let kept = last_bytes(path, KEPT)?;
    let mut file = OpenOptions::new().append(true).open(path)?;
    file.set_len(0)?;
    file.write_all(&kept)
}

fn last_bytes(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(most)))?;
    let mut bytes = Vec::new();
    file.take(most).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_last_lines_are_clean_and_short() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        assert_eq!(tail(&path, 3), [""; 0]);
        let hostile = "one\r\n\u{1b}[0;32mtwo\u{1b}[0m\r\n\r\n\u{7}three\u{202e}\u{1b}]0;x\u{7}\n";
        fs::write(&path, [hostile.as_bytes(), b"\xff", &[b'x'; 300]].concat()).unwrap();
        let lines = tail(&path, 3);
        assert_eq!(lines[0], "two");
        assert!(lines[1].contains("three"), "{lines:?}");
        assert!(lines[2].ends_with('…') && lines[2].chars().count() == MAX_LINE);
        let acts = |c: char| c.is_control() || c == '\u{202e}';
        assert!(!lines.concat().contains(acts), "{lines:?}");
    }

    #[test]
    fn a_panic_is_told_however_long_its_trace_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let panic = "[    1.5] Kernel panic - not syncing: VFS: Unable to mount root fs";
        fs::write(&path, format!("before\n{panic}\n{}", "a call\n".repeat(40))).unwrap();
        let words = last_words(&path, 3);
        assert_eq!(words, [panic, "a call", "a call", "a call"]);
        fs::write(&path, format!("{panic}\na call\n")).unwrap();
        assert_eq!(last_words(&path, 3), [panic, "a call"]);
    }

    #[test]
    fn a_long_log_is_cut_under_its_writer() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut writer = create(&path).unwrap();
        writer
            .write_all(&vec![b'a'; usize::try_from(MAX_LOG).unwrap()])
            .unwrap();
        bound(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().len(), MAX_LOG);
        writer.write_all(b"the end").unwrap();
        bound(&path).unwrap();
        writer.write_all(b", or not").unwrap();
        let text = fs::read(&path).unwrap();
        assert_eq!(text.len() as u64, KEPT + 8);
        assert!(text.ends_with(b"aathe end, or not"));
    }
}
