#![allow(clippy::unwrap_used)]
use super::*;
use crate::status::model::{Bytes, Connections};
use crate::view::samples::{info, lost_agent, port, process, snapshot};

fn known(ports: Vec<PortStatus>) -> Mirror {
    let mut known = Mirror::default();
    known.apply(&snapshot(7, false, ports));
    known
}

fn look(width: usize) -> Look {
    Look {
        width,
        all: false,
        color: false,
        now: "2026-11-23T12:00:00Z".parse().unwrap(),
        zone: TimeZone::UTC,
    }
}

/// One port of each state, a static forward with all fields, and one to an address.
fn every_state() -> Mirror {
    let mut all: Vec<_> = (3000..)
        .zip(State::ALL)
        .map(|(n, state)| port(n, state))
        .collect();
    let mut dressed = port(80, State::Forwarded);
    dressed.id = "static:127.0.0.1:8080".into();
    dressed.host = Some("127.0.0.1:8080".into());
    dressed.guest_addresses = vec!["0.0.0.0".into(), "::".into()];
    dressed.process = Some(super::super::samples::process(31, "nginx"));
    dressed.label = Some("web".into());
    dressed.connections = Connections {
        now: 2,
        total: 1234,
        refused: 0,
    };
    dressed.bytes = Bytes {
        to_guest: 1_234,
        to_host: 34_567_890,
    };
    let mut bare = port(81, State::Pending);
    bare.process = None;
    bare.guest_addresses = vec![];
    bare.since = "2026-11-20T09:00:00Z".into();
    let mut container = port(82, State::Forwarded);
    container.process = None;
    container.guest_addresses = vec!["172.17.0.2".into()];
    container.destination = Some("172.17.0.2:82".into());
    all.extend([dressed, bare, container]);
    known(all)
}

fn assert_fits(table: &str, width: usize) {
    for line in table.lines() {
        let line = anstream::adapter::strip_str(line).to_string();
        assert!(line.width() <= width, "{width}: {line}");
    }
}

#[test]
fn widths() {
    for width in [60, 80, 120] {
        let table = table(&every_state(), &look(width));
        assert_fits(&table, width);
        insta::assert_snapshot!(format!("table-{width}"), table);
    }
    for width in 44..200 {
        assert_fits(&table(&every_state(), &look(width)), width);
    }
    // Too narrow for any reader, but the program must not fail.
    assert_eq!(table(&every_state(), &look(0)).lines().count(), 10);
}

#[test]
fn hidden_ports_are_shown_when_asked_for_and_last() {
    let all = Look {
        all: true,
        color: true,
        ..look(80)
    };
    let colored = table(&every_state(), &all);
    insta::assert_snapshot!("table-all-color", colored.replace('\u{1b}', "␛"));
    let plain = Look {
        color: false,
        ..all
    };
    assert_eq!(
        anstream::adapter::strip_str(&colored).to_string(),
        table(&every_state(), &plain),
        "colour is no signal of its own"
    );
}

#[test]
fn programs_get_everything_uncut() {
    let text = lines_for_programs(&every_state(), true);
    for line in text.lines() {
        assert_eq!(line.split('\t').count(), COLUMNS.len(), "{line}");
    }
    insta::assert_snapshot!("lines-for-programs", text.replace('\t', "→"));
    assert_eq!(lines_for_programs(&every_state(), false).lines().count(), 9);
}

#[test]
fn hostile_names_do_no_harm() {
    let names = [
        "\u{1b}]0;title\u{7}\u{1b}[2J",
        "a\tb\r\nc",
        "\u{202e}drowssap\u{2066}",
        "漢字漢字漢字漢字漢字漢字",
        "👩‍👩‍👧‍👦👍🏽e\u{301}e\u{301}",
        "",
        "\u{9b}31m\u{200b}\u{feff}",
        &"x".repeat(4000),
    ];
    let ports = (5000..).zip(names).map(|(number, name)| {
        let mut port = port(number, State::Conflict);
        port.process = Some(process(1, name));
        port.reason.as_mut().unwrap().message = name.into();
        port.reason.as_mut().unwrap().hint = Some(name.into());
        port.label = Some(name.into());
        port.guest_addresses = vec![name.into()];
        port.host = Some(name.into());
        port.since = name.into();
        port
    });
    let mut known = known(ports.collect());
    for width in [60, 80, 120] {
        let table = table(&known, &look(width));
        assert_eq!(table.lines().count(), names.len() + 1);
        let forbidden = |c: char| c != '\n' && c.is_control() || c == '\u{202e}';
        assert_eq!(table.find(forbidden), None);
        assert_fits(&table, width);
        insta::assert_snapshot!(format!("hostile-{width}"), table);
    }
    let text = lines_for_programs(&known, false);
    assert_eq!(text.lines().count(), names.len());
    assert!(
        text.lines()
            .all(|line| line.split('\t').count() == COLUMNS.len())
    );
    assert!(text.contains(names[7]), "not cut");
    let mut lost = lost_agent();
    lost.reason = Some(names[0].into());
    known.agent = Some(lost);
    let mut said = footer(&known, false);
    said.extend(warnings(&known, look(80).now, &TimeZone::UTC));
    assert_eq!(said.len(), 3);
    assert!(
        said.iter().all(|line| !line.contains(char::is_control)),
        "{said:?}"
    );
}

#[test]
fn a_thousand_ports_are_a_thousand_lines() {
    let ports = (1..=1000).map(|n| port(n, State::Forwarded)).collect();
    let text = table(&known(ports), &look(80));
    assert_eq!(text.lines().count(), 1001);
    assert!(text.lines().nth(1000).unwrap().starts_with("1000"));
    assert_fits(&text, 80);
}

#[test]
fn nothing_to_show_is_said() {
    let empty = known(vec![]);
    assert_eq!(table(&empty, &look(80)), "");
    assert_eq!(lines_for_programs(&empty, true), "");
    assert_eq!(
        nothing(&info(), &empty),
        "Nothing in \"dev\" is listening yet; watching tcp 3000-9000"
    );
    let hidden = known(vec![port(22, State::Ignored)]);
    assert_eq!(table(&hidden, &look(80)), "");
    assert_eq!(
        nothing(&info(), &hidden),
        "Nothing in \"dev\" is to be forwarded; watching tcp 3000-9000"
    );
    let mut none = empty.clone();
    none.config.as_mut().unwrap().range = None;
    assert!(nothing(&info(), &none).ends_with("; no range is forwarded automatically"));
}

#[test]
fn the_footer_says_what_is_hidden_and_what_to_do() {
    let mut known = every_state();
    assert_eq!(
        footer(&known, false),
        [
            "2 hidden (ignored, out-of-range): --all",
            "3001: 127.0.0.1:3001 is taken by postgres (pid 4121)",
            "hint: free it, or set on_conflict = \"next\"",
        ]
    );
    assert_eq!(footer(&known, true).len(), 2);
    let now = look(80).now;
    assert!(warnings(&known, now, &TimeZone::UTC).is_empty());
    let in_force = in_force(&known, now, &TimeZone::UTC).unwrap();
    assert!(in_force.starts_with("configuration: /home/me/rum.toml, loaded "));
    assert!(in_force.contains("09:14:02"), "{in_force}");
    known.agent = Some(lost_agent());
    known.config.as_mut().unwrap().error = Some("rum.toml:3: the range is reversed".into());
    assert_eq!(
        warnings(&known, now, &TimeZone::UTC),
        [
            "agent lost: vsock reset; retry in 2.0 s (since 09:15:00)",
            "config not reloaded: rum.toml:3: the range is reversed",
        ]
    );
}
