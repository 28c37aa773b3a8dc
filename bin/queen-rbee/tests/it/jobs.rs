//! Jobs of the queen: who does what is asked for, and that she tells what he tells.

use hive_contract::{JobAccepted, JobEvent, JobList, JobState, JobStatus, Operation};
use queen_rbee::Config;
use queen_rbee::jobs::QueenOperation;
use queen_rbee::supply::{DecisionList, DecisionOutcome, Trigger};
use serde_json::{Value, json};

use crate::fake_hive::{FakeHive, WORKER_MB};
use crate::support::{Queen, Reader, Worker, hive_beat, plain, with, within};

/// Starts a job.
pub(crate) async fn started(queen: &Queen, order: Value) -> JobAccepted {
    let response = queen.post("/v1/jobs", &order).send().await.unwrap();
    let (status, text) = (response.status(), response.text().await.unwrap());
    assert_eq!(status, 202, "{order}: {text}");
    serde_json::from_str(&text).unwrap()
}

/// All events of a job, to its end.
pub(crate) async fn followed(queen: &Queen, job: &JobAccepted) -> Vec<JobEvent> {
    let stream = queen.get(&job.stream_url).send().await.unwrap();
    assert_eq!(stream.status(), 200);
    let text = within("the end of the job", stream.text()).await.unwrap();
    let data = text.lines().filter_map(|line| line.strip_prefix("data: "));
    data.map(|data| serde_json::from_str(data).unwrap()).collect()
}

/// The last event of a job.
async fn done(queen: &Queen, order: Value) -> JobEvent {
    let job = started(queen, order).await;
    followed(queen, &job).await.pop().unwrap()
}

/// The result of a job that succeeds.
async fn result(queen: &Queen, order: Value) -> Value {
    let last = done(queen, order).await;
    assert_eq!(last.state, JobState::Succeeded, "{last:?}");
    last.result.unwrap()
}

/// Status and message of an order that is refused.
async fn refused(queen: &Queen, order: Value) -> (u16, String) {
    let response = queen.post("/v1/jobs", &order).send().await.unwrap();
    let status = response.status().as_u16();
    let body: Value = response.json().await.unwrap();
    (status, body["error"]["message"].as_str().unwrap().to_owned())
}

async fn status(queen: &Queen, job: &JobAccepted) -> JobStatus<QueenOperation> {
    let path = format!("/v1/jobs/{}", job.job_id);
    queen.get(&path).send().await.unwrap().json().await.unwrap()
}

#[tokio::test]
async fn a_file_is_fetched_where_its_model_would_be_started_and_its_progress_is_told() {
    let queen = Queen::start(Config::default()).await;
    let small = FakeHive::start(&queen, "h1", 0).await;
    let large = FakeHive::start(&queen, "h2", 8 * WORKER_MB).await;
    let pull = json!({"operation": "model_pull", "model": "smollm2-135m-instruct"});
    let job = started(&queen, pull.clone()).await;
    let events = followed(&queen, &job).await;
    let told = |text: &str| events.iter().any(|event| event.message.as_deref() == Some(text));
    assert!(told("fetching smollm2-135m-instruct"), "{events:?}");
    assert!(
        events
            .iter()
            .any(|event| event.progress.as_ref().is_some_and(|it| it.phase == "download"))
    );
    assert_eq!(
        events.last().unwrap().result,
        Some(json!({"id": "smollm2-135m-instruct", "hive_id": "h2"})),
        "with the hive that has it now"
    );
    assert_eq!(events, followed(&queen, &job).await, "a late reader gets the same");
    assert_eq!((small.asked().len(), large.asked().len()), (0, 1));

    let list: JobList<QueenOperation> = queen.get("/v1/jobs").send().await.unwrap().json().await.unwrap();
    let [shown] = list.jobs.as_slice() else {
        panic!("{list:?}")
    };
    assert_eq!((&shown.job_id, shown.state), (&job.job_id, JobState::Succeeded));
    assert_eq!(shown.hive_id.as_ref().unwrap().as_str(), "h2");
    assert_eq!(serde_json::to_value(&shown.operation).unwrap(), pull);
}

#[tokio::test]
async fn a_named_hive_does_it_and_one_that_is_not_there_is_refused_with_those_that_are() {
    let queen = Queen::start(Config::default()).await;
    let _first = FakeHive::start(&queen, "h1", 8 * WORKER_MB).await;
    let second = FakeHive::start(&queen, "h2", 0).await;
    let pull = |hive: &str| json!({"operation": "model_pull", "model": "hf:me/it/x.gguf", "hive_id": hive});
    assert_eq!(result(&queen, pull("h2")).await["id"], "hf:me/it/x.gguf");
    assert_eq!(second.asked().len(), 1);

    let (status, message) = refused(&queen, pull("h9")).await;
    assert!(status == 404 && message.contains("h1, h2"), "{status} {message}");
    let (status, message) = refused(&queen, json!({"operation": "model_pul"})).await;
    assert!(status == 400 && message.contains("model_pul"), "{status} {message}");
}

#[tokio::test]
async fn a_hive_that_does_not_answer_where_it_says_it_is_is_refused_as_long_as_that_is_so() {
    let queen = Queen::start(Config::default()).await;
    let port = crate::support::closed_port().await;
    queen.hive_beat(&with(hive_beat("h"), "/hive/port", port)).await;
    within("its being unreachable", async {
        while queen.fleet().await.hives[0].liveness != queen_rbee::fleet::Liveness::Unreachable {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let order = json!({"operation": "device_list", "hive_id": "h"});
    let (status, message) = refused(&queen, order).await;
    assert!(
        status == 409 && message.contains("cannot be reached"),
        "{status} {message}"
    );
    let all = result(&queen, json!({"operation": "device_list"})).await;
    assert!(
        all["failed"]["h"].as_str().unwrap().contains("cannot be reached"),
        "{all}"
    );
}

#[tokio::test]
async fn a_job_that_is_cancelled_is_cancelled_at_its_hive() {
    let queen = Queen::start(Config::default()).await;
    let hive = FakeHive::start(&queen, "h", 8 * WORKER_MB).await;
    hive.hang();
    for order in [
        json!({"operation": "model_pull", "model": "a"}),
        json!({"operation": "worker_spawn", "model": "a"}),
    ] {
        let job = started(&queen, order.clone()).await;
        let mut stream = Reader::new(queen.get(&job.stream_url).send().await.unwrap());
        let mut told = String::new();
        // What its hive tells, or that it was asked.
        while !told.contains("fetching") && !told.contains("starting on h cpu") {
            told += &stream.next().await.unwrap();
        }
        let path = format!("{}/v1/jobs/{}", queen.url, job.job_id);
        assert_eq!(queen.http.delete(path).send().await.unwrap().status(), 202);
        let last = followed(&queen, &job).await.pop().unwrap();
        assert_eq!(last.state, JobState::Cancelled, "{order}: {last:?}");
        assert_eq!(status(&queen, &job).await.state, JobState::Cancelled);
    }
}

#[tokio::test]
async fn what_lists_is_asked_of_all_hives_and_what_one_has_of_that_one() {
    let queen = Queen::start(Config::default()).await;
    let first = FakeHive::start(&queen, "h1", 8 * WORKER_MB).await;
    let all = result(&queen, json!({"operation": "model_list"})).await;
    assert_eq!(all, json!({"hives": {"h1": {"models": ["a", "b", "c"]}}, "failed": {}}));

    let last = done(&queen, json!({"operation": "model_delete", "model": "a"})).await;
    let error = last.error.unwrap();
    assert_eq!(
        error.message, "failed in step `model_delete`: model `a` is in use",
        "as its hive says"
    );
    assert_eq!(error.code.as_deref(), Some("conflict"));
    assert_eq!(first.asked().len(), 2);

    let _second = FakeHive::start(&queen, "h2", 8 * WORKER_MB).await;
    let (status, message) = refused(&queen, json!({"operation": "model_delete", "model": "a"})).await;
    assert!(status == 400 && message.contains("h1, h2"), "{status} {message}");
    let (status, message) = refused(&queen, json!({"operation": "model_get", "model": "nobody-knows"})).await;
    assert!(status == 404 && message.contains("h1, h2"), "{status} {message}");
}

#[tokio::test]
async fn a_worker_is_started_where_the_queen_decides_and_that_is_on_record() {
    let queen = Queen::start(Config::default()).await;
    let _small = FakeHive::start(&queen, "h1", 0).await;
    let large = FakeHive::start(&queen, "h2", WORKER_MB).await;
    let spawn = json!({"operation": "worker_spawn", "model": "a", "slots": 2, "keep_alive_s": 7});
    let job = started(&queen, spawn).await;
    let last = followed(&queen, &job).await.pop().unwrap();
    let expected = json!({"worker_id": "h2-w1", "hive_id": "h2"});
    assert_eq!(last.result, Some(expected), "{last:?}");
    assert_eq!(status(&queen, &job).await.hive_id.unwrap().as_str(), "h2");
    let [
        Operation::WorkerSpawn {
            device,
            slots,
            keep_alive_s,
            ..
        },
    ] = &large.asked()[..]
    else {
        panic!("{:?}", large.asked())
    };
    assert_eq!(
        (device.as_deref(), *slots, *keep_alive_s),
        (Some("cpu"), Some(2), Some(7))
    );

    let list: DecisionList = queen.get("/v1/decisions").send().await.unwrap().json().await.unwrap();
    let decision = &list.decisions[0];
    assert_eq!(decision.trigger, Trigger::Operator);
    assert!(
        matches!(decision.outcome, DecisionOutcome::Ready { .. }),
        "{decision:?}"
    );
    assert_eq!(
        serde_json::to_value(&decision.trigger).unwrap(),
        json!({"why": "operator"})
    );
}

#[tokio::test]
async fn what_an_operator_cannot_have_is_told_with_the_reasons_and_requests_feel_nothing_of_it() {
    let queen = Queen::start(Config::default()).await;
    let hive = FakeHive::start(&queen, "h", 8 * WORKER_MB).await;
    let order = json!({"operation": "worker_spawn", "model": "a", "device": "cuda:0"});
    let last = done(&queen, order).await;
    let error = last.error.unwrap();
    assert!(
        error.message.contains("device cuda:0 is asked for"),
        "{}",
        error.message
    );
    assert_eq!(error.code.as_deref(), Some("no_capacity"));
    hive.refuse("failed to place: a cat sits on it");
    let last = done(&queen, json!({"operation": "worker_spawn", "model": "a"})).await;
    assert!(last.error.unwrap().message.contains("a cat sits on it"));
    hive.relent();
    let chat = json!({"model": "a", "messages": [{"role": "user", "content": "hi"}]});
    assert_eq!(within("an answer", queen.ask(&chat)).await.unwrap().status(), 200);
    let (status, message) = refused(&queen, json!({"operation": "worker_spawn", "model": "nobody-knows"})).await;
    assert!(status == 404 && message.contains("nobody-knows"), "{status} {message}");
}

#[tokio::test]
async fn what_is_for_a_worker_is_done_by_its_hive() {
    let queen = Queen::start(Config::default()).await;
    let _other = FakeHive::start(&queen, "h1", 0).await;
    let hive = FakeHive::start(&queen, "h2", WORKER_MB).await;
    result(&queen, json!({"operation": "worker_spawn", "model": "a"})).await;
    let job = started(&queen, json!({"operation": "worker_logs", "worker_id": "h2-w1"})).await;
    let events = followed(&queen, &job).await;
    assert!(
        events
            .iter()
            .any(|event| event.message.as_deref() == Some("a line\nand another")),
        "{events:?}"
    );
    result(&queen, json!({"operation": "worker_drain", "worker_id": "h2-w1"})).await;
    assert!(hive.models().is_empty());
    let (status, message) = refused(&queen, json!({"operation": "worker_stop", "worker_id": "w9"})).await;
    assert!(status == 404 && message.contains("hive_id"), "{status} {message}");
}

#[tokio::test]
async fn a_worker_that_no_hive_has_started_is_ended_by_its_own_word_and_has_no_log_here() {
    let queen = Queen::start(Config::default()).await;
    let mut worker = Worker::start().await;
    queen.worker_beat(&worker.beat("w")).await;
    let (status, message) = refused(&queen, json!({"operation": "worker_logs", "worker_id": "w"})).await;
    assert!(
        status == 400 && message.contains("no hive has started"),
        "{status} {message}"
    );
    let shown = result(&queen, json!({"operation": "worker_get", "worker_id": "w"})).await;
    assert_eq!(shown["model_id"], "m");

    let job = started(
        &queen,
        json!({"operation": "worker_stop", "worker_id": "w", "grace_s": 3}),
    )
    .await;
    let asked = worker.next().await;
    assert_eq!(
        (asked.head.uri.path(), &asked.body[..]),
        ("/v1/drain", &b"{\"grace_s\":3}"[..])
    );
    asked.answer(plain(202, "{\"status\": \"draining\"}"));
    queen
        .worker_beat(&with(worker.beat("w"), "/worker/status", "stopped"))
        .await;
    let last = followed(&queen, &job).await.pop().unwrap();
    assert_eq!(last.result, Some(json!({"worker_id": "w", "how": "drained"})));
}

#[tokio::test]
async fn a_worker_that_its_hive_does_not_look_after_any_more_is_ended_by_its_own_word() {
    let queen = Queen::start(Config::default()).await;
    // One was started again, and does not know the worker that outlived it; the other one cannot be asked.
    let forgetful = FakeHive::start(&queen, "forgetful", WORKER_MB).await;
    let process = json!([{"pid": 1, "group": "llm-worker", "instance": "1", "cpu_pct": 0.0, "rss_mb": 0, "io_r_mb_s": 0.0,
        "io_w_mb_s": 0.0, "uptime_s": 0, "model": "m", "state": "running", "worker_id": "of-mute", "device": "cpu"}]);
    let mute = with(hive_beat("mute"), "/hive/port", crate::support::closed_port().await);
    queen.hive_beat(&with(mute, "/workers", process)).await;
    within("that one cannot be asked", async {
        while queen.fleet().await.hives[1].liveness != queen_rbee::fleet::Liveness::Unreachable {
            tokio::task::yield_now().await;
        }
    })
    .await;
    for hive in ["forgetful", "mute"] {
        let (mut worker, id) = (Worker::start().await, format!("of-{hive}"));
        let beat = with(worker.beat(&id), "/worker/hive_id", hive);
        queen.worker_beat(&beat).await;
        let shown = result(&queen, json!({"operation": "worker_get", "worker_id": id})).await;
        assert_eq!(shown["hive_id"], hive);
        let job = started(&queen, json!({"operation": "worker_drain", "worker_id": id})).await;
        let asked = worker.next().await;
        assert_eq!(asked.head.uri.path(), "/v1/drain");
        asked.answer(plain(202, "{\"status\": \"draining\"}"));
        queen.worker_beat(&with(beat, "/worker/status", "stopped")).await;
        let last = followed(&queen, &job).await.pop().unwrap();
        assert_eq!(last.result, Some(json!({"worker_id": id, "how": "drained"})));
    }
    assert_eq!(forgetful.asked(), []);
}

#[tokio::test]
async fn a_single_hive_is_asked_for_any_file_as_there_is_nothing_to_choose() {
    let queen = Queen::start(Config::default()).await;
    let _hive = FakeHive::start(&queen, "h", 0).await;
    let pulled = result(
        &queen,
        json!({"operation": "model_pull", "model": "of-its-own-catalogue"}),
    )
    .await;
    assert_eq!(pulled, json!({"id": "of-its-own-catalogue", "hive_id": "h"}));
    // It may have the file by now without having told so.
    let last = done(
        &queen,
        json!({"operation": "model_delete", "model": "of-its-own-catalogue"}),
    )
    .await;
    assert!(last.error.unwrap().message.contains("is in use"), "as it says itself");
}

#[tokio::test]
async fn the_fleet_is_counted_and_its_models_are_listed() {
    let queen = Queen::start(Config::default()).await;
    let _hive = FakeHive::start(&queen, "h", WORKER_MB).await;
    let status = result(&queen, json!({"operation": "status"})).await;
    assert_eq!(status["queen"]["hives"]["online"], 1);
    let models = status["models"].as_array().unwrap();
    assert!(
        models
            .iter()
            .any(|model| model["id"] == "a" && model["state"] == "on_disk")
    );
}

#[tokio::test]
async fn a_queen_that_ends_does_not_wait_for_her_jobs() {
    let queen = Queen::start(Config::default()).await;
    let hive = FakeHive::start(&queen, "h", WORKER_MB).await;
    hive.hang();
    let job = started(&queen, json!({"operation": "model_pull", "model": "a"})).await;
    let mut stream = Reader::new(queen.get(&job.stream_url).send().await.unwrap());
    let mut told = String::new();
    while !told.contains("fetching") {
        told += &stream.next().await.unwrap();
    }
    queen.shutdown.request();
    while let Some(more) = stream.next().await {
        told += &more;
    }
    assert!(told.contains("the queen ends"), "{told}");
    within("her end", queen.task).await.unwrap();
}
