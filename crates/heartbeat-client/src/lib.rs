//! The sender's side of the heartbeat plane: finds the queen, beats, finds her again, says goodbye.
//!
//! Owns: the discovery schedule, the state machine ([`ClientState`]), pace and jitter, the stamp of each beat, the goodbye.
//! Must not know: what a beat says (a [`Source`] builds it), who else beats, or what the queen does with it.
//!
//! [`Machine`] decides without clock or network, so that a simulation can run a thousand of them; [`HeartbeatClient`] gives
//! it both.

mod client;
mod driver;
mod dropped;
mod error;
mod machine;
mod options;
mod queen_url;
mod transport;

#[cfg(test)]
mod tests;

pub use client::{HeartbeatClient, HeartbeatHandle};
pub use dropped::remedy;
pub use error::Error;
pub use machine::{Beat, ClientState, Machine};
pub use options::{Options, Source, Timing, Token};
pub use queen_url::QueenUrl;
