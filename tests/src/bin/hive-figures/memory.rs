//! What a model's header lets expect, beside what a worker really takes once its KV cache is full and it has built the
//! tables for structured output.

use model_format::Backend;
use rbee_tests::{eventually, http, models};
use serde_json::{Value, json};

use crate::Result;
use crate::programs::{daemon, status_bytes};

/// Contexts of which the cache is filled, in tokens.
const CONTEXTS: [u64; 2] = [2_048, 8_192];

pub(crate) async fn measure() -> Result<()> {
    println!("| model | context | estimate MiB | ready MiB | cache full | and a JSON schema | estimate / last |");
    println!("|---|---|---|---|---|---|---|");
    for (name, path) in [
        (models::SMOLLM2, models::smollm2().await),
        (models::GEMMA3, models::gemma3().await),
    ] {
        let facts = model_format::facts(&path).map_err(|error| format!("read the header of {name}: {error}"))?;
        let need = facts.memory(Backend::Cpu);
        for context in CONTEXTS {
            let [ready, full, structured] = fill(name, context, u64::from(facts.vocab_size)).await?;
            let estimate = need.total(context);
            println!(
                "| {name} | {context} | {} | {} | {} | {} | {:.3} |",
                estimate >> 20,
                ready >> 20,
                full >> 20,
                structured >> 20,
                estimate as f64 / structured as f64
            );
        }
    }
    Ok(())
}

/// Resident bytes of a worker when it is ready, when its cache is full, and after an answer that had to follow a schema.
async fn fill(model: &str, context: u64, vocab: u64) -> Result<[u64; 3]> {
    let tokens = context.to_string();
    // A base model has no template of its own.
    let file = tempfile::NamedTempFile::new().map_err(|error| format!("make a file: {error}"))?;
    std::fs::write(file.path(), "{% for m in messages %}{{ m.content }}{% endfor %}")
        .map_err(|error| format!("write a chat template: {error}"))?;
    let template = file.path().display().to_string();
    let args = [
        "--model",
        model,
        "--context-length",
        &tokens,
        "--kv-tokens",
        &tokens,
        "--slots",
        "1",
        "--chat-template",
        &template,
    ];
    let worker = daemon("llm-worker-rbee", &args, &[]).await?;
    eventually("the worker is ready", async || {
        (http::get(format!("{}/health", worker.url())).await.body["ready"] == true).then_some(())
    })
    .await;
    let ready = status_bytes(worker.pid(), "VmRSS")?;
    // Any tokens do: what counts is how many.
    let prompt: Vec<u64> = (0..context - 8).map(|n| 1_000 + (n * 7_919) % (vocab / 2)).collect();
    let body = json!({"model": model, "prompt": prompt, "max_tokens": 8, "temperature": 0});
    ask(&worker.url(), "completions", &body).await?;
    let full = status_bytes(worker.pid(), "VmRSS")?;
    let schema = json!({"type": "object", "properties": {"a": {"type": "string"}}});
    let body = json!({
        "model": model, "max_tokens": 8, "messages": [{"role": "user", "content": "Hello"}],
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}},
    });
    ask(&worker.url(), "chat/completions", &body).await?;
    Ok([ready, full, status_bytes(worker.pid(), "VmRSS")?])
}

async fn ask(worker: &str, endpoint: &str, body: &Value) -> Result<()> {
    let answer = http::post(format!("{worker}/v1/{endpoint}"), body).await;
    match answer.status {
        200 => Ok(()),
        _ => Err(format!("ask the worker: {}", answer.message())),
    }
}
