//! The items of a conversation.

use openai_api::{Fields, InvalidRequest, ToolCall};
use serde_json::Value;

use crate::draft::{self, Draft, Said};

/// Items that belong to tools and services that are not here.
const UNSUPPORTED_ITEMS: [&str; 27] = [
    "file_search_call",
    "computer_call",
    "computer_call_output",
    "web_search_call",
    "tool_search_call",
    "tool_search_output",
    "additional_tools",
    "configuration_update",
    "compaction",
    "compaction_trigger",
    "image_generation_call",
    "code_interpreter_call",
    "local_shell_call",
    "local_shell_call_output",
    "shell_call",
    "shell_call_output",
    "apply_patch_call",
    "apply_patch_call_output",
    "mcp_list_tools",
    "mcp_approval_request",
    "mcp_approval_response",
    "mcp_call",
    "custom_tool_call",
    "custom_tool_call_output",
    "item_reference",
    "program",
    "program_output",
];

const UNSUPPORTED_PARTS: [&str; 4] = ["input_image", "input_file", "input_audio", "refusal"];

/// Reads `input`.
pub(super) fn read(input: Value, draft: &mut Draft) -> Result<(), InvalidRequest> {
    match input {
        Value::String(text) => draft.say(Said::new("user", vec![text], "input")),
        Value::Array(items) if items.is_empty() => {
            return Err(InvalidRequest::value("input", "at least one item is needed"));
        }
        Value::Array(items) => {
            for (index, value) in items.into_iter().enumerate() {
                item(format!("input[{index}]"), value, draft)?;
            }
        }
        other => {
            return Err(InvalidRequest::wrong_type(
                "input",
                "a string or an array of items",
                &other,
            ));
        }
    }
    Ok(())
}

fn item(path: String, value: Value, draft: &mut Draft) -> Result<(), InvalidRequest> {
    let mut fields = Fields::of_value(&path, value)?;
    // What an item is called and how it ended says nothing to the model.
    fields.pass_over(&["id", "status"]);
    let kind = fields.string("type")?;
    match kind.as_deref() {
        None | Some("message") => message(path, &mut fields, draft)?,
        Some("function_call") => call(path, &mut fields, draft)?,
        Some("function_call_output") => output(path, &mut fields, draft)?,
        Some("reasoning") => {
            draft.ignore("input.reasoning");
            fields.pass_over(&["summary", "content", "encrypted_content"]);
        }
        Some(kind) => {
            let path = fields.path("type");
            let instead = "items of the types message, function_call and function_call_output";
            return Err(draft::refused_part(path, kind, &UNSUPPORTED_ITEMS, instead));
        }
    }
    fields.finish()
}

fn message(path: String, fields: &mut Fields, draft: &mut Draft) -> Result<(), InvalidRequest> {
    let role = match fields.required_string("role")?.as_str() {
        "user" => "user",
        "assistant" => "assistant",
        "system" => "system",
        "developer" => "developer",
        other => {
            let reason = format!("must be one of user, assistant, system, developer; got `{other}`");
            return Err(InvalidRequest::value(fields.path("role"), reason));
        }
    };
    // Of an answer that is sent back: tells its own kinds apart.
    fields.pass_over(&["phase"]);
    let content_path = fields.path("content");
    let texts = texts(&content_path, fields.required("content")?, draft)?;
    draft.say(Said::new(role, texts, path));
    Ok(())
}

fn call(path: String, fields: &mut Fields, draft: &mut Draft) -> Result<(), InvalidRequest> {
    let call = ToolCall {
        id: draft::name(fields, "call_id")?,
        name: draft::name(fields, "name")?,
        arguments: fields.required_string("arguments")?,
    };
    // What clients add to a call that they parse and send back: it repeats what the call says.
    fields.pass_over(&["parsed_arguments"]);
    draft.ignore_within("input.function_call", fields, &["namespace", "async", "caller"]);
    match draft.last() {
        Some(message) if message.role == "assistant" => message.calls.push(call),
        _ => {
            let mut message = Said::new("assistant", Vec::new(), path);
            message.calls.push(call);
            draft.say(message);
        }
    }
    Ok(())
}

fn output(path: String, fields: &mut Fields, draft: &mut Draft) -> Result<(), InvalidRequest> {
    let id = draft::name(fields, "call_id")?;
    let output_path = fields.path("output");
    let texts = texts(&output_path, fields.required("output")?, draft)?;
    fields.pass_over(&["name"]);
    draft.ignore_within("input.function_call_output", fields, &["namespace", "caller"]);
    draft.say(Said {
        answers: Some(id),
        ..Said::new("tool", texts, path)
    });
    Ok(())
}

fn texts(path: &str, value: Value, draft: &mut Draft) -> Result<Vec<String>, InvalidRequest> {
    match value {
        Value::String(text) => Ok(vec![text]),
        Value::Array(parts) if parts.is_empty() => Err(InvalidRequest::value(path, "at least one part is needed")),
        Value::Array(parts) => {
            let parts = parts.into_iter().enumerate();
            parts
                .map(|(index, value)| part(&format!("{path}[{index}]"), value, draft))
                .collect()
        }
        other => Err(InvalidRequest::wrong_type(
            path,
            "a string or an array of parts",
            &other,
        )),
    }
}

fn part(path: &str, value: Value, draft: &mut Draft) -> Result<String, InvalidRequest> {
    let mut fields = Fields::of_value(path, value)?;
    match fields.required_string("type")?.as_str() {
        "input_text" | "output_text" => {
            let text = fields.required_string("text")?;
            // What clients add to an answer that they parse and send back, and its logprobs: they repeat what the text says.
            fields.pass_over(&["parsed", "logprobs"]);
            draft.ignore_within(
                "input.content",
                &mut fields,
                &["annotations", "prompt_cache_breakpoint"],
            );
            fields.finish()?;
            Ok(text)
        }
        kind => {
            let instead = "parts of the types input_text and output_text";
            Err(draft::refused_part(
                fields.path("type"),
                kind,
                &UNSUPPORTED_PARTS,
                instead,
            ))
        }
    }
}
