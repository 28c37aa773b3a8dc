//! The request.

use openai_api::{Fields, InvalidRequest};
use serde_json::{Value, json};

use super::content;
use super::message::Answered;
use crate::draft::{self, Draft};
use crate::names::Table;
use crate::{Reply, Translated};

/// The chat's names, as Messages has them.
const NAMES: Table = Table {
    body: &[
        ("max_completion_tokens", "max_tokens"),
        ("stop", "stop_sequences"),
        ("response_format.json_schema", "output_config.format"),
        ("response_format", "output_config.format"),
        ("tool_choice.function", "tool_choice"),
        ("parallel_tool_calls", "tool_choice.disable_parallel_tool_use"),
    ],
    message: &[(".tool_call_id", ".tool_use_id")],
    tool: &[(".function.parameters", ".input_schema"), (".function", "")],
};

/// What labels a request for Anthropic's own bookkeeping, or tunes what is not there. A context is never cut: what does not
/// fit is refused.
const WITHOUT_EFFECT: [&str; 5] = [
    "cache_control",
    "context_management",
    "diagnostics",
    "user_profile_id",
    "workspace_id",
];

/// What a client would miss if it were ignored.
const REFUSED: [(&str, &str); 4] = [
    ("container", "there are no containers"),
    (
        "mcp_servers",
        "the model cannot call servers by itself; send their tools as `tools`",
    ),
    (
        "inference_geo",
        "this server does not choose where a model runs; leave it out",
    ),
    ("output_format", "send `output_config.format` instead"),
];

/// Reads a request for an answer.
pub fn translate(body: &[u8]) -> Result<(Translated, Box<dyn Reply>), InvalidRequest> {
    let mut fields = Fields::of_body(body)?;
    let mut draft = Draft::new();
    prompt(&mut fields, &mut draft)?;
    draft.set("max_completion_tokens", fields.required("max_tokens")?);
    sampling(&mut fields, &mut draft)?;
    bookkeeping(&mut fields, &mut draft)?;
    let is_stream = fields.boolean("stream")?.unwrap_or(false);
    fields.finish()?;
    let translated = draft.finish(is_stream, NAMES)?;
    Ok((translated, Box::new(Answered)))
}

/// Reads a request to count the tokens of a prompt. The answer to it is read by [`count`](super::count).
pub fn translate_count(body: &[u8]) -> Result<Translated, InvalidRequest> {
    let mut fields = Fields::of_body(body)?;
    let mut draft = Draft::new();
    prompt(&mut fields, &mut draft)?;
    fields.finish()?;
    draft.finish(false, NAMES)
}

/// What an answer and a count have in common.
fn prompt(fields: &mut Fields, draft: &mut Draft) -> Result<(), InvalidRequest> {
    draft.set("model", draft::name(fields, "model")?);
    if let Some(value) = fields.take("system") {
        content::system("system", value, draft)?;
    }
    content::turns(fields.required("messages")?, draft)?;
    tools(fields, draft)?;
    output_config(fields, draft)?;
    thinking(fields, draft)?;
    if draft::word(fields, "speed", &["standard", "fast"])?.as_deref() == Some("fast") {
        draft.ignore("speed");
    }
    draft.ignore_fields(fields, &WITHOUT_EFFECT);
    draft::refuse(fields, &REFUSED)
}

fn sampling(fields: &mut Fields, draft: &mut Draft) -> Result<(), InvalidRequest> {
    if let Some(temperature) = fields.take("temperature") {
        // Anthropic's scale ends at 1.
        if temperature.as_f64().is_some_and(|number| number > 1.0) {
            let reason = format!("must be between 0 and 1, got {temperature}");
            return Err(InvalidRequest::value("temperature", reason));
        }
        draft.set("temperature", temperature);
    }
    draft.pass(fields, &["top_p", "top_k"]);
    draft.pass_sampling(fields);
    if let Some(texts) = fields.array("stop_sequences")?
        && !texts.is_empty()
    {
        draft.set("stop", texts);
    }
    Ok(())
}

fn tools(fields: &mut Fields, draft: &mut Draft) -> Result<(), InvalidRequest> {
    let tools = fields.array("tools")?.unwrap_or_default().into_iter().enumerate();
    for (index, item) in tools {
        let function = tool(&format!("tools[{index}]"), item, draft)?;
        draft.offer(index, json!({"type": "function", "function": function}));
    }
    let Some(value) = fields.take("tool_choice") else {
        return Ok(());
    };
    let mut choice = Fields::of_value("tool_choice", value)?;
    let kind = draft::word(&mut choice, "type", &["auto", "any", "tool", "none"])?;
    match kind.as_deref() {
        None => return Err(InvalidRequest::missing("tool_choice.type")),
        Some("any") => draft.set("tool_choice", "required"),
        Some("tool") => {
            let name = draft::name(&mut choice, "name")?;
            draft.set("tool_choice", json!({"type": "function", "function": {"name": name}}));
        }
        Some(same) => draft.set("tool_choice", same),
    }
    if choice.boolean("disable_parallel_tool_use")? == Some(true) {
        draft.set("parallel_tool_calls", false);
    }
    choice.finish()
}

fn tool(path: &str, item: Value, draft: &mut Draft) -> Result<Value, InvalidRequest> {
    let mut fields = Fields::of_value(path, item)?;
    if let Some(kind) = fields.string("type")?
        && kind != "custom"
    {
        let reason = format!("tools of the type `{kind}` are not supported; send tools with an `input_schema`");
        return Err(InvalidRequest::unsupported(fields.path("type"), reason));
    }
    let mut function = json!({"name": draft::name(&mut fields, "name")?});
    if let Some(description) = fields.string("description")? {
        function["description"] = description.into();
    }
    function["parameters"] = draft::schema(&mut fields, "input_schema")?;
    if let Some(strict) = fields.boolean("strict")? {
        function["strict"] = strict.into();
    }
    if let Some(callers) = fields.array("allowed_callers")?
        && callers.iter().any(|caller| caller != "direct")
    {
        let reason = "only the model itself can call tools; leave it out or send [\"direct\"]";
        return Err(InvalidRequest::unsupported(fields.path("allowed_callers"), reason));
    }
    draft.ignore_within(
        "tools",
        &mut fields,
        &["cache_control", "input_examples", "defer_loading"],
    );
    // Arguments are streamed as they are made in either case.
    fields.boolean("eager_input_streaming")?;
    fields.finish()?;
    Ok(function)
}

fn output_config(fields: &mut Fields, draft: &mut Draft) -> Result<(), InvalidRequest> {
    let Some(value) = fields.take("output_config") else {
        return Ok(());
    };
    let mut config = Fields::of_value("output_config", value)?;
    draft.ignore_within("output_config", &mut config, &["effort"]);
    if let Some(value) = config.take("format") {
        let mut format = Fields::of_value("output_config.format", value)?;
        if draft::word(&mut format, "type", &["json_schema"])?.is_none() {
            return Err(InvalidRequest::missing("output_config.format.type"));
        }
        let schema = draft::schema(&mut format, "schema")?;
        format.finish()?;
        let schema = json!({"name": "output", "schema": schema, "strict": true});
        draft.set("response_format", json!({"type": "json_schema", "json_schema": schema}));
    }
    config.finish()
}

fn thinking(fields: &mut Fields, draft: &mut Draft) -> Result<(), InvalidRequest> {
    let Some(value) = fields.take("thinking") else {
        return Ok(());
    };
    let mut thinking = Fields::of_value("thinking", value)?;
    let kinds = ["disabled", "enabled", "adaptive", "between_tools"];
    match draft::word(&mut thinking, "type", &kinds)?.as_deref() {
        None => return Err(InvalidRequest::missing("thinking.type")),
        Some("disabled") => (),
        Some(_) => draft.ignore("thinking"),
    }
    thinking.pass_over(&["budget_tokens", "display"]);
    thinking.finish()
}

fn bookkeeping(fields: &mut Fields, draft: &mut Draft) -> Result<(), InvalidRequest> {
    // The usual service is what there is.
    draft::word(fields, "service_tier", &["auto", "standard_only"])?;
    if let Some(value) = fields.take("metadata") {
        let mut metadata = Fields::of_value("metadata", value)?;
        draft.ignore_within("metadata", &mut metadata, &["user_id"]);
        metadata.finish()?;
    }
    Ok(())
}
