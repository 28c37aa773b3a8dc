//! A stream that one worker begins and another one finishes.

use serde_json::{Value, json};
use worker_contract::{TOKENS_COMMENT, TOKENS_HEADER};

use super::requests::{CHAT, COMPLETIONS, chat, completion};
use super::support::{ANSWER, Script, TestWorker};

/// What one event says, and the tokens that it names.
#[derive(Debug, Clone, PartialEq)]
struct Event {
    tokens: Vec<u32>,
    data: Value,
}

/// The events of a stream with named tokens, without the `[DONE]` at its end.
async fn stream(worker: &TestWorker, path: &str, body: &Value) -> Vec<Event> {
    let request = worker.http.post(format!("{}{path}", worker.base));
    let response = request.header(TOKENS_HEADER, "1").json(body).send().await.unwrap();
    let status = response.status();
    let text = response.text().await.unwrap();
    assert_eq!(status, 200, "{text}");
    let events = text.strip_suffix("data: [DONE]\n\n").expect("a complete stream");
    events.split_terminator("\n\n").map(event).collect()
}

fn event(frame: &str) -> Event {
    let (tokens, data) = match frame.strip_prefix(TOKENS_COMMENT) {
        None => ("", frame),
        Some(frame) => frame.split_once('\n').expect("a line of its own"),
    };
    let tokens = tokens.split_terminator(' ').map(|token| token.parse().unwrap());
    let data = data.strip_prefix("data: ").expect("one data line an event");
    Event {
        tokens: tokens.collect(),
        data: serde_json::from_str(data).unwrap(),
    }
}

/// All that is said, in the order in which it is said; who reads it cannot tell where events begin and end.
#[derive(Debug, Default, PartialEq)]
struct Said {
    heads: Vec<Value>,
    roles: usize,
    text: String,
    /// Name and arguments.
    calls: Vec<(String, String)>,
    finish: Vec<Value>,
    stops: Vec<Value>,
    usage: Vec<Value>,
}

fn said<'a>(events: impl IntoIterator<Item = &'a Event>) -> Said {
    let mut said = Said::default();
    for Event { data, .. } in events {
        let head = json!([data["id"], data["created"], data["model"], data["object"]]);
        if !said.heads.contains(&head) {
            said.heads.push(head);
        }
        if let Some(usage) = data["usage"].as_object() {
            let mut usage = usage.clone();
            usage.remove("prompt_tokens_details");
            said.usage.push(Value::Object(usage));
        }
        for choice in data["choices"].as_array().unwrap() {
            let delta = &choice["delta"];
            said.roles += usize::from(delta["role"].is_string());
            said.text.push_str(
                delta["content"]
                    .as_str()
                    .or(choice["text"].as_str())
                    .unwrap_or_default(),
            );
            for call in delta["tool_calls"].as_array().into_iter().flatten() {
                let function = &call["function"];
                if let Some(name) = function["name"].as_str() {
                    assert_eq!(call["index"], said.calls.len());
                    said.calls.push((name.to_owned(), String::new()));
                }
                let arguments = &mut said.calls[call["index"].as_u64().unwrap() as usize].1;
                arguments.push_str(function["arguments"].as_str().unwrap());
            }
            said.finish
                .extend(Some(choice["finish_reason"].clone()).filter(|reason| !reason.is_null()));
            said.stops.extend(choice.get("stop_reason").cloned());
        }
    }
    said
}

/// Cuts the stream behind each of its events, has another worker finish it, and compares with the stream that nobody cut.
/// Returns that.
async fn check_every_cut(script: &Script, path: &str, body: &Value) -> Said {
    let mut body = body.clone();
    body["stream"] = json!(true);
    body["stream_options"] = json!({"include_usage": true});
    let first = TestWorker::start(script.clone(), &[]).await;
    let second = TestWorker::start(script.clone(), &[]).await;
    let whole = stream(&first, path, &body).await;
    let expected = said(&whole);
    assert_eq!((expected.finish.len(), expected.usage.len()), (1, 1), "{expected:?}");
    // Behind the usage there is nothing to take up.
    for cut in 1..whole.len() - 1 {
        let head = &whole[..cut];
        let tokens: Vec<u32> = head.iter().flat_map(|event| event.tokens.clone()).collect();
        let mut body = body.clone();
        body["resume"] = json!({"id": whole[0].data["id"], "created": whole[0].data["created"], "tokens": tokens});
        let tail = stream(&second, path, &body).await;
        let mut joined = said(head.iter().chain(&tail));
        // A finish that is within the tokens is said again.
        joined.finish.dedup();
        joined.stops.dedup();
        assert_eq!(joined, expected, "cut behind event {cut}: {tokens:?}");
    }
    expected
}

fn undecided(says: &'static str) -> Script {
    Script {
        wavers: Some(0.5),
        ..Script::new(says)
    }
}

#[tokio::test]
async fn a_greedy_stream_goes_on_as_if_nobody_had_cut_it() {
    let script = Script::new("Hello, bee.");
    let said = check_every_cut(&script, CHAT, &chat(json!({"temperature": 0}))).await;
    assert_eq!((said.roles, said.text.as_str()), (1, "Hello, bee."));
    assert_eq!(
        (&said.finish[0], &said.usage[0]["completion_tokens"]),
        (&json!("stop"), &json!(11))
    );
    let said = check_every_cut(&script, COMPLETIONS, &completion(json!({"temperature": 0}))).await;
    assert_eq!((said.roles, said.text.as_str()), (0, "Hello, bee."));
}

#[tokio::test]
async fn a_seed_draws_on_where_it_was() {
    for seed in 0..4 {
        let settings = json!({"seed": seed, "temperature": 1.0, "top_p": 0.95});
        let said = check_every_cut(&undecided("abcdefghijklmnop"), CHAT, &chat(settings)).await;
        assert!(said.text.contains(char::is_uppercase), "{}", said.text);
    }
}

#[tokio::test]
async fn penalties_count_what_was_said_before_the_cut() {
    let script = undecided("aaaaaaaaaaaaaaaa");
    for settings in [
        json!({"temperature": 0, "frequency_penalty": 0.3}),
        json!({"temperature": 0, "presence_penalty": 1, "frequency_penalty": 0.1}),
        json!({"temperature": 1, "seed": 3, "repetition_penalty": 1.001, "logit_bias": {ANSWER.to_string(): 1}}),
    ] {
        let said = check_every_cut(&script, CHAT, &chat(settings)).await;
        assert!(said.text.contains('A') && said.text.contains('a'), "{}", said.text);
    }
}

#[tokio::test]
async fn a_stop_text_may_stand_across_the_cut() {
    let script = Script::new("one, two, three, four");
    for (stop, reached) in [
        (json!(", three"), ", three"),
        (json!(["four", ", three"]), ", three"),
        (json!(["two, three", "e, t"]), "e, t"),
    ] {
        let said = check_every_cut(&script, CHAT, &chat(json!({"stop": stop}))).await;
        assert_eq!((said.finish, said.stops), (vec![json!("stop")], vec![json!(reached)]));
        assert!(!said.text.contains("three"), "{}", said.text);
    }
    let held = check_every_cut(&script, CHAT, &chat(json!({"stop": [", four and", "four five"]}))).await;
    assert_eq!(
        held.text, "one, two, three, four",
        "what is held back to the end comes out once"
    );
    assert_eq!(held.stops, [json!(null); 0]);
    let limited = chat(json!({"stop": "ab", "max_tokens": 3}));
    let held = check_every_cut(&Script::new("xaab"), CHAT, &limited).await;
    assert_eq!(
        (held.text.as_str(), &held.finish[0]),
        ("xaa", &json!("length")),
        "at the limit, too"
    );
}

#[tokio::test]
async fn a_character_may_stand_across_the_cut() {
    let script = Script::new("déjà 🐝 vu 🐝🐝");
    let said = check_every_cut(&script, CHAT, &chat(json!({}))).await;
    assert_eq!(said.text, "déjà 🐝 vu 🐝🐝");
    let cut = check_every_cut(&script, CHAT, &chat(json!({"max_tokens": 9}))).await;
    assert_eq!((cut.text.as_str(), &cut.finish[0]), ("déjà \u{FFFD}", &json!("length")));
}

#[tokio::test]
async fn the_token_limit_counts_from_the_first_token() {
    let script = Script::endless("la ");
    for (path, body) in [
        (CHAT, chat(json!({"max_tokens": 20}))),
        (COMPLETIONS, completion(json!({}))),
    ] {
        let said = check_every_cut(&script, path, &body).await;
        let limit = body["max_tokens"].as_u64().unwrap_or(16);
        assert_eq!(
            (&said.finish[0], &said.usage[0]["completion_tokens"]),
            (&json!("length"), &json!(limit))
        );
        assert_eq!(said.text.len() as u64, limit);
    }
    let full = Script {
        context_length: 24,
        ..Script::new("a text that has no room in so short a context")
    };
    let said = check_every_cut(&full, CHAT, &chat(json!({}))).await;
    assert_eq!(
        (&said.finish[0], &said.usage[0]["total_tokens"]),
        (&json!("length"), &json!(24))
    );
}

#[tokio::test]
async fn where_there_is_less_room_what_was_held_back_still_comes_out() {
    let script = Script::new("x aaaa tail");
    let mut body = chat(json!({"stop": "aaaab", "stream": true, "stream_options": {"include_usage": true}}));
    let first = TestWorker::start(script.clone(), &[]).await;
    let whole = said(&stream(&first, CHAT, &body).await);
    assert_eq!(whole.text, "x aaaa tail");
    let prompt_tokens = whole.usage[0]["prompt_tokens"].as_u64().unwrap();
    let small = Script {
        context_length: usize::try_from(prompt_tokens).unwrap() + 4,
        ..script
    };
    let second = TestWorker::start(small, &[]).await;
    let tokens: Vec<u32> = "x aaaa".bytes().map(|byte| ANSWER + u32::from(byte)).collect();
    body["resume"] = json!({"id": "x", "created": 1, "tokens": tokens});
    let rest = said(&stream(&second, CHAT, &body).await);
    assert_eq!((rest.text.as_str(), &rest.finish[0]), ("aaaa", &json!("length")));
}

#[tokio::test]
async fn a_form_is_kept_across_the_cut() {
    let schema = json!({
        "type": "object", "properties": {"ok": {"type": "boolean"}, "why": {"type": "string", "maxLength": 8}},
        "required": ["ok", "why"], "additionalProperties": false,
    });
    let format = json!({"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": true}});
    for script in [
        Script::new(r#"{"ok":true,"why":"é 🐝"}"#),
        undecided("I would rather chat."),
    ] {
        let settings = json!({"response_format": format, "temperature": 0.7, "seed": 5, "max_tokens": 60});
        let said = check_every_cut(&script, CHAT, &chat(settings)).await;
        assert!(serde_json::from_str::<Value>(&said.text).unwrap()["ok"].is_boolean());
    }
}

fn with_tools(more: &Value) -> Value {
    let parameters = json!({
        "type": "object", "properties": {"city": {"enum": ["Oslo", "Rome"]}}, "required": ["city"],
        "additionalProperties": false,
    });
    let tool = json!({"type": "function", "function": {"name": "rain", "parameters": parameters}});
    let mut body = chat(json!({"tools": [tool], "max_tokens": 200}));
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

#[tokio::test]
async fn an_answer_with_tools_goes_on_before_and_within_their_calls() {
    let said = check_every_cut(&Script::new("It is <b>dry</b> <tool"), CHAT, &with_tools(&json!({}))).await;
    assert_eq!(
        (said.text.as_str(), &said.finish[0]),
        ("It is <b>dry</b> <tool", &json!("stop"))
    );
    let calls = "Let me look.\n<tool_call>\n{\"name\": \"rain\", \"arguments\": {\"city\": \"Oslo\"}}\n</tool_call>\n\
                 <tool_call>\n{\"name\": \"rain\", \"arguments\": {\"city\": \"Rome\"}}\n</tool_call>";
    for choice in ["auto", "required"] {
        let script = Script::new(if choice == "auto" {
            calls
        } else {
            &calls["Let me look.\n".len()..]
        });
        let said = check_every_cut(&script, CHAT, &with_tools(&json!({"tool_choice": choice}))).await;
        let call = |city: &str| ("rain".to_owned(), format!("{{\"city\": \"{city}\"}}"));
        assert_eq!(said.calls, [call("Oslo"), call("Rome")]);
        assert_eq!(said.finish, [json!("tool_calls")]);
    }
    let cut = check_every_cut(&Script::new(calls), CHAT, &with_tools(&json!({"max_tokens": 70}))).await;
    assert_eq!((cut.calls.len(), &cut.finish[0]), (1, &json!("length")));
}

#[tokio::test]
async fn tokens_are_named_only_where_a_stream_can_be_taken_up() {
    let worker = TestWorker::start(Script::new("Hello"), &[]).await;
    let named = |events: Vec<Event>| events.into_iter().flat_map(|event| event.tokens).count();
    let body = chat(json!({"stream": true}));
    assert_eq!(
        named(stream(&worker, CHAT, &body).await),
        "Hello".len() + 1,
        "and the end token"
    );
    for (path, body) in [
        (CHAT, chat(json!({"stream": true, "n": 2}))),
        (CHAT, chat(json!({"stream": true, "logprobs": true}))),
        (COMPLETIONS, completion(json!({"stream": true, "echo": true}))),
        (COMPLETIONS, completion(json!({"stream": true, "logprobs": 1}))),
        (COMPLETIONS, completion(json!({"stream": true, "prompt": ["a", "b"]}))),
    ] {
        assert_eq!(named(stream(&worker, path, &body).await), 0, "{body}");
    }
    let plain = worker.post(CHAT, &body).await.text().await.unwrap();
    assert!(!plain.contains(TOKENS_COMMENT), "nobody asked for them");
}

#[tokio::test]
async fn what_no_worker_can_have_begun_is_refused() {
    let worker = TestWorker::start(Script::new("Hello"), &[]).await;
    let of = |text: &str| -> Vec<u32> { text.bytes().map(|byte| ANSWER + u32::from(byte)).collect() };
    let json_object = json!({"type": "json_object"});
    for (more, tokens, param) in [
        (json!({}), vec![ANSWER, 70_000], "resume.tokens[1]"),
        (json!({}), vec![256, ANSWER], "resume.tokens[0]"),
        (json!({}), vec![ANSWER; 1_001], "resume.tokens[1000]"),
        (json!({"response_format": json_object}), of("{]"), "resume.tokens[1]"),
        (json!({"n": 2}), of("H"), "resume"),
        (json!({"stream": false}), of("H"), "resume"),
    ] {
        let mut body = chat(json!({"stream": true, "resume": {"id": "x", "created": 1, "tokens": tokens}}));
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let (status, error) = worker.refusal(CHAT, &body).await;
        assert_eq!((status, &error["param"]), (400, &json!(param)), "{error}");
    }
}
