//! What is fuzzed: one function for each place where bytes from somewhere else are read. It takes any
//! bytes, and panics when an invariant of that place does not hold.
//!
//! The functions are used twice: by the targets of cargo-fuzz (`tests/fuzz/`), which search for hours
//! under AddressSanitizer, and by the ordinary test `fuzz`, which gives each the committed corpus
//! (`fixtures/corpus/NAME/`) and some thousand [`mutations`](mutate::Mutator) of it, the same in each
//! run.
//!
//! | name | bytes |
//! |---|---|
//! | `proc_net` | family and byte order, then text of /proc/net/tcp or tcp6 |
//! | `sock_diag` | netlink datagrams, each with its length before it (32 bits, little-endian) |
//! | `perf` | `data_tail`, `data_head` (64 bits, little-endian), then a perf ring |
//! | `format` | the `format` file of a tracepoint |
//! | `frames` | what a peer sends on an RPC stream, as the link reads it |
//! | `session` | the same, through roam, to an agent or to a host |
//! | `channel` | what a peer sends on a forward channel |
//! | `connect` | what a device answers to `CONNECT` |
//! | `config` | `rum.toml` |
//! | `pattern` | a pattern of process names, a line feed, a name |
//! | `control` | messages of the control socket and of the agent's stream |
//! | `terminal` | text of the other side, on its way to a terminal |

mod kernel;
pub mod mutate;
mod text;
mod wire;

pub use kernel::{format, perf, proc_net, sock_diag};
pub use text::{config, pattern, terminal};
pub use wire::{channel, connect, control, frames, session};

/// A function that takes any bytes.
pub type Target = fn(&[u8]);

/// All of them, by name.
pub const TARGETS: [(&str, Target); 12] = [
    ("proc_net", proc_net),
    ("sock_diag", sock_diag),
    ("perf", perf),
    ("format", format),
    ("frames", frames),
    ("session", session),
    ("channel", channel),
    ("connect", connect),
    ("config", config),
    ("pattern", pattern),
    ("control", control),
    ("terminal", terminal),
];
