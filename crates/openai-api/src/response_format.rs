//! The form that an answer is to have.

use serde_json::Value;

use crate::error::InvalidRequest;
use crate::fields::Fields;
use crate::tools;

/// Most bytes of a schema, written as JSON.
pub const MAX_SCHEMA_BYTES: usize = 128 << 10;

/// The form that an answer is to have.
#[derive(Debug, Clone, PartialEq)]
pub enum ResponseFormat {
    /// Any text.
    Text,
    /// A JSON object.
    JsonObject,
    /// JSON that a schema describes.
    JsonSchema {
        /// Names the form: 1 to 64 of `a-z`, `A-Z`, `0-9`, `_`, `-`.
        name: String,
        /// What the form is for.
        description: Option<String>,
        /// The JSON schema, an object of at most [`MAX_SCHEMA_BYTES`].
        schema: Value,
        /// Whether a schema that cannot be kept to in every detail is to be refused.
        strict: bool,
    },
}

/// Reads `response_format`.
pub(crate) fn response_format(fields: &mut Fields) -> Result<ResponseFormat, InvalidRequest> {
    let Some(value) = fields.take("response_format") else {
        return Ok(ResponseFormat::Text);
    };
    let mut fields = Fields::of_value("response_format", value)?;
    let path = fields.path("type");
    let format = match fields.required_string("type")?.as_str() {
        "text" => ResponseFormat::Text,
        "json_object" => ResponseFormat::JsonObject,
        "json_schema" => json_schema(fields.object("json_schema")?)?,
        other => {
            let reason = format!("must be one of text, json_object, json_schema; got `{other}`");
            return Err(InvalidRequest::value(path, reason));
        }
    };
    fields.finish()?;
    Ok(format)
}

fn json_schema(mut fields: Fields) -> Result<ResponseFormat, InvalidRequest> {
    let name = tools::name(&mut fields)?;
    let description = fields.string("description")?;
    let strict = fields.boolean("strict")?.unwrap_or(false);
    let path = fields.path("schema");
    let schema = fields.required("schema")?;
    fields.finish()?;
    if !schema.is_object() {
        return Err(InvalidRequest::wrong_type(path, "a JSON schema object", &schema));
    }
    let bytes = schema.to_string().len();
    if bytes > MAX_SCHEMA_BYTES {
        let reason = format!("a schema may have {MAX_SCHEMA_BYTES} bytes, this one has {bytes}");
        return Err(InvalidRequest::value(path, reason));
    }
    Ok(ResponseFormat::JsonSchema {
        name,
        description,
        schema,
        strict,
    })
}
