//! What an earlier supervisor of this folder left behind: kept again, started again, or ended.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use shared_contract::WorkerId;

use crate::cgroup::Group;
use crate::launch;
use crate::log::Log;
use crate::oom::OomWatch;
use crate::pidfd::Pidfd;
use crate::proc::{Marks, Proc};
use crate::process::{Process, end};
use crate::record::{Record, Recovery};
use crate::supervisor::{Begin, Shared};
use crate::task::{Beginning, Order};
use crate::{Spec, State};

/// Looks at a process of which it is unclear whose it is.
const LOOKS: u32 = 3;
/// The same, where a record names it by its start time, too: it is ours, but one that was just started has its parent's
/// environment, or none, until it has turned into its program (execve(2)).
const PATIENT_LOOKS: u32 = 100;
/// Pause between two looks.
const LOOK_PAUSE: Duration = Duration::from_millis(5);

/// A living process that bears the mark of this folder's supervisors.
struct Survivor {
    process: Pidfd,
    worker: String,
    start_ticks: u64,
    parent: u32,
}

/// See [`crate::Supervisor::recover`].
pub(crate) fn recover(shared: &Arc<Shared>, respawn: &dyn Fn(&Record) -> Option<Spec>) -> Recovery {
    let mut recovery = Recovery::default();
    let instance = match shared.records.instance() {
        Ok(instance) => instance,
        Err(error) => {
            tracing::warn!(%error, "nothing of an earlier run can be taken over");
            return recovery;
        }
    };
    let (records, damaged) = shared.records.all();
    recovery.forgotten = damaged;
    let recorded = records.iter().map(|record| (record.pid, record.start_ticks)).collect();
    let (mut survivors, mut unheld) = survivors(&shared.proc, &instance, &recorded);
    let marked: BTreeSet<u32> = survivors.keys().copied().collect();
    let boot_id = shared.proc.boot_id();
    let mut ours: BTreeSet<u32> = shared.table().pids().collect();
    // Whoever started this process may have given it a worker's environment.
    ours.insert(std::process::id());
    survivors.retain(|pid, _| !ours.contains(pid));

    // First all that live, so that what is left is of no record.
    let mut gone = Vec::new();
    for record in records {
        if shared.table().has(&record.id) {
            continue;
        }
        let is_its_own = |survivor: &Survivor| {
            survivor.worker == record.id.as_str()
                && survivor.start_ticks == record.start_ticks
                && boot_id.as_deref() == Some(&record.boot_id)
        };
        if survivors.get(&record.pid).is_some_and(is_its_own)
            && let Some(survivor) = survivors.remove(&record.pid)
        {
            take_over(shared, &record, survivor.process, respawn(&record), &mut recovery);
        } else if let Some(error) = unheld.remove(&record.pid) {
            // A second one beside it would take its memory and its name.
            shared.records.remove(&record.id);
            let why = format!(
                "its process {} may live, but cannot be held ({error}): end it by hand",
                record.pid
            );
            recovery.forgotten.push((record.id, why));
        } else {
            gone.push(record);
        }
    }
    // A child of a marked process goes with its parent.
    survivors.retain(|_, survivor| !marked.contains(&survivor.parent));
    recovery.orphans = survivors.keys().copied().collect();
    let mut orphans = by_worker(survivors);
    for record in gone {
        let rest = orphans.remove(record.id.as_str()).unwrap_or_default();
        bring_back(shared, &record, rest, boot_id.as_deref(), respawn, &mut recovery);
    }
    for process in orphans.into_values().flatten() {
        tracing::warn!(
            pid = process.pid(),
            "process of an earlier run has no record, ending it"
        );
        end_in_background(process, None, shared.options.orphan_grace);
    }
    recovery
}

/// Processes of this instance, and those that the system does not let us hold. `recorded`: the numbers that the records
/// name, with the start times of these processes.
fn survivors(
    proc: &Proc,
    instance: &str,
    recorded: &BTreeMap<u32, u64>,
) -> (BTreeMap<u32, Survivor>, BTreeMap<u32, io::Error>) {
    let (mut survivors, mut unheld) = (BTreeMap::new(), BTreeMap::new());
    let mut unclear = proc.pids();
    for look in 1..=PATIENT_LOOKS {
        unclear.retain(|&pid| match survivor(proc, instance, pid) {
            Look::Ours(survivor) => survivors.insert(pid, survivor).is_some(),
            Look::Unheld(error) => {
                tracing::warn!(pid, %error, "process of an earlier run cannot be held, leaving it alone");
                unheld.insert(pid, error).is_some()
            }
            Look::Foreign => is_alive_as(proc, pid, recorded.get(&pid)),
            Look::Unclear => look < LOOKS || is_alive_as(proc, pid, recorded.get(&pid)),
        });
        if unclear.is_empty() {
            break;
        }
        std::thread::sleep(LOOK_PAUSE);
    }
    (survivors, unheld)
}

fn is_alive_as(proc: &Proc, pid: u32, start_ticks: Option<&u64>) -> bool {
    let stat = proc.stat(pid).filter(|stat| !stat.is_zombie);
    stat.is_some_and(|stat| Some(&stat.start_ticks) == start_ticks)
}

/// What a look at a process tells.
enum Look {
    Ours(Survivor),
    /// Ours, but there is no pidfd of it: an old kernel, a container that forbids it, or too many open files.
    Unheld(io::Error),
    Foreign,
    /// Another look may tell.
    Unclear,
}

/// Looks, holds, and looks again, so that none is taken for another that has its number now.
fn survivor(proc: &Proc, instance: &str, pid: u32) -> Look {
    match proc.marks(pid) {
        Marks::Worker { instance: its, .. } if its == instance => {}
        Marks::Unclear => return Look::Unclear,
        _ => return Look::Foreign,
    }
    let Some(stat) = proc.stat(pid).filter(|stat| !stat.is_zombie) else {
        return Look::Foreign;
    };
    let process = match Pidfd::open(pid, stat.start_ticks) {
        Ok(process) => process,
        // It has ended in the meantime.
        Err(error) if error.raw_os_error() == Some(Errno::ESRCH as i32) => return Look::Foreign,
        Err(error) => return Look::Unheld(error),
    };
    if proc.stat(pid).map(|now| now.start_ticks) != Some(stat.start_ticks) {
        return Look::Foreign;
    }
    match proc.marks(pid) {
        Marks::Worker { instance: its, worker } if its == instance => Look::Ours(Survivor {
            process,
            worker,
            start_ticks: stat.start_ticks,
            parent: stat.parent,
        }),
        Marks::Unclear => Look::Unclear,
        _ => Look::Foreign,
    }
}

fn by_worker(survivors: BTreeMap<u32, Survivor>) -> BTreeMap<String, Vec<Pidfd>> {
    let mut workers: BTreeMap<String, Vec<Pidfd>> = BTreeMap::new();
    for survivor in survivors.into_values() {
        workers.entry(survivor.worker).or_default().push(survivor.process);
    }
    workers
}

/// Keeps the living process of a record, or ends it if it is wanted no more.
fn take_over(shared: &Arc<Shared>, record: &Record, process: Pidfd, spec: Option<Spec>, recovery: &mut Recovery) {
    let group = group_of(shared, &record.id);
    let pid = process.pid();
    let Some(spec) = spec else {
        shared.records.remove(&record.id);
        let why = format!("it is wanted no more; its process {pid} is being ended");
        recovery.forgotten.push((record.id.clone(), why));
        forget_announced(record);
        end_in_background(process, group, shared.options.orphan_grace);
        return;
    };
    let spec = Spec {
        id: record.id.clone(),
        ..spec
    };
    let log = Log::new(&shared.options.log_dir, &spec.id);
    let process = Process::Adopted(process);
    let (state, order) = match record.is_ending {
        true => (State::Stopping, Order::Expect),
        false => {
            // Its label may be another one.
            launch::record(shared, &spec, &log, &process, record.starts);
            (State::Running, Order::Run)
        }
    };
    tracing::info!(worker_id = %spec.id, pid, "worker process of an earlier run taken over");
    let begin = Begin {
        state,
        order,
        oom: OomWatch::new(shared.proc.clone(), group),
        starts: record.starts,
        beginning: Beginning::Living(process),
    };
    recovery.adopted.push(shared.table().keep(shared, spec, log, begin));
}

/// Starts again what a record tells of and is gone, unless there is a reason not to.
fn bring_back(
    shared: &Arc<Shared>,
    record: &Record,
    rest: Vec<Pidfd>,
    boot_id: Option<&str>,
    respawn: &dyn Fn(&Record) -> Option<Spec>,
    recovery: &mut Recovery,
) {
    let grace = shared.options.orphan_grace;
    let spec = match (boot_id, record.is_ending) {
        (Some(boot_id), _) if boot_id != record.boot_id => Err("the machine was started anew since".to_owned()),
        (_, true) => Err("it has ended, as it was asked to".to_owned()),
        (_, false) => {
            respawn(record).ok_or_else(|| format!("its process {} is gone, and it is wanted no more", record.pid))
        }
    };
    let spec = match spec {
        Ok(spec) => spec,
        Err(why) => {
            shared.records.remove(&record.id);
            forget_announced(record);
            if let Some(group) = group_of(shared, &record.id) {
                group.remove();
            }
            for process in rest {
                end_in_background(process, None, grace);
            }
            recovery.forgotten.push((record.id.clone(), why));
            return;
        }
    };
    let spec = Spec {
        id: record.id.clone(),
        ..spec
    };
    tracing::warn!(worker_id = %spec.id, pid = record.pid, "worker process of an earlier run is gone, starting it again");
    let log = Log::new(&shared.options.log_dir, &spec.id);
    let begin = Begin {
        state: State::Restarting,
        order: Order::Run,
        // What it had; it gets its own when it is started.
        oom: OomWatch::new(shared.proc.clone(), group_of(shared, &record.id)),
        starts: record.starts,
        beginning: Beginning::After(rest),
    };
    recovery.restarted.push(shared.table().keep(shared, spec, log, begin));
}

/// Removes what the process of a record said of itself.
fn forget_announced(record: &Record) {
    if let Some(announce) = &record.announce {
        // Where it said nothing there is no file.
        let _ = fs::remove_file(announce);
    }
}

fn group_of(shared: &Shared, id: &WorkerId) -> Option<Group> {
    shared.options.cgroup.as_ref()?.existing(id)
}

fn end_in_background(process: Pidfd, group: Option<Group>, grace: Duration) {
    tokio::spawn(async move {
        end(process, grace).await;
        if let Some(group) = group {
            group.remove();
        }
    });
}
