//! What a child prints: one file for this run, one for what came before, both bounded.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use shared_contract::WorkerId;

use crate::Error;

/// How much of the end of a log is looked at for its last lines.
const TAIL_BYTES: u64 = 8 * 1024;

/// How a worker's files are named. An id may hold any printable character; a file must not leave its folder.
pub(crate) fn file_stem(id: &WorkerId) -> String {
    let safe = |c: char| {
        if c.is_ascii_alphanumeric() || "-_.".contains(c) {
            c
        } else {
            '_'
        }
    };
    id.as_str().chars().map(safe).collect()
}

/// The log of one worker.
#[derive(Debug, Clone)]
pub(crate) struct Log {
    path: PathBuf,
}

impl Log {
    pub(crate) fn new(folder: &Path, id: &WorkerId) -> Self {
        Self {
            path: folder.join(format!("{}.log", file_stem(id))),
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// What came before.
    pub(crate) fn previous(&self) -> PathBuf {
        self.path.with_extension("log.1")
    }

    /// Sets the last run's log aside and begins a new one.
    pub(crate) fn begin(&self) -> Result<File, Error> {
        let begin = || {
            if let Some(folder) = self.path.parent() {
                fs::create_dir_all(folder)?;
            }
            match fs::rename(&self.path, self.previous()) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            // Appending, so that a child that holds the file follows when it is cut.
            OpenOptions::new().create(true).append(true).open(&self.path)
        };
        begin().map_err(|source| Error::Log {
            path: self.path.clone(),
            source,
        })
    }

    /// Whether it is larger than this.
    pub(crate) fn is_beyond(&self, max_bytes: u64) -> bool {
        fs::metadata(&self.path).is_ok_and(|file| file.len() > max_bytes)
    }

    /// Sets the log aside while the child writes to it.
    pub(crate) fn set_aside(&self) -> io::Result<()> {
        let mut from = File::open(&self.path)?;
        let mut to = File::create(self.previous())?;
        // What comes between copy and cut is lost, so that the last copy before the cut is a short one. Each ends where the
        // file ended when it began: one who writes faster than this copies would be followed without end.
        let mut copied = 0;
        for _ in 0..2 {
            let length = from.metadata()?.len();
            copied += io::copy(&mut from.by_ref().take(length.saturating_sub(copied)), &mut to)?;
        }
        OpenOptions::new().write(true).open(&self.path)?.set_len(0)
    }

    /// The last lines, as far as they can be read.
    pub(crate) fn tail(&self, lines: usize) -> Vec<String> {
        let read = || {
            let mut file = File::open(&self.path)?;
            let length = file.metadata()?.len();
            file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))?;
            let mut end = Vec::new();
            file.take(TAIL_BYTES).read_to_end(&mut end)?;
            Ok::<_, io::Error>(end)
        };
        let Ok(end) = read() else { return Vec::new() };
        let text = String::from_utf8_lossy(&end);
        let all: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
        all[all.len().saturating_sub(lines)..]
            .iter()
            .map(|line| (*line).to_owned())
            .collect()
    }
}

/// Removes the oldest logs of the folder beyond `kept`; those that `in_use` names stay.
pub(crate) fn prune(folder: &Path, kept: usize, in_use: &[PathBuf]) -> io::Result<()> {
    let mut logs: Vec<(SystemTime, PathBuf)> = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let path = entry.path();
        if path.extension().is_some_and(|end| end == "log") && !in_use.contains(&path) {
            logs.push((entry.metadata()?.modified()?, path));
        }
    }
    logs.sort();
    let surplus = logs.len().saturating_sub(kept);
    for (_, path) in logs.drain(..surplus) {
        fs::remove_file(&path)?;
        match fs::remove_file(path.with_extension("log.1")) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn id(text: &str) -> WorkerId {
        WorkerId::new(text).unwrap()
    }

    #[test]
    fn each_run_begins_a_log_and_the_one_before_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let log = Log::new(folder.path(), &id("worker-1"));
        writeln!(log.begin().unwrap(), "first").unwrap();
        writeln!(log.begin().unwrap(), "second").unwrap();
        assert_eq!(log.tail(9), ["second"]);
        assert_eq!(fs::read_to_string(log.previous()).unwrap(), "first\n");
    }

    #[test]
    fn a_log_that_grew_too_large_is_set_aside_under_its_writer() {
        let folder = tempfile::tempdir().unwrap();
        let log = Log::new(folder.path(), &id("worker-1"));
        let mut file = log.begin().unwrap();
        writeln!(file, "long ago").unwrap();
        assert!(log.is_beyond(1) && !log.is_beyond(1024));
        log.set_aside().unwrap();
        writeln!(file, "now").unwrap();
        assert_eq!(fs::read_to_string(log.path()).unwrap(), "now\n");
        assert_eq!(fs::read_to_string(log.previous()).unwrap(), "long ago\n");
    }

    #[test]
    fn the_tail_is_the_last_lines_and_nothing_where_there_is_no_log() {
        let folder = tempfile::tempdir().unwrap();
        let log = Log::new(folder.path(), &id("worker-1"));
        assert!(log.tail(2).is_empty());
        write!(log.begin().unwrap(), "a\nb\n\nc\n").unwrap();
        assert_eq!(log.tail(2), ["b", "c"]);
    }

    #[test]
    fn an_id_cannot_lead_out_of_the_folder() {
        let log = Log::new(Path::new("/logs"), &id("../../etc/passwd"));
        assert_eq!(log.path(), Path::new("/logs/.._.._etc_passwd.log"));
    }

    #[test]
    fn old_logs_go_and_those_in_use_stay() {
        let folder = tempfile::tempdir().unwrap();
        let logs: Vec<_> = ["a", "b", "c"].map(|name| Log::new(folder.path(), &id(name))).into();
        for (age, log) in logs.iter().enumerate() {
            let file = log.begin().unwrap();
            let at = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(age as u64);
            file.set_modified(at).unwrap();
        }
        prune(folder.path(), 1, &[logs[0].path().to_owned()]).unwrap();
        assert!(logs[0].path().exists() && !logs[1].path().exists() && logs[2].path().exists());
    }
}
