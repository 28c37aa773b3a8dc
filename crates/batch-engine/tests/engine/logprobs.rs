use batch_engine::{Event, FinishReason, Generation, Request, Sampling, Token, TokenLogprobs};

use crate::fake::{FakeModel, VOCAB_SIZE, all, last};
use crate::{options, read, request};

/// A model that gives the token after the last one half of the probability, the next one a quarter, and so on for four
/// tokens; the other tokens are impossible.
fn halving_model() -> FakeModel {
    FakeModel {
        logits: Box::new(|tokens, logits| {
            logits.fill(f32::NEG_INFINITY);
            let first = tokens[tokens.len() - 1] as usize + 1;
            for (place, weight) in [0.5_f32, 0.25, 0.125, 0.125].into_iter().enumerate() {
                logits[first + place] = weight.ln() + 3.0;
            }
        }),
        ..FakeModel::new()
    }
}

async fn tokens_of(generation: &mut Generation) -> Vec<Token> {
    let mut tokens = Vec::new();
    while let Some(event) = generation.next().await {
        match event {
            Event::Token(token) => tokens.push(token),
            Event::Finished(_) => {}
            Event::Failed(reason) => panic!("{reason}"),
        }
    }
    tokens
}

fn assert_near(logprobs: &TokenLogprobs, probability: f32, top: &[(u32, f32)]) {
    let near = |logprob: f32, probability: f32| (logprob - probability.ln()).abs() < 1e-5;
    assert!(near(logprobs.logprob, probability), "{logprobs:?}");
    assert_eq!(logprobs.top.len(), top.len(), "{logprobs:?}");
    for ((id, logprob), (expected, probability)) in logprobs.top.iter().zip(top) {
        assert_eq!(id, expected);
        assert!(near(*logprob, *probability), "{logprobs:?}");
    }
}

#[tokio::test]
async fn each_token_comes_with_its_log_probability_and_the_most_probable_ones() {
    let engine = halving_model().start(options(1, 256));
    let mut answer = engine
        .submit(Request {
            logprobs: Some(3),
            ..request(&[10], 2)
        })
        .unwrap();
    let tokens = tokens_of(&mut answer).await;
    assert_eq!(tokens.iter().map(|token| token.id).collect::<Vec<_>>(), [11, 12]);
    for token in tokens {
        let (id, logprobs) = (token.id, token.logprobs.unwrap());
        assert_near(&logprobs, 0.5, &[(id, 0.5), (id + 1, 0.25), (id + 2, 0.125)]);
    }
    assert!(answer.prompt_logprobs().is_none());
}

#[tokio::test]
async fn they_are_of_the_models_own_distribution_whatever_chooses_the_token() {
    let engine = halving_model().start(options(1, 256));
    let mut answer = engine
        .submit(Request {
            logprobs: Some(1),
            sampling: Sampling {
                logit_bias: vec![(12, 50.0)],
                temperature: 0.3,
                presence_penalty: 1.0,
                seed: Some(1),
                ..Sampling::default()
            },
            ..request(&[10], 1)
        })
        .unwrap();
    let token = tokens_of(&mut answer).await.remove(0);
    assert_eq!(token.id, 12);
    assert_near(&token.logprobs.unwrap(), 0.25, &[(11, 0.5)]);
}

#[tokio::test]
async fn the_prompts_log_probabilities_are_there_with_the_first_event() {
    let (engine, model) = halving_model().start_held(options(1, 256));
    let mut answer = engine
        .submit(Request {
            prompt_logprobs: true,
            logprobs: Some(1),
            ..request(&[10, 11, 13, 50], 1)
        })
        .unwrap();
    assert!(answer.prompt_logprobs().is_none());
    drop(model);
    let Some(Event::Token(token)) = answer.next().await else {
        panic!()
    };
    assert_near(&token.logprobs.unwrap(), 0.5, &[(51, 0.5)]);
    let known = answer.prompt_logprobs().unwrap();
    assert_eq!(known.len(), 4);
    assert_eq!(known[0], None, "nothing comes before the first token");
    assert_near(known[1].as_ref().unwrap(), 0.5, &[(11, 0.5)]);
    assert_near(known[2].as_ref().unwrap(), 0.25, &[(12, 0.5)]);
    assert_eq!(known[3].as_ref().unwrap().logprob, f32::NEG_INFINITY, "impossible");
}

#[tokio::test]
async fn a_prompt_is_scored_without_an_answer_even_if_it_fills_the_context() {
    let engine = FakeModel {
        context_length: 40,
        ..FakeModel::new()
    }
    .start(options(1, 256));
    let prompt: Vec<u32> = (10..50).collect();
    let mut answer = engine
        .submit(Request {
            prompt_logprobs: true,
            ..request(&prompt, 0)
        })
        .unwrap();
    assert_eq!(read(&mut answer).await, (vec![], Event::Finished(FinishReason::Length)));
    let known = answer.prompt_logprobs().unwrap();
    // The fake model's logits are 1 for the next token and 0 for the others.
    let expected = 1.0 - (1.0_f32.exp() + (VOCAB_SIZE - 1) as f32).ln();
    assert_eq!(known.len(), 40);
    for logprobs in known[1..].iter().flatten() {
        assert!((logprobs.logprob - expected).abs() < 1e-5);
        assert_eq!(logprobs.top, []);
    }
}

#[tokio::test]
async fn a_step_asks_for_few_rows_of_logits_over_all_prompts() {
    let (engine, model) = FakeModel::new().start_held(options(3, 256));
    let prompt: Vec<u32> = (10..40).collect();
    let echo = |prompt: &[u32]| Request {
        prompt_logprobs: true,
        ..request(prompt, 1)
    };
    let first = engine.submit(echo(&prompt)).unwrap();
    model.held_step();
    let _second = engine.submit(echo(&prompt[..5])).unwrap();
    let _plain = engine.submit(request(&[70, 71], 1)).unwrap();
    model.end_step(crate::fake::Verdict::Go);
    // The oldest takes them all, and ends here; who wants no rows is not held up.
    assert_eq!(
        model.step(),
        [all(16, &prompt[16..]), all(0, &prompt[..2]), last(0, &[70, 71])]
    );
    assert_eq!(model.step(), [all(2, &prompt[2..5])]);
    drop(first);
}

#[tokio::test]
async fn prompt_logits_that_are_no_numbers_fail_their_own_request() {
    let model = FakeModel {
        logits: Box::new(|tokens, logits| logits[0] = if tokens.len() == 2 { f32::NAN } else { 1.0 }),
        ..FakeModel::new()
    };
    let engine = model.start(options(1, 256));
    let mut answer = engine
        .submit(Request {
            prompt_logprobs: true,
            ..request(&[10, 11, 12], 1)
        })
        .unwrap();
    let reason = "the model's logits are not finite numbers".into();
    assert_eq!(read(&mut answer).await, (vec![], Event::Failed(reason)));
    assert!(answer.prompt_logprobs().is_none());
}
