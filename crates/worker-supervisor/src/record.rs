//! What stands on disk of each kept worker, so that a later supervisor finds it.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use shared_contract::WorkerId;

use crate::log::file_stem;
use crate::{Error, Kept};

/// File that names all supervisors of this folder.
const INSTANCE: &str = "instance";

/// A worker as a supervisor left it. It holds no variables of the environment: some are secrets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Which worker.
    pub id: WorkerId,
    /// Its last process.
    pub pid: u32,
    /// When that started, in clock ticks since the machine did: with `boot_id` it tells the process from a later one of
    /// the same number.
    pub start_ticks: u64,
    /// The machine's run.
    pub boot_id: String,
    /// [`crate::Spec::label`].
    pub label: String,
    /// How often it was started.
    pub starts: u32,
    /// What was run, for people.
    pub program: String,
    /// [`crate::Spec::announce`].
    pub announce: Option<PathBuf>,
    /// What it prints.
    pub log: PathBuf,
    /// It was asked to end in another way: see [`crate::Supervisor::expect_end`].
    #[serde(default)]
    pub is_ending: bool,
}

/// What became of the workers of an earlier supervisor.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Recovery {
    /// They live, and are kept from now on.
    pub adopted: Vec<Kept>,
    /// They had died, and are being started again: their `Started` event is still to come.
    pub restarted: Vec<Kept>,
    /// They are not kept any more, and why.
    pub forgotten: Vec<(WorkerId, String)>,
    /// Processes of an earlier supervisor that no record names; they are being ended.
    pub orphans: Vec<u32>,
}

/// The folder of records.
#[derive(Debug)]
pub(crate) struct Records {
    folder: PathBuf,
}

impl Records {
    pub(crate) fn new(folder: &Path) -> Self {
        Self {
            folder: folder.to_owned(),
        }
    }

    /// What all supervisors of this folder, one after the other, are called: made up by the first. The folder's own number
    /// is part of it, so that a copy of the folder makes nobody take another's workers for its own.
    pub(crate) fn instance(&self) -> Result<String, Error> {
        let path = self.folder.join(INSTANCE);
        let read_or_make = || match fs::read_to_string(&path) {
            Ok(name) if !name.trim().is_empty() => Ok(name.trim().to_owned()),
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => {
                let name = uuid::Uuid::new_v4().to_string();
                fs::create_dir_all(&self.folder)?;
                replace(&path, name.as_bytes())?;
                Ok(name)
            }
        };
        let named = || {
            let name = read_or_make()?;
            let folder = fs::metadata(&self.folder)?;
            Ok(format!("{name}.{:x}.{:x}", folder.dev(), folder.ino()))
        };
        named().map_err(|source| Error::Records {
            path: path.clone(),
            source,
        })
    }

    /// Writes a record, whole or not at all.
    pub(crate) fn write(&self, record: &Record) -> io::Result<()> {
        replace(&self.path(&record.id), &serde_json::to_vec_pretty(record)?)
    }

    /// Notes that the worker was asked to end; one without a record has nothing to note it in.
    pub(crate) fn mark_ending(&self, id: &WorkerId) -> io::Result<()> {
        let mut record: Record = match fs::read(self.path(id)) {
            Ok(bytes) => serde_json::from_slice(&bytes)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        record.is_ending = true;
        self.write(&record)
    }

    pub(crate) fn remove(&self, id: &WorkerId) {
        match fs::remove_file(self.path(id)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(worker_id = %id, %error, "worker record cannot be removed");
            }
            _ => {}
        }
    }

    /// All records, in the order of their ids. What cannot be read is no record any more: it is removed, and told with the
    /// worker's name as far as the file has it.
    pub(crate) fn all(&self) -> (Vec<Record>, Vec<(WorkerId, String)>) {
        let (mut records, mut damaged) = (Vec::new(), Vec::new());
        let Ok(entries) = fs::read_dir(&self.folder) else {
            return (records, damaged);
        };
        for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
            if path.extension().is_none_or(|end| end != "json") {
                continue;
            }
            let read = || Ok::<Record, io::Error>(serde_json::from_slice(&fs::read(&path)?)?);
            match read() {
                Ok(record) => records.push(record),
                Err(error) => {
                    tracing::warn!(path = %path.display(), %error, "worker record is damaged, removing it");
                    // It would be found damaged again.
                    let _ = fs::remove_file(&path);
                    let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
                    damaged.extend(WorkerId::new(stem).map(|id| (id, format!("its record cannot be read: {error}"))));
                }
            }
        }
        records.sort_by(|a, b| a.id.cmp(&b.id));
        (records, damaged)
    }

    fn path(&self, id: &WorkerId) -> PathBuf {
        self.folder.join(format!("{}.json", file_stem(id)))
    }
}

fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let new = path.with_extension("new");
    // For this user alone: labels are others' words.
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&new)?;
    file.write_all(content)?;
    fs::rename(&new, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(id: &str) -> Record {
        Record {
            id: WorkerId::new(id).unwrap(),
            pid: 42,
            start_ticks: 7,
            boot_id: "boot".into(),
            label: "{}".into(),
            starts: 1,
            program: "worker".into(),
            announce: None,
            log: "w.log".into(),
            is_ending: false,
        }
    }

    #[test]
    fn the_name_of_a_folders_supervisors_is_made_once() {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path().join("workers");
        let name = Records::new(&at).instance().unwrap();
        assert_eq!(Records::new(&at).instance().unwrap(), name);
        assert_ne!(Records::new(folder.path()).instance().unwrap(), name);
    }

    #[test]
    fn a_copy_of_a_folder_has_supervisors_of_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let (original, copy) = (folder.path().join("original"), folder.path().join("copy"));
        let name = Records::new(&original).instance().unwrap();
        fs::create_dir(&copy).unwrap();
        fs::copy(original.join(INSTANCE), copy.join(INSTANCE)).unwrap();
        assert_ne!(Records::new(&copy).instance().unwrap(), name);
        // The same folder elsewhere is still the same.
        let moved = folder.path().join("moved");
        fs::rename(&original, &moved).unwrap();
        assert_eq!(Records::new(&moved).instance().unwrap(), name);
    }

    #[test]
    fn records_are_read_as_they_were_written_last() {
        let folder = tempfile::tempdir().unwrap();
        let records = Records::new(folder.path());
        records.instance().unwrap();
        let again = Record {
            starts: 2,
            ..record("b")
        };
        for record in [&record("b"), &record("a"), &record("c"), &again] {
            records.write(record).unwrap();
        }
        let file = fs::metadata(folder.path().join("a.json")).unwrap();
        assert_eq!(file.mode() & 0o777, 0o600);
        records.remove(&record("c").id);
        records.mark_ending(&record("a").id).unwrap();
        let ending = Record {
            is_ending: true,
            ..record("a")
        };
        assert_eq!(records.all(), (vec![ending, again], Vec::new()));
    }

    #[test]
    fn a_damaged_record_is_told_once() {
        let folder = tempfile::tempdir().unwrap();
        let records = Records::new(folder.path());
        fs::write(folder.path().join("w.json"), "{\"id\": \"w\"").unwrap();
        let (whole, damaged) = records.all();
        assert!(whole.is_empty());
        assert!(
            damaged[0].0.as_str() == "w" && damaged[0].1.contains("cannot be read"),
            "{damaged:?}"
        );
        assert_eq!(records.all(), (Vec::new(), Vec::new()));
    }

    #[test]
    fn a_folder_that_cannot_be_used_is_named() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = Records::new(file.path()).instance().unwrap_err().to_string();
        assert!(error.contains(&*file.path().to_string_lossy()), "{error}");
    }
}
