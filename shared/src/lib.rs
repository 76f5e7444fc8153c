//! What the rum agent (in the guest) and the rum host both say.
//!
//! The crate follows the data flow of ARCHITECTURE.md:
//!
//! | step | module |
//! |---|---|
//! | 2 port set | [`range`], [`listener`]: pure sets and their differences |
//! | 3 RPC stream | [`stream`]: the trait and its wire types, its sessions and their frames, over [`transport`] |
//! | 5, 6 bytes | [`destination`], [`bytes`]: the forward channel and its half-close |
//!
//! [`text`] cleans what the other side wrote before a terminal sees it.
//!
//! Invariant: everything that crosses is bounded by a named constant and checked on arrival,
//! since guest and host distrust each other.

pub mod bytes;
pub mod destination;
pub mod lines;
pub mod listener;
pub mod netns;
pub mod range;
pub mod stream;
pub mod text;
pub mod threads;
pub mod transport;

/// Port of the RPC service, on vsock and after `CONNECT`.
pub const RPC_PORT: u32 = 2222;
/// Port of the forward (byte) channel.
pub const CHANNEL_PORT: u32 = 2223;
/// Port on the host (CID 2) where an agent knocks while nobody has its stream.
pub const KNOCK_PORT: u32 = 2224;
