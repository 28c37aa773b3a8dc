//! What `rbee doctor` and `rbee bench` say of a real fleet.

use std::process::Output;

use rbee_tests::{Cluster, PATIENCE, Program, models};
use serde_json::{Value, json};

/// Runs `rbee` with these words, asking for JSON; the whole checklist takes a debug build its time.
async fn rbee(args: &[&str]) -> (Output, Value) {
    let mut command = Program::Rbee.command();
    command
        .args(args)
        .arg("--json")
        .stdin(std::process::Stdio::null())
        .kill_on_drop(true);
    let output = tokio::time::timeout(3 * PATIENCE, command.output())
        .await
        .expect("rbee ends")
        .expect("rbee runs");
    let document = serde_json::from_slice(&output.stdout).unwrap_or_default();
    (output, document)
}

fn checks(document: &Value, status: &str) -> Vec<String> {
    let checks = document["checks"].as_array().into_iter().flatten();
    checks
        .filter(|check| check["status"] == status)
        .map(|check| {
            format!(
                "{}: {}",
                check["check"].as_str().unwrap_or(""),
                check["found"].as_str().unwrap_or("")
            )
        })
        .collect()
}

/// Takes more than five seconds: a real model answers some sixty requests.
#[tokio::test]
async fn the_queen_passes_her_own_checklist() {
    let (cluster, _worker) = Cluster::serving(models::SMOLLM2).await;
    let (output, document) = rbee(&["doctor", "--api", &cluster.url(), "--model", models::SMOLLM2]).await;
    assert_eq!(checks(&document, "fail"), [""; 0], "{output:?}");
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    // No load is made to fill her, and without keys there is no wrong one; she lists no id with a slash here.
    let skipped = checks(&document, "skipped");
    assert!(skipped.len() <= 4, "{skipped:?}");
}

/// Takes more than five seconds: a real model answers some sixty requests.
#[tokio::test]
async fn a_worker_passes_the_checklist_too() {
    let (_cluster, worker) = Cluster::serving(models::SMOLLM2).await;
    let (output, document) = rbee(&["doctor", "--api", &worker.url(), "--model", models::SMOLLM2]).await;
    assert_eq!(checks(&document, "fail"), [""; 0], "{output:?}");
    assert_eq!(output.status.code(), Some(0), "{output:?}");
}

#[tokio::test]
async fn the_doctor_finds_a_fleet_well_and_tells_what_is_drained_or_not_there() {
    let cluster = Cluster::start().await;
    let _hive = cluster.hive().await;
    let id = cluster.until("the hive is there", |fleet| Some(fleet.hives.first()?.id.to_string()));
    let id = id.await;
    let (output, document) = rbee(&["doctor", "--queen-url", &cluster.url()]).await;
    let well = checks(&document, "ok");
    for line in [
        "hives: 1 of 1 online",
        "members from here: all 1 answer",
        "versions: all",
    ] {
        assert!(well.iter().any(|check| check.starts_with(line)), "{line}: {output:?}");
    }

    rbee(&["drain", &id, "--queen-url", &cluster.url()]).await;
    let (_, document) = rbee(&["doctor", "--queen-url", &cluster.url()]).await;
    let warnings = checks(&document, "warn");
    assert!(warnings.iter().any(|check| check.contains("drained")), "{warnings:?}");

    let (output, document) = rbee(&["doctor", "--queen-url", "http://127.0.0.1:9"]).await;
    assert_eq!(output.status.code(), Some(1));
    assert!(
        checks(&document, "fail")
            .iter()
            .any(|check| check.starts_with("queen: no queen answers"))
    );
}

/// Takes more than five seconds: a real model answers.
#[tokio::test]
async fn a_bench_counts_the_workers_own_tokens_and_stands_beside_another_server() {
    let (cluster, worker) = Cluster::serving(models::SMOLLM2).await;
    let args = [
        "bench",
        models::SMOLLM2,
        "--queen-url",
        &cluster.url(),
        "--concurrency",
        "1,2",
        "--requests",
        "4",
        "--prompt-tokens",
        "60",
        "--max-tokens",
        "8",
        "--beside",
        &worker.url(),
    ];
    let (output, report) = rbee(&args).await;
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let levels = report["levels"].as_array().unwrap();
    assert_eq!(levels.len(), 2, "{report:#}");
    for server in levels.iter().flat_map(|level| level["servers"].as_array().unwrap()) {
        assert_eq!(
            (&server["answers"], &server["failed"]),
            (&json!(4), &json!(0)),
            "{server:#}"
        );
        assert_eq!(server["tokens_counted_by"], "usage");
        let prompt = server["prompt_tokens"].as_f64().unwrap();
        assert!((50.0..=70.0).contains(&prompt), "{server:#}");
        for figure in ["tokens_per_s", "stream_tokens_per_s"] {
            assert!(server[figure].as_f64().unwrap() > 0.0, "{server:#}");
        }
        for spread in ["ttft_ms", "inter_token_ms"] {
            assert!(
                server[spread]["p50"].as_f64() <= server[spread]["p99"].as_f64(),
                "{server:#}"
            );
        }
    }
}
