//! How texts are cut into the words that byte-pair encoding works on.
//!
//! The models' own patterns end in `\s+(?!\S)|\s+`: white space, but for its last character where a word follows. Without
//! that look-ahead a pattern needs no backtracking, so it is left away here and its effect made by hand.

use regex::Regex;

use super::TokenizerError;

/// How words are cut, by the names that GGUF files use in `tokenizer.ggml.pre`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Words {
    /// GPT-2's pattern.
    Gpt2,
    /// Each digit by itself, then GPT-2's pattern.
    SingleDigits,
    /// Llama 3: digits in groups of three, line ends with what they follow; a word that is a token is not merged.
    Llama3,
    /// Qwen 2: like Llama 3 with single digits.
    Qwen2,
}

const NAMES: [(&str, Words); 16] = [
    ("gpt-2", Words::Gpt2),
    ("phi-2", Words::Gpt2),
    ("mpt", Words::Gpt2),
    ("olmo", Words::Gpt2),
    ("smollm", Words::SingleDigits),
    ("starcoder", Words::SingleDigits),
    ("refact", Words::SingleDigits),
    ("command-r", Words::SingleDigits),
    ("codeshell", Words::SingleDigits),
    ("exaone", Words::SingleDigits),
    ("llama3", Words::Llama3),
    ("llama-v3", Words::Llama3),
    ("llama-bpe", Words::Llama3),
    ("falcon3", Words::Llama3),
    ("qwen2", Words::Qwen2),
    ("deepseek-r1-qwen", Words::Qwen2),
];

impl Words {
    pub(super) fn of_name(pre: &str) -> Result<Self, TokenizerError> {
        let found = NAMES.iter().find(|(name, _)| *name == pre);
        found.map(|&(_, words)| words).ok_or_else(|| {
            let known = NAMES.map(|(name, _)| name).join(", ");
            TokenizerError::Unsupported(format!(
                "words cut as {pre:?} are not supported; supported are: {known}"
            ))
        })
    }

    fn pattern(self) -> String {
        const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+";
        const BEFORE_DIGITS: &str = r"'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD]|[^\r\n\p{L}\p{N}]?\p{L}+";
        const AFTER_DIGITS: &str = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+";
        match self {
            Self::Gpt2 | Self::SingleDigits => GPT2.to_owned(),
            Self::Llama3 => [BEFORE_DIGITS, r"\p{N}{1,3}", AFTER_DIGITS].join("|"),
            Self::Qwen2 => [BEFORE_DIGITS, r"\p{N}", AFTER_DIGITS].join("|"),
        }
    }

    /// Whether white space that ends a line is one word with all before it, whatever follows.
    fn keeps_line_ends(self) -> bool {
        matches!(self, Self::Llama3 | Self::Qwen2)
    }
}

/// Cuts texts.
pub(super) struct Cutter {
    words: Words,
    pattern: Regex,
}

impl Cutter {
    pub(super) fn new(words: Words) -> Self {
        Self {
            words,
            pattern: Regex::new(&words.pattern()).expect("one of four patterns, all of which are tested"),
        }
    }

    pub(super) fn words(&self) -> Words {
        self.words
    }

    /// Calls `each` with every word; together they are the text.
    pub(super) fn cut<'t>(&self, text: &'t str, mut each: impl FnMut(&'t str)) {
        if self.words == Words::SingleDigits {
            let is_number = char::is_numeric;
            let mut rest = text;
            while let Some((at, digit)) = rest.char_indices().find(|&(_, c)| is_number(c)) {
                let (before, behind) = rest.split_at(at);
                let (digit, behind) = behind.split_at(digit.len_utf8());
                self.cut_by_pattern(before, &mut each);
                each(digit);
                rest = behind;
            }
            self.cut_by_pattern(rest, &mut each);
        } else {
            self.cut_by_pattern(text, &mut each);
        }
    }

    fn cut_by_pattern<'t>(&self, text: &'t str, each: &mut impl FnMut(&'t str)) {
        let mut at = 0;
        while let Some(found) = self.pattern.find_at(text, at) {
            if found.start() > at {
                each(&text[at..found.start()]);
            }
            let word = self.without_last_space(found.as_str(), found.end() < text.len());
            each(word);
            at = found.start() + word.len();
        }
        if at < text.len() {
            each(&text[at..]);
        }
    }

    /// What `\s+(?!\S)` leaves of white space that a word follows: all but its last character, if there are more.
    fn without_last_space<'t>(&self, word: &'t str, followed: bool) -> &'t str {
        let mut characters = word.chars();
        let is_space = followed && characters.all(char::is_whitespace);
        if !is_space || (self.words.keeps_line_ends() && word.ends_with(['\r', '\n'])) {
            return word;
        }
        match word.char_indices().next_back() {
            Some((last, _)) if last > 0 => &word[..last],
            _ => word,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(words: Words, text: &str) -> Vec<&str> {
        let mut found = Vec::new();
        Cutter::new(words).cut(text, |word| found.push(word));
        assert_eq!(found.concat(), text, "nothing is lost");
        found
    }

    #[test]
    fn gpt_2_keeps_a_space_with_the_word_behind_it_and_all_others_together() {
        assert_eq!(
            cut(Words::Gpt2, "It's  me,\n\n 12ab   "),
            ["It", "'s", " ", " me", ",", "\n\n", " 12", "ab", "   "]
        );
        assert_eq!(cut(Words::Gpt2, " \u{A0}\nx"), [" \u{A0}", "\n", "x"]);
    }

    #[test]
    fn single_digits_stand_alone_and_take_no_space() {
        assert_eq!(cut(Words::SingleDigits, "a 12b "), ["a", " ", "1", "2", "b", " "]);
    }

    #[test]
    fn llama_3_takes_digits_by_three_and_line_ends_with_what_is_before_them() {
        assert_eq!(
            cut(Words::Llama3, "I'LL pay 12345!\r\n  \n  so"),
            ["I", "'LL", " pay", " ", "123", "45", "!\r\n", "  \n", " ", " so"]
        );
        assert_eq!(cut(Words::Llama3, "\n\tx y\n\n"), ["\n", "\tx", " y", "\n\n"]);
    }

    #[test]
    fn qwen_2_takes_digits_one_by_one() {
        assert_eq!(cut(Words::Qwen2, "x=12"), ["x", "=", "1", "2"]);
    }

    #[test]
    fn no_text_has_no_words() {
        for (_, words) in NAMES {
            assert!(cut(words, "").is_empty());
        }
    }
}
