//! What a child prints: one file for this run, one for what came before, both bounded.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::Error;

/// How much of the end of a log is looked at for its last lines.
const TAIL_BYTES: u64 = 8 * 1024;

/// The log of one worker.
#[derive(Debug, Clone)]
pub(crate) struct Log {
    path: PathBuf,
}

impl Log {
    pub(crate) fn new(folder: &Path, name: &str) -> Self {
        // An id may hold any printable character; a file name must not leave its folder.
        let name: String = name
            .chars()
            .map(|c| {
                if c.is_ascii_alphanumeric() || "-_.".contains(c) {
                    c
                } else {
                    '_'
                }
            })
            .collect();
        Self {
            path: folder.join(format!("{name}.log")),
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    fn previous(&self) -> PathBuf {
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

    /// Sets the log aside while the child writes to it, once it is larger than this.
    pub(crate) fn trim(&self, max_bytes: u64) -> io::Result<()> {
        if fs::metadata(&self.path)?.len() <= max_bytes {
            return Ok(());
        }
        fs::copy(&self.path, self.previous())?;
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

    #[test]
    fn each_run_begins_a_log_and_the_one_before_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let log = Log::new(folder.path(), "worker-1");
        writeln!(log.begin().unwrap(), "first").unwrap();
        writeln!(log.begin().unwrap(), "second").unwrap();
        assert_eq!(log.tail(9), ["second"]);
        assert_eq!(fs::read_to_string(log.previous()).unwrap(), "first\n");
    }

    #[test]
    fn a_log_that_grew_too_large_is_set_aside_under_its_writer() {
        let folder = tempfile::tempdir().unwrap();
        let log = Log::new(folder.path(), "worker-1");
        let mut file = log.begin().unwrap();
        writeln!(file, "long ago").unwrap();
        log.trim(1).unwrap();
        writeln!(file, "now").unwrap();
        log.trim(1024).unwrap();
        assert_eq!(fs::read_to_string(log.path()).unwrap(), "now\n");
        assert_eq!(fs::read_to_string(log.previous()).unwrap(), "long ago\n");
    }

    #[test]
    fn the_tail_is_the_last_lines_and_nothing_where_there_is_no_log() {
        let folder = tempfile::tempdir().unwrap();
        let log = Log::new(folder.path(), "worker-1");
        assert!(log.tail(2).is_empty());
        write!(log.begin().unwrap(), "a\nb\n\nc\n").unwrap();
        assert_eq!(log.tail(2), ["b", "c"]);
    }

    #[test]
    fn an_id_cannot_lead_out_of_the_folder() {
        let log = Log::new(Path::new("/logs"), "../../etc/passwd");
        assert_eq!(log.path(), Path::new("/logs/.._.._etc_passwd.log"));
    }

    #[test]
    fn old_logs_go_and_those_in_use_stay() {
        let folder = tempfile::tempdir().unwrap();
        let logs: Vec<_> = ["a", "b", "c"].map(|name| Log::new(folder.path(), name)).into();
        for (age, log) in logs.iter().enumerate() {
            let file = log.begin().unwrap();
            let at = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(age as u64);
            file.set_modified(at).unwrap();
        }
        prune(folder.path(), 1, &[logs[0].path().to_owned()]).unwrap();
        assert!(logs[0].path().exists() && !logs[1].path().exists() && logs[2].path().exists());
    }
}
