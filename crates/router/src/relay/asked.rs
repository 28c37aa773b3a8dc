//! The request of a stream that has lost its worker: what it asked for, and what another worker is asked instead.
//!
//! A body is read as far as this only when its worker is lost; the members that nobody needs stay as the client wrote them.

use std::borrow::Cow;
use std::collections::BTreeMap;

use bytes::Bytes;
use openai_api::DEFAULT_COMPLETION_TOKENS;
use serde::Deserialize;
use serde_json::value::{RawValue, to_raw_value};
use serde_json::{Value, json};
use worker_contract::{RESUME_MEMBER, Resume};

use super::story::{Obstacle, Story};
use crate::Endpoint;

/// Members that set a limit for the tokens of an answer.
const LIMITS: [&str; 2] = ["max_completion_tokens", "max_tokens"];
/// Members that make a chat's answer follow a form other than that of its text so far, by the names of OpenAI and vLLM.
const FORMS: [&str; 6] = [
    "response_format",
    "structured_outputs",
    "guided_json",
    "guided_regex",
    "guided_choice",
    "guided_grammar",
];

/// What a request asked for.
pub(super) struct Asked<'a> {
    endpoint: Endpoint,
    body: &'a Bytes,
    members: BTreeMap<Cow<'a, str>, &'a RawValue>,
}

/// What is asked of a worker that knows the text only.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Continuation {
    /// To answer this body.
    Body(Bytes),
    /// Nothing: the answer has as many tokens as it may have.
    Spent,
}

impl<'a> Asked<'a> {
    /// Reads a body; `None` if it is no JSON object.
    pub(super) fn read(endpoint: Endpoint, body: &'a Bytes) -> Option<Self> {
        let members = serde_json::from_slice(body).ok()?;
        Some(Self {
            endpoint,
            body,
            members,
        })
    }

    /// How many answers are to be given.
    pub(super) fn answers(&self) -> u32 {
        let each: u32 = self.get("n").unwrap_or(1);
        let prompts = match self.members.get("prompt").map(|raw| raw.get()) {
            Some(list) if list.starts_with('[') => match serde_json::from_str::<Vec<&RawValue>>(list) {
                // A list of tokens is one prompt.
                Ok(items) if items.first().is_some_and(|first| !first.get().starts_with(['"', '['])) => 1,
                Ok(items) => u32::try_from(items.len()).unwrap_or(u32::MAX),
                Err(_) => 1,
            },
            _ => 1,
        };
        each.saturating_mul(prompts)
    }

    /// Whether a chunk with the usage is to precede `[DONE]`.
    pub(super) fn wants_usage(&self) -> bool {
        #[derive(Deserialize)]
        struct StreamOptions {
            include_usage: Option<bool>,
        }
        let options: Option<StreamOptions> = self.get("stream_options");
        options.is_some_and(|options| options.include_usage == Some(true))
    }

    /// Why nobody can go on with an answer to this.
    pub(super) fn obstacle(&self) -> Option<Obstacle> {
        if self.answers() != 1 || self.get("best_of").is_some_and(|best_of: u32| best_of > 1) {
            return Some(Obstacle::SeveralAnswers);
        }
        let logprobs: Option<Value> = self.get("logprobs");
        if logprobs.is_some_and(|logprobs| logprobs != Value::Bool(false)) {
            return Some(Obstacle::Logprobs);
        }
        (self.get("echo") == Some(true)).then_some(Obstacle::Echo)
    }

    /// The body for a worker that takes up the tokens of the story; `None` where they are not known.
    pub(super) fn resumed(&self, story: &Story) -> Option<Bytes> {
        let head = story.head();
        let resume = Resume {
            id: serde_json::from_str(head.id.as_ref()?.get()).ok()?,
            created: serde_json::from_str(head.created.as_ref()?.get()).ok()?,
            tokens: story.tokens()?.to_vec(),
        };
        let resume = serde_json::to_vec(&resume).ok()?;
        let start = self.body.iter().position(|&byte| byte == b'{')? + 1;
        let (before, after) = self.body.split_at(start);
        let member = format!("\"{RESUME_MEMBER}\":");
        Some([before, member.as_bytes(), &resume, b",", after].concat().into())
    }

    /// The body for a worker that takes up the text of the story.
    pub(super) fn continued(&self, story: &Story) -> Result<Continuation, Obstacle> {
        if let Some(obstacle) = story.text_obstacle() {
            return Err(obstacle);
        }
        // White space at the end would be cut off by most chat templates, and is better put into tokens with what follows it.
        let text = story.text().ok_or(Obstacle::Unreadable)?;
        let text = text.trim_end();
        let mut members = self.members.clone();
        let Some(limits) = self.limits_after(story.spent()) else {
            return Ok(Continuation::Spent);
        };
        let limits: Vec<_> = limits.into_iter().map(|(name, left)| (name, raw(&left))).collect();
        members.extend(limits.iter().map(|(name, left)| (Cow::Borrowed(*name), &**left)));
        let grown = match self.endpoint {
            Endpoint::ChatCompletions => vec![
                ("messages", self.messages_with(text)?),
                ("continue_final_message", raw(&true)),
                ("add_generation_prompt", raw(&false)),
            ],
            _ => vec![("prompt", self.prompt_with(text)?)],
        };
        members.extend(grown.iter().map(|(name, value)| (Cow::Borrowed(*name), &**value)));
        let body = serde_json::to_vec(&members).map_err(|_| Obstacle::Unreadable)?;
        Ok(Continuation::Body(body.into()))
    }

    /// The limits for the tokens of the answer less those that are spent; `None` if nothing is left.
    fn limits_after(&self, spent: u32) -> Option<Vec<(&'static str, u32)>> {
        let mut limits: Vec<_> = LIMITS
            .into_iter()
            .filter_map(|name| Some((name, self.get::<u32>(name)?)))
            .collect();
        if limits.is_empty() && self.endpoint == Endpoint::Completions {
            limits.push(("max_tokens", DEFAULT_COMPLETION_TOKENS));
        }
        for (_, limit) in &mut limits {
            *limit = limit.checked_sub(spent).filter(|&left| left > 0)?;
        }
        Some(limits)
    }

    /// The conversation with the unfinished message at its end.
    fn messages_with(&self, text: &str) -> Result<Box<RawValue>, Obstacle> {
        let has_form = FORMS.iter().any(|form| {
            let form: Option<Value> = self.get(form);
            form.is_some_and(|form| form["type"] != "text")
        });
        if has_form {
            return Err(Obstacle::Form);
        }
        let mut messages: Vec<Value> = self.get("messages").ok_or(Obstacle::Unreadable)?;
        if self.get("continue_final_message") == Some(true) {
            // The client began the message itself.
            match messages.last_mut().and_then(|last| last.get_mut("content")) {
                Some(Value::String(content)) => content.push_str(text),
                _ => return Err(Obstacle::Aside),
            }
        } else {
            messages.push(json!({"role": "assistant", "content": text}));
        }
        Ok(raw(&messages))
    }

    /// The prompt with the text at its end.
    fn prompt_with(&self, text: &str) -> Result<Box<RawValue>, Obstacle> {
        let prompt = match self.get("prompt") {
            Some(Value::String(prompt)) => prompt,
            Some(Value::Array(list)) => match list.into_iter().next() {
                Some(Value::String(prompt)) => prompt,
                _ => return Err(Obstacle::TokenPrompt),
            },
            _ => return Err(Obstacle::TokenPrompt),
        };
        Ok(raw(&(prompt + text)))
    }

    /// The member of this name; `None` if it is left out, null, or nothing of this type.
    fn get<T: Deserialize<'a>>(&self, name: &str) -> Option<T> {
        let raw: &'a RawValue = self.members.get(name)?;
        serde_json::from_str::<Option<T>>(raw.get()).ok()?
    }
}

fn raw(value: &impl serde::Serialize) -> Box<RawValue> {
    to_raw_value(value).expect("numbers, texts and values that were read as JSON can be written as JSON")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::relay::observe::Chunk;

    fn with<T>(body: &Value, look: impl FnOnce(&Asked<'_>) -> T) -> T {
        let endpoint = if body.get("messages").is_some() {
            Endpoint::ChatCompletions
        } else {
            Endpoint::Completions
        };
        let bytes = Bytes::from(body.to_string());
        look(&Asked::read(endpoint, &bytes).unwrap())
    }

    fn story(text: &str) -> Story {
        let chunk = json!({"id": "a\"b", "created": 7, "choices": [{"index": 0, "text": text}]}).to_string();
        let mut story = Story::default();
        story.note_tokens(b": tokens 3 4\n");
        story.note(&Chunk::read(chunk.as_bytes()).unwrap());
        story
    }

    fn continued(body: &Value, text: &str) -> Result<Value, Obstacle> {
        with(body, |asked| match asked.continued(&story(text))? {
            Continuation::Body(body) => Ok(serde_json::from_slice(&body).unwrap()),
            Continuation::Spent => Ok(json!("spent")),
        })
    }

    #[test]
    fn answers_are_counted_by_prompts_and_n() {
        for (body, answers) in [
            (json!({"messages": []}), 1),
            (json!({"messages": [], "n": 3}), 3),
            (json!({"prompt": "a", "n": null}), 1),
            (json!({"prompt": ["a"]}), 1),
            (json!({"prompt": ["a", "b"], "n": 2}), 4),
            (json!({"prompt": [1, 2, 3]}), 1),
            (json!({"prompt": [[1, 2], [3]]}), 2),
        ] {
            assert_eq!(with(&body, |asked| asked.answers()), answers, "{body}");
        }
    }

    #[test]
    fn usage_is_wanted_only_where_it_is_asked_for() {
        assert!(with(
            &json!({"stream_options": {"include_usage": true, "x": 1}}),
            |asked| asked.wants_usage()
        ));
        for options in [json!({"include_usage": false}), json!({}), Value::Null, json!(1)] {
            assert!(!with(&json!({"stream_options": options}), |asked| asked.wants_usage()));
        }
    }

    #[test]
    fn what_nobody_can_go_on_with_is_named() {
        for (body, obstacle) in [
            (json!({"messages": [], "n": 2}), Some(Obstacle::SeveralAnswers)),
            (json!({"prompt": "a", "best_of": 2}), Some(Obstacle::SeveralAnswers)),
            (json!({"messages": [], "logprobs": true}), Some(Obstacle::Logprobs)),
            (json!({"prompt": "a", "logprobs": 0}), Some(Obstacle::Logprobs)),
            (json!({"prompt": "a", "echo": true}), Some(Obstacle::Echo)),
            (json!({"messages": [], "logprobs": false, "n": 1, "echo": null}), None),
        ] {
            assert_eq!(with(&body, |asked| asked.obstacle()), obstacle, "{body}");
        }
    }

    #[test]
    fn the_member_that_takes_up_tokens_is_put_before_all_others_which_stay_as_they_are() {
        let body = Bytes::from_static(b" { \"model\" : \"m\", \"messages\":[{\"content\":\"\\u00e4 \"}]}");
        let resumed = Asked::read(Endpoint::ChatCompletions, &body)
            .unwrap()
            .resumed(&story("x"))
            .unwrap();
        let member = r#""resume":{"id":"a\"b","created":7,"tokens":[3,4]},"#;
        assert_eq!(resumed, [b" {", member.as_bytes(), &body[2..]].concat());
        let nothing_known = Story::default();
        assert_eq!(with(&json!({}), |asked| asked.resumed(&nothing_known)), None);
    }

    #[test]
    fn a_message_that_the_client_began_grows() {
        let messages = json!([{"role": "assistant", "content": "He"}]);
        let begun = json!({"messages": messages, "continue_final_message": true});
        let body = continued(&begun, "llo ").unwrap();
        assert_eq!(body["messages"], json!([{"role": "assistant", "content": "Hello"}]));
        let parts = json!({"messages": [{"role": "assistant", "content": [{}]}], "continue_final_message": true});
        assert_eq!(continued(&parts, "a"), Err(Obstacle::Aside));
    }

    #[test]
    fn limits_shrink_by_what_is_spent_and_nothing_is_asked_when_nothing_is_left() {
        let body = json!({"messages": [], "max_tokens": 9, "max_completion_tokens": 5, "seed": 1});
        let body = continued(&body, "a").unwrap();
        assert_eq!(
            (&body["max_tokens"], &body["max_completion_tokens"], &body["seed"]),
            (&json!(7), &json!(3), &json!(1))
        );
        assert_eq!(
            continued(&json!({"messages": [], "max_tokens": 2}), "a"),
            Ok(json!("spent"))
        );
        assert_eq!(
            continued(&json!({"prompt": "p"}), "a").unwrap(),
            json!({"prompt": "pa", "max_tokens": 14})
        );
    }

    #[test]
    fn a_text_cannot_be_put_behind_tokens_nor_into_a_form() {
        assert_eq!(continued(&json!({"prompt": [1, 2]}), "a"), Err(Obstacle::TokenPrompt));
        assert_eq!(continued(&json!({"prompt": ["p"]}), "a").unwrap()["prompt"], "pa");
        let form = |form: Value| continued(&json!({"messages": [], "response_format": form}), "a").map(|_| ());
        assert_eq!(form(json!({"type": "json_schema"})), Err(Obstacle::Form));
        assert_eq!(form(json!({"type": "text"})), Ok(()));
        assert_eq!(form(Value::Null), Ok(()));
    }
}
