//! What a model's header lets expect, beside what a worker really takes once its KV cache is full.

use model_format::Backend;
use rbee_tests::{eventually, http, models};
use serde_json::json;

use crate::Result;
use crate::programs::{daemon, status_bytes};

/// Contexts of which the cache is filled, in tokens.
const CONTEXTS: [u64; 2] = [2_048, 8_192];

pub(crate) async fn measure() -> Result<()> {
    println!("| model | context | estimate MiB | ready MiB | full MiB | estimate / full |");
    println!("|---|---|---|---|---|---|");
    for (name, path) in [
        (models::SMOLLM2, models::smollm2().await),
        (models::GEMMA3, models::gemma3().await),
    ] {
        let facts = model_format::facts(&path).map_err(|error| format!("read the header of {name}: {error}"))?;
        let need = facts.memory(Backend::Cpu);
        for context in CONTEXTS {
            let (ready, full) = fill(name, context, u64::from(facts.vocab_size)).await?;
            let estimate = need.total(context);
            println!(
                "| {name} | {context} | {} | {} | {} | {:.3} |",
                estimate >> 20,
                ready >> 20,
                full >> 20,
                estimate as f64 / full as f64
            );
        }
    }
    Ok(())
}

/// Resident bytes of a worker when it is ready, and at most while it fills its cache.
async fn fill(model: &str, context: u64, vocab: u64) -> Result<(u64, u64)> {
    let tokens = context.to_string();
    let args = [
        "--model",
        model,
        "--context-length",
        &tokens,
        "--kv-tokens",
        &tokens,
        "--slots",
        "1",
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
    let answer = http::post(format!("{}/v1/completions", worker.url()), &body).await;
    if answer.status != 200 {
        return Err(format!("fill the cache of {model}: {}", answer.message()));
    }
    Ok((ready, status_bytes(worker.pid(), "VmHWM")?))
}
