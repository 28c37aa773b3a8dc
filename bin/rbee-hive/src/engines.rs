//! Which worker program this hive has: asked of the program itself.

use std::ffi::OsString;
use std::process::Stdio;
use std::time::Duration;

use hive_contract::{DeviceKind, EngineInfo};
use tokio::process::Command;

/// Limit for the program to say its version.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The worker program of this house, under whichever name it is called.
const IMPLEMENTATION: &str = "llm-worker-rbee";

/// Asks the program for its version. Without an answer there is no engine, and the log says why.
pub(crate) async fn detect(program: &OsString, leading_args: &[OsString]) -> Vec<EngineInfo> {
    match version(program, leading_args).await {
        Ok(text) => {
            let engine = parse(&text);
            tracing::debug!(?engine, "worker program found");
            vec![engine]
        }
        Err(reason) => {
            tracing::warn!(
                program = %program.to_string_lossy(),
                reason,
                "no worker can be started; the program can be set with --worker-command"
            );
            Vec::new()
        }
    }
}

async fn version(program: &OsString, leading_args: &[OsString]) -> Result<String, String> {
    let answer = Command::new(program)
        .args(leading_args)
        .arg("--version")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(TIMEOUT, answer)
        .await
        .map_err(|_| format!("no answer to --version within {} s", TIMEOUT.as_secs()))?
        .map_err(|error| error.to_string())?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let last = said.lines().last().unwrap_or_default();
        return Err(format!("--version ended with {}: {last}", output.status));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// `NAME VERSION`, with the device kinds besides the CPU named somewhere behind.
fn parse(text: &str) -> EngineInfo {
    let first = text.lines().next().unwrap_or_default();
    let version = first
        .split_whitespace()
        .find(|word| word.starts_with(|c: char| c.is_ascii_digit()))
        .unwrap_or("unknown");
    let words: Vec<&str> = text.split(|c: char| !c.is_ascii_alphanumeric()).collect();
    let gpus = [DeviceKind::Cuda, DeviceKind::Metal];
    let built_for = gpus.into_iter().filter(|kind| words.contains(&kind.as_str()));
    EngineInfo {
        implementation: IMPLEMENTATION.to_owned(),
        version: version.to_owned(),
        kinds: std::iter::once(DeviceKind::Cpu).chain(built_for).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_program_says_its_version_and_what_it_was_built_for() {
        let plain = parse("llm-worker-rbee 0.1.0\n");
        assert_eq!((plain.version.as_str(), plain.kinds), ("0.1.0", vec![DeviceKind::Cpu]));
        let cuda = parse("rbee worker 0.2.0 (cpu, cuda)\n");
        assert_eq!(cuda.version, "0.2.0");
        assert_eq!(cuda.kinds, [DeviceKind::Cpu, DeviceKind::Cuda]);
    }

    #[tokio::test]
    async fn without_the_program_there_is_no_engine() {
        assert!(detect(&"/nowhere/worker".into(), &[]).await.is_empty());
    }
}
