//! From the request for a worker to its being ready, the model's file being there.

use std::time::Instant;

use rbee_tests::{http, models};
use serde_json::json;

use crate::programs::daemon;
use crate::{Result, median};

pub(crate) async fn measure(runs: u32) -> Result<()> {
    models::smollm2().await;
    models::gemma3().await;
    let hive = daemon("rbee-hive", &["--idle-unload", "0"], &[]).await?;
    println!("\n| worker_spawn to ready | s |");
    println!("|---|---|");
    for model in [models::SMOLLM2, models::GEMMA3] {
        let mut seconds = Vec::new();
        for _ in 0..runs {
            let started = Instant::now();
            let spawned = http::job(&hive.url(), &json!({"operation": "worker_spawn", "model": model})).await;
            seconds.push(started.elapsed().as_secs_f64());
            let Some(id) = spawned["result"]["worker_id"].as_str() else {
                return Err(format!("start a worker: {spawned:#}"));
            };
            http::job(&hive.url(), &json!({"operation": "worker_stop", "worker_id": id})).await;
        }
        println!("| {model} | {:.2} |", median(seconds));
    }
    Ok(())
}
