//! The chat request as it is put together.

use openai_api::{ChatRequest, Fields, InvalidRequest, ToolCall};
use serde_json::{Map, Value, json};

use crate::Translated;
use crate::names::{Names, Table};

/// Parameters of sampling that open models are used with and that neither dialect has: passed on by the names that the
/// chat endpoint gives them, so that a client can send them as extra fields of the body.
const SAMPLING: [&str; 6] = [
    "seed",
    "min_p",
    "typical_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
];

/// A chat request, growing.
#[derive(Debug)]
pub(crate) struct Draft {
    body: Map<String, Value>,
    messages: Vec<Said>,
    tools: Vec<(usize, Value)>,
    ignored: Vec<String>,
}

/// A message of the chat.
#[derive(Debug)]
pub(crate) struct Said {
    /// By whom, as the chat names it.
    pub(crate) role: &'static str,
    /// The parts of the text.
    pub(crate) texts: Vec<String>,
    /// The tools that are called with it.
    pub(crate) calls: Vec<ToolCall>,
    /// The call that it answers.
    pub(crate) answers: Option<String>,
    /// Path of what it is made of.
    pub(crate) origin: String,
}

impl Said {
    /// A text of somebody.
    pub(crate) fn new(role: &'static str, texts: Vec<String>, origin: impl Into<String>) -> Self {
        Self {
            role,
            texts,
            calls: Vec::new(),
            answers: None,
            origin: origin.into(),
        }
    }

    fn into_json(self) -> Value {
        let mut texts = self.texts;
        let content = match texts.len() {
            0 if self.calls.is_empty() => json!(""),
            0 => Value::Null,
            1 => Value::String(texts.remove(0)),
            _ => texts
                .into_iter()
                .map(|text| json!({"type": "text", "text": text}))
                .collect(),
        };
        let mut message = json!({"role": self.role, "content": content});
        if !self.calls.is_empty() {
            message["tool_calls"] = json!(self.calls);
        }
        if let Some(id) = self.answers {
            message["tool_call_id"] = Value::String(id);
        }
        message
    }
}

impl Draft {
    pub(crate) fn new() -> Self {
        Self {
            body: Map::new(),
            messages: Vec::new(),
            tools: Vec::new(),
            ignored: Vec::new(),
        }
    }

    /// Puts a parameter of the chat.
    pub(crate) fn set(&mut self, name: &str, value: impl Into<Value>) {
        self.body.insert(name.to_owned(), value.into());
    }

    /// Passes parameters on under the names that they have in the chat, too, if they are there.
    pub(crate) fn pass(&mut self, fields: &mut Fields, names: &[&str]) {
        for name in names {
            if let Some(value) = fields.take(name) {
                self.set(name, value);
            }
        }
    }

    /// Passes on the parameters of sampling that neither dialect has.
    pub(crate) fn pass_sampling(&mut self, fields: &mut Fields) {
        self.pass(fields, &SAMPLING);
    }

    /// Names a parameter that has no effect.
    pub(crate) fn ignore(&mut self, name: impl Into<String>) {
        let name = name.into();
        if !self.ignored.contains(&name) {
            self.ignored.push(name);
        }
    }

    /// Takes parameters that have no effect, whatever they hold, and names those that are there.
    pub(crate) fn ignore_fields(&mut self, fields: &mut Fields, names: &[&str]) {
        for name in names {
            if fields.take(name).is_some() {
                self.ignore(*name);
            }
        }
    }

    /// Takes parameters of a nested object that have no effect; `place` names that object without the indexes on the way,
    /// so that a long conversation does not fill the list.
    pub(crate) fn ignore_within(&mut self, place: &str, fields: &mut Fields, names: &[&str]) {
        for name in names {
            if fields.take(name).is_some_and(|value| !asks_for_nothing(&value)) {
                self.ignore(format!("{place}.{name}"));
            }
        }
    }

    /// Adds a message.
    pub(crate) fn say(&mut self, message: Said) {
        self.messages.push(message);
    }

    /// The newest message.
    pub(crate) fn last(&mut self) -> Option<&mut Said> {
        self.messages.last_mut()
    }

    /// Adds the tool with this index in the client's list.
    pub(crate) fn offer(&mut self, index: usize, tool: Value) {
        self.tools.push((index, tool));
    }

    /// Takes tools away again, except those of these names.
    pub(crate) fn offer_only(&mut self, names: &[String]) {
        let is_kept = |tool: &Value| names.iter().any(|name| tool["function"]["name"] == **name);
        self.tools.retain(|(_, tool)| is_kept(tool));
    }

    /// Whether the tool of this name is offered.
    pub(crate) fn offers(&self, name: &str) -> bool {
        self.tools.iter().any(|(_, tool)| tool["function"]["name"] == *name)
    }

    /// Ends the draft: the body as a whole has to be a valid chat request.
    pub(crate) fn finish(mut self, is_stream: bool, table: Table) -> Result<Translated, InvalidRequest> {
        let origins = self.messages.iter().map(|message| message.origin.clone()).collect();
        let messages: Vec<Value> = self.messages.into_iter().map(Said::into_json).collect();
        self.body.insert("messages".to_owned(), messages.into());
        let (indexes, tools): (Vec<usize>, Vec<Value>) = self.tools.into_iter().unzip();
        if !tools.is_empty() {
            self.body.insert("tools".to_owned(), tools.into());
        }
        if is_stream {
            self.body.insert("stream".to_owned(), true.into());
            let options = json!({"include_usage": true});
            self.body.insert("stream_options".to_owned(), options);
        }
        let names = Names {
            table,
            messages: origins,
            tools: indexes,
        };
        let body = Value::Object(self.body).to_string();
        match ChatRequest::parse(body.as_bytes()) {
            Ok(_) => Ok(Translated {
                body: body.into(),
                is_stream,
                ignored: self.ignored,
                names,
            }),
            Err(mistake) => Err(names.mistake(mistake)),
        }
    }
}

/// Whether a value asks for nothing that would have to be done.
pub(crate) fn asks_for_nothing(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        Value::Number(_) | Value::String(_) | Value::Bool(true) => false,
    }
}

/// Refuses parameters that cannot be done without changing what the client relies on; each passes with a value that asks
/// for nothing.
pub(crate) fn refuse(fields: &mut Fields, refused: &[(&str, &str)]) -> Result<(), InvalidRequest> {
    for (name, reason) in refused {
        if fields.take(name).is_some_and(|value| !asks_for_nothing(&value)) {
            return Err(InvalidRequest::unsupported(fields.path(name), reason));
        }
    }
    Ok(())
}

/// Takes a word that has to be one of a few.
pub(crate) fn word(fields: &mut Fields, name: &str, words: &[&str]) -> Result<Option<String>, InvalidRequest> {
    match fields.string(name)? {
        Some(word) if !words.contains(&word.as_str()) => {
            let reason = format!("must be one of {}; got `{word}`", words.join(", "));
            Err(InvalidRequest::value(fields.path(name), reason))
        }
        word => Ok(word),
    }
}

/// Takes a text that must be there and must not be empty.
pub(crate) fn name(fields: &mut Fields, name: &str) -> Result<String, InvalidRequest> {
    let text = fields.required_string(name)?;
    if text.is_empty() {
        return Err(InvalidRequest::value(fields.path(name), "must not be empty"));
    }
    Ok(text)
}

/// Takes an object that must be there.
pub(crate) fn schema(fields: &mut Fields, name: &str) -> Result<Value, InvalidRequest> {
    match fields.required(name)? {
        schema @ Value::Object(_) => Ok(schema),
        other => Err(InvalidRequest::wrong_type(fields.path(name), "an object", &other)),
    }
}

/// The refusal of a part, block or item whose kind cannot be used.
pub(crate) fn refused_part(path: String, kind: &str, unsupported: &[&str], instead: &str) -> InvalidRequest {
    if unsupported.contains(&kind) {
        let reason = format!("content of the type `{kind}` is not supported; send {instead}");
        InvalidRequest::unsupported(path, reason)
    } else {
        InvalidRequest::value(path, format_args!("unknown type `{kind}`; send {instead}"))
    }
}
