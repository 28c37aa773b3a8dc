//! Models that nobody serves are placed, loaded, moved aside and kept, as requests and operators want them.
//!
//! Takes more than five seconds: each worker loads a real model. GPUs are a fake library.

use futures_util::StreamExt;
use futures_util::future::join_all;
use rbee_tests::chats::Endless;
use rbee_tests::cluster::chat_body;
use rbee_tests::{Cluster, PATIENCE, Process, Program, eventually, gpu, http, models};
use serde_json::{Value, json};

/// A quick queen with these settings.
async fn queen(more: &[&str]) -> Cluster {
    let pace = ["--heartbeat-interval-ms", "500", "--heartbeat-ttl-ms", "10000"];
    Cluster::with(pace.iter().chain(more)).await
}

/// A hive with this id, which the queen knows.
async fn hive(cluster: &Cluster, id: &str, more: &[&str]) -> Process {
    let url = cluster.url();
    let args = ["--port", "0", "--hive-id", id, "--queen-url", &url];
    let hive = Process::daemon(Program::Hive, args.iter().chain(more)).await;
    known(cluster, id).await;
    hive
}

/// Waits until the queen knows what this hive can do.
async fn known(cluster: &Cluster, id: &str) {
    cluster
        .until("the hive has told what it can do", |fleet| {
            let told = fleet
                .hives
                .iter()
                .find(|hive| hive.id.as_str() == id)?
                .capabilities
                .as_ref()?;
            (!told.devices.is_empty() && !told.models.is_empty()).then_some(())
        })
        .await;
}

/// Both test models are on the disk that all hives of these tests share.
async fn fetch() {
    models::smollm2().await;
    models::gemma3().await;
}

fn completion(model: &str) -> Value {
    json!({"model": model, "prompt": "Once upon a time", "max_tokens": 4, "temperature": 0})
}

async fn workers_of(cluster: &Cluster, model: &str) -> usize {
    let fleet = cluster.fleet().await;
    fleet
        .workers
        .iter()
        .filter(|worker| worker.model_id.as_str() == model)
        .count()
}

#[tokio::test]
async fn a_hundred_requests_for_a_model_that_nobody_serves_start_one_worker_and_are_all_answered() {
    fetch().await;
    // However slow the one is: a second one is for a line that stays long, which this is not about.
    let cluster = queen(&["--scale-up-waiting", "0"]).await;
    let hive = hive(&cluster, "box", &[]).await;
    let answers = join_all((0..100).map(|_| cluster.chat(models::SMOLLM2, "Hello"))).await;
    for answer in &answers {
        assert_eq!(answer.status, 200, "{answer:?}");
        assert_eq!(answer.text(), answers[0].text());
    }
    assert_eq!(workers_of(&cluster, models::SMOLLM2).await, 1);
    let jobs = http::get(format!("{}/v1/jobs", hive.url())).await;
    let spawns = jobs.body["jobs"].as_array().expect("jobs").iter();
    assert_eq!(
        spawns
            .filter(|job| job["operation"]["operation"] == "worker_spawn")
            .count(),
        1
    );
}

#[tokio::test]
async fn a_stream_for_a_model_that_has_to_be_loaded_is_told_how_far_it_is() {
    fetch().await;
    let cluster = queen(&[]).await;
    let _hive = hive(&cluster, "box", &[]).await;
    let mut body = chat_body(models::SMOLLM2, "Hello");
    body["stream"] = json!(true);
    let response = http::client()
        .post(cluster.chat_url())
        .json(&body)
        .send()
        .await
        .unwrap();
    assert_eq!(response.status(), 200);
    let lines: Vec<String> = http::data_lines(response).collect().await;
    assert_eq!(lines.last().map(String::as_str), Some("[DONE]"));
}

/// A host with one GPU of so much memory, whose processor may not be used.
async fn gpu_host(cluster: &Cluster, id: &str, memory_mb: u64) -> gpu::Host {
    let more = ["--hive-id", id, "--devices", "cuda:0", "--reserve-vram", "0"];
    let host = gpu::Host::start(cluster, 1, memory_mb, &more).await;
    known(cluster, id).await;
    host
}

/// One on which one of the two models has room at a time.
async fn narrow_host(cluster: &Cluster) -> gpu::Host {
    gpu_host(cluster, "narrow", 1_100).await
}

#[tokio::test]
async fn two_models_that_do_not_fit_together_take_turns_and_no_request_fails() {
    fetch().await;
    let cluster = queen(&[]).await;
    let _host = narrow_host(&cluster).await;
    for _ in 0..2 {
        let chat = cluster.chat(models::SMOLLM2, "Hello").await;
        assert_eq!(chat.status, 200, "{chat:?}");
        let text = http::post(cluster.completions_url(), &completion(models::GEMMA3)).await;
        assert_eq!(text.status, 200, "{text:?}");
    }
    // Both at once, many times: neither starves.
    let mixed = (0..12).map(|number| {
        let cluster = &cluster;
        async move {
            if number % 2 == 0 {
                cluster.chat(models::SMOLLM2, "Hello").await
            } else {
                http::post(cluster.completions_url(), &completion(models::GEMMA3)).await
            }
        }
    });
    for answer in join_all(mixed).await {
        assert_eq!(answer.status, 200, "{answer:?}");
    }
}

#[tokio::test]
async fn a_busy_worker_makes_room_only_when_it_has_finished() {
    fetch().await;
    let cluster = queen(&[]).await;
    let _host = narrow_host(&cluster).await;
    let never = json!({"0": -100, "2": -100});
    let long = json!({
        "model": models::SMOLLM2, "messages": [{"role": "user", "content": "Count."}], "temperature": 0,
        "max_tokens": 500, "logit_bias": never,
    });
    let long = tokio::spawn({
        let url = cluster.chat_url();
        async move { http::post(url, &long).await }
    });
    cluster.until_ready(models::SMOLLM2, 1).await;
    let other = http::post(cluster.completions_url(), &completion(models::GEMMA3)).await;
    assert_eq!(other.status, 200, "{other:?}");
    let long = long.await.unwrap();
    assert_eq!(long.status, 200, "{long:?}");
    assert_eq!(long.body["usage"]["completion_tokens"], 500, "it was not cut");
    assert_eq!(long.headers["x-rbee-attempts"], "1");
}

#[tokio::test]
async fn what_is_pinned_is_never_evicted_and_who_finds_no_room_is_told_where_and_why() {
    fetch().await;
    let cluster = queen(&[]).await;
    let _host = narrow_host(&cluster).await;
    rbee(&cluster, &["serve", models::SMOLLM2, "--pin"]).await;
    cluster.until_ready(models::SMOLLM2, 1).await;
    let refused = http::post(cluster.completions_url(), &completion(models::GEMMA3)).await;
    assert_eq!((refused.status, refused.code()), (503, "no_capacity"), "{refused:?}");
    assert!(refused.headers.contains_key("retry-after"), "{refused:?}");
    for word in ["narrow", "cuda:0", "pinned", "MiB"] {
        assert!(refused.message().contains(word), "no {word}: {refused:?}");
    }
    cluster.until_ready(models::SMOLLM2, 1).await;
}

#[tokio::test]
async fn every_device_says_why_a_model_goes_there_or_not_and_a_decision_can_be_made_again_from_its_record() {
    fetch().await;
    let cluster = queen(&[]).await;
    let _wide = hive(&cluster, "wide", &[]).await;
    let _narrow = gpu_host(&cluster, "narrow", 300).await;
    let asked = http::get(format!("{}/v1/placement?model={}", cluster.url(), models::GEMMA3)).await;
    assert_eq!(asked.status, 200, "{asked:?}");
    let why = rbee(&cluster, &["why", models::GEMMA3]).await;
    for word in ["wide", "cpu", "narrow", "cuda:0", "MB"] {
        assert!(why.contains(word), "no {word} in:\n{why}");
    }
    let answer = http::post(cluster.completions_url(), &completion(models::GEMMA3)).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let fleet = cluster.fleet().await;
    assert_eq!(fleet.workers[0].hive_id.as_ref().map(|id| id.as_str()), Some("wide"));

    let listed: Value = serde_json::from_str(&rbee(&cluster, &["decisions", "--json"]).await).expect("JSON");
    let decisions = listed["decisions"].as_array().expect("decisions");
    let id = decisions
        .iter()
        .find_map(|decision| (decision["problem"]["model"] == models::GEMMA3).then(|| decision["id"].to_string()));
    let replayed = rbee(
        &cluster,
        &["decisions", "--replay", id.expect("it was recorded").trim_matches('"')],
    )
    .await;
    assert!(replayed.contains("same"), "{replayed}");
}

#[tokio::test]
async fn what_must_always_run_runs_is_spread_and_comes_back_with_the_queen() {
    fetch().await;
    let state = tempfile::tempdir().unwrap();
    let mut cluster = queen(&["--state-dir", state.path().to_str().unwrap()]).await;
    let _hives = [hive(&cluster, "a", &[]).await, hive(&cluster, "b", &[]).await];
    rbee(&cluster, &["serve", models::SMOLLM2, "--replicas", "2", "--pin"]).await;
    cluster.until_ready(models::SMOLLM2, 2).await;
    let fleet = cluster.fleet().await;
    let mut hosts: Vec<_> = fleet
        .workers
        .iter()
        .filter_map(|worker| worker.hive_id.clone())
        .collect();
    hosts.sort();
    assert_eq!(hosts.iter().map(|id| id.as_str()).collect::<Vec<_>>(), ["a", "b"]);
    let listed = rbee(&cluster, &["serve", "--list"]).await;
    assert!(listed.contains(models::SMOLLM2), "{listed}");

    cluster.queen.kill().await;
    cluster.restart_queen().await;
    cluster.until_ready(models::SMOLLM2, 2).await;
    let listed = rbee(&cluster, &["serve", "--list"]).await;
    assert!(listed.contains(models::SMOLLM2), "{listed}");
    rbee(&cluster, &["serve", models::SMOLLM2, "--replicas", "0"]).await;
    cluster
        .until("what is not stated any more does not run", |fleet| {
            fleet.workers.is_empty().then_some(())
        })
        .await;
}

#[tokio::test]
async fn a_drained_hive_gives_its_work_to_others_and_takes_nothing_new() {
    fetch().await;
    let cluster = queen(&[]).await;
    let _first = hive(&cluster, "first", &[]).await;
    assert_eq!(cluster.chat(models::SMOLLM2, "Hello").await.status, 200);
    let _second = hive(&cluster, "second", &[]).await;
    rbee(&cluster, &["drain", "first"]).await;
    cluster
        .until("nothing runs on the drained hive", |fleet| {
            let there = |id: &str| {
                fleet
                    .workers
                    .iter()
                    .any(|worker| worker.hive_id.as_ref().is_some_and(|hive| hive.as_str() == id))
            };
            (!there("first")).then_some(())
        })
        .await;
    let answer = cluster.chat(models::SMOLLM2, "Hello").await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let worker = answer.headers["x-rbee-hive"].to_str().unwrap();
    assert_eq!(worker, "second");
    rbee(&cluster, &["drain", "first", "--undo"]).await;
}

#[tokio::test]
async fn a_queue_that_stays_long_gets_a_second_worker_where_a_device_is_free() {
    fetch().await;
    let cluster = queen(&["--scale-up-waiting", "2", "--scale-up-after-ms", "500"]).await;
    let _hives = [hive(&cluster, "a", &[]).await, hive(&cluster, "b", &[]).await];
    assert_eq!(cluster.chat(models::SMOLLM2, "Hello").await.status, 200);
    let chat_url = cluster.chat_url();
    // The first worker has four slots: the others begin only when there is a second one.
    let stories = (0..8).map(async |n| Endless::begin(&chat_url, &format!("Tell me story number {n}.")).await);
    let _stories = join_all(stories).await;
    assert_eq!(workers_of(&cluster, models::SMOLLM2).await, 2);
}

#[tokio::test]
async fn a_model_that_no_host_can_hold_is_refused_with_the_figures_of_each() {
    fetch().await;
    let cluster = queen(&[]).await;
    let _host = gpu_host(&cluster, "tiny", 64).await;
    let refused = cluster.chat(models::SMOLLM2, "Hello").await;
    assert_eq!(refused.status, 503, "{refused:?}");
    assert_eq!(refused.code(), "no_capacity", "{refused:?}");
    assert!(refused.message().contains("MiB"), "{refused:?}");
    let unknown = cluster.chat("no-such-model", "Hello").await;
    assert_eq!(
        (unknown.status, unknown.code()),
        (404, "model_not_found"),
        "{unknown:?}"
    );
}

#[tokio::test]
async fn all_models_that_could_be_loaded_are_listed_with_where_they_are() {
    fetch().await;
    let cluster = queen(&[]).await;
    let _hive = hive(&cluster, "box", &[]).await;
    let listed = eventually("the models on disk are listed", async || {
        let listed = http::get(format!("{}/v1/models", cluster.url())).await;
        let models = listed.body["data"].as_array().expect("models").clone();
        models
            .iter()
            .any(|model| model["id"] == models::SMOLLM2)
            .then_some(models)
    })
    .await;
    let of = |id: &str| {
        listed
            .iter()
            .find(|model| model["id"] == id)
            .unwrap_or_else(|| panic!("{listed:#?}"))
    };
    let model = of(models::SMOLLM2);
    assert_eq!(model["state"], "on_disk", "{model}");
    assert_eq!(model["size_bytes"], 98_362_432, "{model}");
    assert!(model["context_length"].as_u64().unwrap() >= 2_048, "{model}");
    assert_eq!(model["hives"], json!(["box"]), "{model}");
    assert_eq!(cluster.chat(models::SMOLLM2, "Hello").await.status, 200);
    let now = http::get(format!("{}/v1/models/{}", cluster.url(), models::SMOLLM2)).await;
    assert_eq!(now.body["state"], "ready", "{now:?}");
}

/// Runs the command against the cluster; what it prints.
async fn rbee(cluster: &Cluster, args: &[&str]) -> String {
    let mut command = Program::Rbee.command();
    command.args(args).args(["--queen-url", &cluster.url()]);
    let output = tokio::time::timeout(PATIENCE, command.output()).await;
    let output = output.expect("it ends").expect("rbee runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "rbee {args:?}: {text}{errors}");
    text
}
