//! What the store knows of a model on its disk: `MODEL-FOLDER/manifest.json` beside its files in `MODEL-FOLDER/files`.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use shared_contract::ModelId;

use crate::file;
use crate::store::{Resolved, StoredModel};
use crate::{ModelRef, StoreError};

/// Format of a model that is one file.
const FILE_VERSION: u32 = 1;
/// Format of a model that is a folder of files.
const FOLDER_VERSION: u32 = 2;
const MANIFEST: &str = "manifest.json";
const FILES: &str = "files";

/// Written once, together with the files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Manifest {
    version: u32,
    id: ModelId,
    pub(crate) reference: ModelRef,
    /// Name of the file, where the model is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    file: Option<String>,
    /// The folder's files, where the model is one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    files: Vec<ManifestFile>,
    /// Of the file, or of all files together.
    pub(crate) size_bytes: u64,
    /// Of the file, or of the list of all files' checksums.
    pub(crate) sha256: String,
    /// Where each part came from, in order.
    origins: Vec<Origin>,
}

/// One file of several.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ManifestFile {
    pub(crate) name: String,
    pub(crate) size_bytes: u64,
    pub(crate) sha256: String,
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
    pub(crate) fn of_file(model: &Resolved, size_bytes: u64, sha256: String, origins: Vec<Origin>) -> Self {
        Self {
            version: FILE_VERSION,
            id: model.id.clone(),
            reference: model.reference.clone(),
            file: Some(model.file_name.clone()),
            files: Vec::new(),
            size_bytes,
            sha256,
            origins,
        }
    }

    pub(crate) fn of_folder(model: &Resolved, files: Vec<ManifestFile>, origins: Vec<Origin>) -> Self {
        // As `sha256sum` writes it.
        let list: String = files
            .iter()
            .map(|file| format!("{}  {}\n", file.sha256, file.name))
            .collect();
        Self {
            version: FOLDER_VERSION,
            id: model.id.clone(),
            reference: model.reference.clone(),
            file: None,
            size_bytes: files.iter().map(|file| file.size_bytes).sum(),
            sha256: file::hex(&Sha256::digest(list)),
            files,
            origins,
        }
    }

    /// The model as it lies in this folder.
    pub(crate) fn stored_in(&self, folder: &Path) -> StoredModel {
        let files = folder.join(FILES);
        StoredModel {
            id: self.id.clone(),
            reference: self.reference.clone(),
            path: match &self.file {
                Some(file) => files.join(file),
                None => files,
            },
            size_bytes: self.size_bytes,
            sha256: Some(self.sha256.clone()),
        }
    }

    /// Whether this version reads it.
    fn is_known(&self) -> bool {
        match self.version {
            FILE_VERSION => self.file.is_some(),
            FOLDER_VERSION => self.file.is_none() && !self.files.is_empty(),
            _ => false,
        }
    }

    /// Names and sizes of all files.
    fn files(&self) -> impl Iterator<Item = (&str, u64)> {
        let one = self.file.iter().map(|file| (file.as_str(), self.size_bytes));
        one.chain(self.files.iter().map(|file| (file.name.as_str(), file.size_bytes)))
    }
}

/// Builds a model folder around the finished files, which are moved into it, in the manifest's order.
pub(crate) fn write(manifest: &Manifest, finished: &[PathBuf], folder: &Path) -> Result<(), StoreError> {
    let files = folder.join(FILES);
    file::make_dir(&files)?;
    for (path, (name, _)) in finished.iter().zip(manifest.files()) {
        file::rename(path, &files.join(name))?;
    }
    file::write_json(&folder.join(MANIFEST), manifest)
}

/// Reads a model folder; `None` where it holds no model of these formats, or a file is gone or has another size.
pub(crate) fn read(folder: &Path) -> Result<Option<Manifest>, StoreError> {
    let Some(manifest) = file::read_json::<Manifest>(&folder.join(MANIFEST))?.filter(Manifest::is_known) else {
        return Ok(None);
    };
    for (name, expected) in manifest.files() {
        let path = folder.join(FILES).join(name);
        let found = fs::metadata(&path).ok().filter(fs::Metadata::is_file);
        let found = found.map(|data| data.len());
        if found != Some(expected) {
            tracing::warn!(path = %path.display(), expected, ?found, "model file is damaged and not used");
            return Ok(None);
        }
    }
    Ok(Some(manifest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_that_earlier_versions_have_pulled_are_still_there() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("files/m.gguf");
        file::make_dir(&folder.path().join(FILES)).unwrap();
        fs::write(&path, "1234").unwrap();
        let earlier = r#"{
            "version": 1, "id": "org/repo/m", "reference": "hf:org/repo/m.gguf", "file": "m.gguf",
            "size_bytes": 4, "sha256": "03ac674216f3e15c761ee1a5e255f067953623c8b388b4459e13f978d7c846f4",
            "origins": [{"reference": "hf:org/repo/m.gguf", "url": "https://hub.example/m.gguf", "revision": null}]
        }"#;
        fs::write(folder.path().join(MANIFEST), earlier).unwrap();
        let manifest = read(folder.path()).unwrap().expect("a model");
        assert_eq!(manifest.stored_in(folder.path()).path, path);
        let written: serde_json::Value = serde_json::to_value(&manifest).unwrap();
        assert_eq!(written, serde_json::from_str::<serde_json::Value>(earlier).unwrap());
    }
}
