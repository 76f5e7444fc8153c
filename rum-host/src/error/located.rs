//! The mistakes in a `rum.toml`, each with its place in the file.

use std::fmt;
use std::ops::Range;

use miette::{Diagnostic, LabeledSpan, NamedSource};
use rum_shared::text::is_harmless;

/// Most problems kept for one file; more would only scroll the first ones away.
pub const MAX_PROBLEMS: usize = 10;
/// Longest line, in bytes, that is shown. Near a longer line, only the place is printed.
const MAX_LINE: usize = 400;
/// Longest message or hint, in characters. Both may quote the file.
const MAX_TEXT: usize = 300;

/// One mistake at one place of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// What is wrong.
    pub message: String,
    /// What to write instead.
    pub hint: String,
    /// The offending byte ranges, each with its label; the main one comes first.
    pub labels: Vec<(Range<usize>, String)>,
}

impl Problem {
    /// A problem with one label.
    pub(crate) fn new(
        span: Range<usize>,
        label: impl Into<String>,
        message: impl Into<String>,
        hint: impl Into<String>,
    ) -> Self {
        Self {
            message: shown(&message.into()),
            hint: shown(&hint.into()),
            labels: vec![(span, shown(&label.into()))],
        }
    }

    /// Adds a second place, such as the other of two colliding entries.
    pub(crate) fn and(mut self, span: Option<Range<usize>>, label: impl Into<String>) -> Self {
        self.labels
            .extend(span.map(|span| (span, shown(&label.into()))));
        self
    }

    fn start(&self) -> usize {
        self.labels.first().map_or(0, |(span, _)| span.start)
    }
}

/// A `rum.toml` that cannot be used: at least one [`Problem`], in the order of the file.
#[derive(Debug, Clone)]
pub struct ConfigError {
    problems: Vec<Located>,
    omitted: usize,
}

/// A problem together with the file's text, which miette renders.
#[derive(Debug, Clone)]
pub struct Located {
    problem: Problem,
    place: String,
    /// `None` if the line is too long to show.
    source: Option<NamedSource<String>>,
}

impl ConfigError {
    pub(crate) fn new(name: &str, text: &str, mut problems: Vec<Problem>) -> Self {
        problems.sort_by_key(Problem::start);
        let omitted = problems.len().saturating_sub(MAX_PROBLEMS);
        problems.truncate(MAX_PROBLEMS);
        let name = shown(name);
        let text = printable(text);
        let problems = problems
            .into_iter()
            .map(|problem| Located::new(problem, &name, &text))
            .collect();
        Self { problems, omitted }
    }

    /// The problems, in the order of the file, at most [`MAX_PROBLEMS`].
    pub fn problems(&self) -> &[Located] {
        &self.problems
    }

    /// Number of problems beyond [`MAX_PROBLEMS`].
    pub fn omitted(&self) -> usize {
        self.omitted
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, located) in self.problems.iter().enumerate() {
            let separator = if i == 0 { "" } else { "; " };
            write!(f, "{separator}{}: {located}", located.place)?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigError {}

impl Located {
    fn new(mut problem: Problem, name: &str, text: &str) -> Self {
        for (span, _) in &mut problem.labels {
            *span = underlined(text, span);
        }
        let start = problem.start();
        let before = &text[..start];
        let line_start = before.rfind('\n').map_or(0, |i| i + 1);
        let line = before.matches('\n').count() + 1;
        let column = before[line_start..].chars().count() + 1;
        // Each label is shown with one line before it and one after it.
        let short = problem.labels.iter().all(|(span, _)| {
            let above = text[..span.start].matches('\n').count().saturating_sub(1);
            let mut near = text.lines().skip(above).take(3);
            near.all(|line| line.len() <= MAX_LINE)
        });
        Self {
            problem,
            place: format!("{name}:{line}:{column}"),
            source: short.then(|| NamedSource::new(name, text.to_owned())),
        }
    }

    /// `FILE:LINE:COLUMN` of the main label, both counted from 1, columns in characters.
    pub fn place(&self) -> &str {
        &self.place
    }

    /// Whether the offending line and its neighbours can be shown.
    pub fn has_snippet(&self) -> bool {
        self.source.is_some()
    }
}

impl fmt::Display for Located {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.problem.message)
    }
}

impl std::error::Error for Located {}

impl Diagnostic for Located {
    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        Some(Box::new(&self.problem.hint))
    }

    fn source_code(&self) -> Option<&dyn miette::SourceCode> {
        self.source.as_ref().map(|s| s as _)
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        let labels = self.problem.labels.iter().enumerate();
        Some(Box::new(labels.map(|(i, (span, label))| {
            if i == 0 {
                LabeledSpan::new_primary_with_span(Some(label.clone()), span.clone())
            } else {
                LabeledSpan::new_with_span(Some(label.clone()), span.clone())
            }
        })))
    }
}

/// `span` clipped to `text`: on character boundaries, on one line, and at least one character wide
/// unless the line is empty. A parser may point past the end or at a line break.
fn underlined(text: &str, span: &Range<usize>) -> Range<usize> {
    let floor = |mut at: usize| {
        at = at.min(text.len());
        while !text.is_char_boundary(at) {
            at -= 1;
        }
        at
    };
    let (mut start, mut end) = (floor(span.start), floor(span.end));
    // A span at the end of the file, after its last line break, means the last line.
    if start == text.len() {
        start -= text.len() - text.trim_end_matches(['\n', '\r']).len();
    }
    let line_end = text[start..].find('\n').map_or(text.len(), |i| start + i);
    end = end.clamp(start, line_end);
    if end == start
        && let Some(c) = text[start..line_end].chars().next()
    {
        end += c.len_utf8();
    }
    start..end
}

/// `text` with every character replaced that a terminal could act on. Byte offsets do not change,
/// so spans stay valid. A `rum.toml` may come from anybody's repository.
fn printable(text: &str) -> String {
    text.chars()
        .map(|c| match (acts(c), c.len_utf8()) {
            _ if c == '\r' => " ".to_owned(),
            (false, _) => c.to_string(),
            (true, 3) => '\u{fffd}'.to_string(),
            (true, n) => "?".repeat(n),
        })
        .collect()
}

/// Whether a terminal could do anything but display `c`, in a text of several lines.
fn acts(c: char) -> bool {
    !matches!(c, '\n' | '\t') && !is_harmless(c)
}

/// A message, on one line, printable and of bounded length.
fn shown(text: &str) -> String {
    let mut out: String = text.chars().take(MAX_TEXT).collect();
    if out.len() < text.len() {
        out.push('…');
    }
    printable(&out).replace(['\n', '\t'], " ")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_a_terminal_acts_on_is_replaced_byte_for_byte() {
        let text = "a\u{1b}[31mb\u{202e}c\u{9b}d\te\n";
        let clean = printable(text);
        assert_eq!(clean, "a?[31mb\u{fffd}c??d\te\n");
        assert_eq!(clean.len(), text.len());
        assert_eq!(shown("a\nb"), "a b");
    }

    #[test]
    fn underlines_stay_on_one_line() {
        assert_eq!(underlined("ab\ncd\n", &(1..5)), 1..2);
        assert_eq!(underlined("ab\n", &(3..3)), 2..2);
        assert_eq!(underlined("ab", &(9..12)), 2..2);
        assert_eq!(underlined("äb", &(1..1)), 0..2);
        assert_eq!(underlined("", &(0..0)), 0..0);
    }

    #[test]
    fn problems_are_bounded_sorted_and_placed() {
        let text = "x = 1\n".repeat(12);
        let problems = (0..12)
            .rev()
            .map(|i| Problem::new(i * 6..i * 6 + 1, "", "no", ""))
            .collect();
        let error = ConfigError::new("rum.toml", &text, problems);
        assert_eq!(error.problems().len(), MAX_PROBLEMS);
        assert_eq!(error.omitted(), 2);
        assert_eq!(error.problems()[1].place(), "rum.toml:2:1");
        let long = "x".repeat(MAX_LINE + 1);
        let error = ConfigError::new("f", &long, vec![Problem::new(3..4, "", "no", "")]);
        assert!(!error.problems()[0].has_snippet());
        assert_eq!(error.to_string(), "f:1:4: no");
    }
}
