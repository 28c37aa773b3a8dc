//! Who this hive is: its id and its incarnation, kept on disk.

use std::time::{SystemTime, UNIX_EPOCH};

use daemon::{StateFolder, StateFolderError};
use shared_contract::HiveId;

/// The files in the state folder.
const ID: &str = "hive-id";
const INCARNATION: &str = "incarnation";

/// Who this hive is, in this run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    /// Its name.
    pub(crate) id: HiveId,
    /// Grows at every start.
    pub(crate) incarnation: u64,
}

impl Identity {
    /// The identity of this run: the given name or the kept one, and a new incarnation.
    pub(crate) fn of(state: &StateFolder, given: Option<HiveId>) -> Result<Self, StateFolderError> {
        let id = match given {
            Some(id) => id,
            None => kept_id(state)?,
        };
        let last: u64 = match state.read(INCARNATION)? {
            None => 0,
            Some(text) => {
                let text = text.trim();
                text.parse()
                    .map_err(|_| state.damaged(INCARNATION, format!("`{text}` is no number")))?
            }
        };
        // The kept number makes it grow when the clock is set back, the clock when the folder was lost.
        let incarnation = next_incarnation(last, epoch_ms());
        state.write(INCARNATION, &format!("{incarnation}\n"))?;
        Ok(Self { id, incarnation })
    }
}

fn kept_id(state: &StateFolder) -> Result<HiveId, StateFolderError> {
    if let Some(text) = state.read(ID)? {
        return HiveId::new(text.trim()).map_err(|why| state.damaged(ID, why.to_string()));
    }
    let id = new_id();
    state.write(ID, &format!("{id}\n"))?;
    Ok(id)
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

#[cfg(test)]
mod tests {
    use super::*;

    fn take(folder: &tempfile::TempDir) -> StateFolder {
        StateFolder::take(folder.path()).unwrap()
    }

    #[test]
    fn the_id_is_kept_and_the_incarnation_grows() {
        let folder = tempfile::tempdir().unwrap();
        let first = Identity::of(&take(&folder), None).unwrap();
        let second = Identity::of(&take(&folder), None).unwrap();
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
        let state = take(&folder);
        let kept = Identity::of(&state, None).unwrap().id;
        let given = HiveId::new("gpu-box").unwrap();
        assert_eq!(Identity::of(&state, Some(given.clone())).unwrap().id, given);
        assert_eq!(Identity::of(&state, None).unwrap().id, kept);
    }

    #[test]
    fn a_damaged_file_is_named_with_the_remedy() {
        for (file, text) in [(INCARNATION, "many"), (ID, "two words")] {
            let folder = tempfile::tempdir().unwrap();
            std::fs::write(folder.path().join(file), text).unwrap();
            let error = Identity::of(&take(&folder), None).unwrap_err().to_string();
            assert!(error.contains(file) && error.contains("move the file away"), "{error}");
        }
    }
}
