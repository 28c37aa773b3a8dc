//! Stop texts: where an answer ends before the model ends it.

/// Cuts an answer at its first stop text, however the text is split into pieces.
///
/// The first stop text is the one that is complete first; of several that are complete at the same place, the longest.
/// What might be the beginning of a stop text is held back until it is clear that it is none, so nothing of a stop text
/// ever gets out.
#[derive(Debug)]
pub(crate) struct StopMatcher {
    stops: Vec<String>,
    held: String,
}

/// What a piece of text led to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Passed {
    /// Text that is surely part of the answer; may be empty.
    pub(crate) text: String,
    /// The stop text that was reached: nothing may follow.
    pub(crate) stop: Option<String>,
}

impl StopMatcher {
    /// Cuts at any of these texts, none of which may be empty.
    pub(crate) fn new(stops: Vec<String>) -> Self {
        debug_assert!(stops.iter().all(|stop| !stop.is_empty()));
        Self {
            stops,
            held: String::new(),
        }
    }

    /// Takes the next piece.
    pub(crate) fn push(&mut self, piece: &str) -> Passed {
        let mut text = std::mem::take(&mut self.held);
        text.push_str(piece);
        let first = self.stops.iter().filter_map(|stop| {
            let start = text.find(stop.as_str())?;
            Some((start + stop.len(), start, stop))
        });
        if let Some((_, start, stop)) = first.min() {
            text.truncate(start);
            let stop = Some(stop.clone());
            return Passed { text, stop };
        }
        let held = self.stops.iter().map(|stop| overlap(&text, stop)).max().unwrap_or(0);
        self.held = text.split_off(text.len() - held);
        Passed { text, stop: None }
    }

    /// The answer is over: what was held back is part of it.
    pub(crate) fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

/// Length of the longest end of `text` that is a proper beginning of `stop`.
fn overlap(text: &str, stop: &str) -> usize {
    let longest = text.len().min(stop.len() - 1);
    let lengths = (1..=longest).rev();
    lengths
        .filter(|&length| stop.is_char_boundary(length))
        .find(|&length| text.as_bytes().ends_with(&stop.as_bytes()[..length]))
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn run(stops: &[&str], pieces: &[&str]) -> (Vec<String>, Option<String>) {
        let mut matcher = StopMatcher::new(stops.iter().map(|&stop| stop.to_owned()).collect());
        let mut out = Vec::new();
        for piece in pieces {
            let passed = matcher.push(piece);
            out.push(passed.text);
            if passed.stop.is_some() {
                return (out, passed.stop);
            }
        }
        out.push(matcher.finish());
        (out, None)
    }

    fn joined(stops: &[&str], pieces: &[&str]) -> (String, Option<String>) {
        let (out, stop) = run(stops, pieces);
        (out.concat(), stop)
    }

    /// The specification, on the text as a whole.
    fn cut<'a>(text: &'a str, stops: &[String]) -> (&'a str, Option<String>) {
        for (end, _) in text.char_indices().skip(1).chain([(text.len(), ' ')]) {
            let longest = stops
                .iter()
                .filter(|stop| text[..end].ends_with(stop.as_str()))
                .max_by_key(|stop| stop.len());
            if let Some(stop) = longest {
                return (&text[..end - stop.len()], Some(stop.clone()));
            }
        }
        (text, None)
    }

    #[test]
    fn without_stop_texts_everything_passes_at_once() {
        assert_eq!(run(&[], &["a", "", "b"]).0, ["a", "", "b", ""]);
    }

    #[test]
    fn a_stop_text_across_pieces_is_found_and_no_part_of_it_gets_out() {
        assert_eq!(
            run(&["STOP"], &["say S", "TO", "P more"]),
            (vec!["say ".into(), "".into(), "".into()], Some("STOP".into()))
        );
    }

    #[test]
    fn what_only_looked_like_a_stop_text_is_released() {
        assert_eq!(run(&["STOP"], &["ST", "OX"]).0, ["", "STOX", ""]);
        assert_eq!(
            joined(&["aab"], &["a", "a", "a", "b"]),
            ("a".into(), Some("aab".into()))
        );
    }

    #[test]
    fn what_is_held_back_at_the_end_belongs_to_the_answer() {
        assert_eq!(joined(&["\n\n"], &["line\n"]), ("line\n".into(), None));
    }

    #[test]
    fn the_stop_text_that_is_complete_first_wins() {
        assert_eq!(joined(&["abcd", "bc"], &["xabcd"]), ("xa".into(), Some("bc".into())));
        assert_eq!(joined(&["bc", "abc"], &["xabc"]), ("x".into(), Some("abc".into())));
        assert_eq!(
            joined(&["late", "ear"], &["early, late"]),
            (String::new(), Some("ear".into()))
        );
    }

    #[test]
    fn characters_of_several_bytes_are_never_cut() {
        assert_eq!(joined(&["é!"], &["caf", "é", "?"]), ("café?".into(), None));
        assert_eq!(joined(&["🐝"], &["a🐝"]), ("a".into(), Some("🐝".into())));
    }

    /// Few letters, so that stop texts occur and overlap.
    fn words() -> impl Strategy<Value = String> {
        "[abé]{0,12}"
    }

    proptest! {
        #[test]
        fn the_answer_is_the_text_before_the_first_stop_text_for_any_split(
            pieces in prop::collection::vec(words(), 0..6),
            stops in prop::collection::vec("[abé]{1,4}", 0..4),
        ) {
            let text = pieces.concat();
            let (expected, expected_stop) = cut(&text, &stops);
            let stop_refs: Vec<_> = stops.iter().map(String::as_str).collect();
            let piece_refs: Vec<_> = pieces.iter().map(String::as_str).collect();
            let (answer, stop) = joined(&stop_refs, &piece_refs);
            prop_assert_eq!(&answer, expected);
            prop_assert_eq!(stop, expected_stop);
            prop_assert!(stops.iter().all(|stop| !answer.contains(stop.as_str())));
        }
    }
}
