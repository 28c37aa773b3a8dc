//! The hive as a whole, in this process, with worker processes that behave as their model's name says.

mod jobs;
mod models;
mod support;
mod workers;

use std::time::Duration;

use eventsource_stream::Eventsource;
use futures_util::StreamExt;
use hive_contract::{JobState, ProcessState, TelemetryEvent};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use reqwest::Method;
use serde_json::{Value, json};
use shared_contract::{DropReason, OperationalStatus};

use support::{http_with, queen, queen_who_drops, start, start_with, within};

#[tokio::test]
#[ignore = "not a test of its own: the process that the others start as a worker"]
async fn a_worker_for_the_other_tests() {
    support::worker().await;
}

#[tokio::test]
async fn a_spawned_worker_is_ready_when_its_job_is_done_and_gone_when_it_was_stopped() {
    let bed = start().await;
    let end = bed.job(&bed.spawn_operation("good")).await;
    assert_eq!(end.state, JobState::Succeeded, "{:?}", end.error);
    let result = end.result.unwrap();
    assert_eq!((&result["model"], &result["device"]), (&json!("good"), &json!("cpu")));

    let workers = bed.workers().await;
    assert_eq!(workers.len(), 1);
    assert_eq!(workers[0]["state"], "running");
    assert_eq!(workers[0]["instance"], result["port"].to_string());
    assert_eq!(workers[0]["worker_id"], result["worker_id"]);
    assert_eq!(workers[0]["restarts"], 0);

    let stop = json!({"operation": "worker_stop", "worker_id": result["worker_id"]});
    let end = bed.job(&stop).await;
    assert_eq!(end.result.unwrap()["how"], "stopped");
    assert!(bed.workers().await.is_empty());
    bed.end().await;
}

#[tokio::test]
async fn a_killed_worker_is_told_to_the_queen_at_once_and_replaced_under_its_id() {
    let mut queen = queen().await;
    let bed = start_with(|config| config.queen_urls = vec![queen.url.parse().unwrap()]).await;
    let (id, pid) = bed.spawn("good").await;
    let running =
        |beat: &hive_contract::HiveHeartbeat| beat.workers.iter().any(|worker| worker.state == ProcessState::Running);
    queen.beat_with(running).await;

    kill(Pid::from_raw(pid as i32), Signal::SIGKILL).unwrap();
    let told = queen
        .beat_with(|beat| beat.changes.as_ref().is_some_and(|c| !c.workers_removed.is_empty()))
        .await;
    let exit = told.changes.unwrap().workers_removed.remove(0);
    assert_eq!((&exit.worker_id, exit.pid), (&id, Some(pid)));
    assert!(
        told.workers.iter().all(|worker| worker.pid != pid),
        "the beat that tells of its end does not list it"
    );
    assert_eq!(exit.reason, "killed by signal 9 (SIGKILL)");

    let back = queen.beat_with(running).await;
    assert_eq!(back.workers[0].worker_id, Some(id));
    assert_ne!(back.workers[0].pid, pid);
    assert_eq!(bed.workers().await[0]["restarts"], 1);
    bed.end().await;
}

#[tokio::test]
async fn a_worker_that_cannot_load_fails_its_job_with_its_last_words_and_is_not_kept() {
    let bed = start().await;
    let end = bed.job(&bed.spawn_operation("broken")).await;
    assert_eq!(end.state, JobState::Failed);
    let message = end.error.unwrap().message;
    assert!(
        message.contains("exit code 3") && message.contains("this model cannot be loaded"),
        "{message}"
    );
    assert!(bed.workers().await.is_empty());
    assert_eq!(bed.get("/health").await["health"], "healthy");
    bed.end().await;
}

#[tokio::test]
async fn a_worker_that_is_not_ready_in_time_fails_its_job_and_is_not_kept() {
    let bed = start_with(|config| config.load_timeout = Duration::from_millis(300)).await;
    let end = bed.job(&bed.spawn_operation("slow")).await;
    let message = end.error.unwrap().message;
    assert!(message.contains("--load-timeout-s"), "{message}");
    assert!(bed.workers().await.is_empty());
    bed.end().await;
}

#[tokio::test]
async fn a_cancelled_spawn_leaves_no_worker() {
    let bed = start().await;
    let job = bed.accepted(&bed.spawn_operation("slow")).await;
    let mut events = bed.events(&job).await;
    loop {
        let event = within(events.recv()).await.unwrap();
        if let Some(progress) = event.progress.filter(|progress| progress.phase == "load") {
            assert_eq!((progress.done, progress.total), (50, Some(100)));
            break;
        }
    }
    let path = format!("/v1/jobs/{}", job.job_id);
    let cancelled = bed.request(Method::DELETE, &path).send().await.unwrap();
    assert_eq!(cancelled.status(), 202);
    let mut last = None;
    while let Some(event) = within(events.recv()).await {
        last = Some(event);
    }
    assert_eq!(last.unwrap().state, JobState::Cancelled);
    assert!(bed.workers().await.is_empty());
    assert_eq!(bed.request(Method::DELETE, &path).send().await.unwrap().status(), 200);
    bed.end().await;
}

#[tokio::test]
async fn a_job_can_be_read_again_from_the_start_and_from_the_middle() {
    let bed = start().await;
    let job = bed.accepted(&json!({"operation": "model_list"})).await;
    let all = async |from: Option<&str>| {
        let mut request = bed.request(Method::GET, &job.stream_url);
        if let Some(seen) = from {
            request = request.header("last-event-id", seen);
        }
        within(request.send()).await.unwrap().text().await.unwrap()
    };
    let first = all(None).await;
    assert!(
        first.contains("id: 0") && first.contains(r#""state":"succeeded""#),
        "{first}"
    );
    assert!(first.contains("smollm2-135m-instruct"), "{first}");
    assert_eq!(first, all(None).await);
    let rest = all(Some("0")).await;
    assert!(!rest.contains("id: 0") && rest.contains("succeeded"), "{rest}");
    let listed = bed.get("/v1/jobs").await;
    assert_eq!(listed["jobs"][0]["job_id"], json!(job.job_id));
    assert_eq!(listed["jobs"][0]["operation"], json!({"operation": "model_list"}));
    bed.end().await;
}

#[tokio::test]
async fn what_cannot_be_done_is_refused_before_a_job_is_made() {
    let bed = start().await;
    let model = bed.model("good");
    let cases = [
        (json!({"operation": "worker_dance"}), 400, "worker_dance"),
        (json!({"model": model}), 400, "operation"),
        (json!({"operation": "worker_spawn"}), 400, "model"),
        (
            json!({"operation": "worker_spawn", "model": model, "colour": 1}),
            400,
            "colour",
        ),
        (
            json!({"operation": "worker_spawn", "model": model, "worker": "tpu"}),
            400,
            "use cpu, cuda",
        ),
        (
            json!({"operation": "worker_spawn", "model": model, "worker": "cuda"}),
            400,
            "it has cpu",
        ),
        (
            json!({"operation": "worker_spawn", "model": model, "device": "cuda:3"}),
            400,
            "it has cpu",
        ),
        (
            json!({"operation": "worker_spawn", "model": "gpt-9"}),
            404,
            "smollm2-135m-instruct",
        ),
        (json!({"operation": "model_pull", "model": "pip:x"}), 400, "pip:"),
        (
            json!({"operation": "worker_stop", "worker_id": "worker-x"}),
            404,
            "it has none",
        ),
    ];
    for (operation, status, word) in cases {
        let answer = bed.post_job(&operation).await;
        assert_eq!(answer.status(), status, "{operation}");
        let body: Value = answer.json().await.unwrap();
        let message = body["error"]["message"].as_str().unwrap();
        assert!(message.contains(word), "{operation}: {message}");
    }
    let missing = bed.get("/v1/jobs/job-x").await;
    assert_eq!(missing["error"]["code"], "not_found");
    assert_eq!(bed.get("/v1/jobs").await["jobs"], json!([]));
    bed.end().await;
}

#[tokio::test]
async fn a_queen_that_asks_for_the_capabilities_gets_heartbeats() {
    let mut queen = queen().await;
    let bed = start().await;
    let path = format!("/v1/capabilities?queen_url={}", queen.url);
    let capabilities = bed.get(&path).await;
    assert_eq!(capabilities["devices"][0]["id"], "cpu");
    let beat = queen.next().await;
    assert_eq!(capabilities["hive_id"], beat.hive.id.as_str());
    assert_eq!(beat.capabilities.unwrap().devices[0].id, "cpu");
    assert!(beat.monitor.ram_total_mb > 0);
    assert_eq!((beat.hive.hostname.as_str(), beat.seq), ("", 1));
    assert!(bed.base.ends_with(&format!(":{}", beat.hive.port)));

    // The same queen again: asked for once more, but still one sender.
    assert_eq!(bed.get(&path.replace("/v1", "")).await["devices"][0]["id"], "cpu");
    assert_eq!(queen.next().await.seq, 2);
    for wrong in ["nonsense", "ftp://queen", "http://user:secret@queen"] {
        let body = bed.get(&format!("/v1/capabilities?queen_url={wrong}")).await;
        assert_eq!(body["error"]["param"], "queen_url", "{wrong}");
    }
    bed.end().await;
}

#[tokio::test]
async fn a_queen_who_pulls_by_another_address_than_that_of_the_settings_has_one_sender() {
    let mut queen = queen().await;
    let named = queen.url.replace("127.0.0.1", "localhost");
    let bed = start_with(|config| config.queen_urls = vec![named.parse().unwrap()]).await;
    let (by_name, by_address) = (&named["http://".len()..], &queen.url.clone()["http://".len()..]);
    let path = format!("/v1/capabilities?queen_url={}", queen.url);

    let mut heard = vec![queen.next_by().await];
    bed.metric("rbee_hive_queens_answering 1.0").await;
    bed.get(&path).await;
    // The other way is tried once; then the queen shall call back where the beats will come from.
    heard.extend([queen.next_by().await, queen.next_by().await]);
    bed.metric("rbee_hive_queens 1.0").await;
    bed.get(&path).await;
    heard.push(queen.next_by().await);

    let ways: Vec<&str> = heard.iter().map(|(way, _)| way.as_str()).collect();
    assert_eq!(ways, [by_name, by_address, by_name, by_name]);
    // A queen drops, or takes for those of another process, only beats that are not newer than the last.
    let orders: Vec<_> = heard
        .iter()
        .map(|(_, beat)| (beat.hive.incarnation, beat.seq))
        .collect();
    assert!(orders.windows(2).all(|pair| pair[0] < pair[1]), "{orders:?}");
    bed.end().await;
    loop {
        let (way, beat) = queen.next_by().await;
        assert_eq!(way, by_name);
        if beat.hive.operational_status == OperationalStatus::Stopped {
            break;
        }
    }
}

#[tokio::test]
async fn a_queen_that_finds_the_hive_is_passed_on_to_the_workers_that_run_already_and_to_each_new_process() {
    let mut bed = start_with(|config| {
        config.queen_urls = vec!["http://127.0.0.1:1".parse().unwrap()];
        config.token = Some("a-long-secret".parse().unwrap());
    })
    .await;
    bed.http = http_with("a-long-secret");
    let (_, pid) = bed.spawn("good").await;
    let first = bed.seen(|_| true).await;
    assert_eq!(
        first["notices"],
        json!([]),
        "queens of the settings are on its command line"
    );

    let pull = async || {
        let path = "/v1/capabilities?queen_url=http://127.0.0.1:2";
        assert_eq!(
            within(bed.request(Method::GET, path).send()).await.unwrap().status(),
            200
        );
    };
    let notice = json!({"queen": "http://127.0.0.1:2", "token": "Bearer a-long-secret"});
    let heard = |times: usize| {
        let notices = json!(vec![notice.clone(); times]);
        move |seen: &Value| seen["notices"] == notices
    };
    pull().await;
    bed.seen(heard(1)).await;
    // A queen that pulls again may have been started again: the workers' next beats need not wait for their time.
    pull().await;
    bed.seen(heard(2)).await;

    kill(Pid::from_raw(pid as i32), Signal::SIGKILL).unwrap();
    let second = bed.seen(heard(1)).await;
    let incarnation = |seen: &Value| seen["incarnation"].as_u64().unwrap();
    assert!(incarnation(&second) > incarnation(&first), "{second} follows {first}");
    bed.end().await;
}

#[tokio::test]
async fn a_worker_that_cannot_hear_of_a_queen_now_is_told_again() {
    let bed = start().await;
    bed.spawn("slow to hear").await;
    bed.get("/v1/capabilities?queen_url=http://127.0.0.1:2").await;
    let seen = bed.seen(|seen| seen["notices"].as_array().unwrap().len() == 2).await;
    assert_eq!(seen["notices"][0], seen["notices"][1]);
    bed.end().await;
}

#[tokio::test]
async fn health_and_metrics_say_that_a_queen_drops_the_beats_and_what_to_do() {
    let mut queen = queen_who_drops(Some(DropReason::Conflict)).await;
    let bed = start_with(|config| config.queen_urls = vec![queen.url.parse().unwrap()]).await;
    queen.next().await;
    let problem = within(async {
        loop {
            if let Value::String(problem) = &bed.get("/health").await["queen_problem"] {
                return problem.clone();
            }
        }
    })
    .await;
    assert!(problem.contains("its own state folder"), "{problem}");
    let metrics = bed.request(Method::GET, "/metrics").send().await.unwrap();
    let metrics = metrics.text().await.unwrap();
    assert!(
        metrics.contains("rbee_hive_queens_dropping{reason=\"conflict\"} 1"),
        "{metrics}"
    );
    bed.end().await;
}

#[tokio::test]
async fn one_queen_too_many_replaces_a_silent_one_but_never_one_of_the_settings() {
    let bed = start_with(|config| config.queen_urls = vec!["http://127.0.0.1:1".parse().unwrap()]).await;
    let ask = async |port: u16| {
        let path = format!("/v1/capabilities?queen_url=http://127.0.0.1:{port}");
        within(bed.request(Method::GET, &path).send()).await.unwrap().status()
    };
    // Nobody listens on these ports.
    for port in 2..=20 {
        assert_eq!(ask(port).await, 200);
    }
    let metrics = bed.request(Method::GET, "/metrics").send().await.unwrap();
    assert!(metrics.text().await.unwrap().contains("rbee_hive_queens 8.0"));
    bed.end().await;
}

#[tokio::test]
async fn with_a_token_only_health_and_metrics_are_open() {
    let bed = start_with(|config| config.token = Some("a-long-secret".parse().unwrap())).await;
    let guarded = [
        "/v1/capabilities",
        "/capabilities",
        "/v1/heartbeats/stream",
        "/v1/workers",
        "/v1/models",
        "/v1/jobs",
    ];
    for path in guarded {
        let answer = bed.request(Method::GET, path).send().await.unwrap();
        assert_eq!(answer.status(), 401, "{path}");
        let answer = bed
            .request(Method::GET, path)
            .bearer_auth("a-long-secret")
            .send()
            .await
            .unwrap();
        assert_eq!(answer.status(), 200, "{path}");
    }
    for path in ["/health", "/metrics"] {
        assert_eq!(bed.request(Method::GET, path).send().await.unwrap().status(), 200);
    }
    bed.end().await;
}

#[tokio::test]
async fn the_telemetry_stream_shows_the_host_and_its_workers() {
    let bed = start().await;
    let (id, pid) = bed.spawn("good").await;
    let answer = bed.request(Method::GET, "/v1/heartbeats/stream").send().await.unwrap();
    let mut events = answer.bytes_stream().eventsource();
    let event = within(async {
        loop {
            let event = events.next().await.unwrap().unwrap();
            let event: TelemetryEvent = serde_json::from_str(&event.data).unwrap();
            if event.workers[0].rss_mb > 0 {
                return event;
            }
        }
    })
    .await;
    assert_eq!(
        (event.workers[0].pid, event.workers[0].worker_id.as_ref()),
        (pid, Some(&id))
    );
    assert!(event.monitor.ram_total_mb > 0);
    let metrics = bed
        .request(Method::GET, "/metrics")
        .send()
        .await
        .unwrap()
        .text()
        .await
        .unwrap();
    for line in [
        "rbee_hive_workers{state=\"running\"} 1",
        "rbee_hive_worker_starts_total 1",
        "rbee_hive_ram_total_bytes",
    ] {
        assert!(metrics.contains(line), "{line} is not in:\n{metrics}");
    }
    bed.end().await;
}

#[tokio::test]
async fn a_hive_that_is_asked_to_end_stops_its_workers_and_says_goodbye() {
    let mut queen = queen().await;
    let bed = start_with(|config| config.queen_urls = vec![queen.url.parse().unwrap()]).await;
    let (_, pid) = bed.spawn("good").await;
    bed.end().await;
    assert!(kill(Pid::from_raw(pid as i32), None).is_err(), "the worker lives on");
    let goodbye = queen
        .beat_with(|beat| beat.hive.operational_status == OperationalStatus::Stopped)
        .await;
    assert!(goodbye.workers.is_empty());
}

#[tokio::test]
async fn an_impatient_end_kills_a_worker_that_does_not_listen() {
    let mut queen = queen().await;
    let bed = start_with(|config| config.queen_urls = vec![queen.url.parse().unwrap()]).await;
    let (_, pid) = bed.spawn("deaf").await;
    bed.shutdown.request();
    queen
        .beat_with(|beat| beat.hive.operational_status == OperationalStatus::Draining)
        .await;
    bed.shutdown.force();
    bed.end().await;
    assert!(kill(Pid::from_raw(pid as i32), None).is_err(), "the worker lives on");
}
