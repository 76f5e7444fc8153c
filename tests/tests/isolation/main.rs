//! What a namespace guest shares with its caller and what it keeps apart, as root and as an
//! ordinary user, with the real `rum` and real programs.

#![allow(clippy::unwrap_used)]

mod ids;
mod ipc;
mod privilege;
mod reach;
mod root;
mod support;
mod terminals;
mod tmp;
