//! Daemons on this machine, started by `rbee up` and `rbee join` and ended with them.
//!
//! Life: planned (nothing started yet) -> starting -> serving -> stopping -> gone. A signal or the end of a daemon leads from
//! any of the middle states to stopping, and a second signal from there to gone, at once.

mod address;
mod children;
mod launcher;
mod life;
mod say;

pub(crate) use address::{own_address, reserve, url};
pub(crate) use children::Children;
pub(crate) use launcher::{Launcher, default_state_dir, has_api_key};
pub(crate) use life::{START_POLL, healthy, live};
pub(crate) use say::Say;
