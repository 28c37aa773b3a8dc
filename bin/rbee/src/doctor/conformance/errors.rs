//! Requests that are wrong, and how they are refused.

use serde_json::{Value, json};

use super::subject::Subject;
use super::wire::saw;
use super::{Check, Verdict, Wrong, check, ensure, shown};

const CHAT: &str = "/v1/chat/completions";

pub(super) const CHECKS: &[Check] = &[
    check!("unknown path is 404 JSON", path),
    check!("wrong method is 405 JSON", method),
    check!("bad JSON is 400", bad_json),
    check!("JSON that is no object is 400", no_object),
    check!("missing messages is 400", missing),
    check!("unknown model is 404", model),
    check!("wrong type is 400 and named", wrong_type),
    check!("temperature 9 is 400 and named", temperature),
    check!("n 0 is 400 and named", zero),
    check!("top_logprobs 99 is 400 and named", top_logprobs),
    check!("five stop strings are 400", stops),
    check!("no stream of a wrong request", stream),
    check!("wrong key is 401", key),
];

async fn path(subject: &Subject) -> Verdict {
    subject.get("/v1/no-such-path").await?.refused(404)?;
    saw("404")
}

async fn method(subject: &Subject) -> Verdict {
    let reply = subject.get(CHAT).await?;
    reply.refused(405)?;
    ensure(reply.header("allow").contains("POST"), || {
        "405 without an Allow header that names POST (RFC 9110, 15.5.6)".to_owned()
    })?;
    saw("405, Allow: POST")
}

async fn bad_json(subject: &Subject) -> Verdict {
    subject.post_text(CHAT, "{\"model\": ").await?.refused(400)?;
    saw("400")
}

async fn no_object(subject: &Subject) -> Verdict {
    subject.post_text(CHAT, "[1, 2]").await?.refused(400)?;
    saw("400")
}

/// A chat with this field must be refused with 400 and its name.
async fn named(subject: &Subject, param: &str, value: Value) -> Verdict {
    let error = subject.chat(json!({param: value})).await?.refused(400)?;
    let found = error["param"].as_str().unwrap_or("");
    ensure(found.contains(param), || {
        format!("400, and error.param is {}", shown(&error["param"]))
    })?;
    saw(format!("400, param {found}"))
}

async fn missing(subject: &Subject) -> Verdict {
    named(subject, "messages", Value::Null).await
}

async fn wrong_type(subject: &Subject) -> Verdict {
    named(subject, "max_tokens", "many".into()).await
}

async fn temperature(subject: &Subject) -> Verdict {
    named(subject, "temperature", 9.into()).await
}

async fn zero(subject: &Subject) -> Verdict {
    named(subject, "n", 0.into()).await
}

async fn top_logprobs(subject: &Subject) -> Verdict {
    let fields = json!({"logprobs": true, "top_logprobs": 99});
    let error = subject.chat(fields).await?.refused(400)?;
    ensure(error["param"] == "top_logprobs", || {
        format!("400, and error.param is {}", shown(&error["param"]))
    })?;
    saw("400, param top_logprobs")
}

async fn stops(subject: &Subject) -> Verdict {
    let error = subject
        .chat(json!({"stop": ["a", "b", "c", "d", "e"]}))
        .await?
        .refused(400)?;
    saw(format!("400, param {}", shown(&error["param"])))
}

async fn model(subject: &Subject) -> Verdict {
    let error = subject.chat(json!({"model": "no-such-model"})).await?.refused(404)?;
    ensure(error["code"] == "model_not_found", || {
        format!(
            "404, and error.code is {}, not `model_not_found`",
            shown(&error["code"])
        )
    })?;
    saw("404 model_not_found")
}

/// An error must not come inside a stream that has begun with 200.
async fn stream(subject: &Subject) -> Verdict {
    subject
        .chat(json!({"stream": true, "temperature": 9}))
        .await?
        .refused(400)?;
    saw("400, not 200 with an error inside")
}

async fn key(subject: &Subject) -> Verdict {
    if subject.get_as("/v1/models", None).await?.status == 200 {
        let without = if subject.has_key() {
            "also without the key"
        } else {
            "without a key"
        };
        return Err(Wrong::Skip(format!("the server answers {without}")));
    }
    let error = subject.get_as("/v1/models", Some("not-the-key")).await?.refused(401)?;
    ensure(error["code"] == "invalid_api_key", || {
        format!(
            "401, and error.code is {}, not `invalid_api_key`",
            shown(&error["code"])
        )
    })?;
    saw("401 invalid_api_key")
}
