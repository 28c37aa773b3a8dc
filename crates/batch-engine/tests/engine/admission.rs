use batch_engine::{EngineHandle, EngineOptions, Event, FinishReason, Request, Sampling, SubmitError};
use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};

use crate::fake::{FakeModel, last};
use crate::{options, read, request, submit, until_idle};

#[tokio::test]
async fn requests_start_in_the_order_of_their_arrival_as_slots_become_free() {
    let (engine, model) = FakeModel::new().start_held(options(2, 256));
    let _first = submit(&engine, &[10], 3);
    assert_eq!(model.held_step(), [last(0, &[10])]);
    let mut others = Vec::new();
    for prompt in [20, 30, 40] {
        others.push(submit(&engine, &[prompt], 2));
    }
    assert_eq!((engine.load().running, engine.load().waiting), (1, 3));
    model.end_step(crate::fake::Verdict::Go);
    assert_eq!(model.step(), [last(1, &[11]), last(0, &[20])]);
    assert_eq!(model.held_step(), [last(2, &[12]), last(1, &[21])]);
    assert_eq!((engine.load().running, engine.load().waiting), (2, 2));
    model.end_step(crate::fake::Verdict::Go);
    assert_eq!(model.step(), [last(0, &[30]), last(0, &[40])]);
}

#[tokio::test]
async fn a_request_waits_until_the_kv_cache_has_room_and_is_not_overtaken() {
    let (engine, model) = FakeModel {
        blocks: 5,
        ..FakeModel::new()
    }
    .start_held(options(8, 256));
    let _small = submit(&engine, &[10], 3);
    assert_eq!(model.held_step(), [last(0, &[10])]);
    let _large = submit(&engine, &[20], 18);
    let _late_and_small = submit(&engine, &[30], 1);
    model.end_step(crate::fake::Verdict::Go);
    assert_eq!(model.step(), [last(1, &[11])]);
    assert_eq!(model.step(), [last(2, &[12])]);
    assert_eq!(model.held_step(), [last(0, &[20])]);
    let load = engine.load();
    assert_eq!(
        (
            load.running,
            load.waiting,
            load.kv_reserved_tokens,
            load.kv_total_tokens
        ),
        (1, 1, 20, 20)
    );
}

#[tokio::test]
async fn no_mix_of_requests_exceeds_the_kv_budget_and_all_are_answered() {
    let engine = FakeModel {
        blocks: 75,
        context_length: 200,
        ..FakeModel::new()
    }
    .start(EngineOptions {
        queue_limit: 200,
        ..options(6, 16)
    });
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(1);
    let mut answers = Vec::new();
    for _ in 0..200 {
        let prompt = vec![5; rng.random_range(1..150)];
        answers.push(submit(&engine, &prompt, rng.random_range(1..30)));
    }
    // The fake model panics when a block is used twice.
    for mut answer in answers {
        let expected = answer.max_tokens();
        let (tokens, end) = read(&mut answer).await;
        assert_eq!((tokens.len(), end), (expected, Event::Finished(FinishReason::Length)));
    }
    until_idle(&engine).await;
    assert_eq!(engine.counters().finished, 200);
    assert_eq!((engine.load().kv_used_tokens, engine.load().kv_reserved_tokens), (0, 0));
}

#[tokio::test]
async fn a_prompt_that_leaves_no_room_for_an_answer_is_refused_with_both_numbers() {
    let engine = FakeModel {
        context_length: 10,
        ..FakeModel::new()
    }
    .start(options(1, 4));
    let refused = engine.submit(request(&[1; 10], 1)).unwrap_err();
    assert_eq!(
        refused,
        SubmitError::ContextLengthExceeded {
            prompt_tokens: 10,
            context_length: 10
        }
    );
    assert_eq!(read(&mut submit(&engine, &[1; 9], 1)).await.0, [2]);
}

#[tokio::test]
async fn a_kv_cache_smaller_than_the_context_bounds_what_a_request_may_have() {
    let engine = FakeModel {
        context_length: 100,
        blocks: 3,
        ..FakeModel::new()
    }
    .start(options(1, 4));
    assert_eq!(engine.context_length(), 12);
    let refused = engine.submit(request(&[1; 12], 1)).unwrap_err();
    assert_eq!(
        refused,
        SubmitError::ContextLengthExceeded {
            prompt_tokens: 12,
            context_length: 12
        }
    );
}

#[tokio::test]
async fn an_answer_ends_where_the_context_ends() {
    let engine = FakeModel {
        context_length: 10,
        ..FakeModel::new()
    }
    .start(options(1, 4));
    let mut answer = submit(&engine, &[1, 2, 3], usize::MAX);
    assert_eq!((answer.prompt_tokens(), answer.max_tokens()), (3, 7));
    assert_eq!(
        read(&mut answer).await,
        (vec![4, 5, 6, 7, 8, 9, 10], Event::Finished(FinishReason::Length))
    );
}

#[tokio::test]
async fn a_full_queue_refuses_and_free_slots_are_not_part_of_the_queue() {
    let (engine, model) = FakeModel::new().start_held(EngineOptions {
        queue_limit: 1,
        ..options(2, 256)
    });
    let _running = submit(&engine, &[10], 5);
    model.held_step();
    let _for_the_free_slot = submit(&engine, &[20], 5);
    let waiting = submit(&engine, &[30], 5);
    assert_eq!(
        engine.submit(request(&[40], 5)).unwrap_err(),
        SubmitError::QueueFull { limit: 1 }
    );
    drop(waiting);
    assert!(
        engine.submit(request(&[40], 5)).is_ok(),
        "who leaves the queue makes room"
    );
}

#[tokio::test]
async fn without_a_queue_a_request_is_taken_only_when_a_slot_is_free() {
    let (engine, model) = FakeModel::new().start_held(EngineOptions {
        queue_limit: 0,
        ..options(1, 256)
    });
    let _running = submit(&engine, &[10], 5);
    assert_eq!(
        engine.submit(request(&[20], 5)).unwrap_err(),
        SubmitError::QueueFull { limit: 0 }
    );
    model.held_step();
    assert_eq!(
        engine.submit(request(&[20], 5)).unwrap_err(),
        SubmitError::QueueFull { limit: 0 }
    );
}

#[tokio::test]
async fn what_cannot_be_served_is_refused_at_once() {
    let engine = FakeModel::new().start(options(1, 4));
    assert_eq!(engine.submit(request(&[], 1)).unwrap_err(), SubmitError::EmptyPrompt);
    let unknown = SubmitError::UnknownToken {
        token: 100,
        vocab_size: 100,
    };
    assert_eq!(engine.submit(request(&[1, 100], 1)).unwrap_err(), unknown);
    let unknown = SubmitError::UnknownBiasToken {
        token: 100,
        vocab_size: 100,
    };
    let bias = Sampling {
        logit_bias: vec![(99, 1.0), (100, 1.0)],
        ..Sampling::default()
    };
    assert_eq!(refusal(&engine, bias), unknown);
    let logprobs = Request {
        logprobs: Some(21),
        ..request(&[1], 1)
    };
    assert_eq!(engine.submit(logprobs).unwrap_err(), SubmitError::TooManyLogprobs(21));
}

fn refusal(engine: &EngineHandle, sampling: Sampling) -> SubmitError {
    let asked = Request {
        sampling,
        ..request(&[1], 1)
    };
    engine.submit(asked).unwrap_err()
}

#[tokio::test]
async fn a_sampling_field_out_of_its_range_is_named() {
    type Set = fn(&mut Sampling, f32);
    let engine = FakeModel::new().start(options(1, 4));
    let cases: [(&str, Set, &[f32]); 8] = [
        (
            "temperature",
            |sampling, value| sampling.temperature = value,
            &[-0.1, f32::INFINITY],
        ),
        ("top_p", |sampling, value| sampling.top_p = value, &[-0.1, 1.1]),
        ("min_p", |sampling, value| sampling.min_p = value, &[-0.1, 1.1]),
        ("typical_p", |sampling, value| sampling.typical_p = value, &[-0.1, 1.1]),
        (
            "repetition_penalty",
            |sampling, value| sampling.repetition_penalty = value,
            &[0.0, -1.0, f32::INFINITY],
        ),
        (
            "presence_penalty",
            |sampling, value| sampling.presence_penalty = value,
            &[f32::INFINITY],
        ),
        (
            "frequency_penalty",
            |sampling, value| sampling.frequency_penalty = value,
            &[f32::INFINITY],
        ),
        (
            "logit_bias",
            |sampling, value| sampling.logit_bias = vec![(1, value)],
            &[f32::NEG_INFINITY],
        ),
    ];
    for (name, set, values) in cases {
        for &bad in values.iter().chain(&[f32::NAN]) {
            let mut sampling = Sampling::default();
            set(&mut sampling, bad);
            let error = refusal(&engine, sampling);
            assert!(
                matches!(&error, SubmitError::InvalidSampling { field, .. } if *field == name),
                "{error:?} instead of {name}"
            );
        }
    }
    let error = refusal(
        &engine,
        Sampling {
            min_p: 1.5,
            ..Sampling::default()
        },
    );
    assert_eq!(error.to_string(), "min_p is 1.5: it must be between 0 and 1");
}

#[tokio::test]
async fn no_tokens_wanted_means_a_complete_empty_answer() {
    let model = FakeModel::new();
    let log = model.log();
    let engine = model.start(options(1, 4));
    let mut answer = submit(&engine, &[1], 0);
    assert_eq!(read(&mut answer).await, (vec![], Event::Finished(FinishReason::Length)));
    assert_eq!(answer.next().await, None);
    assert_eq!(log.lock().unwrap().tokens, 0, "the model has nothing to do");
    // Its slot goes on to the next one.
    assert_eq!(read(&mut submit(&engine, &[1], 1)).await.0, [2]);
}
