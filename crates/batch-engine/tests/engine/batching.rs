use batch_engine::{Event, FinishReason};

use crate::fake::{END, FakeModel, Verdict, last, part};
use crate::{options, read, submit};

#[tokio::test]
async fn a_long_prompt_is_prefilled_in_chunks_while_the_others_go_on_decoding() {
    let (engine, model) = FakeModel::new().start_held(options(4, 4));
    let _first = submit(&engine, &[10], 20);
    assert_eq!(model.step(), [last(0, &[10])]);
    assert_eq!(model.held_step(), [last(1, &[11])]);
    let _long = submit(&engine, &[50, 51, 52, 53, 54, 55, 56, 57, 58, 59], 20);
    model.end_step(Verdict::Go);
    assert_eq!(model.step(), [last(2, &[12]), part(0, &[50, 51, 52, 53])]);
    assert_eq!(model.step(), [last(3, &[13]), part(4, &[54, 55, 56, 57])]);
    assert_eq!(model.step(), [last(4, &[14]), last(8, &[58, 59])]);
    assert_eq!(model.step(), [last(5, &[15]), last(10, &[60])]);
}

#[tokio::test]
async fn the_oldest_prompt_gets_half_of_the_chunk_and_the_shortest_the_rest() {
    let (engine, model) = FakeModel::new().start_held(options(4, 8));
    let _first = submit(&engine, &[90], 2);
    model.held_step();
    let long: Vec<u32> = (10..30).collect();
    let _long = submit(&engine, &long, 5);
    let _middle = submit(&engine, &[30, 31, 32, 33, 34, 35], 5);
    let _short = submit(&engine, &[40, 41], 5);
    model.end_step(Verdict::Go);
    assert_eq!(
        model.step(),
        [
            last(1, &[91]),
            part(0, &long[..4]),
            part(0, &[30, 31]),
            last(0, &[40, 41])
        ]
    );
    assert_eq!(
        model.step(),
        [part(4, &long[4..8]), last(2, &[32, 33, 34, 35]), last(2, &[42])]
    );
    assert_eq!(
        model.step(),
        [part(8, &long[8..16]), last(6, &[36]), last(3, &[43])],
        "what nobody else needs is the oldest's"
    );
}

#[tokio::test]
async fn a_long_prompt_goes_on_however_many_short_ones_arrive() {
    let (engine, model) = FakeModel::new().start_held(options(3, 4));
    let long: Vec<u32> = (0..60).collect();
    let _long = submit(&engine, &long, 5);
    model.held_step();
    let mut positions = Vec::new();
    let mut short = Vec::new();
    for number in 0..19 {
        short.push(submit(&engine, &[50 + number, 60, 70], 1));
        model.end_step(Verdict::Go);
        let step = model.held_step();
        positions.push(step[0].position);
        assert!(step.iter().map(|seen| seen.tokens.len()).sum::<usize>() <= 4);
    }
    assert!(
        positions.windows(2).all(|pair| pair[1] >= pair[0] + 2),
        "two tokens a step at least: {positions:?}"
    );
}

#[tokio::test]
async fn sequences_join_and_leave_between_steps() {
    let (engine, model) = FakeModel::new().start_held(options(4, 256));
    let mut short = submit(&engine, &[10], 1);
    assert_eq!(model.held_step(), [last(0, &[10])]);
    let mut long = submit(&engine, &[20], 3);
    model.end_step(Verdict::Go);
    assert_eq!(model.step(), [last(0, &[20])]);
    assert_eq!(
        read(&mut short).await,
        (vec![11], Event::Finished(FinishReason::Length))
    );
    assert_eq!(model.step(), [last(1, &[21])]);
    assert_eq!(model.step(), [last(2, &[22])]);
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
