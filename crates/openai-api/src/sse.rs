//! The frames of a stream of server-sent events.

use bytes::Bytes;
use serde::Serialize;

/// Value of `content-type`.
pub const CONTENT_TYPE: &str = "text/event-stream";

/// Ends a stream that is complete. A stream that breaks off ends without it.
pub const DONE: Bytes = Bytes::from_static(b"data: [DONE]\n\n");

/// A comment, which clients skip: shows that the stream lives.
pub const KEEP_ALIVE: Bytes = Bytes::from_static(b": keep-alive\n\n");

/// One event: a `data:` line with JSON and a blank line.
///
/// # Panics
///
/// For data that JSON cannot hold, such as a map whose keys are not texts. No chunk and no error body is such.
pub fn event<T: Serialize>(data: &T) -> Bytes {
    let mut frame = Vec::with_capacity(256);
    frame.extend_from_slice(b"data: ");
    serde_json::to_writer(&mut frame, data).expect("the data can be written as JSON");
    frame.extend_from_slice(b"\n\n");
    frame.into()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_event_is_one_data_line_and_a_blank_line() {
        assert_eq!(event(&serde_json::json!({"a": 1})), "data: {\"a\":1}\n\n");
    }

    proptest! {
        #[test]
        fn no_text_breaks_the_frame(text in any::<String>()) {
            let frame = event(&text);
            let frame = std::str::from_utf8(&frame).unwrap();
            let data = frame.strip_prefix("data: ").unwrap().strip_suffix("\n\n").unwrap();
            prop_assert!(!data.contains(['\n', '\r']));
            prop_assert_eq!(serde_json::from_str::<String>(data).unwrap(), text);
        }
    }
}
