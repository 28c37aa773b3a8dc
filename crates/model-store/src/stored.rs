//! The models that lie in the store: which there are, whether they are what was pulled, and their end.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use sha2::{Digest, Sha256};
use shared_contract::ModelId;
use tokio_util::sync::CancellationToken;

use crate::context::blocking;
use crate::file::{self, STEP_BYTES};
use crate::folder::{Folder, folder_name};
use crate::holds::Gate;
use crate::manifest::{self, Damage, Manifest, State};
use crate::progress::Tracker;
use crate::store::Resolved;
use crate::{ModelRef, ModelStore, Phase, Progress, StoreError};

const HELD: &str = "a process of this host uses it; stop the workers that serve it, then delete it";
const PULLED: &str = "it is being pulled; wait for the pull or cancel it, then delete it";

/// A model that can be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredModel {
    /// As clients name it.
    pub id: ModelId,
    /// As `pull` was asked for it.
    pub reference: ModelRef,
    /// The file; of a repository, the folder with its files.
    pub path: PathBuf,
    /// Its size; of a folder, that of all files that belong to the model.
    pub size_bytes: u64,
    /// Its checksum; of a repository, the one of a list of its files' checksums. `None` for a `file:` reference, which
    /// is not read.
    pub sha256: Option<String>,
    /// Commit of the hub's repository from which it came.
    pub revision: Option<String>,
    /// When a [`crate::Hold`] on it last began or ended; before the first one, when it was pulled. Of a `file:`
    /// reference, when it was written.
    pub last_used: SystemTime,
    /// Whether somebody on this host held it when it was looked at. Of a `file:` reference, nobody does.
    pub is_held: bool,
}

/// One file of a stored model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredFile {
    /// Its name in the model's folder.
    pub name: String,
    /// Where it lies.
    pub path: PathBuf,
    /// Its size.
    pub size_bytes: u64,
    /// Its checksum, 64 lower-case hexadecimal digits.
    pub sha256: String,
}

/// What lies in a store.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Listing {
    /// Models that can be used, by id.
    pub models: Vec<StoredModel>,
    /// Those that cannot: a pull fetches them anew, [`ModelStore::delete_damaged`] removes them.
    pub damaged: Vec<DamagedModel>,
}

/// A model that was pulled once, and is not whole any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DamagedModel {
    /// As clients named it; `None` where it cannot be known any more.
    pub id: Option<ModelId>,
    /// As `pull` was asked for it; `None` where it cannot be known any more.
    pub reference: Option<ModelRef>,
    /// The damaged file.
    pub path: PathBuf,
    /// What is wrong with it, with the remedy.
    pub why: String,
    /// Name of its folder.
    folder: String,
}

impl ModelStore {
    /// All models in the folder. Those of `file:` references are not among them.
    pub async fn list(&self) -> Result<Listing, StoreError> {
        let folder = self.folder().clone();
        blocking(move || list(&folder)).await
    }

    /// The stored model of this reference, catalogue name or id.
    pub async fn find(&self, text: &str) -> Result<StoredModel, StoreError> {
        let listing = self.list().await?;
        choose(listing, text.trim())
    }

    /// The model's files, in the order of their names.
    pub async fn files(&self, model: &StoredModel) -> Result<Vec<StoredFile>, StoreError> {
        let (folder, reference) = (self.folder().clone(), model.reference.clone());
        blocking(move || files(&folder, &reference)).await
    }

    /// Reads all files of the model and compares them with what was pulled: [`StoreError::Damaged`] names the first one
    /// that is not the same. The model is held meanwhile.
    pub async fn verify(
        &self,
        model: &StoredModel,
        progress: impl Fn(Progress) + Send + Sync + 'static,
        cancel: &CancellationToken,
    ) -> Result<(), StoreError> {
        let hold = self.hold(&model.reference).await?;
        let files = self.files(model).await?;
        let totals = files.iter().map(|file| Some(file.size_bytes));
        let mut tracker = Tracker::new(Arc::new(progress), Phase::Verify, totals);
        // Work on the blocking pool ends soon after this future is dropped.
        let cancel = cancel.child_token();
        let _ends_with_this = cancel.clone().drop_guard();
        blocking(move || {
            let _hold = hold;
            for (nth, file) in files.iter().enumerate() {
                verify(file, &cancel, |done| tracker.set(nth, done, None))?;
            }
            Ok(())
        })
        .await
    }

    /// Removes the model, and what pulls of it have left. Nothing happens where it is gone already; a crash leaves either
    /// all of it or nothing that counts as a model. [`StoreError::InUse`] while it is held or pulled.
    pub async fn delete(&self, model: &StoredModel) -> Result<(), StoreError> {
        let (folder, reference) = (self.folder().clone(), model.reference.clone());
        blocking(move || match &reference {
            ModelRef::File(_) => Err(not_stored(&list(&folder)?, reference.printable())),
            _ => delete(&folder, &folder_name(&reference), &reference.printable()),
        })
        .await
    }

    /// Removes what [`Self::list`] calls damaged, as [`Self::delete`] does.
    pub async fn delete_damaged(&self, model: &DamagedModel) -> Result<(), StoreError> {
        let (folder, name) = (self.folder().clone(), model.folder.clone());
        blocking(move || delete(&folder, &name, &name)).await
    }
}

/// The model as it is found now, with its use.
pub(crate) fn with_use(folder: &Folder, name: &str, model: StoredModel) -> Result<StoredModel, StoreError> {
    describe(&folder.locks.gate()?, name, model)
}

fn describe(gate: &Gate<'_>, name: &str, model: StoredModel) -> Result<StoredModel, StoreError> {
    Ok(StoredModel {
        last_used: gate
            .last_used(name)
            .map_or(model.last_used, |used| used.max(model.last_used)),
        is_held: gate.is_held(name)?,
        ..model
    })
}

/// The model that a pull would give without fetching anything.
pub(crate) fn present(folder: &Folder, wanted: &Resolved) -> Result<Option<StoredModel>, StoreError> {
    let name = folder_name(&wanted.reference);
    let path = folder.model(&name);
    let manifest = match manifest::look(&path)? {
        State::Whole(manifest) => manifest,
        State::Other => return Ok(None),
        State::Damaged { damage, .. } => {
            let Damage { path, expected, found } = damage;
            tracing::warn!(path = %path.display(), expected, found, "model is damaged and not used");
            return Ok(None);
        }
    };
    if !manifest.is_of(wanted) {
        return Ok(None);
    }
    with_use(folder, &name, manifest.stored_in(&path)).map(Some)
}

fn list(folder: &Folder) -> Result<Listing, StoreError> {
    let mut listing = Listing::default();
    let mut whole = Vec::new();
    for name in folder.model_names()? {
        let path = folder.model(&name);
        let (manifest, error) = match manifest::look(&path) {
            Ok(State::Other) => continue,
            Ok(State::Whole(manifest)) => match misplaced(&manifest, &name, &path) {
                None => {
                    whole.push((manifest.stored_in(&path), name));
                    continue;
                }
                Some(damage) => (Some(manifest), damage.into()),
            },
            Ok(State::Damaged { manifest, damage }) => (manifest.map(|manifest| *manifest), damage.into()),
            // One folder that cannot be read does not hide the others.
            Err(error) => (None, error),
        };
        listing.damaged.push(damaged(name, path, manifest, &error));
    }
    let gate = folder.locks.gate()?;
    for (model, name) in whole {
        listing.models.push(describe(&gate, &name, model)?);
    }
    listing
        .models
        .sort_by(|a, b| (&a.id, &a.reference).cmp(&(&b.id, &b.reference)));
    Ok(listing)
}

/// A folder that somebody has renamed or copied is found by no reference.
fn misplaced(manifest: &Manifest, name: &str, path: &Path) -> Option<Damage> {
    let expected = folder_name(&manifest.reference);
    (expected != name).then(|| Damage {
        path: path.to_path_buf(),
        expected: format!("the folder's name {expected}"),
        found: name.to_owned(),
    })
}

fn damaged(name: String, path: PathBuf, manifest: Option<Manifest>, error: &StoreError) -> DamagedModel {
    let file = match error {
        StoreError::Damaged { path, .. } | StoreError::Io { path, .. } => path.clone(),
        _ => path,
    };
    // Of the forms of references, only catalogue names are their folder's name.
    let by_name = || {
        name.parse::<ModelRef>()
            .ok()
            .filter(|reference| folder_name(reference) == name)
    };
    let (id, reference) = match manifest {
        Some(manifest) => (Some(manifest.id), Some(manifest.reference)),
        None => {
            let reference = by_name();
            (reference.as_ref().map(ModelRef::model_id), reference)
        }
    };
    DamagedModel {
        id,
        reference,
        path: file,
        why: error.to_string(),
        folder: name,
    }
}

fn choose(mut listing: Listing, text: &str) -> Result<StoredModel, StoreError> {
    let wanted: Option<ModelRef> = text.parse().ok();
    let is_meant = |model: &StoredModel| wanted.as_ref() == Some(&model.reference);
    if let Some(nth) = listing.models.iter().position(is_meant) {
        return Ok(listing.models.swap_remove(nth));
    }
    let mut same_id: Vec<_> = listing
        .models
        .iter()
        .filter(|model| model.id.as_str() == text)
        .collect();
    if same_id.len() > 1 {
        return Err(StoreError::Ambiguous {
            id: text.to_owned(),
            references: joined(same_id.into_iter().map(|model| &model.reference)),
        });
    }
    if let Some(model) = same_id.pop() {
        return Ok(model.clone());
    }
    let is_meant = |model: &&DamagedModel| {
        let by_reference = model.reference.is_some() && model.reference == wanted;
        by_reference || model.id.as_ref().is_some_and(|id| id.as_str() == text)
    };
    // Without the query of an address, which can be a signature.
    let asked = wanted.as_ref().map_or_else(|| text.to_owned(), ModelRef::printable);
    if let Some(model) = listing.damaged.iter().find(is_meant) {
        return Err(StoreError::DamagedModel {
            model: asked,
            why: model.why.clone(),
        });
    }
    Err(not_stored(&listing, asked))
}

fn joined<'a>(references: impl Iterator<Item = &'a ModelRef>) -> String {
    references.map(ModelRef::printable).collect::<Vec<_>>().join(", ")
}

fn not_stored(listing: &Listing, text: String) -> StoreError {
    let known = match joined(listing.models.iter().map(|model| &model.reference)) {
        known if known.is_empty() => "none".to_owned(),
        known => known,
    };
    StoreError::NotStored { text, known }
}

fn files(folder: &Folder, reference: &ModelRef) -> Result<Vec<StoredFile>, StoreError> {
    if !matches!(reference, ModelRef::File(_)) {
        let path = folder.model(&folder_name(reference));
        match manifest::look(&path)? {
            State::Whole(manifest) if manifest.reference == *reference => return Ok(manifest.files_in(&path)),
            State::Damaged { damage, .. } => return Err(damage.into()),
            State::Whole(_) | State::Other => {}
        }
    }
    Err(not_stored(&list(folder)?, reference.printable()))
}

/// Compares a file's content with its checksum. `step` hears how many bytes were read.
fn verify(file: &StoredFile, cancel: &CancellationToken, mut step: impl FnMut(u64)) -> Result<(), StoreError> {
    let fail = |source| StoreError::io("read", &file.path, source);
    let mut content = File::open(&file.path).map_err(fail)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; STEP_BYTES];
    let mut done = 0;
    loop {
        if cancel.is_cancelled() {
            return Err(StoreError::Cancelled);
        }
        let read = content.read(&mut buffer).map_err(fail)?;
        if read == 0 {
            break;
        }
        hasher.update(&buffer[..read]);
        done += read as u64;
        step(done);
    }
    let found = file::hex(&hasher.finalize());
    if found == file.sha256 {
        return Ok(());
    }
    Err(StoreError::Damaged {
        path: file.path.clone(),
        expected: format!("sha256 {}", file.sha256),
        found,
    })
}

fn delete(folder: &Folder, name: &str, model: &str) -> Result<(), StoreError> {
    let in_use = |why| StoreError::InUse {
        model: model.to_owned(),
        why,
    };
    // Behind the gate, so that the look of one who makes room is not taken for a pull.
    let gate = folder.locks.gate()?;
    let pull = folder.locks.claim_pull(name)?.ok_or_else(|| in_use(PULLED))?;
    let claim = gate.claim(name)?.ok_or_else(|| in_use(HELD))?;
    folder.remove(name, gate, pull, claim)
}
