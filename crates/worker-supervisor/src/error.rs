//! Why something cannot be done.

use std::ffi::OsString;
use std::path::PathBuf;

use shared_contract::WorkerId;

/// Why a process is not kept.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The id is taken.
    #[error("start worker {0}: there is one of this id")]
    Duplicate(WorkerId),
    /// No process of this id.
    #[error("find worker {0}: none of this id is kept here")]
    Unknown(WorkerId),
    /// The limit is reached.
    #[error("start worker {id}: {limit} are kept already, which is the limit; stop one first")]
    TooMany {
        /// Which one was to be started.
        id: WorkerId,
        /// [`crate::Options::max_workers`].
        limit: usize,
    },
    /// Everything is being stopped.
    #[error("start worker {0}: all workers are being stopped")]
    Closed(WorkerId),
    /// The program cannot be run.
    #[error("start {}: {source}", program.to_string_lossy())]
    Spawn {
        /// The program.
        program: OsString,
        /// Why not.
        source: std::io::Error,
    },
    /// The log cannot be written.
    #[error("write the log {}: {source}", path.display())]
    Log {
        /// The file or its folder.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// No log of this worker.
    #[error("read the log of worker {id}: there is no {}; the logs of workers long gone are removed", path.display())]
    NoLog {
        /// Whose.
        id: WorkerId,
        /// Where it would be.
        path: PathBuf,
    },
    /// The folder of records cannot be used.
    #[error("keep records in {}: {source}; the folder must be writable for this user", path.display())]
    Records {
        /// The folder or a file in it.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// A memory limit was asked for, and there is nothing to set it by.
    #[error("start worker {0} with a memory limit: no cgroup folder is set; give one, or start it without a limit")]
    NoCgroup(WorkerId),
    /// The memory group cannot be made.
    #[error("limit memory by {}: {problem}", path.display())]
    Cgroup {
        /// The folder or a file in it.
        path: PathBuf,
        /// What is wrong, and what helps.
        problem: String,
    },
}
