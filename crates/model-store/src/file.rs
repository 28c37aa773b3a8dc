//! Files that are written so that a crash at any point leaves either the old state or the new one.
//!
//! Everything here blocks; callers run it on the blocking pool.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};

use crate::StoreError;

/// How much is read, hashed and written at a time, and between two looks at the cancellation.
pub(crate) const STEP_BYTES: usize = 1 << 20;

/// A file that grows at its end and knows its checksum.
pub(crate) struct HashingFile {
    file: File,
    path: PathBuf,
    len: u64,
    hasher: Sha256,
}

impl HashingFile {
    /// Opens or makes the file, keeps its first `keep` bytes (all, if there are fewer) and reads them for the checksum.
    /// `step` is called with the bytes read so far and may end it.
    pub(crate) fn open(
        path: &Path,
        keep: u64,
        mut step: impl FnMut(u64) -> Result<(), StoreError>,
    ) -> Result<Self, StoreError> {
        let fail = |action| move |source| StoreError::io(action, path, source);
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(fail("open"))?;
        let len = file.metadata().map_err(fail("read"))?.len().min(keep);
        file.set_len(len).map_err(fail("write"))?;
        let mut hasher = Sha256::new();
        let mut buffer = vec![0; STEP_BYTES];
        let mut read = 0;
        while read < len {
            let n = file.read(&mut buffer).map_err(fail("read"))?;
            if n == 0 {
                return Err(fail("read")(io::ErrorKind::UnexpectedEof.into()));
            }
            hasher.update(&buffer[..n]);
            read += n as u64;
            step(read)?;
        }
        Ok(Self {
            file,
            path: path.to_path_buf(),
            len,
            hasher,
        })
    }

    /// Bytes in the file.
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// Writes at the end.
    pub(crate) fn append(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        self.file
            .write_all(bytes)
            .map_err(|source| StoreError::io("write", &self.path, source))?;
        self.hasher.update(bytes);
        self.len += bytes.len() as u64;
        Ok(())
    }

    /// Waits until the disk has everything.
    pub(crate) fn sync(&self) -> Result<(), StoreError> {
        self.file
            .sync_all()
            .map_err(|source| StoreError::io("write", &self.path, source))
    }

    /// Checksum of what is in the file, 64 lower-case hexadecimal digits.
    pub(crate) fn sha256(&self) -> String {
        hex(&self.hasher.clone().finalize())
    }
}

/// Lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Whether this is a checksum as this crate writes it.
pub(crate) fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// Makes a folder and those above it.
pub(crate) fn make_dir(path: &Path) -> Result<(), StoreError> {
    fs::create_dir_all(path).map_err(|source| StoreError::io("make folder", path, source))
}

/// Renames and waits until the disk knows the new name.
pub(crate) fn rename(from: &Path, to: &Path) -> Result<(), StoreError> {
    fs::rename(from, to).map_err(|source| StoreError::io("rename", from, source))?;
    to.parent().map_or(Ok(()), sync)
}

/// Waits until the disk has what is in a file, or knows which names a folder has.
pub(crate) fn sync(path: &Path) -> Result<(), StoreError> {
    File::open(path)
        .and_then(|file| file.sync_all())
        .map_err(|source| StoreError::io("write", path, source))
}

/// Removes a file, or does nothing where there is none.
pub(crate) fn remove_file(path: &Path) -> Result<(), StoreError> {
    absent_is_fine(fs::remove_file(path)).map_err(|source| StoreError::io("remove", path, source))
}

/// Removes a folder with its content, or does nothing where there is none.
pub(crate) fn remove_dir(path: &Path) -> Result<(), StoreError> {
    absent_is_fine(fs::remove_dir_all(path)).map_err(|source| StoreError::io("remove", path, source))
}

fn absent_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Writes a small JSON file by way of a temporary one.
pub(crate) fn write_json(path: &Path, value: &impl Serialize) -> Result<(), StoreError> {
    let temporary = path.with_extension("tmp");
    let fail = |source| StoreError::io("write", &temporary, source);
    let bytes = serde_json::to_vec_pretty(value).map_err(|error| fail(error.into()))?;
    let mut file = File::create(&temporary).map_err(fail)?;
    file.write_all(&bytes).and_then(|()| file.sync_all()).map_err(fail)?;
    rename(&temporary, path)
}

/// Reads a small JSON file; `None` where there is none or it is no such JSON, which is told to the log.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, StoreError> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(source) => return Err(StoreError::io("read", path, source)),
    };
    match serde_json::from_slice(&bytes) {
        Ok(value) => Ok(Some(value)),
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "unreadable file ignored");
            Ok(None)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    #[test]
    fn a_file_that_is_opened_again_has_the_checksum_of_the_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        let mut file = HashingFile::open(&path, u64::MAX, |_| Ok(())).unwrap();
        file.append(b"abXY").unwrap();
        drop(file);
        let mut file = HashingFile::open(&path, 2, |_| Ok(())).unwrap();
        assert_eq!(file.len(), 2);
        file.append(b"c").unwrap();
        file.sync().unwrap();
        assert_eq!(file.sha256(), ABC);
        assert_eq!(fs::read(&path).unwrap(), b"abc");
    }

    #[test]
    fn json_that_is_cut_short_counts_as_absent() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.json");
        write_json(&path, &[1, 2]).unwrap();
        assert_eq!(read_json::<Vec<u8>>(&path).unwrap(), Some(vec![1, 2]));
        fs::write(&path, b"[1, 2").unwrap();
        assert_eq!(read_json::<Vec<u8>>(&path).unwrap(), None);
        assert_eq!(read_json::<Vec<u8>>(&dir.path().join("none")).unwrap(), None);
    }
}
