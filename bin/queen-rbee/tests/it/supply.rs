//! Models on demand: which hive starts a worker for whom, who makes room, and what is told where that cannot be.

use queen_rbee::supply::{
    DecisionList, DecisionOutcome, DrainView, ModelState, PlacementView, ServeList, ServeView, Trigger,
};
use queen_rbee::{Alias, Config, SupplyConfig};
use scheduler::decide;
use serde_json::{Value, json};
use shared_contract::ModelId;

use crate::fake_hive::{FakeHive, WORKER_MB};
use crate::support::{Queen, within};

fn ask(model: &str) -> Value {
    json!({"model": model, "messages": [{"role": "user", "content": "hi"}]})
}

async fn answered(queen: &Queen, model: &str) -> reqwest::Response {
    within("an answer", queen.ask(&ask(model))).await.unwrap()
}

async fn is_answered(queen: &Queen, model: &str) {
    let response = answered(queen, model).await;
    let (status, text) = (response.status(), response.text().await.unwrap());
    assert_eq!(status, 200, "{model}: {text}");
}

async fn shown<T: serde::de::DeserializeOwned>(queen: &Queen, path: &str) -> T {
    let response = queen.get(path).send().await.unwrap();
    let (status, text) = (response.status(), response.text().await.unwrap());
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{path}: {status} {text}: {error}"))
}

/// Ends when the hive's workers are of these models.
async fn comes_to_run(hive: &FakeHive, models: &[&str]) {
    within(&format!("{models:?} running"), async {
        while hive.models() != models {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_hundred_requests_for_a_model_that_nobody_serves_start_one_worker_and_are_all_answered() {
    let queen = Queen::start(Config::default()).await;
    let hive = FakeHive::start(&queen, "h", 8 * WORKER_MB).await;
    let requests: Vec<_> = (0..100).map(|_| queen.ask(&ask("a"))).collect();
    for request in requests {
        assert_eq!(within("an answer", request).await.unwrap().status(), 200);
    }
    assert_eq!(hive.started(), ["a"]);
    let decisions: DecisionList = shown(&queen, "/v1/decisions").await;
    let [decision] = decisions.decisions.as_slice() else {
        panic!("one decision: {decisions:?}")
    };
    assert!(matches!(decision.trigger, Trigger::Demand { .. }));
    assert!(
        matches!(decision.outcome, DecisionOutcome::Ready { .. }),
        "{decision:?}"
    );
    assert_eq!(decide(&decision.problem), decision.decision);
}

#[tokio::test]
async fn two_models_that_do_not_fit_together_take_turns_and_no_request_fails() {
    let queen = Queen::start(Config::default()).await;
    let hive = FakeHive::start(&queen, "h", WORKER_MB).await;
    for model in ["a", "b", "a"] {
        is_answered(&queen, model).await;
    }
    assert_eq!(hive.started(), ["a", "b", "a"]);
    let metrics = queen.get("/metrics").send().await.unwrap().text().await.unwrap();
    for line in [
        "rbee_model_loads_total{trigger=\"demand\"} 3",
        "rbee_model_load_results_total{result=\"ready\"}",
        "rbee_evictions_total 2",
    ] {
        assert!(metrics.contains(line), "{line}: {metrics}");
    }
    let both: Vec<_> = (0..20).map(|n| queen.ask(&ask(["a", "b"][n % 2]))).collect();
    for request in both {
        assert_eq!(within("an answer", request).await.unwrap().status(), 200);
    }
    assert_eq!(hive.started(), ["a", "b", "a", "b"]);
}

#[tokio::test]
async fn where_one_hive_refuses_the_next_is_asked_and_the_last_ones_reason_is_told() {
    let queen = Queen::start(Config::default()).await;
    let first = FakeHive::start(&queen, "h1", 8 * WORKER_MB).await;
    let second = FakeHive::start(&queen, "h2", 4 * WORKER_MB).await;
    first.refuse("failed to place: a cat sits on it");
    is_answered(&queen, "a").await;
    assert_eq!((first.started().len(), second.started().len()), (0, 1));

    second.refuse("failed to place: a dog, too");
    let response = answered(&queen, "b").await;
    assert_eq!(response.status(), 503);
    let retry: u64 = response.headers()["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((1..=5).contains(&retry), "{retry}");
    let text = response.text().await.unwrap();
    assert!(text.contains("a cat sits on it") && text.contains("a dog"), "{text}");
    let placement: PlacementView = shown(&queen, "/v1/placement?model=b").await;
    assert_eq!(placement.failures.len(), 2);
    assert_eq!(placement.decision.choice, None);
}

#[tokio::test]
async fn what_is_stated_to_run_is_started_unasked_and_never_makes_room_until_the_statement_ends() {
    let queen = Queen::start(Config::default()).await;
    let hive = FakeHive::start(&queen, "h", WORKER_MB).await;
    let stated = queen
        .post("/v1/serve", &json!({"model": "a", "pin": true}))
        .send()
        .await
        .unwrap();
    let view: ServeView = stated.json().await.unwrap();
    assert_eq!((view.replicas, view.pin), (1, true));
    comes_to_run(&hive, &["a"]).await;
    is_answered(&queen, "a").await;

    let response = answered(&queen, "b").await;
    assert_eq!(response.status(), 503);
    let text = response.text().await.unwrap();
    assert!(text.contains("pinned"), "{text}");
    let list: ServeList = shown(&queen, "/v1/serve").await;
    assert!(list.models[0].is_met);

    let ended = queen
        .http
        .delete(format!("{}/v1/serve?model=a", queen.url))
        .send()
        .await
        .unwrap();
    assert_eq!(ended.status(), 200);
    comes_to_run(&hive, &[]).await;
    is_answered(&queen, "b").await;
}

#[tokio::test]
async fn replicas_are_spread_over_hosts_and_come_back_when_one_is_drained() {
    let queen = Queen::start(Config::default()).await;
    let hives = [
        FakeHive::start(&queen, "h1", 8 * WORKER_MB).await,
        FakeHive::start(&queen, "h2", 8 * WORKER_MB).await,
        FakeHive::start(&queen, "h3", 8 * WORKER_MB).await,
    ];
    let statement = json!({"model": "a", "replicas": 3});
    assert_eq!(queen.post("/v1/serve", &statement).send().await.unwrap().status(), 200);
    for hive in &hives {
        comes_to_run(hive, &["a"]).await;
    }
    let drained = queen.post("/v1/hives/h1/drain", &json!({})).send().await.unwrap();
    let view: DrainView = drained.json().await.unwrap();
    assert!(view.is_drained && view.workers.len() == 1, "{view:?}");
    comes_to_run(&hives[0], &[]).await;
    assert_eq!(hives[1].models().len() + hives[2].models().len(), 3, "before it left");

    let placement: PlacementView = shown(&queen, "/v1/placement?model=b").await;
    let verdict = &placement.decision.verdicts[0];
    assert!(
        verdict.outcome.to_string().contains("drained by the operator"),
        "{verdict:?}"
    );
    let undone = queen
        .http
        .delete(format!("{}/v1/hives/h1/drain", queen.url))
        .send()
        .await
        .unwrap();
    assert_eq!(undone.status(), 200);
    let placement: PlacementView = shown(&queen, "/v1/placement?model=b").await;
    assert_eq!(placement.decision.choice.unwrap().host, "h1");
    let unknown = queen.post("/v1/hives/h9/drain", &json!({})).send().await.unwrap();
    assert_eq!(unknown.status(), 404);
}

#[tokio::test]
async fn a_worker_that_a_hive_is_starting_already_is_waited_for() {
    let queen = Queen::start(Config::default()).await;
    let hive = FakeHive::start(&queen, "h", 8 * WORKER_MB).await;
    hive.has_starting("w", "a").await;
    let request = queen.ask(&ask("a"));
    within("its waiting", async {
        let mut waiting = 0;
        while waiting == 0 {
            let placement: PlacementView = shown(&queen, "/v1/placement?model=a").await;
            assert_eq!(placement.state, ModelState::Loading);
            waiting = placement.waiting;
        }
    })
    .await;
    hive.make_ready("w").await;
    assert_eq!(within("an answer", request).await.unwrap().status(), 200);
    assert!(hive.started().is_empty());
}

#[tokio::test]
async fn a_line_that_stays_too_long_gets_a_second_worker() {
    let supply = SupplyConfig {
        scale_up_waiting: Some(2),
        scale_up_after: std::time::Duration::from_millis(1),
        ..SupplyConfig::default()
    };
    let queen = Queen::start(Config {
        supply,
        ..Config::default()
    })
    .await;
    let hive = FakeHive::start(&queen, "h", 8 * WORKER_MB).await;
    // One that never answers, so that its slot is taken.
    let mut slow = crate::support::Worker::start().await;
    let beat = crate::support::with(slow.beat("slow"), "/worker/model_id", "a");
    queen.worker_beat(&beat).await;
    let requests: Vec<_> = (0..6).map(|_| queen.ask(&ask("a"))).collect();
    let held = slow.next().await;
    comes_to_run(&hive, &["a"]).await;
    held.answer(crate::support::plain(200, "{}"));
    let answers = async move {
        loop {
            slow.next().await.answer(crate::support::plain(200, "{}"));
        }
    };
    let _answers = tokio_util::task::AbortOnDropHandle::new(tokio::spawn(answers));
    for request in requests {
        assert_eq!(within("an answer", request).await.unwrap().status(), 200);
    }
    assert_eq!(hive.started(), ["a"]);
}

#[tokio::test]
async fn all_models_that_could_be_loaded_are_listed_with_their_state_and_aliases() {
    let alias = Alias {
        model: ModelId::new("a").unwrap(),
        reference: None,
    };
    let supply = SupplyConfig {
        aliases: [("gpt-4o-mini".to_owned(), alias)].into(),
        ..SupplyConfig::default()
    };
    let queen = Queen::start(Config {
        supply,
        ..Config::default()
    })
    .await;
    let list: Value = shown(&queen, "/v1/models").await;
    assert_eq!(list["data"], json!([]), "no hive is there that could load one");
    let _hive = FakeHive::start(&queen, "h", 8 * WORKER_MB).await;
    is_answered(&queen, "gpt-4o-mini").await;
    let list: Value = shown(&queen, "/v1/models").await;
    let found = |id: &str| {
        let models = list["data"].as_array().unwrap();
        models.iter().find(|model| model["id"] == id).unwrap().clone()
    };
    assert_eq!(
        (&found("a")["state"], &found("a")["hives"]),
        (&json!("ready"), &json!(["h"]))
    );
    assert_eq!(found("b")["state"], "on_disk");
    assert_eq!(found("b")["context_length"], 4096);
    assert_eq!(found("smollm2-135m-instruct")["state"], "available");
    assert_eq!(found("gpt-4o-mini")["alias_of"], "a");
    let one: Value = shown(&queen, "/v1/models/gpt-4o-mini").await;
    assert_eq!((&one["alias_of"], &one["ready_workers"]), (&json!("a"), &json!(1)));
    assert_eq!(answered(&queen, "nobody-knows").await.status(), 404);
}

#[tokio::test]
async fn where_no_host_is_there_a_known_model_is_refused_for_that_and_an_unknown_one_does_not_exist() {
    let queen = Queen::start(Config::default()).await;
    let response = answered(&queen, "smollm2-135m-instruct").await;
    assert_eq!(response.status(), 503);
    assert!(response.headers().contains_key("retry-after"));
    let text = response.text().await.unwrap();
    assert!(text.contains("no host is there") && text.contains("rbee up"), "{text}");
    let placement: PlacementView = shown(&queen, "/v1/placement?model=smollm2-135m-instruct").await;
    assert_eq!(
        (placement.decision.verdicts.len(), placement.decision.choice),
        (0, None)
    );

    for response in [
        answered(&queen, "nobody-knows").await,
        queen.get("/v1/placement?model=nobody-knows").send().await.unwrap(),
    ] {
        assert_eq!(response.status(), 404);
        let error: Value = response.json().await.unwrap();
        assert_eq!(error["error"]["param"], "model", "{error}");
    }
}

#[tokio::test]
async fn a_stated_model_that_made_room_comes_back_for_a_request_as_any_other_does() {
    let queen = Queen::start(Config::default()).await;
    let hive = FakeHive::start(&queen, "h", WORKER_MB).await;
    let statement = json!({"model": "a"});
    assert_eq!(queen.post("/v1/serve", &statement).send().await.unwrap().status(), 200);
    comes_to_run(&hive, &["a"]).await;
    for model in ["b", "a"] {
        is_answered(&queen, model).await;
    }
    assert_eq!(hive.started(), ["a", "b", "a"]);
}

#[tokio::test]
async fn a_queen_that_loads_nothing_on_demand_says_so() {
    let supply = SupplyConfig {
        loads_on_demand: false,
        ..SupplyConfig::default()
    };
    let queen = Queen::start(Config {
        supply,
        ..Config::default()
    })
    .await;
    let hive = FakeHive::start(&queen, "h", 8 * WORKER_MB).await;
    let response = answered(&queen, "a").await;
    assert_eq!(response.status(), 404);
    let text = response.text().await.unwrap();
    assert!(text.contains("rbee serve"), "{text}");
    let placement: PlacementView = shown(&queen, "/v1/placement?model=a").await;
    assert!(placement.decision.choice.is_some(), "{placement:?}");
    let broken = queen
        .post("/v1/serve", &json!({"model": "hf:me"}))
        .send()
        .await
        .unwrap();
    assert_eq!(broken.status(), 400);
    assert!(hive.started().is_empty());
    let statement = json!({"model": "file:/models/a.gguf"});
    let stated = queen.post("/v1/serve", &statement).send().await.unwrap();
    assert_eq!(stated.status(), 200, "{}", stated.text().await.unwrap());
    comes_to_run(&hive, &["a"]).await;
    is_answered(&queen, "a").await;
}

#[tokio::test]
async fn a_path_is_looked_for_on_one_hive_after_another() {
    let queen = Queen::start(Config::default()).await;
    let without = FakeHive::start(&queen, "h1", 8 * WORKER_MB).await;
    let with = FakeHive::start(&queen, "h2", 4 * WORKER_MB).await;
    without.refuse("there is no file /models/x.gguf");
    let statement = json!({"model": "file:/models/x.gguf"});
    let stated = queen.post("/v1/serve", &statement).send().await.unwrap();
    assert_eq!(stated.status(), 200, "{}", stated.text().await.unwrap());
    comes_to_run(&with, &["x"]).await;
    let orders = without.asked().len();
    assert_eq!((orders, without.started()), (1, Vec::new()));
    is_answered(&queen, "x").await;
}

#[tokio::test]
async fn a_hive_that_dies_while_it_starts_a_worker_is_given_up_and_the_next_one_does_it() {
    let queen = Queen::start(Config::default()).await;
    let first = FakeHive::start(&queen, "h1", 8 * WORKER_MB).await;
    let second = FakeHive::start(&queen, "h2", 4 * WORKER_MB).await;
    first.hang();
    let request = queen.ask(&ask("a"));
    within("the order to the first hive", async {
        while first.started().is_empty() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    drop(first);
    assert_eq!(within("an answer", request).await.unwrap().status(), 200);
    assert_eq!(second.started(), ["a"]);
    let decisions: DecisionList = shown(&queen, "/v1/decisions").await;
    assert!(
        decisions
            .decisions
            .iter()
            .any(|it| matches!(it.outcome, DecisionOutcome::Failed { .. })),
        "{decisions:?}"
    );
}
