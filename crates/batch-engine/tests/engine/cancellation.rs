use batch_engine::Pooling;

use crate::fake::{FakeModel, Verdict, hidden, last, part};
use crate::{options, submit, until_idle};

#[tokio::test]
async fn a_request_cancelled_while_it_waits_leaves_the_queue_at_once() {
    let (engine, model) = FakeModel::new().start_held(options(1, 256));
    let _running = submit(&engine, &[10], 1);
    model.held_step();
    let waiting = submit(&engine, &[20, 21], 2);
    let _next = submit(&engine, &[30], 3);
    assert_eq!(engine.load().waiting, 2);
    drop(waiting);
    assert_eq!((engine.load().waiting, engine.counters().cancelled), (1, 1));
    model.end_step(Verdict::Go);
    assert_eq!(model.held_step(), [last(0, &[30])], "the cancelled one is never run");
}

#[tokio::test]
async fn a_request_cancelled_while_it_is_prefilled_is_gone_at_the_next_step() {
    let (engine, model) = FakeModel::new().start_held(options(1, 2));
    let cancelled = submit(&engine, &[10, 11, 12, 13], 5);
    let _next = submit(&engine, &[20], 5);
    assert_eq!(model.held_step(), [part(0, &[10, 11])]);
    assert_eq!(engine.load().kv_reserved_tokens, 12, "three blocks for nine tokens");
    drop(cancelled);
    model.end_step(Verdict::Go);
    assert_eq!(
        model.held_step(),
        [last(0, &[20])],
        "its slot and its room are the next one's"
    );
    assert_eq!((engine.load().running, engine.load().kv_reserved_tokens), (1, 8));
    assert_eq!(engine.load().kv_cached_tokens, 0, "its block was not full");
    assert_eq!((engine.counters().cancelled, engine.counters().prefill_tokens), (1, 2));
}

#[tokio::test]
async fn a_request_cancelled_while_it_decodes_is_gone_at_the_next_step() {
    let (engine, model) = FakeModel::new().start_held(options(2, 256));
    let cancelled = submit(&engine, &[10, 11, 12, 13], 500);
    model.held_step();
    let _other = submit(&engine, &[20], 50);
    model.end_step(Verdict::Go);
    assert_eq!(model.held_step(), [last(4, &[14]), last(0, &[20])]);
    drop(cancelled);
    model.end_step(Verdict::Go);
    assert_eq!(model.held_step(), [last(1, &[21])]);
    let load = engine.load();
    assert_eq!(
        (load.running, load.kv_used_tokens, load.kv_cached_tokens),
        (1, 4, 4),
        "its full block is kept, the other is free"
    );
}

#[tokio::test]
async fn an_embedding_that_nobody_waits_for_is_gone_at_the_next_step() {
    let (engine, model) = FakeModel::new().start_held(options(1, 2));
    let cancelled = engine.embed(vec![1, 2, 3, 4, 5, 6], Pooling::Mean).unwrap();
    let waiting = engine.embed(vec![7], Pooling::Mean).unwrap();
    let _next = submit(&engine, &[20], 5);
    assert_eq!(model.held_step(), [hidden(0, &[1, 2])]);
    drop(cancelled);
    drop(waiting);
    assert_eq!((engine.load().waiting, engine.counters().cancelled), (1, 1));
    model.end_step(Verdict::Go);
    assert_eq!(model.held_step(), [last(0, &[20])]);
    assert_eq!((engine.load().running, engine.load().kv_used_tokens), (1, 4));
    assert_eq!(engine.counters().cancelled, 2);
}

#[tokio::test]
async fn cancelling_the_only_request_leaves_an_idle_engine() {
    let (engine, model) = FakeModel::new().start_held(options(2, 256));
    let cancelled = submit(&engine, &[10], 500);
    model.held_step();
    drop(cancelled);
    model.end_step(Verdict::Go);
    until_idle(&engine).await;
    let counters = engine.counters();
    assert_eq!((counters.steps, counters.cancelled, counters.finished), (1, 1, 0));
    assert_eq!(engine.load().kv_reserved_tokens, 0);
}

#[tokio::test]
async fn dropping_a_complete_answer_cancels_nothing() {
    let engine = FakeModel::new().start(options(2, 256));
    drop({
        let mut answer = submit(&engine, &[10], 2);
        crate::read(&mut answer).await;
        answer
    });
    assert_eq!((engine.counters().cancelled, engine.counters().finished), (0, 1));
}
