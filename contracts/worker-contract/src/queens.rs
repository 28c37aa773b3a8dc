//! `POST /v1/queens`: a worker's hive tells it of a queen.

use serde::{Deserialize, Serialize};

/// Body of the request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueenNotice {
    /// Queen to report to as well, `http://HOST[:PORT][/PREFIX]`.
    pub queen_url: String,
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueenList {
    /// Every queen that the worker reports to now.
    pub queens: Vec<String>,
}
