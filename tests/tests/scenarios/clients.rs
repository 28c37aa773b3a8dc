//! The official clients of the APIs that the queen speaks, unchanged, against a real cluster.
//!
//! What they check stands in `tests/python` and `tests/javascript`, beside the versions that are installed. Each takes
//! more than five seconds: real models are loaded and, the first time, the clients are installed in the target folder.

use std::process::Command;
use std::time::Duration;

use rbee_tests::clients::Clients;
use rbee_tests::cluster::chat_body;
use rbee_tests::fake::{FakeWorker, Manner};
use rbee_tests::{Cluster, Process, eventually, http, models};

/// The key that the clients present.
const KEY: &str = "key-of-the-clients";
/// A model whose only worker is taken all the time, as the scripts know it.
const BUSY: &str = "busy";
/// Longest that a script may take. Only a failing test waits this long.
const LIMIT: Duration = Duration::from_secs(300);

#[tokio::test]
async fn the_official_openai_client_for_python_works_unchanged() {
    works(|clients| clients.python("openai_client.py")).await;
}

#[tokio::test]
async fn the_official_openai_client_for_javascript_works_unchanged() {
    works(|clients| clients.node("openai_client.js")).await;
}

#[tokio::test]
async fn the_official_anthropic_client_works_unchanged() {
    works(|clients| clients.python("anthropic_client.py")).await;
}

#[tokio::test]
async fn langchain_with_its_openai_provider_works_unchanged() {
    works(|clients| clients.python("langchain_client.py")).await;
}

#[tokio::test]
async fn the_vercel_ai_sdk_with_its_openai_compatible_provider_works_unchanged() {
    works(|clients| clients.node("vercel_ai_client.js")).await;
}

/// Runs a client's script, in an environment without the user's settings, against a cluster of its own.
async fn works(script: impl FnOnce(&Clients) -> Command) {
    let mut command = script(&Clients::installed(env!("CARGO_TARGET_TMPDIR")));
    let pace = ["--heartbeat-interval-ms", "1000", "--heartbeat-ttl-ms", "10000"];
    // Longer than a busy machine keeps a client from its second request.
    let queue = ["--queue-max", "1", "--queue-timeout-ms", "8000"];
    let cluster = Cluster::with(pace.iter().chain(&queue).chain(&["--api-key", KEY])).await;
    // More slots than requests that a script sends at once: none has to wait.
    let _smollm2 = cluster.worker_with(models::SMOLLM2, &["--slots", "8"]).await;
    let _gemma3 = cluster.worker(models::GEMMA3).await;
    let mut busy = FakeWorker::start(BUSY, BUSY).await;
    busy.behave(Manner::Hangs);
    busy.beat_on(&cluster.url(), Duration::from_millis(500));
    for model in [models::SMOLLM2, models::GEMMA3, BUSY] {
        cluster.until_ready(model, 1).await;
    }
    let request = http::client().post(cluster.chat_url()).bearer_auth(KEY);
    let _answered_never = tokio::spawn(request.json(&chat_body(BUSY, "hello")).send());
    eventually("the busy worker is busy", async || (busy.asked() == 1).then_some(())).await;

    command
        .env_clear()
        .env("OPENAI_BASE_URL", format!("{}/v1", cluster.url()))
        .env("OPENAI_API_KEY", KEY)
        .env("ANTHROPIC_BASE_URL", cluster.url())
        .env("ANTHROPIC_API_KEY", KEY)
        .env("PYTHONDONTWRITEBYTECODE", "1");
    let mut process = Process::spawn(command.into());
    let status = process.ended_within(LIMIT).await;
    assert!(status.success(), "{status}:\n{}", process.log());
}
