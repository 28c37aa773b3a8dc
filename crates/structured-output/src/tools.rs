//! Tools, and how models spell their calls.

use serde_json::{Value, json};

/// A tool that a model may call.
#[derive(Debug, Clone, PartialEq)]
pub struct ToolSpec {
    /// Its name.
    pub name: String,
    /// What it does, for the model.
    pub description: Option<String>,
    /// The JSON schema of its arguments, which are an object. `None`: it takes none.
    pub parameters: Option<Value>,
    /// Whether a schema that cannot be kept while generating is an error. Otherwise the arguments of such a tool may be
    /// any object.
    pub strict: bool,
}

impl ToolSpec {
    /// The tool as chat templates and the OpenAI API describe it.
    pub(crate) fn description(&self) -> Value {
        let mut function = json!({"name": self.name});
        if let Some(description) = &self.description {
            function["description"] = json!(description);
        }
        if let Some(parameters) = &self.parameters {
            function["parameters"] = parameters.clone();
        }
        json!({"type": "function", "function": function})
    }
}

/// How a model spells its calls.
///
/// Some vocabularies have single tokens for the [markers](Self::markers). Where these are special tokens, which decoders
/// usually leave out of the text, the caller must have their spelling shown: [`ToolCallParser`](crate::ToolCallParser)
/// sees text only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ToolFormat {
    /// `<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>`, once for each call: Hermes, Qwen 2.5 and 3, and
    /// whoever is told by [`instructions`](Self::instructions).
    Hermes,
    /// `{"name": "f", "parameters": {}}` as the whole answer: Llama 3.1 and later. Several calls are divided by `; `.
    Llama3,
    /// `[TOOL_CALLS] [{"name": "f", "arguments": {}}]`: Mistral.
    Mistral,
}

impl ToolFormat {
    /// The format that the source of a chat template teaches or replays. `None` if it knows no tools or spells calls in
    /// another way.
    #[must_use]
    pub fn of_template(source: &str) -> Option<Self> {
        let has = |text: &str| source.contains(text);
        if has("<tool_call>") && has("arguments") && !has("<function=") && !has("<arg_key>") {
            Some(Self::Hermes)
        } else if has("[TOOL_CALLS]") && !has("[ARGS]") {
            Some(Self::Mistral)
        } else if has(r#""parameters": "#) && (has("<|python_tag|>") || has("ipython")) {
            Some(Self::Llama3)
        } else {
            None
        }
    }

    /// The texts that open and close calls.
    #[must_use]
    pub fn markers(self) -> &'static [&'static str] {
        match self {
            Self::Hermes => &["<tool_call>", "</tool_call>"],
            Self::Llama3 => &[],
            Self::Mistral => &["[TOOL_CALLS]"],
        }
    }

    /// The text that opens a call, if one does.
    pub(crate) fn opening(self) -> Option<&'static str> {
        self.markers().first().copied()
    }

    /// The member of a call that holds its arguments.
    pub(crate) fn arguments_key(self) -> &'static str {
        match self {
            Self::Hermes | Self::Mistral => "arguments",
            Self::Llama3 => "parameters",
        }
    }
}
