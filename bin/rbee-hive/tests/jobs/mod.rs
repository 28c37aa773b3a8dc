//! What a hive can be asked to do with its workers and devices.

use std::time::Duration;

use hive_contract::{JobAccepted, JobEvent, JobState};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::sync::mpsc::Receiver;

use crate::support::{Bed, start, within};

async fn cancel(bed: &Bed, job: &JobAccepted) {
    let path = format!("/v1/jobs/{}", job.job_id);
    within(bed.request(Method::DELETE, &path).send()).await.unwrap();
}

/// The first event from now on with this message, or this line of one.
async fn said(events: &mut Receiver<JobEvent>, wanted: &str) {
    within(async {
        while let Some(event) = events.recv().await {
            if event
                .message
                .is_some_and(|message| message.lines().any(|line| line == wanted))
            {
                return;
            }
        }
        panic!("the job ended without saying `{wanted}`");
    })
    .await;
}

async fn last(events: &mut Receiver<JobEvent>) -> JobEvent {
    within(async {
        let mut last = None;
        while let Some(event) = events.recv().await {
            last = Some(event);
        }
        last.unwrap()
    })
    .await
}

async fn refusal(bed: &Bed, operation: &Value) -> (u16, String) {
    let answer = bed.post_job(operation).await;
    let status = answer.status().as_u16();
    let body: Value = answer.json().await.unwrap();
    (status, body["error"]["message"].as_str().unwrap_or_default().to_owned())
}

#[tokio::test]
async fn one_worker_is_shown_as_in_the_list_of_all() {
    let bed = start().await;
    let (id, pid) = bed.spawn("good").await;
    let shown = bed.job(&json!({"operation": "worker_get", "worker_id": id})).await;
    let listed = bed.job(&json!({"operation": "worker_list"})).await;
    let (shown, listed) = (shown.result.unwrap(), listed.result.unwrap());
    for field in [
        "worker_id",
        "pid",
        "state",
        "model",
        "device",
        "instance",
        "log",
        "restarts",
    ] {
        assert_eq!(shown[field], listed["workers"][0][field], "{field}");
    }
    assert_eq!(shown["pid"], pid);

    let (status, message) = refusal(&bed, &json!({"operation": "worker_get", "worker_id": "worker-x"})).await;
    assert!(status == 404 && message.contains(id.as_str()), "{status} {message}");
    bed.end().await;
}

#[tokio::test]
async fn the_devices_are_listed_with_their_load() {
    let bed = start().await;
    let listed = bed.job(&json!({"operation": "device_list"})).await.result.unwrap();
    let cpu = &listed["devices"][0];
    assert_eq!((&cpu["id"], &cpu["kind"]), (&json!("cpu"), &json!("cpu")));
    assert!(cpu["load"]["vram_used_mb"].as_u64().unwrap() > 0, "{cpu}");
    bed.end().await;
}

#[tokio::test]
async fn the_last_lines_of_a_log_are_shown_in_their_order() {
    let bed = start().await;
    let (id, _) = bed.spawn("good").await;
    for number in 1..=5 {
        bed.tell_worker(&format!("/say?text=line-{number}")).await;
    }
    let job = bed
        .accepted(&json!({"operation": "worker_logs", "worker_id": id, "lines": 3}))
        .await;
    let mut events = bed.events(&job).await;
    let mut lines = Vec::new();
    let end = loop {
        let event = within(events.recv()).await.unwrap();
        if event.state.is_final() {
            break event;
        }
        lines.extend(
            event
                .message
                .iter()
                .flat_map(|message| message.lines())
                .map(str::to_owned),
        );
    };
    assert_eq!(lines, ["line-3", "line-4", "line-5"]);
    assert_eq!(end.result, Some(json!({"worker_id": id, "lines": 3})));
    bed.end().await;
}

#[tokio::test]
async fn a_log_that_is_followed_goes_on_until_the_job_is_cancelled() {
    let bed = start().await;
    let (id, _) = bed.spawn("good").await;
    bed.tell_worker("/say?text=before").await;
    let job = bed
        .accepted(&json!({"operation": "worker_logs", "worker_id": id, "follow": true}))
        .await;
    let mut events = bed.events(&job).await;
    said(&mut events, "before").await;
    bed.tell_worker("/say?text=after").await;
    said(&mut events, "after").await;
    cancel(&bed, &job).await;
    assert_eq!(last(&mut events).await.state, JobState::Cancelled);
    bed.end().await;
}

#[tokio::test]
async fn a_log_that_is_followed_ends_with_its_worker() {
    let bed = start().await;
    let (id, _) = bed.spawn("good").await;
    let job = bed
        .accepted(&json!({"operation": "worker_logs", "worker_id": id, "follow": true}))
        .await;
    let mut events = bed.events(&job).await;
    said(&mut events, "good worker is up").await;
    bed.job(&json!({"operation": "worker_stop", "worker_id": id})).await;
    assert_eq!(last(&mut events).await.state, JobState::Succeeded);
    // Of one that is gone, what it printed is still there.
    let end = bed.job(&json!({"operation": "worker_logs", "worker_id": id})).await;
    assert!(end.result.unwrap()["lines"].as_u64().unwrap() >= 1);
    bed.end().await;
}

#[tokio::test]
async fn logs_that_are_not_there_and_more_lines_than_are_given_are_refused() {
    let bed = start().await;
    let (status, message) = refusal(&bed, &json!({"operation": "worker_logs", "worker_id": "worker-x"})).await;
    assert!(status == 404 && message.contains("worker-x"), "{status} {message}");
    let (id, _) = bed.spawn("good").await;
    let many = json!({"operation": "worker_logs", "worker_id": id, "lines": 10_001});
    let (status, message) = refusal(&bed, &many).await;
    assert!(status == 400 && message.contains("`log`"), "{status} {message}");
    bed.end().await;
}

#[tokio::test]
async fn a_drained_worker_ends_when_its_requests_are_answered() {
    let bed = start().await;
    let (id, _) = bed.spawn("busy").await;
    let job = bed
        .accepted(&json!({"operation": "worker_drain", "worker_id": id}))
        .await;
    let mut events = bed.events(&job).await;
    let told = format!("worker {id} takes no new requests, and ends when those that it has are answered");
    said(&mut events, &told).await;
    assert_eq!(bed.workers().await[0]["state"], "stopping");
    bed.tell_worker("/finish").await;
    let end = last(&mut events).await;
    assert_eq!(
        end.result,
        Some(json!({"worker_id": id, "how": "drained"})),
        "{:?}",
        end.error
    );
    assert!(bed.workers().await.is_empty());
    bed.end().await;
}

#[tokio::test]
async fn a_cancelled_drain_leaves_the_worker_draining_and_says_so() {
    let bed = start().await;
    let (id, _) = bed.spawn("busy").await;
    let job = bed
        .accepted(&json!({"operation": "worker_drain", "worker_id": id}))
        .await;
    let mut events = bed.events(&job).await;
    let told = format!("worker {id} takes no new requests, and ends when those that it has are answered");
    said(&mut events, &told).await;
    cancel(&bed, &job).await;
    let goes_on = format!("worker {id} goes on draining, which cannot be taken back; worker_stop ends it sooner");
    said(&mut events, &goes_on).await;
    assert_eq!(last(&mut events).await.state, JobState::Cancelled);
    assert_eq!(bed.workers().await[0]["state"], "stopping");
    bed.tell_worker("/finish").await;
    within(async {
        while !bed.workers().await.is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    bed.end().await;
}

#[tokio::test]
async fn a_worker_that_is_stopped_hears_how_long_its_requests_may_take() {
    let bed = start().await;
    let (id, _) = bed.spawn("busy").await;
    let stop = json!({"operation": "worker_stop", "worker_id": id, "grace_s": 7});
    let end = bed.job(&stop).await;
    assert_eq!(
        end.result,
        Some(json!({"worker_id": id, "how": "stopped"})),
        "{:?}",
        end.error
    );
    let logs = bed
        .accepted(&json!({"operation": "worker_logs", "worker_id": id}))
        .await;
    said(&mut bed.events(&logs).await, "asked to finish within 7 s").await;
    bed.end().await;
}

#[tokio::test]
async fn a_drained_worker_that_is_stopped_after_all_hears_how_long_it_has_now() {
    let bed = start().await;
    let (id, _) = bed.spawn("busy").await;
    let drain = bed
        .accepted(&json!({"operation": "worker_drain", "worker_id": id}))
        .await;
    let mut events = bed.events(&drain).await;
    let takes_none = format!("worker {id} takes no new requests, and ends when those that it has are answered");
    said(&mut events, &takes_none).await;
    let end = bed.job(&json!({"operation": "worker_stop", "worker_id": id})).await;
    assert_eq!(end.result.unwrap()["how"], "stopped");
    assert_eq!(last(&mut events).await.state, JobState::Succeeded);
    let logs = bed
        .accepted(&json!({"operation": "worker_logs", "worker_id": id}))
        .await;
    // What the hive's settings say, instead of a week.
    said(&mut bed.events(&logs).await, "asked to finish within 60 s").await;
    bed.end().await;
}

#[tokio::test]
async fn a_grace_without_end_is_refused() {
    let bed = start().await;
    let (id, _) = bed.spawn("good").await;
    let stop = json!({"operation": "worker_stop", "worker_id": id, "grace_s": u64::MAX});
    let (status, message) = refusal(&bed, &stop).await;
    assert!(status == 400 && message.contains("worker_drain"), "{status} {message}");
    bed.end().await;
}

#[tokio::test]
async fn the_logs_that_are_followed_at_once_are_bounded_and_keep_no_other_job_out() {
    let bed = start().await;
    let (id, _) = bed.spawn("good").await;
    let follow = json!({"operation": "worker_logs", "worker_id": id, "follow": true});
    let mut running = Vec::new();
    let refused = loop {
        let answer = bed.post_job(&follow).await;
        if answer.status() != 202 {
            break answer;
        }
        running.push(answer.json::<JobAccepted>().await.unwrap());
        assert!(running.len() <= 1_000, "there is no bound");
    };
    assert_eq!((refused.status().as_u16(), running.len()), (429, 16));
    assert!(refused.headers().contains_key("retry-after"));
    let other = json!({"operation": "worker_list"});
    assert_eq!(bed.post_job(&other).await.status(), 202);

    let mut events = bed.events(&running[0]).await;
    cancel(&bed, &running[0]).await;
    last(&mut events).await;
    assert_eq!(bed.post_job(&follow).await.status(), 202);
    bed.end().await;
}

#[tokio::test]
async fn a_job_that_fails_names_the_step_and_the_remedy() {
    let bed = start().await;
    let end = bed
        .job(&json!({"operation": "model_pull", "model": "file:/nowhere/x.gguf"}))
        .await;
    let message = end.error.unwrap().message;
    assert!(
        message.starts_with("failed in step `resolve`: use /nowhere/x.gguf"),
        "{message}"
    );
    bed.end().await;
}
