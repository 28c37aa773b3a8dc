//! Where a host's model files come from, and what becomes of them.
//!
//! Takes more than five seconds: real models are copied and loaded.

use std::path::Path;

use rbee_tests::hub::Hub;
use rbee_tests::{Cluster, Process, Program, eventually, http, models};
use serde_json::{Value, json};
use tempfile::TempDir;

/// A hive with its own model files, to which no source of models can be reached.
async fn cut_off_hive(cluster: &Cluster, models: &Path, more: &[&str]) -> Process {
    let mut command = Program::Hive.command();
    for variable in ["HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "ALL_PROXY"] {
        command.env_remove(variable);
    }
    command
        .env("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
        .env("PIP_EXTRA_INDEX_URL", "")
        .env("PIP_CONFIG_FILE", "/dev/null")
        .env("PIP_RETRIES", "0")
        .env("HF_ENDPOINT", "http://127.0.0.1:9");
    let (url, models) = (cluster.url(), models.display().to_string());
    let args = ["--port", "0", "--queen-url", &url, "--models-dir", &models];
    Process::daemon_from(command, args.iter().chain(more)).await
}

fn operation(name: &str, model: &str) -> Value {
    json!({"operation": name, "model": model})
}

#[tokio::test]
async fn a_model_that_another_host_has_is_copied_from_there_and_then_served() {
    models::smollm2().await;
    let (cluster, folder) = (Cluster::start().await, TempDir::new().unwrap());
    let holder = cluster.hive().await;
    let lonely = cut_off_hive(&cluster, folder.path(), &["--hive-id", "lonely"]).await;
    let holders = format!("{}/v1/model-holders?reference={}", cluster.url(), models::SMOLLM2);
    eventually("the queen knows who has the model", async || {
        let answer = http::get(&holders).await;
        (answer.body["holders"].as_array()?.len() == 1).then_some(())
    })
    .await;

    let spawned = cluster.job(&lonely, &operation("worker_spawn", models::SMOLLM2)).await;
    assert_eq!(spawned["state"], "succeeded", "{spawned:#}");
    cluster.until_ready(models::SMOLLM2, 1).await;
    assert_eq!(cluster.chat(models::SMOLLM2, "Hello").await.status, 200);
    let theirs = http::get(format!("{}/v1/models/{}", holder.url(), models::SMOLLM2)).await;
    let ours = http::get(format!("{}/v1/models/{}", lonely.url(), models::SMOLLM2)).await;
    assert_eq!(ours.body["sha256"], theirs.body["sha256"], "{ours:?}");
    eventually("both have it now", async || {
        let answer = http::get(&holders).await;
        (answer.body["holders"].as_array()?.len() == 2).then_some(())
    })
    .await;

    // In use it stays; stopped, it can go.
    let delete = operation("model_delete", models::SMOLLM2);
    let refused = http::post(format!("{}/v1/jobs", lonely.url()), &delete).await;
    assert_eq!((refused.status, refused.code()), (409, "conflict"), "{refused:?}");
    let worker = spawned["result"]["worker_id"].as_str().expect("an id");
    assert!(refused.message().contains(worker), "{refused:?}");
    cluster
        .job(&lonely, &json!({"operation": "worker_stop", "worker_id": worker}))
        .await;
    // The queen does not guess which of two is meant.
    let url = cluster.url();
    let rm = async |more: &[&str]| {
        let mut rm = Program::Rbee.command();
        rm.args(["--queen-url", &url, "rm", models::SMOLLM2]).args(more);
        rm.output().await.unwrap()
    };
    let unsure = rm(&[]).await;
    assert_eq!(unsure.status.code(), Some(1), "{unsure:?}");
    let reason = String::from_utf8_lossy(&unsure.stderr);
    assert!(reason.contains("--hive") && reason.contains("lonely"), "{reason}");
    let removed = rm(&["--hive", "lonely"]).await;
    let said = String::from_utf8_lossy(&removed.stdout);
    assert!(said.contains("is removed from lonely"), "{removed:?}");
    let listed = http::get(format!("{}/v1/models", lonely.url())).await;
    assert_eq!(listed.body["models"], json!([]), "{listed:?}");
}

#[tokio::test]
async fn a_model_that_nobody_can_be_asked_for_is_a_failure_that_names_step_and_remedy() {
    let (cluster, folder) = (Cluster::start().await, TempDir::new().unwrap());
    let hive = cut_off_hive(&cluster, folder.path(), &[]).await;
    let failed = cluster.job(&hive, &operation("model_pull", "hf:org/repo/m.gguf")).await;
    assert_eq!(failed["state"], "failed", "{failed:#}");
    let message = failed["error"]["message"].as_str().expect("a message");
    assert!(
        message.contains("step `resolve`") && message.contains("127.0.0.1:9"),
        "{message}"
    );
}

#[tokio::test]
async fn a_download_that_a_kill_interrupted_goes_on_and_is_verified() {
    let path = models::smollm2().await;
    let content = std::fs::read(&path).unwrap();
    let size = content.len() as u64;
    let sha256 = sha256_of_smollm2();
    let hub = Hub::start(content, &sha256, 50 << 20).await;
    let (cluster, folder) = (Cluster::start().await, TempDir::new().unwrap());
    let start = async || {
        let mut command = Program::Hive.command();
        command.env("HF_ENDPOINT", hub.url());
        let (url, models) = (cluster.url(), folder.path().display().to_string());
        Process::daemon_from(command, ["--port", "0", "--queen-url", &url, "--models-dir", &models]).await
    };
    let mut first = start().await;
    let pull = operation("model_pull", "hf:org/repo/smollm2.gguf");
    http::post(format!("{}/v1/jobs", first.url()), &pull).await;
    eventually("the download has begun and stands still", async || {
        hub.has_stalled().then_some(())
    })
    .await;
    eventually("what has come is noted on the disk", async || {
        has_mark(folder.path()).then_some(())
    })
    .await;
    first.kill().await;
    let sent = hub.sent_bytes();
    assert!(sent < size, "all of it was sent before the kill");

    hub.open();
    let next = start().await;
    let pulled = cluster.job(&next, &pull).await;
    assert_eq!(pulled["state"], "succeeded", "{pulled:#}");
    assert_eq!(pulled["result"]["sha256"], sha256.as_str());
    assert_eq!(
        pulled["result"]["revision"].as_str().map(str::len),
        Some(40),
        "{pulled:#}"
    );
    let again = hub.sent_bytes() - sent;
    assert!(
        again < size - (sent / 4),
        "{again} of {size} bytes were sent after the kill, {sent} before"
    );
}

/// Whether a download has noted on the disk what of it is there: after a kill, only that counts.
fn has_mark(folder: &Path) -> bool {
    std::fs::read_dir(folder).into_iter().flatten().flatten().any(|entry| {
        let path = entry.path();
        path.extension().is_some_and(|end| end == "mark") || has_mark(&path)
    })
}

#[tokio::test]
async fn a_file_with_a_wrong_checksum_never_becomes_a_model() {
    let content = std::fs::read(models::smollm2().await).unwrap();
    let hub = Hub::start(content, &"0".repeat(64), usize::MAX >> 8).await;
    let (cluster, folder) = (Cluster::start().await, TempDir::new().unwrap());
    let mut command = Program::Hive.command();
    command.env("HF_ENDPOINT", hub.url());
    let models = folder.path().display().to_string();
    let hive = Process::daemon_from(command, ["--port", "0", "--models-dir", &models]).await;
    let operation = operation("worker_spawn", "hf:org/repo/smollm2.gguf");
    let failed = cluster.job(&hive, &operation).await;
    assert_eq!(failed["state"], "failed", "{failed:#}");
    let message = failed["error"]["message"].as_str().expect("a message");
    assert!(
        message.contains("sha256") && message.contains("thrown away"),
        "{message}"
    );
    let listed = http::get(format!("{}/v1/models", hive.url())).await;
    assert_eq!(listed.body["models"], json!([]), "{listed:?}");
}

#[tokio::test]
async fn a_disk_that_is_too_small_is_a_clear_error_before_the_first_byte() {
    models::smollm2().await;
    let (cluster, folder) = (Cluster::start().await, TempDir::new().unwrap());
    let holder = cluster.hive().await;
    // A disk of its own, seen by this hive alone.
    let disk = folder.path().display().to_string();
    let script = format!("mount -t tmpfs -o size=20m none '{disk}' && exec \"$@\"");
    let launcher = ["unshare", "--mount", "sh", "-c", &script, "sh"];
    let tried = std::process::Command::new(launcher[0])
        .args(&launcher[1..])
        .arg("true")
        .output();
    if !tried.is_ok_and(|tried| tried.status.success()) {
        assert!(std::env::var_os("CI").is_none(), "a disk can be mounted where CI runs");
        println!("skipped: no disk can be mounted here (it needs root)");
        return;
    }
    let url = cluster.url();
    let args = ["--port", "0", "--queen-url", &url, "--models-dir", &disk];
    let hive = Process::daemon_from(Program::Hive.command_by(&launcher), args).await;
    let holders = format!("{url}/v1/model-holders?reference={}", models::SMOLLM2);
    eventually("the queen knows who has the model", async || {
        (http::get(&holders).await.body["holders"].as_array()?.len() == 1).then_some(())
    })
    .await;
    let failed = cluster.job(&hive, &operation("model_pull", models::SMOLLM2)).await;
    let message = failed["error"]["message"]
        .as_str()
        .unwrap_or_else(|| panic!("{failed:#}"));
    assert!(message.contains("MiB") && message.contains(&disk), "{message}");
    assert!(message.contains("free"), "it names the remedy: {message}");
    drop(holder);
}

fn sha256_of_smollm2() -> String {
    let catalogue = model_store::Catalogue::built_in();
    let entry = catalogue.get(models::SMOLLM2).expect("the test model");
    entry.sha256.clone().expect("it is pinned")
}

#[tokio::test]
async fn a_file_that_was_damaged_on_disk_is_found_and_named() {
    models::smollm2().await;
    let (cluster, folder) = (Cluster::start().await, TempDir::new().unwrap());
    let _holder = cluster.hive().await;
    let hive = cut_off_hive(&cluster, folder.path(), &[]).await;
    eventually("the model can be copied", async || {
        let pulled = cluster.job(&hive, &operation("model_pull", models::SMOLLM2)).await;
        (pulled["state"] == "succeeded").then_some(())
    })
    .await;
    let mut verify = operation("model_get", models::SMOLLM2);
    verify["verify"] = json!(true);
    let whole = cluster.job(&hive, &verify).await;
    assert_eq!(whole["state"], "succeeded", "{whole:#}");

    let file = folder
        .path()
        .join(models::SMOLLM2)
        .join("files")
        .join(whole["result"]["files"][0]["name"].as_str().expect("a file"));
    let mut bytes = std::fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&file, &bytes).unwrap();
    let flipped = cluster.job(&hive, &verify).await;
    let message = flipped["error"]["message"].as_str().expect("a message");
    assert!(message.contains("Q4_1.gguf") && message.contains("sha256"), "{message}");

    // One of another size is seen without being read.
    std::fs::write(&file, &bytes[..middle]).unwrap();
    let listed = cluster.job(&hive, &json!({"operation": "model_list"})).await;
    let problem = listed["result"]["models"][0]["problem"]
        .as_str()
        .unwrap_or_else(|| panic!("{listed:#}"));
    assert!(problem.contains("Q4_1.gguf"), "{problem}");
}
