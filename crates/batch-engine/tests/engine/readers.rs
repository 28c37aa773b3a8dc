use std::num::NonZeroUsize;

use batch_engine::{EngineHandle, EngineOptions, Event, FinishReason};

use crate::fake::{FakeModel, Verdict, last};
use crate::{next_token, options, read, submit, until_idle};

fn two_tokens_buffered() -> EngineOptions {
    EngineOptions {
        token_buffer: NonZeroUsize::new(2).unwrap(),
        ..options(2, 256)
    }
}

/// Waits until two tokens are there for a reader that takes none. What has room for two only is then paused.
async fn until_paused(engine: &EngineHandle) {
    let mut load = engine.watch_load();
    while engine.counters().decode_tokens < 2 {
        load.changed().await.unwrap();
    }
}

#[tokio::test]
async fn a_reader_that_stays_behind_pauses_its_own_sequence_and_no_other() {
    let (engine, model) = FakeModel::new().start_held(two_tokens_buffered());
    let mut quick = submit(&engine, &[50], 20);
    model.held_step();
    let mut slow = submit(&engine, &[10], 20);
    model.end_step(Verdict::Go);

    assert_eq!(model.held_step(), [last(1, &[51]), last(0, &[10])]);
    assert_eq!(next_token(&mut quick).await, 51);
    model.end_step(Verdict::Go);
    assert_eq!(model.held_step(), [last(2, &[52]), last(1, &[11])]);
    assert_eq!(next_token(&mut quick).await, 52);
    model.end_step(Verdict::Go);
    for token in 53..60 {
        assert_eq!(
            model.held_step(),
            [last(token as usize - 50, &[token])],
            "two tokens wait for the slow reader"
        );
        assert_eq!(next_token(&mut quick).await, token);
        model.end_step(Verdict::Go);
    }

    assert_eq!(model.held_step(), [last(10, &[60])]);
    assert_eq!(next_token(&mut quick).await, 60);
    assert_eq!(next_token(&mut slow).await, 11);
    model.end_step(Verdict::Go);
    assert_eq!(
        model.held_step(),
        [last(11, &[61]), last(2, &[12])],
        "it goes on where it paused"
    );
}

#[tokio::test]
async fn a_paused_sequence_goes_on_when_nothing_else_wakes_the_engine() {
    let engine = FakeModel::new().start(two_tokens_buffered());
    let mut answer = submit(&engine, &[10], 40);
    until_paused(&engine).await;
    assert_eq!(
        read(&mut answer).await,
        ((11..51).collect(), Event::Finished(FinishReason::Length))
    );
}

#[tokio::test]
async fn an_answer_that_ends_while_its_reader_is_behind_keeps_no_slot() {
    let engine = FakeModel::new().start(two_tokens_buffered());
    let mut answer = submit(&engine, &[10], 2);
    until_idle(&engine).await;
    assert_eq!(
        read(&mut answer).await,
        (vec![11, 12], Event::Finished(FinishReason::Length))
    );
}

#[tokio::test]
async fn a_paused_reader_that_leaves_frees_its_slot() {
    let engine = FakeModel::new().start(two_tokens_buffered());
    let answer = submit(&engine, &[10], 40);
    until_paused(&engine).await;
    drop(answer);
    until_idle(&engine).await;
    assert_eq!(engine.counters().cancelled, 1);
}

#[tokio::test]
async fn a_read_that_is_given_up_loses_no_token() {
    let (engine, model) = FakeModel::new().start_held(two_tokens_buffered());
    let mut answer = submit(&engine, &[10], 2);
    model.held_step();
    tokio::select! {
        biased;
        event = answer.next() => panic!("{event:?} came before its step"),
        () = std::future::ready(()) => {}
    }
    drop(model);
    assert_eq!(read(&mut answer).await.0, [11, 12]);
}
