//! What operators stated: which models must always run, and which hives take nothing new. Kept on disk.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use daemon::{StateFolder, StateFolderError};
use serde::{Deserialize, Serialize};
use shared_contract::{HiveId, ModelId, WorkerId};

/// The file in the state folder.
const FILE: &str = "stated.json";
/// Models that can be stated, and hives that can be drained.
const MAX_STATED: usize = 10_000;

/// Why statements cannot be kept; the text fits after "failed to".
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The state folder cannot be used.
    #[error(transparent)]
    Folder(#[from] StateFolderError),
    /// There are too many.
    #[error("keep more than {MAX_STATED} statements; end one first")]
    TooMany,
}

/// All statements.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Stated {
    /// What must run.
    pub(crate) serve: BTreeMap<ModelId, Serve>,
    /// Hives that take nothing new.
    pub(crate) drained: BTreeSet<HiveId>,
    /// Workers of statements that have ended, or want fewer now, which are still to be ended.
    pub(crate) ending: BTreeSet<WorkerId>,
}

/// A model that must run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Serve {
    /// What hives are asked to start, where it is not the model's id.
    #[serde(default)]
    pub(crate) reference: Option<String>,
    /// How many workers.
    pub(crate) replicas: u32,
    /// Whether they are never evicted.
    #[serde(default)]
    pub(crate) pin: bool,
    /// Those that were started for it: they go when the statement does.
    #[serde(default)]
    pub(crate) workers: BTreeSet<WorkerId>,
}

/// The statements, in memory and on disk. Readers never wait for the disk.
#[derive(Debug)]
pub(crate) struct Keeper {
    now: RwLock<Arc<Stated>>,
    /// Held while the file is written; `None`: nothing is kept.
    folder: Mutex<Option<StateFolder>>,
}

impl Keeper {
    /// Reads what is kept in the folder; makes it if it is not there.
    pub(crate) fn open(folder: Option<&Path>) -> Result<Self, StateError> {
        let folder = folder.map(StateFolder::take).transpose()?;
        let stated = folder.as_ref().map(read).transpose()?.unwrap_or_default();
        Ok(Self {
            now: RwLock::new(Arc::new(stated)),
            folder: Mutex::new(folder),
        })
    }

    /// What is stated now.
    pub(crate) fn now(&self) -> Arc<Stated> {
        Arc::clone(&self.now.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Changes what is stated, once the change is on disk. Blocks for as long as the disk takes.
    pub(crate) fn change<R>(&self, change: impl FnOnce(&mut Stated) -> R) -> Result<R, StateError> {
        let folder = self.folder.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.now();
        let mut stated = Stated::clone(&before);
        let result = change(&mut stated);
        if stated == *before {
            return Ok(result);
        }
        if stated.serve.len() > MAX_STATED || stated.drained.len() > MAX_STATED {
            return Err(StateError::TooMany);
        }
        while stated.ending.len() > MAX_STATED {
            stated.ending.pop_first();
        }
        if let Some(folder) = &*folder {
            folder.write(FILE, &format!("{}\n", json(&stated)))?;
        }
        *self.now.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(stated);
        Ok(result)
    }
}

fn read(folder: &StateFolder) -> Result<Stated, StateFolderError> {
    match folder.read(FILE)? {
        None => Ok(Stated::default()),
        Some(text) => serde_json::from_str(&text).map_err(|error| folder.damaged(FILE, error.to_string())),
    }
}

/// For people, too.
fn json(stated: &Stated) -> String {
    serde_json::to_string_pretty(stated)
        .unwrap_or_else(|error| unreachable!("maps with names as keys are JSON: {error}"))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn serve(replicas: u32) -> Serve {
        Serve {
            reference: None,
            replicas,
            pin: true,
            workers: BTreeSet::new(),
        }
    }

    #[test]
    fn what_is_stated_survives_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("queen");
        let model = ModelId::new("m").unwrap();
        let keeper = Keeper::open(Some(&path)).unwrap();
        let change = |stated: &mut Stated| {
            stated.serve.insert(model.clone(), serve(2));
            stated.drained.insert(HiveId::new("h").unwrap())
        };
        assert!(keeper.change(change).unwrap());
        let before = keeper.now();
        assert!(matches!(
            Keeper::open(Some(&path)),
            Err(StateError::Folder(StateFolderError::Taken(_)))
        ));
        drop(keeper);
        assert_eq!(Keeper::open(Some(&path)).unwrap().now(), before);
    }

    #[test]
    fn a_damaged_file_is_told_and_not_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join(FILE);
        // The last one is of a version that states more than this one knows: it would be lost at the next change.
        for text in [
            "{\"serve\": 1}",
            "{\"serve\": {}",
            "",
            "{\"serve\": {}, \"quotas\": {}}",
        ] {
            fs::write(&file, text).unwrap();
            let error = Keeper::open(Some(folder.path())).unwrap_err();
            assert!(
                matches!(error, StateError::Folder(StateFolderError::Damaged { .. })),
                "{error}"
            );
            assert!(error.to_string().contains(FILE), "{error}");
            assert_eq!(fs::read_to_string(&file).unwrap(), text);
        }
    }

    #[test]
    fn a_change_that_cannot_be_written_does_not_happen() {
        let folder = tempfile::tempdir().unwrap();
        let keeper = Keeper::open(Some(folder.path())).unwrap();
        fs::create_dir(folder.path().join("stated.json.new")).unwrap();
        let model = ModelId::new("m").unwrap();
        let error = keeper
            .change(|stated| drop(stated.serve.insert(model, serve(1))))
            .unwrap_err();
        assert!(error.to_string().contains("--state-dir"), "{error}");
        assert_eq!(*keeper.now(), Stated::default());
    }
}
