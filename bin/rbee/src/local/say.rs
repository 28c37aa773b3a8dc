//! What is told of the daemons: lines for people, or JSON lines for programs.

use std::io::{self, IsTerminal};

use serde::Serialize;
use serde_json::json;

use crate::render;

/// Says in one of two ways what happens.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Say {
    json: bool,
}

/// An event as a JSON line.
#[derive(Debug, Serialize)]
struct Event<'a, T> {
    event: &'static str,
    #[serde(flatten)]
    data: &'a T,
}

impl Say {
    /// In JSON lines, or for people.
    pub(crate) fn new(json: bool) -> Self {
        Self { json }
    }

    /// Whether in JSON lines.
    pub(crate) fn is_json(self) -> bool {
        self.json
    }

    /// Something has happened: `data` for programs, `text` for people.
    pub(crate) fn event(
        self,
        event: &'static str,
        data: &impl Serialize,
        text: impl FnOnce() -> String,
    ) -> io::Result<()> {
        match self.json {
            true => render::json_line(&Event { event, data }),
            false => render::print(&text()),
        }
    }

    /// The end has begun, by a signal or not.
    pub(super) fn stopping(self, signalled: bool) {
        if self.json {
            self.end("stopping");
        } else if signalled && io::stderr().is_terminal() {
            // Behind the `^C` that the terminal shows.
            render::note("");
        }
    }

    /// No process is left.
    pub(super) fn stopped(self) {
        match self.json {
            true => self.end("stopped"),
            false => render::note("stopped"),
        }
    }

    /// Whoever read this may be the reason for the end, so a failure to tell it is none.
    fn end(self, event: &'static str) {
        let _ = render::json_line(&json!({"event": event}));
    }
}
