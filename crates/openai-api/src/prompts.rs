//! Prompts, and inputs of embeddings: texts or tokens, one or several.

use serde_json::Value;

use crate::error::InvalidRequest;

/// What to continue, or to embed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Prompt {
    /// As text.
    Text(String),
    /// As token ids of the model; at least one.
    Tokens(Vec<u32>),
}

/// A string, token ids, or an array of either with at most `most` items.
pub(crate) fn prompts(path: &str, value: Value, most: usize) -> Result<Vec<Prompt>, InvalidRequest> {
    const EXPECTED: &str = "a string, an array of strings, an array of token ids, or an array of arrays of token ids";
    let items = match value {
        Value::String(text) => return Ok(vec![Prompt::Text(text)]),
        Value::Array(items) => items,
        other => return Err(InvalidRequest::wrong_type(path, EXPECTED, &other)),
    };
    match items.first() {
        None => return Err(InvalidRequest::value(path, "must not be empty")),
        Some(Value::Number(_)) => return Ok(vec![tokens(path, &items)?]),
        Some(Value::String(_) | Value::Array(_)) => {}
        Some(other) => {
            return Err(InvalidRequest::wrong_type(
                format!("{path}[0]"),
                "a string or a token id",
                other,
            ));
        }
    }
    if items.len() > most {
        let reason = format!(
            "at most {most} items, got {}; send the others in a request of their own",
            items.len()
        );
        return Err(InvalidRequest::value(path, reason));
    }
    let are_texts = items[0].is_string();
    let numbered = items.into_iter().enumerate();
    numbered
        .map(|(index, item)| {
            let path = format!("{path}[{index}]");
            match item {
                Value::String(text) if are_texts => Ok(Prompt::Text(text)),
                Value::Array(ids) if !are_texts && ids.is_empty() => {
                    Err(InvalidRequest::value(path, "must not be empty"))
                }
                Value::Array(ids) if !are_texts => tokens(&path, &ids),
                other if are_texts => Err(InvalidRequest::wrong_type(path, "a string like the first item", &other)),
                other => Err(InvalidRequest::wrong_type(
                    path,
                    "token ids like the first item",
                    &other,
                )),
            }
        })
        .collect()
}

fn tokens(path: &str, items: &[Value]) -> Result<Prompt, InvalidRequest> {
    let ids = items.iter().enumerate().map(|(index, item)| {
        let id = item.as_u64().and_then(|id| u32::try_from(id).ok());
        id.ok_or_else(|| InvalidRequest::wrong_type(format!("{path}[{index}]"), "a token id", item))
    });
    Ok(Prompt::Tokens(ids.collect::<Result<_, _>>()?))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::error::InvalidCode;

    fn text(text: &str) -> Prompt {
        Prompt::Text(text.to_owned())
    }

    #[test]
    fn a_prompt_is_a_text_or_tokens_alone_or_in_an_array() {
        for (value, expected) in [
            (json!("Once"), vec![text("Once")]),
            (json!(["Once"]), vec![text("Once")]),
            (json!(["a", "", "b"]), vec![text("a"), text(""), text("b")]),
            (json!([1, 2]), vec![Prompt::Tokens(vec![1, 2])]),
            (json!([[3]]), vec![Prompt::Tokens(vec![3])]),
            (
                json!([[3], [u32::MAX, 0]]),
                vec![Prompt::Tokens(vec![3]), Prompt::Tokens(vec![u32::MAX, 0])],
            ),
        ] {
            assert_eq!(prompts("prompt", value, 3).unwrap(), expected);
        }
    }

    #[test]
    fn what_is_no_prompt_is_refused_by_path() {
        for (value, path, code) in [
            (json!([]), "prompt", InvalidCode::InvalidValue),
            (json!([[]]), "prompt[0]", InvalidCode::InvalidValue),
            (json!([[1], []]), "prompt[1]", InvalidCode::InvalidValue),
            (json!(["a", "b", "c", "d"]), "prompt", InvalidCode::InvalidValue),
            (json!(7), "prompt", InvalidCode::InvalidType),
            (json!([{}]), "prompt[0]", InvalidCode::InvalidType),
            (json!(["a", [1]]), "prompt[1]", InvalidCode::InvalidType),
            (json!([[1], "a"]), "prompt[1]", InvalidCode::InvalidType),
            (json!([1, "a"]), "prompt[1]", InvalidCode::InvalidType),
            (json!([1, -1]), "prompt[1]", InvalidCode::InvalidType),
            (json!([[1, 4294967296_u64]]), "prompt[0][1]", InvalidCode::InvalidType),
            (json!([[1], [2, 0.5]]), "prompt[1][1]", InvalidCode::InvalidType),
        ] {
            let error = prompts("prompt", value, 3).unwrap_err();
            assert_eq!((error.param.as_deref(), error.code), (Some(path), code), "{error}");
        }
    }

    #[test]
    fn tokens_of_one_prompt_are_not_counted_as_prompts() {
        assert_eq!(
            prompts("input", json!([1, 2, 3, 4]), 1).unwrap(),
            [Prompt::Tokens(vec![1, 2, 3, 4])]
        );
    }
}
