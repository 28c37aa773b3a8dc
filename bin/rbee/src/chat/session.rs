//! A chat's state, and what each line does to it.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Context;
use model_store::Catalogue;
use serde_json::{Value, json};

use super::command::{self, Command, Line};
use super::conversation::{Conversation, Turn};
use super::settings::Settings;
use super::{Listed, Signals, models, report};
use crate::answer::{self, Answer, CONTEXT_FULL, NO_CHAT, Said, Screen, refusal};
use crate::api::Api;
use crate::cli::RunArgs;
use crate::render;
use crate::run::RAW_MAX_TOKENS;

/// What comes after a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// The next one.
    Line,
    /// The user ends the chat.
    End,
    /// Somebody else does.
    Terminated,
}

/// How an answer ended.
enum Ended {
    Whole,
    Failed(anyhow::Error),
    Stopped,
    Terminated,
}

/// A chat.
pub(super) struct Session {
    queen: Api,
    model: String,
    /// Whether texts are continued instead of answered.
    raw: bool,
    settings: Settings,
    conversation: Conversation,
    last: Option<Answer>,
    /// What this chat itself wrote or read, and so may overwrite.
    file: Option<PathBuf>,
}

impl Session {
    pub(super) fn new(queen: Api, args: &RunArgs, model: &Listed) -> Self {
        Self {
            queen,
            model: model.id.clone(),
            raw: args.raw || is_base(&model.id),
            settings: Settings::of(args),
            conversation: Conversation::new(args.system.clone()),
            last: None,
            file: None,
        }
    }

    /// Whether texts are continued instead of answered.
    pub(super) fn is_raw(&self) -> bool {
        self.raw
    }

    /// Does what a line says. Only a broken terminal is an error; all else is told, and the chat goes on.
    pub(super) async fn take(&mut self, line: Line, signals: &mut Signals) -> anyhow::Result<Next> {
        let command = match line {
            Line::Empty if self.raw && self.conversation.len() > 0 => return self.say(String::new(), signals).await,
            Line::Empty => return Ok(Next::Line),
            Line::Say(question) => return self.say(question, signals).await,
            Line::Wrong(why) => {
                render::note(&why);
                return Ok(Next::Line);
            }
            Line::Command(command) => command,
        };
        match command {
            Command::Bye => return Ok(Next::End),
            Command::Retry => return self.retry(signals).await,
            command => {
                let told = self.obey(command).await;
                render::note(told.unwrap_or_else(|error| format!("error: {error:#}")).trim_end());
            }
        }
        Ok(Next::Line)
    }

    /// A command that asks the model nothing; returns what it tells.
    async fn obey(&mut self, command: Command) -> anyhow::Result<String> {
        Ok(match command {
            Command::Help => command::help(),
            Command::Set(None) => self.settings.list(),
            Command::Set(Some((name, value))) => match self.settings.set(&name, &value) {
                Ok(()) => format!("{name} is {}", render::clean(&value)),
                Err(why) => why,
            },
            Command::System(None) => match &self.conversation.system {
                Some(text) => render::clean_lines(text),
                None => "there is no instruction; /system TEXT gives one".to_owned(),
            },
            Command::System(Some(_)) if self.raw => "a base model takes no instruction".to_owned(),
            Command::System(Some(text)) => {
                self.conversation.system = Some(text).filter(|text| !text.is_empty());
                "the next answer goes by it".to_owned()
            }
            Command::Model(None) => self.list().await?,
            Command::Model(Some(name)) => self.change(&name).await?,
            Command::Clear => {
                self.conversation.clear();
                "a new conversation".to_owned()
            }
            Command::Undo => match self.conversation.undo() {
                Some(turn) => format!("taken back: {}", render::clean(&turn.question)),
                None => "nothing was asked yet".to_owned(),
            },
            Command::Save(path) => self.save(&path)?,
            Command::Load(path) => self.load(&path)?,
            Command::Stats => match &self.last {
                Some(answer) => report::stats(answer),
                None => "nothing was answered yet".to_owned(),
            },
            Command::Retry | Command::Bye => String::new(),
        })
    }

    async fn list(&self) -> anyhow::Result<String> {
        let mut text = String::new();
        for model in models(&self.queen).await? {
            let mark = if model.id == self.model { "*" } else { " " };
            let state = model.state.replace('_', " ");
            text.push_str(&render::clean(&format!("{mark} {:<32} {state}", model.id)));
            text.push('\n');
        }
        Ok(text)
    }

    async fn change(&mut self, name: &str) -> anyhow::Result<String> {
        let models = models(&self.queen).await?;
        let Some(model) = models.iter().find(|model| model.id == name) else {
            return Ok(format!(
                "the fleet has no model {name}; /model alone lists those there are"
            ));
        };
        self.model = name.to_owned();
        self.raw = is_base(name);
        Ok(report::greeting(model, self.raw))
    }

    /// Writes the body of the request that the next question would extend.
    fn save(&mut self, path: &Path) -> anyhow::Result<String> {
        let mut body = json!({"model": self.model});
        match self.raw {
            true => body["prompt"] = self.conversation.text(None).into(),
            false => body["messages"] = self.conversation.messages(None).into(),
        }
        self.settings.apply(&mut body);
        let is_own = self.file.as_deref() == Some(path);
        let mut options = OpenOptions::new();
        options.write(true).create_new(!is_own).create(true).truncate(is_own);
        let mut file = options
            .open(path)
            .with_context(|| format!("write {}", path.display()))?;
        writeln!(file, "{body:#}").with_context(|| format!("write {}", path.display()))?;
        self.file = Some(path.to_owned());
        Ok(format!("saved in {}", path.display()))
    }

    fn load(&mut self, path: &Path) -> anyhow::Result<String> {
        let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
        let body: Value = serde_json::from_str(&text).with_context(|| format!("read {}", path.display()))?;
        let read = Conversation::of_body(&body).and_then(|talk| Ok((talk, Settings::of_body(&body)?)));
        let (conversation, settings) = read
            .map_err(anyhow::Error::msg)
            .with_context(|| format!("{} is no conversation", path.display()))?;
        (self.conversation, self.settings) = (conversation, settings);
        self.file = Some(path.to_owned());
        let mut told = match self.conversation.len() {
            1 => "one question and its answer".to_owned(),
            turns => format!("{turns} questions and answers"),
        };
        if let Some(model) = body["model"].as_str().filter(|model| *model != self.model) {
            let model = render::clean(model);
            told.push_str(&format!(
                " with {model}; {} goes on, /model {model} changes that",
                self.model
            ));
        }
        Ok(told)
    }

    /// Asks, shows the answer, and keeps both.
    async fn say(&mut self, question: String, signals: &mut Signals) -> anyhow::Result<Next> {
        loop {
            let mut answer = Answer::begin();
            let ended = self.ask(&question, &mut answer, signals).await?;
            match &ended {
                Ended::Failed(error) if refusal(error) == Some(NO_CHAT) && !self.raw => {
                    self.raw = true;
                    render::note(&report::base_model(&self.model));
                    continue;
                }
                Ended::Terminated => return Ok(Next::Terminated),
                _ => {}
            }
            self.conclude(question, answer, ended);
            return Ok(Next::Line);
        }
    }

    /// Asks the last question again; its answer stays if no other comes.
    async fn retry(&mut self, signals: &mut Signals) -> anyhow::Result<Next> {
        let Some(turn) = self.conversation.undo() else {
            render::note("nothing was asked yet");
            return Ok(Next::Line);
        };
        let before = self.conversation.len();
        let next = self.say(turn.question.clone(), signals).await?;
        if self.conversation.len() == before {
            self.conversation.add(turn);
        }
        Ok(next)
    }

    async fn ask(&self, question: &str, answer: &mut Answer, signals: &mut Signals) -> anyhow::Result<Ended> {
        let (path, body) = self.request(question);
        let mut screen = Screen::new(false);
        screen.show(Said::Waiting(&format!("waiting for {}", self.model)))?;
        let ended = {
            let asking = answer::ask(&self.queen, path, &body, answer, |said| screen.show(said));
            tokio::select! {
                result = asking => result.map_or_else(Ended::Failed, |()| Ended::Whole),
                // Leaving drops the connection, on which the worker stops within a token.
                _ = signals.interrupt.recv() => Ended::Stopped,
                _ = signals.terminate.recv() => Ended::Terminated,
            }
        };
        screen.end()?;
        Ok(ended)
    }

    /// Path and body for the queen.
    fn request(&self, question: &str) -> (&'static str, Value) {
        let mut body = json!({"model": self.model, "stream": true, "stream_options": {"include_usage": true}});
        let path = if self.raw {
            body["prompt"] = self.conversation.text(Some(question)).into();
            body["max_tokens"] = RAW_MAX_TOKENS.into();
            "/v1/completions"
        } else {
            body["messages"] = self.conversation.messages(Some(question)).into();
            "/v1/chat/completions"
        };
        self.settings.apply(&mut body);
        (path, body)
    }

    /// Keeps what came, and says what is not as it should be.
    fn conclude(&mut self, question: String, answer: Answer, ended: Ended) {
        let is_cut = !matches!(ended, Ended::Whole);
        let is_kept = !is_cut || !answer.text.is_empty();
        if is_kept {
            self.conversation.add(Turn {
                question,
                answer: answer.text.clone(),
                is_cut,
            });
        }
        let turns = self.conversation.len();
        match ended {
            Ended::Stopped if is_kept => render::note("(stopped; what came stays in the conversation)"),
            Ended::Stopped | Ended::Terminated => {
                render::note("(stopped before anything came; the up arrow has the text)");
            }
            Ended::Failed(error) => {
                render::note(&format!("error: {error:#}"));
                if refusal(&error) == Some(CONTEXT_FULL) {
                    render::note(report::context_remedy(turns));
                }
            }
            Ended::Whole if answer.finish_reason.as_deref() == Some("length") => {
                let given = self.settings.get("max_tokens").and_then(Value::as_u64);
                let limit = given.or(self.raw.then_some(RAW_MAX_TOKENS.into()));
                render::note(&report::cut_off(limit, turns));
            }
            Ended::Whole => {}
        }
        self.last = Some(answer);
    }
}

/// Whether the catalogue knows a model as one that cannot chat. Of others, the worker says so.
fn is_base(model: &str) -> bool {
    let catalogue = Catalogue::built_in();
    catalogue
        .entries()
        .iter()
        .any(|entry| entry.id.as_str() == model && !entry.chat)
}
