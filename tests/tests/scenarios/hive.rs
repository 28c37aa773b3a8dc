//! A hive looks after its workers.

use std::time::Duration;

use futures_util::StreamExt;
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use queen_rbee::fleet::Liveness;
use rbee_tests::chats::Endless;
use rbee_tests::process::is_alive;
use rbee_tests::{Cluster, Process, Program, eventually, http, models};
use serde_json::{Value, json};

fn spawn() -> Value {
    json!({"operation": "worker_spawn", "model": models::SMOLLM2})
}

/// Takes more than five seconds: the worker loads its model twice.
#[tokio::test]
async fn a_worker_killed_under_a_hive_is_replaced_and_the_next_request_is_answered() {
    let cluster = Cluster::start().await;
    let hive = cluster.hive().await;
    let spawned = cluster.job(&hive, &spawn()).await;
    assert_eq!(spawned["state"], "succeeded", "{spawned:#}");
    cluster.until_ready(models::SMOLLM2, 1).await;
    let pid = spawned["result"]["pid"].as_i64().expect("a pid") as i32;
    assert_eq!(cluster.chat(models::SMOLLM2, "Hello").await.status, 200);

    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    let answer = cluster.chat(models::SMOLLM2, "Hello again").await;
    assert_eq!(answer.status, 200, "the request right after the kill: {answer:?}");
    let fleet = cluster.fleet().await;
    assert_eq!(fleet.workers.len(), 1, "{fleet:#?}");
    assert_ne!(fleet.workers[0].pid, Some(pid as u32));
    assert!(!is_alive(pid));
}

/// Takes more than five seconds: a real model is loaded.
#[tokio::test]
async fn a_hive_that_is_stopped_leaves_no_worker_behind() {
    // A goodbye that a busy machine swallows is made up for by the retention.
    let pace = ["--heartbeat-interval-ms", "1000", "--heartbeat-ttl-ms", "10000"];
    let cluster = Cluster::with(pace.iter().chain(&["--retention-ms", "10000"])).await;
    let mut hive = cluster.hive().await;
    let spawned = cluster.job(&hive, &spawn()).await;
    let pid = spawned["result"]["pid"]
        .as_i64()
        .unwrap_or_else(|| panic!("{spawned:#}")) as i32;
    assert!(is_alive(pid));
    assert!(hive.stop().await.success());
    assert!(!is_alive(pid), "its worker outlived the hive");
    cluster
        .until("all have said goodbye", |fleet| {
            (fleet.hives.is_empty() && fleet.workers.is_empty()).then_some(())
        })
        .await;
}

/// Takes more than five seconds: a real model is loaded.
#[tokio::test]
async fn a_ctrl_c_in_the_terminal_of_a_hive_lets_running_answers_finish() {
    let cluster = Cluster::start().await;
    let mut hive = cluster.hive().await;
    cluster.job(&hive, &spawn()).await;
    cluster.until_ready(models::SMOLLM2, 1).await;
    let mut body = rbee_tests::cluster::chat_body(models::SMOLLM2, "Tell me a story.");
    body["stream"] = json!(true);
    body["max_tokens"] = json!(100);
    let mut stream = http::post_stream(cluster.chat_url(), &body).await;
    stream.next().await.expect("a first chunk");

    // A terminal signals the whole group: the worker hears it from there, and then from its hive.
    killpg(Pid::from_raw(hive.pid()), Signal::SIGINT).unwrap();
    let rest: Vec<String> = stream.collect().await;
    assert_eq!(rest.last().map(String::as_str), Some("[DONE]"));
    assert!(hive.ended().await.success());
}

/// Takes more than five seconds: a real model is loaded.
#[tokio::test]
async fn a_worker_that_outlived_its_hive_can_be_stopped() {
    let cluster = Cluster::start().await;
    let mut hive = cluster.hive().await;
    let spawned = cluster.job(&hive, &spawn()).await;
    let id = spawned["result"]["worker_id"]
        .as_str()
        .unwrap_or_else(|| panic!("{spawned:#}"));
    cluster.until_ready(models::SMOLLM2, 1).await;
    hive.kill().await;
    cluster
        .until("the hive is lost", |fleet| {
            (fleet.hives.first()?.liveness == Liveness::Lost).then_some(())
        })
        .await;
    assert_eq!(
        cluster.chat(models::SMOLLM2, "Hello").await.status,
        200,
        "the worker goes on"
    );
    let mut stop = Program::Rbee.command();
    stop.args(["--queen-url", &cluster.url(), "stop", id]);
    assert!(Process::spawn(stop).ended().await.success());
    cluster
        .until("the worker is gone", |fleet| fleet.workers.is_empty().then_some(()))
        .await;
}

/// Takes more than five seconds: a real model is loaded.
#[tokio::test]
async fn a_worker_that_is_stopped_stays_stopped() {
    let cluster = Cluster::start().await;
    let hive = cluster.hive().await;
    let spawned = cluster.job(&hive, &spawn()).await;
    let id = spawned["result"]["worker_id"]
        .as_str()
        .unwrap_or_else(|| panic!("{spawned:#}"));
    let stopped = cluster
        .job(&hive, &json!({"operation": "worker_stop", "worker_id": id}))
        .await;
    assert_eq!(stopped["state"], "succeeded", "{stopped:#}");
    cluster
        .until("the worker is gone", |fleet| fleet.workers.is_empty().then_some(()))
        .await;
    let listed = cluster.job(&hive, &json!({"operation": "worker_list"})).await;
    assert_eq!(listed["result"]["workers"], json!([]), "{listed:#}");
}

#[tokio::test]
async fn a_late_reader_of_a_job_gets_it_from_the_start() {
    let cluster = Cluster::start().await;
    let hive = cluster.hive().await;
    let accepted = http::post(format!("{}/v1/jobs", hive.url()), &json!({"operation": "model_list"})).await;
    let job = format!("{}/v1/jobs/{}", hive.url(), accepted.body["job_id"].as_str().unwrap());
    eventually("the job is done without any reader", async || {
        (http::get(&job).await.body["state"] == "succeeded").then_some(())
    })
    .await;
    for _ in 0..2 {
        let response = http::client().get(format!("{job}/stream")).send().await.unwrap();
        let events: Vec<String> = http::data_lines(response).collect().await;
        let first: Value = serde_json::from_str(&events[0]).unwrap();
        assert_eq!(first["seq"], 0);
    }
}

#[tokio::test]
async fn a_hive_asked_for_its_capabilities_beats_to_the_queen_that_asked() {
    let cluster = Cluster::start().await;
    let hive = Process::daemon(Program::Hive, ["--port", "0"]).await;
    let asked = http::get(format!("{}/v1/capabilities?queen_url={}", hive.url(), cluster.url())).await;
    assert_eq!(asked.status, 200, "{asked:?}");
    assert_eq!(asked.body["devices"][0]["id"], "cpu", "{asked:?}");
    let view = cluster
        .until("the hive beats", |fleet| fleet.hives.first().cloned())
        .await;
    assert_eq!(view.base_url, hive.url());
    let capabilities = view.capabilities.expect("a full beat");
    assert!(!capabilities.devices.is_empty() && !capabilities.engines.is_empty());
}

#[tokio::test]
async fn a_hive_tells_its_load_every_second() {
    let cluster = Cluster::start().await;
    let hive = cluster.hive().await;
    let response = http::client()
        .get(format!("{}/v1/heartbeats/stream", hive.url()))
        .send()
        .await
        .unwrap();
    let events: Vec<String> = http::data_lines(response).take(2).collect().await;
    let event: Value = serde_json::from_str(&events[1]).unwrap();
    assert!(event["monitor"]["ram_total_mb"].as_u64().unwrap() > 0, "{event:#}");
}

#[tokio::test]
async fn daemons_may_start_in_any_order() {
    let hive = Process::daemon(Program::Hive, ["--port", "0", "--queen-url", "http://127.0.0.1:9"]).await;
    assert_eq!(http::get(format!("{}/health", hive.url())).await.status, 200);
    // The queen's port is not known before it starts, so one is started, ended, and started again there.
    let mut cluster = Cluster::start().await;
    cluster.queen.kill().await;
    let late = Process::daemon(Program::Hive, ["--port", "0", "--queen-url", &cluster.queen.url()]).await;
    assert_eq!(http::get(format!("{}/health", late.url())).await.status, 200);
    cluster.restart_queen().await;
    cluster
        .until("the hive that was first found its queen", |fleet| {
            fleet.hives.first().cloned()
        })
        .await;
}

/// Takes more than five seconds: a real model is loaded, answers, and rests.
#[tokio::test]
async fn a_worker_that_nobody_asks_is_stopped_and_one_that_answers_is_not() {
    let cluster = Cluster::start().await;
    let hive = cluster.hive().await;
    let mut operation = spawn();
    operation["keep_alive_s"] = json!(6);
    let spawned = cluster.job(&hive, &operation).await;
    let pid = spawned["result"]["pid"]
        .as_i64()
        .unwrap_or_else(|| panic!("{spawned:#}")) as i32;
    cluster.until_ready(models::SMOLLM2, 1).await;
    // It writes for longer than it may rest.
    let story = Endless::begin(&cluster.chat_url(), "Tell me a long story.").await;
    tokio::time::sleep(Duration::from_secs(8)).await;
    assert!(is_alive(pid) && story.goes_on());
    drop(story);
    eventually("the worker is stopped", async || (!is_alive(pid)).then_some(())).await;
    eventually("its hive keeps it no more", async || {
        let listed = cluster.job(&hive, &json!({"operation": "worker_list"})).await;
        (listed["result"]["workers"] == json!([])).then_some(())
    })
    .await;
    assert_eq!(
        http::metric(&hive.url(), "rbee_hive_worker_idle_stops_total").await,
        1.0
    );
}

/// Takes more than five seconds: a real model is loaded.
#[tokio::test]
async fn what_a_worker_prints_can_be_read_and_followed_to_its_end() {
    let cluster = Cluster::start().await;
    let hive = cluster.hive().await;
    let spawned = cluster.job(&hive, &spawn()).await;
    let id = spawned["result"]["worker_id"]
        .as_str()
        .unwrap_or_else(|| panic!("{spawned:#}"));
    cluster.until_ready(models::SMOLLM2, 1).await;
    let logs = |more: &[&str]| {
        let mut command = Program::Rbee.command();
        command.args(["--queen-url", &cluster.url(), "logs", id]).args(more);
        Process::spawn(command)
    };
    let mut last = logs(&["-n", "1"]);
    assert!(last.ended().await.success());
    assert_eq!(last.log().lines().count(), 1, "{}", last.log());

    let mut followed = logs(&["-f"]);
    eventually("the past is shown", async || {
        followed.log().contains("model loaded").then_some(())
    })
    .await;
    cluster
        .job(&hive, &json!({"operation": "worker_stop", "worker_id": id}))
        .await;
    assert!(followed.ended().await.success());
    assert!(followed.log().contains("draining"), "{}", followed.log());
    let hive_id = cluster.fleet().await.hives[0].id.to_string();
    let mut afterwards = logs(&["--hive", &hive_id]);
    assert!(afterwards.ended().await.success(), "the log of one that has ended");
    assert!(afterwards.log().contains("draining"), "{}", afterwards.log());
}

#[tokio::test]
async fn a_worker_that_cannot_start_is_a_failure_that_says_why() {
    let cluster = Cluster::start().await;
    let script = "case $0 in
        --version) echo llm-worker-rbee 0.1.0 ;;
        *) echo error while loading shared libraries: libcublas.so.13: cannot open shared object file >&2; exit 127 ;;
    esac";
    let worker = [
        "--worker-command",
        "sh",
        "--worker-command",
        "-c",
        "--worker-command",
        script,
    ];
    let url = cluster.url();
    let args = ["--port", "0", "--queen-url", &url];
    let hive = Process::daemon(Program::Hive, args.iter().chain(&worker)).await;
    let failed = cluster.job(&hive, &spawn()).await;
    let message = failed["error"]["message"]
        .as_str()
        .unwrap_or_else(|| panic!("{failed:#}"));
    for part in ["step `load`", "127", "libcublas.so.13"] {
        assert!(message.contains(part), "{part} is not in: {message}");
    }
}
