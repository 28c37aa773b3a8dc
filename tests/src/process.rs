//! Real processes: started, watched, signalled and always ended.

use std::ffi::{OsStr, OsString};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use tempfile::TempDir;
use tokio::process::{Child, Command};

use crate::{PATIENCE, eventually};

/// The programs of the workspace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Program {
    /// `queen-rbee`
    Queen,
    /// `rbee-hive`
    Hive,
    /// `llm-worker-rbee`
    Worker,
    /// `rbee`
    Rbee,
}

impl Program {
    fn name(self) -> &'static str {
        match self {
            Self::Queen => "queen-rbee",
            Self::Hive => "rbee-hive",
            Self::Worker => "llm-worker-rbee",
            Self::Rbee => "rbee",
        }
    }

    /// Path of the program, built if need be.
    pub fn path(self) -> PathBuf {
        folder().join(self.name())
    }

    /// A command for it, in an environment without the user's settings.
    pub fn command(self) -> Command {
        clean(self.path())
    }

    /// The same, started by a launcher, for example `ip netns exec NAME`.
    pub fn command_by(self, launcher: &[&str]) -> Command {
        let (program, words) = launcher.split_first().expect("a launcher has a name");
        let mut command = clean(program);
        command.args(words).arg(self.path());
        command
    }
}

fn clean(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("RBEE_") && name != "RBEE_MODELS" {
            command.env_remove(name);
        }
    }
    command
}

/// The cargo that built this test, without what it told the test of its package: a dependency that looks at these variables
/// would be built anew, and much with it.
pub(crate) fn cargo() -> std::process::Command {
    let mut cargo = std::process::Command::new(env!("CARGO"));
    let told = |name: &str| name.starts_with("CARGO_MANIFEST_") || name.starts_with("CARGO_PKG_");
    for (name, _) in std::env::vars_os() {
        if told(&name.to_string_lossy()) {
            cargo.env_remove(name);
        }
    }
    cargo.current_dir(env!("CARGO_MANIFEST_DIR"));
    cargo
}

/// Folder of the programs. `cargo test` builds a program only beside its own package's tests, so they are built here,
/// once for each test binary and in the same profile: a matter of a moment when nothing changed.
fn folder() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let test = std::env::current_exe().expect("path of this test binary");
        let folder = test
            .parent()
            .and_then(Path::parent)
            .expect("target/PROFILE/deps/TEST")
            .to_owned();
        let mut cargo = cargo();
        cargo
            // With the tests, so that the programs share the tests' features of their dependencies and all these builds:
            // without, much of it would be built once more.
            .args(["build", "--workspace", "--bins", "--tests", "--quiet"]);
        if folder.ends_with("release") {
            cargo.arg("--release");
        }
        assert!(
            cargo.status().expect("cargo runs").success(),
            "the programs could not be built"
        );
        folder
    })
}

/// A running program in a process group of its own. Dropping it kills the group, so that a hive's workers go with it; a
/// failing scenario shows its log.
#[derive(Debug)]
pub struct Process {
    child: Child,
    pid: i32,
    log: PathBuf,
    /// Where a daemon listens.
    pub address: SocketAddr,
    folder: TempDir,
}

impl Process {
    /// Starts a daemon and waits until it listens.
    pub async fn daemon(program: Program, args: impl IntoIterator<Item = impl Into<OsString>>) -> Self {
        Self::daemon_from(program.command(), args).await
    }

    /// Starts a daemon by this command, for example one that enters a network namespace first.
    pub async fn daemon_from(mut command: Command, args: impl IntoIterator<Item = impl Into<OsString>>) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let announcement = folder.path().join("announcement.json");
        command
            .args(args.into_iter().map(Into::into))
            .arg("--announce")
            .arg(&announcement);
        command.env("XDG_STATE_HOME", folder.path());
        let mut process = Self::spawn_in(command, folder);
        let port = eventually("a daemon listens", async || {
            if let Some(status) = process.child.try_wait().expect("status of a child") {
                panic!("a daemon ended with {status}:\n{}", process.log());
            }
            let text = std::fs::read_to_string(&announcement).ok()?;
            let value: serde_json::Value = serde_json::from_str(&text).expect("an announcement is whole");
            value["port"].as_u64()
        })
        .await;
        process.address.set_port(u16::try_from(port).expect("a port"));
        process
    }

    /// Starts any command.
    pub fn spawn(command: Command) -> Self {
        Self::spawn_in(command, tempfile::tempdir().expect("a temporary folder"))
    }

    fn spawn_in(mut command: Command, folder: TempDir) -> Self {
        let log = folder.path().join("log");
        let file = std::fs::File::create(&log).expect("a log file");
        command
            .stdin(Stdio::null())
            .stdout(file.try_clone().expect("a second handle of the log"))
            .stderr(file)
            .process_group(0);
        let child = command
            .spawn()
            .unwrap_or_else(|error| panic!("start {command:?}: {error}"));
        let pid = child
            .id()
            .and_then(|pid| i32::try_from(pid).ok())
            .expect("a new child has a pid");
        Self {
            child,
            pid,
            log,
            address: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0),
            folder,
        }
    }

    /// Its process id.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// `http://HOST:PORT`
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// All that it has printed.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Its own temporary folder.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid), signal).expect("the process is there");
    }

    /// Waits for its end.
    pub async fn ended(&mut self) -> ExitStatus {
        self.ended_within(PATIENCE).await
    }

    /// The same with another patience.
    pub async fn ended_within(&mut self, limit: Duration) -> ExitStatus {
        match tokio::time::timeout(limit, self.child.wait()).await {
            Ok(status) => status.expect("status of a child"),
            Err(_) => panic!("a process did not end:\n{}", self.log()),
        }
    }

    /// SIGTERM, then its end.
    pub async fn stop(&mut self) -> ExitStatus {
        self.signal(Signal::SIGTERM);
        self.ended().await
    }

    /// SIGKILL, then its end.
    pub async fn kill(&mut self) {
        self.signal(Signal::SIGKILL);
        self.ended().await;
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("--- log of process {} ---\n{}", self.pid, self.log());
        }
        // The group may have ended already.
        let _ = killpg(Pid::from_raw(self.pid), Signal::SIGKILL);
    }
}

/// Whether a process with this id is there and has not ended.
pub fn is_alive(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"));
    // The state follows the name in parentheses; Z is a process that ended and was not yet waited for.
    stat.is_ok_and(|stat| {
        stat.rsplit(')')
            .next()
            .is_some_and(|rest| !rest.trim_start().starts_with('Z'))
    })
}

/// Ids of the living processes of a process group.
pub fn group_members(group: i32) -> Vec<i32> {
    let processes = std::fs::read_dir("/proc").expect("the list of processes");
    let pids = processes.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|&pid| is_alive(pid) && group_of(pid) == Some(group))
        .collect()
}

fn group_of(pid: i32) -> Option<i32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // proc(5): after the name in parentheses come state, parent, process group.
    stat.rsplit(')').next()?.split_whitespace().nth(2)?.parse().ok()
}
