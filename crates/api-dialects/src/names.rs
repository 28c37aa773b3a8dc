//! The names of parameters, from the chat's back to those that the client wrote.

use openai_api::InvalidRequest;
use shared_contract::ErrorObject;

/// How a dialect names what the chat names otherwise: beginnings of paths, the longer before the shorter.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Table {
    /// Of the body.
    pub(crate) body: &'static [(&'static str, &'static str)],
    /// Of a message, behind its index. What is not here is named by the place of the message alone.
    pub(crate) message: &'static [(&'static str, &'static str)],
    /// Of a tool, behind its index.
    pub(crate) tool: &'static [(&'static str, &'static str)],
}

/// Where the parts of a translated request came from.
#[derive(Debug, Clone)]
pub(crate) struct Names {
    pub(crate) table: Table,
    /// Paths of what the chat's messages were made of.
    pub(crate) messages: Vec<String>,
    /// Indexes of the chat's tools among the client's.
    pub(crate) tools: Vec<usize>,
}

impl Names {
    /// The client's path of a path in the chat.
    fn path(&self, chat: &str) -> String {
        if let Some((index, rest)) = indexed(chat, "messages")
            && let Some(origin) = self.messages.get(index)
        {
            let rest = translated(self.table.message, rest);
            return format!("{origin}{}", rest.unwrap_or_default());
        }
        if let Some((index, rest)) = indexed(chat, "tools")
            && let Some(index) = self.tools.get(index)
        {
            let rest = translated(self.table.tool, rest).unwrap_or_else(|| rest.to_owned());
            return format!("tools[{index}]{rest}");
        }
        translated(self.table.body, chat).unwrap_or_else(|| chat.to_owned())
    }

    /// The message and the path in the client's words.
    fn retold(&self, message: String, param: Option<String>) -> (String, Option<String>) {
        let Some(param) = param else { return (message, None) };
        let path = self.path(&param);
        let message = match message.strip_prefix(&param) {
            Some(rest) => format!("{path}{rest}"),
            None => message,
        };
        (message, Some(path))
    }

    /// An error that the worker answered with.
    pub(crate) fn error(&self, error: ErrorObject) -> ErrorObject {
        let (message, param) = self.retold(error.message, error.param);
        ErrorObject {
            message,
            param,
            ..error
        }
    }

    /// A mistake that was found in the translated body.
    pub(crate) fn mistake(&self, mistake: InvalidRequest) -> InvalidRequest {
        let (message, param) = self.retold(mistake.message, mistake.param);
        InvalidRequest {
            message,
            param,
            ..mistake
        }
    }
}

/// Splits `name[3].rest` into 3 and `.rest`.
fn indexed<'a>(path: &'a str, name: &str) -> Option<(usize, &'a str)> {
    let (index, rest) = path.strip_prefix(name)?.strip_prefix('[')?.split_once(']')?;
    Some((index.parse().ok()?, rest))
}

/// Replaces the beginning of a path by the first entry that is one, up to a border between names.
fn translated(table: &[(&str, &str)], path: &str) -> Option<String> {
    table.iter().find_map(|(chat, dialect)| {
        let rest = path.strip_prefix(chat)?;
        (rest.is_empty() || rest.starts_with(['.', '['])).then(|| format!("{dialect}{rest}"))
    })
}
