//! The processes that `rbee up` starts: one process group, ended as one.
//!
//! The group is not the terminal's foreground group, so Ctrl-C there reaches only `rbee up`. The hive's workers inherit
//! the group, so a signal to it reaches them even if their hive is gone.

use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, anyhow};
use futures_util::future::select_all;
use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use tokio::process::{Child, Command};

/// Pause between two looks whether the group still has members: the system has no event for that.
const GROUP_POLL: Duration = Duration::from_millis(10);
/// Lines of a daemon's log that an error shows.
const TAIL_LINES: usize = 12;

/// Daemons in one process group. Dropping it kills whatever is left.
#[derive(Debug)]
pub(crate) struct Children {
    /// The first child's process id; `None` before it starts and after the last member is gone.
    group: Option<Pid>,
    members: Vec<Member>,
}

#[derive(Debug)]
struct Member {
    name: &'static str,
    child: Child,
    log: PathBuf,
}

/// A daemon that ended by itself.
#[derive(Debug)]
pub(crate) struct Ended {
    name: &'static str,
    how: String,
    log: PathBuf,
}

impl Children {
    /// No processes yet.
    pub(crate) fn new() -> anyhow::Result<Self> {
        // Workers whose hive dies become our children, so that they leave no zombies in the group.
        #[cfg(target_os = "linux")]
        nix::sys::prctl::set_child_subreaper(true).context("adopt orphaned workers")?;
        Ok(Self {
            group: None,
            members: Vec::new(),
        })
    }

    /// Starts a daemon whose output goes to `log`; the log of the run before is kept beside it.
    pub(crate) fn start(&mut self, name: &'static str, mut command: Command, log: &Path) -> anyhow::Result<()> {
        let output = open_log(log).with_context(|| format!("open the {name}'s log {}", log.display()))?;
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        command.process_group(self.group.map_or(0, Pid::as_raw));
        end_with_parent(&mut command);
        let child = command.spawn().with_context(|| format!("start the {name}"))?;
        if self.group.is_none() {
            self.group = child.id().and_then(|pid| i32::try_from(pid).ok()).map(Pid::from_raw);
        }
        self.members.push(Member {
            name,
            child,
            log: log.to_owned(),
        });
        Ok(())
    }

    /// Process id of a daemon that has not been seen ending.
    pub(crate) fn pid(&self, name: &str) -> Option<u32> {
        self.members.iter().find(|member| member.name == name)?.child.id()
    }

    /// Id of the process group; 0 when nothing runs.
    pub(crate) fn group(&self) -> i32 {
        self.group.map_or(0, Pid::as_raw)
    }

    /// Waits until any daemon ends by itself.
    pub(crate) async fn first_end(&mut self) -> Ended {
        let ends = self.members.iter_mut().map(|member| {
            Box::pin(async {
                let how = match member.child.wait().await {
                    Ok(status) => describe(status),
                    Err(error) => format!("could not be watched: {error}"),
                };
                Ended {
                    name: member.name,
                    how,
                    log: member.log.clone(),
                }
            })
        });
        select_all(ends).await.0
    }

    /// Asks all to end, the last started first, so that a hive can still say goodbye to its queen; a hive ends its workers
    /// itself. If a daemon has ended already, whoever is left is asked directly. Returns when nobody is left.
    pub(crate) async fn end(&mut self) {
        let is_broken = self.members.iter().any(|member| pid_of(&member.child).is_none());
        if is_broken {
            self.signal_group(Signal::SIGTERM);
        }
        for member in self.members.iter_mut().rev() {
            if let Some(pid) = pid_of(&member.child).filter(|_| !is_broken) {
                // It may have ended just now, which is what was wanted.
                let _ = kill(pid, Signal::SIGTERM);
            }
            // An error means that there is nothing to wait for.
            let _ = member.child.wait().await;
        }
        self.gone().await;
    }

    /// Ends all at once.
    pub(crate) fn kill(&self) {
        self.signal_group(Signal::SIGKILL);
    }

    /// Waits until neither a daemon nor any process that one of them started is left in the group.
    pub(crate) async fn gone(&mut self) {
        for member in &mut self.members {
            // An error means that there is nothing to wait for.
            let _ = member.child.wait().await;
        }
        while !self.is_empty() {
            tokio::time::sleep(GROUP_POLL).await;
        }
        // The number may name somebody else's group from now on.
        self.group = None;
    }

    /// Whether the group has no members. Only asked once the daemons themselves have been waited for.
    fn is_empty(&self) -> bool {
        let Some(group) = self.group else { return true };
        let adopted = Pid::from_raw(-group.as_raw());
        while let Ok(status) = waitpid(adopted, Some(WaitPidFlag::WNOHANG)) {
            if status == WaitStatus::StillAlive {
                return false;
            }
        }
        killpg(group, None).is_err()
    }

    fn signal_group(&self, signal: Signal) {
        if let Some(group) = self.group {
            // No such group: all have ended.
            let _ = killpg(group, signal);
        }
    }
}

impl Drop for Children {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Ended {
    /// Says who ended, how, and its last words.
    pub(crate) fn into_error(self) -> anyhow::Error {
        let log = self.log.display();
        match tail(&self.log) {
            Some(lines) => anyhow!(
                "the {} ended by itself: {}; the end of its log, {log}:\n{lines}",
                self.name,
                self.how
            ),
            None => anyhow!(
                "the {} ended by itself: {}; its log, {log}, is empty",
                self.name,
                self.how
            ),
        }
    }
}

/// Has the daemon asked to end even if this command is killed and can ask nobody any more.
#[cfg(target_os = "linux")]
fn end_with_parent(command: &mut Command) {
    let ask = || nix::sys::prctl::set_pdeathsig(Signal::SIGTERM).map_err(std::io::Error::from);
    // SAFETY: between fork and exec this makes one system call; it allocates nothing and takes no lock. The thread that
    // starts children is the main thread, so the "parent" whose end counts is the process.
    unsafe { command.pre_exec(ask) };
}

/// Other systems cannot do that; the daemons are then found by `rbee ps` and ended by hand.
#[cfg(not(target_os = "linux"))]
fn end_with_parent(_command: &mut Command) {}

fn pid_of(child: &Child) -> Option<Pid> {
    child.id().and_then(|pid| i32::try_from(pid).ok()).map(Pid::from_raw)
}

fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => match Signal::try_from(signal) {
            Ok(name) => format!("killed by {}", name.as_str()),
            Err(_) => format!("killed by signal {signal}"),
        },
        (None, None) => status.to_string(),
    }
}

fn open_log(path: &Path) -> std::io::Result<File> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let mut before = path.as_os_str().to_owned();
    before.push(".1");
    match fs::rename(path, before) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    // Appending, because two descriptors write to it.
    File::options().append(true).create(true).open(path)
}

/// The last lines of a log, indented; `None` if it has none.
fn tail(path: &Path) -> Option<String> {
    let bytes = fs::read(path).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<_> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    let last = &lines[lines.len().saturating_sub(TAIL_LINES)..];
    if last.is_empty() {
        return None;
    }
    Some(
        last.iter()
            .map(|line| format!("  {}", crate::render::clean(line)))
            .collect::<Vec<_>>()
            .join("\n"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    fn alive(pid: i32) -> bool {
        kill(Pid::from_raw(pid), None).is_ok()
    }

    /// Waits for the pid that a script wrote.
    async fn pid_in(file: &Path) -> i32 {
        loop {
            match fs::read_to_string(file).ok().and_then(|text| text.trim().parse().ok()) {
                Some(pid) => return pid,
                None => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
    }

    #[tokio::test]
    async fn a_daemon_that_ends_by_itself_is_named_with_its_last_words() {
        let folder = tempfile::tempdir().unwrap();
        let mut children = Children::new().unwrap();
        children
            .start("queen", shell("sleep 1000"), &folder.path().join("queen.log"))
            .unwrap();
        children
            .start(
                "hive",
                shell("echo the disk is gone >&2; exit 3"),
                &folder.path().join("hive.log"),
            )
            .unwrap();
        let error = children.first_end().await.into_error().to_string();
        assert!(error.contains("the hive ended by itself: exit code 3"), "{error}");
        assert!(error.ends_with("  the disk is gone"), "{error}");
        children.kill();
        children.gone().await;
    }

    #[tokio::test]
    async fn being_asked_to_end_reaches_the_daemons_and_nobody_is_left() {
        let folder = tempfile::tempdir().unwrap();
        let mut children = Children::new().unwrap();
        children
            .start("queen", shell("exec sleep 1000"), &folder.path().join("queen.log"))
            .unwrap();
        children
            .start("hive", shell("exec sleep 1000"), &folder.path().join("hive.log"))
            .unwrap();
        let pids = [children.pid("queen").unwrap(), children.pid("hive").unwrap()].map(|pid| pid as i32);
        assert_eq!(children.group(), pids[0], "the first daemon leads the group");
        children.end().await;
        assert!(!pids.into_iter().any(alive));
        assert_eq!(children.group(), 0);
    }

    #[tokio::test]
    async fn a_kill_reaches_also_what_the_daemons_started() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("worker.pid");
        let script = format!(
            "trap '' TERM; sh -c 'trap \"\" TERM; echo $$ > {}; sleep 1000' & wait",
            file.display()
        );
        let mut children = Children::new().unwrap();
        children
            .start("hive", shell(&script), &folder.path().join("hive.log"))
            .unwrap();
        let worker = pid_in(&file).await;
        tokio::select! {
            biased;
            () = children.end() => panic!("it ignores being asked"),
            () = std::future::ready(()) => {}
        }
        assert!(alive(worker));
        children.kill();
        children.gone().await;
        assert!(!alive(worker));
    }

    #[tokio::test]
    async fn orphans_of_a_dead_hive_are_asked_to_end() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("worker.pid");
        let script = format!("sh -c 'echo $$ > {}; exec sleep 1000' & wait", file.display());
        let mut children = Children::new().unwrap();
        children
            .start("hive", shell(&script), &folder.path().join("hive.log"))
            .unwrap();
        let worker = pid_in(&file).await;
        kill(Pid::from_raw(children.pid("hive").unwrap() as i32), Signal::SIGKILL).unwrap();
        let error = children.first_end().await.into_error().to_string();
        assert!(error.contains("killed by SIGKILL"), "{error}");
        assert!(alive(worker), "the worker outlives its hive");
        children.end().await;
        assert!(!alive(worker));
    }

    #[tokio::test]
    async fn dropping_them_leaves_nothing_behind() {
        let folder = tempfile::tempdir().unwrap();
        let mut children = Children::new().unwrap();
        children
            .start("queen", shell("exec sleep 1000"), &folder.path().join("queen.log"))
            .unwrap();
        let group = Pid::from_raw(children.group());
        drop(children);
        // The runtime reaps what was killed; until then a zombie still counts as a member.
        while killpg(group, None).is_ok() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    #[test]
    fn the_log_of_the_run_before_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("deep/queen.log");
        for text in ["first", "second"] {
            use std::io::Write;
            open_log(&log).unwrap().write_all(text.as_bytes()).unwrap();
        }
        assert_eq!(fs::read_to_string(&log).unwrap(), "second");
        assert_eq!(
            fs::read_to_string(folder.path().join("deep/queen.log.1")).unwrap(),
            "first"
        );
    }
}
