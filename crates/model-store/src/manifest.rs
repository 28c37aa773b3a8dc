//! What the store knows of a model on its disk: `MODEL-FOLDER/manifest.json` beside its files in `MODEL-FOLDER/files`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use shared_contract::ModelId;

use crate::store::Resolved;
use crate::{ModelRef, StoreError, StoredFile, StoredModel, file};

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
    pub(crate) id: ModelId,
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

    /// The model as it lies in this folder, as long as nobody has used it.
    pub(crate) fn stored_in(&self, folder: &Path) -> StoredModel {
        let files = folder.join(FILES);
        let written = fs::metadata(folder.join(MANIFEST)).and_then(|data| data.modified());
        StoredModel {
            id: self.id.clone(),
            reference: self.reference.clone(),
            path: match &self.file {
                Some(file) => files.join(file),
                None => files,
            },
            size_bytes: self.size_bytes,
            sha256: Some(self.sha256.clone()),
            revision: self.origins.iter().find_map(|origin| origin.revision.clone()),
            last_used: written.unwrap_or(SystemTime::UNIX_EPOCH),
            is_held: false,
        }
    }

    /// Whether it describes what a pull of this model would give. A newer program can pin another file under the same name.
    pub(crate) fn is_of(&self, model: &Resolved) -> bool {
        let is_pinned = model.sha256.as_ref().is_none_or(|sha256| *sha256 == self.sha256);
        self.reference == model.reference && is_pinned
    }

    /// Whether this version reads it. Names are plain, so that none leads out of the folder.
    fn is_known(&self) -> bool {
        let is_plain = |name: &str| !matches!(name, "" | "." | "..") && !name.contains(['/', '\\']);
        let is_complete = match self.version {
            FILE_VERSION => self.file.is_some() && self.files.is_empty(),
            FOLDER_VERSION => self.file.is_none() && !self.files.is_empty(),
            _ => false,
        };
        is_complete && self.entries().iter().all(|entry| is_plain(&entry.name))
    }

    /// All files, in the manifest's order.
    fn entries(&self) -> Vec<ManifestFile> {
        let one = self.file.iter().map(|name| ManifestFile {
            name: name.clone(),
            size_bytes: self.size_bytes,
            sha256: self.sha256.clone(),
        });
        one.chain(self.files.iter().cloned()).collect()
    }

    /// All files as they lie in this folder, in the order of their names.
    pub(crate) fn files_in(&self, folder: &Path) -> Vec<StoredFile> {
        let mut files: Vec<_> = self
            .entries()
            .into_iter()
            .map(|entry| StoredFile {
                path: folder.join(FILES).join(&entry.name),
                name: entry.name,
                size_bytes: entry.size_bytes,
                sha256: entry.sha256,
            })
            .collect();
        files.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        files
    }
}

/// Builds a model folder around the finished files, which are moved into it, in the manifest's order. After a crash in the
/// middle, [`look`] tells whether it is whole: the manifest comes first.
pub(crate) fn write(manifest: &Manifest, finished: &[PathBuf], folder: &Path) -> Result<(), StoreError> {
    let files = folder.join(FILES);
    file::make_dir(&files)?;
    file::write_json(&folder.join(MANIFEST), manifest)?;
    for (path, entry) in finished.iter().zip(manifest.entries()) {
        file::rename(path, &files.join(entry.name))?;
    }
    Ok(())
}

/// What a folder is.
pub(crate) enum State {
    /// No model of this store.
    Other,
    /// One whose files are there, in their sizes.
    Whole(Manifest),
    /// One that cannot be used.
    Damaged {
        /// `None` where it cannot be read.
        manifest: Option<Box<Manifest>>,
        damage: Damage,
    },
}

/// What is wrong with a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Damage {
    pub(crate) path: PathBuf,
    pub(crate) expected: String,
    pub(crate) found: String,
}

impl From<Damage> for StoreError {
    fn from(Damage { path, expected, found }: Damage) -> Self {
        Self::Damaged { path, expected, found }
    }
}

/// Reads a model's folder and looks at its files, not into them.
pub(crate) fn look(folder: &Path) -> Result<State, StoreError> {
    let path = folder.join(MANIFEST);
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(State::Other);
        }
        Err(source) => return Err(StoreError::io("read", &path, source)),
    };
    let unreadable = |found: String| State::Damaged {
        manifest: None,
        damage: Damage {
            path: path.clone(),
            expected: "a description of a model as this version writes it".to_owned(),
            found,
        },
    };
    let manifest = match serde_json::from_slice::<Manifest>(&bytes) {
        Ok(manifest) if manifest.is_known() => manifest,
        Ok(manifest) => return Ok(unreadable(format!("one of format {}", manifest.version))),
        Err(error) => return Ok(unreadable(error.to_string())),
    };
    let damage = manifest.files_in(folder).into_iter().find_map(|file| {
        let found = match fs::metadata(&file.path) {
            Ok(data) if !data.is_file() => "no regular file".to_owned(),
            Ok(data) if data.len() != file.size_bytes => format!("{} bytes", data.len()),
            Ok(_) => return None,
            Err(error) => error.to_string(),
        };
        Some(Damage {
            path: file.path,
            expected: format!("{} bytes", file.size_bytes),
            found,
        })
    });
    Ok(match damage {
        None => State::Whole(manifest),
        Some(damage) => State::Damaged {
            manifest: Some(Box::new(manifest)),
            damage,
        },
    })
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
        let State::Whole(manifest) = look(folder.path()).unwrap() else {
            panic!("a model");
        };
        assert_eq!(manifest.stored_in(folder.path()).path, path);
        let written: serde_json::Value = serde_json::to_value(&manifest).unwrap();
        assert_eq!(written, serde_json::from_str::<serde_json::Value>(earlier).unwrap());
    }
}
