use std::sync::Arc;

use batch_engine::{EngineState, Event, FinishReason, SubmitError};

use crate::fake::{FakeModel, Verdict, last, part};
use crate::{options, read, request, submit, until_idle};

#[tokio::test]
async fn a_draining_engine_finishes_what_runs_and_waits_and_takes_nothing_new() {
    let model = FakeModel::new();
    let log = model.log();
    let (engine, model) = model.start_held(options(1, 256));
    let mut running = submit(&engine, &[10], 3);
    model.held_step();
    let mut waiting = submit(&engine, &[20], 3);
    engine.drain();
    assert_eq!(*engine.state().borrow(), EngineState::Draining);
    assert_eq!(engine.submit(request(&[30], 3)).unwrap_err(), SubmitError::Draining);
    model.end_step(Verdict::Go);
    drop(model);
    assert_eq!(
        read(&mut running).await,
        (vec![11, 12, 13], Event::Finished(FinishReason::Length))
    );
    assert_eq!(
        read(&mut waiting).await,
        (vec![21, 22, 23], Event::Finished(FinishReason::Length))
    );
    engine.stopped().await;
    assert_eq!(*engine.state().borrow(), EngineState::Stopped);
    assert_eq!(Arc::strong_count(&log), 1, "the model is dropped");
    assert_eq!(engine.submit(request(&[30], 3)).unwrap_err(), SubmitError::Draining);
    engine.drain();
    assert_eq!(*engine.state().borrow(), EngineState::Stopped);
}

#[tokio::test]
async fn an_idle_engine_drains_at_once() {
    let engine = FakeModel::new().start(options(1, 4));
    read(&mut submit(&engine, &[1], 1)).await;
    engine.drain();
    engine.stopped().await;
    assert_eq!(*engine.state().borrow(), EngineState::Stopped);
}

#[tokio::test]
async fn dropping_all_handles_ends_the_thread_after_the_last_answer() {
    let model = FakeModel::new();
    let log = model.log();
    let (engine, model) = model.start_held(options(1, 256));
    let mut state = engine.state();
    let mut answer = submit(&engine, &[10], 3);
    model.held_step();
    let clone = engine.clone();
    drop(engine);
    assert_eq!(*state.borrow(), EngineState::Running);
    drop(clone);
    assert_eq!(*state.borrow(), EngineState::Draining);
    drop(model);
    assert_eq!(read(&mut answer).await.0, [11, 12, 13]);
    state.wait_for(|state| *state == EngineState::Stopped).await.unwrap();
    assert_eq!(Arc::strong_count(&log), 1, "the model is dropped");
}

#[tokio::test]
async fn load_and_counters_tell_what_is_going_on() {
    let model = FakeModel {
        blocks: 1250,
        ..FakeModel::new()
    };
    let (engine, model) = model.start_held(options(2, 3));
    assert_eq!((engine.max_sequences(), engine.context_length()), (2, 1000));
    let mut first = submit(&engine, &[10, 11, 12, 13], 2);
    assert_eq!(model.held_step(), [part(0, &[10, 11, 12])]);
    let load = engine.load();
    assert_eq!(
        (load.running, load.kv_used_tokens, load.kv_reserved_tokens),
        (1, 4, 8),
        "a block is held, and another is promised"
    );
    assert_eq!((load.kv_total_tokens, load.tokens_per_second), (5000, 0.0));
    let mut second = submit(&engine, &[20], 2);
    let third = submit(&engine, &[30], 2);
    model.end_step(Verdict::Go);

    assert_eq!(model.held_step(), [last(3, &[13]), last(0, &[20])]);
    let load = engine.load();
    assert_eq!(
        (load.running, load.waiting, load.kv_used_tokens, load.kv_reserved_tokens),
        (2, 1, 8, 12)
    );
    model.end_step(Verdict::Go);

    model.held_step();
    let load = engine.load();
    assert_eq!(
        (load.running, load.kv_used_tokens, load.kv_reserved_tokens),
        (2, 12, 12)
    );
    assert!(load.tokens_per_second > 0.0);
    drop(third);
    drop(model);
    read(&mut first).await;
    read(&mut second).await;
    until_idle(&engine).await;
    assert_eq!(
        engine.load().tokens_per_second,
        0.0,
        "its last speed is not told for ever"
    );
    let counters = engine.counters();
    assert_eq!(
        (counters.prefill_tokens, counters.decode_tokens, counters.steps),
        (5, 4, 3)
    );
    assert_eq!((counters.finished, counters.cancelled, counters.failed), (2, 1, 0));
    assert!(!counters.step_time.is_zero());
}

#[tokio::test]
async fn when_an_answer_has_ended_its_slot_is_free_already() {
    let engine = FakeModel::new().start(options(1, 4));
    for _ in 0..50 {
        read(&mut submit(&engine, &[1], 3)).await;
        assert_eq!((engine.load().running, engine.load().kv_reserved_tokens), (0, 0));
    }
}
