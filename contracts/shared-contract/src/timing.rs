//! The contract's times. Each daemon may be configured otherwise; these are what it does by default.

use std::time::Duration;

/// Pause between two heartbeats of one sender, before jitter; the acknowledgement may ask for another.
pub const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(30);
/// A sender silent for this long, by the receiver's monotonic clock, is lost.
pub const HEARTBEAT_TTL: Duration = Duration::from_secs(90);
/// When a sender tries to find its queen, counted from the start of discovery.
pub const DISCOVERY_SCHEDULE: [Duration; 5] = [
    Duration::ZERO,
    Duration::from_secs(2),
    Duration::from_secs(4),
    Duration::from_secs(8),
    Duration::from_secs(16),
];
/// Pause between tries once [`DISCOVERY_SCHEDULE`] is used up, before jitter. Discovery never gives up.
pub const DISCOVERY_RETRY: Duration = Duration::from_secs(30);
/// Limit of one heartbeat request, connection included.
pub const HEARTBEAT_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause between two of the queen's own events on its heartbeat stream.
pub const QUEEN_BEAT_INTERVAL: Duration = Duration::from_millis(2_500);
/// Pause between two telemetry events of a hive's stream.
pub const TELEMETRY_INTERVAL: Duration = Duration::from_secs(1);
