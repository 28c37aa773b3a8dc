//! What form a chat's answer is to have: any text, JSON, or calls of tools.

use batch_engine::Constraint;
use daemon::ApiError;
use openai_api::{ChatRequest, ResponseFormat, ToolChoice};
use structured_output::{Grammar, GrammarError, ToolCallParser, ToolFormat};

use crate::language::{Language, specifications};

/// Where a schema of `response_format` stands in a request.
const SCHEMA: &str = "response_format.json_schema.schema";

/// The form of an answer.
pub(super) enum Form {
    /// Any text.
    Free,
    /// JSON.
    Json(Grammar),
    /// Calls of these tools, perhaps with text.
    Tools {
        grammar: Grammar,
        format: ToolFormat,
        names: Vec<String>,
    },
}

impl Form {
    /// What a request asks for, of a model that spells calls in this format.
    pub(super) fn of(request: &ChatRequest, format: ToolFormat) -> Result<Self, ApiError> {
        let (required, named) = match &request.tool_choice {
            ToolChoice::None => {
                return Ok(match &request.response_format {
                    ResponseFormat::Text => Self::Free,
                    ResponseFormat::JsonObject => Self::Json(Grammar::JsonObject),
                    ResponseFormat::JsonSchema { schema, .. } => Self::Json(Grammar::JsonSchema(schema.clone())),
                });
            }
            ToolChoice::Auto if request.response_format != ResponseFormat::Text => {
                let message = "response_format: an answer that may call tools or not has no one form; set `tool_choice` \
                               to `none` or `required`, or leave `response_format` out";
                return Err(ApiError::invalid("response_format", message));
            }
            ToolChoice::Auto => (false, None),
            ToolChoice::Required => (true, None),
            ToolChoice::Named(name) => (true, Some(name.clone())),
        };
        Ok(Self::Tools {
            grammar: Grammar::Tools {
                tools: specifications(&request.tools),
                format,
                required,
                // A call that is ordered by its name is one call.
                parallel: request.parallel_tool_calls && named.is_none(),
                named,
            },
            format,
            names: request.tools.iter().map(|tool| tool.name.clone()).collect(),
        })
    }

    /// Whether the model is told of the tools: of such as it must not call it is not.
    pub(super) fn tells_of_tools(&self) -> bool {
        matches!(self, Self::Tools { .. })
    }

    /// What holds one answer to the form. Computes for long.
    pub(super) fn constraint(&self, language: &dyn Language) -> Result<Option<Box<dyn Constraint>>, ApiError> {
        let (grammar, names) = match self {
            Self::Free => return Ok(None),
            Self::Json(grammar) => (grammar, &[][..]),
            Self::Tools { grammar, names, .. } => (grammar, names.as_slice()),
        };
        let constraint = language.constraint(grammar);
        constraint.map(Some).map_err(|error| unfit(&error, names))
    }

    /// What finds the calls in one answer's text.
    pub(super) fn parser(&self) -> Option<ToolCallParser> {
        match self {
            Self::Free | Self::Json(_) => None,
            Self::Tools { format, names, .. } => Some(ToolCallParser::new(*format, names.clone())),
        }
    }

    /// Markers of calls that the parser has to see, also where they are control tokens.
    pub(super) fn markers(&self) -> &'static [&'static str] {
        match self {
            Self::Free | Self::Json(_) => &[],
            Self::Tools { format, .. } => format.markers(),
        }
    }
}

fn unfit(error: &GrammarError, names: &[String]) -> ApiError {
    let param = match error {
        GrammarError::Vocabulary(_) => "model".to_owned(),
        GrammarError::Tool { tool, .. } => match names.iter().position(|name| name == tool) {
            Some(index) => format!("tools[{index}].function.parameters"),
            None => "tools".to_owned(),
        },
        GrammarError::NoTools | GrammarError::UnknownTool(_) => "tools".to_owned(),
        GrammarError::UnsupportedKeyword { .. } | GrammarError::Schema(_) => SCHEMA.to_owned(),
    };
    let message = format!("{param}: {error}");
    ApiError::invalid(param, message)
}
