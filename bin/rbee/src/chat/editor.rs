//! The line that the user writes: editing, completion, and what was typed before.

use std::path::Path;

use anyhow::Context as _;
use rustyline::completion::{Completer, Pair};
use rustyline::error::ReadlineError;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::history::{History as _, MemHistory};
use rustyline::validate::{ValidationContext, ValidationResult, Validator};
use rustyline::{CompletionType, Config, Context, Editor, Helper};

use super::command;
use super::history::{History, MAX_ENTRIES};
use super::settings;
use crate::render;

const PROMPT: &str = ">>> ";
/// The prompt in bold.
const BOLD_PROMPT: &str = "\u{1b}[1m>>> \u{1b}[0m";

/// What came of a line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Typed {
    /// It was ended with Enter.
    Line(String),
    /// Ctrl-C: it is dropped.
    Dropped,
    /// Ctrl-D, or the terminal is gone.
    End,
}

/// The editor. Reading blocks, so a thread has it meanwhile.
pub(super) struct LineEditor {
    editor: Editor<Words, MemHistory>,
    history: Option<History>,
}

impl LineEditor {
    /// With the models that may be named, and the file of what was typed before.
    pub(super) fn new(models: Vec<String>, mut history: Option<History>) -> anyhow::Result<Self> {
        let config = Config::builder()
            .completion_type(CompletionType::List)
            .max_history_size(MAX_ENTRIES)
            .and_then(|config| config.history_ignore_dups(true))
            .map(rustyline::config::Builder::build)
            .context("set up the line editor")?;
        let mut typed = MemHistory::with_config(&config);
        let entries = history.as_ref().map(History::read).transpose().unwrap_or_else(|error| {
            render::note(&format!("(what was typed in earlier chats cannot be read: {error})"));
            history = None;
            None
        });
        for entry in entries.unwrap_or_default() {
            typed.add_owned(entry).context("take over what was typed before")?;
        }
        let mut editor = Editor::with_history(config, typed).context("take the terminal")?;
        editor.set_helper(Some(Words { models }));
        Ok(Self { editor, history })
    }

    /// Lets the user write a line. Returns the editor for the next one.
    pub(super) async fn read(mut self) -> anyhow::Result<(Self, Typed)> {
        let reading = tokio::task::spawn_blocking(move || {
            let line = self.editor.readline(&(PROMPT, BOLD_PROMPT));
            (self, line)
        });
        let (mut editor, line) = reading.await.context("read a line")?;
        let typed = match line {
            Ok(line) => {
                editor.remember(&line);
                Typed::Line(line)
            }
            Err(ReadlineError::Interrupted) => Typed::Dropped,
            Err(ReadlineError::Eof) => Typed::End,
            Err(error) => return Err(error).context("read a line"),
        };
        Ok((editor, typed))
    }

    /// Keeps a line for the arrows, here and in later chats.
    fn remember(&mut self, line: &str) {
        let is_new = !line.trim().is_empty() && self.editor.add_history_entry(line).unwrap_or(false);
        let Some(history) = self.history.as_ref().filter(|_| is_new) else {
            return;
        };
        if let Err(error) = history.add(line) {
            render::note(&format!("(what you type is not kept: {error})"));
            self.history = None;
        }
    }
}

/// What can be completed.
struct Words {
    models: Vec<String>,
}

impl Helper for Words {}
impl Highlighter for Words {}
impl Hinter for Words {
    type Hint = String;
}

impl Validator for Words {
    fn validate(&self, context: &mut ValidationContext<'_>) -> rustyline::Result<ValidationResult> {
        Ok(match command::is_open(context.input()) {
            true => ValidationResult::Incomplete,
            false => ValidationResult::Valid(None),
        })
    }
}

impl Completer for Words {
    type Candidate = Pair;

    fn complete(&self, line: &str, at: usize, _: &Context<'_>) -> rustyline::Result<(usize, Vec<Pair>)> {
        Ok(self.candidates(&line[..at]))
    }
}

impl Words {
    /// Where the unfinished word begins, and what it could become.
    fn candidates(&self, written: &str) -> (usize, Vec<Pair>) {
        let Some((command, argument)) = written.split_once(' ') else {
            let is_command = written.starts_with('/');
            let names = command::names().filter(|_| is_command);
            return (0, matching(names, written, " "));
        };
        let start = written.len() - argument.len();
        match command {
            "/set" => (start, matching(settings::names(), argument, " ")),
            "/model" => (start, matching(self.models.iter().map(String::as_str), argument, "")),
            "/save" | "/load" => (start, files(argument)),
            _ => (start, Vec::new()),
        }
    }
}

/// The words that begin so, with `end` behind them.
fn matching<'a>(words: impl Iterator<Item = &'a str>, begun: &str, end: &str) -> Vec<Pair> {
    let words = words.filter(|word| word.starts_with(begun));
    let pair = |word: &str| Pair {
        display: word.to_owned(),
        replacement: format!("{word}{end}"),
    };
    words.map(pair).collect()
}

/// Files whose path begins so; a folder ends with a slash.
fn files(begun: &str) -> Vec<Pair> {
    let (folder, name) = begun
        .rsplit_once('/')
        .map_or(("", begun), |(folder, name)| (folder, name));
    let prefix = &begun[..begun.len() - name.len()];
    let folder = match (prefix, folder) {
        ("", _) => Path::new("."),
        (_, "") => Path::new("/"),
        _ => Path::new(folder),
    };
    let Ok(entries) = std::fs::read_dir(folder) else {
        return Vec::new();
    };
    let mut found: Vec<Pair> = entries
        .filter_map(Result::ok)
        .filter_map(|entry| {
            let end = if entry.path().is_dir() { "/" } else { "" };
            let word = entry.file_name().into_string().ok()?;
            let is_wanted = word.starts_with(name) && (name.starts_with('.') || !word.starts_with('.'));
            is_wanted.then(|| Pair {
                display: format!("{word}{end}"),
                replacement: format!("{prefix}{word}{end}"),
            })
        })
        .collect();
    found.sort_by(|a, b| a.display.cmp(&b.display));
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offered(written: &str) -> (usize, Vec<String>) {
        let words = Words {
            models: vec!["gemma3-270m".into(), "gemma3-1b-it".into(), "smollm2".into()],
        };
        let (start, pairs) = words.candidates(written);
        (start, pairs.into_iter().map(|pair| pair.replacement).collect())
    }

    #[test]
    fn tab_completes_commands_settings_and_models() {
        assert_eq!(offered("/st"), (0, vec!["/stats ".to_owned()]));
        assert_eq!(offered("/set te"), (5, vec!["temperature ".to_owned()]));
        assert_eq!(
            offered("/model ge"),
            (7, vec!["gemma3-270m".to_owned(), "gemma3-1b-it".to_owned()])
        );
        assert_eq!(offered("/model ").1.len(), 3);
        assert_eq!(offered("hello ther").1, [""; 0]);
        assert_eq!(offered("").1, [""; 0]);
    }

    #[test]
    fn tab_completes_files_and_folders() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("talks")).unwrap();
        std::fs::write(folder.path().join("talk.json"), "").unwrap();
        std::fs::write(folder.path().join(".talk"), "").unwrap();
        let root = folder.path().display();
        let (start, files) = offered(&format!("/load {root}/ta"));
        assert_eq!(start, 6);
        assert_eq!(files, [format!("{root}/talk.json"), format!("{root}/talks/")]);
        assert_eq!(offered(&format!("/save {root}/no")).1, [""; 0]);
    }
}
