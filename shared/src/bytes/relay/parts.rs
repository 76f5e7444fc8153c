//! Splits the channel's bytes into writes: adjacent frames are joined, so that a peer that sends
//! small frames does not cost a write for each.

use std::ops::Range;

use crate::bytes::channel::{Decoder, Event, FrameTooLong};

/// Payloads of at least this many bytes are not moved: a separate write costs less.
const LARGE: usize = 16 * 1024;

/// The next part of a chunk of the channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Part {
    /// Position of the next bytes for TCP in the chunk.
    Bytes(Range<usize>),
    End,
    Reset,
}

/// Splits chunks, one after the other. A clone continues independently from the same place.
#[derive(Debug, Clone, Default)]
pub(super) struct Parts {
    decoder: Decoder,
    /// How far the chunk has been parsed.
    at: usize,
    /// Parsed, but not returned yet.
    next: Option<Result<Part, FrameTooLong>>,
}

impl Parts {
    /// The next part of `chunk`, in which payloads may be moved; `None` at its end, when the next
    /// chunk is needed.
    ///
    /// # Errors
    /// [`FrameTooLong`]; the channel cannot be read any further.
    pub(super) fn next(&mut self, chunk: &mut [u8]) -> Result<Option<Part>, FrameTooLong> {
        let mut run = match self.next.take() {
            Some(Ok(Part::Bytes(bytes))) => bytes,
            Some(said) => return said.map(Some),
            None => 0..0,
        };
        loop {
            let mut rest = &chunk[self.at..];
            let event = match self.decoder.next(&mut rest) {
                Ok(None) if run.is_empty() => {
                    self.at = 0;
                    return Ok(None);
                }
                Ok(None) => {
                    self.at = chunk.len();
                    return Ok(Some(Part::Bytes(run)));
                }
                Ok(Some(event)) => Ok(event),
                Err(error) => Err(error),
            };
            let part = event.map(|event| match event {
                Event::Data(data) => {
                    let end = chunk.len() - rest.len();
                    Part::Bytes(end - data.len()..end)
                }
                Event::End => Part::End,
                Event::Reset => Part::Reset,
            });
            self.at = chunk.len() - rest.len();
            match part {
                Ok(Part::Bytes(bytes)) if run.is_empty() => run = bytes,
                Ok(Part::Bytes(bytes)) if bytes.len() < LARGE => {
                    let len = bytes.len();
                    chunk.copy_within(bytes, run.end);
                    run.end += len;
                }
                part if run.is_empty() => return part.map(Some),
                part => {
                    self.next = Some(part);
                    return Ok(Some(Part::Bytes(run)));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;
    use crate::bytes::channel::{END, RESET, length};

    fn frame(payload: &[u8]) -> Vec<u8> {
        [&length(payload.len()), payload].concat()
    }

    /// The payloads as they would be written, one entry for each write, and the other parts.
    fn parts(chunks: &[Vec<u8>]) -> (Vec<Vec<u8>>, Vec<Part>) {
        let (mut parts, mut writes, mut others) = (Parts::default(), vec![], vec![]);
        for chunk in chunks {
            let mut chunk = chunk.clone();
            while let Some(part) = parts.next(&mut chunk).unwrap() {
                match part {
                    Part::Bytes(bytes) => writes.push(chunk[bytes].to_vec()),
                    other => others.push(other),
                }
            }
        }
        (writes, others)
    }

    #[test]
    fn small_frames_are_one_write() {
        let chunk = [frame(b"a"), frame(b"bc"), frame(b"def"), END.to_vec()].concat();
        assert_eq!(parts(&[chunk]), (vec![b"abcdef".to_vec()], vec![Part::End]));
        let chunk = [frame(b"a"), RESET.to_vec()].concat();
        assert_eq!(parts(&[chunk]), (vec![b"a".to_vec()], vec![Part::Reset]));
    }

    #[test]
    fn large_ones_are_not_moved() {
        let large = vec![7; LARGE];
        let chunk = [frame(b"a"), frame(&large), frame(b"b"), frame(&large)].concat();
        let writes = parts(&[chunk]).0;
        let lengths: Vec<usize> = writes.iter().map(Vec::len).collect();
        assert_eq!(lengths, [1, LARGE + 1, LARGE]);
    }

    #[test]
    fn what_came_before_nonsense_is_written_first() {
        let mut chunk = [frame(b"data"), vec![0, 16, 0, 0]].concat();
        let mut parts = Parts::default();
        assert_eq!(parts.next(&mut chunk), Ok(Some(Part::Bytes(4..8))));
        assert_eq!(parts.next(&mut chunk), Err(FrameTooLong(1 << 20)));
    }

    proptest! {
        #[test]
        fn every_byte_comes_once_and_in_order(
            payloads in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..40_000), 0..6),
            at in any::<prop::sample::Index>(),
        ) {
            let mut stream: Vec<u8> = payloads.iter().flat_map(|payload| frame(payload)).collect();
            stream.extend(END);
            let (first, second) = stream.split_at(at.index(stream.len()));
            let (writes, others) = parts(&[first.to_vec(), second.to_vec()]);
            prop_assert_eq!(writes.concat(), payloads.concat());
            prop_assert_eq!(others, [Part::End]);
        }
    }
}
