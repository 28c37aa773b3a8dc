use std::sync::Arc;

use batch_engine::{EngineHandle, EngineState, Event, KvLayout, Model, ModelError, StepInput, SubmitError};

use crate::fake::{FakeModel, HIDDEN_SIZE, VOCAB_SIZE, Verdict};
use crate::{options, read, request, submit};

/// Breaks the model at its second step, with one sequence running and one waiting; returns the engine and its reason.
async fn break_at_a_step(verdict: Verdict) -> (EngineHandle, String) {
    let model = FakeModel::new();
    let log = model.log();
    let (engine, model) = model.start_held(options(1, 256));
    let mut running = submit(&engine, &[10], 10);
    let mut waiting = submit(&engine, &[20], 10);
    model.step();
    model.held_step();
    model.end_step(verdict);
    let (tokens, end) = read(&mut running).await;
    let Event::Failed(reason) = end else { panic!("{end:?}") };
    assert_eq!(tokens, [11], "what came before is not lost");
    assert_eq!(read(&mut waiting).await, (vec![], Event::Failed(reason.clone())));
    assert_eq!(waiting.next().await, None);

    assert_eq!(*engine.state().borrow(), EngineState::Failed(reason.clone()));
    assert_eq!(
        engine.submit(request(&[1], 1)).unwrap_err(),
        SubmitError::Failed(reason.clone())
    );
    assert_eq!(
        (engine.load().running, engine.load().waiting, engine.counters().failed),
        (0, 0, 2)
    );
    engine.stopped().await;
    assert_eq!(Arc::strong_count(&log), 1, "the model is dropped");
    (engine, reason)
}

#[tokio::test]
async fn a_panicking_model_answers_everybody_and_the_engine_says_failed() {
    let (_, reason) = break_at_a_step(Verdict::Panic).await;
    assert_eq!(reason, "the model panicked: a broken kernel");
    // The process lives: another engine works.
    let engine = FakeModel::new().start(options(1, 4));
    assert_eq!(read(&mut submit(&engine, &[1], 1)).await.0, [2]);
}

#[tokio::test]
async fn a_failing_step_answers_everybody_and_the_engine_says_failed() {
    let (engine, reason) = break_at_a_step(Verdict::Error).await;
    assert_eq!(reason, "the model failed at a step: the device is gone");
    engine.drain();
    assert_eq!(*engine.state().borrow(), EngineState::Failed(reason), "failed is final");
}

#[tokio::test]
async fn a_model_that_returns_the_wrong_number_of_values_has_failed() {
    let (_, reason) = break_at_a_step(Verdict::TooFewValues).await;
    assert_eq!(reason, "the model returned 99 values instead of 100");
}

#[tokio::test]
async fn logits_that_are_no_numbers_fail_their_own_sequence_only() {
    let model = FakeModel {
        logits: Box::new(|tokens, logits| {
            let last = tokens[tokens.len() - 1];
            logits[last as usize + 1] = if last == 12 { f32::NAN } else { 1.0 };
        }),
        ..FakeModel::new()
    };
    let engine = model.start(options(2, 256));
    let mut broken = submit(&engine, &[10], 5);
    let mut sound = submit(&engine, &[20], 5);
    let reason = "the model's logits are not finite numbers";
    assert_eq!(read(&mut broken).await, (vec![11, 12], Event::Failed(reason.into())));
    assert_eq!(read(&mut sound).await.0, [21, 22, 23, 24, 25]);
}

/// A fake model that panics when it is dropped.
struct PanicsWhenDropped;

impl Drop for PanicsWhenDropped {
    fn drop(&mut self) {
        panic!("a driver that is gone");
    }
}

impl Model for PanicsWhenDropped {
    fn vocab_size(&self) -> usize {
        VOCAB_SIZE
    }
    fn hidden_size(&self) -> usize {
        HIDDEN_SIZE
    }
    fn context_length(&self) -> usize {
        10
    }
    fn is_end(&self, _: u32) -> bool {
        true
    }
    fn kv_layout(&self) -> KvLayout {
        KvLayout {
            block_tokens: 1,
            blocks: 10,
        }
    }
    fn step(&mut self, _: &[StepInput<'_>], _: &mut Vec<f32>) -> Result<(), ModelError> {
        Err(ModelError("never stepped".into()))
    }
}

#[tokio::test]
async fn a_model_that_panics_when_it_is_dropped_is_a_failure_like_others() {
    let engine = batch_engine::Engine::start(Box::new(PanicsWhenDropped), options(1, 1)).unwrap();
    engine.drain();
    engine.stopped().await;
    let reason = "the model panicked when it was dropped: a driver that is gone";
    assert_eq!(*engine.state().borrow(), EngineState::Failed(reason.into()));
}
