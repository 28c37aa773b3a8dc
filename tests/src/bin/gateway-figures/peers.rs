//! The processes of a run: backends, the gateways in front of them, and what they use. All end when dropped.

use std::ffi::OsStr;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::time::sleep;

use crate::backend::Backends;
use crate::wire::Connection;
use crate::{Result, nginx, process};

/// Longest wait for a process to be ready.
const PATIENCE: Duration = Duration::from_secs(30);
/// Pause between two looks at whether it is.
const LOOK: Duration = Duration::from_millis(1);

/// A process that answers requests.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) name: String,
    pub(crate) address: SocketAddr,
    _child: Child,
    pid: u32,
    _folder: TempDir,
}

/// A process of pretended workers.
#[derive(Debug)]
pub(crate) struct Workers {
    child: Child,
    pub(crate) ports: Vec<u16>,
}

/// A queen's program, and what she is called in tables.
#[derive(Debug, Clone)]
pub(crate) struct Queen {
    pub(crate) name: String,
    pub(crate) program: PathBuf,
}

impl std::str::FromStr for Queen {
    type Err = String;

    /// `NAME=PROGRAM`, or the program alone.
    fn from_str(text: &str) -> Result<Self> {
        let (name, program) = text.split_once('=').unwrap_or(("queen", text));
        let (name, program) = (name.to_owned(), PathBuf::from(program));
        if !program.is_file() {
            return Err(format!("{} is no program; build it first (--help)", program.display()));
        }
        Ok(Self { name, program })
    }
}

impl Peer {
    /// A queen that has been told of nobody yet; on one CPU if one is named.
    pub(crate) async fn queen(queen: &Queen, args: &[&str], cpu: Option<usize>) -> Result<Self> {
        let folder = folder()?;
        let announcement = folder.path().join("announcement.json");
        let mut command = command(&queen.program, cpu)?;
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("RBEE_") {
                command.env_remove(name);
            }
        }
        let log = std::fs::File::create(folder.path().join("log")).map_err(|error| format!("make a log: {error}"))?;
        command
            .args(["--port", "0", "--announce"])
            .arg(&announcement)
            .args(args)
            .env("XDG_STATE_HOME", folder.path())
            .env("XDG_CONFIG_HOME", folder.path())
            .stderr(log);
        let mut child = spawn(&mut command)?;
        let start = Instant::now();
        let port = loop {
            let text = std::fs::read_to_string(&announcement).unwrap_or_default();
            let told: Option<Value> = serde_json::from_str(&text).ok();
            if let Some(port) = told.and_then(|told| told["port"].as_u64()) {
                break port as u16;
            }
            if start.elapsed() > PATIENCE || child.try_wait().is_ok_and(|status| status.is_some()) {
                let log = std::fs::read_to_string(folder.path().join("log")).unwrap_or_default();
                return Err(format!("start {}:\n{log}", queen.program.display()));
            }
            sleep(LOOK).await;
        };
        Self::new(&queen.name, port, child, folder)
    }

    /// The relay on bare sockets.
    pub(crate) async fn relay(backends: &[u16], cpu: Option<usize>) -> Result<Self> {
        let program = this_program()?;
        let mut command = command(&program, cpu)?;
        command
            .arg("relay")
            .args(backends.iter().map(u16::to_string))
            .stdout(Stdio::piped());
        let mut child = spawn(&mut command)?;
        let ports = first_line(&mut child).await?;
        let port = ports.first().ok_or("learn the relay's port")?;
        Self::new("bare relay", *port, child, folder()?)
    }

    /// nginx, where it is installed.
    pub(crate) async fn nginx(backends: &[u16], cpu: Option<usize>) -> Result<Option<Self>> {
        if !Path::new(nginx::PROGRAM).is_file() {
            return Ok(None);
        }
        let folder = folder()?;
        // It cannot tell which port it got: a free one is looked up first.
        let free = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|free| free.local_addr());
        let port = free.map_err(|error| format!("find a free port: {error}"))?.port();
        let file = folder.path().join("nginx.conf");
        let text = nginx::configuration(folder.path(), port, backends);
        std::fs::write(&file, text).map_err(|error| format!("write {}: {error}", file.display()))?;
        let mut command = command(Path::new(nginx::PROGRAM), cpu)?;
        command
            .arg("-c")
            .arg(&file)
            .arg("-p")
            .arg(folder.path())
            .stderr(Stdio::null());
        let child = spawn(&mut command)?;
        let peer = Self::new("nginx", port, child, folder)?;
        let start = Instant::now();
        while Connection::open(peer.address).await.is_err() {
            if start.elapsed() > PATIENCE {
                return Err("start nginx: it does not listen".to_owned());
            }
            sleep(LOOK).await;
        }
        Ok(Some(peer))
    }

    fn new(name: &str, port: u16, child: Child, folder: TempDir) -> Result<Self> {
        Ok(Self {
            name: name.to_owned(),
            address: (Ipv4Addr::LOCALHOST, port).into(),
            pid: child.id().ok_or_else(|| format!("start {name}: it ended at once"))?,
            _child: child,
            _folder: folder,
        })
    }

    /// CPU time of its processes so far.
    pub(crate) fn cpu(&self) -> Result<Duration> {
        self.pids().into_iter().map(process::cpu).sum()
    }

    /// Resident memory of its processes, in bytes.
    pub(crate) fn rss(&self) -> Result<u64> {
        self.pids().into_iter().map(process::rss).sum()
    }

    /// Waits until a queen knows so many workers, and has called each back.
    pub(crate) async fn knows(&self, workers: usize) -> Result<()> {
        let start = Instant::now();
        let mut seen = 0;
        while start.elapsed() < PATIENCE {
            let health = self.health().await?;
            seen = health["workers"]["ready"].as_u64().unwrap_or(0) as usize;
            if seen == workers {
                return Ok(());
            }
            sleep(10 * LOOK).await;
        }
        Err(format!("wait for {workers} workers: {} knows {seen}", self.name))
    }

    /// What a queen says of herself.
    pub(crate) async fn health(&self) -> Result<Value> {
        let failed = |error: std::io::Error| format!("ask {} for her health: {error}", self.name);
        let mut connection = Connection::open(self.address).await.map_err(failed)?;
        connection
            .send(b"GET /health HTTP/1.1\r\nhost: figures\r\n\r\n")
            .await
            .map_err(failed)?;
        match connection.message().await.map_err(failed)? {
            Some((head, bytes)) => Ok(serde_json::from_slice(&bytes[head.len..]).unwrap_or_default()),
            None => Err(format!("ask {} for her health: no answer", self.name)),
        }
    }

    /// Its process and those that it started, as nginx does.
    fn pids(&self) -> Vec<u32> {
        let children = format!("/proc/{0}/task/{0}/children", self.pid);
        let children = std::fs::read_to_string(children).unwrap_or_default();
        let children = children.split_whitespace().filter_map(|pid| pid.parse().ok());
        std::iter::once(self.pid).chain(children).collect()
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // With those that it started; it first, so that it starts no others.
        for pid in self.pids() {
            signal(pid, nix::sys::signal::Signal::SIGKILL);
        }
    }
}

impl Workers {
    /// Starts pretended workers; they beat to the options' queens.
    pub(crate) async fn start(options: &Backends) -> Result<Self> {
        let program = this_program()?;
        let mut command = command(&program, None)?;
        let numbers = [
            ("--count", u64::from(options.count)),
            ("--first", options.first.into()),
            ("--port", options.port.into()),
            ("--slots", options.slots.into()),
            ("--delay-ms", options.delay_ms),
        ];
        command.arg("backends");
        for (flag, number) in numbers {
            command.arg(flag).arg(number.to_string());
        }
        for queen in &options.queen {
            command.arg("--queen").arg(queen.to_string());
        }
        if let Some(answers) = options.hang_after {
            command.arg("--hang-after").arg(answers.to_string());
        }
        let mut child = spawn(command.stdout(Stdio::piped()))?;
        let ports = first_line(&mut child).await?;
        Ok(Self { child, ports })
    }

    /// Stops it, or lets it go on.
    pub(crate) fn signal(&self, name: nix::sys::signal::Signal) {
        if let Some(pid) = self.child.id() {
            signal(pid, name);
        }
    }

    /// Ends it at once.
    pub(crate) async fn kill(&mut self) {
        // It has no other end.
        let _ = self.child.kill().await;
    }
}

fn signal(pid: u32, signal: nix::sys::signal::Signal) {
    if let Ok(pid) = i32::try_from(pid) {
        // It may have ended.
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal);
    }
}

/// The program, through this one where it is to run on one CPU.
fn command(program: &Path, cpu: Option<usize>) -> Result<Command> {
    let mut command = match cpu {
        None => Command::new(program),
        Some(cpu) => {
            let mut command = Command::new(this_program()?);
            command.arg("pinned").arg(cpu.to_string()).arg("--").arg(program);
            command
        }
    };
    command.stdin(Stdio::null()).kill_on_drop(true);
    Ok(command)
}

/// Becomes the program, on one CPU.
pub(crate) fn become_pinned(cpu: usize, words: &[impl AsRef<OsStr>]) -> Result<()> {
    use std::os::unix::process::CommandExt;
    let failed = |error: nix::Error| format!("stay on CPU {cpu}: {error}");
    let mut cpus = nix::sched::CpuSet::new();
    cpus.set(cpu).map_err(failed)?;
    nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &cpus).map_err(failed)?;
    let (program, args) = words.split_first().ok_or("start a program: none is named")?;
    let error = std::process::Command::new(program).args(args).exec();
    Err(format!("start {}: {error}", program.as_ref().display()))
}

fn this_program() -> Result<PathBuf> {
    std::env::current_exe().map_err(|error| format!("find this program: {error}"))
}

fn folder() -> Result<TempDir> {
    tempfile::tempdir().map_err(|error| format!("make a temporary folder: {error}"))
}

fn spawn(command: &mut Command) -> Result<Child> {
    let program = command.as_std().get_program().to_owned();
    command
        .spawn()
        .map_err(|error| format!("start {}: {error}", program.display()))
}

/// The ports that a process of this program prints when it listens.
async fn first_line(child: &mut Child) -> Result<Vec<u16>> {
    let output = child.stdout.take().ok_or("read from a process")?;
    let line = BufReader::new(output).lines().next_line().await;
    let line = line
        .map_err(|error| format!("read from a process: {error}"))?
        .unwrap_or_default();
    line.split(' ')
        .map(|port| {
            port.parse()
                .map_err(|_| format!("learn where a process listens: it says {line:?}"))
        })
        .collect()
}
