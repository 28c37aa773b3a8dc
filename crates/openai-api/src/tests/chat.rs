//! Chat requests as a whole.

use serde_json::{Value, json};
use worker_contract::Resume;

use super::{accepted, invalid, missing, parse, refusal, unknown, unsupported, with, wrong_type};
use crate::chat::UNSUPPORTED;
use crate::{
    ChatRequest, Generation, InvalidCode, Message, PromptEnd, ResponseFormat, Role, StreamMode, ToolChoice, ignored,
    refuse_ignored,
};

#[test]
fn the_smallest_request_has_openais_defaults() {
    let expected = ChatRequest {
        model: "org/name".to_owned(),
        messages: vec![Message::new(Role::User, "Hi")],
        max_tokens: None,
        generation: Generation {
            temperature: 1.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            typical_p: 1.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: vec![],
            seed: None,
            stop: vec![],
            n: 1,
            stream: StreamMode::Off,
            ignored: vec![],
        },
        logprobs: None,
        response_format: ResponseFormat::Text,
        tools: vec![],
        tool_choice: ToolChoice::None,
        parallel_tool_calls: true,
        prompt_end: PromptEnd::Answer,
        resume: None,
    };
    assert_eq!(accepted(&with("model", json!("org/name"))), expected);
}

#[test]
fn the_newer_limit_of_tokens_wins() {
    let mut body = with("max_tokens", json!(5));
    assert_eq!(accepted(&body).max_tokens, Some(5));
    body["max_completion_tokens"] = json!(7);
    assert_eq!(accepted(&body).max_tokens, Some(7));
}

#[test]
fn log_probabilities_come_with_as_many_alternatives_as_asked_for() {
    assert_eq!(accepted(&with("logprobs", json!(true))).logprobs, Some(0));
    assert_eq!(accepted(&with("logprobs", json!(false))).logprobs, None);
    let mut body = with("logprobs", json!(true));
    body["top_logprobs"] = json!(20);
    assert_eq!(accepted(&body).logprobs, Some(20));
    body["top_logprobs"] = json!(21);
    assert_eq!(refusal(&body), invalid("top_logprobs"));
    body["top_logprobs"] = json!(-1);
    assert_eq!(refusal(&body), invalid("top_logprobs"));
}

#[test]
fn alternatives_need_log_probabilities() {
    assert_eq!(refusal(&with("top_logprobs", json!(3))), invalid("top_logprobs"));
    let mut body = with("logprobs", json!(false));
    body["top_logprobs"] = json!(3);
    assert_eq!(refusal(&body), invalid("top_logprobs"));
}

#[test]
fn null_is_as_good_as_absent_for_everything_that_is_optional() {
    let mut body = with("temperature", Value::Null);
    let names = [
        "top_p",
        "seed",
        "stop",
        "stream",
        "stream_options",
        "max_tokens",
        "max_completion_tokens",
        "top_k",
        "min_p",
        "typical_p",
        "repetition_penalty",
        "presence_penalty",
        "frequency_penalty",
        "logit_bias",
        "n",
        "logprobs",
        "top_logprobs",
        "response_format",
        "tools",
        "tool_choice",
        "parallel_tool_calls",
        "add_generation_prompt",
        "continue_final_message",
        "resume",
    ];
    let unsupported = UNSUPPORTED.iter().map(|parameter| parameter.name());
    let ignored = ignored::OF_ALL.iter().chain(&ignored::OF_CHATS);
    let ignored = ignored.map(|parameter| parameter.name());
    for name in names.into_iter().chain(unsupported).chain(ignored) {
        body[name] = Value::Null;
    }
    assert_eq!(accepted(&body), accepted(&with("model", json!("m"))));
}

#[test]
fn a_value_that_asks_for_nothing_passes() {
    let smallest = accepted(&with("model", json!("m")));
    for (name, value) in [
        ("n", json!(1)),
        ("top_k", json!(-1)),
        ("logit_bias", json!({})),
        ("logprobs", json!(false)),
        ("top_logprobs", json!(0)),
        ("tools", json!([])),
        ("tool_choice", json!("none")),
        ("tool_choice", json!("auto")),
        ("functions", json!([])),
        ("function_call", json!("none")),
        ("response_format", json!({"type": "text"})),
        ("modalities", json!(["text"])),
        ("verbosity", json!("medium")),
        ("store", json!(false)),
        ("metadata", json!({})),
        ("service_tier", json!("auto")),
        ("add_generation_prompt", json!(true)),
        ("continue_final_message", json!(false)),
    ] {
        assert_eq!(accepted(&with(name, value)), smallest, "{name}");
    }
}

#[test]
fn what_is_known_and_not_supported_is_refused_by_name() {
    for (name, value) in [
        ("functions", json!([{"name": "f"}])),
        ("function_call", json!({"name": "f"})),
        ("modalities", json!(["text", "audio"])),
        ("audio", json!({"voice": "alloy"})),
        ("web_search_options", json!({})),
        ("moderation", json!({"model": "m"})),
    ] {
        assert_eq!(refusal(&with(name, value)), unsupported(name));
    }
    let error = parse(&with("audio", json!({}))).unwrap_err();
    assert!(error.message.contains("not supported yet"), "{error}");
}

#[test]
fn what_has_a_successor_is_refused_with_its_name() {
    for (name, value, successor) in [
        ("functions", json!([{"name": "f"}]), "`tools`"),
        ("function_call", json!({"name": "f"}), "`tool_choice`"),
    ] {
        let error = parse(&with(name, value)).unwrap_err();
        assert!(error.message.contains(successor), "{error}");
    }
}

#[test]
fn what_nobody_knows_is_refused_by_name() {
    assert_eq!(refusal(&with("top_n", json!(40))), unknown("top_n"));
    assert_eq!(refusal(&with("max_token", Value::Null)), unknown("max_token"));
    assert_eq!(refusal(&with("prompt", json!("Hi"))), unknown("prompt"));
}

#[test]
fn what_has_no_effect_is_accepted_if_it_is_of_its_type_and_named() {
    for (name, value) in [
        ("user", json!("u")),
        ("metadata", json!({"a": "b"})),
        ("store", json!(true)),
        ("service_tier", json!("flex")),
        ("prompt_cache_key", json!("k")),
        ("prompt_cache_retention", json!("24h")),
        ("prompt_cache_options", json!({"mode": "explicit"})),
        ("safety_identifier", json!("s")),
        ("reasoning_effort", json!("low")),
        ("verbosity", json!("high")),
        ("prediction", json!({"type": "content", "content": "x"})),
    ] {
        assert_eq!(accepted(&with(name, value)).generation.ignored, [name]);
        assert_eq!(refusal(&with(name, json!(1))), wrong_type(name));
    }
    let mut body = with("stream", json!(true));
    body["stream_options"] = json!({"include_obfuscation": true});
    body["user"] = json!("u");
    let ignored = accepted(&body).generation.ignored;
    assert_eq!(ignored, ["user", "stream_options.include_obfuscation"]);
    refuse_ignored(&[]).unwrap();
    let refused = refuse_ignored(&ignored).unwrap_err();
    assert_eq!(
        (refused.param.as_deref(), refused.code),
        (Some("user"), InvalidCode::UnsupportedParameter)
    );
}

#[test]
fn a_prompt_ends_where_the_parameters_of_vllm_say() {
    let end = |role: &str, generation_prompt: bool, continues: bool| {
        parse(&json!({
            "model": "m", "messages": [{"role": "user", "content": "Hi"}, {"role": role, "content": "Ho"}],
            "add_generation_prompt": generation_prompt, "continue_final_message": continues,
        }))
        .map(|request| request.prompt_end)
        .map_err(|error| error.param.unwrap())
    };
    assert_eq!(end("assistant", true, false), Ok(PromptEnd::Answer));
    assert_eq!(end("assistant", false, false), Ok(PromptEnd::Messages));
    assert_eq!(end("assistant", false, true), Ok(PromptEnd::FinalMessage));
    assert_eq!(
        end("assistant", true, true),
        Err("continue_final_message".into()),
        "which of them?"
    );
    assert_eq!(
        end("user", false, true),
        Err("continue_final_message".into()),
        "the model does not speak for others"
    );
}

#[test]
fn a_stream_that_is_taken_up_says_where_it_stands() {
    let resume = json!({"id": "chatcmpl-1", "created": 7, "tokens": [5, 0, 4294967295_u32]});
    let mut body = with("resume", resume);
    assert_eq!(refusal(&body), invalid("resume"), "no stream");
    body["stream"] = json!(true);
    let expected = Resume {
        id: "chatcmpl-1".into(),
        created: 7,
        tokens: vec![5, 0, u32::MAX],
    };
    assert_eq!(accepted(&body).resume, Some(expected));
    for (name, value) in [("n", json!(2)), ("logprobs", json!(true))] {
        let mut body = body.clone();
        body[name] = value;
        assert_eq!(refusal(&body), invalid("resume"), "{name}");
    }
    for (name, value, expected) in [
        ("id", json!(1), wrong_type("resume.id")),
        ("id", json!("x".repeat(257)), invalid("resume.id")),
        ("created", Value::Null, missing("resume.created")),
        ("tokens", Value::Null, missing("resume.tokens")),
        ("tokens", json!([1, -1]), wrong_type("resume.tokens[1]")),
        ("text", json!("x"), unknown("resume.text")),
    ] {
        let mut body = body.clone();
        body["resume"][name] = value;
        assert_eq!(refusal(&body), expected);
    }
}

#[test]
fn a_wrong_type_names_its_path() {
    for (name, value) in [
        ("model", json!(1)),
        ("messages", json!("Hi")),
        ("max_tokens", json!("many")),
        ("max_tokens", json!(1.5)),
        ("max_completion_tokens", json!([1])),
        ("logprobs", json!(5)),
        ("top_logprobs", json!("5")),
        ("parallel_tool_calls", json!("yes")),
        ("response_format", json!("json_object")),
        ("tools", json!({})),
        ("tool_choice", json!(true)),
    ] {
        assert_eq!(refusal(&with(name, value)), wrong_type(name));
    }
}

#[test]
fn a_limit_of_tokens_is_at_least_one() {
    assert_eq!(refusal(&with("max_tokens", json!(0))), invalid("max_tokens"));
    let newer = with("max_completion_tokens", json!(-3));
    assert_eq!(refusal(&newer), invalid("max_completion_tokens"));
}

#[test]
fn what_is_required_is_asked_for() {
    assert_eq!(refusal(&json!({"messages": []})), missing("model"));
    assert_eq!(refusal(&with("model", json!(""))), missing("model"));
    assert_eq!(refusal(&with("messages", Value::Null)), missing("messages"));
}

#[test]
fn a_body_that_is_no_json_object_is_refused_as_a_whole() {
    for body in [&b""[..], b"{", b"[]", b"1", b"\xff", br#"{"model": "m"} x"#] {
        let error = ChatRequest::parse(body).unwrap_err();
        assert_eq!((error.param, error.code), (None, InvalidCode::InvalidJson));
    }
}

#[test]
fn the_error_object_has_all_that_the_body_needs() {
    let object = parse(&with("top_n", json!(1))).unwrap_err().object();
    assert_eq!(object.kind, "invalid_request_error");
    assert_eq!(object.param.as_deref(), Some("top_n"));
    assert_eq!(object.code.as_deref(), Some("unknown_parameter"));
}
