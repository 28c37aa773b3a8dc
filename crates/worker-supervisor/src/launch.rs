//! Starts the process of a spec.

use std::fs;
use std::io;
use std::process::Stdio;

use nix::sys::signal::Signal;
use tokio::process::Command;

use crate::cgroup::Group;
use crate::log::Log;
use crate::process::Process;
use crate::record::Record;
use crate::supervisor::Shared;
use crate::{Error, Spec, env};

/// Starts a process, which prints to its log, and records it as the one of this start.
pub(crate) fn launch(
    shared: &Shared,
    spec: &Spec,
    log: &Log,
    group: Option<&Group>,
    starts: u32,
) -> Result<Process, Error> {
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
    let instance = shared.records.instance()?;
    let stdout = log.begin()?;
    let stderr = stdout.try_clone().map_err(|source| Error::Log {
        path: log.path().to_owned(),
        source,
    })?;
    let number = shared.start_numbers.next();
    let mut command = Command::new(&spec.program);
    command
        .args(&spec.args)
        .env_clear()
        .envs(env::inherited(std::env::vars_os()))
        .envs(spec.env.iter().map(|(name, value)| (name, value)))
        .envs(spec.start_number.iter().map(|name| (name, number.to_string())))
        .env(env::MARK, instance)
        .env(env::WORKER_MARK, spec.id.as_str())
        .stdin(Stdio::null())
        .stdout(stdout)
        .stderr(stderr);
    if shared.options.survive {
        command.process_group(0);
    }
    let process = Process::Child(command.spawn().map_err(spawn_error)?);
    if let (Some(group), Some(pid)) = (group, process.pid())
        && let Err(error) = group.enter(pid)
    {
        // Without its limit it must not run; that it has ended already is as well.
        let _ = process.signal(Signal::SIGKILL);
        return Err(error);
    }
    record(shared, spec, log, &process, starts);
    Ok(process)
}

/// Writes down what the next supervisor finds the process by.
pub(crate) fn record(shared: &Shared, spec: &Spec, log: &Log, process: &Process, starts: u32) {
    let Some(pid) = process.pid() else { return };
    // Where the system does not tell these, nothing can be found again.
    let (Some(stat), Some(boot_id)) = (shared.proc.stat(pid), shared.proc.boot_id()) else {
        return;
    };
    let record = Record {
        id: spec.id.clone(),
        pid,
        start_ticks: stat.start_ticks,
        boot_id,
        label: spec.label.clone(),
        starts,
        program: spec.program.to_string_lossy().into_owned(),
        announce: spec.announce.clone(),
        log: log.path().to_owned(),
        is_ending: false,
    };
    if let Err(error) = shared.records.write(&record) {
        // A full disk is no reason to serve nothing: the next supervisor finds the process by its mark, and ends it.
        tracing::warn!(worker_id = %spec.id, %error, "worker process cannot be recorded");
    }
}
