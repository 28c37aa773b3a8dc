//! A browser that looks at the queen's pages.

use std::path::{Path, PathBuf};

/// Names under which systems have it.
const NAMES: [&str; 3] = ["chromium", "chromium-browser", "google-chrome"];

/// Path of Chromium: `RBEE_CHROMIUM`, or one on the `PATH`. Where there is none it says that the test is skipped, and yields
/// `None`.
///
/// # Panics
///
/// If there is none and `CI` is set: there no test may go missing unseen.
pub fn chromium() -> Option<PathBuf> {
    if let Some(named) = std::env::var_os("RBEE_CHROMIUM") {
        return Some(PathBuf::from(named));
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
    let found = NAMES.iter().find_map(|name| in_folders(&folders, name));
    assert!(
        found.is_some() || std::env::var_os("CI").is_none(),
        "there is no chromium on the PATH, where CI has installed it"
    );
    if found.is_none() {
        println!("skipped: there is no chromium on the PATH; RBEE_CHROMIUM names another one");
    }
    found
}

fn in_folders(folders: &[PathBuf], name: &str) -> Option<PathBuf> {
    folders
        .iter()
        .map(|folder| folder.join(name))
        .find(|file| Path::is_file(file))
}
