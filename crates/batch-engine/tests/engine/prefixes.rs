use batch_engine::{EngineOptions, Request};

use crate::fake::{FakeModel, Verdict, all, last, part};
use crate::{next_token, options, read, request, submit, until_idle};

fn tokens(range: std::ops::Range<u32>) -> Vec<u32> {
    range.collect()
}

#[tokio::test]
async fn a_prompt_that_was_seen_is_run_from_its_first_block_that_was_not_full() {
    let (engine, model) = FakeModel::new().start_held(options(1, 256));
    let mut first = submit(&engine, &tokens(10..19), 1);
    assert_eq!(model.step(), [last(0, &tokens(10..19))]);
    read(&mut first).await;
    let mut second = submit(&engine, &tokens(10..19), 1);
    assert_eq!(second.cached_tokens(), 0, "not known before the first event");
    assert_eq!(model.held_step(), [last(8, &[18])]);
    let load = engine.load();
    assert_eq!(
        (load.kv_used_tokens, load.kv_reserved_tokens, load.kv_cached_tokens),
        (12, 12, 0),
        "two blocks from the cache and one of its own"
    );
    model.end_step(Verdict::Go);
    assert_eq!(read(&mut second).await.0, [19]);
    assert_eq!((first.cached_tokens(), second.cached_tokens()), (0, 8));
    let counters = engine.counters();
    assert_eq!(
        (
            counters.prefill_tokens,
            counters.prefix_hit_tokens,
            counters.prefix_lookup_tokens
        ),
        (10, 8, 16)
    );
}

#[tokio::test]
async fn a_prompts_last_token_is_always_run() {
    let (engine, model) = FakeModel::new().start_held(options(1, 256));
    let mut first = submit(&engine, &tokens(10..18), 1);
    model.step();
    read(&mut first).await;
    let mut second = submit(&engine, &tokens(10..18), 1);
    assert_eq!(model.step(), [last(4, &tokens(14..18))]);
    read(&mut second).await;
    until_idle(&engine).await;
    assert_eq!(
        engine.load().kv_cached_tokens,
        8,
        "the block that was run again is not kept twice"
    );
}

#[tokio::test]
async fn an_answer_is_not_run_again_when_the_conversation_goes_on() {
    let (engine, model) = FakeModel::new().start_held(options(1, 256));
    let mut answer = submit(&engine, &tokens(10..14), 5);
    (0..5).for_each(|_| drop(model.step()));
    assert_eq!(read(&mut answer).await.0, tokens(14..19));
    let _next = submit(&engine, &[&*tokens(10..19), &[50]].concat(), 1);
    assert_eq!(model.step(), [last(8, &[18, 50])]);
}

#[tokio::test]
async fn the_same_tokens_after_others_are_another_prefix() {
    let (engine, model) = FakeModel::new().start_held(options(1, 256));
    let mut first = submit(&engine, &tokens(10..19), 1);
    model.step();
    read(&mut first).await;
    let other = [&*tokens(30..34), &*tokens(14..19)].concat();
    let _other = submit(&engine, &other, 1);
    assert_eq!(model.step(), [last(0, &other)]);
}

#[tokio::test]
async fn without_a_prefix_cache_everything_is_run() {
    let (engine, model) = FakeModel::new().start_held(EngineOptions {
        prefix_cache: false,
        ..options(1, 256)
    });
    for _ in 0..2 {
        let mut answer = submit(&engine, &tokens(10..19), 1);
        assert_eq!(model.step(), [last(0, &tokens(10..19))]);
        read(&mut answer).await;
        assert_eq!(answer.cached_tokens(), 0);
    }
    let counters = engine.counters();
    assert_eq!((counters.prefix_hit_tokens, counters.prefix_lookup_tokens), (0, 0));
    assert_eq!(engine.load().kv_cached_tokens, 0);
}

#[tokio::test]
async fn what_is_only_kept_gives_way_the_least_recently_used_first_and_leaves_before_parents() {
    // Two prefixes of two blocks fill the cache; the next request needs two blocks more than are free.
    let (engine, model) = FakeModel {
        blocks: 6,
        ..FakeModel::new()
    }
    .start_held(options(1, 256));
    for start in [10, 30] {
        let mut answer = submit(&engine, &tokens(start..start + 9), 1);
        model.step();
        read(&mut answer).await;
    }
    assert_eq!((engine.load().kv_cached_tokens, engine.load().kv_used_tokens), (16, 0));
    let mut large = submit(&engine, &tokens(50..61), 1);
    assert_eq!(model.step(), [last(0, &tokens(50..61))]);
    read(&mut large).await;
    assert_eq!(engine.counters().prefix_evicted_blocks, 1);
    let mut newer = submit(&engine, &tokens(30..39), 1);
    assert_eq!(model.step(), [last(8, &[38])], "used later, kept");
    read(&mut newer).await;
    let mut older = submit(&engine, &tokens(10..19), 1);
    assert_eq!(
        model.step(),
        [last(4, &tokens(14..19))],
        "its last block went, its first is there"
    );
    read(&mut older).await;
}

#[tokio::test]
async fn what_is_only_kept_does_not_keep_a_request_waiting() {
    let (engine, model) = FakeModel {
        blocks: 6,
        ..FakeModel::new()
    }
    .start_held(options(2, 256));
    let mut first = submit(&engine, &tokens(10..30), 4);
    model.step();
    drop(model);
    read(&mut first).await;
    assert_eq!(read(&mut submit(&engine, &tokens(40..63), 1)).await.0, [63]);
}

#[tokio::test]
async fn a_shared_block_stays_while_anyone_holds_it_and_is_counted_once() {
    let (engine, model) = FakeModel::new().start_held(options(2, 256));
    let mut first = submit(&engine, &tokens(10..19), 20);
    model.step();
    assert_eq!(model.held_step(), [last(9, &[19])]);
    let _second = submit(&engine, &[&*tokens(10..18), &[60]].concat(), 3);
    model.end_step(Verdict::Go);
    assert_eq!(model.held_step(), [last(10, &[20]), last(8, &[60])]);
    assert_eq!(engine.load().kv_used_tokens, 16);
    next_token(&mut first).await;
    drop(first);
    model.end_step(Verdict::Go);
    assert_eq!(model.step(), [last(9, &[61])], "its first blocks were the other's, too");
}

#[tokio::test]
async fn of_equal_prompts_that_come_together_one_is_run_and_the_others_take_its_blocks_over() {
    let (engine, model) = FakeModel::hashing().start_held(options(4, 8));
    let prompt = tokens(20..42);
    let mut answers: Vec<_> = (0..3).map(|_| submit(&engine, &prompt, 2)).collect();
    // Which of them are there at the first step depends on the thread; the first one always is.
    assert_eq!(model.step(), [part(0, &prompt[..8])]);
    assert_eq!(model.step(), [part(8, &prompt[8..16])]);
    assert_eq!(model.step(), [last(16, &prompt[16..])]);
    let step = model.held_step();
    assert_eq!(step[1..], [last(20, &prompt[20..]), last(20, &prompt[20..])]);
    assert_eq!(
        engine.load().kv_used_tokens,
        20 + 3 * 4,
        "five blocks together, and one of each's own"
    );
    model.end_step(Verdict::Go);
    drop(model);
    let expected = read(&mut answers[0]).await;
    for answer in &mut answers[1..] {
        assert_eq!(read(answer).await, expected);
        assert_eq!(answer.cached_tokens(), 20);
    }
    assert_eq!(engine.counters().prefill_tokens, 22 + 2 + 2);
}

#[tokio::test]
async fn who_waits_for_anothers_blocks_goes_on_where_that_one_is_cancelled() {
    let (engine, model) = FakeModel::new().start_held(options(2, 8));
    let prompt = tokens(20..50);
    let leader = submit(&engine, &prompt, 2);
    let _follower = submit(&engine, &prompt, 2);
    assert_eq!(model.step(), [part(0, &prompt[..8])]);
    assert_eq!(model.held_step(), [part(8, &prompt[8..16])]);
    drop(leader);
    model.end_step(Verdict::Go);
    assert_eq!(model.step(), [part(16, &prompt[16..24])]);
}

#[tokio::test]
async fn who_shares_only_the_beginning_waits_for_that_and_no_longer() {
    let (engine, model) = FakeModel::new().start_held(options(2, 8));
    let prompt = tokens(20..50);
    let _leader = submit(&engine, &prompt, 2);
    model.held_step();
    let other = [&prompt[..12], &[70, 71]].concat();
    let _other = submit(&engine, &other, 2);
    model.end_step(Verdict::Go);
    assert_eq!(
        model.step(),
        [part(8, &prompt[8..16])],
        "the other waits for its third block"
    );
    assert_eq!(model.step(), [part(16, &prompt[16..22]), last(12, &[70, 71])]);
}

#[tokio::test]
async fn nobody_waits_for_the_same_tokens_after_others() {
    let (engine, model) = FakeModel::new().start_held(options(3, 8));
    let _first = submit(&engine, &[90], 1);
    model.held_step();
    let one = [&*tokens(10..14), &*tokens(20..28)].concat();
    let other = [&*tokens(50..54), &*tokens(20..27)].concat();
    let _one = submit(&engine, &one, 2);
    let _other = submit(&engine, &other, 2);
    model.end_step(Verdict::Go);
    assert_eq!(model.step(), [part(0, &one[..4]), part(0, &other[..4])]);
    assert_eq!(model.step(), [part(4, &one[4..8]), part(4, &other[4..8])]);
}

#[tokio::test]
async fn a_request_for_the_prompts_logprobs_runs_all_of_it_and_leaves_its_blocks_to_others() {
    let (engine, model) = FakeModel::new().start_held(options(2, 256));
    let echo = || Request {
        prompt_logprobs: true,
        ..request(&tokens(10..19), 1)
    };
    for _ in 0..2 {
        let mut answer = engine.submit(echo()).unwrap();
        assert_eq!(model.step(), [all(0, &tokens(10..19))]);
        read(&mut answer).await;
        assert_eq!(answer.cached_tokens(), 0);
    }
    let _plain = submit(&engine, &tokens(10..19), 1);
    assert_eq!(model.held_step(), [last(8, &[18])]);
    assert_eq!(engine.load().kv_cached_tokens, 0, "both have used the same blocks");
}
