//! The store's folder: what lies where in it, and how something leaves it.
//!
//! ```text
//! ROOT/NAME/manifest.json         a finished model; NAME follows from the reference
//! ROOT/NAME/files/FILE            one, or all of a repository
//! ROOT/.work/NAME/                downloads and parts of a pull, kept when it is interrupted
//! ROOT/.work/NAME/ready/          the finished model, before it gets its name
//! ROOT/.locks/NAME                held while a pull of this model is at work
//! ROOT/.locks/NAME@use            held by those who use the model
//! ROOT/.trash/                    what was removed in one step, and is deleted after it
//! ```
//!
//! Everything here blocks; callers run it on the blocking pool.

use std::fs::{self, DirEntry};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use sha2::{Digest, Sha256};

use crate::holds::{Claim, Gate, Locks};
use crate::{ModelRef, StoreError, file, reference, space};

/// Longest readable piece of a model folder's name, in bytes.
const MAX_READABLE_BYTES: usize = 100;
/// After so long, nobody is expected to go on with what a pull has left.
const KEEP_LEFTOVERS: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// Name of a model's folder: readable, and different for different references. Only catalogue names have no `@`.
pub(crate) fn folder_name(reference: &ModelRef) -> String {
    if let ModelRef::Catalogue(name) = reference {
        return name.as_str().to_owned();
    }
    let mut readable = reference::slug(reference.model_id().as_str());
    readable.truncate(MAX_READABLE_BYTES);
    let digest = file::hex(&Sha256::digest(reference.to_string()));
    // A leading dot would hide it.
    format!("{}@{}", readable.trim_start_matches('.'), &digest[..16])
}

/// The folder of a store.
#[derive(Debug, Clone)]
pub(crate) struct Folder {
    root: PathBuf,
    pub(crate) locks: Locks,
}

/// What was taken out of its place and only has to be deleted. A crash before that leaves it to the next [`Folder::sweep`].
#[must_use = "the space is free only after `delete`"]
pub(crate) struct Trash(Option<PathBuf>);

impl Trash {
    pub(crate) fn delete(self) -> Result<(), StoreError> {
        self.0.map_or(Ok(()), |path| file::remove_dir(&path))
    }
}

impl Folder {
    /// `root`: absolute, and there.
    pub(crate) fn new(root: PathBuf) -> Self {
        let locks = Locks::new(&root);
        Self { root, locks }
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// The finished model of this name.
    pub(crate) fn model(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// What pulls of this model work on.
    pub(crate) fn work(&self, name: &str) -> PathBuf {
        self.root.join(".work").join(name)
    }

    /// Names of all folders that could be models.
    pub(crate) fn model_names(&self) -> Result<Vec<String>, StoreError> {
        let mut names = folders_in(&self.root)?;
        names.retain(|name| !name.starts_with('.'));
        Ok(names)
    }

    /// Names of all models of which a pull has left something, or is at work.
    pub(crate) fn work_names(&self) -> Result<Vec<String>, StoreError> {
        folders_in(&self.root.join(".work"))
    }

    /// Takes something out of its place at once, so that a crash leaves no half of it there. The gate keeps two from
    /// choosing one name.
    pub(crate) fn throw(&self, path: &Path, _gate: &Gate<'_>) -> Result<Trash, StoreError> {
        let Some(name) = path
            .file_name()
            .and_then(|name| name.to_str())
            .filter(|_| path.exists())
        else {
            return Ok(Trash(None));
        };
        let trash = self.root.join(".trash");
        file::make_dir(&trash)?;
        let free = (0_u64..).map(|nth| trash.join(format!("{name}.{nth}")));
        let mut free = free.skip_while(|path| path.exists());
        let place = free.next().expect("there are more numbers than files");
        file::rename(path, &place)?;
        file::sync(&self.root)?;
        Ok(Trash(Some(place)))
    }

    /// The finished model of a pull, before [`Self::publish`].
    pub(crate) fn ready(&self, name: &str) -> PathBuf {
        self.work(name).join("ready")
    }

    /// Gives a finished model its name, in place of what had it, and removes the pull's work folder. Behind the gate, so that
    /// nobody who counts what takes room misses it between both places.
    pub(crate) fn publish(&self, name: &str) -> Result<(), StoreError> {
        let thrown = {
            let gate = self.locks.gate()?;
            let replaced = self.throw(&self.model(name), &gate)?;
            file::rename(&self.ready(name), &self.model(name))?;
            [replaced, self.throw(&self.work(name), &gate)?]
        };
        for error in thrown.into_iter().filter_map(|trash| trash.delete().err()) {
            // The model is there; the next store that is opened here tries again.
            tracing::warn!(%error, "could not remove what a pull has left");
        }
        Ok(())
    }

    /// Removes a model and what pulls of it have left. The caller has both claims.
    pub(crate) fn remove(&self, name: &str, gate: Gate<'_>, _pull: Claim, model: Claim) -> Result<(), StoreError> {
        let thrown = [
            self.throw(&self.model(name), &gate)?,
            self.throw(&self.work(name), &gate)?,
        ];
        // Nobody sees it any more; the rest can take its time.
        drop((model, gate));
        thrown.into_iter().try_for_each(Trash::delete)
    }

    /// Deletes what a crash has left of earlier removals, and parts of pulls with which nobody goes on.
    pub(crate) fn sweep(&self, now: SystemTime) -> Result<(), StoreError> {
        let trash = self.root.join(".trash");
        for name in folders_in(&trash)? {
            file::remove_dir(&trash.join(name))?;
        }
        for name in self.work_names()? {
            let path = self.work(&name);
            let age = now.duration_since(Contents::of(&path).last_changed).unwrap_or_default();
            if age < KEEP_LEFTOVERS {
                continue;
            }
            let thrown = {
                let gate = self.locks.gate()?;
                let Some(_claim) = self.locks.claim_pull(&name)? else {
                    continue;
                };
                self.throw(&path, &gate)?
            };
            tracing::info!(path = %path.display(), "removed what a pull has left that nobody continues");
            thrown.delete()?;
        }
        Ok(())
    }
}

/// Names of all folders in a folder; none where there is none.
fn folders_in(folder: &Path) -> Result<Vec<String>, StoreError> {
    let fail = |source| StoreError::io("list", folder, source);
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(fail)?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(fail)?;
        let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
        // This program gives no other names.
        names.extend(entry.file_name().into_string().ok().filter(|_| is_folder));
    }
    names.sort_unstable();
    Ok(names)
}

/// What lies under a folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Contents {
    /// What its files take on the disk: holes in them do not count.
    pub(crate) bytes: u64,
    /// When something in it was last written.
    pub(crate) last_changed: SystemTime,
}

impl Contents {
    /// Files that go away meanwhile are left out.
    pub(crate) fn of(folder: &Path) -> Self {
        let mut contents = Self {
            bytes: 0,
            last_changed: SystemTime::UNIX_EPOCH,
        };
        contents.add(fs::symlink_metadata(folder));
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            contents.add_entry(&entry);
        }
        contents
    }

    fn add_entry(&mut self, entry: &DirEntry) {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            let below = Self::of(&entry.path());
            self.bytes += below.bytes;
            self.last_changed = self.last_changed.max(below.last_changed);
        } else {
            self.add(entry.metadata());
        }
    }

    fn add(&mut self, data: io::Result<fs::Metadata>) {
        let Ok(data) = data else { return };
        if data.is_file() {
            self.bytes += space::of_file(&data);
        }
        self.last_changed = self.last_changed.max(data.modified().unwrap_or(SystemTime::UNIX_EPOCH));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reference_has_its_own_visible_folder() {
        let texts = [
            "smollm2-135m-instruct",
            "pip:a==1/x/SmolLM2.gguf",
            "pip:a==2/x/SmolLM2.gguf",
            "hf:org/repo",
            "hf:org/repo@v1",
            "hf:org/repo/x.gguf",
            "hf:org/repo@v1/x.gguf",
            "hf:org/repo/.hidden.gguf",
        ];
        let names: std::collections::BTreeSet<_> = texts.iter().map(|t| folder_name(&t.parse().unwrap())).collect();
        assert_eq!(names.len(), texts.len());
        assert!(
            names
                .iter()
                .all(|name| !name.starts_with('.') && !name.contains('/') && name.len() < 200),
            "{names:?}"
        );
    }
}
