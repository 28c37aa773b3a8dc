//! The task that keeps one process: waits for it to end or for an order, and starts it again.

use std::fs;
use std::io;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep_until, timeout};

use crate::backoff::{Failures, Verdict};
use crate::log::Log;
use crate::start_number::StartNumbers;
use crate::supervisor::Shared;
use crate::{Ending, Error, EventKind, Exit, Spec, State, env};

/// Pause between two looks at the size of a log.
const LOG_CHECK: Duration = Duration::from_secs(60);
/// Lines of the log that the reason of a failure quotes.
const QUOTED_LINES: usize = 5;

/// What the process should do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    /// Live.
    Run,
    /// End, by force from this time on.
    Stop { kill_at: Instant },
}

impl Order {
    /// Becomes the stricter of the two; `true` if that changed it.
    pub(crate) fn tighten(&mut self, other: Self) -> bool {
        let stricter = match (*self, other) {
            (Self::Stop { kill_at: ours }, Self::Stop { kill_at: theirs }) => theirs < ours,
            (Self::Run, Self::Stop { .. }) => true,
            (_, Self::Run) => false,
        };
        if stricter {
            *self = other;
        }
        stricter
    }

    fn kill_at(self) -> Option<Instant> {
        match self {
            Self::Run => None,
            Self::Stop { kill_at } => Some(kill_at),
        }
    }
}

/// Starts the process of a spec, which prints to its log.
pub(crate) fn launch(spec: &Spec, log: &Log, numbers: &StartNumbers) -> Result<Child, Error> {
    let spawn_error = |source| Error::Spawn {
        program: spec.program.clone(),
        source,
    };
    if let Some(path) = &spec.announce {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(spawn_error(error)),
            _ => {}
        }
    }
    let stdout = log.begin()?;
    let stderr = stdout.try_clone().map_err(|source| Error::Log {
        path: log.path().to_owned(),
        source,
    })?;
    Command::new(&spec.program)
        .args(&spec.args)
        .env_clear()
        .envs(env::inherited(std::env::vars_os()))
        .envs(spec.env.iter().map(|(name, value)| (name, value)))
        .envs(spec.start_number.iter().map(|name| (name, numbers.next().to_string())))
        .stdin(Stdio::null())
        .stdout(stdout)
        .stderr(stderr)
        .spawn()
        .map_err(spawn_error)
}

pub(crate) struct Task {
    shared: Arc<Shared>,
    spec: Spec,
    log: Log,
    orders: watch::Receiver<Order>,
    failures: Failures,
    starts: u32,
}

impl Task {
    pub(crate) fn new(shared: Arc<Shared>, spec: Spec, log: Log, orders: watch::Receiver<Order>) -> Self {
        Self {
            shared,
            spec,
            log,
            orders,
            failures: Failures::default(),
            starts: 1,
        }
    }

    pub(crate) async fn run(mut self, child: Child, ending: watch::Sender<Option<Ending>>) {
        let mut child = Some(child);
        while let Some(current) = child {
            let started = Instant::now();
            let pid = current.id();
            let (exit, killed) = self.attend(current).await;
            if self.kill_at().is_some() || exit == Exit::Code(0) {
                self.finish(pid, exit, killed);
                let how = if killed { Ending::Killed } else { Ending::Ended };
                ending.send_replace(Some(how));
                return;
            }
            child = self.revive(pid, exit, started.elapsed()).await;
        }
        ending.send_replace(Some(Ending::Ended));
    }

    /// Waits until the process has ended, and passes on orders to end it.
    async fn attend(&mut self, mut child: Child) -> (Exit, bool) {
        let mut asked = false;
        let mut killed = false;
        let mut log_check = interval_at(Instant::now() + LOG_CHECK, LOG_CHECK);
        log_check.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let kill_at = self.kill_at();
            if kill_at.is_some() && !asked {
                asked = true;
                self.ask_to_end(&child);
            }
            tokio::select! {
                // An end that is already there wins over an order.
                biased;
                status = child.wait() => return (status.map_or(Exit::Unknown, Exit::from), killed),
                () = at(kill_at), if !killed => {
                    killed = true;
                    if let Err(error) = child.start_kill() {
                        tracing::warn!(worker_id = %self.spec.id, %error, "worker process cannot be killed");
                    }
                }
                _ = self.orders.changed() => {}
                _ = log_check.tick() => self.trim_log().await,
            }
        }
    }

    fn kill_at(&self) -> Option<Instant> {
        self.orders.borrow().kill_at()
    }

    fn ask_to_end(&self, child: &Child) {
        self.shared.update(&self.spec.id, |kept| kept.state = State::Stopping);
        // Until it has been waited for, the id belongs to it, even if it has ended.
        let Some(pid) = child.id().and_then(|pid| i32::try_from(pid).ok()) else {
            return;
        };
        if let Err(error) = kill(Pid::from_raw(pid), Signal::SIGTERM) {
            tracing::warn!(worker_id = %self.spec.id, %error, "worker process cannot be asked to end");
        }
    }

    /// The process was stopped, or ended by itself with status 0.
    fn finish(&self, pid: Option<u32>, exit: Exit, killed: bool) {
        let reason = match (self.kill_at(), killed) {
            (Some(_), true) => "killed, as it did not end within the grace period".to_owned(),
            (Some(_), false) => "stopped".to_owned(),
            (None, _) => exit.to_string(),
        };
        tracing::info!(worker_id = %self.spec.id, reason, "worker process ended");
        // Whoever hears of the exit finds it gone from the list.
        self.shared.forget(&self.spec.id);
        if let Some(path) = &self.spec.announce {
            // What it said of itself holds no more; where it said nothing there is no file.
            let _ = fs::remove_file(path);
        }
        self.shared
            .publish(&self.spec.id, EventKind::Exited { pid, exit, reason });
        self.shared.publish(&self.spec.id, EventKind::Stopped);
    }

    /// The process failed: starts it again after a pause. `None` if it is given up or was stopped meanwhile.
    async fn revive(&mut self, mut pid: Option<u32>, mut exit: Exit, mut lived: Duration) -> Option<Child> {
        let mut reason = exit.to_string();
        loop {
            let after = match self.failures.record(lived, &self.shared.options.backoff) {
                Verdict::Restart { after } => after,
                Verdict::GiveUp => {
                    self.give_up(pid, exit, reason);
                    return None;
                }
            };
            tracing::warn!(worker_id = %self.spec.id, reason, ?after, "worker process ended, starting it again");
            self.shared.update(&self.spec.id, |kept| {
                kept.state = State::Restarting;
                kept.pid = None;
                kept.exit = Some(exit);
                kept.reason = Some(reason.clone());
            });
            self.shared
                .publish(&self.spec.id, EventKind::Exited { pid, exit, reason });
            self.shared.publish(&self.spec.id, EventKind::Restarting { after });
            if self.stopped_within(after).await {
                self.leave();
                return None;
            }
            match launch(&self.spec, &self.log, &self.shared.start_numbers) {
                Ok(child) => return Some(self.started(child)),
                Err(error) => {
                    (pid, exit, reason, lived) = (None, Exit::Unknown, error.to_string(), Duration::ZERO);
                }
            }
        }
    }

    /// Waits out the pause; `true` if an order to end comes first.
    async fn stopped_within(&mut self, pause: Duration) -> bool {
        let stop = self.orders.wait_for(|order| order.kill_at().is_some());
        timeout(pause, stop).await.is_ok()
    }

    fn started(&mut self, child: Child) -> Child {
        self.starts += 1;
        let starts = self.starts;
        let pid = child.id().unwrap_or_default();
        tracing::info!(worker_id = %self.spec.id, pid, starts, "worker process started again");
        self.shared.update(&self.spec.id, |kept| {
            kept.state = State::Running;
            kept.pid = Some(pid);
            kept.starts = starts;
        });
        self.shared.publish(&self.spec.id, EventKind::Started { pid, starts });
        child
    }

    fn give_up(&self, pid: Option<u32>, exit: Exit, reason: String) {
        let times = self.shared.options.backoff.failures;
        let mut why = format!("{reason}, after {times} failures in a row");
        let lines = self.log.tail(QUOTED_LINES);
        if lines.is_empty() {
            why.push_str("; its log is empty");
        } else {
            why.push_str(&format!("; its last lines were: {}", lines.join(" | ")));
        }
        tracing::error!(worker_id = %self.spec.id, reason = why, "worker process fails again and again, giving up");
        self.shared.update(&self.spec.id, |kept| {
            kept.state = State::Failed;
            kept.pid = None;
            kept.exit = Some(exit);
            kept.reason = Some(why.clone());
        });
        self.shared
            .publish(&self.spec.id, EventKind::Exited { pid, exit, reason });
        self.shared.publish(&self.spec.id, EventKind::Failed { reason: why });
        // An order that came before the state was set is not lost; one that comes after it finds a failed process.
        if self.kill_at().is_some() {
            self.leave();
        }
    }

    fn leave(&self) {
        self.shared.forget(&self.spec.id);
        self.shared.publish(&self.spec.id, EventKind::Stopped);
    }

    async fn trim_log(&self) {
        let log = self.log.clone();
        let limit = self.shared.options.max_log_bytes;
        if let Ok(Err(error)) = tokio::task::spawn_blocking(move || log.trim(limit)).await {
            tracing::warn!(worker_id = %self.spec.id, %error, "worker log cannot be set aside");
        }
    }
}

async fn at(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}
