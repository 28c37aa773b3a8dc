//! The life of workers: placed where they fit, stopped when nobody needs them, and left alone by a hive that dies.

use std::time::Duration;

use hive_contract::{JobEvent, JobState};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rbee_hive::Sharing;
use serde_json::{Value, json};

use crate::support::{Bed, config, gguf, queen, start, start_doomed, start_on, start_with, within};

fn is_alive(pid: u32) -> bool {
    kill(Pid::from_raw(pid as i32), None).is_ok()
}

/// Waits until a process that has ended is no zombie either: who reaps those of a hive that died is this test's runtime.
async fn gone(pid: u32) {
    within(async {
        while is_alive(pid) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

/// Waits until the hive's only worker runs.
async fn running(bed: &Bed) -> Value {
    worker_with(bed, |worker| worker["state"] == "running").await
}

/// Waits until the hive has one worker of which this is true.
async fn worker_with(bed: &Bed, wanted: impl Fn(&Value) -> bool) -> Value {
    within(async {
        loop {
            let workers = bed.workers().await;
            if let [worker] = &workers[..]
                && wanted(worker)
            {
                return worker.clone();
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
}

fn message(end: &JobEvent) -> &str {
    &end.error.as_ref().expect("it failed").message
}

#[tokio::test]
async fn a_worker_outlives_its_hive_and_the_next_hive_takes_it_over() {
    let bed = start_doomed().await;
    let (id, pid) = bed.spawn("good").await;
    let folder = bed.die().await;
    assert!(is_alive(pid), "the hive's death kills no worker");

    let bed = start_on(folder, |_| {}).await;
    let worker = running(&bed).await;
    assert_eq!((&worker["worker_id"], &worker["pid"]), (&json!(id), &json!(pid)));
    assert_eq!((&worker["model"], &worker["restarts"]), (&json!("good"), &json!(0)));
    assert!(
        worker["granted_mb"].as_u64().unwrap() > 0,
        "its grant is known: {worker}"
    );
    bed.metric("rbee_hive_worker_adoptions_total 1").await;
    bed.metric("rbee_hive_worker_starts_total 0").await;

    let stop = json!({"operation": "worker_stop", "worker_id": id});
    assert_eq!(bed.job(&stop).await.result.unwrap()["how"], "stopped");
    gone(pid).await;
    assert!(bed.workers().await.is_empty());
    let folder = bed.end().await;
    let bed = start_on(folder, |_| {}).await;
    assert!(bed.workers().await.is_empty(), "what was stopped stays stopped");
    bed.end().await;
}

#[tokio::test]
async fn an_adopted_worker_that_dies_is_told_to_the_queen_and_replaced_under_its_id() {
    let bed = start_doomed().await;
    let (id, pid) = bed.spawn("good").await;
    let folder = bed.die().await;

    let mut queen = queen().await;
    let url = queen.url.clone();
    let bed = start_on(folder, |config| config.queen_urls = vec![url.parse().unwrap()]).await;
    running(&bed).await;
    kill(Pid::from_raw(pid as i32), Signal::SIGKILL).unwrap();
    let told = queen
        .beat_with(|beat| beat.changes.as_ref().is_some_and(|c| !c.workers_removed.is_empty()))
        .await;
    let exit = told.changes.unwrap().workers_removed.remove(0);
    assert_eq!((&exit.worker_id, exit.pid), (&id, Some(pid)));
    let back = worker_with(&bed, |worker| worker["state"] == "running" && worker["pid"] != pid).await;
    assert_eq!((&back["worker_id"], &back["restarts"]), (&json!(id), &json!(1)));
    bed.end().await;
}

#[tokio::test]
async fn an_adopted_worker_hears_of_the_queens_of_its_new_hive() {
    let bed = start_doomed().await;
    bed.spawn("good").await;
    let folder = bed.die().await;
    let bed = start_on(folder, |config| {
        config.queen_urls = vec!["http://127.0.0.1:1".parse().unwrap()];
    })
    .await;
    running(&bed).await;
    let seen = bed.seen(|seen| seen["notices"] != json!([])).await;
    assert_eq!(seen["notices"][0]["queen"], "http://127.0.0.1:1");
    bed.end().await;
}

#[tokio::test]
async fn with_keep_workers_a_hive_that_ends_leaves_its_workers_to_the_next_one() {
    let bed = start_with(|config| config.keep_workers = true).await;
    let (id, pid) = bed.spawn("good").await;
    let folder = bed.end().await;
    assert!(is_alive(pid));
    let bed = start_on(folder, |_| {}).await;
    assert_eq!(running(&bed).await["worker_id"], json!(id));
    bed.end().await;
    // A hive without --keep-workers stops adopted ones, too.
    gone(pid).await;
}

#[tokio::test]
async fn a_worker_that_nobody_asks_is_stopped_and_the_queen_hears_why() {
    let mut queen = queen().await;
    let url = queen.url.clone();
    let bed = start_with(|config| {
        config.queen_urls = vec![url.parse().unwrap()];
        config.idle_unload = Some(Duration::from_secs(900));
    })
    .await;
    // It says that it has been idle for an hour; only the one of which nothing else was asked is stopped for it.
    let mut patient = bed.spawn_operation("idle");
    patient["keep_alive_s"] = json!(0);
    let patient = bed.job(&patient).await.result.unwrap()["worker_id"].clone();
    let mut longer = bed.spawn_operation("idle");
    longer["keep_alive_s"] = json!(7200);
    let longer = bed.job(&longer).await.result.unwrap()["worker_id"].clone();
    let (id, pid) = bed.spawn("idle").await;

    let told = queen
        .beat_with(|beat| beat.changes.as_ref().is_some_and(|c| !c.workers_removed.is_empty()))
        .await;
    let exit = told.changes.unwrap().workers_removed.remove(0);
    assert_eq!((exit.worker_id, exit.reason.as_str()), (id, "idle for 15m"));
    assert!(!is_alive(pid));
    let mut left: Vec<Value> = bed
        .workers()
        .await
        .iter()
        .map(|worker| worker["worker_id"].clone())
        .collect();
    left.sort_by_key(Value::to_string);
    let mut expected = vec![patient, longer];
    expected.sort_by_key(Value::to_string);
    assert_eq!(left, expected);
    bed.metric("rbee_hive_worker_idle_stops_total 1").await;
    bed.end().await;
}

#[tokio::test]
async fn a_model_that_fits_nowhere_is_refused_with_the_figures() {
    let bed = start().await;
    let mut spawn = bed.spawn_operation_of("good", gguf::GREEDY);
    spawn["context_length"] = json!(9_000_000);
    let end = bed.job(&spawn).await;
    assert_eq!(end.state, JobState::Failed);
    assert_eq!(end.error.as_ref().unwrap().code.as_deref(), Some("no_capacity"));
    for part in ["in step `place`", "cpu: it takes", "MiB are free", "context_length"] {
        assert!(message(&end).contains(part), "{part}: {}", message(&end));
    }
    assert!(bed.workers().await.is_empty());
    bed.end().await;
}

#[tokio::test]
async fn memory_that_is_promised_to_one_worker_is_promised_to_no_other() {
    let bed = start().await;
    let free = bed.figure("rbee_hive_ram_free_bytes").await;
    // Three fifths of what is free, twice, at the same time.
    let bytes_per_token = f64::from(2 * 2 * gguf::GREEDY.layers * gguf::GREEDY.width);
    let mut spawn = bed.spawn_operation_of("good", gguf::GREEDY);
    spawn["context_length"] = json!((free * 0.6 / bytes_per_token) as u32);
    let (one, other) = tokio::join!(bed.job(&spawn), bed.job(&spawn));
    let (done, refused) = match one.state {
        JobState::Succeeded => (one, other),
        _ => (other, one),
    };
    let granted = done.result.as_ref().unwrap()["granted_mb"].as_u64().unwrap();
    assert!(message(&refused).contains("in step `place`"), "{}", message(&refused));
    let now = bed.figure("rbee_hive_ram_free_bytes").await;
    assert!(
        now < free - granted as f64 * 0.8 * f64::from(1 << 20),
        "{now} of {free} free after {granted} MiB"
    );

    // Its end frees what it was promised.
    let stop = json!({"operation": "worker_stop", "worker_id": done.result.unwrap()["worker_id"]});
    bed.job(&stop).await;
    assert_eq!(bed.job(&spawn).await.state, JobState::Succeeded);
    bed.end().await;
}

#[tokio::test]
async fn what_is_asked_of_a_worker_stands_on_its_command_line() {
    let bed = start().await;
    let mut spawn = bed.spawn_operation("good");
    spawn["context_length"] = json!(512);
    spawn["slots"] = json!(2);
    let result = bed.job(&spawn).await.result.unwrap();
    let line = bed.seen(|_| true).await["args"].as_str().unwrap().to_owned();
    let kv_tokens = result["kv_tokens"].as_u64().unwrap();
    assert!(kv_tokens >= 512);
    for part in [
        "--device cpu --device-name cpu",
        &format!("--kv-tokens {kv_tokens}"),
        "--context-length 512 --slots 2",
    ] {
        assert!(line.contains(part), "{part} is not in {line}");
    }
    for (wrong, value) in [("context_length", 0), ("slots", 0), ("slots", 1000)] {
        let mut spawn = bed.spawn_operation("good");
        spawn[wrong] = json!(value);
        let answer = bed.post_job(&spawn).await;
        assert_eq!(answer.status(), 400, "{wrong}");
        assert_eq!(answer.json::<Value>().await.unwrap()["error"]["param"], wrong);
    }
    bed.end().await;
}

#[tokio::test]
async fn a_model_whose_header_cannot_be_read_gets_no_worker() {
    let bed = start().await;
    let spawn = bed.spawn_operation("good");
    std::fs::write(bed.folder.path().join("good.gguf"), b"GGUF, or not").unwrap();
    let end = bed.job(&spawn).await;
    assert!(
        message(&end).contains("in step `place`") && message(&end).contains("good.gguf"),
        "{}",
        message(&end)
    );
    assert!(bed.workers().await.is_empty());
    bed.end().await;
}

#[tokio::test]
async fn devices_that_are_not_named_are_not_used() {
    let bed = start_with(|config| {
        config.sharing = Sharing {
            devices: vec!["cuda:0".into()],
            ..config.sharing.clone()
        };
    })
    .await;
    assert_eq!(bed.get("/v1/capabilities").await["devices"], json!([]));
    let answer = bed.post_job(&bed.spawn_operation("good")).await;
    assert_eq!(answer.status(), 400);
    let body: Value = answer.json().await.unwrap();
    assert!(
        body["error"]["message"].as_str().unwrap().contains("it has none"),
        "{body}"
    );
    bed.end().await;
}

#[tokio::test]
async fn the_owners_reserve_is_shown_and_not_given_away() {
    let free = async |reserve_ram: u64| {
        let bed = start_with(|config| config.sharing.reserve_ram = reserve_ram).await;
        let shown = bed.get("/v1/capabilities").await["devices"][0]["memory_reserved_mb"].clone();
        let free = bed.figure("rbee_hive_ram_free_bytes").await;
        bed.end().await;
        (shown, free)
    };
    assert_eq!(free(0).await.0, 0);
    let (shown, left) = free(u64::MAX).await;
    assert!(shown.as_u64().unwrap() > 0, "never more than there is: {shown}");
    assert_eq!(left, 0.0);
}

#[tokio::test]
async fn a_hive_that_cannot_limit_its_workers_memory_as_it_was_asked_to_says_so_and_does_not_run() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(&folder);
    config.cgroup = Some(folder.path().join("no-such-group"));
    config.sharing.worker_memory_max = Some(1 << 30);
    let listener = tokio::net::TcpListener::bind(config.address).await.unwrap();
    let error = within(rbee_hive::run(config, listener, daemon::Shutdown::new()))
        .await
        .unwrap_err();
    assert!(error.to_string().contains("no-such-group"), "{error}");
}
