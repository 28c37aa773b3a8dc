//! What it costs a hive to look after 8 GPUs and 16 workers that do nothing, and to tell of them once a second.

use std::time::Duration;

use rbee_tests::nvml::{Driver, Scenario};
use rbee_tests::{http, models};
use serde_json::json;

use crate::Result;
use crate::programs::{daemon, queen};

const GPUS: u32 = 8;
const WORKERS: usize = 16;

pub(crate) async fn measure(seconds: u64) -> Result<()> {
    models::smollm2().await;
    println!("\n| a hive that tells its load every second | CPU % of one core | resident MiB |");
    println!("|---|---|---|");
    let bare = run(seconds, 0, 0).await?;
    println!("| no GPU, no worker | {:.2} | {} |", bare.0, bare.1 >> 20);
    let full = run(seconds, GPUS, WORKERS).await?;
    println!(
        "| {GPUS} GPUs (pretended), {WORKERS} workers | {:.2} | {} |",
        full.0,
        full.1 >> 20
    );
    Ok(())
}

/// Share of a core in percent, and resident bytes.
async fn run(seconds: u64, gpus: u32, workers: usize) -> Result<(f64, u64)> {
    let queen = queen().await?;
    let driver = Scenario::new(Driver::with_gpus(gpus));
    let args = [
        "--queen-url",
        &queen.url(),
        "--idle-unload",
        "0",
        "--reserve-ram",
        "0",
        "--nvml-library",
        &driver.library().display().to_string(),
    ];
    let hive = daemon("rbee-hive", &args, &[]).await?;
    for _ in 0..workers {
        let operation =
            json!({"operation": "worker_spawn", "model": models::SMOLLM2, "device": "cpu", "context_length": 512});
        let spawned = http::job(&hive.url(), &operation).await;
        if spawned["state"] != "succeeded" {
            return Err(format!("start a worker: {spawned:#}"));
        }
    }
    // What starting them cost is over.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let before = cpu_seconds(hive.pid())?;
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    let spent = cpu_seconds(hive.pid())? - before;
    let resident = crate::programs::status_bytes(hive.pid(), "VmRSS")?;
    Ok((spent / seconds as f64 * 100.0, resident))
}

/// CPU time of a process's threads so far, to the nanosecond: `/proc/PID/task/TID/schedstat`.
fn cpu_seconds(pid: i32) -> Result<f64> {
    let mut nanoseconds = 0.0;
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).map_err(|error| format!("list threads: {error}"))?;
    for task in tasks.flatten() {
        let text = std::fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
        let on_cpu = text.split_whitespace().next().and_then(|word| word.parse::<f64>().ok());
        nanoseconds += on_cpu.unwrap_or(0.0);
    }
    Ok(nanoseconds / 1e9)
}
