//! Keeps worker processes: starts them, sees them end at once, starts them again, stops them, and takes over those that
//! an earlier supervisor left behind.
//!
//! Owns: worker processes, their environment, log files, records and memory groups, the pause before a restart, and the
//! decision to give up.
//! Must not know: models, devices, ports, heartbeats or HTTP; what a worker is for.
//!
//! A worker writes to its log file itself, so that it goes on when its supervisor is killed, and it stands in a
//! [`Record`], by which the next supervisor of the same folder finds it. Whatever carries no mark of this folder's
//! supervisors is never touched.

mod backoff;
mod cgroup;
mod env;
mod error;
mod exit;
mod follow;
mod launch;
mod log;
mod oom;
mod pidfd;
mod proc;
mod process;
mod reason;
mod record;
mod recover;
mod start_number;
mod supervisor;
mod task;

use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use shared_contract::WorkerId;

pub use backoff::Backoff;
pub use cgroup::Cgroup;
pub use env::{INHERITED, WITHHELD};
pub use error::Error;
pub use exit::Exit;
pub use record::{Record, Recovery};
pub use supervisor::Supervisor;

/// How to keep processes.
#[derive(Debug, Clone)]
pub struct Options {
    /// Folder of the log files; made if it is not there.
    pub log_dir: PathBuf,
    /// Folder of the records of living workers; made if it is not there. One supervisor at a time may use it.
    pub records_dir: PathBuf,
    /// A log that grows beyond this is set aside and begun anew.
    pub max_log_bytes: u64,
    /// Log files kept of workers that are gone.
    pub kept_logs: usize,
    /// When to start a process again.
    pub backoff: Backoff,
    /// Processes kept at once.
    pub max_workers: usize,
    /// Events that a slow reader may lag behind.
    pub event_capacity: usize,
    /// Workers get a process group of their own, so that a terminal's Ctrl-C for this process does not reach them.
    pub survive: bool,
    /// Where workers get memory groups of their own; none: [`Spec::memory_max_bytes`] is refused.
    pub cgroup: Option<Cgroup>,
    /// How long a process that [`Supervisor::recover`] ends has between the request to end and its kill.
    pub orphan_grace: Duration,
}

impl Options {
    /// The defaults, with logs and records in these folders.
    pub fn new(log_dir: impl Into<PathBuf>, records_dir: impl Into<PathBuf>) -> Self {
        Self {
            log_dir: log_dir.into(),
            records_dir: records_dir.into(),
            max_log_bytes: 16 * 1024 * 1024,
            kept_logs: 32,
            backoff: Backoff::default(),
            max_workers: 64,
            event_capacity: 256,
            survive: false,
            cgroup: None,
            orphan_grace: Duration::from_secs(10),
        }
    }
}

/// A process to be kept.
#[derive(Clone)]
pub struct Spec {
    /// Names it, for as long as it is kept: a restarted process has the same.
    pub id: WorkerId,
    /// What its starter wants to know of it again, also after a crash: kept in [`Kept`] and, on disk and readable, in
    /// the [`Record`], hence no secrets.
    pub label: String,
    /// Program: a path, or a name to be found on `PATH`.
    pub program: OsString,
    /// Its arguments.
    pub args: Vec<OsString>,
    /// Variables that it gets besides the [`INHERITED`] ones.
    pub env: Vec<(OsString, OsString)>,
    /// Variable by which each process gets a number that is greater than that of every start before it, also where the
    /// clock stepped back: the time of its start in milliseconds since the epoch, unless that was given already.
    pub start_number: Option<OsString>,
    /// A file that the process writes once it is up; removed before each start.
    pub announce: Option<PathBuf>,
    /// Memory that it may take; beyond, the system kills it. Needs [`Options::cgroup`].
    pub memory_max_bytes: Option<u64>,
}

impl fmt::Debug for Spec {
    /// Without the values of the variables, which may be secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Spec")
            .field("id", &self.id)
            .field("label", &self.label)
            .field("program", &self.program)
            .field("args", &self.args)
            .field("env", &self.env.iter().map(|(name, _)| name).collect::<Vec<_>>())
            .field("start_number", &self.start_number)
            .field("announce", &self.announce)
            .field("memory_max_bytes", &self.memory_max_bytes)
            .finish()
    }
}

/// Life of a kept process: `Running` to `Restarting` and back, to `Failed`, or through `Stopping` out of the list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// The process lives.
    Running,
    /// It ended by itself, and will be started again after a pause.
    Restarting,
    /// It was asked to end.
    Stopping,
    /// It ended too often, and is kept only so that people can see why.
    Failed,
}

/// A kept process as it is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// Names it.
    pub id: WorkerId,
    /// [`Spec::label`].
    pub label: String,
    /// What it does.
    pub state: State,
    /// Process id, while it lives.
    pub pid: Option<u32>,
    /// How often it was started.
    pub starts: u32,
    /// How it last ended by itself.
    pub exit: Option<Exit>,
    /// The same for people, and of a failed one why it is not started again.
    pub reason: Option<String>,
    /// What it prints.
    pub log: PathBuf,
}

/// Something happened to a kept process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Which one.
    pub id: WorkerId,
    /// What.
    pub kind: EventKind,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EventKind {
    /// A process was started.
    Started {
        /// Its id.
        pid: u32,
        /// 1 for the first, then 2, and so on.
        starts: u32,
    },
    /// The process ended, or could not be started again.
    Exited {
        /// The process that ended; `None` if there was none.
        pid: Option<u32>,
        /// How.
        exit: Exit,
        /// For people: `stopped`, `exit code 1`, `killed by signal 9 (SIGKILL)`.
        reason: String,
    },
    /// It will be started again.
    Restarting {
        /// After this pause.
        after: Duration,
    },
    /// It is no longer kept: it was stopped, or ended by itself with status 0.
    Stopped,
    /// It ended too often and will not be started again.
    Failed {
        /// Why, with the last lines of its log.
        reason: String,
    },
}

/// How a stopped process came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// By itself, within the grace period, or it was not running.
    Ended,
    /// It was killed.
    Killed,
}
