//! Which worker program this hive has: asked of the program itself.

use std::ffi::OsString;
use std::process::Stdio;
use std::time::Duration;

use hive_contract::{DeviceInfo, DeviceKind, EngineInfo};
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

/// `NAME VERSION (COMMIT DATE, features: KINDS)`, where a kind is `cpu`, `metal`, or `cuda sm_89` with the compute capability of its kernels.
fn parse(text: &str) -> EngineInfo {
    let first = text.lines().next().unwrap_or_default();
    let version = first
        .split_whitespace()
        .find(|word| word.starts_with(|c: char| c.is_ascii_digit()))
        .unwrap_or("unknown");
    let words: Vec<&str> = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').collect();
    let gpus = [DeviceKind::Cuda, DeviceKind::Metal, DeviceKind::Rocm, DeviceKind::Xpu];
    let built_for = gpus.into_iter().filter(|kind| words.contains(&kind.as_str()));
    EngineInfo {
        implementation: IMPLEMENTATION.to_owned(),
        version: version.to_owned(),
        kinds: std::iter::once(DeviceKind::Cpu).chain(built_for).collect(),
        cuda_capability: words.iter().find_map(|word| capability(word)),
    }
}

/// `8.9` of `sm_89`, `12.0` of `sm_120`.
fn capability(word: &str) -> Option<String> {
    let digits = word.strip_prefix("sm_")?;
    let (major, minor) = digits.split_at_checked(digits.len().checked_sub(1)?)?;
    let capability = format!("{major}.{minor}");
    parts(&capability).map(|_| capability)
}

/// Major and minor number of a compute capability.
fn parts(capability: &str) -> Option<(u32, u32)> {
    let (major, minor) = capability.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// Why none of these programs runs on a device; `None` if one does.
pub(crate) fn obstacle(engines: &[EngineInfo], device: &DeviceInfo) -> Option<String> {
    let kind = device.kind;
    if engines.is_empty() {
        return Some("there is no worker program: set --worker-command of the hive".to_owned());
    }
    let fitting: Vec<&EngineInfo> = engines.iter().filter(|engine| engine.kinds.contains(&kind)).collect();
    if fitting.is_empty() {
        let built = engines.iter().flat_map(|engine| &engine.kinds);
        let built: Vec<&str> = built.map(|kind| kind.as_str()).collect();
        return Some(format!(
            "the worker program is built for {}, not for {kind}: set --worker-command to one that is",
            built.join(", ")
        ));
    }
    let mismatches: Vec<String> = fitting.iter().filter_map(|engine| mismatch(engine, device)).collect();
    (mismatches.len() == fitting.len()).then(|| mismatches.join(", "))
}

/// CUDA kernels run on GPUs of their capability and of every later one; see NVIDIA's CUDA C++ Programming Guide, "Compute
/// Capabilities", on PTX.
fn mismatch(engine: &EngineInfo, device: &DeviceInfo) -> Option<String> {
    if device.kind != DeviceKind::Cuda {
        return None;
    }
    let (needs, has) = (engine.cuda_capability.as_ref()?, device.compute_capability.as_ref()?);
    (parts(has)? < parts(needs)?).then(|| {
        format!(
            "its compute capability is {has}, and the worker program was built for {needs} and later: build it with \
             CUDA_COMPUTE_CAP={}",
            has.replace('.', "")
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_program_says_its_version_and_what_it_was_built_for() {
        let plain = parse("llm-worker-rbee 0.1.0\n");
        assert_eq!((plain.version.as_str(), plain.kinds), ("0.1.0", vec![DeviceKind::Cpu]));
        let cuda = parse("rbee worker 0.2.0 (7af1 2026-01-31, features: cpu, cuda)\n");
        assert_eq!(cuda.version, "0.2.0");
        assert_eq!(cuda.kinds, [DeviceKind::Cpu, DeviceKind::Cuda]);
        assert_eq!(cuda.cuda_capability, None);
    }

    #[test]
    fn a_cuda_program_says_for_which_gpus_its_kernels_are() {
        let built_for = |text| parse(text).cuda_capability;
        assert_eq!(
            built_for("llm-worker-rbee 0.1.0 (dev, features: cpu, cuda sm_89)"),
            Some("8.9".into())
        );
        assert_eq!(
            built_for("llm-worker-rbee 0.1.0 (cpu, cuda sm_120)"),
            Some("12.0".into())
        );
        for odd in ["sm_", "sm_9", "sm_x"] {
            assert_eq!(built_for(odd), None, "{odd}");
        }
    }

    #[test]
    fn a_device_for_which_the_program_was_not_built_is_told_apart_with_the_remedy() {
        let device = |id: &str, capability: Option<&str>| DeviceInfo {
            compute_capability: capability.map(str::to_owned),
            ..crate::workers::tests::order(id).device
        };
        let engines = [parse("llm-worker-rbee 0.1.0 (cpu, cuda sm_89)")];
        let why = |device: DeviceInfo| obstacle(&engines, &device);
        for fine in [
            device("cpu", None),
            device("cuda:0", Some("8.9")),
            device("cuda:0", Some("12.0")),
            device("cuda:0", None),
        ] {
            assert_eq!(why(fine), None);
        }
        let old = why(device("cuda:0", Some("8.6"))).unwrap();
        assert!(old.contains("is 8.6") && old.contains("CUDA_COMPUTE_CAP=86"), "{old}");
        let amd = why(device("rocm:0", None)).unwrap();
        assert!(amd.contains("built for cpu, cuda, not for rocm"), "{amd}");
        assert!(
            obstacle(&[], &device("cpu", None))
                .unwrap()
                .contains("--worker-command")
        );
    }

    #[tokio::test]
    async fn without_the_program_there_is_no_engine() {
        assert!(detect(&"/nowhere/worker".into(), &[]).await.is_empty());
    }
}
