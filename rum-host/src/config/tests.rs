#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::PathBuf;

use std::net::SocketAddr;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::plan::{AutoPolicy, Destination, HostAddr, OnConflict, StaticForward};
use crate::runtime_dir::isolation::Isolation;
use crate::ui::render;

fn fixtures(kind: &str) -> Vec<(String, String)> {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../fixtures/config")
        .join(kind);
    let mut found: Vec<_> = fs::read_dir(&dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "toml"))
        .map(|path| {
            let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
            (name, fs::read_to_string(&path).unwrap())
        })
        .collect();
    found.sort();
    assert!(!found.is_empty(), "no fixtures in {}", dir.display());
    found
}

/// Compares with `fixtures/config/KIND/NAME.snap`.
fn snapshot(kind: &str, name: &str, text: &str) {
    insta::with_settings!({
        snapshot_path => format!("../../../fixtures/config/{kind}"),
        prepend_module_to_snapshot => false,
        omit_expression => true,
    }, {
        insta::assert_snapshot!(name, text);
    });
}

/// What the user sees, without colour.
fn rendered(error: &RumError) -> String {
    anstream::adapter::strip_str(&render::render(error, 80)).to_string()
}

#[test]
fn every_bad_file_has_a_good_error() {
    for (name, text) in fixtures("bad") {
        let error = match parse(&text, "rum.toml") {
            Ok(settings) => panic!("{name} was accepted: {settings:?}"),
            Err(error) => RumError::from(error),
        };
        let shown = rendered(&error);
        assert_eq!(error.exit_code(), crate::exit::USAGE);
        assert!(shown.contains("rum.toml:"), "{name}: no place\n{shown}");
        assert!(shown.contains("\nhint: "), "{name}: no hint\n{shown}");
        assert!(!shown.contains(['\u{1b}', '\u{202e}']), "{name}");
        snapshot("bad", &name, &shown);
    }
}

#[test]
fn every_good_file_is_read() {
    for (name, text) in fixtures("good") {
        let settings = parse(&text, "rum.toml").unwrap_or_else(|e| panic!("{name}: {e}"));
        snapshot("good", &name, &format!("{settings:#?}"));
    }
}

fn ranges(text: &str) -> Overrides {
    Overrides {
        ranges: Some(text.parse().unwrap()),
        ..Overrides::default()
    }
}

#[test]
fn the_command_line_goes_over_the_file() {
    let text = "name = \"dev\"\n[[ports]]\nhost = 8080\nguest = 80\n[auto_ports]\nrange = \"1-9\"\non_conflict = \"next\"";
    let overrides = Overrides {
        bind: Some(std::net::IpAddr::from(std::net::Ipv6Addr::LOCALHOST).into()),
        name: Some("other".into()),
        ..ranges("5000-6000")
    };
    let settings = parse_with(text, "rum.toml", &overrides).unwrap();
    let auto = settings.policy.auto.unwrap();
    assert_eq!(settings.name, "other");
    assert_eq!(auto.ranges.to_string(), "5000-6000");
    assert_eq!(auto.bind.to_string(), "::1");
    assert_eq!(auto.on_conflict, OnConflict::Next);
    let error = parse_with(text, "rum.toml", &ranges("8000-8080,9000")).unwrap_err();
    snapshot("bad", "option-covers-static", &rendered(&error.into()));
}

#[test]
fn files_that_cannot_be_used() {
    let dir = tempfile::tempdir().unwrap();
    let no_overrides = Overrides::default();
    let said = |name: &str, overrides: &Overrides| {
        let path = dir.path().join(name);
        let error = load(Some(&path), overrides).unwrap_err();
        assert_eq!(error.exit_code(), crate::exit::USAGE);
        rendered(&error).replace(&format!("{}/", dir.path().display()), "")
    };
    let write = |name: &str, bytes: &[u8]| fs::write(dir.path().join(name), bytes).unwrap();
    write("empty.toml", b"# nothing yet\n");
    write("latin1.toml", b"name = \"dev\"\n# gr\xf6sser\n");
    write(
        "large.toml",
        &vec![b'#'; usize::try_from(MAX_FILE).unwrap() + 1],
    );
    write("static.toml", b"ports = [{host = 1, guest = 1}]");
    fs::create_dir(dir.path().join("folder.toml")).unwrap();
    std::os::unix::fs::symlink("loop.toml", dir.path().join("loop.toml")).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        dir.path().join("fifo.toml"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR,
        0,
    )
    .unwrap();
    let bind = Overrides {
        bind: Some(std::net::IpAddr::from(std::net::Ipv6Addr::LOCALHOST).into()),
        ..Overrides::default()
    };
    let all = [
        said("missing.toml", &no_overrides),
        said("missing.toml", &ranges("5000")),
        said("empty.toml", &no_overrides),
        said("latin1.toml", &no_overrides),
        said("large.toml", &no_overrides),
        said("folder.toml", &no_overrides),
        said("fifo.toml", &no_overrides),
        said("loop.toml", &no_overrides),
        said("static.toml", &bind),
    ];
    snapshot("bad", "files", &all.join("\n"));
    let settings = load(Some(&dir.path().join("empty.toml")), &ranges("5000")).unwrap();
    assert_eq!(settings.policy.auto.unwrap().bind.to_string(), DEFAULT_BIND);
    assert_eq!(settings.origin, Some(dir.path().join("empty.toml")));
}

#[test]
fn the_name_of_the_current_guest() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join(FILE_NAME);
    assert_eq!(settings_in(&file).unwrap(), None);
    assert!(current(Some(&file)).is_err());
    fs::write(&file, "name = \"dev\"").unwrap();
    let settings = current(Some(&file)).unwrap().unwrap();
    assert_eq!(settings.name, "dev");
    assert_eq!(settings.origin, Some(file.clone()));
    fs::write(&file, "name = 1").unwrap();
    settings_in(&file).unwrap_err();
}

/// The example of the documentation: what a user copies must work.
#[test]
fn the_example_of_the_errors_is_valid() {
    let auto = parse(EXAMPLE, "rum.toml").unwrap().policy.auto.unwrap();
    assert_eq!(auto.ranges.to_string(), "5000-6000");
}

#[test]
fn a_hostile_file_costs_little() {
    let mut many_keys: String = (0..60_000).map(|i| format!("k{i} = {i}\n")).collect();
    many_keys.truncate(usize::try_from(MAX_FILE).unwrap());
    let forwards: String = (0..30_000)
        .map(|i| format!("[[ports]]\nhost=1\nguest={i}\n"))
        .collect();
    let one_line = format!("name = \"{}\"", "x".repeat(1 << 19));
    let deep = format!("name = {}", "[".repeat(1 << 19));
    let beside = format!("#{}\nname = 1", "x".repeat(1 << 19));
    for text in [many_keys, forwards, one_line, deep, beside] {
        let error = RumError::from(parse(&text, "rum.toml").unwrap_err());
        let shown = rendered(&error);
        assert!(shown.len() < 20_000, "{} bytes", shown.len());
    }
}

/// A valid file, as text and as what it must be read as.
fn valid() -> impl Strategy<Value = (String, Settings)> {
    let name = "[A-Za-z0-9_-][A-Za-z0-9._-]{0,20}";
    let port = 1u16..=20_000;
    let forwards = prop::collection::btree_map(port, (1u16.., 0..3usize), 0..5);
    let auto = prop::option::of((20_001u16..40_000, 0u16..20_000, any::<bool>(), 0u64..3600));
    (name, forwards, auto, 0u64..3_600_000).prop_map(|(name, forwards, auto, drain)| {
        let binds = ["127.0.0.1", "::1", "0.0.0.0"];
        let mut text = format!("drain = \"{drain}ms\"\nname = '{name}'\n");
        let mut settings = Settings {
            name,
            guest: GuestKind::Namespace(Isolation::default()),
            policy: Policy {
                drain: Duration::from_millis(drain),
                ..Policy::default()
            },
            origin: None,
        };
        for (host, (guest, bind)) in forwards {
            let bind = binds[bind];
            text += &format!("[[ports]]\nhost = {host}\nguest = {guest}\nbind = \"{bind}\"\n");
            let host = SocketAddr::new(bind.parse().unwrap(), host);
            let (host, guest) = (HostAddr(host), Destination::own(guest));
            settings.policy.statics.push(StaticForward {
                host,
                binds: host.0.ip().into(),
                guest,
                label: None,
            });
        }
        if let Some((min, more, next, drain)) = auto {
            let on_conflict = if next {
                OnConflict::Next
            } else {
                OnConflict::Wait
            };
            let (max, word) = (min + more, on_conflict.as_str());
            text += &format!("[auto_ports]\nrange = \"{min}-{max}\"\non_conflict = \"{word}\"\n");
            text += &format!("drain = \"{drain}s\"\n");
            settings.policy.auto = Some(AutoPolicy {
                on_conflict,
                drain: Some(Duration::from_secs(drain)),
                ..AutoPolicy::new(format!("{min}-{max}").parse().unwrap())
            });
        }
        (text, settings)
    })
}

/// Whatever the text, it is read or there is an error that can be shown.
fn survives(text: &str) {
    if let Err(error) = parse(text, "rum.toml") {
        assert!(!error.problems().is_empty());
        let shown = rendered(&error.into());
        assert!(shown.starts_with("error: "), "{shown}");
    }
}

proptest! {
    #[test]
    fn valid_files_are_read_as_written((text, settings) in valid()) {
        prop_assert_eq!(parse(&text, "rum.toml").unwrap(), settings);
    }

    #[test]
    fn no_text_panics(text in "\\PC{0,80}|[\\x00-\\x7f]{0,80}|[\\[\\]{}=\"'.,#a-c0-9 \n]{0,60}") {
        survives(&text);
    }

    /// Valid files with some bytes replaced by others, cut, or doubled.
    #[test]
    fn no_damaged_file_panics(
        pick: prop::sample::Index,
        edits in prop::collection::vec((any::<prop::sample::Index>(), 0..4u8, "\\PC|[\n\"'\\[\\]{}=.,0-9-]"), 1..5),
    ) {
        let mut all = fixtures("good");
        all.extend(fixtures("bad"));
        let mut text: Vec<char> = pick.get(&all).1.chars().collect();
        for (at, what, with) in edits {
            if text.is_empty() { break; }
            let at = at.index(text.len());
            match what {
                0 => text.truncate(at),
                1 => { text.remove(at); }
                2 => text.splice(at..=at, with.chars()).for_each(drop),
                _ => { let tail = text[at..].to_vec(); text.extend(tail); }
            }
        }
        survives(&text.into_iter().collect::<String>());
    }
}
