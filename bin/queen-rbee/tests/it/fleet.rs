//! What the queen shows of her fleet.

use queen_rbee::Config;
use serde_json::{Value, json};

use crate::support::{Queen, Reader, Worker, chat, chat_stream, hive_beat, with, within};

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
    let worker = Worker::start().await;
    queen.worker_beat(&worker.beat("w")).await;
    queen
        .worker_beat(&with(worker.beat("v"), "/worker/model_id", "org/name"))
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
async fn hives_from_which_a_model_can_be_copied_are_those_there_with_whole_files() {
    let queen = Queen::start(Config::default()).await;
    let host = Worker::start().await;
    let beat = |id: &str, model: Value| {
        let beat = with(hive_beat(id), "/hive/port", host.address.port());
        with(
            beat,
            "/capabilities",
            json!({"devices": [], "models": [model], "engines": []}),
        )
    };
    let model = json!({"id": "m", "reference": "hf:org/m/m.gguf", "size_bytes": 1});
    queen.hive_beat(&beat("b-has-it", model.clone())).await;
    queen.hive_beat(&beat("a-has-it", model.clone())).await;
    queen
        .hive_beat(&beat("damaged", with(model.clone(), "/problem", "m.gguf is cut short")))
        .await;
    queen
        .hive_beat(&beat("other", with(model, "/reference", "hf:org/m@v2/m.gguf")))
        .await;
    let ask = async |query: &str| {
        let answer = queen.get(&format!("/v1/model-holders{query}")).send().await.unwrap();
        (answer.status().as_u16(), answer.json::<Value>().await.unwrap())
    };
    let (status, found) = ask("?reference=hf:org/m/m.gguf").await;
    assert_eq!(status, 200);
    let base_url = format!("http://{}", host.address);
    assert_eq!(
        found,
        json!({"holders": [
            {"hive_id": "a-has-it", "base_url": base_url},
            {"hive_id": "b-has-it", "base_url": base_url},
        ]})
    );
    assert_eq!(ask("?reference=nothing").await.1, json!({"holders": []}));
    assert_eq!(ask("").await.0, 400);
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
    let starting = Worker::start().await;
    let loading = with(starting.beat("b"), "/worker/model_id", "org/name");
    queen.worker_beat(&with(loading, "/worker/status", "starting")).await;
    let failed = with(starting.beat("c"), "/worker/model_id", "broken");
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
    let worker = Worker::start().await;
    queen.worker_beat(&worker.beat("w")).await;
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
    assert!(text.contains("# TYPE rbee_heartbeat_gap_seconds histogram\n"), "{text}");
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
    let mut events = Reader::new(queen.get("/v1/heartbeats/stream").send().await.unwrap());
    assert!(events.next().await.is_some());
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
