//! Peers that lie: an agent against a real `rum up`, a host against a real agent, a client against
//! the control socket. Whatever they say, the other side says what it saw, drops that one, stays
//! below a stated amount of memory (the kernel's own high-water mark) and serves the next.

mod agent;
mod control;
mod host;
mod support;
