//! What this machine says of itself: folders, programs, GPU drivers. Facts only; what they mean is judged elsewhere.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;

/// Longest that a program may take to tell its version.
const PATIENCE: Duration = Duration::from_secs(20);
/// Where NVIDIA's kernel module tells its version.
const NVIDIA_MODULE: &str = "/sys/module/nvidia/version";

/// A folder, or the nearest one above it that exists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Folder {
    /// The folder that would be used.
    pub(super) path: PathBuf,
    /// Whether it exists.
    pub(super) exists: bool,
    /// Whether files can be made there, or the folder itself.
    pub(super) is_writable: bool,
    /// Free for this user on its disk.
    pub(super) free_bytes: u64,
}

impl Folder {
    /// Looks without making anything.
    pub(super) fn look(path: &Path) -> io::Result<Self> {
        let absolute = std::path::absolute(path)?;
        let nearest = absolute.ancestors().find(|folder| folder.exists());
        let nearest = nearest.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        let disk = nix::sys::statvfs::statvfs(nearest)?;
        // The types differ between systems.
        let free_bytes = (disk.blocks_available() as u64).saturating_mul(disk.fragment_size() as u64);
        let may = nix::unistd::AccessFlags::W_OK | nix::unistd::AccessFlags::X_OK;
        Ok(Self {
            exists: nearest == absolute,
            is_writable: nearest.is_dir() && nix::unistd::access(nearest, may).is_ok(),
            free_bytes,
            path: absolute,
        })
    }
}

/// What a program printed, or why it did not.
pub(super) async fn output_of(program: &Path, args: &[&str]) -> Result<String, String> {
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(PATIENCE, command.output()).await;
    let output = output.map_err(|_| format!("it did not end within {} s", PATIENCE.as_secs()))?;
    let output = output.map_err(|error| crate::api::root_cause(&error))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned());
    }
    // The loader's message names the library that is missing.
    let told = String::from_utf8_lossy(&output.stderr);
    let told = told.lines().find(|line| !line.trim().is_empty()).unwrap_or_default();
    Err(format!("{}: {told}", output.status))
}

/// The first program of this name on the search path.
pub(super) fn on_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|folder| folder.join(name))
        .find(|program| program.is_file())
}

/// Version of NVIDIA's driver, where its kernel module is loaded.
pub(super) fn nvidia_driver() -> Option<String> {
    let text = std::fs::read_to_string(NVIDIA_MODULE).ok()?;
    Some(text.trim().to_owned())
}

/// The version number in what `--version` printed: the first word that begins with a digit.
pub(super) fn version_in(printed: &str) -> Option<&str> {
    printed
        .split_whitespace()
        .find(|word| word.starts_with(|c: char| c.is_ascii_digit()))
}

/// CUDA compute capability for which a worker program was built, and whether it was built for CUDA at all: `sm_89`
/// after `cuda` in what it printed.
pub(super) fn cuda_in(printed: &str) -> (bool, Option<(u32, u32)>) {
    let words = || printed.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let capability = words().find_map(|word| {
        let digits = word.strip_prefix("sm_")?;
        let (major, minor) = digits.split_at_checked(digits.len().checked_sub(1)?)?;
        Some((major.parse().ok()?, minor.parse().ok()?))
    });
    (words().any(|word| word == "cuda"), capability)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_is_not_there_yet_is_judged_by_where_it_would_be() {
        let root = tempfile::tempdir().unwrap();
        let folder = Folder::look(&root.path().join("a/b")).unwrap();
        assert_eq!((folder.exists, folder.is_writable), (false, true));
        assert!(folder.free_bytes > 0);
        assert!(!root.path().join("a").exists(), "looking makes nothing");
        assert!(Folder::look(root.path()).unwrap().exists);
        std::fs::write(root.path().join("file"), "").unwrap();
        assert!(!Folder::look(&root.path().join("file/below")).unwrap().is_writable);
    }

    #[tokio::test]
    async fn a_program_that_fails_says_why() {
        let sh = Path::new("/bin/sh");
        assert_eq!(output_of(sh, &["-c", "echo hi"]).await.unwrap(), "hi");
        let error = output_of(sh, &["-c", "echo libcublas.so.12: cannot open >&2; exit 127"])
            .await
            .unwrap_err();
        assert!(error.contains("127") && error.contains("libcublas.so.12"), "{error}");
        assert!(output_of(Path::new("/no/such/program"), &[]).await.is_err());
    }

    #[test]
    fn what_a_program_was_built_for_is_read_from_its_version() {
        assert_eq!(version_in("llm-worker-rbee 0.1.0 (dev, features: cpu)"), Some("0.1.0"));
        assert_eq!(version_in("hello"), None);
        assert_eq!(cuda_in("llm-worker-rbee 0.1.0 (dev, features: cpu)"), (false, None));
        assert_eq!(
            cuda_in("w 0.1.0 (7af1 2026-01-31, features: cpu, cuda sm_89)"),
            (true, Some((8, 9)))
        );
        assert_eq!(cuda_in("w 0.1.0 (cpu, cuda sm_120)"), (true, Some((12, 0))));
        assert_eq!(cuda_in("w 0.1.0 (cpu, cuda)"), (true, None));
    }
}
