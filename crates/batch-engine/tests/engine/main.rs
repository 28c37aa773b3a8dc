//! The engine's behaviour, proven with a fake model whose steps the tests hold and release.

mod fake;
mod pages;

mod admission;
mod batching;
mod cancellation;
mod constraints;
mod embeddings;
mod failure;
mod lifecycle;
mod logprobs;
mod prefixes;
mod readers;
mod resumed;
mod seeds;

use std::num::NonZeroUsize;

use batch_engine::{EngineHandle, EngineOptions, Event, Generation, Request};

/// Options with these numbers of slots and of prompt tokens per step.
fn options(max_sequences: usize, prefill_chunk: usize) -> EngineOptions {
    EngineOptions {
        max_sequences: NonZeroUsize::new(max_sequences).unwrap(),
        prefill_chunk: NonZeroUsize::new(prefill_chunk).unwrap(),
        ..EngineOptions::default()
    }
}

/// A greedy request.
fn request(prompt: &[u32], max_tokens: usize) -> Request {
    Request {
        prompt: prompt.to_vec(),
        max_tokens,
        ..Request::default()
    }
}

fn submit(engine: &EngineHandle, prompt: &[u32], max_tokens: usize) -> Generation {
    engine.submit(request(prompt, max_tokens)).unwrap()
}

/// All tokens of an answer, and how it ended.
async fn read(generation: &mut Generation) -> (Vec<u32>, Event) {
    let mut tokens = Vec::new();
    loop {
        match generation.next().await.expect("an answer has an end") {
            Event::Token(token) => tokens.push(token.id),
            end => return (tokens, end),
        }
    }
}

/// The next event's token.
async fn next_token(generation: &mut Generation) -> u32 {
    match generation.next().await {
        Some(Event::Token(token)) => token.id,
        other => panic!("{other:?} instead of a token"),
    }
}

/// Waits until no sequence runs and none waits.
async fn until_idle(engine: &EngineHandle) {
    let mut load = engine.watch_load();
    load.wait_for(|load| load.running == 0 && load.waiting == 0)
        .await
        .unwrap();
}
