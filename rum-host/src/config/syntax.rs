//! Syntax errors of the strict parser, in words that say what to write instead.

use std::ops::Range;

use toml::de::{DeTable, DeValue, Error};

use crate::error::located::Problem;

/// What `error` says about `text`.
pub(super) fn problem(text: &str, error: &Error) -> Problem {
    let said = error.message();
    let span = error.span().unwrap_or(0..0);
    let there = text.get(span.clone()).unwrap_or_default();
    let next = text.get(span.start..).and_then(|rest| rest.chars().next());
    let visible = next.filter(|c| !matches!(c, '\r' | '\n'));
    if said == "duplicate key" {
        let message = format!("`{there}` is there twice");
        let first = last(text.get(..span.start).unwrap_or_default(), there);
        return Problem::new(span, "again", message, "keep one of the two")
            .and(first, "first here");
    }
    let (message, hint) = if visible.is_some_and(|c| c.is_control() && c != '\t') {
        (
            "there is an invisible control character".to_owned(),
            "remove it".to_owned(),
        )
    } else if said.contains("string, expected `\"`") || said.contains("string, expected `'`") {
        (
            "a text has no closing quote".to_owned(),
            "texts are written in quotes, on one line, such as \"127.0.0.1\"".to_owned(),
        )
    } else if said.contains("must be quoted") && visible.is_none_or(|c| c == '#') {
        (
            "a value is missing".to_owned(),
            "write it behind the `=`, texts in quotes: `range = \"5000-6000\"`".to_owned(),
        )
    } else if let Some(value) = bare_value(text, span.start) {
        let there = &text[value.clone()];
        let message = format!("`{there}` is neither a number nor a text");
        let hint = format!("write a text in quotes, \"{there}\", or a plain number such as 8080");
        return Problem::new(value, "no quotes", message, hint);
    } else {
        (
            said.to_owned(),
            "a line is `key = value`, `[table]` or `[[ports]]`".to_owned(),
        )
    };
    Problem::new(span, "here", message, hint)
}

/// The value on the line of `at`, if it starts like neither a text, a list nor a table.
fn bare_value(text: &str, at: usize) -> Option<Range<usize>> {
    let line = text.get(..at)?.rfind('\n').map_or(0, |i| i + 1);
    let equals = line + text.get(line..at)?.rfind('=')?;
    let rest = text[equals + 1..].trim_start_matches([' ', '\t']);
    let start = text.len() - rest.len();
    let len = rest
        .find([' ', '\t', '\r', '\n', '#', ',', ']', '}'])
        .unwrap_or(rest.len());
    let quoted = rest.starts_with(['"', '\'', '[', '{']);
    (len > 0 && !quoted).then_some(start..start + len)
}

/// Where `key` was written last in `text`.
fn last(text: &str, key: &str) -> Option<Range<usize>> {
    fn search(table: &DeTable<'_>, key: &str) -> Option<Range<usize>> {
        let here = table.iter().filter(|(name, _)| name.get_ref() == key);
        let here = here.map(|(name, _)| name.span());
        let inner = table.iter().flat_map(|(_, value)| match value.get_ref() {
            DeValue::Table(table) => vec![table],
            DeValue::Array(items) => items
                .iter()
                .filter_map(|i| i.get_ref().as_table())
                .collect(),
            _ => Vec::new(),
        });
        here.chain(inner.filter_map(|table| search(table, key)))
            .max_by_key(|span| span.start)
    }
    search(DeTable::parse_recoverable(text).0.get_ref(), key)
}
