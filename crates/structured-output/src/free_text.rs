//! Tool calls after any text: the grammar bites only once a call begins.

use std::collections::HashMap;

use batch_engine::{Constraint, ConstraintError, TokenMask};
use llguidance::toktrie::{TokEnv, TokTrie, TrieNode};

use crate::matcher::Matcher;
use crate::tool_grammar::ToolGrammar;

/// Lets all tokens pass until the text of a call's opening, or the token that stands for it, has come; then the grammar
/// of calls rules to the end.
///
/// While the text ends with a part of an opening, the only tokens forbidden are those that would complete it and in the
/// same breath go on in a way that no call does (`>` is fine after `<tool_call`, `></` is not).
pub(crate) struct FreeText {
    calls: ToolGrammar,
    vocabulary: TokEnv,
    phase: Phase,
    /// What must not follow an unfinished opening.
    forbidden: HashMap<Vec<u8>, Vec<u32>>,
}

enum Phase {
    /// Text so far. `tail` is its longest end that is the beginning of an opening.
    Text { tail: Vec<u8> },
    /// A call has begun.
    Call,
    /// No call can begin any more.
    Free,
}

impl FreeText {
    pub(crate) fn new(calls: ToolGrammar, vocabulary: TokEnv) -> Self {
        Self {
            calls,
            vocabulary,
            phase: Phase::Text { tail: Vec::new() },
            forbidden: HashMap::new(),
        }
    }

    /// The phase after the text that ends with `tail`, which is longer than it was.
    fn phase_after(&mut self, mut tail: Vec<u8>) -> Phase {
        if self.calls.is_whole_answer {
            let blanks = tail.iter().take_while(|byte| byte.is_ascii_whitespace()).count();
            tail.drain(..blanks);
        }
        loop {
            let is_opened = self.openings().any(|opening| tail.starts_with(opening));
            if is_opened && self.begin_call(&tail) {
                return Phase::Call;
            }
            if !is_opened && self.openings().any(|opening| opening.starts_with(&tail)) {
                return Phase::Text { tail };
            }
            if self.calls.is_whole_answer {
                return Phase::Free;
            }
            tail.remove(0);
        }
    }

    /// Hands the text of a call over to the grammar, if the grammar takes it.
    fn begin_call(&mut self, text: &[u8]) -> bool {
        let begun = matcher_after(&self.calls.matcher, self.vocabulary.tok_trie(), text);
        let is_call = begun.is_some();
        if let Some(matcher) = begun {
            self.calls.matcher = matcher;
        }
        is_call
    }

    fn openings(&self) -> impl Iterator<Item = &[u8]> {
        self.calls.openings.iter().map(|opening| opening.as_bytes())
    }

    /// The tokens that must not follow a text with this tail.
    fn forbidden_after(&self, tail: &[u8]) -> Vec<u32> {
        let trie = self.vocabulary.tok_trie();
        let Some(mut matcher) = matcher_after(&self.calls.matcher, trie, tail) else {
            return Vec::new();
        };
        let mut completing = Vec::new();
        for rest in self.openings().filter_map(|opening| opening.strip_prefix(tail)) {
            if let Some(node) = trie.child_at_bytes(trie.root(), rest) {
                collect_tokens(trie, node, &mut completing);
            }
        }
        completing.retain(|&token| !matcher.would_accept(token));
        completing
    }
}

impl Constraint for FreeText {
    fn allowed(&mut self, mask: &mut TokenMask) -> Result<(), ConstraintError> {
        match &self.phase {
            Phase::Call => return self.calls.matcher.allowed(mask),
            Phase::Free => mask.allow_all(),
            Phase::Text { tail } => {
                mask.allow_all();
                if !self.forbidden.contains_key(tail) {
                    self.forbidden.insert(tail.clone(), self.forbidden_after(tail));
                }
                for &token in &self.forbidden[tail] {
                    mask.disallow(token);
                }
            }
        }
        Ok(())
    }

    fn accept(&mut self, token: u32) -> Result<(), ConstraintError> {
        let Phase::Text { tail } = &mut self.phase else {
            return match self.phase {
                Phase::Call => self.calls.matcher.accept(token),
                _ => Ok(()),
            };
        };
        let trie = self.vocabulary.tok_trie();
        let mut tail = std::mem::take(tail);
        if self.calls.opening_token == Some(token) {
            self.calls.matcher.accept(token)?;
            self.phase = Phase::Call;
        } else if trie.is_special_token(token) {
            self.phase = Phase::Text { tail: Vec::new() };
        } else {
            tail.extend_from_slice(trie.token(token));
            self.phase = self.phase_after(tail);
        }
        Ok(())
    }
}

/// A matcher that is `text` further, however that is cut into tokens. `None` if the grammar does not go there.
fn matcher_after(matcher: &Matcher, trie: &TokTrie, text: &[u8]) -> Option<Matcher> {
    let mut matcher = matcher.clone();
    let tokens = trie.greedy_tokenize(text);
    matcher.accept_all(&tokens).ok().map(|()| matcher)
}

/// The tokens of a node and below.
fn collect_tokens(trie: &TokTrie, node: &TrieNode, tokens: &mut Vec<u32>) {
    tokens.extend(node.token_id());
    for child in trie.node_children(node) {
        collect_tokens(trie, child, tokens);
    }
}
