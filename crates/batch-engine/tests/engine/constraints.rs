use std::sync::{Arc, Mutex};

use batch_engine::{
    Constraint, ConstraintError, EngineHandle, Event, FinishReason, Generation, Request, Sampling, TokenMask,
};

use crate::fake::{END, FakeModel};
use crate::{options, read, request, submit};

/// Allows what its function writes for the tokens accepted so far.
struct Rule<F> {
    accepted: Arc<Mutex<Vec<u32>>>,
    allow: F,
}

impl<F> Constraint for Rule<F>
where
    F: FnMut(&[u32], &mut TokenMask) -> Result<(), ConstraintError> + Send,
{
    fn allowed(&mut self, mask: &mut TokenMask) -> Result<(), ConstraintError> {
        assert_eq!(mask.iter().next(), None, "nothing is allowed yet");
        (self.allow)(&self.accepted.lock().unwrap(), mask)
    }

    fn accept(&mut self, token: u32) -> Result<(), ConstraintError> {
        self.accepted.lock().unwrap().push(token);
        Ok(())
    }
}

fn constrained(
    engine: &EngineHandle,
    allow: impl FnMut(&[u32], &mut TokenMask) -> Result<(), ConstraintError> + Send + 'static,
) -> (Generation, Arc<Mutex<Vec<u32>>>) {
    let accepted = Arc::new(Mutex::new(Vec::new()));
    let rule = Rule {
        accepted: Arc::clone(&accepted),
        allow,
    };
    let generation = engine.submit(Request {
        constraint: Some(Box::new(rule)),
        ..request(&[10], 5)
    });
    (generation.unwrap(), accepted)
}

#[tokio::test]
async fn only_allowed_tokens_are_chosen_and_each_is_accepted() {
    let engine = FakeModel::hashing().start(options(2, 256));
    let (mut answer, accepted) = constrained(&engine, |before, mask| {
        [2 * before.len() as u32, 2 * before.len() as u32 + 1]
            .into_iter()
            .for_each(|token| mask.allow(token));
        Ok(())
    });
    let (tokens, end) = read(&mut answer).await;
    assert_eq!(end, Event::Finished(FinishReason::Length));
    let places: Vec<u32> = tokens.iter().map(|token| token / 2).collect();
    assert_eq!(places, [0, 1, 2, 3, 4]);
    assert_eq!(*accepted.lock().unwrap(), tokens);
}

#[tokio::test]
async fn a_constraint_that_allows_all_changes_nothing() {
    let engine = FakeModel::hashing().start(options(2, 256));
    let free = read(&mut submit(&engine, &[10], 5)).await;
    let (mut answer, _) = constrained(&engine, |_, mask| {
        mask.allow_all();
        Ok(())
    });
    assert_eq!(read(&mut answer).await, free);
}

#[tokio::test]
async fn the_answer_ends_where_only_end_tokens_are_allowed() {
    let engine = FakeModel::new().start(options(2, 256));
    let (mut answer, accepted) = constrained(&engine, |before, mask| {
        mask.allow(if before.len() == 2 { END } else { 50 });
        Ok(())
    });
    assert_eq!(
        read(&mut answer).await,
        (vec![50, 50], Event::Finished(FinishReason::EndOfText))
    );
    assert_eq!(*accepted.lock().unwrap(), [50, 50], "an end token is not accepted");
}

#[tokio::test]
async fn what_the_prompt_wants_next_is_not_chosen_where_it_is_not_allowed_even_with_a_bias() {
    let engine = FakeModel::new().start(options(2, 256));
    let rule = Rule {
        accepted: Arc::default(),
        allow: |_: &[u32], mask: &mut TokenMask| {
            mask.allow(70);
            Ok(())
        },
    };
    let mut answer = engine
        .submit(Request {
            sampling: Sampling {
                logit_bias: vec![(11, 100.0)],
                temperature: 1.0,
                ..Sampling::default()
            },
            constraint: Some(Box::new(rule)),
            ..request(&[10], 2)
        })
        .unwrap();
    assert_eq!(read(&mut answer).await.0, [70, 70]);
}

/// A request with this constraint fails with this reason after a token; others go on.
async fn fails_alone(
    allow: impl FnMut(&[u32], &mut TokenMask) -> Result<(), ConstraintError> + Send + 'static,
    reason: &str,
) {
    let engine = FakeModel::new().start(options(2, 256));
    let mut other = submit(&engine, &[20], 5);
    let (mut broken, _) = constrained(&engine, allow);
    assert_eq!(read(&mut broken).await, (vec![30], Event::Failed(reason.into())));
    assert_eq!(read(&mut other).await.0, [21, 22, 23, 24, 25]);
    assert_eq!((engine.counters().failed, engine.load().running), (1, 0));
    assert_eq!(read(&mut submit(&engine, &[1], 1)).await.0, [2]);
}

#[tokio::test]
async fn a_constraint_that_fails_fails_its_own_request_only() {
    let rule = |before: &[u32], mask: &mut TokenMask| {
        mask.allow(30);
        if before.is_empty() {
            Ok(())
        } else {
            Err(ConstraintError::new("no way on"))
        }
    };
    fails_alone(rule, "the constraint failed: no way on").await;
}

#[tokio::test]
async fn a_constraint_that_panics_fails_its_own_request_only() {
    let rule = |before: &[u32], mask: &mut TokenMask| {
        assert!(before.is_empty(), "a broken grammar");
        mask.allow(30);
        Ok(())
    };
    fails_alone(rule, "the constraint failed: it panicked: a broken grammar").await;
}

#[tokio::test]
async fn a_constraint_that_allows_nothing_is_an_error() {
    let rule = |before: &[u32], mask: &mut TokenMask| {
        if before.is_empty() {
            mask.allow(30);
        }
        Ok(())
    };
    fails_alone(rule, "the constraint allows no token").await;
}
