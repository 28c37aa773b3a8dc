//! The grammar of tool calls.

use std::fmt::Write;

use llguidance::api::{GrammarWithLexer, TopLevelGrammar};
use serde_json::{Map, Value, json};

use crate::error::GrammarError;
use crate::grammars::Compiler;
use crate::matcher::{Matcher, first_line};
use crate::schema;
use crate::tools::{ToolFormat, ToolSpec};

/// A grammar of one or more calls, and nothing else.
pub(crate) struct ToolGrammar {
    /// At the beginning of the first call.
    pub(crate) matcher: Matcher,
    /// Texts with one of which each first call begins.
    pub(crate) openings: Vec<String>,
    /// A token that opens a call, too.
    pub(crate) opening_token: Option<u32>,
    /// Whether a call begins only where the answer does.
    pub(crate) is_whole_answer: bool,
}

impl ToolGrammar {
    pub(crate) fn new(
        tools: &[ToolSpec],
        format: ToolFormat,
        named: Option<&str>,
        parallel: bool,
        compiler: &Compiler,
    ) -> Result<Self, GrammarError> {
        let callable: Vec<&ToolSpec> = tools
            .iter()
            .filter(|tool| named.is_none_or(|name| tool.name == name))
            .collect();
        if let (Some(name), true) = (named, callable.is_empty()) {
            return Err(GrammarError::UnknownTool(name.to_owned()));
        }
        if callable.is_empty() {
            return Err(GrammarError::NoTools);
        }
        let lark = lark(&callable, format, parallel, compiler);
        let schemas = callable
            .iter()
            .map(|tool| arguments_schema(tool).or_else(|error| without_schema(tool, error)))
            .collect::<Result<Vec<Value>, _>>()?;
        let matcher = match compiler.grammar(grammar(&lark, &schemas)) {
            Ok(matcher) => matcher,
            Err(_) => {
                let schemas = usable_schemas(&callable, schemas, compiler)?;
                compiler
                    .grammar(grammar(&lark, &schemas))
                    .map_err(|error| GrammarError::Schema(first_line(&error)))?
            }
        };
        Ok(Self {
            matcher,
            openings: openings(&callable, format),
            opening_token: format.opening().and_then(|text| compiler.special_token(text)),
            is_whole_answer: format.opening().is_none(),
        })
    }
}

/// What the arguments of a tool must be: an object, whatever else.
fn arguments_schema(tool: &ToolSpec) -> Result<Value, GrammarError> {
    let mut schema = match &tool.parameters {
        None => return Ok(json!({"type": "object", "properties": {}, "additionalProperties": false})),
        Some(Value::Object(members)) => members.clone(),
        Some(Value::Bool(true)) => Map::new(),
        Some(_) => return Err(GrammarError::Schema("it is no object".to_owned())),
    };
    let is_object = schema.get("type").is_none_or(|kind| match kind {
        Value::Array(kinds) => kinds.iter().any(|kind| kind == "object"),
        kind => kind == "object",
    });
    if !is_object {
        return Err(GrammarError::Schema("its type is not \"object\"".to_owned()));
    }
    schema.insert("type".to_owned(), json!("object"));
    Ok(Value::Object(schema))
}

/// What becomes of a tool whose schema cannot be kept.
fn without_schema(tool: &ToolSpec, source: GrammarError) -> Result<Value, GrammarError> {
    if tool.strict {
        return Err(GrammarError::Tool {
            tool: tool.name.clone(),
            source: Box::new(source),
        });
    }
    Ok(schema::any_object())
}

/// Does without the schemas that cannot be compiled.
fn usable_schemas(tools: &[&ToolSpec], schemas: Vec<Value>, compiler: &Compiler) -> Result<Vec<Value>, GrammarError> {
    tools
        .iter()
        .zip(schemas)
        .map(|(tool, schema)| match compiler.schema(&schema) {
            Ok(_) => Ok(schema),
            Err(source) => without_schema(tool, source),
        })
        .collect()
}

fn grammar(lark: &str, schemas: &[Value]) -> TopLevelGrammar {
    let mut grammars = vec![GrammarWithLexer::from_lark(lark.to_owned())];
    grammars.extend(schemas.iter().enumerate().map(|(index, schema)| GrammarWithLexer {
        name: Some(format!("arguments_{index}")),
        ..GrammarWithLexer::from_json_schema(schema::prepared(schema))
    }));
    TopLevelGrammar {
        grammars,
        max_tokens: None,
    }
}

/// The calls in llguidance's dialect of Lark; the arguments of each tool are a grammar of their own.
fn lark(tools: &[&ToolSpec], format: ToolFormat, parallel: bool, compiler: &Compiler) -> String {
    let marker = |text: &str| match compiler.special_token(text) {
        Some(token) => format!("(<[{token}]> | {})", literal(text)),
        None => literal(text),
    };
    let more = |separator: &str| {
        if parallel {
            format!("({separator} call)*")
        } else {
            String::new()
        }
    };
    let mut lark = match format {
        ToolFormat::Hermes => {
            let (open, close) = (marker("<tool_call>"), marker("</tool_call>"));
            let more = if parallel { "(\"\\n\"? block)*" } else { "" };
            format!("start: block {more}\nblock: {open} \"\\n\"? call \"\\n\"? {close}\n")
        }
        ToolFormat::Llama3 => format!("start: call {}\n", more("\"; \"")),
        ToolFormat::Mistral => {
            let open = marker("[TOOL_CALLS]");
            format!("start: {open} \" \"? \"[\" call {} \"]\"\n", more("/, ?/"))
        }
    };
    let calls: Vec<String> = (0..tools.len()).map(|index| format!("call_{index}")).collect();
    let _ = writeln!(lark, "call: {}", calls.join(" | "));
    for (index, tool) in tools.iter().enumerate() {
        // One lexeme up to the arguments, with the blanks that Python's and JavaScript's writers of JSON put in.
        let _ = writeln!(lark, "call_{index}: HEAD_{index} @arguments_{index} \"}}\"");
        let name = literal(&format!("{},", json!(tool.name)));
        let key = literal(&format!("\"{}\":", format.arguments_key()));
        let _ = writeln!(
            lark,
            "HEAD_{index}: {} \" \"? {name} \" \"? {key} \" \"?",
            literal("{\"name\":")
        );
    }
    lark
}

/// A text as a string of Lark, which are those of JSON.
fn literal(text: &str) -> String {
    json!(text).to_string()
}

fn openings(tools: &[&ToolSpec], format: ToolFormat) -> Vec<String> {
    match format.opening() {
        Some(marker) => vec![marker.to_owned()],
        None => tools
            .iter()
            .flat_map(|tool| [":", ": "].map(|colon| format!("{{\"name\"{colon}{}", json!(tool.name))))
            .collect(),
    }
}
