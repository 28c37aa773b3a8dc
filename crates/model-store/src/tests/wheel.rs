//! Wheels made on the spot.

use std::io::{Cursor, Write};
use std::path::{Path, PathBuf};

/// A wheel as a build tool makes it.
pub(super) struct Wheel {
    pub(super) file_name: String,
    pub(super) content: Vec<u8>,
}

impl Wheel {
    /// `package` is spelled with underscores, as in file names.
    pub(super) fn new(package: &str, version: &str, members: &[(&str, &[u8])]) -> Self {
        let info = format!("{package}-{version}.dist-info");
        let metadata = format!("Metadata-Version: 2.1\nName: {package}\nVersion: {version}\nRequires-Python: >=99\n");
        let tag = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n";
        let mut files: Vec<(String, &[u8])> = members
            .iter()
            .map(|(name, bytes)| ((*name).to_owned(), *bytes))
            .collect();
        files.push((format!("{info}/METADATA"), metadata.as_bytes()));
        files.push((format!("{info}/WHEEL"), tag.as_bytes()));
        let record: String = files
            .iter()
            .map(|(name, bytes)| format!("{name},,{}\n", bytes.len()))
            .collect();
        files.push((format!("{info}/RECORD"), record.as_bytes()));
        let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
        for (name, bytes) in files {
            zip.start_file(name, zip::write::SimpleFileOptions::default()).unwrap();
            zip.write_all(bytes).unwrap();
        }
        let content = zip.finish().unwrap().into_inner();
        Self {
            file_name: format!("{package}-{version}-py3-none-any.whl"),
            content,
        }
    }

    pub(super) fn write_to(&self, folder: &Path) -> PathBuf {
        let path = folder.join(&self.file_name);
        std::fs::write(&path, &self.content).unwrap();
        path
    }
}
