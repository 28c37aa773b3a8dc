//! What the store knows of a model on its disk: `MODEL-FOLDER/manifest.json` beside `MODEL-FOLDER/files/FILE`.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use shared_contract::ModelId;

use crate::file;
use crate::store::{Resolved, StoredModel};
use crate::{ModelRef, StoreError};

/// Format that this version writes and reads.
const VERSION: u32 = 1;
const MANIFEST: &str = "manifest.json";
const FILES: &str = "files";

/// Written once, together with the file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Manifest {
    version: u32,
    id: ModelId,
    pub(crate) reference: ModelRef,
    /// Name of the file.
    file: String,
    pub(crate) size_bytes: u64,
    pub(crate) sha256: String,
    /// Where each part came from, in order.
    origins: Vec<Origin>,
}

/// Where one part came from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Origin {
    pub(crate) reference: ModelRef,
    /// Address of a hub's file, without query and credentials; file name of a wheel, which pip has found.
    pub(crate) url: String,
    /// Commit of the repository, where there is one.
    pub(crate) revision: Option<String>,
}

impl Manifest {
    pub(crate) fn new(model: &Resolved, size_bytes: u64, sha256: String, origins: Vec<Origin>) -> Self {
        let (id, reference, file) = (model.id.clone(), model.reference.clone(), model.file_name.clone());
        Self {
            version: VERSION,
            id,
            reference,
            file,
            size_bytes,
            sha256,
            origins,
        }
    }

    /// The model as it lies in this folder.
    pub(crate) fn stored_in(&self, folder: &Path) -> StoredModel {
        StoredModel {
            id: self.id.clone(),
            reference: self.reference.clone(),
            path: self.file_in(folder),
            size_bytes: self.size_bytes,
            sha256: Some(self.sha256.clone()),
        }
    }

    fn file_in(&self, folder: &Path) -> PathBuf {
        folder.join(FILES).join(&self.file)
    }
}

/// Builds a model folder around a finished file, which is moved into it.
pub(crate) fn write(manifest: &Manifest, file: &Path, folder: &Path) -> Result<(), StoreError> {
    file::make_dir(&folder.join(FILES))?;
    file::rename(file, &manifest.file_in(folder))?;
    file::write_json(&folder.join(MANIFEST), manifest)
}

/// Reads a model folder; `None` where it holds no model of this format, or its file is gone or has another size.
pub(crate) fn read(folder: &Path) -> Result<Option<Manifest>, StoreError> {
    let Some(manifest) = file::read_json::<Manifest>(&folder.join(MANIFEST))?.filter(|m| m.version == VERSION) else {
        return Ok(None);
    };
    let path = manifest.file_in(folder);
    let found = fs::metadata(&path)
        .ok()
        .filter(fs::Metadata::is_file)
        .map(|data| data.len());
    if found == Some(manifest.size_bytes) {
        return Ok(Some(manifest));
    }
    let expected = manifest.size_bytes;
    tracing::warn!(path = %path.display(), expected, ?found, "model file is damaged and not used");
    Ok(None)
}
