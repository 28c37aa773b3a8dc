//! `POST /v1/chat/completions`: the request.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::InvalidRequest;
use crate::fields::{Fields, Unsupported, nothing};
use crate::generation::{self, Generation};

const UNSUPPORTED: [Unsupported; 14] = [
    Unsupported::new("tools", nothing::empty),
    Unsupported::new("tool_choice", nothing::none_or_auto),
    Unsupported::new("parallel_tool_calls", nothing::yes),
    Unsupported::new("functions", nothing::empty),
    Unsupported::new("function_call", nothing::none_or_auto),
    Unsupported::new("response_format", nothing::text_format),
    Unsupported::new("logprobs", nothing::no),
    Unsupported::new("top_logprobs", nothing::zero),
    Unsupported::new("reasoning_effort", nothing::never),
    Unsupported::new("verbosity", nothing::medium),
    Unsupported::new("modalities", nothing::text_only),
    Unsupported::new("audio", nothing::never),
    Unsupported::new("prediction", nothing::never),
    Unsupported::new("web_search_options", nothing::never),
];

/// What an assistant's earlier answer carries beside its content, when a client sends it back as it came.
const UNSUPPORTED_IN_ANSWERS: [Unsupported; 5] = [
    Unsupported::new("tool_calls", nothing::empty),
    Unsupported::new("function_call", nothing::never),
    Unsupported::new("refusal", nothing::never),
    Unsupported::new("audio", nothing::never),
    Unsupported::new("annotations", nothing::empty),
];

/// A valid chat request.
#[derive(Debug, Clone, PartialEq)]
pub struct ChatRequest {
    /// Which model, as the client names it.
    pub model: String,
    /// The conversation, oldest first; at least one message.
    pub messages: Vec<Message>,
    /// Most tokens to generate, at least 1; `None`: what the context still holds.
    pub max_tokens: Option<u32>,
    /// How to generate and answer.
    pub generation: Generation,
}

/// One message of a conversation. Serialized as chat templates take it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// What is said. Several text parts are joined by a line break.
    pub content: String,
    /// Name of the participant; it is up to the chat template to show it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// Who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Instructions, by their older name.
    System,
    /// Instructions, by their newer name.
    Developer,
    /// The person.
    User,
    /// The model.
    Assistant,
}

impl ChatRequest {
    /// Parses and validates a body.
    pub fn parse(body: &[u8]) -> Result<Self, InvalidRequest> {
        let mut fields = Fields::of_body(body)?;
        let model = generation::model(&mut fields)?;
        let messages = messages(fields.required("messages")?)?;
        let older = fields.count("max_tokens")?;
        let newer = fields.count("max_completion_tokens")?;
        let generation = Generation::take(&mut fields)?;
        fields.refuse(&UNSUPPORTED)?;
        fields.finish()?;
        Ok(Self {
            model,
            messages,
            max_tokens: newer.or(older),
            generation,
        })
    }
}

fn messages(value: Value) -> Result<Vec<Message>, InvalidRequest> {
    match value {
        Value::Array(items) if items.is_empty() => {
            Err(InvalidRequest::value("messages", "at least one message is needed"))
        }
        Value::Array(items) => {
            let messages = items.into_iter().enumerate();
            messages
                .map(|(index, item)| message(&format!("messages[{index}]"), item))
                .collect()
        }
        other => Err(InvalidRequest::wrong_type("messages", "an array of messages", &other)),
    }
}

fn message(path: &str, value: Value) -> Result<Message, InvalidRequest> {
    let mut fields = Fields::of_value(path, value)?;
    let role_path = fields.path("role");
    let role = match fields.string("role")?.as_deref() {
        None => return Err(InvalidRequest::missing(role_path)),
        Some("system") => Role::System,
        Some("developer") => Role::Developer,
        Some("user") => Role::User,
        Some("assistant") => Role::Assistant,
        Some(role @ ("tool" | "function")) => {
            let reason = format!("messages of the role `{role}` are not supported yet");
            return Err(InvalidRequest::unsupported(role_path, reason));
        }
        Some(other) => {
            let reason = format!("must be one of system, developer, user, assistant; got `{other}`");
            return Err(InvalidRequest::value(role_path, reason));
        }
    };
    if role == Role::Assistant {
        fields.refuse(&UNSUPPORTED_IN_ANSWERS)?;
    }
    let content_path = fields.path("content");
    let content = content(&content_path, fields.required("content")?)?;
    let name = fields.string("name")?;
    fields.finish()?;
    Ok(Message { role, content, name })
}

fn content(path: &str, value: Value) -> Result<String, InvalidRequest> {
    match value {
        Value::String(text) => Ok(text),
        Value::Array(parts) if parts.is_empty() => Err(InvalidRequest::value(path, "at least one part is needed")),
        Value::Array(parts) => {
            let texts = parts.into_iter().enumerate();
            let texts: Result<Vec<_>, _> = texts
                .map(|(index, part)| text_part(&format!("{path}[{index}]"), part))
                .collect();
            Ok(texts?.join("\n"))
        }
        other => Err(InvalidRequest::wrong_type(
            path,
            "a string or an array of parts",
            &other,
        )),
    }
}

fn text_part(path: &str, value: Value) -> Result<String, InvalidRequest> {
    let mut fields = Fields::of_value(path, value)?;
    let type_path = fields.path("type");
    match fields.string("type")?.as_deref() {
        None => Err(InvalidRequest::missing(type_path)),
        Some("text") => {
            let text_path = fields.path("text");
            let text = fields
                .string("text")?
                .ok_or_else(|| InvalidRequest::missing(text_path))?;
            fields.finish()?;
            Ok(text)
        }
        Some(kind @ ("image_url" | "input_audio" | "file" | "refusal")) => Err(InvalidRequest::unsupported(
            type_path,
            format_args!("parts of the type `{kind}` are not supported yet; send `text` parts"),
        )),
        Some(other) => Err(InvalidRequest::value(
            type_path,
            format_args!("unknown type of part `{other}`"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::error::InvalidCode;
    use crate::generation::StreamMode;

    fn parse(body: &Value) -> Result<ChatRequest, InvalidRequest> {
        ChatRequest::parse(body.to_string().as_bytes())
    }

    fn with(name: &str, value: Value) -> Value {
        let mut body = json!({"model": "m", "messages": [{"role": "user", "content": "Hi"}]});
        body[name] = value;
        body
    }

    fn refusal(body: &Value) -> (String, InvalidCode) {
        let error = parse(body).expect_err(&body.to_string());
        let path = error.param.clone().expect("names the parameter");
        assert!(error.message.starts_with(&path), "{error}");
        (path, error.code)
    }

    fn refusal_of_message(message: &Value) -> (String, InvalidCode) {
        refusal(&json!({"model": "m", "messages": [{"role": "user", "content": "Hi"}, message]}))
    }

    #[test]
    fn the_smallest_request_has_openais_defaults() {
        let request = parse(&with("model", json!("org/name"))).unwrap();
        assert_eq!(request.model, "org/name");
        assert_eq!(request.max_tokens, None);
        assert_eq!(
            request.generation,
            Generation {
                temperature: 1.0,
                top_p: 1.0,
                seed: None,
                stop: vec![],
                stream: StreamMode::Off
            }
        );
    }

    #[test]
    fn every_supported_parameter_is_read() {
        let request = parse(&json!({
            "model": "m",
            "messages": [
                {"role": "system", "content": "a"},
                {"role": "developer", "content": [{"type": "text", "text": "b"}]},
                {"role": "user", "content": [{"type": "text", "text": "c"}, {"type": "text", "text": "d"}], "name": "eve"},
                {"role": "assistant", "content": "e", "refusal": null, "tool_calls": null, "annotations": [], "audio": null},
            ],
            "max_tokens": 5, "max_completion_tokens": 7, "temperature": 0, "top_p": 0.5, "seed": -1,
            "stop": ["x", "y"], "stream": true, "stream_options": {"include_usage": true},
        }))
        .unwrap();
        let said: Vec<_> = request
            .messages
            .iter()
            .map(|m| (m.role, m.content.as_str(), m.name.as_deref()))
            .collect();
        assert_eq!(
            said,
            [
                (Role::System, "a", None),
                (Role::Developer, "b", None),
                (Role::User, "c\nd", Some("eve")),
                (Role::Assistant, "e", None)
            ]
        );
        assert_eq!(request.max_tokens, Some(7), "the newer limit wins");
        let generation = request.generation;
        assert_eq!((generation.temperature, generation.top_p), (0.0, 0.5));
        assert_eq!(generation.seed, Some(u64::MAX));
        assert_eq!(generation.stop, ["x", "y"]);
        assert_eq!(generation.stream, StreamMode::On { include_usage: true });
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
        ];
        let unsupported = UNSUPPORTED.iter().map(|parameter| parameter.name());
        for name in names
            .into_iter()
            .chain(unsupported)
            .chain(crate::ACCEPTED_WITHOUT_EFFECT)
        {
            body[name] = Value::Null;
        }
        assert_eq!(parse(&body).unwrap(), parse(&with("model", json!("m"))).unwrap());
    }

    #[test]
    fn a_value_that_asks_for_nothing_passes() {
        for (name, value) in [
            ("n", json!(1)),
            ("presence_penalty", json!(0)),
            ("frequency_penalty", json!(0.0)),
            ("logit_bias", json!({})),
            ("logprobs", json!(false)),
            ("top_logprobs", json!(0)),
            ("tools", json!([])),
            ("tool_choice", json!("none")),
            ("tool_choice", json!("auto")),
            ("parallel_tool_calls", json!(true)),
            ("functions", json!([])),
            ("function_call", json!("none")),
            ("response_format", json!({"type": "text"})),
            ("modalities", json!(["text"])),
            ("verbosity", json!("medium")),
        ] {
            parse(&with(name, value)).unwrap();
        }
    }

    #[test]
    fn what_is_known_and_not_supported_is_refused_by_name() {
        for (name, value) in [
            ("n", json!(2)),
            ("presence_penalty", json!(0.5)),
            ("frequency_penalty", json!(-1)),
            ("logit_bias", json!({"50256": -100})),
            ("logprobs", json!(true)),
            ("top_logprobs", json!(3)),
            ("tools", json!([{"type": "function", "function": {"name": "f"}}])),
            ("tool_choice", json!("required")),
            ("tool_choice", json!({"type": "function", "function": {"name": "f"}})),
            ("parallel_tool_calls", json!(false)),
            ("functions", json!([{"name": "f"}])),
            ("function_call", json!({"name": "f"})),
            ("response_format", json!({"type": "json_object"})),
            ("response_format", json!({"type": "json_schema", "json_schema": {}})),
            ("reasoning_effort", json!("low")),
            ("verbosity", json!("high")),
            ("modalities", json!(["text", "audio"])),
            ("audio", json!({"voice": "alloy"})),
            ("prediction", json!({"type": "content", "content": "x"})),
            ("web_search_options", json!({})),
        ] {
            assert_eq!(
                refusal(&with(name, value)),
                (name.to_owned(), InvalidCode::UnsupportedParameter)
            );
        }
        let error = parse(&with("n", json!(2))).unwrap_err();
        assert!(error.message.contains("not supported yet"), "{error}");
    }

    #[test]
    fn what_nobody_knows_is_refused_by_name() {
        let unknown = |path: &str| (path.to_owned(), InvalidCode::UnknownParameter);
        assert_eq!(refusal(&with("top_k", json!(40))), unknown("top_k"));
        assert_eq!(refusal(&with("max_token", Value::Null)), unknown("max_token"));
        let message = json!({"role": "user", "content": "x", "tool_calls": []});
        assert_eq!(refusal_of_message(&message), unknown("messages[1].tool_calls"));
        let part = json!({"role": "user", "content": [{"type": "text", "text": "x", "cache": 1}]});
        assert_eq!(refusal_of_message(&part), unknown("messages[1].content[0].cache"));
        let options = json!({"model": "m", "messages": [{"role": "user", "content": ""}], "stream": true, "stream_options": {"usage": true}});
        assert_eq!(refusal(&options), unknown("stream_options.usage"));
    }

    #[test]
    fn what_has_no_effect_is_accepted_if_it_is_of_its_type() {
        parse(&with("user", json!("u"))).unwrap();
        parse(&with("metadata", json!({"a": "b"}))).unwrap();
        parse(&with("store", json!(true))).unwrap();
        parse(&with("service_tier", json!("auto"))).unwrap();
        for (name, value) in [("user", json!(1)), ("metadata", json!("a")), ("store", json!("yes"))] {
            assert_eq!(refusal(&with(name, value)), (name.to_owned(), InvalidCode::InvalidType));
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
            ("temperature", json!("hot")),
            ("top_p", json!({})),
            ("seed", json!(0.5)),
            ("stop", json!(1)),
            ("stream", json!("yes")),
        ] {
            assert_eq!(refusal(&with(name, value)), (name.to_owned(), InvalidCode::InvalidType));
        }
        let mut body = with("stream", json!(true));
        body["stream_options"] = json!({"include_usage": 1});
        assert_eq!(
            refusal(&body),
            ("stream_options.include_usage".to_owned(), InvalidCode::InvalidType)
        );
        assert_eq!(
            refusal(&with("stop", json!(["a", 1]))),
            ("stop[1]".to_owned(), InvalidCode::InvalidType)
        );
    }

    #[test]
    fn a_value_out_of_range_names_its_path() {
        let long = "x".repeat(crate::MAX_STOP_BYTES + 1);
        for (path, name, value) in [
            ("messages", "messages", json!([])),
            ("max_tokens", "max_tokens", json!(0)),
            ("max_completion_tokens", "max_completion_tokens", json!(-3)),
            ("temperature", "temperature", json!(2.1)),
            ("temperature", "temperature", json!(-0.1)),
            ("top_p", "top_p", json!(1.5)),
            ("stop", "stop", json!("")),
            ("stop[1]", "stop", json!(["a", ""])),
            ("stop", "stop", json!(["a", "b", "c", "d", "e"])),
            ("stop", "stop", json!(long)),
            ("stream_options", "stream_options", json!({"include_usage": true})),
        ] {
            assert_eq!(
                refusal(&with(name, value)),
                (path.to_owned(), InvalidCode::InvalidValue)
            );
        }
    }

    #[test]
    fn what_is_required_is_asked_for_by_its_path() {
        let missing = |path: &str| (path.to_owned(), InvalidCode::MissingParameter);
        assert_eq!(refusal(&json!({"messages": []})), missing("model"));
        assert_eq!(refusal(&with("model", json!(""))), missing("model"));
        assert_eq!(refusal(&with("messages", Value::Null)), missing("messages"));
        assert_eq!(
            refusal_of_message(&json!({"content": "x"})),
            missing("messages[1].role")
        );
        assert_eq!(
            refusal_of_message(&json!({"role": "user"})),
            missing("messages[1].content")
        );
        assert_eq!(
            refusal_of_message(&json!({"role": "assistant", "content": null})),
            missing("messages[1].content")
        );
        let part = json!({"role": "user", "content": [{"type": "text"}]});
        assert_eq!(refusal_of_message(&part), missing("messages[1].content[0].text"));
        let part = json!({"role": "user", "content": [{"text": "x"}]});
        assert_eq!(refusal_of_message(&part), missing("messages[1].content[0].type"));
    }

    #[test]
    fn messages_that_are_not_understood_are_refused_by_path() {
        let unsupported = |path: &str| (path.to_owned(), InvalidCode::UnsupportedParameter);
        let image = json!({"role": "user", "content": [{"type": "text", "text": "x"}, {"type": "image_url", "image_url": {"url": "data:"}}]});
        assert_eq!(refusal_of_message(&image), unsupported("messages[1].content[1].type"));
        let tool = json!({"role": "tool", "content": "x", "tool_call_id": "1"});
        assert_eq!(refusal_of_message(&tool), unsupported("messages[1].role"));
        let call = json!({"role": "assistant", "content": null, "tool_calls": [{"id": "1"}]});
        assert_eq!(refusal_of_message(&call), unsupported("messages[1].tool_calls"));
        let value = |path: &str| (path.to_owned(), InvalidCode::InvalidValue);
        assert_eq!(
            refusal_of_message(&json!({"role": "robot", "content": "x"})),
            value("messages[1].role")
        );
        assert_eq!(
            refusal_of_message(&json!({"role": "user", "content": []})),
            value("messages[1].content")
        );
        let wrong = |path: &str| (path.to_owned(), InvalidCode::InvalidType);
        assert_eq!(refusal_of_message(&json!("Hi")), wrong("messages[1]"));
        assert_eq!(
            refusal_of_message(&json!({"role": "user", "content": 1})),
            wrong("messages[1].content")
        );
        assert_eq!(
            refusal_of_message(&json!({"role": "user", "content": ["x"]})),
            wrong("messages[1].content[0]")
        );
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
        let object = parse(&with("top_k", json!(1))).unwrap_err().object();
        assert_eq!(object.kind, "invalid_request_error");
        assert_eq!(object.param.as_deref(), Some("top_k"));
        assert_eq!(object.code.as_deref(), Some("unknown_parameter"));
    }

    #[test]
    fn a_message_is_serialized_as_templates_take_it() {
        let request = parse(&with("user", json!("u"))).unwrap();
        assert_eq!(
            serde_json::to_value(&request.messages).unwrap(),
            json!([{"role": "user", "content": "Hi"}])
        );
    }
}
