#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::*;

const EVENT: Event = Event {
    id: 1,
    old_state: 16,
    new_state: 20,
    sport: 24,
    protocol_size: 2,
};

fn raw(old: u32, new: u32, port: u16) -> Vec<u8> {
    let mut raw = vec![0; 16];
    raw.extend(old.to_ne_bytes());
    raw.extend(new.to_ne_bytes());
    raw.extend(port.to_ne_bytes());
    raw
}

#[test]
fn samples_become_hints() {
    let hint = |raw: &[u8]| {
        super::hint(
            &EVENT,
            Record::Sample {
                pid: 7,
                at_ns: 9,
                raw,
            },
        )
    };
    assert_eq!(
        hint(&raw(7, 10, 5000)),
        Some(Hint::Listen {
            port: 5000,
            pid: 7,
            at_ns: 9
        })
    );
    assert_eq!(
        hint(&raw(7, 10, 0)),
        Some(Hint::Listen {
            port: 0,
            pid: 7,
            at_ns: 9
        })
    );
    assert_eq!(
        hint(&raw(10, 7, 65535)),
        Some(Hint::Unlisten { port: 65535 })
    );
    assert_eq!(hint(&raw(2, 1, 5000)), None);
    assert_eq!(hint(&raw(10, 3, 5000)), None);
    assert_eq!(hint(&raw(10, 1, 5000)), None);
    assert_eq!(hint(&raw(7, 10, 5000)[..25]), Some(Hint::Lost));
    assert_eq!(hint(&[]), Some(Hint::Lost));
    assert_eq!(super::hint(&EVENT, Record::Lost), Some(Hint::Lost));
}

#[test]
fn the_filter_names_the_range_and_what_the_field_can_hold() {
    assert_eq!(
        filter(&EVENT, 3000, 6000, None),
        "(newstate==10||(oldstate==10&&newstate==7))&&(protocol==6||protocol==262)\
         &&(sport==0||(sport>=3000&&sport<=6000))"
    );
    let old = Event {
        protocol_size: 1,
        ..EVENT
    };
    assert!(!filter(&old, 1, 2, None).contains("262"));
    let name = "rum-0a1b2c3d".parse().unwrap();
    let all = filter(&EVENT, 1, 2, None);
    assert_eq!(
        filter(&EVENT, 1, 2, Some(&name)),
        all + "&&comm!=\"rum-0a1b2c3d\""
    );
}

#[test]
fn names_of_threads_are_plain_and_short() {
    let is_one = |text: &str| text.parse::<ThreadName>().is_ok();
    assert!(is_one("a") && is_one("rum_0-9abcDEFGH"));
    assert!(!is_one("") && !is_one("0123456789abcdef") && !is_one("a b"));
    assert!(!is_one("a\"") && !is_one("a*") && !is_one("é") && !is_one("a\0"));
}

#[test]
fn cpu_lists() {
    assert_eq!(parse_cpus("0-1\n"), [0, 1]);
    assert_eq!(parse_cpus("0,2-3,3,8\n"), [0, 2, 3, 8]);
    assert_eq!(parse_cpus(""), [] as [u32; 0]);
    assert_eq!(parse_cpus("x,-1,5-,4"), [4]);
    assert_eq!(parse_cpus("0-4294967295").len(), MAX_CPUS as usize);
}

#[test]
fn errors_say_what_would_help() {
    let refused = |kind: io::ErrorKind| TracepointError::Refused {
        cpu: 0,
        source: kind.into(),
    };
    let hint = refused(io::ErrorKind::PermissionDenied).hint().unwrap();
    assert!(hint.contains("CAP_PERFMON"));
    assert_eq!(refused(io::ErrorKind::Other).hint(), None);
    let tried = "/sys/kernel/tracing: no".to_owned();
    let error = TracepointError::from(TracefsError::NoTracefs { tried });
    assert!(error.to_string().contains("/sys/kernel/tracing: no"));
    assert!(error.hint().unwrap().contains("mount tracefs"));
}

proptest! {
    #[test]
    fn no_list_panics(text in "[0-9,-]{0,30}") {
        prop_assert!(parse_cpus(&text).len() <= MAX_CPUS as usize);
    }
}
