//! `rum man`: the man pages, made from the same definitions as the help texts.
//!
//! One page a command: `rum.1`, `rum-up.1` and so on; hidden commands have none. No page is kept
//! in the source tree, so none can be out of date; a test renders all of them.

use std::path::Path;

use clap::{Command, CommandFactory as _};
use clap_mangen::Man;

use crate::cli::Cli;
use crate::cli::tools::ManArgs;
use crate::error::RumError;
use crate::exit;

/// Runs `rum man`.
///
/// # Errors
/// The directory, or stdout, cannot be written to.
pub fn run(args: &ManArgs) -> Result<u8, RumError> {
    let pages = pages();
    match &args.dir {
        None => {
            let first = pages.first().map_or("", |(_, page)| page);
            super::print(first)?;
        }
        Some(dir) => {
            for (name, page) in &pages {
                write(dir, name, page)?;
            }
        }
    }
    Ok(exit::OK)
}

fn write(dir: &Path, name: &str, page: &str) -> Result<(), RumError> {
    let path = dir.join(name);
    std::fs::write(&path, page).map_err(|error| {
        RumError::new(format!("cannot write {}", path.display()))
            .caused_by(error)
            .hint("name a directory that exists and that you may write to")
    })
}

/// File name and text of each page; that of `rum` first.
fn pages() -> Vec<(String, String)> {
    let mut rum = Cli::command().disable_help_subcommand(true);
    rum.build();
    let mut pages = vec![page(&rum)];
    let shown = rum
        .get_subcommands()
        .filter(|command| !command.is_hide_set());
    pages.extend(shown.map(page));
    pages
}

fn page(command: &Command) -> (String, String) {
    let name = command.get_display_name().unwrap_or(command.get_name());
    let name = name.to_owned();
    let man = Man::new(command.clone())
        .title(name.to_uppercase())
        .source(concat!("rum ", env!("CARGO_PKG_VERSION")))
        .manual("rum");
    let mut text = Vec::new();
    man.render(&mut text).expect("writing to a Vec cannot fail");
    // What follows the options is examples and exit codes, which man pages call NOTES.
    let text = String::from_utf8_lossy(&text).replace(".SH EXTRA", ".SH NOTES");
    (format!("{name}.1"), text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_and_option_has_its_place() {
        let pages = pages();
        let mut rum = Cli::command();
        rum.build();
        let commands: Vec<_> = rum
            .get_subcommands()
            .filter(|c| !c.is_hide_set() && c.get_name() != "help")
            .collect();
        assert_eq!(pages.len(), commands.len() + 1);
        for command in &commands {
            let name = format!("rum-{}.1", command.get_name());
            let (_, text) = pages.iter().find(|(n, _)| *n == name).expect("a page");
            let listed = format!("rum\\-{}(1)", command.get_name().replace('-', "\\-"));
            assert!(pages[0].1.contains(&listed), "{listed} is not in rum.1");
            let shown = command.get_arguments().filter(|a| !a.is_hide_set());
            for long in shown.filter_map(|a| a.get_long()) {
                let option = format!("\\-\\-{}", long.replace('-', "\\-"));
                assert!(text.contains(&option), "{option} is not in {name}");
            }
        }
    }

    #[test]
    fn no_section_is_empty() {
        for (name, text) in pages() {
            assert!(text.contains(".TH "), "{name} has no title");
            for section in text.split("\n.SH ").skip(1) {
                let (title, body) = section.split_once('\n').unwrap_or((section, ""));
                assert!(!body.trim().is_empty(), "{title} of {name} is empty");
                assert!(!body.trim().ends_with("\\-"), "{title} of {name} is cut");
            }
        }
    }

    #[test]
    fn the_page_of_init() {
        let (_, text) = pages()
            .into_iter()
            .find(|(n, _)| n == "rum-init.1")
            .expect("it");
        let text = text.replace(env!("CARGO_PKG_VERSION"), "VERSION");
        insta::assert_snapshot!(text);
    }
}
