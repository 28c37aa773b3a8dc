//! What was typed in earlier chats: a bounded file that only its user can read.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::local::default_state_dir;

/// Most entries that are kept.
pub(super) const MAX_ENTRIES: usize = 1_000;
/// Longest entry that is kept, in bytes: a pasted document is no line that anybody wants back.
const MAX_ENTRY: usize = 16 * 1_024;
/// Name of the file.
const FILE: &str = "chat-history";

/// The file. Each line is one entry as a JSON text, so that an entry may have line breaks.
#[derive(Debug)]
pub(super) struct History {
    path: PathBuf,
}

impl History {
    /// In the user's folder for state; `None` where there is none.
    pub(super) fn of_user() -> Option<Self> {
        Some(Self::at(&default_state_dir().ok()?))
    }

    fn at(folder: &Path) -> Self {
        Self {
            path: folder.join(FILE),
        }
    }

    /// The entries, the oldest first. A file that has grown too long is cut; lines that are none are left out.
    pub(super) fn read(&self) -> io::Result<Vec<String>> {
        let text = match fs::read(&self.path) {
            Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let entries: Vec<String> = text
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect();
        let surplus = entries.len().saturating_sub(MAX_ENTRIES);
        let kept = entries[surplus..].to_vec();
        if surplus > 0 {
            let lines: String = kept.iter().map(|entry| line(entry)).collect();
            let new = self.path.with_extension("new");
            open(OpenOptions::new().create(true).truncate(true).write(true), &new)?.write_all(lines.as_bytes())?;
            fs::rename(&new, &self.path)?;
        }
        Ok(kept)
    }

    /// Adds an entry, in one write, so that two chats at once do not mix theirs.
    pub(super) fn add(&self, entry: &str) -> io::Result<()> {
        if entry.len() > MAX_ENTRY {
            return Ok(());
        }
        if let Some(folder) = self.path.parent() {
            DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        }
        open(OpenOptions::new().create(true).append(true), &self.path)?.write_all(line(entry).as_bytes())
    }
}

fn line(entry: &str) -> String {
    format!("{}\n", serde_json::Value::from(entry))
}

/// Opens a file that nobody else may read, also where it was there with other rights.
fn open(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    let file = options.mode(0o600).open(path)?;
    file.set_permissions(Permissions::from_mode(0o600))?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_typed_is_there_again_for_its_user_only() {
        let folder = tempfile::tempdir().unwrap();
        let history = History::at(&folder.path().join("rbee"));
        assert!(history.read().unwrap().is_empty());
        history.add("one").unwrap();
        history.add("two\nlines").unwrap();
        assert_eq!(history.read().unwrap(), ["one", "two\nlines"]);
        let mode = fs::metadata(&history.path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let mode = fs::metadata(history.path.parent().unwrap())
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o700);
    }

    #[test]
    fn the_file_is_bounded_and_forgets_the_oldest() {
        let folder = tempfile::tempdir().unwrap();
        let history = History::at(folder.path());
        let lines: String = (0..MAX_ENTRIES + 5).map(|number| line(&number.to_string())).collect();
        fs::write(&history.path, format!("no entry\n{lines}")).unwrap();
        assert_eq!(history.read().unwrap()[0], "5");
        assert_eq!(fs::read_to_string(&history.path).unwrap().lines().count(), MAX_ENTRIES);
        history.add(&"x".repeat(MAX_ENTRY + 1)).unwrap();
        assert_eq!(history.read().unwrap().last().unwrap(), &(MAX_ENTRIES + 4).to_string());
    }
}
