//! Who uses which model: locks that a process gives back when it ends, however it ends.
//!
//! A holder has a shared lock on `.locks/NAME@use`; who removes the model has the exclusive one for that moment. When the
//! file was modified tells the last use. Exclusive locks are only tried behind the gate, `.locks/@gate`, so that nobody
//! takes another's look for a use. All of it blocks, but nobody waits longer than a look or a rename takes.
//!
//! A lock is given back explicitly, not just by closing its file ([`Lock`]): a child process has copies of all files between
//! its fork and its exec, and the lock would stay with them.

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
    lock: Option<Lock>,
}

impl Hold {
    /// For what is not the store's to remove.
    pub(crate) fn of_nothing() -> Self {
        Self { lock: None }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        if let Some(Lock(file)) = &self.lock {
            touch(file);
        }
    }
}

/// A file that is locked until this is dropped, or the process ends.
#[derive(Debug)]
pub(crate) struct Lock(File);

impl Lock {
    /// `None` while another has it.
    pub(crate) fn try_exclusive(file: File) -> io::Result<Option<Self>> {
        match file.try_lock() {
            Ok(()) => Ok(Some(Self(file))),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    fn exclusive(file: File) -> io::Result<Self> {
        file.lock()?;
        Ok(Self(file))
    }

    fn shared(file: File) -> io::Result<Self> {
        file.lock_shared()?;
        Ok(Self(file))
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Where that fails, closing the file does it.
        let _ = self.0.unlock();
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
    _lock: Option<Lock>,
}

/// An exclusive lock on something of one model.
#[derive(Debug)]
pub(crate) struct Claim(Lock);

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
        let lock = self.open(&path)?.map(Lock::shared).transpose();
        let lock = lock.map_err(|source| StoreError::io("lock", &path, source))?;
        if let Some(Lock(file)) = &lock {
            touch(file);
        }
        Ok(Hold { lock })
    }

    pub(crate) fn gate(&self) -> Result<Gate<'_>, StoreError> {
        let path = self.folder.join("@gate");
        let lock = self.open(&path)?.map(Lock::exclusive).transpose();
        Ok(Gate {
            locks: self,
            _lock: lock.map_err(|source| StoreError::io("lock", &path, source))?,
        })
    }

    /// The right to change what pulls of this model leave; `None` while one is at work.
    pub(crate) fn claim_pull(&self, name: &str) -> Result<Option<Claim>, StoreError> {
        self.claim(&self.pull(name))
    }

    fn claim(&self, path: &Path) -> Result<Option<Claim>, StoreError> {
        let denied = || io::Error::from(io::ErrorKind::PermissionDenied);
        let file = self.open(path)?.ok_or_else(|| StoreError::io("lock", path, denied()))?;
        let lock = Lock::try_exclusive(file).map_err(|source| StoreError::io("lock", path, source))?;
        Ok(lock.map(Claim))
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
        match File::open(&path).and_then(Lock::try_exclusive) {
            Ok(lock) => Ok(lock.is_none()),
            Err(error) if error.kind() == io::ErrorKind::NotFound || is_refusal(&error) => Ok(false),
            Err(source) => Err(StoreError::io("lock", &path, source)),
        }
    }

    /// The right to remove the model in this folder; `None` while it is held.
    pub(crate) fn claim(&self, name: &str) -> Result<Option<Claim>, StoreError> {
        let path = self.locks.usage(name);
        let was_there = path.exists();
        let claim = self.locks.claim(&path)?;
        if let Some(Claim(Lock(file))) = &claim
            && !was_there
        {
            // To make the file was no use of the model.
            file.set_modified(SystemTime::UNIX_EPOCH)
                .map_err(|source| StoreError::io("write", &path, source))?;
        }
        Ok(claim)
    }
}

fn is_refusal(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_does_not_stay_with_the_copies_of_its_file_that_a_child_process_has() {
        let folder = tempfile::tempdir().unwrap();
        let locks = Locks::new(folder.path());
        let free = || locks.claim_pull("a").unwrap().is_some();
        let claim = locks.claim_pull("a").unwrap().unwrap();
        let Claim(Lock(file)) = &claim;
        let of_the_child = file.try_clone().unwrap();
        assert!(!free());
        drop(claim);
        assert!(free());
        drop(of_the_child);
    }
}
