//! The messages of a conversation.

use std::collections::HashSet;

use serde::ser::SerializeSeq;
use serde::{Deserialize, Serialize, Serializer};
use serde_json::Value;

use crate::error::InvalidRequest;
use crate::fields::{Fields, Unsupported, nothing};
use crate::tools::{ToolKind, function_kind};

/// What an assistant's earlier answer carries beside its content, when a client sends it back as it came.
const UNSUPPORTED_IN_ANSWERS: [Unsupported; 4] = [
    Unsupported::replaced("function_call", nothing::never, "send `tool_calls` instead"),
    Unsupported::new("refusal", nothing::never),
    Unsupported::new("audio", nothing::never),
    Unsupported::new("annotations", nothing::empty),
];

/// What OpenAI's clients add to an answer that they parse, or put together of chunks, and then send back with it: it repeats
/// what the answer says.
const REPEATED_IN_ANSWERS: [&str; 1] = ["parsed"];
const REPEATED_IN_CALLS: [&str; 1] = ["index"];
const REPEATED_IN_FUNCTIONS: [&str; 1] = ["parsed_arguments"];

/// One message of a conversation. Serialized as chat templates take it: the content is a text even where there is none, and
/// the arguments of a tool call are an object if they can be read as one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// What is said. Several text parts are joined by a line break. `None` only where there are tool calls.
    #[serde(serialize_with = "text_or_empty")]
    pub content: Option<String>,
    /// Name of the participant; it is up to the chat template to show it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The tools that the assistant called.
    #[serde(skip_serializing_if = "Vec::is_empty", serialize_with = "calls_with_objects")]
    pub tool_calls: Vec<ToolCall>,
    /// Of a tool's answer: which call of an earlier message it answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tool_call_id: Option<String>,
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
    /// A tool that the model called.
    Tool,
}

/// A call of a tool, in a request and in an answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "WireCall", from = "WireCall")]
pub struct ToolCall {
    /// Names the call.
    pub id: String,
    /// The function.
    pub name: String,
    /// Its arguments: JSON as the model wrote it, so perhaps cut off.
    pub arguments: String,
}

#[derive(Serialize, Deserialize)]
struct WireCall {
    id: String,
    r#type: ToolKind,
    function: WireFunction<String>,
}

#[derive(Serialize, Deserialize)]
struct WireFunction<Arguments> {
    name: String,
    arguments: Arguments,
}

impl From<WireCall> for ToolCall {
    fn from(wire: WireCall) -> Self {
        Self {
            id: wire.id,
            name: wire.function.name,
            arguments: wire.function.arguments,
        }
    }
}

impl From<ToolCall> for WireCall {
    fn from(call: ToolCall) -> Self {
        Self {
            id: call.id,
            r#type: ToolKind::Function,
            function: WireFunction {
                name: call.name,
                arguments: call.arguments,
            },
        }
    }
}

impl Message {
    /// A text of somebody.
    pub fn new(role: Role, content: impl Into<String>) -> Self {
        Self {
            role,
            content: Some(content.into()),
            name: None,
            tool_calls: Vec::new(),
            tool_call_id: None,
        }
    }
}

fn text_or_empty<S: Serializer>(content: &Option<String>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(content.as_deref().unwrap_or_default())
}

fn calls_with_objects<S: Serializer>(calls: &[ToolCall], serializer: S) -> Result<S::Ok, S::Error> {
    #[derive(Serialize)]
    struct Call<'a> {
        id: &'a str,
        r#type: ToolKind,
        function: Function<'a>,
    }
    #[derive(Serialize)]
    struct Function<'a> {
        name: &'a str,
        arguments: Value,
    }
    let mut sequence = serializer.serialize_seq(Some(calls.len()))?;
    for call in calls {
        sequence.serialize_element(&Call {
            id: &call.id,
            r#type: ToolKind::Function,
            function: Function {
                name: &call.name,
                arguments: call.arguments_for_template(),
            },
        })?;
    }
    sequence.end()
}

impl ToolCall {
    fn arguments_for_template(&self) -> Value {
        if self.arguments.trim().is_empty() {
            return Value::Object(serde_json::Map::new());
        }
        match serde_json::from_str(&self.arguments) {
            Ok(arguments @ Value::Object(_)) => arguments,
            _ => Value::String(self.arguments.clone()),
        }
    }
}

/// Reads `messages`.
pub(crate) fn messages(value: Value) -> Result<Vec<Message>, InvalidRequest> {
    let items = match value {
        Value::Array(items) if items.is_empty() => {
            return Err(InvalidRequest::value("messages", "at least one message is needed"));
        }
        Value::Array(items) => items,
        other => return Err(InvalidRequest::wrong_type("messages", "an array of messages", &other)),
    };
    let messages = items.into_iter().enumerate();
    let messages: Vec<Message> = messages
        .map(|(index, item)| message(&format!("messages[{index}]"), item))
        .collect::<Result<_, _>>()?;
    check_answers_of_tools(&messages)?;
    Ok(messages)
}

/// A tool's answer has to answer a call: templates lay it out as a part of that.
fn check_answers_of_tools(messages: &[Message]) -> Result<(), InvalidRequest> {
    let mut called = HashSet::new();
    for (index, message) in messages.iter().enumerate() {
        called.extend(message.tool_calls.iter().map(|call| call.id.as_str()));
        if let Some(id) = &message.tool_call_id
            && !called.contains(id.as_str())
        {
            let reason = format!("no message before this one has a tool call with the id `{id}`");
            return Err(InvalidRequest::value(format!("messages[{index}].tool_call_id"), reason));
        }
    }
    Ok(())
}

fn message(path: &str, value: Value) -> Result<Message, InvalidRequest> {
    let mut fields = Fields::of_value(path, value)?;
    let role = role(&mut fields)?;
    let mut tool_calls = Vec::new();
    if role == Role::Assistant {
        fields.pass_over(&REPEATED_IN_ANSWERS);
        fields.refuse(&UNSUPPORTED_IN_ANSWERS)?;
        tool_calls = self::tool_calls(&mut fields)?;
    }
    let tool_call_id = match role {
        Role::Tool => Some(fields.required_string("tool_call_id")?),
        _ => None,
    };
    let content_path = fields.path("content");
    let content = match fields.take("content") {
        Some(value) => Some(content(&content_path, value)?),
        None if tool_calls.is_empty() => return Err(InvalidRequest::missing(content_path)),
        None => None,
    };
    let name = fields.string("name")?;
    fields.finish()?;
    Ok(Message {
        role,
        content,
        name,
        tool_calls,
        tool_call_id,
    })
}

fn role(fields: &mut Fields) -> Result<Role, InvalidRequest> {
    let path = fields.path("role");
    match fields.required_string("role")?.as_str() {
        "system" => Ok(Role::System),
        "developer" => Ok(Role::Developer),
        "user" => Ok(Role::User),
        "assistant" => Ok(Role::Assistant),
        "tool" => Ok(Role::Tool),
        "function" => {
            let reason =
                "messages of the role `function` are not supported; send the role `tool` with a `tool_call_id`";
            Err(InvalidRequest::unsupported(path, reason))
        }
        other => {
            let reason = format!("must be one of system, developer, user, assistant, tool; got `{other}`");
            Err(InvalidRequest::value(path, reason))
        }
    }
}

fn tool_calls(message: &mut Fields) -> Result<Vec<ToolCall>, InvalidRequest> {
    let path = message.path("tool_calls");
    let items = message.array("tool_calls")?.unwrap_or_default();
    let items = items.into_iter().enumerate();
    items
        .map(|(index, item)| tool_call(&format!("{path}[{index}]"), item))
        .collect()
}

fn tool_call(path: &str, value: Value) -> Result<ToolCall, InvalidRequest> {
    let mut fields = Fields::of_value(path, value)?;
    fields.pass_over(&REPEATED_IN_CALLS);
    let id = fields.required_string("id")?;
    function_kind(&mut fields, "tool calls")?;
    let mut function = fields.object("function")?;
    let name = function.required_string("name")?;
    let arguments = function.required_string("arguments")?;
    function.pass_over(&REPEATED_IN_FUNCTIONS);
    function.finish()?;
    fields.finish()?;
    Ok(ToolCall { id, name, arguments })
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
    match fields.required_string("type")?.as_str() {
        "text" => {
            let text = fields.required_string("text")?;
            fields.finish()?;
            Ok(text)
        }
        kind @ ("image_url" | "input_audio" | "file" | "refusal") => Err(InvalidRequest::unsupported(
            type_path,
            format_args!("parts of the type `{kind}` are not supported yet; send `text` parts"),
        )),
        other => Err(InvalidRequest::value(
            type_path,
            format_args!("unknown type of part `{other}`"),
        )),
    }
}
