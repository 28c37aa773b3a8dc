//! Tools for models whose chat template knows none: all is told in plain messages, in Hermes' words.

use std::fmt::Write;

use serde_json::{Value, json};

use crate::tools::{ToolFormat, ToolSpec};

impl ToolFormat {
    /// A system text that tells a model of its tools and how to call them in the [`Hermes`](Self::Hermes) format.
    #[must_use]
    pub fn instructions(tools: &[ToolSpec]) -> String {
        let mut text = "You can call tools to help with the user's request. Each line between <tools> and </tools> \
                        describes one as a JSON schema:\n<tools>\n"
            .to_owned();
        for tool in tools {
            let _ = writeln!(text, "{}", tool.description());
        }
        text.push_str(
            "</tools>\n\nTo call a tool, answer with a JSON object that has its name and its arguments, within \
             <tool_call> and </tool_call>:\n<tool_call>\n{\"name\": \"the tool's name\", \"arguments\": {\"an \
             argument's name\": \"its value\"}}\n</tool_call>\nThe results come within <tool_response> and \
             </tool_response>. Answer directly where no tool is of use.",
        );
        text
    }

    /// A conversation that a template without tools can render: the [`instructions`](Self::instructions), if there are
    /// tools, are in its system message, calls are text in the [`Hermes`](Self::Hermes) format, and their results come
    /// from the user. Neighbouring messages of the user, or of the assistant, are joined, since many templates insist
    /// that the two take turns.
    ///
    /// `messages` are those of the OpenAI API with string contents; a call's `arguments` may be an object or JSON text.
    #[must_use]
    pub fn plain_messages(tools: &[ToolSpec], messages: &[Value]) -> Vec<Value> {
        let mut plain: Vec<Value> = Vec::with_capacity(messages.len() + 1);
        for message in messages {
            let message = without_calls(message);
            let takes_turns = message["role"] == "user" || message["role"] == "assistant";
            match plain.last_mut() {
                Some(last) if takes_turns && last["role"] == message["role"] => {
                    last["content"] = json!(joined(content(last), "\n", content(&message)));
                }
                _ => plain.push(message),
            }
        }
        if !tools.is_empty() {
            let instructions = Self::instructions(tools);
            match plain.first_mut().filter(|first| first["role"] == "system") {
                Some(system) => system["content"] = json!(joined(content(system), "\n\n", &instructions)),
                None => plain.insert(0, json!({"role": "system", "content": instructions})),
            }
        }
        plain
    }
}

/// A message as one with a role and a text only, where it is a result or has calls.
fn without_calls(message: &Value) -> Value {
    let text = content(message);
    if message["role"] == "tool" {
        return json!({"role": "user", "content": format!("<tool_response>\n{text}\n</tool_response>")});
    }
    match message["tool_calls"].as_array() {
        Some(calls) => {
            let add = |text: String, call: &Value| joined(&text, "\n", &call_text(&call["function"]));
            json!({"role": message["role"], "content": calls.iter().fold(text.to_owned(), add)})
        }
        None => message.clone(),
    }
}

fn content(message: &Value) -> &str {
    message["content"].as_str().unwrap_or_default()
}

fn call_text(function: &Value) -> String {
    let arguments = match &function["arguments"] {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let name = &function["name"];
    format!("<tool_call>\n{{\"name\": {name}, \"arguments\": {arguments}}}\n</tool_call>")
}

fn joined(text: &str, separator: &str, more: &str) -> String {
    match (text, more) {
        ("", only) | (only, "") => only.to_owned(),
        _ => format!("{text}{separator}{more}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clock() -> ToolSpec {
        ToolSpec {
            name: "clock".to_owned(),
            description: Some("Tells the time".to_owned()),
            parameters: Some(json!({"type": "object", "properties": {"zone": {"type": "string"}}})),
            strict: false,
        }
    }

    #[test]
    fn the_instructions_show_each_tool_and_the_format() {
        let text = ToolFormat::instructions(&[clock()]);
        assert!(text.contains(
            r#"{"type":"function","function":{"name":"clock","description":"Tells the time","parameters":{"type":"object","properties":{"zone":{"type":"string"}}}}}"#
        ));
        assert!(text.contains("<tool_call>\n{\"name\": "));
    }

    #[test]
    fn a_conversation_with_calls_becomes_one_without() {
        let messages = [
            json!({"role": "system", "content": "Be kind."}),
            json!({"role": "user", "content": "What time is it?"}),
            json!({"role": "assistant", "content": null, "tool_calls": [
                {"id": "a", "type": "function", "function": {"name": "clock", "arguments": "{\"zone\": \"UTC\"}"}},
                {"id": "b", "type": "function", "function": {"name": "clock", "arguments": {"zone": "CET"}}},
            ]}),
            json!({"role": "tool", "tool_call_id": "a", "content": "12:00"}),
            json!({"role": "tool", "tool_call_id": "b", "content": "13:00"}),
        ];
        let plain = ToolFormat::plain_messages(&[clock()], &messages);
        let content = |index: usize| plain[index]["content"].as_str();
        assert_eq!(plain.len(), 4);
        assert!(content(0).is_some_and(|text| text.starts_with("Be kind.\n\nYou can call tools")));
        assert_eq!(
            content(2),
            Some(
                "<tool_call>\n{\"name\": \"clock\", \"arguments\": {\"zone\": \"UTC\"}}\n</tool_call>\n<tool_call>\n\
                 {\"name\": \"clock\", \"arguments\": {\"zone\":\"CET\"}}\n</tool_call>"
            )
        );
        assert_eq!(plain[2].get("tool_calls"), None);
        assert_eq!(plain[3]["role"], "user");
        assert_eq!(
            content(3),
            Some("<tool_response>\n12:00\n</tool_response>\n<tool_response>\n13:00\n</tool_response>")
        );
    }

    #[test]
    fn user_and_assistant_take_turns() {
        let messages = [
            json!({"role": "user", "content": "Time?"}),
            json!({"role": "assistant", "content": "I look."}),
            json!({"role": "assistant", "content": null, "tool_calls": [
                {"function": {"name": "clock", "arguments": {}}},
            ]}),
            json!({"role": "tool", "content": "12:00"}),
            json!({"role": "user", "content": "And now?"}),
        ];
        let call = "<tool_call>\n{\"name\": \"clock\", \"arguments\": {}}\n</tool_call>";
        let expected = [
            json!({"role": "user", "content": "Time?"}),
            json!({"role": "assistant", "content": format!("I look.\n{call}")}),
            json!({"role": "user", "content": "<tool_response>\n12:00\n</tool_response>\nAnd now?"}),
        ];
        assert_eq!(ToolFormat::plain_messages(&[], &messages), expected);
    }

    #[test]
    fn a_conversation_without_a_system_message_gets_one() {
        let plain = ToolFormat::plain_messages(&[clock()], &[json!({"role": "user", "content": "Hi"})]);
        assert_eq!(plain[0]["role"], "system");
        assert_eq!(plain[0]["content"], ToolFormat::instructions(&[clock()]));
        assert_eq!(plain[1], json!({"role": "user", "content": "Hi"}));
    }
}
