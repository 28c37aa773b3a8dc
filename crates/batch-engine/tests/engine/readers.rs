use std::num::NonZeroUsize;

use batch_engine::{EngineOptions, Event, FinishReason};

use crate::fake::{FakeModel, Verdict, last};
use crate::{options, read, submit, until_idle};

fn two_tokens_buffered() -> EngineOptions {
    EngineOptions {
        token_buffer: NonZeroUsize::new(2).unwrap(),
        ..options(2, 256)
    }
}

#[tokio::test]
async fn a_reader_that_stays_behind_pauses_its_own_sequence_and_no_other() {
    let (engine, model) = FakeModel::new().start_held(two_tokens_buffered());
    let mut quick = submit(&engine, &[50], 20);
    model.held_step();
    let mut slow = submit(&engine, &[10], 20);
    model.end_step(Verdict::Go);

    assert_eq!(model.held_step(), [last(0, &[51]), last(1, &[10])]);
    assert_eq!(quick.next().await, Some(Event::Token(51)));
    model.end_step(Verdict::Go);
    assert_eq!(model.held_step(), [last(0, &[52]), last(1, &[11])]);
    assert_eq!(quick.next().await, Some(Event::Token(52)));
    model.end_step(Verdict::Go);
    for token in 53..60 {
        assert_eq!(
            model.held_step(),
            [last(0, &[token])],
            "two tokens wait for the slow reader"
        );
        assert_eq!(quick.next().await, Some(Event::Token(token)));
        model.end_step(Verdict::Go);
    }

    assert_eq!(model.held_step(), [last(0, &[60])]);
    assert_eq!(quick.next().await, Some(Event::Token(60)));
    assert_eq!(slow.next().await, Some(Event::Token(11)));
    model.end_step(Verdict::Go);
    assert_eq!(
        model.held_step(),
        [last(0, &[61]), last(1, &[12])],
        "it goes on where it paused"
    );
}

#[tokio::test]
async fn a_paused_sequence_goes_on_when_nothing_else_wakes_the_engine() {
    let engine = FakeModel::new().start(two_tokens_buffered());
    let mut answer = submit(&engine, &[10], 40);
    let mut load = engine.watch_load();
    // The prompt and one token are fed, the second token is held back: the sequence has paused.
    load.wait_for(|load| load.kv_used_tokens == 2).await.unwrap();
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
    engine
        .watch_load()
        .wait_for(|load| load.kv_used_tokens == 2)
        .await
        .unwrap();
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
