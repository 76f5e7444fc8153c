//! The control socket: what `rum up` tells other `rum` processes of this user, and what they may
//! ask of it.

pub mod model;
