//! Constrained decoding: which tokens may come next is decided by a [`Constraint`], token for token.

/// A rule that an answer follows, such as a grammar. One per answer; it keeps its own place in the answer.
///
/// Called on the engine's thread between steps, so everybody waits for it. An error, or a panic, fails its own request
/// and no other.
pub trait Constraint: Send {
    /// Allows in `mask`, in which nothing is allowed yet, each token that may come next: tokens that end an answer
    /// where it may end here. An answer ends where nothing but such tokens is allowed; a mask left empty is an error.
    fn allowed(&mut self, mask: &mut TokenMask) -> Result<(), ConstraintError>;

    /// The answer goes on with `token`, which was allowed. Not called for a token that ends the answer.
    fn accept(&mut self, token: u32) -> Result<(), ConstraintError>;
}

/// Why a constraint could not go on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ConstraintError(String);

impl ConstraintError {
    /// An error with this text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }
}

/// A set of tokens: one bit for each token of the vocabulary, in 32-bit words, the lowest bit first.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TokenMask {
    words: Vec<u32>,
    vocab_size: usize,
}

impl TokenMask {
    /// No token of a vocabulary of this size.
    #[must_use]
    pub fn new(vocab_size: usize) -> Self {
        Self {
            words: vec![0; vocab_size.div_ceil(32)],
            vocab_size,
        }
    }

    /// Number of tokens that the set could have.
    #[must_use]
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// The bits. Those after the last token are 0.
    #[must_use]
    pub fn words(&self) -> &[u32] {
        &self.words
    }

    /// Takes over a set in the same layout, for a vocabulary of any size: missing tokens are not allowed, those that the
    /// model lacks are left out.
    pub fn copy_from(&mut self, words: &[u32]) {
        let shared = words.len().min(self.words.len());
        self.words[..shared].copy_from_slice(&words[..shared]);
        self.words[shared..].fill(0);
        self.clear_tail();
    }

    /// Disallows all tokens.
    pub fn disallow_all(&mut self) {
        self.words.fill(0);
    }

    /// Allows all tokens.
    pub fn allow_all(&mut self) {
        self.words.fill(u32::MAX);
        self.clear_tail();
    }

    /// Allows one token. A token that the vocabulary lacks is ignored.
    pub fn allow(&mut self, token: u32) {
        if (token as usize) < self.vocab_size {
            self.words[token as usize / 32] |= 1 << (token % 32);
        }
    }

    /// Disallows one token.
    pub fn disallow(&mut self, token: u32) {
        if (token as usize) < self.vocab_size {
            self.words[token as usize / 32] &= !(1 << (token % 32));
        }
    }

    /// Whether a token is allowed.
    #[must_use]
    pub fn is_allowed(&self, token: u32) -> bool {
        (token as usize) < self.vocab_size && self.words[token as usize / 32] >> (token % 32) & 1 == 1
    }

    /// The allowed tokens in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        (0_u32..).zip(&self.words).flat_map(|(index, &word)| {
            let mut rest = word;
            std::iter::from_fn(move || {
                let bit = (rest != 0).then(|| rest.trailing_zeros())?;
                rest &= rest - 1;
                Some(index * 32 + bit)
            })
        })
    }

    fn clear_tail(&mut self) {
        let used = self.vocab_size % 32;
        if let (Some(last), true) = (self.words.last_mut(), used != 0) {
            *last &= (1 << used) - 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::TokenMask;

    #[test]
    fn a_mask_has_no_tokens_beyond_the_vocabulary() {
        let mut mask = TokenMask::new(35);
        mask.allow_all();
        assert_eq!((mask.iter().count(), mask.words()), (35, &[u32::MAX, 0b111][..]));
        mask.copy_from(&[1, u32::MAX, u32::MAX]);
        assert_eq!(mask.iter().collect::<Vec<_>>(), [0, 32, 33, 34]);
        mask.allow(35);
        assert!(!mask.is_allowed(35) && !mask.is_allowed(1000));
    }

    #[test]
    fn what_a_shorter_set_does_not_name_is_not_allowed() {
        let mut mask = TokenMask::new(70);
        mask.allow_all();
        mask.copy_from(&[0b10]);
        assert_eq!(mask.iter().collect::<Vec<_>>(), [1]);
        mask.allow(69);
        mask.disallow(1);
        assert_eq!(mask.iter().collect::<Vec<_>>(), [69]);
        mask.disallow_all();
        assert_eq!(mask, TokenMask::new(70));
    }
}
