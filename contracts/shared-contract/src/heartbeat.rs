//! Heartbeats as sender and receiver see them.

use std::{fmt, hash::Hash};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{ModelId, QueenId, timing};

/// What the sender's machinery puts on each beat.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// Grows at every start of the sender.
    pub incarnation: u64,
    /// Grows with every beat of the sender, to whichever queen; there may be gaps.
    pub seq: u64,
    /// The sender's wall clock. The receiver derives a skew gauge from it and decides nothing by it.
    pub timestamp: DateTime<Utc>,
}

/// A heartbeat from its sender's side.
pub trait HeartbeatPayload: Serialize + Send + Sync + 'static {
    /// Path on the queen, for example `/v1/worker-heartbeat`.
    const PATH: &'static str;

    /// Takes the stamp of the beat that is about to be sent.
    fn stamp(&mut self, stamp: Stamp);
}

/// How much a beat should carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delivery {
    /// Everything: on discovery and when the queen says `want_full`.
    Full,
    /// What a beat always carries, and what changed.
    Brief,
}

/// A heartbeat from its receiver's side: one member of the fleet as it last described itself.
pub trait HeartbeatItem: Clone + Serialize + DeserializeOwned + Send + Sync + 'static {
    /// Names a member of this kind.
    type Id: Clone + Eq + Hash + Ord + fmt::Display + Serialize + Send + Sync + 'static;

    /// Word for this kind in events and metrics, for example `worker`.
    const KIND: &'static str;

    /// Who sent it.
    fn id(&self) -> &Self::Id;
    /// The sender's incarnation and sequence number; `(0, 0)` from a sender that has none.
    fn order(&self) -> (u64, u64);
    /// The sender's wall clock.
    fn timestamp(&self) -> DateTime<Utc>;
    /// Whether this is the sender's goodbye.
    fn is_goodbye(&self) -> bool;
    /// Whether the sender says that it can take work now. Says nothing about liveness.
    fn is_available(&self) -> bool;
    /// The model under which the member is indexed, if it serves one.
    fn model(&self) -> Option<&ModelId>;
    /// Host that the sender names for itself; `None` means the address that the beat came from.
    fn host(&self) -> Option<&str>;
    /// Port on which the sender can be reached.
    fn port(&self) -> u16;
    /// Whether the receiver should ask for the full description after merging.
    fn wants_full(&self) -> bool;
    /// Takes over from the previous beat of the same incarnation what a brief beat leaves out.
    fn inherit(&mut self, previous: &Self);
    /// Whether it says something, after merging, that whoever watches the fleet should see at once. Load and the like,
    /// which differ in every beat, are no news.
    fn is_news_after(&self, previous: &Self) -> bool;
}

/// Why a receiver took a heartbeat for no news of its sender.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DropReason {
    /// The same beat had come already.
    Duplicate,
    /// A newer beat of the same incarnation came first.
    Reordered,
    /// A newer incarnation of the sender is known.
    OlderIncarnation,
    /// Its sender has left, as far as the receiver knows: a sender that reads this lives, and goes on under an incarnation
    /// above [`HeartbeatAck::known_incarnation`].
    Departed,
    /// Another live sender has the same id.
    Conflict,
    /// One that this version does not know.
    #[serde(other)]
    Unknown,
}

impl DropReason {
    /// Its word on the wire and in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Duplicate => "duplicate",
            Self::Reordered => "reordered",
            Self::OlderIncarnation => "older_incarnation",
            Self::Departed => "departed",
            Self::Conflict => "conflict",
            Self::Unknown => "unknown",
        }
    }
}

impl fmt::Display for DropReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Duplicate => "the same heartbeat had come already",
            Self::Reordered => "a newer heartbeat came first",
            Self::OlderIncarnation => "a newer process with the same id has been heard of",
            Self::Departed => "its sender was taken for gone",
            Self::Conflict => "another live process has the same id",
            Self::Unknown => "dropped for a reason that this version does not know",
        })
    }
}

/// The queen's answer to every accepted heartbeat.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeartbeatAck {
    /// Always `ok`.
    pub status: String,
    /// For people.
    pub message: String,
    /// The pace that the queen wants.
    #[serde(default = "default_interval_ms")]
    pub interval_ms: u64,
    /// Silence after which the queen will call the sender lost.
    #[serde(default = "default_ttl_ms")]
    pub ttl_ms: u64,
    /// The next beat should be full, and come at once.
    #[serde(default)]
    pub want_full: bool,
    /// Which run of which queen answered.
    #[serde(default)]
    pub queen_id: Option<QueenId>,
    /// Why the beat was dropped; left out if it was taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dropped: Option<DropReason>,
    /// The newest incarnation that the receiver knows of, where the beat was dropped since its sender was taken for gone.
    ///
    /// The sender refutes that by a higher one, as in SWIM (Das, Gupta, Motivala 2002, section 4.2). An old beat that comes
    /// late cannot: there is nobody to read its answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub known_incarnation: Option<u64>,
}

fn default_interval_ms() -> u64 {
    timing::HEARTBEAT_INTERVAL.as_millis() as u64
}

fn default_ttl_ms() -> u64 {
    timing::HEARTBEAT_TTL.as_millis() as u64
}
