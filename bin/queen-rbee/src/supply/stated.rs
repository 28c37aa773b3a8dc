//! What operators stated: which models must always run, and which hives take nothing new. Kept on disk.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use serde::{Deserialize, Serialize};
use shared_contract::{HiveId, ModelId, WorkerId};

/// The file in the state folder.
const FILE: &str = "stated.json";
/// Models that can be stated, and hives that can be drained.
const MAX_STATED: usize = 10_000;

/// Why statements cannot be kept; the text fits after "failed to".
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// Another queen has the folder.
    #[error("use the state folder {}: another queen runs there; give each its own with --state-dir", .0.display())]
    Taken(PathBuf),
    /// The file system refused.
    #[error("{action} {}: {source}; another folder can be given with --state-dir", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file has been damaged, or is another version's.
    #[error("read {}: {why}; start the version that wrote it, or move the file away to begin anew", path.display())]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
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
    folder: Mutex<Option<Folder>>,
}

/// A folder that no other queen uses while this lives.
#[derive(Debug)]
struct Folder {
    path: PathBuf,
    _lock: File,
}

impl Keeper {
    /// Reads what is kept in the folder; makes it if it is not there.
    pub(crate) fn open(folder: Option<&Path>) -> Result<Self, StateError> {
        let (stated, folder) = match folder {
            None => (Stated::default(), None),
            Some(path) => {
                let folder = take(path)?;
                (read(&path.join(FILE))?, Some(folder))
            }
        };
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
            write(&folder.path.join(FILE), &stated)?;
        }
        *self.now.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(stated);
        Ok(result)
    }
}

fn take(path: &Path) -> Result<Folder, StateError> {
    fs::create_dir_all(path).map_err(fail("make the state folder", path))?;
    let lock_path = path.join("lock");
    let lock = File::create(&lock_path).map_err(fail("open", &lock_path))?;
    match lock.try_lock() {
        Ok(()) => Ok(Folder {
            path: path.to_owned(),
            _lock: lock,
        }),
        Err(TryLockError::WouldBlock) => Err(StateError::Taken(path.to_owned())),
        Err(TryLockError::Error(source)) => Err(fail("lock", &lock_path)(source)),
    }
}

fn read(file: &Path) -> Result<Stated, StateError> {
    let text = match fs::read(file) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Stated::default()),
        Err(error) => return Err(fail("read", file)(error)),
    };
    serde_json::from_slice(&text).map_err(|error| StateError::Damaged {
        path: file.to_owned(),
        why: error.to_string(),
    })
}

/// Replaces the file as a whole, so that a crash leaves the old or the new one.
fn write(path: &Path, stated: &Stated) -> Result<(), StateError> {
    let new = path.with_extension("new");
    let replace = || {
        let mut file = File::create(&new)?;
        serde_json::to_writer_pretty(&mut file, stated)?;
        writeln!(file)?;
        file.sync_all()?;
        fs::rename(&new, path)?;
        // The file's new name is on disk when its folder is.
        path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
    };
    replace().map_err(fail("write", path))
}

fn fail(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StateError {
    let path = path.to_owned();
    move |source| StateError::Io { action, path, source }
}

#[cfg(test)]
mod tests {
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
        assert!(matches!(Keeper::open(Some(&path)), Err(StateError::Taken(_))));
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
            assert!(matches!(error, StateError::Damaged { .. }), "{error}");
            assert!(error.to_string().contains(FILE), "{error}");
            assert_eq!(fs::read_to_string(&file).unwrap(), text);
        }
    }

    #[test]
    fn a_change_that_cannot_be_written_does_not_happen() {
        let folder = tempfile::tempdir().unwrap();
        let keeper = Keeper::open(Some(folder.path())).unwrap();
        fs::create_dir(folder.path().join("stated.new")).unwrap();
        let model = ModelId::new("m").unwrap();
        let error = keeper
            .change(|stated| drop(stated.serve.insert(model, serve(1))))
            .unwrap_err();
        assert!(error.to_string().contains("--state-dir"), "{error}");
        assert_eq!(*keeper.now(), Stated::default());
    }
}
