//! The member by which a queen has a stream taken up that another worker began; see [`worker_contract::Resume`].

use worker_contract::{RESUME_MEMBER, Resume};

use crate::error::InvalidRequest;
use crate::fields::Fields;
use crate::generation::{Generation, StreamMode};

/// Longest `id` in bytes: each chunk repeats it.
const MAX_ID_BYTES: usize = 256;

/// Reads `resume`, which is for a stream of one answer without log probabilities.
pub(crate) fn resume(
    fields: &mut Fields,
    generation: &Generation,
    logprobs: Option<u32>,
) -> Result<Option<Resume>, InvalidRequest> {
    let Some(value) = fields.take(RESUME_MEMBER) else {
        return Ok(None);
    };
    let resume = read(Fields::of_value(RESUME_MEMBER, value)?)?;
    let fault = if generation.stream == StreamMode::Off {
        "only a stream can be taken up; set `stream: true`"
    } else if generation.n != 1 {
        "only a single answer can be taken up; leave `n` out"
    } else if logprobs.is_some() {
        "an answer with log probabilities cannot be taken up; leave `logprobs` out"
    } else {
        return Ok(Some(resume));
    };
    Err(InvalidRequest::value(RESUME_MEMBER, fault))
}

fn read(mut fields: Fields) -> Result<Resume, InvalidRequest> {
    let id = fields.required_string("id")?;
    if id.len() > MAX_ID_BYTES {
        let reason = format!("may have at most {MAX_ID_BYTES} bytes, this one has {}", id.len());
        return Err(InvalidRequest::value(fields.path("id"), reason));
    }
    let path = fields.path("created");
    let created = fields
        .integer("created")?
        .ok_or_else(|| InvalidRequest::missing(path))?;
    let path = fields.path("tokens");
    let items = fields
        .array("tokens")?
        .ok_or_else(|| InvalidRequest::missing(path.as_str()))?;
    fields.finish()?;
    let tokens = items.iter().enumerate().map(|(index, item)| {
        let token = item.as_u64().and_then(|token| u32::try_from(token).ok());
        token.ok_or_else(|| InvalidRequest::wrong_type(format!("{path}[{index}]"), "a token id", item))
    });
    let tokens = tokens.collect::<Result<Vec<_>, _>>()?;
    Ok(Resume { id, created, tokens })
}
