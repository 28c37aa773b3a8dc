//! The chat template of a model file: how messages become a prompt.
//!
//! Templates come with the model, so they are not trusted: they can reach nothing but what they are given, and run out
//! of fuel rather than run for ever.

use std::fmt::Write;
use std::sync::Arc;
use std::time::SystemTime;

use chrono::{DateTime, Utc};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde};
use minijinja::{Environment, Error, ErrorKind, Value, context};
use serde_json::ser::{Formatter, PrettyFormatter};

/// Instructions that one rendering may take: thousands of messages' worth.
const FUEL: u64 = 2_000_000;
/// Calls within calls.
const RECURSION_LIMIT: usize = 200;
const NAME: &str = "chat";
/// The variable that templates know tools by.
const TOOLS: &str = "tools";

/// A compiled chat template, rendered as Hugging Face's `transformers` does. Cheap to clone.
#[derive(Clone)]
pub struct ChatTemplate {
    source: Arc<str>,
    environment: Arc<Environment<'static>>,
    bos_token: String,
    eos_token: String,
    clock: Option<fn() -> SystemTime>,
}

impl ChatTemplate {
    /// Compiles a template, which may name the spelled-out `bos_token` and `eos_token`.
    ///
    /// # Errors
    /// Its syntax is wrong.
    pub fn new(source: &str, bos_token: Option<&str>, eos_token: Option<&str>) -> Result<Self, TemplateError> {
        let mut environment = Environment::new();
        let syntax_error = |error: Error| TemplateError::Syntax(error.to_string());
        environment.set_syntax(
            SyntaxConfig::builder()
                .trim_blocks(true)
                .lstrip_blocks(true)
                .build()
                .map_err(syntax_error)?,
        );
        environment.set_fuel(Some(FUEL));
        environment.set_recursion_limit(RECURSION_LIMIT);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", raise_exception);
        environment.add_filter("tojson", to_json);
        environment
            .add_template_owned(NAME, source.to_owned())
            .map_err(syntax_error)?;
        let owned = |token: Option<&str>| token.unwrap_or("").to_owned();
        Ok(Self {
            source: Arc::from(source),
            environment: Arc::new(environment),
            bos_token: owned(bos_token),
            eos_token: owned(eos_token),
            clock: None,
        })
    }

    /// Tells templates that ask for the date (`strftime_now`) the time of this clock, in UTC.
    #[must_use]
    pub fn with_clock(self, clock: fn() -> SystemTime) -> Self {
        Self {
            clock: Some(clock),
            ..self
        }
    }

    /// The prompt of a conversation.
    ///
    /// Messages are objects with `role` and `content` as in the OpenAI API, the content a string; the `arguments` of
    /// `tool_calls` are objects, not JSON text. `tools` are described as in the OpenAI API, too. With
    /// `add_generation_prompt`, the prompt ends where the assistant's answer begins.
    ///
    /// # Errors
    /// The template refuses the conversation, or fails on it.
    pub fn render(
        &self,
        messages: &[serde_json::Value],
        tools: Option<&[serde_json::Value]>,
        add_generation_prompt: bool,
    ) -> Result<String, TemplateError> {
        let context = context! {
            messages => Value::from(Serde(messages)),
            // Templates ask whether these are none.
            tools => tools.map(|tools| Value::from(Serde(tools))),
            documents => (),
            add_generation_prompt => add_generation_prompt,
            bos_token => &self.bos_token,
            eos_token => &self.eos_token,
            // Left undefined without a clock: templates that know it then use a date of their own.
            strftime_now => self.clock.map_or(Value::UNDEFINED, |clock| {
                Value::from_function(move |format: &str| formatted(clock(), format))
            }),
        };
        let template = self.environment.get_template(NAME).map_err(|error| explain(&error))?;
        template.render(context).map_err(|error| explain(&error))
    }

    /// Whether the template has words for tools: it would not be silent on those given to [`render`](Self::render).
    pub fn knows_tools(&self) -> bool {
        self.environment
            .get_template(NAME)
            .is_ok_and(|template| template.undeclared_variables(false).contains(TOOLS))
    }

    /// The template as it was given.
    pub fn source(&self) -> &str {
        &self.source
    }
}

impl std::fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChatTemplate").finish_non_exhaustive()
    }
}

/// Why a template cannot be used, or a conversation not be rendered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// The template cannot be compiled.
    #[error("it cannot be compiled: {0}")]
    Syntax(String),
    /// The template itself says that this conversation is not allowed: the client's mistake.
    #[error("{0}")]
    Refused(String),
    /// The template does not cope with this conversation.
    #[error("the chat template failed: {0}")]
    Failed(String),
}

/// What `raise_exception` carries, to be told from errors of the template.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Refusal(String);

fn raise_exception(message: String) -> Result<Value, Error> {
    let text = message.clone();
    Err(Error::new(ErrorKind::InvalidOperation, text).with_source(Refusal(message)))
}

/// A moment in the words of C's `strftime`.
fn formatted(moment: SystemTime, format: &str) -> Result<String, Error> {
    let mut text = String::new();
    write!(text, "{}", DateTime::<Utc>::from(moment).format(format)).map_err(|_| {
        let message = format!("strftime_now does not know the format {format:?}");
        Error::new(ErrorKind::InvalidOperation, message)
    })?;
    Ok(text)
}

fn explain(error: &Error) -> TemplateError {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(current) = cause {
        if let Some(Refusal(message)) = current.downcast_ref() {
            return TemplateError::Refused(message.clone());
        }
        cause = current.source();
    }
    TemplateError::Failed(error.to_string())
}

/// `tojson` as Python's `json.dumps(value, ensure_ascii=False, indent=indent)` writes it, not escaped for HTML.
#[expect(clippy::needless_pass_by_value, reason = "minijinja hands arguments over by value")]
fn to_json(value: &Value, arguments: Kwargs) -> Result<Value, Error> {
    let indent: Option<usize> = arguments.get("indent")?;
    // Others, like `ensure_ascii`, may be given and change nothing here.
    let mut out = Vec::new();
    let written = match indent {
        Some(indent) => {
            let indent = " ".repeat(indent.min(16));
            write_json(value, &mut out, PrettyFormatter::with_indent(indent.as_bytes()))
        }
        None => write_json(value, &mut out, PythonSpacing),
    };
    written.map_err(|error| Error::new(ErrorKind::BadSerialization, error.to_string()))?;
    let text = String::from_utf8(out).map_err(|error| Error::new(ErrorKind::BadSerialization, error.to_string()))?;
    Ok(Value::from_safe_string(text))
}

fn write_json(value: &Value, out: &mut Vec<u8>, formatter: impl Formatter) -> serde_json::Result<()> {
    serde::Serialize::serialize(value, &mut serde_json::Serializer::with_formatter(out, formatter))
}

/// One line, with a space behind each comma and colon.
struct PythonSpacing;

impl Formatter for PythonSpacing {
    fn begin_array_value<W: ?Sized + std::io::Write>(&mut self, out: &mut W, first: bool) -> std::io::Result<()> {
        if first { Ok(()) } else { out.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(&mut self, out: &mut W, first: bool) -> std::io::Result<()> {
        if first { Ok(()) } else { out.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(&mut self, out: &mut W) -> std::io::Result<()> {
        out.write_all(b": ")
    }
}

#[cfg(test)]
mod tool_tests;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::*;

    fn render(source: &str, messages: &[serde_json::Value]) -> Result<String, TemplateError> {
        ChatTemplate::new(source, Some("<s>"), None)?.render(messages, None, true)
    }

    #[test]
    fn a_template_sees_the_messages_the_special_tokens_and_whether_an_answer_is_to_follow() {
        let source = "{{ bos_token }}{% for m in messages %}{{ m['role'] + ':' + m.content + eos_token }};{% endfor %}\
                      {% if add_generation_prompt %}assistant:{% endif %}";
        let messages = [
            json!({"role": "user", "content": "hi"}),
            json!({"role": "assistant", "content": "ho"}),
        ];
        assert_eq!(
            render(source, &messages),
            Ok("<s>user:hi;assistant:ho;assistant:".to_owned())
        );
    }

    #[test]
    fn blocks_leave_no_lines_behind_and_python_methods_work() {
        let source = "{%- for m in messages %}\n    {% if m.content.strip().startswith('a') %}\nyes\n    {% endif %}\n{%- endfor %}";
        assert_eq!(
            render(source, &[json!({"role": "user", "content": " ab "})]),
            Ok("yes\n".to_owned())
        );
    }

    #[test]
    fn a_refusal_of_the_template_is_told_from_a_failure() {
        let refused = render("{{ raise_exception('roles must alternate') }}", &[]);
        assert_eq!(refused, Err(TemplateError::Refused("roles must alternate".to_owned())));
        assert!(matches!(
            render("{{ messages[0].content.nonsense() }}", &[json!({"content": "a"})]),
            Err(TemplateError::Failed(_))
        ));
        assert!(matches!(render("{% for %}", &[]), Err(TemplateError::Syntax(_))));
    }

    #[test]
    fn a_template_that_never_ends_is_stopped() {
        let endless = "{% for a in range(99999) %}{% for b in range(99999) %}{{ b }}{% endfor %}{% endfor %}";
        assert!(matches!(render(endless, &[]), Err(TemplateError::Failed(_))));
        let recursive = "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}";
        assert!(matches!(render(recursive, &[]), Err(TemplateError::Failed(_))));
    }

    #[test]
    fn json_is_written_as_python_writes_it() {
        let messages = [json!({"role": "tool", "content": {"a": [1, 2.5, "<é>"], "b": null}})];
        let rendered = render("{{ messages[0].content | tojson }}", &messages);
        assert_eq!(rendered, Ok(r#"{"a": [1, 2.5, "<é>"], "b": null}"#.to_owned()));
        let rendered = render(
            "{{ messages[0].content | tojson(indent=2) }}",
            &[json!({"content": [1]})],
        );
        assert_eq!(rendered, Ok("[\n  1\n]".to_owned()));
    }

    #[test]
    fn the_date_is_that_of_the_clock_and_missing_without_one() {
        let source = "{% if strftime_now is defined %}{{ strftime_now('%d %b %Y') }}{% else %}26 Jul 2024{% endif %}";
        let template = ChatTemplate::new(source, None, None).expect("a template");
        assert_eq!(template.render(&[], None, true).as_deref(), Ok("26 Jul 2024"));
        let dated = template.with_clock(|| SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000));
        assert_eq!(dated.render(&[], None, true).as_deref(), Ok("14 Nov 2023"));
        let wrong = ChatTemplate::new("{{ strftime_now('%Q!') }}", None, None).expect("a template");
        let rendered = wrong.with_clock(|| SystemTime::UNIX_EPOCH).render(&[], None, true);
        assert!(matches!(rendered, Err(TemplateError::Failed(text)) if text.contains("%Q!")));
    }
}
