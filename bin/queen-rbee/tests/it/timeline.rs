//! What changed in the fleet lately, as people read it.

use queen_rbee::Config;
use queen_rbee::timeline::{TimelineChange, TimelineEntry, TimelineKind, TimelineView, Tone};
use serde_json::json;

use crate::fake_hive::{FakeHive, WORKER_MB};
use crate::support::{Queen, Reader, Worker, with, within};

/// What is told, the newest first.
async fn told(queen: &Queen, query: &str) -> TimelineView {
    let path = format!("/v1/timeline{query}");
    queen.get(&path).send().await.unwrap().json().await.unwrap()
}

/// Ends when something of this kind was told.
async fn comes(queen: &Queen, subject: &str, change: TimelineChange) -> TimelineEntry {
    within(&format!("{change:?} of {subject}"), async {
        loop {
            let mut entries = told(queen, "").await.entries.into_iter();
            if let Some(entry) = entries.find(|entry| entry.subject == subject && entry.change == change) {
                return entry;
            }
            tokio::task::yield_now().await;
        }
    })
    .await
}

#[tokio::test]
async fn a_members_coming_changing_and_leaving_are_told_once_each() {
    let queen = Queen::start(Config::default()).await;
    let worker = Worker::start().await;
    let starting = with(worker.beat("w"), "/worker/status", "starting");
    queen.worker_beat(&starting).await;
    let joined = comes(&queen, "w", TimelineChange::Joined).await;
    assert_eq!(
        (joined.kind, joined.text.as_str()),
        (TimelineKind::Worker, "w joined with m on cpu")
    );
    queen.worker_beat(&worker.beat("w")).await;
    let ready = comes(&queen, "w", TimelineChange::Ready).await;
    assert_eq!((ready.tone, ready.model.unwrap().as_str()), (Tone::Good, "m"));
    for status in ["busy", "ready", "busy"] {
        queen
            .worker_beat(&with(worker.beat("w"), "/worker/status", status))
            .await;
    }
    queen
        .worker_beat(&with(worker.beat("w"), "/worker/status", "stopped"))
        .await;
    let left = comes(&queen, "w", TimelineChange::Left).await;
    assert!(left.text.contains("said goodbye"), "{}", left.text);

    let all = told(&queen, "").await;
    let changes: Vec<_> = all.entries.iter().map(|entry| entry.change).collect();
    let expected = [TimelineChange::Left, TimelineChange::Ready, TimelineChange::Joined];
    assert_eq!(changes, expected, "{all:?}");
    let newer = told(&queen, &format!("?after={}", joined.id)).await;
    assert_eq!(newer.entries, all.entries[..2]);
    assert!(all.kept_since <= joined.timestamp);
    assert_eq!(queen.get("/v1/timeline?since=1").send().await.unwrap().status(), 400);
}

#[tokio::test]
async fn what_the_queen_and_operators_do_is_told_with_the_reason() {
    let queen = Queen::start(Config::default()).await;
    let _hive = FakeHive::start(&queen, "h", WORKER_MB).await;
    for model in ["a", "b"] {
        let ask = json!({"model": model, "messages": [{"role": "user", "content": "hi"}]});
        assert_eq!(within("an answer", queen.ask(&ask)).await.unwrap().status(), 200);
    }
    let loading = comes(&queen, "b", TimelineChange::Loading).await;
    assert_eq!(loading.text, "b is loaded on h cpu: a request waits for it");
    assert_eq!(
        (loading.hive.unwrap().as_str(), loading.device.as_deref()),
        ("h", Some("cpu"))
    );
    let evicted = comes(&queen, "h-w1", TimelineChange::Evicted).await;
    assert_eq!(evicted.text, "h-w1 made room for b on h cpu");
    comes(&queen, "b", TimelineChange::Loaded).await;

    for _ in 0..2 {
        assert_eq!(
            queen
                .post("/v1/hives/h/drain", &json!({}))
                .send()
                .await
                .unwrap()
                .status(),
            200
        );
    }
    let statement = json!({"model": "b", "replicas": 1});
    assert_eq!(queen.post("/v1/serve", &statement).send().await.unwrap().status(), 200);
    comes(&queen, "b", TimelineChange::Stated).await;
    let drains = told(&queen, "").await.entries.into_iter();
    let drains = drains.filter(|entry| entry.change == TimelineChange::Drained);
    assert_eq!(drains.count(), 1, "said twice, done once");
}

#[tokio::test]
async fn that_a_model_has_no_place_for_its_requests_is_told_once() {
    let queen = Queen::start(Config::default()).await;
    let _hive = FakeHive::start(&queen, "h", WORKER_MB / 2).await;
    for _ in 0..3 {
        let ask = json!({"model": "a", "messages": [{"role": "user", "content": "hi"}]});
        assert_eq!(within("a refusal", queen.ask(&ask)).await.unwrap().status(), 503);
    }
    let refused = comes(&queen, "a", TimelineChange::NoPlace).await;
    assert_eq!(
        (refused.tone, refused.model.as_ref().unwrap().as_str()),
        (Tone::Warn, "a")
    );
    assert!(
        refused.text.starts_with("a request for a had to be refused: ") && refused.text.contains("h cpu"),
        "{}",
        refused.text
    );
    let all = told(&queen, "").await.entries.into_iter();
    assert_eq!(all.filter(|entry| entry.change == TimelineChange::NoPlace).count(), 1);
}

#[tokio::test]
async fn readers_of_the_stream_are_told_as_it_happens() {
    let queen = Queen::start(Config::default()).await;
    let worker = Worker::start().await;
    let mut stream = Reader::new(queen.get("/v1/heartbeats/stream").send().await.unwrap());
    let mut text = stream.next().await.unwrap();
    queen.worker_beat(&worker.beat("w")).await;
    while !text.contains("w joined with m on cpu") {
        text += &stream.next().await.unwrap();
    }
    assert!(text.contains("event: timeline\nid: queen-"), "{text}");
}
