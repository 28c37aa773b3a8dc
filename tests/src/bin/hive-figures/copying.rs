//! A model file from one hive to another on this machine, beside a plain copy of it.

use std::path::Path;
use std::time::{Duration, Instant};

use rbee_tests::{eventually, http, models};
use serde_json::json;

use crate::programs::{daemon, queen};
use crate::{Result, median};

/// Longest wait for a copy.
const PATIENCE: Duration = Duration::from_secs(120);

pub(crate) async fn measure(runs: u32) -> Result<()> {
    let file = models::gemma3().await;
    let fail = |what: &'static str| move |error: std::io::Error| format!("{what}: {error}");
    let size = std::fs::metadata(&file).map_err(fail("read the model file"))?.len();
    let queen = queen().await?;
    let _holder = daemon("rbee-hive", &["--queen-url", &queen.url()], &[]).await?;
    let folder = tempfile::tempdir().map_err(fail("make a folder"))?;
    let taker_models = folder.path().join("models").display().to_string();
    // What it does not find at the other hive it finds nowhere.
    let nowhere = [
        ("PIP_INDEX_URL", "http://127.0.0.1:9/simple".into()),
        ("PIP_RETRIES", "0".into()),
    ];
    let taker = daemon(
        "rbee-hive",
        &["--queen-url", &queen.url(), "--models-dir", &taker_models],
        &nowhere,
    )
    .await?;
    let holders = format!("{}/v1/model-holders?reference={}", queen.url(), models::GEMMA3);
    eventually("the queen knows who has the model", async || {
        (!http::get(&holders).await.body["holders"].as_array()?.is_empty()).then_some(())
    })
    .await;

    let (mut plain, mut hives) = (Vec::new(), Vec::new());
    for _ in 0..runs {
        plain.push(copy(&file, &folder.path().join("copy"))?);
        let started = Instant::now();
        let operation = json!({"operation": "model_pull", "model": models::GEMMA3});
        let pulled = tokio::time::timeout(PATIENCE, http::job(&taker.url(), &operation))
            .await
            .map_err(|_| "copy the model in time".to_owned())?;
        hives.push(started.elapsed().as_secs_f64());
        if pulled["state"] != "succeeded" {
            return Err(format!("copy the model: {pulled:#}"));
        }
        http::job(
            &taker.url(),
            &json!({"operation": "model_delete", "model": models::GEMMA3}),
        )
        .await;
    }
    let rate = |seconds: f64| size as f64 / 1e6 / seconds;
    let (plain, hives) = (rate(median(plain)), rate(median(hives)));
    println!("\n| copy of {} MB | MB/s |", size / 1_000_000);
    println!("|---|---|");
    println!("| file to file, flushed to the disk | {plain:.0} |");
    println!("| hive to hive, verified, flushed | {hives:.0} |");
    println!("| ratio | {:.2} |", hives / plain);
    Ok(())
}

/// Seconds that a copy of a file takes until it is on the disk.
fn copy(from: &Path, to: &Path) -> Result<f64> {
    let started = Instant::now();
    let copied = std::fs::copy(from, to).and_then(|_| std::fs::File::open(to)?.sync_all());
    let seconds = started.elapsed().as_secs_f64();
    copied
        .and_then(|()| std::fs::remove_file(to))
        .map_err(|error| format!("copy {}: {error}", from.display()))?;
    Ok(seconds)
}
