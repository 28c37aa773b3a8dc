//! Who uses which model: locks that a process gives back when it ends, however it ends.
//!
//! A holder has a shared lock on `.locks/NAME@use`; who removes the model has the exclusive one for that moment. When the
//! file was modified tells the last use. Exclusive locks are only tried behind the gate, `.locks/@gate`, so that nobody
//! takes another's look for a use. All of it blocks, but nobody waits longer than a look or a rename takes.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::StoreError;

/// A model in use: it is not removed while this lives. Dropping it, or the end of the process, gives it back.
#[derive(Debug)]
#[must_use = "the model is held only as long as this lives"]
pub struct Hold {
    /// `None` where nothing of this store's could be removed.
    file: Option<File>,
}

impl Hold {
    /// For what is not the store's to remove.
    pub(crate) fn of_nothing() -> Self {
        Self { file: None }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        if let Some(file) = &self.file {
            touch(file);
        }
    }
}

/// The last use is a hint for the choice of what is removed; a store that cannot be written to needs none.
fn touch(file: &File) {
    if let Err(error) = file.set_modified(SystemTime::now()) {
        tracing::debug!(%error, "the model's last use could not be kept");
    }
}

/// The lock files of a store.
#[derive(Debug, Clone)]
pub(crate) struct Locks {
    folder: PathBuf,
}

/// The right to try exclusive locks.
pub(crate) struct Gate<'a> {
    locks: &'a Locks,
    _lock: Option<File>,
}

/// An exclusive lock on something of one model.
#[derive(Debug)]
pub(crate) struct Claim {
    lock: File,
}

impl Locks {
    pub(crate) fn new(root: &Path) -> Self {
        Self {
            folder: root.join(".locks"),
        }
    }

    /// The lock of pulls of the model in this folder.
    pub(crate) fn pull(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// No folder's name ends like this.
    fn usage(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}@use"))
    }

    /// Says that the model in this folder is in use; it need not be there yet.
    pub(crate) fn hold(&self, name: &str) -> Result<Hold, StoreError> {
        let path = self.usage(name);
        let file = self.open(&path)?;
        if let Some(file) = &file {
            file.lock_shared()
                .map_err(|source| StoreError::io("lock", &path, source))?;
            touch(file);
        }
        Ok(Hold { file })
    }

    pub(crate) fn gate(&self) -> Result<Gate<'_>, StoreError> {
        let path = self.folder.join("@gate");
        let file = self.open(&path)?;
        if let Some(file) = &file {
            file.lock().map_err(|source| StoreError::io("lock", &path, source))?;
        }
        Ok(Gate {
            locks: self,
            _lock: file,
        })
    }

    /// The right to change what pulls of this model leave; `None` while one is at work.
    pub(crate) fn claim_pull(&self, name: &str) -> Result<Option<Claim>, StoreError> {
        self.claim(&self.pull(name))
    }

    fn claim(&self, path: &Path) -> Result<Option<Claim>, StoreError> {
        let denied = || io::Error::from(io::ErrorKind::PermissionDenied);
        let file = self.open(path)?.ok_or_else(|| StoreError::io("lock", path, denied()))?;
        Ok(try_lock(&file, path)?.then_some(Claim { lock: file }))
    }

    /// Opens or makes a lock file. `None` where this process may do neither: then it cannot remove models, too, and of
    /// those who can nobody hears of it.
    fn open(&self, path: &Path) -> Result<Option<File>, StoreError> {
        let made = fs::create_dir_all(&self.folder).and_then(|()| {
            let mut options = OpenOptions::new();
            options.read(true).write(true).create(true).truncate(false).open(path)
        });
        match made {
            Ok(file) => Ok(Some(file)),
            // To lock a file, reading it is enough.
            Err(error) if is_refusal(&error) => Ok(File::open(path).ok()),
            Err(source) => Err(StoreError::io("lock", path, source)),
        }
    }
}

impl Gate<'_> {
    /// When a use of the model in this folder last began or ended.
    pub(crate) fn last_used(&self, name: &str) -> Option<SystemTime> {
        fs::metadata(self.locks.usage(name))
            .and_then(|data| data.modified())
            .ok()
    }

    /// Whether somebody holds the model in this folder.
    pub(crate) fn is_held(&self, name: &str) -> Result<bool, StoreError> {
        let path = self.locks.usage(name);
        match File::open(&path) {
            Ok(file) => Ok(!try_lock(&file, &path)?),
            Err(error) if error.kind() == io::ErrorKind::NotFound || is_refusal(&error) => Ok(false),
            Err(source) => Err(StoreError::io("lock", &path, source)),
        }
    }

    /// The right to remove the model in this folder; `None` while it is held.
    pub(crate) fn claim(&self, name: &str) -> Result<Option<Claim>, StoreError> {
        let path = self.locks.usage(name);
        let was_there = path.exists();
        let claim = self.locks.claim(&path)?;
        if let Some(Claim { lock }) = &claim
            && !was_there
        {
            // To make the file was no use of the model.
            lock.set_modified(SystemTime::UNIX_EPOCH)
                .map_err(|source| StoreError::io("write", &path, source))?;
        }
        Ok(claim)
    }
}

fn try_lock(file: &File, path: &Path) -> Result<bool, StoreError> {
    match file.try_lock() {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(source)) => Err(StoreError::io("lock", path, source)),
    }
}

fn is_refusal(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem
    )
}
