//! Moments and spans of time, as people read them.

use jiff::Timestamp;
use jiff::tz::TimeZone;

/// The local time of day of `at` (RFC 3339), `09:14:03`; on another day than that of `now` the
/// date, `2026-11-23`. With milliseconds `09:14:03.120` and `2026-11-23 09:14:03.120`. What is no
/// moment is returned as it is.
pub fn local(at: &str, now: Timestamp, zone: &TimeZone, millis: bool) -> String {
    let Ok(moment) = at.parse::<Timestamp>() else {
        return at.to_owned();
    };
    let moment = moment.to_zoned(zone.clone());
    let format = match (moment.date() == now.to_zoned(zone.clone()).date(), millis) {
        (true, false) => "%H:%M:%S",
        (true, true) => "%H:%M:%S%.3f",
        (false, false) => "%Y-%m-%d",
        (false, true) => "%Y-%m-%d %H:%M:%S%.3f",
    };
    moment.strftime(format).to_string()
}

/// A span of `us` microseconds: `0.4 ms`, `12.3 ms`, `1.2 s`.
pub fn span(us: u64) -> String {
    // From here on the milliseconds would be shown as 1000.0.
    const SECOND: u64 = 999_950;
    let ms = us as f64 / 1000.0;
    match us {
        0..SECOND => format!("{ms:.1} ms"),
        _ => format!("{:.1} s", ms / 1000.0),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn local_time_has_a_date_on_other_days() {
        let now = "2026-11-23T22:30:00Z".parse().unwrap();
        let zone = TimeZone::fixed(jiff::tz::offset(2));
        let at = |text, millis| local(text, now, &zone, millis);
        // It is the 24th there already.
        assert_eq!(at("2026-11-23T22:14:03.120Z", true), "00:14:03.120");
        assert_eq!(at("2026-11-23T22:14:03.120Z", false), "00:14:03");
        assert_eq!(at("2026-11-23T09:14:03.120Z", false), "2026-11-23");
        assert_eq!(at("2026-11-23T09:14:03Z", true), "2026-11-23 11:14:03.000");
        assert_eq!(at("whenever", true), "whenever");
        assert_eq!(at("", true), "");
    }

    #[test]
    fn spans_have_one_decimal() {
        for (us, text) in [
            (0, "0.0 ms"),
            (405, "0.4 ms"),
            (12_345, "12.3 ms"),
            (999_949, "999.9 ms"),
            (999_950, "1.0 s"),
            (75_000_000, "75.0 s"),
        ] {
            assert_eq!(span(us), text);
        }
    }
}
