use batch_engine::{EngineHandle, Generation, Request, Sampling};

use crate::fake::FakeModel;
use crate::{options, read};

fn submit(engine: &EngineHandle, prompt: &[u32], seed: Option<u64>, top_p: f32) -> Generation {
    let sampling = Sampling {
        temperature: 0.9,
        top_p,
        seed,
        ..Sampling::default()
    };
    engine
        .submit(Request {
            prompt: prompt.to_vec(),
            max_tokens: 40,
            sampling,
            ..Request::default()
        })
        .unwrap()
}

#[tokio::test]
async fn the_same_seed_and_prompt_give_the_same_tokens_whatever_else_is_in_the_batch() {
    for top_p in [1.0, 0.8] {
        let quiet = FakeModel::hashing().start(options(1, 256));
        let (alone, _) = read(&mut submit(&quiet, &[1, 2, 3], Some(5), top_p)).await;

        let busy = FakeModel::hashing().start(options(8, 4));
        let mut others: Vec<_> = (0..5).map(|other| submit(&busy, &[other; 20], Some(5), 0.5)).collect();
        let mut answer = submit(&busy, &[1, 2, 3], Some(5), top_p);
        others.extend((0..5).map(|other| submit(&busy, &[other; 7], None, 1.0)));
        assert_eq!(read(&mut answer).await.0, alone);
        for other in &mut others {
            assert_eq!(read(other).await.0.len(), 40);
        }
    }
}

#[tokio::test]
async fn another_seed_or_none_gives_other_tokens() {
    let engine = FakeModel::hashing().start(options(4, 256));
    let mut answers = Vec::new();
    for seed in [Some(5), Some(6), None, None] {
        answers.push(read(&mut submit(&engine, &[1, 2, 3], seed, 1.0)).await.0);
    }
    for (index, answer) in answers.iter().enumerate() {
        assert!(
            !answers[..index].contains(answer),
            "40 tokens of 99 do not repeat by chance"
        );
    }
}
