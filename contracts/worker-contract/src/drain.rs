//! `POST /v1/drain`: finish what runs, take nothing new, end.

use serde::{Deserialize, Serialize};

/// Longest grace period that can be asked for, in seconds: a week.
pub const MAX_GRACE_S: u64 = 7 * 24 * 60 * 60;

/// Body of the request, which may be empty. Asked again, the last grace period counts, from the first request on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DrainRequest {
    /// Seconds that running requests may take, at most [`MAX_GRACE_S`]; left out: as the worker was told at its start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grace_s: Option<u64>,
}
