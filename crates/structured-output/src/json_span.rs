//! Where a JSON value ends, found character by character.

/// Most objects and arrays within each other; a deeper value is taken for broken.
const MAX_DEPTH: usize = 256;

/// Follows the brackets and strings of an object or array. What lies between them is not checked.
#[derive(Debug, Clone, Default)]
pub(crate) struct JsonSpan {
    /// The brackets that are to close what is open.
    closers: Vec<u8>,
    in_string: bool,
    escaped: bool,
}

/// What one more byte makes of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SpanStep {
    /// It goes on.
    Inside,
    /// This byte was its last.
    End,
    /// It is no JSON.
    Broken,
}

impl JsonSpan {
    /// Takes the value's next byte, at first its opening bracket.
    pub(crate) fn step(&mut self, byte: u8) -> SpanStep {
        if self.in_string {
            if self.escaped {
                self.escaped = false;
            } else {
                self.escaped = byte == b'\\';
                self.in_string = byte != b'"';
            }
            return SpanStep::Inside;
        }
        match byte {
            b'"' => self.in_string = true,
            b'{' | b'[' if self.closers.len() == MAX_DEPTH => return SpanStep::Broken,
            b'{' => self.closers.push(b'}'),
            b'[' => self.closers.push(b']'),
            b'}' | b']' if self.closers.pop() != Some(byte) => return SpanStep::Broken,
            _ => {}
        }
        if self.closers.is_empty() {
            SpanStep::End
        } else {
            SpanStep::Inside
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(text: &str) -> (SpanStep, usize) {
        let mut span = JsonSpan::default();
        for (index, byte) in text.bytes().enumerate() {
            match span.step(byte) {
                SpanStep::Inside => {}
                end => return (end, index + 1),
            }
        }
        (SpanStep::Inside, text.len())
    }

    #[test]
    fn a_value_ends_with_its_own_closing_bracket() {
        assert_eq!(run(r#"{"a": [1, {}], "b": "}\"]"} {"#), (SpanStep::End, 27));
        assert_eq!(run(r#"{"a": "\\"}x"#), (SpanStep::End, 11));
        assert_eq!(run(r#"{"a": ["#), (SpanStep::Inside, 7));
    }

    #[test]
    fn brackets_that_do_not_match_are_no_value() {
        assert_eq!(run("{]"), (SpanStep::Broken, 2));
        assert_eq!(run(&"[".repeat(MAX_DEPTH + 1)).0, SpanStep::Broken);
    }
}
