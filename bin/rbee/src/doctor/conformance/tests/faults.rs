//! One wrong server for each check.

use serde_json::{Value, json};

use super::server::{Asked, Content, Fault, Said};

/// Name of the check that must notice, and what the server does.
pub(super) const FAULTS: &[(&str, Fault)] = &[
    // models
    ("list of models", |asked, said| {
        on(asked, said, "/v1/models", |body| body["object"] = "models".into());
    }),
    ("list has the model", |asked, said| {
        on(asked, said, "/v1/models", |body| body["data"] = json!([]));
    }),
    ("one model by its id", |asked, said| {
        on(asked, said, "/v1/models/stub", |body| body["id"] = "other".into());
    }),
    ("ids with a slash", |asked, said| {
        if asked.path.ends_with("org%2Fother") {
            said.status = 404;
        }
    }),
    ("unknown id is 404", |asked, said| {
        if asked.path.ends_with("no-such-model") {
            said.status = 400;
        }
    }),
    // errors
    ("unknown path is 404 JSON", |_, said| {
        if said.status == 404 {
            said.body = Content::Text("404 page not found".to_owned());
        }
    }),
    ("wrong method is 405 JSON", |_, said| {
        said.headers.retain(|(name, _)| *name != "allow");
    }),
    ("bad JSON is 400", |_, said| status(said, 400, 422)),
    ("JSON that is no object is 400", |_, said| status(said, 400, 500)),
    ("missing messages is 400", |_, said| no_param(said)),
    ("unknown model is 404", |_, said| {
        if let Some(body) = said.value().filter(|body| body["error"].is_object()) {
            body["error"]["code"] = Value::Null;
        }
    }),
    ("wrong type is 400 and named", |_, said| no_param(said)),
    ("temperature 9 is 400 and named", |_, said| status(said, 400, 200)),
    ("n 0 is 400 and named", |_, said| no_param(said)),
    ("top_logprobs 99 is 400 and named", |_, said| no_param(said)),
    ("five stop strings are 400", |_, said| status(said, 400, 200)),
    ("no stream of a wrong request", |_, said| {
        // An error body under a status that says that all is well.
        status(said, 400, 200);
    }),
    ("wrong key is 401", |_, said| status(said, 401, 403)),
    // chat
    ("an answer has all its fields", |_, said| {
        answer(said, |body| {
            drop(body.as_object_mut().and_then(|body| body.remove("created")));
        });
    }),
    ("usage adds up", |_, said| {
        answer(said, |body| body["usage"]["total_tokens"] = 1.into());
    }),
    ("finish_reason length", |_, said| {
        answer(said, |body| body["choices"][0]["finish_reason"] = "stop".into());
    }),
    ("max_completion_tokens wins", |asked, said| {
        if asked.body["max_completion_tokens"].is_u64() {
            answer(said, |body| body["usage"]["completion_tokens"] = 5.into());
        }
    }),
    ("finish_reason stop at a string", |asked, said| leak_stop(asked, said)),
    ("a list of stop strings", |asked, said| leak_stop(asked, said)),
    ("n answers", |_, said| {
        answer(said, |body| {
            if let Some(choices) = body["choices"].as_array_mut() {
                choices.truncate(1);
            }
        });
    }),
    ("content in parts", |asked, said| {
        if asked.body["messages"][0]["content"].is_array() {
            said.status = 422;
        }
    }),
    ("system and developer", |_, said| {
        answer(said, |body| body["usage"]["prompt_tokens"] = 10.into());
    }),
    ("results of tools in messages", |asked, said| {
        if asked.body["messages"][2]["role"] == "tool" {
            said.status = 500;
        }
    }),
    ("harmless extras are taken", |asked, said| {
        if asked.body["metadata"].is_object() {
            said.status = 400;
        }
    }),
    // sampling
    ("temperature 0 repeats itself", |_, said| differ(said)),
    ("a seed repeats itself", |_, said| differ(said)),
    ("another seed, another answer", |_, said| text(said, " always the same")),
    ("top_p 0 is taken", |asked, said| {
        if asked.body["top_p"] == 0 {
            said.status = 422;
        }
    }),
    ("logit_bias is obeyed", |_, said| text(said, " always the same")),
    ("logprobs of each token", |_, said| {
        answer(said, |body| {
            drop(
                body["choices"][0]
                    .as_object_mut()
                    .and_then(|choice| choice.remove("logprobs")),
            );
        });
    }),
    // streams
    ("text/event-stream", |_, said| {
        if said.chunks().is_some() {
            said.headers.push(("content-type", "application/json".to_owned()));
        }
    }),
    ("one data line an event", |_, said| {
        tail(said, "data: {}\ndata: {}\n\ndata: [DONE]\n\n");
    }),
    ("the role first, and once", |_, said| {
        each(said, |chunk| chunk["choices"][0]["delta"]["role"] = "assistant".into());
    }),
    ("same id, created and model", |_, said| {
        if let Some(last) = said.chunks().and_then(|chunks| chunks.last_mut()) {
            last["id"] = "another".into();
        }
    }),
    ("finish_reason once, at the end", |_, said| {
        each(said, |chunk| chunk["choices"][0]["finish_reason"] = "length".into());
    }),
    ("usage where it is asked for", |_, said| {
        each(said, |chunk| {
            drop(chunk.as_object_mut().and_then(|chunk| chunk.remove("usage")));
        });
    }),
    ("no usage where it is not", |_, said| {
        each(said, |chunk| chunk["usage"] = json!({"prompt_tokens": 1}));
    }),
    ("[DONE] once, at the end", |_, said| tail(said, "")),
    ("same text as without a stream", |_, said| {
        each(said, |chunk| chunk["choices"][0]["delta"]["content"] = "x".into());
    }),
    ("a stop string does not leak", |asked, said| leak_stop(asked, said)),
    ("n answers in one stream", |_, said| {
        each(said, |chunk| chunk["choices"][0]["index"] = 0.into());
    }),
    ("UTF-8 stays whole", |_, said| {
        each(said, |chunk| {
            let content = &mut chunk["choices"][0]["delta"]["content"];
            *content = content
                .as_str()
                .map(|text| text.replace('ü', "\u{fffd}\u{fffd}"))
                .into();
        });
    }),
    // tools and schemas
    ("tool_choice calls the tool", |_, said| {
        answer(said, |body| body["choices"][0]["message"]["tool_calls"] = Value::Null);
    }),
    ("tool_choice required calls one", |_, said| {
        answer(said, |body| body["choices"][0]["finish_reason"] = "stop".into());
    }),
    ("tool_choice none calls none", |asked, said| {
        if asked.body["tool_choice"] == "none" {
            answer(said, |body| {
                body["choices"][0]["message"]["tool_calls"] = json!([{"id": "call_1"}]);
            });
        }
    }),
    ("a tool call in a stream", |_, said| {
        each(said, |chunk| {
            let call = &mut chunk["choices"][0]["delta"]["tool_calls"][0];
            if call.is_object() {
                call["id"] = "again".into();
            }
        });
    }),
    ("json_schema is obeyed", |_, said| {
        text(said, "{\"city\": \"Paris\", \"sunny\": true}");
    }),
    ("json_object is JSON", |_, said| text(said, "Oslo")),
    ("a schema that is none is 400", |_, said| status(said, 400, 200)),
    // completions
    ("at most 16 tokens by default", |_, said| {
        answer(said, |body| body["usage"]["completion_tokens"] = 17.into());
    }),
    ("echo repeats the prompt", |_, said| {
        answer(said, |body| body["choices"][0]["text"] = " no echo".into());
    }),
    ("a list of prompts", |_, said| {
        answer(said, |body| body["choices"][1]["index"] = 0.into());
    }),
    ("a prompt of tokens", |_, said| {
        answer(said, |body| body["usage"]["prompt_tokens"] = 13.into());
    }),
    ("logprobs as numbers", |_, said| {
        answer(said, |body| body["choices"][0]["logprobs"] = Value::Null);
    }),
    ("a stream of text_completion", |_, said| {
        each(said, |chunk| chunk["object"] = "chat.completion.chunk".into());
    }),
    // embeddings
    ("a vector for each text", |_, said| {
        let same = json!([{"index": 0, "embedding": [1.0]}, {"index": 1, "embedding": [1.0]}]);
        if let Some(body) = said.value().filter(|body| body["data"].is_array()) {
            body["data"] = same;
        }
    }),
    ("base64, as the Python client asks", |asked, said| {
        if asked.body["encoding_format"] == "base64" {
            answer_of(said, |body| body["data"][0]["embedding"] = json!([0.25, -1.5]));
        }
    }),
    // manners
    ("a client that leaves frees its slot", |_, said| {
        if let Content::Endless(runs_on) = &mut said.body {
            *runs_on = true;
        }
    }),
    ("errors have their four keys", |_, said| {
        answer_of(said, |body| {
            if let Some(error) = body.get_mut("error").and_then(Value::as_object_mut) {
                error.remove("param");
            }
        });
    }),
    ("every reply has a request id", |_, said| {
        said.headers.retain(|(name, _)| *name != "x-request-id");
    }),
    ("Retry-After where it is full", |_, said| status(said, 400, 503)),
];

fn on(asked: &Asked, said: &mut Said, path: &str, change: impl FnOnce(&mut Value)) {
    if asked.path == path {
        answer_of(said, change);
    }
}

/// Changes any JSON body.
fn answer_of(said: &mut Said, change: impl FnOnce(&mut Value)) {
    if let Some(body) = said.value() {
        change(body);
    }
}

/// Changes a whole answer of a model.
fn answer(said: &mut Said, change: impl FnOnce(&mut Value)) {
    if let Some(body) = said.value().filter(|body| body["choices"].is_array()) {
        change(body);
    }
}

/// Changes each chunk of a stream that has a choice.
fn each(said: &mut Said, change: impl Fn(&mut Value)) {
    for chunk in said.chunks().into_iter().flatten() {
        if chunk["choices"][0].is_object() || chunk["usage"].is_object() {
            change(chunk);
        }
    }
}

fn status(said: &mut Said, from: u16, to: u16) {
    if said.status == from {
        said.status = to;
    }
}

fn no_param(said: &mut Said) {
    answer_of(said, |body| {
        if body["error"].is_object() {
            body["error"]["param"] = Value::Null;
        }
    });
}

fn text(said: &mut Said, text: &str) {
    answer(said, |body| body["choices"][0]["message"]["content"] = text.into());
}

/// Another text each time.
fn differ(said: &mut Said) {
    let id = said
        .headers
        .iter()
        .find(|(name, _)| *name == "x-request-id")
        .map(|(_, id)| id.clone());
    text(said, &id.unwrap_or_default());
}

fn tail(said: &mut Said, text: &str) {
    if let Content::Chunks(_, tail) = &mut said.body {
        *tail = text.to_owned();
    }
}

/// The stop string comes at the end of the text.
fn leak_stop(asked: &Asked, said: &mut Said) {
    if asked.is_chat() && !asked.body["stop"].is_null() {
        answer(said, |body| {
            let content = &mut body["choices"][0]["message"]["content"];
            *content = format!("{} leaked", content.as_str().unwrap_or("")).into();
        });
        if let Some(chunk) = said.chunks().and_then(|chunks| chunks.get_mut(1)) {
            chunk["choices"][0]["delta"]["content"] = " leaked".into();
        }
    }
}
