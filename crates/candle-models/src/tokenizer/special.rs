//! Finding the tokens that are recognised in a text before anything else is.

use aho_corasick::{AhoCorasick, MatchKind};

use super::TokenizerError;
use super::vocabulary::{Kind, Vocabulary};

/// A piece of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fragment<'a> {
    Text(&'a str),
    Token(u32),
}

/// Control tokens are found on request only, user-defined ones always: they are text that happens to be one token.
pub(super) struct SpecialTokens {
    always: Finder,
    on_request: Finder,
}

struct Finder {
    automaton: Option<AhoCorasick>,
    ids: Vec<u32>,
}

impl SpecialTokens {
    pub(super) fn new(vocabulary: &Vocabulary) -> Result<Self, TokenizerError> {
        Ok(Self {
            always: Finder::new(vocabulary, &[Kind::UserDefined])?,
            on_request: Finder::new(vocabulary, &[Kind::UserDefined, Kind::Control, Kind::Unknown])?,
        })
    }

    /// Cuts a text at its special tokens, the leftmost and longest first. No fragment is empty.
    pub(super) fn split<'a>(&self, text: &'a str, parse_special: bool) -> Vec<Fragment<'a>> {
        let finder = if parse_special { &self.on_request } else { &self.always };
        let mut fragments = Vec::new();
        let mut behind = 0;
        for found in finder.automaton.iter().flat_map(|automaton| automaton.find_iter(text)) {
            fragments.extend(Some(Fragment::Text(&text[behind..found.start()])).filter(|_| found.start() > behind));
            fragments.push(Fragment::Token(finder.ids[found.pattern().as_usize()]));
            behind = found.end();
        }
        fragments.extend(Some(Fragment::Text(&text[behind..])).filter(|_| text.len() > behind));
        fragments
    }
}

impl Finder {
    fn new(vocabulary: &Vocabulary, kinds: &[Kind]) -> Result<Self, TokenizerError> {
        let ids: Vec<u32> = vocabulary
            .of_kinds(kinds)
            .filter(|&id| !vocabulary.spelling(id).is_empty())
            .collect();
        if ids.is_empty() {
            return Ok(Self { automaton: None, ids });
        }
        let automaton = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            .build(ids.iter().map(|&id| vocabulary.spelling(id)))
            .map_err(|error| TokenizerError::Damaged(error.to_string()))?;
        Ok(Self {
            automaton: Some(automaton),
            ids,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::vocabulary::Alphabet;
    use super::*;

    fn tokens() -> SpecialTokens {
        let tokens = [
            ("a", Kind::Normal),
            ("<s>", Kind::Control),
            ("\n", Kind::UserDefined),
            ("\n\n", Kind::UserDefined),
        ];
        let (spellings, kinds): (Vec<_>, Vec<_>) = tokens.into_iter().unzip();
        let vocabulary = Vocabulary::new(&spellings, kinds, Alphabet::Spaces).expect("consistent");
        SpecialTokens::new(&vocabulary).expect("few tokens")
    }

    #[test]
    fn control_tokens_are_found_on_request_only() {
        use Fragment::{Text, Token};
        assert_eq!(tokens().split("a<s>b", true), [Text("a"), Token(1), Text("b")]);
        assert_eq!(tokens().split("a<s>b", false), [Text("a<s>b")]);
        assert_eq!(tokens().split("<s><s>", true), [Token(1), Token(1)]);
        assert_eq!(tokens().split("", true), []);
    }

    #[test]
    fn user_defined_tokens_are_always_found_the_longest_first() {
        use Fragment::{Text, Token};
        assert_eq!(
            tokens().split("a\n\n\nb", false),
            [Text("a"), Token(3), Token(2), Text("b")]
        );
    }
}
