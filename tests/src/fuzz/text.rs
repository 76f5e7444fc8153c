//! Text that people wrote, and text that people see.

use std::fmt::Write as _;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use rum_host::config::{self as configuration, values};
use rum_host::plan::policy::Pattern;
use rum_host::status::model::{
    AgentState, AgentStatus, Bytes, ConfigStatus, Connections, OtherHolder, PortStatus,
    ProcessName, Reason, State, Update,
};
use rum_host::view::changes::Changes;
use rum_host::view::lines::Lines;
use rum_host::view::live::offscreen::Offscreen;
use rum_host::view::table::{self, Look};
use rum_host::view::{Mirror, json};
use rum_shared::text::clean;

/// When everything here happens.
const NOW: &str = "2026-11-23T09:14:02.871Z";

/// Panics if a terminal would act on a character of `text` that is not one of `allowed`.
fn harmless(text: &str, allowed: &[char]) {
    let rest: String = text.chars().filter(|c| !allowed.contains(c)).collect();
    let length = rest.chars().count();
    assert_eq!(clean(&rest, length), rest);
}

/// A `rum.toml`: read, or refused with a message that a terminal can show.
pub fn config(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    match configuration::parse(&text, "rum.toml") {
        Ok(settings) => {
            let again = configuration::parse(&text, "rum.toml").expect("as before");
            assert_eq!(settings, again);
        }
        Err(error) => {
            let mut message = String::new();
            for problem in error.problems() {
                write!(message, "{problem}").expect("a String takes all");
            }
            assert!(!message.is_empty());
            harmless(&message, &['\n']);
        }
    }
}

/// Whether `name` is like `pattern`, by going through all places where a `*` may end: slow, and
/// plain to see.
fn is_like(pattern: &[char], name: &[char]) -> bool {
    // Whether the first `i` of the pattern take the first `j` of the name.
    let mut row = vec![false; name.len() + 1];
    row[0] = true;
    for wanted in pattern {
        let mut next = vec![false; row.len()];
        for j in 0..row.len() {
            next[j] = match wanted {
                '*' => row[j] || j > 0 && next[j - 1],
                '?' => j > 0 && row[j - 1],
                c => j > 0 && row[j - 1] && name[j - 1] == *c,
            };
        }
        row = next;
    }
    row[name.len()]
}

/// A pattern and a process name, the latter as it is when it is compared: cleaned.
pub fn pattern(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let (pattern, name) = text.split_once('\n').unwrap_or((&text, ""));
    let Ok(pattern) = values::pattern(pattern) else {
        return;
    };
    let name = clean(name, 64);
    let chars = |text: &str| text.chars().collect::<Vec<_>>();
    assert_eq!(
        Pattern::new(&pattern).matches(&name),
        is_like(&chars(&pattern), &chars(&name)),
        "{pattern:?} {name:?}"
    );
}

/// Text of the other side in every place where it can be shown.
pub fn terminal(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    for max in [0, 1, 15, 300] {
        let once = clean(&text, max);
        assert!(once.chars().count() <= max);
        assert_eq!(clean(&once, max), once);
    }
    let mut parts = text.split('\n').map(str::to_owned).cycle();
    let mut part = || parts.next().unwrap_or_default();
    let port = PortStatus {
        id: part(),
        proto: part(),
        port: 5000,
        guest_addresses: vec![part(), part()],
        destination: (part().len() % 2 == 0).then(&mut part),
        host: Some(part()),
        host_addresses: vec![part()],
        state: State::Conflict,
        previous_state: Some(State::Forwarded),
        reason: Some(Reason {
            code: part(),
            message: part(),
            hint: Some(part()),
            holder: Some(ProcessName {
                pid: 1,
                name: part(),
            }),
        }),
        process: Some(ProcessName {
            pid: 1,
            name: part(),
        }),
        command: Some(part()),
        other_holders: vec![OtherHolder {
            address: part(),
            process: ProcessName {
                pid: 2,
                name: part(),
            },
        }],
        uid: Some(0),
        label: Some(part()),
        url: Some(part()),
        connections: Connections::default(),
        bytes: Bytes::default(),
        since: part(),
        detected_us: Some(1),
        forwarded_us: Some(u64::MAX),
    };
    let update = Update::Snapshot {
        seq: 1,
        gap: true,
        ports: vec![port],
        agent: AgentStatus {
            state: AgentState::Lost,
            since: part(),
            reason: Some(part()),
            retry_ms: Some(u64::MAX),
            grace_ms: 15_000,
            attempts: u32::MAX,
            version: Some(part()),
            hostname: Some(part()),
            source: Some(part()),
            repaired: u64::MAX,
        },
        outside: vec![8000],
        config: ConfigStatus {
            file: Some(part()),
            loaded: part(),
            range: Some(part()),
            error: Some(part()),
        },
    };
    show(update);
}

/// Makes all that a reader of `update` is shown.
pub(super) fn show(update: Update) {
    let now: Timestamp = NOW.parse().expect("a timestamp");
    let mut known = Mirror::default();
    known.apply(&update);
    for width in [1, 40, 200] {
        let look = Look {
            width,
            all: true,
            color: false,
            now,
            zone: TimeZone::UTC,
        };
        harmless(&table::table(&known, &look), &['\n']);
    }
    harmless(&table::lines_for_programs(&known, true), &['\n', '\t']);
    for line in table::footer(&known, true)
        .into_iter()
        .chain(table::warnings(&known, now, &TimeZone::UTC))
        .chain(table::in_force(&known, now, &TimeZone::UTC))
    {
        harmless(&line, &[]);
    }
    let mut view = Offscreen::new(80, 24);
    view.update(&update, now);
    view.paint(now).expect("nothing is written");
    let mut lines = Lines::new(TimeZone::UTC);
    let mut changes = Changes::new(true, 0);
    for (_, change) in changes.update(update) {
        let line = lines.line(&change, now).unwrap_or_default();
        harmless(&line, &['\n']);
    }
    let info = rum_host::status::model::ControlInfo {
        protocol: 1,
        version: String::new(),
        name: String::new(),
        kind: String::new(),
        pid: 1,
        boot: String::new(),
        started: String::new(),
    };
    let document = json::document(&info, &known, true);
    let escaped = document.trim_end_matches('\n');
    assert!(!escaped.contains(|c: char| c < ' '), "{escaped:?}");
}
