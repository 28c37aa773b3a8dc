//! Loopback unless told otherwise; beyond it only with a token.

use rbee_tests::{Process, Program, http, models};
use serde_json::json;

#[tokio::test]
async fn an_address_that_others_can_reach_needs_a_token() {
    let rest: [(Program, &[&str]); 3] = [
        (Program::Queen, &[]),
        (Program::Hive, &[]),
        (Program::Worker, &["--model", models::SMOLLM2]),
    ];
    for (program, args) in rest {
        let mut command = program.command();
        command.args(args).args(["--host", "0.0.0.0", "--port", "0"]);
        let mut process = Process::spawn(command);
        assert_eq!(process.ended().await.code(), Some(2), "{program:?}: {}", process.log());
        assert!(
            process.log().contains("--token"),
            "{program:?} names the remedy: {}",
            process.log()
        );
    }
}

#[tokio::test]
async fn the_token_guards_the_fleet_and_the_api_key_the_openai_side() {
    let args = [
        "--port",
        "0",
        "--token",
        "a-fleet-token",
        "--api-key",
        "sk-first-key",
        "--api-key",
        "sk-second-key",
    ];
    let queen = Process::daemon(Program::Queen, args).await;
    let url = |path: &str| format!("{}{path}", queen.url());

    for path in ["/v1/fleet", "/v1/heartbeats/stream", "/v1/models"] {
        assert_eq!(http::get(url(path)).await.status, 401, "{path}");
    }
    for path in [
        "/v1/worker-heartbeat",
        "/v1/hive-heartbeat",
        "/v1/chat/completions",
        "/v1/completions",
    ] {
        assert_eq!(http::post(url(path), &json!({})).await.status, 401, "{path}");
    }
    for path in ["/health", "/metrics"] {
        assert_eq!(http::get(url(path)).await.status, 200, "{path}");
    }

    let with = async |path: &str, token: &str| {
        http::send(http::client().get(url(path)).bearer_auth(token))
            .await
            .status
    };
    assert_eq!(with("/v1/fleet", "a-fleet-token").await, 200);
    assert_eq!(with("/v1/fleet", "sk-first-key").await, 401);
    assert_eq!(with("/v1/models", "sk-first-key").await, 200);
    assert_eq!(with("/v1/models", "sk-second-key").await, 200);
    assert_eq!(with("/v1/models", "sk-third-key").await, 401);
    for secret in ["a-fleet-token", "sk-first-key", "sk-third-key"] {
        assert!(!queen.log().contains(secret), "a secret is in the log");
    }
}

#[tokio::test]
async fn a_hive_with_a_token_starts_nothing_for_those_who_do_not_have_it() {
    let hive = Process::daemon(Program::Hive, ["--port", "0", "--token", "a-fleet-token"]).await;
    let url = |path: &str| format!("{}{path}", hive.url());
    for path in [
        "/v1/capabilities?queen_url=http://127.0.0.1:9",
        "/v1/jobs",
        "/v1/workers",
        "/v1/models",
    ] {
        assert_eq!(http::get(url(path)).await.status, 401, "{path}");
    }
    let job = json!({"operation": "model_list"});
    assert_eq!(http::post(url("/v1/jobs"), &job).await.status, 401);
    let request = http::client()
        .post(url("/v1/jobs"))
        .bearer_auth("a-fleet-token")
        .json(&job);
    assert_eq!(http::send(request).await.status, 202);
}

#[tokio::test]
async fn the_whole_road_works_with_tokens() {
    let token = ["--token", "a-fleet-token"];
    let queen = Process::daemon(
        Program::Queen,
        ["--port", "0", "--api-key", "sk-first-key"].iter().chain(&token),
    )
    .await;
    let args = ["--port", "0", "--queen-url", &queen.url(), "--model", models::SMOLLM2];
    let worker = Process::daemon(Program::Worker, args.iter().chain(&token)).await;
    let body = rbee_tests::cluster::chat_body(models::SMOLLM2, "Hello");
    let chat = format!("{}/v1/chat/completions", queen.url());
    let ask = async || http::send(http::client().post(&chat).bearer_auth("sk-first-key").json(&body)).await;
    rbee_tests::eventually("the worker answers through the queen", async || {
        (ask().await.status == 200).then_some(())
    })
    .await;
    let direct = http::post(format!("{}/v1/chat/completions", worker.url()), &body).await;
    assert_eq!(
        direct.status, 401,
        "the worker takes requests only from those who have the token"
    );
}
