//! The receiver's side of the heartbeat plane: who there is, who is alive, and what each said last.
//!
//! Owns: the members of one kind with their newest item, the liveness rule, the order of beats, who else claims an id, the
//! index by model, leases, the events of every change, and when nothing may be forgotten.
//! Must not know: workers, hives, HTTP, how a member is chosen or called back, or what time it is (`now` is passed in).
//!
//! Readers never wait for writers: maps are sharded and copied on write, and what a member said last is one swapped pointer.
//! Liveness is computed when somebody asks, from the last beat and `now` in listening time; the sweep only announces it and
//! forgets.

mod address;
mod clock;
mod event;
mod intake;
mod lease;
mod liveness;
mod member;
mod model_index;
mod pace;
mod preservation;
mod record;
mod registry;
mod rivalry;
mod sharded;
mod sweep;
mod tombstones;

#[cfg(test)]
mod tests;

pub use address::Address;
pub use event::{EventKind, LeaveReason, RegistryEvent};
pub use lease::Lease;
pub use liveness::{About, Evidence, Liveness, Reach};
pub use member::{Member, MemberView, Report};
pub use model_index::Members;
pub use pace::Pace;
pub use preservation::Preservation;
pub use record::{Outcome, Receipt, Recorded};
pub use registry::{Registry, RegistryOptions};
pub use rivalry::Contender;
pub use sweep::Cleanup;
pub use tombstones::Departed;

/// Why a beat was not recorded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The item names a host that cannot stand in a URL.
    #[error("`{0}` is neither a host name nor an IP address; leave it out to be reached where the heartbeat came from")]
    Host(String),
}
