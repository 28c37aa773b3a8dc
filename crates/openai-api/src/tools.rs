//! Tools that a model may call.

use std::borrow::Cow;
use std::collections::HashSet;

use serde::{Deserialize, Serialize, Serializer};
use serde_json::{Value, json};

use crate::error::InvalidRequest;
use crate::fields::Fields;

/// Most tools of a request, as at OpenAI.
pub const MAX_TOOLS: usize = 128;

/// Most bytes that the names, descriptions and parameters of all tools of a request have together, written as JSON.
pub const MAX_TOOLS_BYTES: usize = 256 << 10;

/// Longest name of a function or a schema, in bytes.
const MAX_NAME_BYTES: usize = 64;

/// A function that the model may call. Serialized as chat templates take it, which is how OpenAI writes it, too.
#[derive(Debug, Clone, PartialEq)]
pub struct Tool {
    /// Its name: 1 to 64 of `a-z`, `A-Z`, `0-9`, `_`, `-`; unique in the request.
    pub name: String,
    /// What it does, for the model.
    pub description: Option<String>,
    /// JSON schema of its arguments, an object; `None`: it takes none.
    pub parameters: Option<Value>,
    /// Whether arguments must keep to the schema.
    pub strict: bool,
}

/// Whether and what the model is to call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToolChoice {
    /// Nothing.
    None,
    /// What it likes, or nothing.
    Auto,
    /// At least one tool.
    Required,
    /// The tool of this name, which is among the tools.
    Named(String),
}

/// The `type` of a tool and of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ToolKind {
    /// A function.
    Function,
}

impl Tool {
    /// The schema of the arguments, also where the tool takes none.
    pub fn schema(&self) -> Cow<'_, Value> {
        match &self.parameters {
            Some(parameters) => Cow::Borrowed(parameters),
            None => Cow::Owned(json!({"type": "object", "properties": {}, "additionalProperties": false})),
        }
    }

    fn bytes(&self) -> usize {
        let description = self.description.as_ref().map_or(0, String::len);
        let parameters = self.parameters.as_ref().map_or(0, |schema| schema.to_string().len());
        self.name.len() + description + parameters
    }
}

impl Serialize for Tool {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Wire<'a> {
            r#type: ToolKind,
            function: Function<'a>,
        }
        #[derive(Serialize)]
        struct Function<'a> {
            name: &'a str,
            #[serde(skip_serializing_if = "Option::is_none")]
            description: Option<&'a str>,
            parameters: &'a Value,
        }
        let wire = Wire {
            r#type: ToolKind::Function,
            function: Function {
                name: &self.name,
                description: self.description.as_deref(),
                parameters: &self.schema(),
            },
        };
        wire.serialize(serializer)
    }
}

/// Reads `tools`.
pub(crate) fn tools(fields: &mut Fields) -> Result<Vec<Tool>, InvalidRequest> {
    let items = fields.array("tools")?.unwrap_or_default();
    if items.len() > MAX_TOOLS {
        let reason = format!("at most {MAX_TOOLS} tools, got {}", items.len());
        return Err(InvalidRequest::value("tools", reason));
    }
    let tools = items.into_iter().enumerate();
    let tools: Vec<Tool> = tools
        .map(|(index, item)| tool(&format!("tools[{index}]"), item))
        .collect::<Result<_, _>>()?;
    let mut names = HashSet::new();
    for (index, tool) in tools.iter().enumerate() {
        if !names.insert(tool.name.as_str()) {
            let reason = format!("`{}` is the name of another tool already; give each its own", tool.name);
            return Err(InvalidRequest::value(format!("tools[{index}].function.name"), reason));
        }
    }
    let bytes: usize = tools.iter().map(Tool::bytes).sum();
    if bytes > MAX_TOOLS_BYTES {
        let reason = format!(
            "all tools together may have {MAX_TOOLS_BYTES} bytes, these have {bytes}; send fewer or shorter ones"
        );
        return Err(InvalidRequest::value("tools", reason));
    }
    Ok(tools)
}

fn tool(path: &str, value: Value) -> Result<Tool, InvalidRequest> {
    let mut fields = Fields::of_value(path, value)?;
    function_kind(&mut fields, "tools")?;
    let mut function = fields.object("function")?;
    let name = name(&mut function)?;
    let description = function.string("description")?;
    let parameters = parameters(&mut function)?;
    let strict = function.boolean("strict")?.unwrap_or(false);
    function.finish()?;
    fields.finish()?;
    Ok(Tool {
        name,
        description,
        parameters,
        strict,
    })
}

/// Arguments are always an object, so the schema must not ask for something else.
fn parameters(function: &mut Fields) -> Result<Option<Value>, InvalidRequest> {
    let path = function.path("parameters");
    match function.take("parameters") {
        None => Ok(None),
        Some(Value::Object(schema)) => match schema.get("type") {
            None => Ok(Some(Value::Object(schema))),
            Some(kind) if kind == "object" => Ok(Some(Value::Object(schema))),
            Some(other) => Err(InvalidRequest::value(
                format!("{path}.type"),
                format_args!("arguments are an object, so this must be \"object\" or left out; got {other}"),
            )),
        },
        Some(other) => Err(InvalidRequest::wrong_type(path, "a JSON schema object", &other)),
    }
}

/// Reads `tool_choice`, which may name only what is among `tools`.
pub(crate) fn choice(fields: &mut Fields, tools: &[Tool]) -> Result<ToolChoice, InvalidRequest> {
    const PATH: &str = "tool_choice";
    let default = if tools.is_empty() {
        ToolChoice::None
    } else {
        ToolChoice::Auto
    };
    match fields.take(PATH) {
        None => Ok(default),
        Some(Value::String(word)) => match word.as_str() {
            "none" => Ok(ToolChoice::None),
            // There is nothing to choose from.
            "auto" if tools.is_empty() => Ok(ToolChoice::None),
            "auto" => Ok(ToolChoice::Auto),
            "required" if tools.is_empty() => Err(InvalidRequest::value(
                PATH,
                "`required` needs `tools` to call; send some, or `auto`",
            )),
            "required" => Ok(ToolChoice::Required),
            other => Err(InvalidRequest::value(
                PATH,
                format_args!("must be `none`, `auto`, `required` or name a function; got `{other}`"),
            )),
        },
        Some(value @ Value::Object(_)) => named(value, tools),
        Some(other) => Err(InvalidRequest::wrong_type(PATH, "a string or an object", &other)),
    }
}

fn named(value: Value, tools: &[Tool]) -> Result<ToolChoice, InvalidRequest> {
    let mut fields = Fields::of_value("tool_choice", value)?;
    function_kind(&mut fields, "a tool choice")?;
    let mut function = fields.object("function")?;
    let path = function.path("name");
    let name = function.required_string("name")?;
    function.finish()?;
    fields.finish()?;
    if tools.iter().any(|tool| tool.name == name) {
        Ok(ToolChoice::Named(name))
    } else {
        let reason = format!("`{name}` is not among `tools`");
        Err(InvalidRequest::value(path, reason))
    }
}

/// Reads a `type` that has to be `function`.
pub(crate) fn function_kind(fields: &mut Fields, of: &str) -> Result<(), InvalidRequest> {
    let path = fields.path("type");
    match fields.required_string("type")?.as_str() {
        "function" => Ok(()),
        other => Err(InvalidRequest::unsupported(
            path,
            format_args!("{of} of the type `{other}` are not supported; send `function`"),
        )),
    }
}

/// Reads the `name` of a function or a schema.
pub(crate) fn name(fields: &mut Fields) -> Result<String, InvalidRequest> {
    let path = fields.path("name");
    let name = fields.required_string("name")?;
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
    if (1..=MAX_NAME_BYTES).contains(&name.len()) && name.bytes().all(is_allowed) {
        Ok(name)
    } else {
        let reason = format!("a name has 1 to {MAX_NAME_BYTES} characters of a-z, A-Z, 0-9, _ and -");
        Err(InvalidRequest::value(path, reason))
    }
}
