//! The daemons, as they lie beside this program.

use std::ffi::OsString;

use rbee_tests::Process;
use tokio::process::Command;

use crate::Result;

/// Starts a daemon and waits until it listens.
pub(crate) async fn daemon(name: &str, args: &[&str], variables: &[(&str, OsString)]) -> Result<Process> {
    let here = std::env::current_exe().map_err(|error| format!("find this program: {error}"))?;
    let program = here.with_file_name(name);
    if !program.is_file() {
        return Err(format!(
            "start {}: it is not there; build it first (--help)",
            program.display()
        ));
    }
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("RBEE_") && name != "RBEE_MODELS" {
            command.env_remove(name);
        }
    }
    command.envs(variables.iter().map(|(name, value)| (name, value)));
    Ok(Process::daemon_from(command, ["--port", "0"].iter().chain(args)).await)
}

/// A queen and nothing else.
pub(crate) async fn queen() -> Result<Process> {
    daemon("queen-rbee", &["--heartbeat-interval-ms", "1000"], &[]).await
}

/// A field of `/proc/PID/status` that is in kB, in bytes.
pub(crate) fn status_bytes(pid: i32, field: &str) -> Result<u64> {
    let file = format!("/proc/{pid}/status");
    let text = std::fs::read_to_string(&file).map_err(|error| format!("read {file}: {error}"))?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    let kb = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kb.map(|kb| kb * 1024).ok_or_else(|| format!("read {field} in {file}"))
}
