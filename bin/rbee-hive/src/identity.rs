//! Who this hive is: its id and its incarnation, kept on disk, and the lock that keeps a second hive out of them.

use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use shared_contract::HiveId;

/// Why the state folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// Another hive has it.
    #[error("use the state folder {}: another hive runs there; give each its own with --state-dir", .0.display())]
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
    /// A file has been damaged.
    #[error("read {}: {why}; remove the file to begin anew", path.display())]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
}

/// Who this hive is, in this run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    /// Its name.
    pub(crate) id: HiveId,
    /// Grows at every start.
    pub(crate) incarnation: u64,
}

/// The state folder, which no other hive uses while this lives.
#[derive(Debug)]
pub(crate) struct StateDir {
    path: PathBuf,
    _lock: File,
}

impl StateDir {
    /// Takes the folder; makes it if it is not there.
    pub(crate) fn take(path: &Path) -> Result<Self, IdentityError> {
        fs::create_dir_all(path).map_err(fail("make the state folder", path))?;
        let lock_path = path.join("lock");
        let lock = File::create(&lock_path).map_err(fail("open", &lock_path))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self {
                path: path.to_owned(),
                _lock: lock,
            }),
            Err(TryLockError::WouldBlock) => Err(IdentityError::Taken(path.to_owned())),
            Err(TryLockError::Error(source)) => Err(fail("lock", &lock_path)(source)),
        }
    }

    /// The identity of this run: the given name or the kept one, and a new incarnation.
    pub(crate) fn identify(&self, given: Option<HiveId>) -> Result<Identity, IdentityError> {
        let id = match given {
            Some(id) => id,
            None => self.kept_id()?,
        };
        let path = self.path.join("incarnation");
        let last: u64 = match read(&path)? {
            None => 0,
            Some(text) => text.parse().map_err(|_| IdentityError::Damaged {
                path: path.clone(),
                why: format!("`{text}` is no number"),
            })?,
        };
        // The kept number makes it grow when the clock is set back, the clock when the folder was lost.
        let incarnation = next_incarnation(last, epoch_ms());
        write(&path, &incarnation.to_string())?;
        Ok(Identity { id, incarnation })
    }

    fn kept_id(&self) -> Result<HiveId, IdentityError> {
        let path = self.path.join("hive-id");
        if let Some(text) = read(&path)? {
            return HiveId::new(text).map_err(|why| IdentityError::Damaged {
                path,
                why: why.to_string(),
            });
        }
        let id = new_id();
        write(&path, id.as_str())?;
        Ok(id)
    }
}

fn next_incarnation(last: u64, now_ms: u64) -> u64 {
    now_ms.max(last.saturating_add(1))
}

fn epoch_ms() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_millis() as u64)
}

/// The host's name, so that people recognise it, and something random, so that it is unique.
fn new_id() -> HiveId {
    let host: String = device_monitor::host_name()
        .unwrap_or_default()
        .chars()
        .filter(|c| c.is_ascii_alphanumeric() || "-._".contains(*c))
        .take(64)
        .collect();
    let host = if host.is_empty() { "hive" } else { &host };
    let random = &uuid::Uuid::new_v4().simple().to_string()[..6];
    HiveId::new(format!("{host}-{random}")).expect("letters, digits and dashes are an id")
}

fn read(path: &Path) -> Result<Option<String>, IdentityError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text.trim().to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(fail("read", path)(error)),
    }
}

/// Replaces the file as a whole, so that a crash leaves the old or the new one.
fn write(path: &Path, text: &str) -> Result<(), IdentityError> {
    let new = path.with_extension("new");
    let replace = || {
        let mut file = File::create(&new)?;
        writeln!(file, "{text}")?;
        file.sync_all()?;
        fs::rename(&new, path)
    };
    replace().map_err(fail("write", path))
}

fn fail(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> IdentityError {
    let path = path.to_owned();
    move |source| IdentityError::Io { action, path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_id_is_kept_and_the_incarnation_grows() {
        let folder = tempfile::tempdir().unwrap();
        let first = StateDir::take(folder.path()).unwrap().identify(None).unwrap();
        let second = StateDir::take(folder.path()).unwrap().identify(None).unwrap();
        assert_eq!(first.id, second.id);
        assert!(second.incarnation > first.incarnation);
    }

    #[test]
    fn the_incarnation_grows_when_the_clock_is_set_back_and_when_the_folder_was_lost() {
        assert_eq!(next_incarnation(5_000, 1_000), 5_001);
        assert_eq!(next_incarnation(0, 1_000), 1_000);
    }

    #[test]
    fn a_given_name_wins_for_this_run_only() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::take(folder.path()).unwrap();
        let kept = state.identify(None).unwrap().id;
        let given = HiveId::new("gpu-box").unwrap();
        assert_eq!(state.identify(Some(given.clone())).unwrap().id, given);
        assert_eq!(state.identify(None).unwrap().id, kept);
    }

    #[test]
    fn two_hives_do_not_share_a_folder() {
        let folder = tempfile::tempdir().unwrap();
        let first = StateDir::take(folder.path()).unwrap();
        let error = StateDir::take(folder.path()).unwrap_err();
        assert!(error.to_string().contains("--state-dir"), "{error}");
        drop(first);
        assert!(StateDir::take(folder.path()).is_ok());
    }

    #[test]
    fn a_damaged_file_is_named_with_the_remedy() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("incarnation"), "many").unwrap();
        let state = StateDir::take(folder.path()).unwrap();
        let error = state.identify(None).unwrap_err().to_string();
        assert!(
            error.contains("incarnation") && error.contains("remove the file"),
            "{error}"
        );
    }
}
