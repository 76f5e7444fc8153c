//! Words and numbers of the live view. Pure: the time zone comes in.
//!
//! Invariant: whatever may be the guest's words leaves here cleaned.

use jiff::Timestamp;
use jiff::tz::TimeZone;
use rum_shared::text::clean;
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

use crate::status::model::{Connections, PortStatus, ProcessName, State};

/// No text of others is shown longer than this, in characters.
const LONGEST: usize = 400;
/// Longest name of a process, in characters; the kernel's own limit is 15 bytes.
const NAME: usize = 32;

/// `text`, fit for a terminal.
pub fn shown(text: &str) -> String {
    clean(text, LONGEST)
}

/// Columns that `text` takes.
pub fn width(text: &str) -> usize {
    text.width()
}

/// `text`, fit for a terminal and at most `columns` wide; the last character is `…` if
/// something was cut off.
pub fn fit(text: &str, columns: usize) -> String {
    let text = shown(text);
    if width(&text) <= columns {
        return text;
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
    out
}

/// `text`, fit for a terminal, in lines of at most `columns`, broken between words where that is
/// possible; at most `lines` of them, the last of which then ends in `…`.
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

/// A moment as the clock on the wall showed it: `09:14:03.120`.
pub fn clock_ms(at: Option<Timestamp>, tz: &TimeZone) -> String {
    match at {
        Some(at) => at.to_zoned(tz.clone()).strftime("%H:%M:%S%.3f").to_string(),
        None => "--:--:--.---".to_owned(),
    }
}

/// A moment in the past: `09:14:03`, or `Nov 22` if that was another day than `now`'s.
pub fn since(at: &str, now: Timestamp, tz: &TimeZone) -> String {
    let Ok(at) = at.parse::<Timestamp>() else {
        return "-".to_owned();
    };
    let (at, now) = (at.to_zoned(tz.clone()), now.to_zoned(tz.clone()));
    let format = if at.date() == now.date() {
        "%H:%M:%S"
    } else {
        "%b %d"
    };
    at.strftime(format).to_string()
}

/// A length of time: `6s`, `2m05s`, `1h02m`.
pub fn age(seconds: i64) -> String {
    match seconds.max(0) {
        s @ ..60 => format!("{s}s"),
        s @ 60..3600 => format!("{}m{:02}s", s / 60, s % 60),
        s => format!("{}h{:02}m", s / 3600, s / 60 % 60),
    }
}

/// A latency: `0.04 ms`, `0.4 ms`, `12 ms`, `1.2 s`.
pub fn latency(us: u64) -> String {
    let ms = us as f64 / 1000.0;
    match us {
        ..100 => format!("{ms:.2} ms"),
        100..10_000 => format!("{ms:.1} ms"),
        10_000..1_000_000 => format!("{ms:.0} ms"),
        _ => format!("{:.1} s", ms / 1000.0),
    }
}

/// An amount of data: `512 B`, `1.2 KiB`, `34 MiB`.
pub fn bytes(n: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if n < 1024 {
        return format!("{n} B");
    }
    let mut value = n as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1023.5 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if value < 9.95 {
        format!("{value:.1} {}", UNITS[unit])
    } else {
        format!("{value:.0} {}", UNITS[unit])
    }
}

/// `node[1873]`.
pub fn process(process: &ProcessName) -> String {
    format!("{}[{}]", clean(&process.name, NAME), process.pid)
}

/// `1 conn`, `2 conns`.
pub fn conns(connections: &Connections) -> String {
    match connections.now {
        1 => "1 conn".to_owned(),
        n => format!("{n} conns"),
    }
}

/// How long a forward took: each side's part on its own clock, so never one sum. Empty while
/// there is none.
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

/// Why `port` is in its state, in as few words as its row has room for.
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
        let told = [0, 40, 400, 1250, 12_345, 999_999, 1_234_567].map(latency);
        let want = [
            "0.00 ms", "0.04 ms", "0.4 ms", "1.2 ms", "12 ms", "1000 ms", "1.2 s",
        ];
        assert_eq!(told, want);
        let told = [0, 1023, 1024, 1_048_575, 35_651_584, u64::MAX].map(bytes);
        assert_eq!(
            told,
            ["0 B", "1023 B", "1.0 KiB", "1.0 MiB", "34 MiB", "16 EiB"]
        );
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
