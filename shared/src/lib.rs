//! The protocol and the code that the rum agent (in the guest) and the rum host share.
//!
//! The crate follows the data flow of ARCHITECTURE.md:
//!
//! | step | module |
//! |---|---|
//! | 2 port set | [`range`], [`listener`]: pure sets and their differences |
//! | 3 RPC stream | [`stream`]: the trait and its wire types, its sessions and their frames, over [`transport`] |
//! | 5, 6 bytes | [`destination`], [`bytes`]: the forward channel and its half-close |
//!
//! [`text`] cleans text of the other side before a terminal sees it.
//!
//! Invariant: everything received is bounded by a named constant and checked on arrival, since
//! guest and host distrust each other.

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
/// Port on the host (CID 2) for an agent's ready notification while no host is subscribed.
pub const KNOCK_PORT: u32 = 2224;
