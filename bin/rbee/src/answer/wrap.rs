//! Lines that break between words, of a text that comes in pieces.

use ratatui::text::Span;

/// Columns between two tab stops.
const TAB: usize = 8;

/// Where the cursor stands on a terminal of this width.
#[derive(Debug)]
pub(super) struct Wrap {
    width: usize,
    /// Columns that are taken in this line.
    column: usize,
    /// The word that has begun, as it stands on the terminal.
    word: String,
}

impl Wrap {
    pub(super) fn new(width: usize) -> Self {
        Self {
            width,
            column: 0,
            word: String::new(),
        }
    }

    /// What the terminal is to be sent for the next piece: a word that does not fit its line is taken back and begun anew.
    pub(super) fn push(&mut self, text: &str) -> String {
        let mut out = String::new();
        for character in text.chars() {
            match character {
                '\n' => self.end_line(),
                ' ' | '\t' if self.column >= self.width => {
                    // A space at the edge is the break.
                    out.push('\n');
                    self.end_line();
                    continue;
                }
                ' ' => self.end_word(1),
                '\t' => self.end_word(TAB - self.column % TAB),
                character => {
                    let columns = columns(character.encode_utf8(&mut [0; 4]));
                    if self.column + columns > self.width {
                        self.break_before_word(&mut out);
                    }
                    self.column += columns;
                    self.word.push(character);
                }
            }
            out.push(character);
        }
        out
    }

    fn end_line(&mut self) {
        self.column = 0;
        self.word.clear();
    }

    fn end_word(&mut self, columns: usize) {
        self.column += columns;
        self.word.clear();
    }

    /// Brings the word into a line of its own; one that fills the whole line is cut instead.
    fn break_before_word(&mut self, out: &mut String) {
        let taken = columns(&self.word);
        if taken >= self.column {
            out.push('\n');
            self.end_line();
            return;
        }
        if taken > 0 {
            // Beyond the last column the cursor still stands on it, where a step back would go one too far.
            let back = if self.column >= self.width { taken - 1 } else { taken };
            if back > 0 {
                out.push_str(&format!("\u{1b}[{back}D"));
            }
            out.push_str("\u{1b}[K");
        }
        out.push('\n');
        out.push_str(&self.word);
        self.column = taken;
    }
}

fn columns(text: &str) -> usize {
    Span::raw(text).width()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What stands on a terminal of ten columns that was sent this.
    fn screen(pieces: &[&str]) -> Vec<String> {
        let mut wrap = Wrap::new(10);
        let sent: String = pieces.iter().map(|piece| wrap.push(piece)).collect();
        let (mut lines, mut at) = (vec![Vec::new()], 0_usize);
        let mut rest = sent.as_str();
        while let Some(character) = rest.chars().next() {
            let line = lines.last_mut().unwrap();
            if let Some(sequence) = rest.strip_prefix("\u{1b}[") {
                let end = sequence.find(['D', 'K']).unwrap();
                match sequence.as_bytes()[end] {
                    b'D' => at = at.min(9) - sequence[..end].parse::<usize>().unwrap(),
                    _ => line.truncate(at.min(9)),
                }
                rest = &sequence[end + 1..];
                continue;
            }
            rest = &rest[character.len_utf8()..];
            if character == '\n' {
                lines.push(Vec::new());
                at = 0;
            } else {
                assert!(at < 10, "the terminal breaks a line by itself: {sent:?}");
                line.push(character);
                at += 1;
            }
        }
        lines
            .iter()
            .map(|line| line.iter().collect::<String>().trim_end().to_owned())
            .collect()
    }

    #[test]
    fn a_word_is_never_torn_however_it_comes() {
        let text = "the sky is blue because\nof scattering";
        let wanted = ["the sky is", "blue", "because", "of", "scattering"];
        for size in 1..=text.len() {
            let pieces: Vec<_> = text
                .as_bytes()
                .chunks(size)
                .map(|piece| std::str::from_utf8(piece).unwrap())
                .collect();
            assert_eq!(screen(&pieces), wanted, "pieces of {size}");
        }
    }

    #[test]
    fn a_word_longer_than_a_line_is_cut_at_its_edge() {
        assert_eq!(screen(&["ab abcdefghijklm"]), ["ab", "abcdefghij", "klm"]);
    }

    #[test]
    fn a_word_that_ends_at_the_edge_stays() {
        assert_eq!(screen(&["abcd efghi jk"]), ["abcd efghi", "jk"]);
    }
}
