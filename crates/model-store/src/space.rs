//! Whether a disk has room for what is to come.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use nix::sys::statvfs::statvfs;

use crate::StoreError;

/// Size of the unit in which the system counts a file's blocks, whatever the file system's own are.
const BLOCK_BYTES: u64 = 512;

/// What stays free for the small files beside a download: without its mark, it could not be continued.
const MARGIN_BYTES: u64 = 1 << 20;

/// An error unless the disk of `folder` has room for `bytes`, of which `lying` are there already. Blocks.
pub(crate) fn check(folder: &Path, bytes: u64, lying: u64) -> Result<(), StoreError> {
    let needed_bytes = bytes.saturating_sub(lying);
    let disk = statvfs(folder).map_err(|error| StoreError::io("measure the disk of", folder, error.into()))?;
    // The widths of both differ between systems.
    let free_bytes = (disk.blocks_available() as u64).saturating_mul(disk.fragment_size() as u64);
    if needed_bytes == 0 || needed_bytes <= free_bytes.saturating_sub(MARGIN_BYTES) {
        return Ok(());
    }
    Err(StoreError::NoSpace {
        path: folder.to_path_buf(),
        needed_bytes,
        free_bytes,
    })
}

/// What a file takes on the disk; one with holes takes less than its length.
pub(crate) fn of_file(data: &fs::Metadata) -> u64 {
    data.blocks() * BLOCK_BYTES
}

/// What a model takes at most while its downloads are put together to a file of `size` bytes: every download goes as soon
/// as its content is in the file.
pub(crate) fn peak(size: u64, downloads: &[u64]) -> u64 {
    let all = downloads.iter().copied().fold(0, u64::saturating_add);
    let largest = downloads.iter().copied().max().unwrap_or(0);
    size.max(all).saturating_add(largest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_there_counts_and_what_no_disk_has_is_refused_with_figures() {
        let folder = tempfile::tempdir().unwrap();
        check(folder.path(), u64::MAX, u64::MAX - 1).unwrap();
        let error = check(folder.path(), u64::MAX, 5).unwrap_err();
        let StoreError::NoSpace {
            needed_bytes,
            free_bytes,
            ..
        } = &error
        else {
            panic!("{error}");
        };
        assert_eq!(*needed_bytes, u64::MAX - 5);
        assert!(
            *free_bytes > 0 && error.to_string().contains("--model-cache-max"),
            "{error}"
        );
    }

    #[test]
    fn a_file_takes_what_was_written_to_it_and_not_its_length() {
        let folder = tempfile::tempdir().unwrap();
        let file = fs::File::create(folder.path().join("x")).unwrap();
        file.set_len(1 << 40).unwrap();
        assert!(of_file(&file.metadata().unwrap()) < 1 << 20);
    }

    #[test]
    fn the_last_download_lies_beside_the_finished_file() {
        assert_eq!(peak(100, &[90]), 190);
        assert_eq!(peak(100, &[30, 40, 20]), 140);
        assert_eq!(peak(80, &[50, 50]), 150);
    }
}
