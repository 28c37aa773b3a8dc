//! Prompts to continue and texts to embed, several to a request: their names and their tokens.

use daemon::ApiError;
use openai_api::Prompt;

use super::answer;
use crate::language::Language;
use crate::state::Served;

/// Names of a request's prompts: the parameter's own name if there is one prompt, else with their numbers.
pub(super) fn names(param: &str, count: usize) -> Vec<String> {
    match count {
        1 => vec![param.to_owned()],
        _ => (0..count).map(|index| format!("{param}[{index}]")).collect(),
    }
}

/// The tokens of prompts, which `names` names; with their texts where they came as such.
pub(super) async fn encode(
    served: &Served,
    prompts: Vec<Prompt>,
    names: &[String],
) -> Result<Vec<(Option<String>, Vec<u32>)>, ApiError> {
    let names = names.to_vec();
    answer::prepare(served, move |language| {
        let encoded = prompts.into_iter().zip(&names).map(|(prompt, name)| match prompt {
            Prompt::Tokens(tokens) => Ok((None, tokens)),
            Prompt::Text(text) => {
                let tokens = language.encode_text(&text);
                let tokens = tokens.map_err(|error| answer::unencodable(name, &error))?;
                Ok((Some(text), tokens))
            }
        });
        encoded.collect()
    })
    .await
}

/// The text of a prompt that came as tokens.
pub(super) fn decode(language: &dyn Language, tokens: &[u32]) -> String {
    let mut decoder = language.decoder(&[]);
    let mut text: String = tokens.iter().filter_map(|&token| decoder.push(token)).collect();
    text.extend(decoder.finish());
    text
}
