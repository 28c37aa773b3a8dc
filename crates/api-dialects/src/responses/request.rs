//! The request.

use openai_api::{Fields, InvalidRequest};
use serde_json::{Value, json};

use super::input;
use super::response::{Echo, Response};
use crate::draft::{self, Draft, Said};
use crate::names::Table;
use crate::{Reply, Translated};

/// The chat's names, as Responses has them.
const NAMES: Table = Table {
    body: &[
        ("messages", "input"),
        ("max_completion_tokens", "max_output_tokens"),
        ("response_format.json_schema", "text.format"),
        ("response_format", "text.format"),
        ("tool_choice.function", "tool_choice"),
        ("logprobs", "include"),
    ],
    message: &[(".tool_call_id", ".call_id")],
    tool: &[(".function", "")],
};

/// What has the same name and meaning in the chat.
const SAME: [&str; 2] = ["temperature", "top_p"];

/// What labels or files a request for OpenAI's own bookkeeping, or tunes what is not there. A context is never cut: what does
/// not fit is refused.
const WITHOUT_EFFECT: [&str; 7] = [
    "context_management",
    "user",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_options",
    "prompt_cache_retention",
    "max_tool_calls",
];

const KEEPS_NOTHING: &str = "this server keeps no answers; send the whole conversation as items of `input`";

/// What a client would miss if it were ignored.
const REFUSED: [(&str, &str); 8] = [
    ("previous_response_id", KEEPS_NOTHING),
    ("conversation", KEEPS_NOTHING),
    (
        "prompt",
        "this server keeps no prompts; send `instructions` and `input`",
    ),
    (
        "background",
        "answers are not computed in the background; send `stream: true`, or wait for the answer",
    ),
    ("background_options", "answers are not computed in the background"),
    ("moderation", "there is no moderation"),
    ("access_programs", "there are no access programs"),
    ("image", "images are not supported"),
];

/// What may be asked to be included. All but the first belong to items that are never made here.
const INCLUDES: [&str; 8] = [
    LOGPROBS,
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "message.input_image.image_url",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
    "reasoning.encrypted_content",
];
const LOGPROBS: &str = "message.output_text.logprobs";

/// Reads a request.
pub fn translate(body: &[u8]) -> Result<(Translated, Box<dyn Reply>), InvalidRequest> {
    let mut fields = Fields::of_body(body)?;
    let mut draft = Draft::new();
    let mut echo = Echo::default();
    let model = draft::name(&mut fields, "model")?;
    draft.set("model", model.as_str());
    if let Some(instructions) = fields.string("instructions")? {
        echo.put("instructions", instructions.as_str());
        draft.say(Said::new("system", vec![instructions], "instructions"));
    }
    input::read(fields.required("input")?, &mut draft)?;
    limits_and_sampling(&mut fields, &mut draft, &mut echo)?;
    logprobs(&mut fields, &mut draft, &mut echo)?;
    text(&mut fields, &mut draft, &mut echo)?;
    tools(&mut fields, &mut draft, &mut echo)?;
    bookkeeping(&mut fields, &mut draft, &mut echo)?;
    let is_stream = stream(&mut fields, &mut draft)?;
    draft::refuse(&mut fields, &REFUSED)?;
    fields.finish()?;
    let translated = draft.finish(is_stream, NAMES)?;
    Ok((translated, Box::new(Response::new(model, echo))))
}

fn limits_and_sampling(fields: &mut Fields, draft: &mut Draft, echo: &mut Echo) -> Result<(), InvalidRequest> {
    if let Some(tokens) = fields.take("max_output_tokens") {
        echo.put("max_output_tokens", tokens.clone());
        draft.set("max_completion_tokens", tokens);
    }
    for name in SAME {
        if let Some(value) = fields.take(name) {
            echo.put(name, value.clone());
            draft.set(name, value);
        }
    }
    draft.pass(fields, &["top_k"]);
    draft.pass_sampling(fields);
    // What does not fit the context is refused in either case, never cut in silence.
    if draft::word(fields, "truncation", &["auto", "disabled"])?.as_deref() == Some("auto") {
        draft.ignore("truncation");
    }
    Ok(())
}

fn logprobs(fields: &mut Fields, draft: &mut Draft, echo: &mut Echo) -> Result<(), InvalidRequest> {
    let mut is_wanted = false;
    for (index, item) in fields.array("include")?.unwrap_or_default().into_iter().enumerate() {
        match item.as_str() {
            Some(LOGPROBS) => is_wanted = true,
            Some(known) if INCLUDES.contains(&known) => draft.ignore(format!("include.{known}")),
            _ => {
                let reason = format!("must be one of {}; got {item}", INCLUDES.join(", "));
                return Err(InvalidRequest::value(format!("include[{index}]"), reason));
            }
        }
    }
    if let Some(alternatives) = fields.take("top_logprobs") {
        is_wanted |= alternatives != 0;
        echo.put("top_logprobs", alternatives.clone());
        if is_wanted {
            draft.set("top_logprobs", alternatives);
        }
    }
    if is_wanted {
        draft.set("logprobs", true);
    }
    Ok(())
}

fn text(fields: &mut Fields, draft: &mut Draft, echo: &mut Echo) -> Result<(), InvalidRequest> {
    let Some(value) = fields.take("text") else {
        return Ok(());
    };
    let mut text = Fields::of_value("text", value)?;
    if let Some(verbosity) = draft::word(&mut text, "verbosity", &["low", "medium", "high"])?
        && verbosity != "medium"
    {
        draft.ignore("text.verbosity");
    }
    if let Some(value) = text.take("format") {
        let mut format = Fields::of_value("text.format", value.clone())?;
        match draft::word(&mut format, "type", &["text", "json_object", "json_schema"])?.as_deref() {
            None => return Err(InvalidRequest::missing("text.format.type")),
            Some("json_schema") => {
                let mut schema =
                    json!({"name": format.required_string("name")?, "schema": draft::schema(&mut format, "schema")?});
                for (name, value) in [
                    ("description", format.string("description")?.map(Value::from)),
                    ("strict", format.boolean("strict")?.map(Value::from)),
                ] {
                    if let Some(value) = value {
                        schema[name] = value;
                    }
                }
                draft.set("response_format", json!({"type": "json_schema", "json_schema": schema}));
            }
            Some(kind) => draft.set("response_format", json!({"type": kind})),
        }
        format.finish()?;
        echo.put_format(&value);
    }
    text.finish()
}

fn tools(fields: &mut Fields, draft: &mut Draft, echo: &mut Echo) -> Result<(), InvalidRequest> {
    let tools = fields.array("tools")?.unwrap_or_default().into_iter().enumerate();
    let mut shown = Vec::new();
    for (index, item) in tools {
        let function = function(&format!("tools[{index}]"), item, draft)?;
        let mut flat =
            json!({"type": "function", "name": null, "description": null, "parameters": null, "strict": false});
        for (name, value) in &function {
            flat[name] = value.clone();
        }
        shown.push(flat);
        draft.offer(index, json!({"type": "function", "function": function}));
    }
    echo.put("tools", shown);
    if let Some(choice) = fields.take("tool_choice") {
        echo.put("tool_choice", choice.clone());
        let choice = tool_choice(choice, draft)?;
        draft.set("tool_choice", choice);
    }
    if let Some(parallel) = fields.boolean("parallel_tool_calls")? {
        echo.put("parallel_tool_calls", parallel);
        draft.set("parallel_tool_calls", parallel);
    }
    Ok(())
}

/// Reads a tool, which is flat here.
fn function(path: &str, item: Value, draft: &mut Draft) -> Result<serde_json::Map<String, Value>, InvalidRequest> {
    let mut fields = Fields::of_value(path, item)?;
    let kind = fields.required_string("type")?;
    if kind != "function" {
        let reason = format!("tools of the type `{kind}` are not supported; send tools of the type `function`");
        return Err(InvalidRequest::unsupported(fields.path("type"), reason));
    }
    let mut function = serde_json::Map::new();
    for name in ["name", "description", "parameters", "strict"] {
        if let Some(value) = fields.take(name) {
            function.insert(name.to_owned(), value);
        }
    }
    if let Some(callers) = fields.array("allowed_callers")?
        && callers.iter().any(|caller| caller != "direct")
    {
        let reason = "only the model itself can call tools; leave it out or send [\"direct\"]";
        return Err(InvalidRequest::unsupported(fields.path("allowed_callers"), reason));
    }
    draft.ignore_within("tools", &mut fields, &["output_schema", "defer_loading", "async"]);
    fields.finish()?;
    Ok(function)
}

fn tool_choice(choice: Value, draft: &mut Draft) -> Result<Value, InvalidRequest> {
    if !choice.is_object() {
        return Ok(choice);
    }
    let mut fields = Fields::of_value("tool_choice", choice)?;
    let translated = match fields.required_string("type")?.as_str() {
        "function" => {
            json!({"type": "function", "function": {"name": draft::name(&mut fields, "name")?}})
        }
        "allowed_tools" => {
            let mode = draft::word(&mut fields, "mode", &["auto", "required"])?;
            let mode = mode.ok_or_else(|| InvalidRequest::missing("tool_choice.mode"))?;
            let allowed = fields.array("tools")?;
            let allowed = allowed.ok_or_else(|| InvalidRequest::missing("tool_choice.tools"))?;
            let allowed = allowed
                .into_iter()
                .enumerate()
                .map(|(index, item)| allowed_tool(&format!("tool_choice.tools[{index}]"), item, draft));
            let allowed: Vec<String> = allowed.collect::<Result<_, _>>()?;
            draft.offer_only(&allowed);
            Value::String(mode)
        }
        kind => {
            let reason =
                format!("`{kind}` cannot be chosen; send none, auto, required, or the types function, allowed_tools");
            return Err(InvalidRequest::unsupported("tool_choice.type", reason));
        }
    };
    fields.finish()?;
    Ok(translated)
}

fn allowed_tool(path: &str, item: Value, draft: &Draft) -> Result<String, InvalidRequest> {
    let mut fields = Fields::of_value(path, item)?;
    draft::word(&mut fields, "type", &["function"])?;
    let name = draft::name(&mut fields, "name")?;
    if !draft.offers(&name) {
        let reason = format!("`{name}` is not among `tools`");
        return Err(InvalidRequest::value(fields.path("name"), reason));
    }
    fields.finish()?;
    Ok(name)
}

fn bookkeeping(fields: &mut Fields, draft: &mut Draft, echo: &mut Echo) -> Result<(), InvalidRequest> {
    draft.ignore_fields(fields, &WITHOUT_EFFECT);
    if fields.boolean("store")? == Some(true) {
        draft.ignore("store");
    }
    // The usual service is what there is.
    if let Some(tier) = fields.string("service_tier")?
        && !matches!(tier.as_str(), "auto" | "default")
    {
        draft.ignore("service_tier");
    }
    if let Some(metadata) = fields.take("metadata") {
        match &metadata {
            Value::Object(labels) => {
                if let Some((label, other)) = labels.iter().find(|(_, value)| !value.is_string()) {
                    return Err(InvalidRequest::wrong_type(
                        format!("metadata.{label}"),
                        "a string",
                        other,
                    ));
                }
            }
            other => return Err(InvalidRequest::wrong_type("metadata", "an object", other)),
        }
        echo.put("metadata", metadata);
    }
    if let Some(value) = fields.take("reasoning") {
        let mut reasoning = Fields::of_value("reasoning", value)?;
        let wishes = ["effort", "summary", "generate_summary", "context", "mode"];
        draft.ignore_within("reasoning", &mut reasoning, &wishes);
        reasoning.finish()?;
    }
    Ok(())
}

fn stream(fields: &mut Fields, draft: &mut Draft) -> Result<bool, InvalidRequest> {
    let is_stream = fields.boolean("stream")?.unwrap_or(false);
    if let Some(value) = fields.take("stream_options") {
        if !is_stream {
            let reason = "is only allowed together with `stream: true`";
            return Err(InvalidRequest::value("stream_options", reason));
        }
        let mut options = Fields::of_value("stream_options", value)?;
        draft.ignore_within("stream_options", &mut options, &["include_obfuscation"]);
        options.finish()?;
    }
    Ok(is_stream)
}
