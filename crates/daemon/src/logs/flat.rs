//! JSON lines without nesting: `timestamp`, `level`, `target`, `message`, then the event's fields, then those of the spans it
//! happened in, each behind the name of its span: `request_id`, `request_path`.
//!
//! Collectors of logs take flat objects as they are, and the id of a request has the same name wherever it stands.

use std::fmt::{self, Write};

use serde::Serialize;
use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::field::RecordFields;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, FormattedFields};
use tracing_subscriber::registry::LookupSpan;

/// Names that every line has, so that no field may have them.
const RESERVED: [&str; 4] = ["timestamp", "level", "target", "message"];

/// Writes the fields of spans, to be read again by [`Flat`].
pub(super) struct Fields;

/// Writes events.
pub(super) struct Flat;

impl<'writer> FormatFields<'writer> for Fields {
    fn format_fields<R: RecordFields>(&self, mut writer: Writer<'writer>, fields: R) -> fmt::Result {
        let mut object = Object::default();
        fields.record(&mut object);
        write_json(&mut writer, &object.0)
    }

    fn add_fields(
        &self,
        current: &'writer mut FormattedFields<Self>,
        fields: &tracing::span::Record<'_>,
    ) -> fmt::Result {
        let mut object = Object(read(&current.fields));
        fields.record(&mut object);
        current.fields.clear();
        write_json(&mut current.fields, &object.0)
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> FormatEvent<S, Fields> for Flat {
    fn format_event(
        &self,
        context: &FmtContext<'_, S, Fields>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut object = Object::default();
        let mut timestamp = String::new();
        SystemTime.format_time(&mut Writer::new(&mut timestamp))?;
        let meta = event.metadata();
        let head = [timestamp.as_str(), meta.level().as_str(), meta.target(), ""];
        for (name, text) in RESERVED.into_iter().zip(head) {
            object.0.insert(name.to_owned(), text.into());
        }
        event.record(&mut object);
        if let Some(scope) = context.event_scope() {
            // From the innermost, whose fields stand where two spans have the same name.
            for span in scope {
                let extensions = span.extensions();
                let Some(fields) = extensions.get::<FormattedFields<Fields>>() else {
                    continue;
                };
                for (name, value) in read(&fields.fields) {
                    object.0.entry(format!("{}_{name}", span.name())).or_insert(value);
                }
            }
        }
        write_json(&mut writer, &object.0)?;
        writer.write_char('\n')
    }
}

/// Fields as they are recorded.
#[derive(Default)]
struct Object(Map<String, Value>);

impl Object {
    fn put(&mut self, field: &Field, value: Value) {
        let name = match field.name() {
            "message" => "message".to_owned(),
            // What comes of the crate `log` has its target here, and where in the source it was said, which nobody needs.
            "log.target" => "target".to_owned(),
            name if name.starts_with("log.") => return,
            name if RESERVED.contains(&name) => format!("field_{name}"),
            name => name.to_owned(),
        };
        self.0.insert(name, value);
    }
}

impl Visit for Object {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value.into());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value.into());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, format!("{value:?}").into());
    }
}

/// Fields that [`Fields`] wrote; a span without any has an empty text.
fn read(fields: &str) -> Map<String, Value> {
    serde_json::from_str(fields).unwrap_or_default()
}

fn write_json(writer: &mut impl Write, object: &Map<String, Value>) -> fmt::Result {
    let mut bytes = Vec::with_capacity(256);
    object
        .serialize(&mut serde_json::Serializer::new(&mut bytes))
        .map_err(|_| fmt::Error)?;
    writer.write_str(std::str::from_utf8(&bytes).map_err(|_| fmt::Error)?)
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use tracing::subscriber::with_default;
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn lines(log: impl FnOnce()) -> Vec<Map<String, Value>> {
        let sink = Sink::default();
        let writer = sink.clone();
        let layer = tracing_subscriber::fmt::layer()
            .with_writer(move || writer.clone())
            .fmt_fields(Fields)
            .event_format(Flat);
        with_default(tracing_subscriber::registry().with(layer), log);
        let text = String::from_utf8(sink.0.lock().unwrap().clone()).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[test]
    fn each_line_is_one_flat_object_with_the_fields_of_its_spans() {
        let lines = lines(|| {
            let outer = tracing::info_span!("request", id = "r-1", path = "/a", late = tracing::field::Empty);
            let _outer = outer.enter();
            outer.record("late", 7);
            let _inner = tracing::info_span!("request", id = "r-2").entered();
            let _bare = tracing::info_span!("bare").entered();
            tracing::info!(count = 3, text = "two\nlines", pair = ?(1, "x"), level = "mine", ratio = 0.5, "it \"went\" well");
        });
        let [line] = &lines[..] else { panic!("{lines:?}") };
        assert!(line.values().all(|value| !value.is_object() && !value.is_array()));
        let text = |name: &str| line[name].as_str().unwrap_or_default().to_owned();
        assert_eq!(
            (text("level"), text("message")),
            ("INFO".into(), "it \"went\" well".into())
        );
        assert!(humantime::parse_rfc3339(&text("timestamp")).is_ok(), "{line:?}");
        assert_eq!(line["count"], 3);
        assert_eq!(line["ratio"], 0.5);
        assert_eq!((text("text"), text("pair")), ("two\nlines".into(), "(1, \"x\")".into()));
        assert_eq!(text("field_level"), "mine");
        assert_eq!((text("request_id"), text("request_path")), ("r-2".into(), "/a".into()));
        assert_eq!(line["request_late"], 7);
    }

    #[test]
    fn what_comes_of_the_crate_log_looks_like_the_rest() {
        let lines = lines(|| tracing::warn!(log.target = "rustls", log.file = "/home/x.rs", log.line = 1, "said"));
        assert_eq!(lines[0]["target"], "rustls");
        assert_eq!(lines[0].len(), RESERVED.len(), "{:?}", lines[0]);
    }

    #[test]
    fn a_line_without_span_and_message_is_whole_too() {
        let lines = lines(|| tracing::warn!(reason = "none"));
        assert_eq!(
            (&lines[0]["message"], &lines[0]["reason"]),
            (&"".into(), &"none".into())
        );
    }
}
