//! Turns and their blocks.

use openai_api::{Fields, InvalidRequest, ToolCall};
use serde_json::Value;

use crate::draft::{self, Draft, Said};

/// Blocks that belong to media, tools and services that are not here.
const UNSUPPORTED: [&str; 14] = [
    "image",
    "document",
    "search_result",
    "server_tool_use",
    "web_search_tool_result",
    "web_fetch_tool_result",
    "code_execution_tool_result",
    "bash_code_execution_tool_result",
    "text_editor_code_execution_tool_result",
    "tool_search_tool_result",
    "container_upload",
    "tool_reference",
    "browser_state",
    "mcp_tool_use",
];

/// What the text of a tool's result begins with if it is an error.
const ERROR: &str = "Error: ";

/// Reads `messages`.
pub(super) fn turns(value: Value, draft: &mut Draft) -> Result<(), InvalidRequest> {
    let turns = match value {
        Value::Array(turns) if turns.is_empty() => {
            return Err(InvalidRequest::value("messages", "at least one message is needed"));
        }
        Value::Array(turns) => turns,
        other => return Err(InvalidRequest::wrong_type("messages", "an array of messages", &other)),
    };
    for (index, value) in turns.into_iter().enumerate() {
        turn(&format!("messages[{index}]"), value, draft)?;
    }
    // Anthropic's rule: a last turn of the assistant is the beginning of the answer.
    if draft
        .last()
        .is_some_and(|last| last.role == "assistant" && last.calls.is_empty())
    {
        draft.set("continue_final_message", true);
        draft.set("add_generation_prompt", false);
    }
    Ok(())
}

fn turn(path: &str, value: Value, draft: &mut Draft) -> Result<(), InvalidRequest> {
    let mut fields = Fields::of_value(path, value)?;
    let role = draft::word(&mut fields, "role", &["user", "assistant", "system"])?;
    let role = role.ok_or_else(|| InvalidRequest::missing(fields.path("role")))?;
    let content_path = fields.path("content");
    let content = fields.required("content")?;
    fields.finish()?;
    match role.as_str() {
        "system" => system(&content_path, content, draft),
        "assistant" => {
            join("assistant", path, draft);
            blocks(&content_path, content, draft, assistant_block)
        }
        _ => blocks(&content_path, content, draft, user_block),
    }
}

/// Reads a text that gives instructions.
pub(super) fn system(path: &str, value: Value, draft: &mut Draft) -> Result<(), InvalidRequest> {
    draft.say(Said::new("system", Vec::new(), path));
    blocks(path, value, draft, |path, kind, fields, draft| match kind {
        "text" => {
            let text = text(fields, draft)?;
            speak("system", path, text, draft);
            Ok(())
        }
        _ => Err(refused(fields, kind)),
    })
}

/// Makes the newest message one of this side.
fn join<'d>(role: &'static str, origin: &str, draft: &'d mut Draft) -> &'d mut Said {
    if draft.last().is_none_or(|last| last.role != role) {
        draft.say(Said::new(role, Vec::new(), origin));
    }
    draft.last().expect("there is one by now")
}

fn speak(role: &'static str, origin: &str, text: String, draft: &mut Draft) {
    join(role, origin, draft).texts.push(text);
}

type Block = fn(&str, &str, &mut Fields, &mut Draft) -> Result<(), InvalidRequest>;

/// Reads a content: a text, or blocks.
fn blocks(path: &str, value: Value, draft: &mut Draft, read: Block) -> Result<(), InvalidRequest> {
    let blocks = match value {
        Value::String(text) => vec![serde_json::json!({"type": "text", "text": text})],
        Value::Array(blocks) => blocks,
        other => {
            return Err(InvalidRequest::wrong_type(
                path,
                "a string or an array of blocks",
                &other,
            ));
        }
    };
    for (index, value) in blocks.into_iter().enumerate() {
        let path = format!("{path}[{index}]");
        let mut fields = Fields::of_value(&path, value)?;
        let kind = fields.required_string("type")?;
        read(&path, &kind, &mut fields, draft)?;
        fields.finish()?;
    }
    Ok(())
}

fn user_block(path: &str, kind: &str, fields: &mut Fields, draft: &mut Draft) -> Result<(), InvalidRequest> {
    match kind {
        "text" => {
            let text = text(fields, draft)?;
            speak("user", path, text, draft);
            Ok(())
        }
        "tool_result" => result(path, fields, draft),
        _ => Err(refused(fields, kind)),
    }
}

fn assistant_block(path: &str, kind: &str, fields: &mut Fields, draft: &mut Draft) -> Result<(), InvalidRequest> {
    match kind {
        "text" => {
            let text = text(fields, draft)?;
            speak("assistant", path, text, draft);
        }
        "tool_use" => {
            let call = ToolCall {
                id: draft::name(fields, "id")?,
                name: draft::name(fields, "name")?,
                arguments: draft::schema(fields, "input")?.to_string(),
            };
            draft.ignore_within("messages.content", fields, &["cache_control", "toolset_name"]);
            // By whom it was called: there is only the model.
            fields.pass_over(&["caller"]);
            join("assistant", path, draft).calls.push(call);
        }
        "thinking" | "redacted_thinking" => {
            fields.pass_over(&["thinking", "signature", "data"]);
            draft.ignore(format!("messages.content.{kind}"));
        }
        _ => return Err(refused(fields, kind)),
    }
    Ok(())
}

fn text(fields: &mut Fields, draft: &mut Draft) -> Result<String, InvalidRequest> {
    let text = fields.required_string("text")?;
    draft.ignore_within("messages.content", fields, &["citations"]);
    // Marks for caching have one name wherever they stand.
    draft.ignore_fields(fields, &["cache_control"]);
    // What clients add to an answer that they parse and send back: it repeats what the text says.
    fields.pass_over(&["parsed_output"]);
    Ok(text)
}

fn result(path: &str, fields: &mut Fields, draft: &mut Draft) -> Result<(), InvalidRequest> {
    let id = draft::name(fields, "tool_use_id")?;
    draft.say(Said {
        answers: Some(id),
        ..Said::new("tool", Vec::new(), path)
    });
    let content_path = fields.path("content");
    if let Some(content) = fields.take("content") {
        blocks(&content_path, content, draft, |path, kind, fields, draft| match kind {
            "text" => {
                let text = text(fields, draft)?;
                speak("tool", path, text, draft);
                Ok(())
            }
            _ => Err(refused(fields, kind)),
        })?;
    }
    if fields.boolean("is_error")? == Some(true) {
        let texts = &mut join("tool", path, draft).texts;
        match texts.first_mut() {
            Some(first) => first.insert_str(0, ERROR),
            None => texts.push(ERROR.trim_end().to_owned()),
        }
    }
    draft.ignore_fields(fields, &["cache_control"]);
    draft.ignore_within("messages.content", fields, &["toolset_name"]);
    Ok(())
}

fn refused(fields: &Fields, kind: &str) -> InvalidRequest {
    draft::refused_part(fields.path("type"), kind, &UNSUPPORTED, "blocks of the type text")
}
