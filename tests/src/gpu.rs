//! A host with GPUs, as far as one can be had without any: the driver is a fake library ([`crate::nvml`]), and a worker that
//! is told to use a GPU computes on the CPU. The hive, its processes and what they serve are real.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::nvml::{Driver, Scenario};
use crate::{Cluster, Process, Program};

/// A hive on a host with GPUs.
#[derive(Debug)]
pub struct Host {
    /// The hive.
    pub hive: Process,
    /// The driver, which a scenario may change.
    pub driver: Scenario,
    _folder: TempDir,
}

impl Host {
    /// With so many GPUs of so much memory, and these settings of the hive.
    pub async fn start(cluster: &Cluster, gpus: u32, memory_mb: u64, more: &[&str]) -> Self {
        let mut driver = Driver::with_gpus(gpus);
        driver.gpus.iter_mut().for_each(|gpu| gpu.memory_mb = memory_mb);
        let (driver, folder) = (Scenario::new(driver), tempfile::tempdir().expect("a temporary folder"));
        let (library, worker) = (driver.library(), pretending_worker(folder.path()));
        let (library, worker) = (library.display().to_string(), worker.display().to_string());
        let url = cluster.url();
        let args = [
            "--port",
            "0",
            "--queen-url",
            &url,
            "--nvml-library",
            &library,
            "--worker-command",
            &worker,
        ];
        let hive = Process::daemon(Program::Hive, args.iter().chain(more)).await;
        Self {
            hive,
            driver,
            _folder: folder,
        }
    }
}

/// A worker program that claims to use CUDA, and uses the CPU wherever it is told to use a GPU.
fn pretending_worker(folder: &Path) -> PathBuf {
    let path = folder.join("pretending-worker");
    let worker = Program::Worker.path();
    let script = format!(
        r#"#!/bin/sh
if [ "$1" = --version ]; then echo "llm-worker-rbee 0.1.0 (cpu, cuda sm_89)"; exit; fi
last=
for word; do
    shift
    if [ "$last" = --device ]; then set -- "$@" cpu; else set -- "$@" "$word"; fi
    last=$word
done
exec '{}' "$@"
"#,
        worker.display()
    );
    std::fs::write(&path, script).expect("a script");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("an executable script");
    path
}
