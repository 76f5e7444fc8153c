//! Renders errors for the user.
//!
//! The text is readable without colour. anstream decides about colour (`--color`, `NO_COLOR`, a
//! terminal or not), and strips it on output.

use std::error::Error as StdError;
use std::fmt::{self, Write as _};

use miette::{Diagnostic, GraphicalReportHandler, GraphicalTheme, LabeledSpan, SourceCode};
use rum_shared::lines;
use rum_shared::text::printable;

use super::LogFormat;
use super::output::json;
use crate::error::{ConfigError, Located, RumError};

/// Prints `error` to stderr, before the process ends. A closed stderr is not a further error.
pub fn report(error: &RumError, format: LogFormat) {
    lines::say_on_stderr(&for_stderr(error, format));
    lines::flush_stderr();
}

/// The text that [`report`] prints: as wide as the terminal, with colours if it supports them.
pub fn for_stderr(error: &RumError, format: LogFormat) -> String {
    match format {
        LogFormat::Json => json::error(error, jiff::Timestamp::now()),
        LogFormat::Text => {
            let text = render(error, terminal_width());
            match anstream::AutoStream::choice(&std::io::stderr()) {
                anstream::ColorChoice::Never => anstream::adapter::strip_str(&text).to_string(),
                _ => text,
            }
        }
    }
}

fn terminal_width() -> usize {
    let width = rustix::termios::tcgetwinsize(rustix::stdio::stderr())
        .ok()
        .map(|size| usize::from(size.ws_col))
        .filter(|columns| *columns > 0);
    width.unwrap_or(DEFAULT_WIDTH)
}

/// Width of a snippet without a terminal, in columns.
const DEFAULT_WIDTH: usize = 80;
const ERROR: &str = "\u{1b}[1;31merror:\u{1b}[0m";
const WARNING: &str = "\u{1b}[1;33mwarning:\u{1b}[0m";
const CYAN: &str = "\u{1b}[1;36m";
const PLAIN: &str = "\u{1b}[0m";

/// The text that [`report`] prints, with colours.
pub fn render(error: &RumError, width: usize) -> String {
    let mut out = String::new();
    match error.config() {
        Some(config) => render_config(&mut out, config, width),
        None => render_plain(&mut out, ERROR, error),
    }
    .expect("writing to a String cannot fail");
    out
}

/// `error` as a warning, with colours: the user should know it, but the command goes on.
pub fn warning(error: &RumError) -> String {
    let mut out = String::new();
    render_plain(&mut out, WARNING, error).expect("writing to a String cannot fail");
    out
}

fn render_plain(out: &mut String, label: &str, error: &RumError) -> fmt::Result {
    writeln!(out, "{label} {}", shown(error))?;
    let mut source = error.source();
    while let Some(cause) = source {
        writeln!(out, "  caused by: {}", shown(cause))?;
        source = cause.source();
    }
    if let Some(hint) = error.to_do() {
        writeln!(out, "{CYAN}hint:{PLAIN} {}", shown(hint))?;
    }
    for line in error.lines() {
        writeln!(out, "    {}", shown(line))?;
    }
    Ok(())
}

/// `text` without characters that a terminal could act on: it may contain paths, arguments and
/// words from others.
fn shown(text: impl fmt::Display) -> String {
    let text = text.to_string();
    text.split('\n')
        .map(printable)
        .collect::<Vec<_>>()
        .join("\n")
}

fn render_config(out: &mut String, error: &ConfigError, width: usize) -> fmt::Result {
    for (i, problem) in error.problems().iter().enumerate() {
        if i > 0 {
            writeln!(out)?;
        }
        writeln!(out, "{ERROR} {problem}")?;
        if problem.has_snippet() {
            out.push_str(&snippet(problem, width)?);
        } else {
            writeln!(out, "  in {}", problem.place())?;
        }
        if let Some(hint) = problem.help() {
            writeln!(out, "{CYAN}hint:{PLAIN} {hint}")?;
        }
    }
    if error.omitted() > 0 {
        writeln!(out, "\n{} more errors are not shown", error.omitted())?;
    }
    Ok(())
}

/// The underlined part of the file that a problem is about.
fn snippet(problem: &Located, width: usize) -> Result<String, fmt::Error> {
    let mut theme = GraphicalTheme::unicode();
    // Each colour has one meaning: red marks the error, cyan the other place.
    theme.styles.highlights = vec![theme.styles.error, theme.styles.help];
    let mut out = String::new();
    GraphicalReportHandler::new_themed(theme)
        .with_width(width)
        .with_context_lines(1)
        .with_links(false)
        .render_report(&mut out, &Bare(problem))?;
    // miette starts with a line for the message, which we print in our own form.
    let rest = out.split_once('\n').map_or("", |(_, rest)| rest);
    Ok(rest.to_owned())
}

/// A problem without message and hint: miette draws only the snippet.
#[derive(Debug)]
struct Bare<'a>(&'a Located);

impl fmt::Display for Bare<'_> {
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        Ok(())
    }
}

impl StdError for Bare<'_> {}

impl Diagnostic for Bare<'_> {
    fn source_code(&self) -> Option<&dyn SourceCode> {
        self.0.source_code()
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        self.0.labels()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit;

    #[test]
    fn message_causes_hint_and_example_are_lines_of_their_own() {
        let error = RumError::new("cannot bind 127.0.0.1:80")
            .caused_by(std::io::Error::from_raw_os_error(13))
            .hint("write this:")
            .example("a = 1\nb = 2");
        let text = anstream::adapter::strip_str(&render(&error, 80)).to_string();
        assert_eq!(
            text,
            "error: cannot bind 127.0.0.1:80\n  caused by: Permission denied (os error 13)\n\
             hint: write this:\n    a = 1\n    b = 2\n"
        );
        assert_eq!(error.exit_code(), exit::FAILED);
        assert_eq!(RumError::usage("no").exit_code(), exit::USAGE);
    }

    #[test]
    fn a_path_cannot_act_on_the_terminal() {
        let error = RumError::new("cannot read a\u{202e}b\u{1b}[2J").caused_by("x\r\ny");
        let text = anstream::adapter::strip_str(&warning(&error)).to_string();
        assert_eq!(
            text,
            "warning: cannot read a\u{fffd}b\u{fffd}[2J\n  caused by: x\u{fffd}\ny\n"
        );
    }
}
