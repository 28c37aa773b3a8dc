//! How a stream goes on whose worker was lost: a plain function of what was asked and what the client has.

use bytes::Bytes;
use openai_api::sse;
use worker_contract::Feature;

use super::asked::{Asked, Continuation};
use super::story::{Obstacle, Story};
use crate::Endpoint;

/// In which way another worker is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// For the whole answer: the client has nothing of it yet.
    Repeat,
    /// To go on after the tokens so far.
    Resume,
    /// To go on after the text so far.
    Continue,
}

impl Way {
    /// Its word in the metrics.
    pub(super) fn outcome(self) -> &'static str {
        match self {
            Self::Repeat => "repeated",
            Self::Resume => "resumed",
            Self::Continue => "continued",
        }
    }
}

/// What is done about a stream whose worker was lost.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Plan {
    /// The client has all but these bytes.
    Close(Bytes),
    /// Another worker is asked.
    Ask {
        way: Way,
        body: Bytes,
        /// What the worker must be able to do.
        needs: Option<Feature>,
    },
    /// Nothing can be done; why, if it is not for the want of a worker.
    Stuck(Option<Obstacle>),
}

/// What to do next, after the way that was tried and led nowhere.
pub(super) fn plan(endpoint: Endpoint, body: &Bytes, story: &Story, tried: Option<Way>) -> Plan {
    let Some(asked) = Asked::read(endpoint, body) else {
        return Plan::Stuck(Some(Obstacle::Unreadable));
    };
    let is_finished = story.finished() >= asked.answers();
    if is_finished && (story.has_usage() || !asked.wants_usage()) {
        return Plan::Close(sse::DONE);
    }
    if !story.has_begun() {
        return match tried {
            None => ask(Way::Repeat, body.clone(), None),
            Some(_) => Plan::Stuck(None),
        };
    }
    let mut obstacle = story.obstacle().or_else(|| asked.obstacle());
    if obstacle.is_none() {
        if tried.is_none()
            && let Some(body) = asked.resumed(story)
        {
            return ask(Way::Resume, body, Some(Feature::Resume));
        }
        if tried != Some(Way::Continue) && !is_finished {
            match asked.continued(story) {
                Ok(Continuation::Body(body)) => {
                    let is_chat = endpoint == Endpoint::ChatCompletions;
                    return ask(Way::Continue, body, is_chat.then_some(Feature::ContinueFinalMessage));
                }
                Ok(Continuation::Spent) => return Plan::Close(finish_for_length(story)),
                Err(why) => obstacle = Some(why),
            }
        }
    }
    if is_finished {
        // Only the usage is missing, and a stream may end without it (OpenAI API reference, `stream_options`).
        return Plan::Close(sse::DONE);
    }
    Plan::Stuck(obstacle)
}

fn ask(way: Way, body: Bytes, needs: Option<Feature>) -> Plan {
    Plan::Ask { way, body, needs }
}

fn finish_for_length(story: &Story) -> Bytes {
    let finish = sse::event(&story.chunk(None, Some("length")));
    [finish, sse::DONE].concat().into()
}
