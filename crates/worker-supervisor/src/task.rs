//! The task that keeps one process: waits for it to end or for an order, and starts it again.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep_until, timeout};

use crate::backoff::{Failures, Verdict};
use crate::cgroup::group_for;
use crate::launch::launch;
use crate::log::Log;
use crate::oom::OomWatch;
use crate::pidfd::Pidfd;
use crate::process::{Process, end};
use crate::supervisor::Shared;
use crate::{Ending, EventKind, Exit, Spec, State, reason};

/// Pause between two looks at the size of the log and at the kills for want of memory.
const LOOK: Duration = Duration::from_secs(3);
/// Lines of the log that the reason of a failure quotes.
const QUOTED_LINES: usize = 5;

/// What the process should do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    /// Live.
    Run,
    /// It has been asked to end in another way: it is not started again.
    Expect,
    /// End, by force from this time on.
    Stop { kill_at: Instant },
    /// Live, but without us.
    Leave,
}

impl Order {
    /// Becomes the stricter of the two; `true` if that changed it.
    pub(crate) fn tighten(&mut self, other: Self) -> bool {
        let stricter = match (*self, other) {
            (Self::Stop { kill_at: ours }, Self::Stop { kill_at: theirs }) => theirs < ours,
            (ours, theirs) => theirs.rank() > ours.rank(),
        };
        if stricter {
            *self = other;
        }
        stricter
    }

    fn rank(self) -> u8 {
        match self {
            Self::Run => 0,
            Self::Expect => 1,
            Self::Stop { .. } => 2,
            Self::Leave => 3,
        }
    }

    fn kill_at(self) -> Option<Instant> {
        match self {
            Self::Stop { kill_at } => Some(kill_at),
            _ => None,
        }
    }
}

/// What a task begins with.
#[derive(Debug)]
pub(crate) enum Beginning {
    /// A process that lives.
    Living(Process),
    /// None yet: what is left of earlier ones, which has to end first.
    After(Vec<Pidfd>),
}

pub(crate) struct Task {
    shared: Arc<Shared>,
    spec: Spec,
    log: Log,
    /// It knows the memory group, too.
    oom: OomWatch,
    orders: watch::Receiver<Order>,
    failures: Failures,
    starts: u32,
}

/// How attending to a process came to its end.
enum Attended {
    Ended { exit: Exit, killed: bool },
    Left,
}

impl Task {
    pub(crate) fn new(
        shared: Arc<Shared>,
        spec: Spec,
        log: Log,
        oom: OomWatch,
        orders: watch::Receiver<Order>,
        starts: u32,
    ) -> Self {
        Self {
            shared,
            spec,
            log,
            oom,
            orders,
            failures: Failures::default(),
            starts,
        }
    }

    pub(crate) async fn run(mut self, beginning: Beginning, ending: watch::Sender<Option<Ending>>) {
        let mut process = match beginning {
            Beginning::Living(process) => Some(process),
            Beginning::After(rest) => self.start_after(rest).await,
        };
        while let Some(current) = process {
            let started = Instant::now();
            let pid = current.pid();
            let (exit, killed) = match self.attend(current).await {
                Attended::Ended { exit, killed } => (exit, killed),
                // Its sender goes with us, which tells whoever waits.
                Attended::Left => return,
            };
            if self.order() == Order::Leave && exit != Exit::Code(0) {
                // It died just when it was left: the next supervisor finds it gone, and starts it again.
                return;
            }
            if self.order() != Order::Run || exit == Exit::Code(0) {
                self.finish(pid, exit, killed);
                let how = if killed { Ending::Killed } else { Ending::Ended };
                ending.send_replace(Some(how));
                return;
            }
            let reason = self.explain(exit);
            process = self.revive(pid, exit, reason, started.elapsed()).await;
        }
        ending.send_replace(Some(Ending::Ended));
    }

    /// Ends what is left of earlier processes of this worker, so that it has their memory, and starts it.
    async fn start_after(&mut self, rest: Vec<Pidfd>) -> Option<Process> {
        let grace = self.shared.options.orphan_grace;
        // They are ended also if this worker is stopped meanwhile.
        let rest = tokio::spawn(async move {
            futures_util::future::join_all(rest.into_iter().map(|process| end(process, grace))).await;
        });
        let has_order = tokio::select! {
            _ = rest => false,
            _ = self.orders.wait_for(|order| *order != Order::Run) => true,
        };
        if has_order {
            self.leave();
            return None;
        }
        match self.launch() {
            Ok(process) => Some(process),
            Err(error) => self.revive(None, Exit::Unknown, error, Duration::ZERO).await,
        }
    }

    /// Waits until the process has ended, and passes on orders to end it.
    async fn attend(&mut self, mut process: Process) -> Attended {
        let mut known = Order::Run;
        let mut killed = false;
        let mut looks = interval_at(Instant::now() + LOOK, LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let order = self.order();
            if order.rank() > known.rank() {
                known = order;
                match order {
                    Order::Leave => return Attended::Left,
                    order => self.ask_to_end(&process, order),
                }
            }
            tokio::select! {
                // An end that is already there wins over an order.
                biased;
                exit = process.ended() => return Attended::Ended { exit, killed },
                () = at(order.kill_at()), if !killed => {
                    killed = true;
                    if let Err(error) = process.signal(Signal::SIGKILL) {
                        tracing::warn!(worker_id = %self.spec.id, %error, "worker process cannot be killed");
                    }
                }
                _ = self.orders.changed() => {}
                _ = looks.tick() => {
                    self.oom.look();
                    self.trim_log().await;
                }
            }
        }
    }

    fn order(&self) -> Order {
        *self.orders.borrow()
    }

    fn ask_to_end(&self, process: &Process, order: Order) {
        self.shared.update(&self.spec.id, |kept| kept.state = State::Stopping);
        if order == Order::Expect {
            return;
        }
        if let Err(error) = process.signal(Signal::SIGTERM) {
            tracing::warn!(worker_id = %self.spec.id, %error, "worker process cannot be asked to end");
        }
    }

    /// The process was to end, or ended by itself with status 0.
    fn finish(&self, pid: Option<u32>, exit: Exit, killed: bool) {
        let reason = match (self.order(), killed) {
            (Order::Stop { .. }, true) => "killed, as it did not end within the grace period".to_owned(),
            (Order::Stop { .. }, false) => "stopped".to_owned(),
            (Order::Expect, _) if matches!(exit, Exit::Code(0) | Exit::Unknown) => "ended as asked".to_owned(),
            _ => self.explain(exit),
        };
        tracing::info!(worker_id = %self.spec.id, reason, "worker process ended");
        // Whoever hears of the exit finds it gone from the list.
        self.shared.forget(&self.spec.id);
        self.clear();
        self.shared
            .publish(&self.spec.id, EventKind::Exited { pid, exit, reason });
        self.shared.publish(&self.spec.id, EventKind::Stopped);
    }

    /// Removes what a worker leaves on disk that is no more.
    fn clear(&self) {
        if let Some(path) = &self.spec.announce {
            // What it said of itself holds no more; where it said nothing there is no file.
            let _ = fs::remove_file(path);
        }
        if let Some(group) = self.oom.group() {
            group.remove();
        }
    }

    fn explain(&self, exit: Exit) -> String {
        reason::explain(exit, self.oom.has_grown(), &self.log.tail(QUOTED_LINES))
    }

    /// The process failed: starts it again after a pause. `None` if it is given up, or was to end meanwhile.
    async fn revive(
        &mut self,
        mut pid: Option<u32>,
        mut exit: Exit,
        mut reason: String,
        mut lived: Duration,
    ) -> Option<Process> {
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
            if self.ordered_within(after).await {
                self.leave();
                return None;
            }
            match self.launch() {
                Ok(process) => return Some(process),
                Err(error) => (pid, exit, reason, lived) = (None, Exit::Unknown, error, Duration::ZERO),
            }
        }
    }

    /// Waits out the pause; `true` if an order to end or to leave comes first.
    async fn ordered_within(&mut self, pause: Duration) -> bool {
        let order = self.orders.wait_for(|order| *order != Order::Run);
        timeout(pause, order).await.is_ok()
    }

    fn launch(&mut self) -> Result<Process, String> {
        // Each time: one that was taken over may have none, or another limit than it has now.
        let group = group_for(&self.shared.options, &self.spec).map_err(|error| error.to_string())?;
        self.oom.begin(group);
        let launched = launch(&self.shared, &self.spec, &self.log, self.oom.group(), self.starts + 1);
        let process = launched.map_err(|error| error.to_string())?;
        self.starts += 1;
        let starts = self.starts;
        let pid = process.pid().unwrap_or_default();
        tracing::info!(worker_id = %self.spec.id, pid, starts, "worker process started again");
        self.shared.update(&self.spec.id, |kept| {
            kept.state = State::Running;
            kept.pid = Some(pid);
            kept.starts = starts;
        });
        self.shared.publish(&self.spec.id, EventKind::Started { pid, starts });
        Ok(process)
    }

    fn give_up(&self, pid: Option<u32>, exit: Exit, reason: String) {
        let times = self.shared.options.backoff.failures;
        let mut why = format!("{reason}, after {times} failures in a row");
        reason::quote(&mut why, &self.log.tail(QUOTED_LINES));
        tracing::error!(worker_id = %self.spec.id, reason = why, "worker process fails again and again, giving up");
        self.shared.records.remove(&self.spec.id);
        self.shared.update(&self.spec.id, |kept| {
            kept.state = State::Failed;
            kept.pid = None;
            kept.exit = Some(exit);
            kept.reason = Some(why.clone());
        });
        self.clear();
        self.shared
            .publish(&self.spec.id, EventKind::Exited { pid, exit, reason });
        self.shared.publish(&self.spec.id, EventKind::Failed { reason: why });
        // An order that came before the state was set is not lost; one that comes after it finds a failed process.
        if self.order() != Order::Run {
            self.leave();
        }
    }

    /// Nothing runs, and nothing shall.
    fn leave(&self) {
        if self.order() == Order::Leave {
            // The next supervisor finds its record, and goes on.
            return;
        }
        self.shared.forget(&self.spec.id);
        self.clear();
        self.shared.publish(&self.spec.id, EventKind::Stopped);
    }

    async fn trim_log(&self) {
        if !self.log.is_beyond(self.shared.options.max_log_bytes) {
            return;
        }
        let log = self.log.clone();
        if let Ok(Err(error)) = tokio::task::spawn_blocking(move || log.set_aside()).await {
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
