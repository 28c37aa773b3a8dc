//! What the queen shows of her fleet.

use eventsource_stream::{Event, Eventsource};
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use queen_rbee::Config;
use queen_rbee::fleet::{Change, HiveEvent, Liveness, QueenBeat, WorkerEvent};
use serde_json::{Value, json};

use crate::support::{Queen, Reader, Worker, chat, chat_stream, closed_port, hive_beat, with, within, worker_beat};

struct Events(BoxStream<'static, Event>);

impl Events {
    /// Follows the queen's stream from after her first own beat: then the subscription stands.
    async fn of(queen: &Queen) -> Self {
        let response = queen.get("/v1/heartbeats/stream").send().await.unwrap();
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        let mut events = Self(response.bytes_stream().eventsource().map(Result::unwrap).boxed());
        let first = events.next().await.unwrap();
        assert_eq!(first.event, "queen");
        let beat: QueenBeat = serde_json::from_str(&first.data).unwrap();
        assert_eq!(beat.queen.id, queen.fleet().await.queen.id);
        events
    }

    async fn next(&mut self) -> Option<Event> {
        within("an event", self.0.next()).await
    }

    /// The next event that is not the queen's own.
    async fn member(&mut self) -> Event {
        loop {
            let event = self.next().await.unwrap();
            if event.event != "queen" {
                return event;
            }
        }
    }

    async fn worker(&mut self) -> WorkerEvent {
        let event = self.member().await;
        assert_eq!(event.event, "worker");
        serde_json::from_str(&event.data).unwrap()
    }
}

#[tokio::test]
async fn the_stream_tells_of_each_beat_and_each_change_with_its_reason() {
    let queen = Queen::start(Config::default()).await;
    let mut events = Events::of(&queen).await;
    queen.worker_beat(&worker_beat("w", closed_port().await)).await;
    assert_eq!(events.worker().await.change, Change::Joined);
    let beat = events.worker().await;
    assert_eq!(
        (beat.change, beat.worker.id.as_str(), beat.reason),
        (Change::Beat, "w", None)
    );

    let asked = queen.ask(&chat());
    let suspect = events.worker().await;
    assert_eq!(
        (suspect.change, suspect.from, suspect.to),
        (Change::StateChanged, Some(Liveness::Online), Some(Liveness::Suspect))
    );
    assert!(suspect.reason.unwrap().contains("cannot be reached"));
    assert!(!suspect.worker.ready);
    drop(asked);

    queen
        .worker_beat(&with(worker_beat("w", 1), "/worker/status", "stopped"))
        .await;
    let mut last = events.worker().await;
    while last.change != Change::Left {
        last = events.worker().await;
    }
    assert_eq!(last.reason.as_deref(), Some("said goodbye"));

    queen.hive_beat(&hive_beat("h")).await;
    let event = events.member().await;
    assert_eq!(event.event, "hive");
    let hive: HiveEvent = serde_json::from_str(&event.data).unwrap();
    assert_eq!((hive.change, hive.hive.id.as_str()), (Change::Joined, "h"));
}

#[tokio::test]
async fn a_model_that_there_is_not_gets_a_404_that_lists_those_there_are() {
    let queen = Queen::start(Config::default()).await;
    let ask = async |model: &str| {
        let response = within("an answer", queen.ask(&with(chat(), "/model", model)))
            .await
            .unwrap();
        assert_eq!(response.status(), 404);
        let error: Value = response.json().await.unwrap();
        assert_eq!(error["error"]["code"], "model_not_found");
        assert_eq!(error["error"]["param"], "model");
        error["error"]["message"].as_str().unwrap().to_owned()
    };
    assert!(ask("nope").await.contains("no worker serves any model yet"));
    queen.worker_beat(&worker_beat("w", 9301)).await;
    queen
        .worker_beat(&with(worker_beat("v", 9302), "/worker/model_id", "org/name"))
        .await;
    assert!(ask("nope").await.ends_with("there are: m, org/name"));
    assert!(ask("no id").await.contains("no id"));
    assert_eq!(
        queen
            .metric("rbee_requests_total{model=\"unknown\",status=\"404\"}")
            .await,
        3.0
    );
}

#[tokio::test]
async fn requests_that_name_no_model_or_are_no_json_are_refused() {
    let queen = Queen::start(Config::default()).await;
    let cases = [
        (json!({"messages": []}), "model", "missing_required_parameter"),
        (json!({"model": 1}), "model", "invalid_type"),
        (json!({"model": "m", "stream": "yes"}), "stream", "invalid_type"),
    ];
    for (body, param, code) in cases {
        let response = queen.post("/v1/completions", &body).send().await.unwrap();
        assert_eq!(response.status(), 400);
        let error: Value = response.json().await.unwrap();
        assert_eq!(
            (&error["error"]["param"], &error["error"]["code"]),
            (&json!(param), &json!(code))
        );
    }
    let request = queen.http.post(format!("{}/v1/completions", queen.url));
    let response = request
        .header("content-type", "application/json")
        .body("{")
        .send()
        .await
        .unwrap();
    assert_eq!(response.status(), 400);
    let large = with(chat(), "/filler", "x".repeat(17 << 20));
    assert_eq!(
        queen
            .post("/v1/chat/completions", &large)
            .send()
            .await
            .unwrap()
            .status(),
        413
    );
}

#[tokio::test]
async fn models_are_listed_with_the_state_of_their_workers() {
    let queen = Queen::start(Config::default()).await;
    let mut worker = Worker::start().await;
    queen
        .worker_beat(&with(worker.beat("a"), "/worker/context_length", 2048))
        .await;
    let loading = with(worker_beat("b", 9302), "/worker/model_id", "org/name");
    queen.worker_beat(&with(loading, "/worker/status", "starting")).await;
    let failed = with(worker_beat("c", 9303), "/worker/model_id", "broken");
    queen.worker_beat(&with(failed, "/worker/status", "failed")).await;

    let list: Value = queen.get("/v1/models").send().await.unwrap().json().await.unwrap();
    assert_eq!(list["object"], "list");
    let ids: Vec<_> = list["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|model| &model["id"])
        .collect();
    assert_eq!(ids, ["m", "org/name"]);
    let model = &list["data"][0];
    assert_eq!(
        (&model["object"], &model["owned_by"]),
        (&json!("model"), &json!("rbee"))
    );
    assert_eq!((&model["state"], &model["ready_workers"]), (&json!("ready"), &json!(1)));
    assert_eq!(model["context_length"], 2048);
    assert!(model["created"].as_i64().unwrap() > 0);

    let one: Value = queen
        .get("/v1/models/org/name")
        .send()
        .await
        .unwrap()
        .json()
        .await
        .unwrap();
    assert_eq!((&one["id"], &one["state"]), (&json!("org/name"), &json!("loading")));
    let escaped: Value = queen
        .get("/v1/models/org%2Fname")
        .send()
        .await
        .unwrap()
        .json()
        .await
        .unwrap();
    assert_eq!(escaped["id"], "org/name");
    let none = queen.get("/v1/models/nope").send().await.unwrap();
    assert_eq!(none.status(), 404);
    let error: Value = none.json().await.unwrap();
    assert_eq!(error["error"]["code"], "model_not_found");

    let asked = queen.ask(&chat());
    let reached = worker.next().await;
    let busy: Value = queen.get("/v1/models/m").send().await.unwrap().json().await.unwrap();
    assert_eq!(busy["state"], "busy");
    drop((asked, reached));
}

#[tokio::test]
async fn paths_and_methods_that_there_are_not_get_the_same_kind_of_error() {
    let queen = Queen::start(Config::default()).await;
    let response = queen.get("/v1/nothing").send().await.unwrap();
    assert_eq!(response.status(), 404);
    let error: Value = response.json().await.unwrap();
    assert_eq!(error["error"]["code"], "not_found");
    let response = queen.get("/v1/chat/completions").send().await.unwrap();
    assert_eq!(response.status(), 405);
    let error: Value = response.json().await.unwrap();
    assert_eq!(error["error"]["code"], "method_not_allowed");
}

#[tokio::test]
async fn metrics_are_text_that_prometheus_reads() {
    let queen = Queen::start(Config::default()).await;
    queen.worker_beat(&worker_beat("w", 9301)).await;
    let response = queen.get("/metrics").send().await.unwrap();
    assert_eq!(
        response.headers()["content-type"],
        "text/plain; version=0.0.4; charset=utf-8"
    );
    let text = response.text().await.unwrap();
    assert!(
        text.contains("rbee_members{kind=\"worker\",liveness=\"online\"} 1\n"),
        "{text}"
    );
    assert!(
        text.contains("rbee_members{kind=\"hive\",liveness=\"lost\"} 0\n"),
        "{text}"
    );
    assert!(
        text.contains("rbee_heartbeats_total{kind=\"worker\",outcome=\"new\"} 1\n"),
        "{text}"
    );
    assert!(
        text.contains("# TYPE rbee_time_to_first_byte_seconds histogram\n"),
        "{text}"
    );
    let request = queen
        .get("/metrics")
        .header("accept", "application/openmetrics-text;version=1.0.0");
    let response = request.send().await.unwrap();
    assert!(
        response.headers()["content-type"]
            .to_str()
            .unwrap()
            .starts_with("application/openmetrics-text")
    );
}

#[tokio::test]
async fn while_draining_the_queen_is_not_ready_and_a_running_answer_is_finished() {
    let queen = Queen::start(Config::default()).await;
    let health: Value = queen.get("/health").send().await.unwrap().json().await.unwrap();
    assert_eq!((&health["status"], &health["ready"]), (&json!("ready"), &json!(true)));
    assert_eq!(queen.get("/ready").send().await.unwrap().status(), 200);

    let mut worker = Worker::start().await;
    queen.worker_beat(&worker.beat("w")).await;
    let mut events = Events::of(&queen).await;
    let asked = queen.ask(&chat_stream());
    let answer = worker.next().await.stream();
    answer.write("data: 1\n\n").await;
    let mut reader = Reader::new(within("an answer", asked).await.unwrap());
    assert_eq!(reader.next().await.unwrap(), "data: 1\n\n");

    queen.shutdown.request();
    within("the end of the events", async {
        while events.next().await.is_some() {}
    })
    .await;
    answer.write("data: 2\n\n").await;
    assert_eq!(reader.next().await.unwrap(), "data: 2\n\n");
    drop(answer);
    assert_eq!(reader.next().await, None);
    within("the queen's end", queen.task).await.unwrap();
}
