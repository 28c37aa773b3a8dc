//! The sender's side of the heartbeat plane: finds the queen, beats, finds her again, says goodbye.
//!
//! Owns: the discovery schedule, the state machine ([`ClientState`]), pace and jitter, the stamp of each beat, the goodbye,
//! and to which queens a process beats by which way.
//! Must not know: what a beat says (a [`Source`] builds it), who else beats, or what the queen does with it.
//!
//! [`Machine`] decides without clock or network, so that a simulation can run a thousand of them; [`HeartbeatClient`] gives
//! it both, for one queen; [`Queens`] has a client for each queen of a process, and one [`Sequence`] for all of them.

mod client;
mod driver;
mod dropped;
mod error;
mod machine;
mod options;
mod queen_url;
mod queens;
mod sequence;
mod transport;

#[cfg(test)]
mod tests;

pub use client::{HeartbeatClient, HeartbeatHandle};
pub use error::Error;
pub use machine::{Beat, ClientState, Machine};
pub use options::{Options, Source, Timing, Token};
pub use queen_url::QueenUrl;
pub use queens::{MAX_QUEENS, Queens, Roll};
pub use sequence::Sequence;
