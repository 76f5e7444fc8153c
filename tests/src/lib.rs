//! Helpers of the end-to-end tests and benchmarks.

pub mod assets;
pub mod chaos;
pub mod client;
pub mod device;
pub mod fake_agent;
pub mod fuzz;
pub mod guest;
pub mod ip;
pub mod machine;
pub mod netns;
pub mod ports;
pub mod rum;
pub mod terminal;
pub mod traffic;
pub mod vm;
pub mod wait;

/// CLOCK_MONOTONIC in nanoseconds: the same clock in every process of one kernel.
pub fn monotonic_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// FNV-1a, 64 bits: tells apart streams that differ in one byte or in its place.
#[derive(Debug, Clone, Copy)]
pub struct Fnv(u64);

impl Default for Fnv {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Fnv {
    /// Takes more bytes in.
    pub fn update(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    /// The hash of all bytes so far.
    pub fn value(self) -> u64 {
        self.0
    }
}
