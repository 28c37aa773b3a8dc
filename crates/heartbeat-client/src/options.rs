//! What a client is told: where the queen is, how fast to beat, and who builds the payload.

use std::{fmt, sync::Arc, time::Duration};

use shared_contract::{Delivery, HeartbeatAck, timing};

use crate::Sequence;

/// Settings of one client. A sender with several queens has one client for each.
#[derive(Debug, Clone)]
pub struct Options {
    /// `http://HOST:PORT`, with a path where the queen sits behind a prefix.
    pub queen_url: String,
    /// Sent as `Authorization: Bearer`.
    pub token: Option<Token>,
    /// Puts the beats in order; one for all clients of a process.
    pub sequence: Arc<Sequence>,
    /// The pace until a queen asks for another.
    pub timing: Timing,
    /// Seed of the jitter.
    pub seed: u64,
}

impl Options {
    /// The contract's times, a random seed, no token.
    pub fn new(queen_url: impl Into<String>, sequence: Arc<Sequence>) -> Self {
        Self {
            queen_url: queen_url.into(),
            token: None,
            sequence,
            timing: Timing::default(),
            seed: rand::random(),
        }
    }
}

/// The pace of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// Pause between two beats, before jitter. No pause between two tries to find the queen is longer, either.
    pub interval: Duration,
    /// Silence after which the queen calls the sender lost: caps the interval at a third of it.
    pub ttl: Duration,
    /// Limit of one request, connection included.
    pub timeout: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            interval: timing::HEARTBEAT_INTERVAL,
            ttl: timing::HEARTBEAT_TTL,
            timeout: timing::HEARTBEAT_TIMEOUT,
        }
    }
}

/// A secret that no log shows.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// Takes the secret.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    pub(crate) fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

/// Builds what the client sends.
pub trait Source<T>: Send + Sync + 'static {
    /// The payload of the beat that is about to be sent, also of each retry. Runs on the async runtime: must be quick.
    fn build(&self, delivery: Delivery) -> T;

    /// The queen has acknowledged this payload, and not dropped it: what it reported as changed need not be said again.
    fn delivered(&self, _payload: &T, _ack: &HeartbeatAck) {}
}
