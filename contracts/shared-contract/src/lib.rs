//! What every rbee daemon says the same way.
//!
//! Owns: ids, the heartbeat traits and acknowledgement, timing constants, the two status axes, the error body, and the names
//! of the environment's variables.
//! Must not know: workers, hives, HTTP, clocks, or any runtime.

mod error;
mod heartbeat;
mod id;
mod status;
pub mod timing;
pub mod variables;

pub use error::{ErrorBody, ErrorKind, ErrorObject};
pub use heartbeat::{Delivery, DropReason, HeartbeatAck, HeartbeatItem, HeartbeatPayload, Stamp};
pub use id::{HiveId, IdError, ModelId, QueenId, WorkerId};
pub use status::{HealthStatus, OperationalStatus};
