use batch_engine::{Pooling, SubmitError};

use crate::fake::{FakeModel, VOCAB_SIZE, Verdict, hidden, hidden_state, last, part};
use crate::{options, read, submit, until_idle};

#[tokio::test]
async fn the_mean_is_of_all_tokens_however_they_are_cut_into_steps() {
    for chunk in [1, 3, 256] {
        let engine = FakeModel::new().start(options(2, chunk));
        let tokens: Vec<u32> = (10..21).collect();
        let embedding = engine.embed(tokens, Pooling::Mean).unwrap().await;
        assert_eq!(embedding, Ok(vec![15.0, 5.0]), "the mean token, and the mean position");
    }
}

#[tokio::test]
async fn the_last_tokens_hidden_state_is_asked_for_at_the_end_only() {
    let (engine, model) = FakeModel::new().start_held(options(2, 4));
    let embedding = engine.embed((10..16).collect(), Pooling::Last).unwrap();
    assert_eq!(model.step(), [part(0, &[10, 11, 12, 13])]);
    assert_eq!(model.step(), [hidden(4, &[14, 15])]);
    assert_eq!(embedding.await, Ok(hidden_state(5, 15).to_vec()));
    until_idle(&engine).await;
    assert_eq!((engine.counters().finished, engine.counters().prefill_tokens), (1, 6));
}

#[tokio::test]
async fn texts_share_steps_with_answers_and_leave_nothing_behind() {
    let (engine, model) = FakeModel::new().start_held(options(3, 8));
    let mut answer = submit(&engine, &[10], 3);
    model.held_step();
    let text: Vec<u32> = (50..62).collect();
    let first = engine.embed(text.clone(), Pooling::Mean).unwrap();
    let second = engine.embed(text.clone(), Pooling::Mean).unwrap();
    model.end_step(Verdict::Go);
    assert_eq!(model.step(), [last(1, &[11]), hidden(0, &text[..8])]);
    assert_eq!(
        model.step(),
        [last(2, &[12]), hidden(8, &text[8..]), hidden(0, &text[..4])],
        "nobody waits for a text's blocks"
    );
    drop(model);
    read(&mut answer).await;
    assert_eq!(first.await, second.await);
    assert_eq!((engine.load().running, engine.load().kv_cached_tokens), (0, 0));
    assert_eq!(engine.counters().prefix_lookup_tokens, 0);
}

#[tokio::test]
async fn a_text_may_fill_the_context_and_not_more() {
    let engine = FakeModel {
        context_length: 10,
        ..FakeModel::new()
    }
    .start(options(1, 4));
    assert!(engine.embed(vec![1; 10], Pooling::Mean).unwrap().await.is_ok());
    let refused = |tokens: Vec<u32>| engine.embed(tokens, Pooling::Mean).unwrap_err();
    assert_eq!(
        refused(vec![1; 11]),
        SubmitError::TextTooLong {
            tokens: 11,
            context_length: 10
        }
    );
    assert_eq!(refused(vec![]), SubmitError::EmptyPrompt);
    assert_eq!(
        refused(vec![100]),
        SubmitError::UnknownToken {
            token: 100,
            vocab_size: VOCAB_SIZE
        }
    );
}

#[tokio::test]
async fn a_broken_model_tells_those_who_wait_for_embeddings() {
    let (engine, model) = FakeModel::new().start_held(options(1, 256));
    let running = engine.embed(vec![1, 2], Pooling::Mean).unwrap();
    let waiting = engine.embed(vec![3], Pooling::Last).unwrap();
    model.held_step();
    model.end_step(Verdict::TooFewValues);
    let reason = "the model returned 3 values instead of 4".to_owned();
    assert_eq!(running.await, Err(reason.clone()));
    assert_eq!(waiting.await, Err(reason));
    assert_eq!(engine.counters().failed, 2);
}

#[tokio::test]
async fn a_draining_engine_finishes_its_embeddings() {
    let (engine, model) = FakeModel::new().start_held(options(1, 256));
    let embedding = engine.embed(vec![1, 2], Pooling::Last).unwrap();
    engine.drain();
    drop(model);
    assert_eq!(embedding.await, Ok(hidden_state(1, 2).to_vec()));
    assert_eq!(engine.embed(vec![1], Pooling::Mean).unwrap_err(), SubmitError::Draining);
    engine.stopped().await;
}
