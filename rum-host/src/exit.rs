//! The exit codes of `rum`. Scripts may rely on them.

/// Success, or a stop on request.
pub const OK: u8 = 0;
/// The start failed, or the guest did.
pub const FAILED: u8 = 1;
/// The command line or `rum.toml` is wrong.
pub const USAGE: u8 = 2;
/// `wait`: the time ran out, as with timeout(1).
pub const TIMEOUT: u8 = 124;
/// `wait`: `rum up` ended, or rum failed.
pub const LOST: u8 = 125;
/// `exec` and `shell`: rum itself failed, so that the command never ran.
pub const NOT_RUN: u8 = 125;
/// `ssh`: rum or ssh failed, as ssh(1) documents it.
pub const SSH: u8 = 255;
/// The command was found but cannot be executed.
pub const NOT_EXECUTABLE: u8 = 126;
/// The command was not found.
pub const NOT_FOUND: u8 = 127;
/// Plus the signal's number: the command was ended by that signal.
pub const SIGNAL_BASE: u8 = 128;

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn the_table_of_the_document_has_each_and_no_other() {
        let document = include_str!("../../docs/scripts.md");
        let (_, section) = document
            .split_once("\n## Exit codes\n")
            .expect("the section");
        let section = section.split("\n## ").next().unwrap_or(section);
        let rows = section.lines().filter_map(|line| line.split('|').nth(2));
        let codes = rows.flat_map(|cell| cell.split(','));
        let mut documented: BTreeSet<String> = codes.map(|code| code.trim().to_owned()).collect();
        // The title, the line below it, and the command's own code.
        for other in ["code", "---", "N"] {
            assert!(documented.remove(other), "{other}");
        }
        let codes = [
            OK,
            FAILED,
            USAGE,
            TIMEOUT,
            LOST,
            NOT_RUN,
            SSH,
            NOT_EXECUTABLE,
            NOT_FOUND,
        ];
        let codes = codes.into_iter().map(|code| code.to_string());
        let signals = format!("{SIGNAL_BASE}+N");
        assert_eq!(documented, codes.chain([signals]).collect());
    }
}
