//! Model files between hosts: what a hive has, and which hives have it.

use serde::{Deserialize, Serialize};
use shared_contract::HiveId;

use crate::ModelEntry;

/// Answer to `GET /v1/models/{id}` of a hive. The files themselves: `GET /v1/models/{id}/file?name=NAME`, with ranges.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelDetail {
    /// The model.
    #[serde(flatten)]
    pub entry: ModelEntry,
    /// Its files, in the order of their names.
    pub files: Vec<ModelFileEntry>,
}

/// One file of a model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelFileEntry {
    /// Its name in the model's folder.
    pub name: String,
    /// Its size.
    pub size_bytes: u64,
    /// Its checksum; 64 lower-case hexadecimal digits.
    pub sha256: String,
}

/// Answer to `GET /v1/model-holders?reference=` of a queen.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ModelHolders {
    /// Hives that are there and have the model, in the order of their ids.
    pub holders: Vec<ModelHolder>,
}

/// A hive that has a model's files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelHolder {
    /// Which hive.
    pub hive_id: HiveId,
    /// Where the queen reaches it: `http://HOST:PORT`.
    pub base_url: String,
}
