//! What stands around the arguments of a call, read from the beginning of a text of which more may come.

use crate::json_span::{JsonSpan, SpanStep};
use crate::tools::ToolFormat;

/// Why there is nothing to tell of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stop {
    /// It may yet become what is looked for.
    Unfinished,
    /// It is something else.
    Mismatch,
}

/// Which call of the answer a text begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lead {
    /// The first, or any that has an opening of its own.
    First,
    /// One that a separator divides from the last.
    Next,
}

/// The beginning of a call.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Header {
    /// The tool's name.
    pub(crate) name: String,
    /// The arguments if they came before the name, or not at all. Otherwise they begin at `end`.
    pub(crate) arguments: Option<String>,
    /// Bytes of the text that were read.
    pub(crate) end: usize,
}

/// What follows a call's arguments.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Tail {
    /// Bytes of the text that belong to the call.
    pub(crate) end: usize,
    /// Whether a separator and another call follow.
    pub(crate) is_followed: bool,
}

/// Whether a character is one that JSON allows between its parts.
pub(crate) fn is_blank(c: char) -> bool {
    matches!(c, ' ' | '\n' | '\r' | '\t')
}

/// Reads a call up to its arguments. Only the tools of `names` are called.
pub(crate) fn header(text: &str, lead: Lead, format: ToolFormat, names: &[String]) -> Result<Header, Stop> {
    let mut cursor = Cursor { text, at: 0 };
    cursor.lead(lead, format)?;
    cursor.literal("{")?;
    let mut name = None;
    let mut arguments = None;
    loop {
        let key = cursor.key()?;
        match key.as_str() {
            "name" => name = Some(cursor.string().and_then(|name| known(name, names))?),
            "arguments" | "parameters" if cursor.peek()? != b'{' => return Err(Stop::Mismatch),
            "arguments" | "parameters" => {
                if let Some(name) = name {
                    let end = cursor.at;
                    return Ok(Header {
                        name,
                        arguments: None,
                        end,
                    });
                }
                arguments = Some(cursor.value()?.to_owned());
            }
            "type" | "id" => cursor.value().map(|_| ())?,
            _ => return Err(Stop::Mismatch),
        }
        cursor.blanks();
        match cursor.peek()? {
            b',' => cursor.at += 1,
            b'}' => {
                let name = name.ok_or(Stop::Mismatch)?;
                let arguments = Some(arguments.unwrap_or_else(|| "{}".to_owned()));
                let end = cursor.at;
                return Ok(Header { name, arguments, end });
            }
            _ => return Err(Stop::Mismatch),
        }
    }
}

/// Reads a call from its arguments' end. Closing brackets and markers that are left out are not missed.
pub(crate) fn tail(text: &str, format: ToolFormat) -> Result<Tail, Stop> {
    let mut cursor = Cursor { text, at: 0 };
    loop {
        cursor.blanks();
        match cursor.peek()? {
            b',' => {
                cursor.at += 1;
                cursor.key()?;
                cursor.value()?;
            }
            b'}' => {
                cursor.at += 1;
                break;
            }
            _ => break,
        }
    }
    let closed = cursor.at;
    cursor.blanks();
    let (end, is_followed) = match format {
        ToolFormat::Hermes => match cursor.literal("</tool_call>") {
            Ok(()) => (cursor.at, false),
            Err(Stop::Unfinished) => return Err(Stop::Unfinished),
            Err(Stop::Mismatch) => (closed, false),
        },
        ToolFormat::Mistral => match cursor.peek()? {
            b',' => (cursor.at, true),
            b']' => (cursor.at + 1, false),
            _ => (closed, false),
        },
        ToolFormat::Llama3 => match cursor.peek()? {
            b';' | b'{' => (cursor.at, true),
            _ => (closed, false),
        },
    };
    Ok(Tail { end, is_followed })
}

fn known(name: String, names: &[String]) -> Result<String, Stop> {
    if names.contains(&name) {
        Ok(name)
    } else {
        Err(Stop::Mismatch)
    }
}

struct Cursor<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Cursor<'a> {
    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn peek(&self) -> Result<u8, Stop> {
        self.text.as_bytes().get(self.at).copied().ok_or(Stop::Unfinished)
    }

    fn blanks(&mut self) {
        self.at = self.text.len() - self.rest().trim_start_matches(is_blank).len();
    }

    fn literal(&mut self, literal: &str) -> Result<(), Stop> {
        let rest = self.rest();
        if rest.starts_with(literal) {
            self.at += literal.len();
            Ok(())
        } else if literal.starts_with(rest) {
            Err(Stop::Unfinished)
        } else {
            Err(Stop::Mismatch)
        }
    }

    /// What stands before a call's opening brace.
    fn lead(&mut self, lead: Lead, format: ToolFormat) -> Result<(), Stop> {
        self.blanks();
        match (lead, format) {
            (Lead::First, ToolFormat::Hermes) => self.literal("<tool_call>")?,
            (Lead::First, ToolFormat::Mistral) => {
                self.literal("[TOOL_CALLS]")?;
                self.blanks();
                self.literal("[")?;
            }
            (Lead::Next, ToolFormat::Mistral) => self.literal(",")?,
            (Lead::Next, ToolFormat::Llama3) if self.peek()? == b';' => self.at += 1,
            (Lead::First | Lead::Next, _) => {}
        }
        self.blanks();
        Ok(())
    }

    /// A member's name and colon, with the blanks around.
    fn key(&mut self) -> Result<String, Stop> {
        self.blanks();
        let key = self.string()?;
        self.blanks();
        self.literal(":")?;
        self.blanks();
        Ok(key)
    }

    fn string(&mut self) -> Result<String, Stop> {
        let start = self.at;
        self.literal("\"")?;
        let mut escaped = false;
        for (index, byte) in self.rest().bytes().enumerate() {
            match byte {
                _ if escaped => escaped = false,
                b'\\' => escaped = true,
                b'"' => {
                    self.at += index + 1;
                    return serde_json::from_str(&self.text[start..self.at]).map_err(|_| Stop::Mismatch);
                }
                _ => {}
            }
        }
        Err(Stop::Unfinished)
    }

    /// Any value, as it is written.
    fn value(&mut self) -> Result<&'a str, Stop> {
        let start = self.at;
        match self.peek()? {
            b'"' => self.string().map(|_| ())?,
            b'{' | b'[' => {
                let mut span = JsonSpan::default();
                loop {
                    let step = span.step(self.peek()?);
                    self.at += 1;
                    match step {
                        SpanStep::Inside => {}
                        SpanStep::End => break,
                        SpanStep::Broken => return Err(Stop::Mismatch),
                    }
                }
            }
            _ => {
                let scalar = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'+' | b'.');
                self.at += self.rest().bytes().take_while(scalar).count();
                // It ends where something else begins.
                self.peek()?;
                if self.at == start {
                    return Err(Stop::Mismatch);
                }
            }
        }
        Ok(&self.text[start..self.at])
    }
}
