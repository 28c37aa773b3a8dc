//! A hive dies or is replaced, and its workers go on.
//!
//! Takes more than five seconds: real models are loaded.

use std::path::Path;

use futures_util::StreamExt;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rbee_tests::cluster::chat_body;
use rbee_tests::process::{group_members, is_alive};
use rbee_tests::{Cluster, Process, Program, eventually, http, models};
use serde_json::{Value, json};
use tempfile::TempDir;

/// A hive that keeps its state in this folder.
async fn hive_in(folder: &Path, cluster: &Cluster, more: &[&str]) -> Process {
    let state = folder.join("state").display().to_string();
    let url = cluster.url();
    let args = ["--port", "0", "--queen-url", &url, "--state-dir", &state];
    Process::daemon(Program::Hive, args.iter().chain(more)).await
}

/// Starts a worker by a job; answers with its id and pid.
async fn spawn(cluster: &Cluster, hive: &Process) -> (String, i32) {
    let operation = json!({"operation": "worker_spawn", "model": models::SMOLLM2});
    let spawned = cluster.job(hive, &operation).await;
    assert_eq!(spawned["state"], "succeeded", "{spawned:#}");
    cluster.until_ready(models::SMOLLM2, 1).await;
    let result = &spawned["result"];
    let pid = result["pid"].as_i64().expect("a pid");
    (result["worker_id"].as_str().expect("an id").to_owned(), pid as i32)
}

async fn workers(hive: &Process) -> Vec<Value> {
    let answer = http::get(format!("{}/v1/workers", hive.url())).await;
    answer.body["workers"].as_array().cloned().unwrap_or_default()
}

/// Waits until the hive says that this one worker is this process and runs.
async fn until_looked_after(hive: &Process, id: &str, pid: i32) {
    eventually("the new hive looks after the worker", async || {
        let workers = workers(hive).await;
        assert!(workers.len() <= 1, "{workers:#?}");
        let worker = workers.first()?;
        assert_eq!(worker["worker_id"], id);
        (worker["pid"] == pid && worker["state"] == "running" && worker["instance"] != "").then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_hive_killed_under_load_loses_no_answer_and_the_next_one_adopts_its_worker() {
    let (cluster, folder) = (Cluster::start().await, TempDir::new().unwrap());
    let mut first = hive_in(folder.path(), &cluster, &[]).await;
    let (id, pid) = spawn(&cluster, &first).await;
    let mut body = chat_body(models::SMOLLM2, "Tell me a story.");
    body["stream"] = json!(true);
    body["max_tokens"] = json!(200);
    let mut streams = Vec::new();
    for _ in 0..4 {
        streams.push(http::post_stream(cluster.chat_url(), &body).await);
    }
    streams[0].next().await.expect("a first chunk");

    first.kill().await;
    let next = hive_in(folder.path(), &cluster, &[]).await;
    until_looked_after(&next, &id, pid).await;
    for stream in streams {
        let lines: Vec<String> = stream.collect().await;
        assert_eq!(lines.last().map(String::as_str), Some("[DONE]"));
    }

    // It is looked after in every way: what it prints is there, a crash is seen and mended, and it can be stopped.
    let logs = cluster
        .job(
            &next,
            &json!({"operation": "worker_logs", "worker_id": id, "lines": 1000}),
        )
        .await;
    assert_eq!(logs["state"], "succeeded", "{logs:#}");
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    let replaced = eventually("the worker is started again", async || {
        let workers = workers(&next).await;
        let pid = workers.first()?["pid"]
            .as_i64()
            .filter(|new| *new != 0 && *new != i64::from(pid))?;
        i32::try_from(pid).ok()
    })
    .await;
    until_looked_after(&next, &id, replaced).await;
    let stopped = cluster
        .job(&next, &json!({"operation": "worker_stop", "worker_id": id}))
        .await;
    assert_eq!(stopped["state"], "succeeded", "{stopped:#}");
    assert!(!is_alive(replaced));
}

#[tokio::test]
async fn a_hive_that_keeps_its_workers_can_be_upgraded_under_load() {
    let (cluster, folder) = (Cluster::start().await, TempDir::new().unwrap());
    let mut first = hive_in(folder.path(), &cluster, &["--keep-workers"]).await;
    let (id, pid) = spawn(&cluster, &first).await;
    let _ended_with_the_test = EndsWithTheTest(pid);
    let mut body = chat_body(models::SMOLLM2, "Tell me a story.");
    body["stream"] = json!(true);
    body["max_tokens"] = json!(200);
    let mut stream = http::post_stream(cluster.chat_url(), &body).await;
    stream.next().await.expect("a first chunk");
    assert!(first.stop().await.success());
    assert!(is_alive(pid), "the worker ended with its hive");
    assert_eq!(cluster.chat(models::SMOLLM2, "Hello").await.status, 200);

    // The next hive keeps no workers, so that its own end is theirs.
    let mut next = hive_in(folder.path(), &cluster, &[]).await;
    until_looked_after(&next, &id, pid).await;
    let lines: Vec<String> = stream.collect().await;
    assert_eq!(lines.last().map(String::as_str), Some("[DONE]"));
    assert!(next.stop().await.success());
    eventually("the worker is gone", async || (!is_alive(pid)).then_some(())).await;
}

#[tokio::test]
async fn a_worker_of_which_the_next_hive_has_no_record_is_ended_and_other_processes_are_not() {
    let (cluster, folder) = (Cluster::start().await, TempDir::new().unwrap());
    let mut first = hive_in(folder.path(), &cluster, &[]).await;
    let (_, pid) = spawn(&cluster, &first).await;
    // One that somebody started by hand, beside it.
    let by_hand = cluster.worker(models::SMOLLM2).await;
    cluster.until_ready(models::SMOLLM2, 2).await;
    let group = group_members(first.pid());
    assert!(group.contains(&pid), "{group:?}");
    first.kill().await;
    let records = folder.path().join("state/workers");
    for record in std::fs::read_dir(&records).unwrap() {
        let path = record.unwrap().path();
        if path.extension().is_some_and(|end| end == "json") {
            std::fs::remove_file(path).unwrap();
        }
    }
    let next = hive_in(folder.path(), &cluster, &[]).await;
    eventually("the orphan is ended", async || (!is_alive(pid)).then_some(())).await;
    assert_eq!(workers(&next).await, [] as [Value; 0]);
    assert!(is_alive(by_hand.pid()));
    assert_eq!(cluster.chat(models::SMOLLM2, "Hello").await.status, 200);
}

/// A worker in a process group of its own, which no hive of the test may be there to end.
struct EndsWithTheTest(i32);

impl Drop for EndsWithTheTest {
    fn drop(&mut self) {
        if is_alive(self.0) {
            // It may end by itself in this moment.
            let _ = kill(Pid::from_raw(self.0), Signal::SIGKILL);
        }
    }
}
