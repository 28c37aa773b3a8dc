//! `GET /v1/models`.

use serde::{Deserialize, Serialize};

use crate::response::Object;

/// A model as `GET /v1/models/{id}` shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Model {
    /// Name to use in requests.
    pub id: String,
    /// Always `model`.
    pub object: Object,
    /// Since when it is there, in seconds since the epoch.
    pub created: i64,
    /// Always `rbee`.
    pub owned_by: String,
}

impl Model {
    /// A model of this name, there since `created` (seconds since the epoch).
    pub fn new(id: impl Into<String>, created: i64) -> Self {
        Self {
            id: id.into(),
            object: Object::Model,
            created,
            owned_by: "rbee".to_owned(),
        }
    }
}

/// Answer to `GET /v1/models`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelList {
    /// Always `list`.
    pub object: Object,
    /// The models.
    pub data: Vec<Model>,
}

impl ModelList {
    /// A list of these.
    pub fn new(data: Vec<Model>) -> Self {
        Self {
            object: Object::List,
            data,
        }
    }
}
