//! Stored payloads of every released shape.

use std::path::PathBuf;

use serde::Deserialize;
use serde_json::Value;

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("wire")
}

/// One stored payload, for example `worker_minimal`.
pub fn payload(name: &str) -> Value {
    read(&folder().join(format!("{name}.json")))
}

/// A payload that must be refused.
#[derive(Debug, Deserialize)]
pub struct Malformed {
    /// Its file's name.
    #[serde(skip)]
    pub name: String,
    /// Where it is posted.
    pub endpoint: String,
    /// The `param` of the answer.
    pub param: Option<String>,
    /// What the answer's message must contain.
    pub says: String,
    /// The payload.
    pub body: Value,
}

/// All payloads that must be refused.
pub fn malformed() -> Vec<Malformed> {
    let files = std::fs::read_dir(folder().join("malformed")).expect("the folder of malformed payloads");
    files
        .map(|file| {
            let path = file.expect("a file").path();
            let mut case: Malformed = serde_json::from_value(read(&path)).expect("a malformed case");
            case.name = path.file_stem().expect("a name").to_string_lossy().into_owned();
            case
        })
        .collect()
}

fn read(path: &std::path::Path) -> Value {
    let text = std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
