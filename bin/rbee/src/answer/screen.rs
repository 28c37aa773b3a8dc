//! Standard output while an answer arrives: each part is shown at once.

use std::io::{self, IsTerminal, Write};

use super::Said;
use super::wrap::Wrap;
use crate::progress::Progress;
use crate::render;

/// Where an answer is shown.
#[derive(Debug)]
pub(crate) struct Screen {
    /// Programs get one document at the end instead.
    silent: bool,
    /// A terminal obeys control characters and tears words, a file keeps all as it is.
    terminal: Option<Wrap>,
    /// Whether the cursor stands behind a text without a line break.
    open_line: bool,
    /// What is said until text comes; only for somebody who looks.
    waiting: Option<Progress>,
}

impl Screen {
    /// For people, or for a program that wants `json`.
    pub(crate) fn new(json: bool) -> Self {
        let is_watched = !json && io::stderr().is_terminal();
        Self {
            silent: json,
            terminal: io::stdout().is_terminal().then(|| {
                let (columns, _) = crossterm::terminal::size().unwrap_or((0, 0));
                // A terminal that does not tell its width breaks the lines by itself.
                Wrap::new(if columns > 0 { columns.into() } else { usize::MAX })
            }),
            open_line: false,
            waiting: is_watched.then(|| Progress::new(false)),
        }
    }

    /// Shows what came.
    pub(crate) fn show(&mut self, said: Said<'_>) -> io::Result<()> {
        match said {
            Said::Waiting(words) => {
                if let Some(waiting) = &mut self.waiting {
                    waiting.step(words);
                }
                Ok(())
            }
            Said::Text(text) => self.text(text),
        }
    }

    fn text(&mut self, text: &str) -> io::Result<()> {
        if text.is_empty() {
            return Ok(());
        }
        self.waiting = None;
        if self.silent {
            return Ok(());
        }
        self.open_line = !text.ends_with('\n');
        let mut out = io::stdout().lock();
        match &mut self.terminal {
            Some(wrap) => out.write_all(wrap.push(&render::clean_lines(text)).as_bytes())?,
            None => out.write_all(text.as_bytes())?,
        }
        out.flush()
    }

    /// Leaves the cursor at the start of a line, and no word of waiting.
    pub(crate) fn end(&mut self) -> io::Result<()> {
        self.waiting = None;
        match std::mem::take(&mut self.open_line) {
            true => render::print("\n"),
            false => Ok(()),
        }
    }
}
