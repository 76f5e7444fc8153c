//! One vocabulary for table, lines and live view: times, amounts, processes, the colour of a state.
//!
//! Pure: the time zone comes in. Invariant: text that may come from the guest leaves here cleaned.

use std::borrow::Cow;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use rum_shared::text::{clean, printable};
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

use crate::status::model::{Connections, PortStatus, ProcessName, State};

/// Longest text from others that is shown, in characters.
const LONGEST: usize = 400;
/// Longest name of a process, in characters; the kernel's own limit is 15 bytes.
const NAME: usize = 32;
/// The placeholder for an empty value.
pub const NOTHING: &str = "-";

/// What a state means to the user, with the same colour in every view. All colours are the
/// terminal's own. Yellow is not among them, as it cannot be read on white.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tone {
    /// The port serves: green.
    Good,
    /// The state will pass by itself: magenta.
    Passing,
    /// The user must act: red.
    Problem,
    /// The state is of no interest: dim.
    Hidden,
}

impl From<State> for Tone {
    fn from(state: State) -> Self {
        match state {
            State::Forwarded => Self::Good,
            State::Draining | State::Pending => Self::Passing,
            State::Conflict | State::RefusedPrivileged | State::Lost => Self::Problem,
            State::Ignored | State::OutOfRange => Self::Hidden,
        }
    }
}

/// `text`, safe for a terminal.
pub fn shown(text: &str) -> String {
    clean(text, LONGEST)
}

/// The number of columns that `text` takes.
pub fn width(text: &str) -> usize {
    text.width()
}

/// `text`, safe for a terminal and at most `columns` wide; a cut text ends in `…`.
pub fn fit(text: &str, columns: usize) -> String {
    cut(&shown(text), columns).into_owned()
}

/// `text` at most `columns` wide; a cut text ends in `…`. It is safe for a terminal if `text` is.
pub fn cut(text: &str, columns: usize) -> Cow<'_, str> {
    if width(text) <= columns {
        return text.into();
    }
    let mut out = String::new();
    let mut left = columns.saturating_sub(1);
    for c in text.chars() {
        let wide = c.width().unwrap_or(0);
        if wide > left {
            break;
        }
        left -= wide;
        out.push(c);
    }
    if columns > 0 {
        out.push('…');
    }
    out.into()
}

/// `text`, safe for a terminal, in lines of at most `columns`, broken between words if possible.
/// There are at most `lines`; if the text is cut, the last one ends in `…`.
pub fn wrap(text: &str, columns: usize, lines: usize) -> Vec<String> {
    let columns = columns.max(1);
    let mut out = vec![String::new()];
    let text = shown(text);
    for word in text.split(' ') {
        let mut word = word.to_owned();
        let line = out.last().map_or(0, |line| width(line));
        if line > 0 && line + 1 + width(&word) > columns {
            out.push(String::new());
        } else if line > 0 {
            word.insert(0, ' ');
        }
        for c in word.chars() {
            let last = out.last().map_or(0, |line| width(line));
            if last + c.width().unwrap_or(0) > columns {
                out.push(String::new());
            }
            if let Some(line) = out.last_mut() {
                line.push(c);
            }
        }
    }
    if out.len() > lines {
        out.truncate(lines);
        if let Some(last) = out.last_mut() {
            *last = fit(&format!("{last} …"), columns);
            if !last.ends_with('…') {
                last.push('…');
            }
        }
    }
    out
}

/// The local time of day of `at`, `09:14:03`, or `09:14:03.120` with milliseconds. If its date is
/// not that of `now`: `Nov 22`, or `2026-11-22 09:14:03.120`.
pub fn moment(at: Timestamp, now: Timestamp, zone: &TimeZone, millis: bool) -> String {
    let at = at.to_zoned(zone.clone());
    let format = match (at.date() == now.to_zoned(zone.clone()).date(), millis) {
        (true, false) => "%H:%M:%S",
        (true, true) => "%H:%M:%S%.3f",
        (false, false) => "%b %d",
        (false, true) => "%Y-%m-%d %H:%M:%S%.3f",
    };
    at.strftime(format).to_string()
}

/// A time in a log of today: `09:14:03.120`.
pub fn clock_ms(at: Option<Timestamp>, zone: &TimeZone) -> String {
    at.map_or_else(
        || "--:--:--.---".to_owned(),
        |at| moment(at, at, zone, true),
    )
}

/// [`moment`] of an RFC 3339 time; `-` if `at` is not one.
pub fn since(at: &str, now: Timestamp, zone: &TimeZone) -> String {
    match at.parse() {
        Ok(at) => moment(at, now, zone, false),
        Err(_) => NOTHING.to_owned(),
    }
}

/// A duration: `6s`, `2m05s`, `1h02m`.
pub fn age(seconds: i64) -> String {
    match seconds.max(0) {
        s @ ..60 => format!("{s}s"),
        s @ 60..3600 => format!("{}m{:02}s", s / 60, s % 60),
        s => format!("{}h{:02}m", s / 3600, s / 60 % 60),
    }
}

/// A latency in microseconds: `0.04 ms`, `0.4 ms`, `12 ms`, `1.2 s`.
pub fn latency(us: u64) -> String {
    let ms = us as f64 / 1000.0;
    match us {
        ..100 => format!("{ms:.2} ms"),
        100..10_000 => format!("{ms:.1} ms"),
        10_000..1_000_000 => format!("{ms:.0} ms"),
        _ => format!("{:.1} s", ms / 1000.0),
    }
}

/// An amount of data as `ls -h` prints it: `512`, `1.2K`, `34M`; a K is 1024 bytes.
pub fn bytes(n: u64) -> String {
    let mut value = n as f64;
    let mut units = ["", "K", "M", "G", "T", "P", "E"].into_iter();
    let mut unit = units.next().unwrap_or_default();
    // A larger value would be shown as 1024.
    while value >= 1023.5 {
        let Some(next) = units.next() else { break };
        (value, unit) = (value / 1024.0, next);
    }
    match unit {
        "" => n.to_string(),
        _ if value < 9.95 => format!("{value:.1}{unit}"),
        _ => format!("{value:.0}{unit}"),
    }
}

/// `node[1873]`.
pub fn process(process: &ProcessName) -> String {
    format!("{}[{}]", clean(&process.name, NAME), process.pid)
}

/// `text`, safe for a terminal, or [`NOTHING`] if it is empty.
pub fn or_nothing(text: Option<&str>) -> String {
    match text.unwrap_or_default() {
        "" => NOTHING.to_owned(),
        text => printable(text),
    }
}

/// `1 conn`, `2 conns`.
pub fn conns(connections: &Connections) -> String {
    match connections.now {
        1 => "1 conn".to_owned(),
        n => format!("{n} conns"),
    }
}

/// The latency of a forward: each side's part on its own clock, so never a sum. Empty if unknown.
pub fn latencies(port: &PortStatus) -> String {
    let Some(host) = port.forwarded_us else {
        return String::new();
    };
    let mut out = format!(" in {}", latency(host));
    if let Some(agent) = port.detected_us {
        out.push_str(&format!(" (seen by the agent in {})", latency(agent)));
    }
    out
}

/// Why `port` is in its state, short enough for its row.
pub fn reason(port: &PortStatus) -> String {
    let reason = port.reason.as_ref();
    let code = reason.map_or("", |reason| reason.code.as_str());
    let holder = reason.and_then(|reason| reason.holder.as_ref());
    match (port.state, code, holder) {
        (State::Draining, ..) => format!("closed; {} left", conns(&port.connections)),
        (State::Lost, ..) => match port.previous_state {
            Some(before) => format!("was {before}"),
            None => "agent lost".to_owned(),
        },
        (_, "host-port-taken", Some(holder)) => format!("host: {}", process(holder)),
        (_, "host-port-taken", None) => "taken on the host".to_owned(),
        (_, "host-port-privileged", _) => "host port < 1024".to_owned(),
        _ => reason.map_or_else(String::new, |reason| shown(&reason.message)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        let shown_as = [0, 40, 400, 1250, 12_345, 999_999, 1_234_567].map(latency);
        let want = [
            "0.00 ms", "0.04 ms", "0.4 ms", "1.2 ms", "12 ms", "1000 ms", "1.2 s",
        ];
        assert_eq!(shown_as, want);
        let shown_as = [0, 1023, 1024, 1_048_575, 35_651_584, u64::MAX].map(bytes);
        assert_eq!(shown_as, ["0", "1023", "1.0K", "1.0M", "34M", "16E"]);
        assert_eq!(
            [-3, 59, 125, 3720].map(age),
            ["0s", "59s", "2m05s", "1h02m"]
        );
    }

    #[test]
    fn a_moment_of_another_day_shows_its_day() {
        let now = "2026-11-23T09:14:03Z".parse().expect("a timestamp");
        assert_eq!(
            since("2026-11-23T00:00:01.5Z", now, &TimeZone::UTC),
            "00:00:01"
        );
        let zone = TimeZone::fixed(jiff::tz::offset(15));
        let at = "2026-11-23T09:14:03.12Z".parse().expect("a timestamp");
        let night = "2026-11-23T08:00:00Z".parse().expect("a timestamp");
        // It is already the 24th there.
        assert_eq!(moment(at, now, &zone, true), "00:14:03.120");
        assert_eq!(moment(at, night, &zone, true), "2026-11-24 00:14:03.120");
        assert_eq!(since("2026-11-22T23:59:59Z", now, &TimeZone::UTC), "Nov 22");
        assert_eq!(since("\u{1b}[2J", now, &TimeZone::UTC), "-");
    }

    #[test]
    fn what_is_too_wide_is_cut_by_columns() {
        assert_eq!(fit("postgres", 8), "postgres");
        assert_eq!(fit("postgres", 4), "pos…");
        assert_eq!(fit("漢字漢字", 5), "漢字…");
        assert_eq!(fit("漢字漢字", 4), "漢…");
        assert_eq!(fit("a\u{1b}b", 9), "a\u{fffd}b");
        assert_eq!(fit("abc", 0), "");
        for columns in 1..9 {
            assert!(width(&fit("漢字e\u{301}漢字", columns)) <= columns);
        }
    }

    #[test]
    fn lines_break_between_words() {
        assert_eq!(wrap("one two three", 7, 9), ["one two", "three"]);
        assert_eq!(wrap("one two three four", 7, 2), ["one two", "three …"]);
        assert_eq!(wrap("abcdefgh", 3, 9), ["abc", "def", "gh"]);
        assert_eq!(wrap("漢字漢", 4, 9), ["漢字", "漢"]);
        assert_eq!(wrap("", 4, 9), [""]);
    }
}
