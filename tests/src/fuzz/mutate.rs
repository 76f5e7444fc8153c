//! Changes inputs a little, as a fuzzer does: the same changes for the same seed.

/// Numbers that parsers trip over.
const ODD: [u64; 12] = [
    0,
    1,
    0x7f,
    0x80,
    0xff,
    0x7fff,
    0xffff,
    0x1_0000,
    0x7fff_ffff,
    0xffff_ffff,
    u64::MAX >> 1,
    u64::MAX,
];
/// Most changes to one input.
const CHANGES: u64 = 6;
/// Longest input that is made.
const MAX_LENGTH: usize = 16 * 1024;

/// A source of changed inputs.
#[derive(Debug)]
pub struct Mutator(u64);

impl Mutator {
    /// One that begins at `seed`.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number: SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number
    /// generators, 2014).
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end`, 0 if that is 0.
    fn below(&mut self, end: usize) -> usize {
        (self.next() % (end.max(1) as u64)) as usize
    }

    /// One of `corpus`, changed in a few places, now and then with a part of another.
    pub fn mutate(&mut self, corpus: &[Vec<u8>]) -> Vec<u8> {
        let one = self.below(corpus.len());
        let mut input = corpus.get(one).cloned().unwrap_or_default();
        for _ in 0..1 + self.next() % CHANGES {
            let at = self.below(input.len() + 1);
            let length = self.below(16).min(input.len() - at);
            match self.next() % 8 {
                0 => {
                    if let Some(byte) = input.get_mut(at) {
                        *byte ^= 1 << self.below(8);
                    }
                }
                1 => {
                    let byte = self.next() as u8;
                    input.insert(at, byte);
                }
                2 => drop(input.drain(at..at + length)),
                3 => {
                    // A number of 1, 2, 4 or 8 bytes, in either order.
                    let odd = ODD[self.below(ODD.len())];
                    let width = 1 << self.below(4);
                    let mut bytes = odd.to_le_bytes()[..width].to_vec();
                    if self.next() & 1 == 0 {
                        bytes.reverse();
                    }
                    let end = (at + width).min(input.len());
                    input.splice(at..end, bytes);
                }
                4 => {
                    let part = input[at..at + length].to_vec();
                    let times = 1 + self.below(40);
                    input.splice(at..at, part.repeat(times));
                }
                5 => input.truncate(at),
                6 => {
                    let other = &corpus[self.below(corpus.len())];
                    let from = self.below(other.len() + 1);
                    let to = (from + self.below(64)).min(other.len());
                    input.splice(at..at, other[from..to].iter().copied());
                }
                _ => {
                    if let Some(byte) = input.get_mut(at) {
                        *byte = self.next() as u8;
                    }
                }
            }
            input.truncate(MAX_LENGTH);
        }
        input
    }
}
