use batch_engine::{Event, FinishReason};

use crate::fake::{END, FakeModel, Verdict, last, part};
use crate::{options, read, submit};

#[tokio::test]
async fn a_long_prompt_is_prefilled_in_chunks_while_the_others_go_on_decoding() {
    let (engine, model) = FakeModel::new().start_held(options(4, 4));
    let _first = submit(&engine, &[10], 20);
    assert_eq!(model.step(), [last(0, &[10])]);
    assert_eq!(model.held_step(), [last(0, &[11])]);
    let _long = submit(&engine, &[50, 51, 52, 53, 54, 55, 56, 57, 58, 59], 20);
    model.end_step(Verdict::Go);
    assert_eq!(model.step(), [last(0, &[12]), part(1, &[50, 51, 52, 53])]);
    assert_eq!(model.step(), [last(0, &[13]), part(1, &[54, 55, 56, 57])]);
    assert_eq!(model.step(), [last(0, &[14]), last(1, &[58, 59])]);
    assert_eq!(model.step(), [last(0, &[15]), last(1, &[60])]);
}

#[tokio::test]
async fn the_oldest_prompt_is_prefilled_first_and_the_next_gets_what_is_left_of_the_chunk() {
    let (engine, model) = FakeModel::new().start_held(options(4, 4));
    let _first = submit(&engine, &[90], 2);
    model.held_step();
    let _a = submit(&engine, &[10, 11, 12, 13, 14, 15], 5);
    let _b = submit(&engine, &[20, 21, 22], 5);
    let _c = submit(&engine, &[30, 31], 5);
    model.end_step(Verdict::Go);
    assert_eq!(model.step(), [last(0, &[91]), part(1, &[10, 11, 12, 13])]);
    assert_eq!(model.step(), [last(1, &[14, 15]), part(2, &[20, 21])]);
    assert_eq!(model.step(), [last(1, &[16]), last(2, &[22]), last(3, &[30, 31])]);
}

#[tokio::test]
async fn sequences_join_and_leave_between_steps() {
    let (engine, model) = FakeModel::new().start_held(options(4, 256));
    let mut short = submit(&engine, &[10], 1);
    assert_eq!(model.held_step(), [last(0, &[10])]);
    let mut long = submit(&engine, &[20], 3);
    model.end_step(Verdict::Go);
    assert_eq!(model.step(), [last(1, &[20])]);
    assert_eq!(
        read(&mut short).await,
        (vec![11], Event::Finished(FinishReason::Length))
    );
    assert_eq!(model.step(), [last(1, &[21])]);
    assert_eq!(model.step(), [last(1, &[22])]);
    assert_eq!(
        read(&mut long).await,
        (vec![21, 22, 23], Event::Finished(FinishReason::Length))
    );
}

#[tokio::test]
async fn an_answer_has_exactly_as_many_tokens_as_asked() {
    let engine = FakeModel::new().start(options(4, 256));
    for max_tokens in [1, 2, 3, 40] {
        let (tokens, end) = read(&mut submit(&engine, &[10], max_tokens)).await;
        let expected: Vec<u32> = (11..).take(max_tokens).collect();
        assert_eq!((tokens, end), (expected, Event::Finished(FinishReason::Length)));
    }
}

#[tokio::test]
async fn the_end_token_ends_the_answer_and_is_not_part_of_it() {
    let engine = FakeModel::new().start(options(4, 256));
    let mut answer = submit(&engine, &[END - 3], 50);
    assert_eq!(
        read(&mut answer).await,
        (vec![END - 2, END - 1], Event::Finished(FinishReason::EndOfText))
    );
    assert_eq!(answer.next().await, None);
    let mut empty = submit(&engine, &[END - 1], 50);
    assert_eq!(
        read(&mut empty).await,
        (vec![], Event::Finished(FinishReason::EndOfText))
    );
}

#[tokio::test]
async fn a_sequence_is_opened_for_its_prompt_and_its_answer_together() {
    let model = FakeModel::new();
    let log = model.log();
    let engine = model.start(options(4, 256));
    read(&mut submit(&engine, &[1, 2, 3], 4)).await;
    assert_eq!(log.lock().unwrap().opened, [7]);
}
