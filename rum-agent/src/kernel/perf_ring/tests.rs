#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::*;

const WRAPPED: &[u8] = include_bytes!("../../../../fixtures/perf/wrapped.bin");
const LOST: &[u8] = include_bytes!("../../../../fixtures/perf/lost.bin");

/// The readable bytes of a ring, in order.
fn readable(ring: &[u8], tail: u64, head: u64) -> Vec<u8> {
    let parts = spans(ring.len(), tail, head).unwrap();
    parts
        .into_iter()
        .flat_map(|part| ring[part].to_vec())
        .collect()
}

/// The readable bytes of a fixture, and whether they wrap.
fn fixture(file: &[u8]) -> (Vec<u8>, bool) {
    let (tail, rest) = file.split_first_chunk().unwrap();
    let (head, ring) = rest.split_first_chunk().unwrap();
    let (tail, head) = (u64::from_le_bytes(*tail), u64::from_le_bytes(*head));
    let wraps = spans(ring.len(), tail, head).unwrap()[1].end > 0;
    (readable(ring, tail, head), wraps)
}

#[test]
fn the_attribute_has_the_kernels_layout() {
    // PERF_ATTR_SIZE_VER3 in include/uapi/linux/perf_event.h.
    assert_eq!(size_of::<Attr>(), 96);
    assert_eq!(std::mem::offset_of!(Attr, flags), 40);
    assert_eq!(std::mem::offset_of!(Attr, wakeup_events), 48);
    assert_eq!(std::mem::offset_of!(Attr, clockid), 92);
    // _IO('$', 0) and _IOW('$', 6, char *), which holds the size of a pointer.
    assert_eq!(IOC_ENABLE as u64, 0x2400);
    #[cfg(all(target_pointer_width = "64", target_arch = "x86_64"))]
    assert_eq!(IOC_SET_FILTER as u64, 0x4008_2406);
}

#[test]
fn a_real_ring_that_wraps_is_read() {
    let (bytes, wraps) = fixture(WRAPPED);
    assert!(wraps, "the fixture does not wrap");
    let found: Vec<_> = records(&bytes).collect();
    assert!(!found.is_empty());
    let mut last = 0;
    for record in found {
        let Record::Sample { pid, at_ns, raw } = record else {
            panic!("{record:?}");
        };
        assert_ne!(pid, 0);
        assert!(at_ns > last, "one CPU's events are in order");
        last = at_ns;
        // The place of `sport` in the fixture of the format file.
        assert_eq!(u16::from_ne_bytes([raw[24], raw[25]]), 5010);
    }
}

#[test]
fn a_ring_that_overflowed_says_so() {
    let (bytes, _) = fixture(LOST);
    let found: Vec<_> = records(&bytes).collect();
    assert_eq!(found[0], Record::Lost);
    assert!(matches!(found[1], Record::Sample { .. }));
}

#[test]
fn what_lies_between_tail_and_head() {
    assert_eq!(spans(4096, 0, 0), Some([0..0, 0..0]));
    assert_eq!(spans(4096, 8, 16), Some([8..16, 0..0]));
    assert_eq!(spans(4096, 4000, 4196), Some([4000..4096, 0..100]));
    assert_eq!(spans(4096, 4096, 8192), Some([0..4096, 0..0]));
    assert_eq!(spans(4096, u64::MAX - 7, 8), Some([4088..4096, 0..8]));
    assert_eq!(spans(4096, 0, 4097), None);
    assert_eq!(spans(4096, 16, 8), None);
    assert_eq!(spans(0, 0, 0), None);
    assert_eq!(spans(4095, 0, 0), None);
}

#[test]
fn records_that_cannot_be_read_are_lost() {
    let header = |kind: u32, size: u16| {
        let mut bytes = kind.to_ne_bytes().to_vec();
        bytes.extend([0, 0]);
        bytes.extend(size.to_ne_bytes());
        bytes
    };
    let all = |bytes: &[u8]| {
        records(bytes)
            .map(|r| r == Record::Lost)
            .collect::<Vec<_>>()
    };
    // A size that does not reach past the header, or past the end.
    assert_eq!(all(&header(RECORD_SAMPLE, 0)), [true]);
    assert_eq!(all(&header(77, 7)), [true]);
    assert_eq!(all(&header(77, 9)), [true]);
    assert_eq!(all(&[1, 2, 3]), [true]);
    // Unknown kinds are passed over.
    assert_eq!(all(&header(77, 8)), [] as [bool; 0]);
    assert_eq!(all(&header(RECORD_THROTTLE, 8)), [true]);
    // A sample whose inner length is longer than it is.
    let mut sample = header(RECORD_SAMPLE, 20);
    sample.extend([0; 8]);
    sample.extend(1u32.to_ne_bytes());
    assert_eq!(all(&sample), [true]);
}

proptest! {
    #[test]
    fn no_bytes_panic_or_loop(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(records(&bytes).count() <= bytes.len());
    }

    #[test]
    fn no_damage_panics_or_loops(
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
    ) {
        let (mut bytes, _) = fixture(WRAPPED);
        for (at, value) in damage {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        prop_assert!(records(&bytes).count() <= bytes.len());
    }

    #[test]
    fn what_was_written_is_read_wherever_it_starts(
        tail: u64, used in 0usize..=256, fill: u8,
    ) {
        let mut ring = [0u8; 256];
        let head = tail.wrapping_add(used as u64);
        let mut written = Vec::new();
        for index in 0..used {
            let at = (tail.wrapping_add(index as u64) % 256) as usize;
            ring[at] = fill.wrapping_add(index as u8);
            written.push(ring[at]);
        }
        prop_assert_eq!(readable(&ring, tail, head), written);
    }
}
