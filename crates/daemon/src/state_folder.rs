//! What a daemon keeps over its restarts: small files, written as a whole, in a folder that is its own while it runs.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// The file whose lock says that the folder is in use.
const LOCK: &str = "lock";

/// Why nothing can be kept; the text fits after "failed to".
#[derive(Debug, thiserror::Error)]
pub enum StateFolderError {
    /// Another process has the folder.
    #[error("use the state folder {}: another daemon runs there; give each its own with --state-dir", .0.display())]
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
    /// A file has been damaged, or is another version's.
    #[error("read {}: {why}; start the version that wrote it, or move the file away to begin anew", path.display())]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
}

/// A folder that no other daemon uses while this lives. The system gives it back however the process ends.
#[derive(Debug)]
pub struct StateFolder {
    path: PathBuf,
    _lock: File,
}

impl StateFolder {
    /// Takes the folder; makes it if it is not there.
    ///
    /// # Errors
    /// It cannot be used, or somebody else uses it.
    pub fn take(path: &Path) -> Result<Self, StateFolderError> {
        fs::create_dir_all(path).map_err(fail("make the state folder", path))?;
        let lock_path = path.join(LOCK);
        let lock = File::create(&lock_path).map_err(fail("open", &lock_path))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self {
                path: path.to_owned(),
                _lock: lock,
            }),
            Err(TryLockError::WouldBlock) => Err(StateFolderError::Taken(path.to_owned())),
            Err(TryLockError::Error(source)) => Err(fail("lock", &lock_path)(source)),
        }
    }

    /// The text of a file; `None` if nothing was written to it yet.
    ///
    /// # Errors
    /// It is there and cannot be read.
    pub fn read(&self, name: &str) -> Result<Option<String>, StateFolderError> {
        let path = self.path.join(name);
        match fs::read_to_string(&path) {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) if error.kind() == ErrorKind::InvalidData => Err(self.damaged(name, "it is no text")),
            Err(error) => Err(fail("read", &path)(error)),
        }
    }

    /// Replaces a file, as [`replace`] does. Blocks for as long as the disk takes.
    ///
    /// # Errors
    /// It holds what it held before.
    pub fn write(&self, name: &str, text: &str) -> Result<(), StateFolderError> {
        let path = self.path.join(name);
        replace(&path, text.as_bytes()).map_err(fail("write", &path))
    }

    /// What is to be said of a file whose text makes no sense.
    pub fn damaged(&self, name: &str, why: impl Into<String>) -> StateFolderError {
        StateFolderError::Damaged {
            path: self.path.join(name),
            why: why.into(),
        }
    }
}

/// Replaces a file, so that a crash leaves the old or the new one, and what was written is there after a loss of power.
/// Nobody but its owner can read it at any time. One process at a time may do this for one file.
///
/// # Errors
/// The file system refused; the file is the old one, or is missing as before.
pub fn replace(file: &Path, content: &[u8]) -> io::Result<()> {
    let mut new = file.as_os_str().to_owned();
    new.push(".new");
    let new = PathBuf::from(new);
    // One that is left of a crash may have another's rights. Whatever else is there lets the next step fail.
    let _ = fs::remove_file(&new);
    let mut out = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
    out.write_all(content)?;
    out.sync_all()?;
    fs::rename(&new, file)?;
    // The file's new name is on disk when its folder is.
    match file.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => File::open(folder)?.sync_all(),
        _ => File::open(".")?.sync_all(),
    }
}

fn fail(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StateFolderError {
    let path = path.to_owned();
    move |source| StateFolderError::Io { action, path, source }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn what_is_written_is_there_for_the_next_one_who_takes_the_folder() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("made").join("on the way");
        let state = StateFolder::take(&path).unwrap();
        assert_eq!(state.read("a").unwrap(), None);
        state.write("a", "first\n").unwrap();
        state.write("a", "second\n").unwrap();
        drop(state);
        let state = StateFolder::take(&path).unwrap();
        assert_eq!(state.read("a").unwrap().as_deref(), Some("second\n"));
    }

    #[test]
    fn two_daemons_do_not_share_a_folder() {
        let folder = tempfile::tempdir().unwrap();
        let first = StateFolder::take(folder.path()).unwrap();
        let error = StateFolder::take(folder.path()).unwrap_err();
        assert!(matches!(error, StateFolderError::Taken(_)), "{error}");
        assert!(error.to_string().contains("--state-dir"), "{error}");
        drop(first);
        assert!(StateFolder::take(folder.path()).is_ok());
    }

    #[test]
    fn a_file_that_cannot_be_written_stays_as_it_was_and_is_named_with_the_remedy() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateFolder::take(folder.path()).unwrap();
        state.write("a", "old").unwrap();
        fs::create_dir(folder.path().join("a.new")).unwrap();
        let error = state.write("a", "new").unwrap_err().to_string();
        assert!(error.contains("/a") && error.contains("--state-dir"), "{error}");
        assert_eq!(state.read("a").unwrap().as_deref(), Some("old"));
    }

    #[test]
    fn a_file_that_is_no_text_is_damaged_and_stays() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateFolder::take(folder.path()).unwrap();
        fs::write(folder.path().join("a"), [0xff]).unwrap();
        let error = state.read("a").unwrap_err();
        assert!(matches!(error, StateFolderError::Damaged { .. }), "{error}");
        assert_eq!(fs::read(folder.path().join("a")).unwrap(), [0xff]);
    }

    #[test]
    fn only_its_owner_reads_a_file_also_where_a_crash_left_another_one_that_all_could() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("secrets.env");
        let left = folder.path().join("secrets.env.new");
        fs::write(&left, "of a crash").unwrap();
        fs::set_permissions(&left, fs::Permissions::from_mode(0o644)).unwrap();
        replace(&file, b"KEY=x").unwrap();
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read(&file).unwrap(), b"KEY=x");
        assert!(!left.exists());
    }
}
