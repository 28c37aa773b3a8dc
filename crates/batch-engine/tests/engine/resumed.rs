use batch_engine::{Event, FinishReason, Request, Sampling, SubmitError};

use crate::fake::{BLOCK_TOKENS, FakeModel};
use crate::{options, read, request};

/// Settings in which what was said before decides what is said next.
fn settings() -> [Sampling; 4] {
    let sampled = Sampling {
        temperature: 0.9,
        seed: Some(5),
        ..Sampling::default()
    };
    [
        Sampling::default(),
        sampled.clone(),
        Sampling {
            top_p: 0.8,
            presence_penalty: 1.0,
            frequency_penalty: 0.5,
            logit_bias: vec![(7, 2.0), (8, -1.0)],
            ..sampled
        },
        Sampling {
            repetition_penalty: 1.4,
            frequency_penalty: 0.7,
            ..Sampling::default()
        },
    ]
}

#[tokio::test]
async fn an_answer_that_is_taken_up_goes_on_as_it_would_have_gone_on() {
    const PROMPT: [u32; 3] = [1, 2, 3];
    const ANSWER_TOKENS: usize = 4 * BLOCK_TOKENS + 1;
    for sampling in settings() {
        let whole = FakeModel::hashing().start(options(1, 256));
        let asked = |prompt: &[u32], resumed: usize, max_tokens: usize| Request {
            sampling: sampling.clone(),
            resumed,
            ..request(prompt, max_tokens)
        };
        let mut answer = whole.submit(asked(&PROMPT, 0, ANSWER_TOKENS)).unwrap();
        let (answer, _) = read(&mut answer).await;
        let other = FakeModel::hashing().start(options(1, 256));
        for cut in 0..=answer.len() {
            let so_far = [&PROMPT, &answer[..cut]].concat();
            let mut rest = other.submit(asked(&so_far, cut, ANSWER_TOKENS - cut)).unwrap();
            let end = Event::Finished(FinishReason::Length);
            assert_eq!(
                read(&mut rest).await,
                (answer[cut..].to_vec(), end),
                "{sampling:?}, cut at {cut}"
            );
        }
    }
}

#[tokio::test]
async fn an_answer_without_a_prompt_cannot_be_taken_up() {
    let engine = FakeModel::new().start(options(1, 256));
    for resumed in [2, 3] {
        let asked = Request {
            resumed,
            ..request(&[1, 2], 4)
        };
        assert_eq!(engine.submit(asked).err(), Some(SubmitError::EmptyPrompt));
    }
}
