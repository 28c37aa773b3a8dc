//! What the engine costs beside its model: a step without a model's work, a prompt that is in the prefix cache, and the
//! choice of a token.
//!
//! All through the public interface. `choice` includes that the model copies the logits, which `choice/copy` tells alone.

use std::hint::black_box;
use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

use batch_engine::{
    Engine, EngineHandle, EngineOptions, Event, Generation, KvLayout, Model, ModelError, Output, Request, Sampling,
    StepInput,
};
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use tokio::runtime::{Builder, Runtime};

/// Steps run for one measurement, so that admission and the first step do not count.
const STEPS: usize = 1000;

/// A model that returns the same logits for everything.
struct Idle {
    logits: Vec<f32>,
}

impl Idle {
    /// Logits that look random; token 0 ends the answer and is never probable.
    fn new(vocab_size: u32) -> Self {
        let value = |token: u32| (token.wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 20) as f32;
        Self {
            logits: (0..vocab_size)
                .map(|token| if token == 0 { -1000.0 } else { value(token) })
                .collect(),
        }
    }

    fn start(self, max_sequences: usize, prefix_cache: bool) -> EngineHandle {
        let options = EngineOptions {
            max_sequences: NonZeroUsize::new(max_sequences).unwrap(),
            prefill_chunk: NonZeroUsize::new(1 << 14).unwrap(),
            token_buffer: NonZeroUsize::new(STEPS).unwrap(),
            prefix_cache,
            ..EngineOptions::default()
        };
        Engine::start(Box::new(self), options).unwrap()
    }
}

impl Model for Idle {
    fn vocab_size(&self) -> usize {
        self.logits.len()
    }

    fn hidden_size(&self) -> usize {
        1
    }

    fn context_length(&self) -> usize {
        1 << 14
    }

    fn is_end(&self, token: u32) -> bool {
        token == 0
    }

    fn kv_layout(&self) -> KvLayout {
        KvLayout {
            block_tokens: 32,
            blocks: 1 << 13,
        }
    }

    fn step(&mut self, inputs: &[StepInput<'_>], rows: &mut Vec<f32>) -> Result<(), ModelError> {
        rows.clear();
        for _ in inputs.iter().filter(|input| input.output == Output::Last) {
            rows.extend_from_slice(&self.logits);
        }
        Ok(())
    }
}

fn read(runtime: &Runtime, mut generation: Generation) {
    runtime.block_on(async {
        while let Some(event) = generation.next().await {
            assert!(!matches!(event, Event::Failed(_)), "{event:?}");
        }
    });
}

fn runtime() -> Runtime {
    Builder::new_current_thread().build().unwrap()
}

/// The time of so many steps with so many sequences, as the engine's thread has spent it.
fn time_of_steps(
    engine: &EngineHandle,
    runtime: &Runtime,
    sequences: usize,
    sampling: &Sampling,
    steps: u64,
) -> Duration {
    let mut passed = Duration::ZERO;
    let mut done = 0;
    while done < steps {
        let before = engine.counters();
        let started = Instant::now();
        let request = || Request {
            prompt: vec![1],
            max_tokens: STEPS,
            sampling: sampling.clone(),
            ..Request::default()
        };
        let answers: Vec<_> = (0..sequences).map(|_| engine.submit(request()).unwrap()).collect();
        answers.into_iter().for_each(|answer| read(runtime, answer));
        passed += started.elapsed();
        done += engine.counters().steps - before.steps;
    }
    passed.mul_f64(steps as f64 / done as f64)
}

fn step(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("step");
    let runtime = runtime();
    for sequences in [1, 8, 64] {
        let engine = Idle::new(32).start(sequences, true);
        group.bench_function(BenchmarkId::from_parameter(sequences), |bencher| {
            bencher.iter_custom(|steps| time_of_steps(&engine, &runtime, sequences, &Sampling::default(), steps));
        });
    }
}

/// A whole request for one token, whose prompt of 4,096 tokens is in the cache, or is run by a model that takes no time.
fn prefix(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("prefix");
    let runtime = runtime();
    let long: Vec<u32> = (0..4096).map(|place| place % 31 + 1).collect();
    for (name, prompt, prefix_cache) in [
        ("one token", &long[..1], true),
        ("4096 tokens, cached", &long[..], true),
        ("4096 tokens, run", &long[..], false),
    ] {
        let engine = Idle::new(32).start(8, prefix_cache);
        let ask = || {
            engine.submit(Request {
                prompt: prompt.to_vec(),
                max_tokens: 1,
                ..Request::default()
            })
        };
        group.bench_function(name, |bencher| bencher.iter(|| read(&runtime, ask().unwrap())));
    }
}

fn choice(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("choice");
    let runtime = runtime();
    let drawn = Sampling {
        temperature: 1.0,
        seed: Some(1),
        ..Sampling::default()
    };
    let settings = [
        ("greedy", Sampling::default()),
        (
            "greedy, penalties",
            Sampling {
                repetition_penalty: 1.1,
                ..Sampling::default()
            },
        ),
        ("all", drawn.clone()),
        (
            "top_p",
            Sampling {
                top_p: 0.9,
                ..drawn.clone()
            },
        ),
        (
            "top_k, top_p",
            Sampling {
                top_k: 64.try_into().ok(),
                top_p: 0.95,
                ..drawn
            },
        ),
    ];
    for vocab_size in [50_257, 262_144] {
        let logits = Idle::new(vocab_size).logits;
        let mut rows = Vec::new();
        group.bench_function(BenchmarkId::new("copy", vocab_size), |bencher| {
            bencher.iter(|| {
                rows.clear();
                rows.extend_from_slice(black_box(&logits));
            });
        });
        for (name, sampling) in &settings {
            let engine = Idle::new(vocab_size).start(1, true);
            group.bench_function(BenchmarkId::new(*name, vocab_size), |bencher| {
                bencher.iter_custom(|steps| time_of_steps(&engine, &runtime, 1, sampling, steps));
            });
        }
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(10).warm_up_time(Duration::from_millis(500));
    targets = step, prefix, choice
}
criterion_main!(benches);
