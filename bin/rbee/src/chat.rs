//! `rbee run MODEL` on a terminal: a chat.

mod command;
mod conversation;
mod editor;
mod history;
mod report;
mod session;
mod settings;
mod terminal;

use std::process::ExitCode;

use anyhow::Context;
use futures_util::FutureExt;
use serde::Deserialize;
use tokio::signal::unix::{Signal, SignalKind, signal};

use self::command::Line;
use self::editor::{LineEditor, Typed};
use self::history::History;
use self::session::{Next, Session};
use self::terminal::Terminal;
use crate::api::{self, Api};
use crate::cli::{Global, RunArgs};
use crate::fleet::Client;
use crate::{INTERRUPTED, render};

/// A model of the queen's list, as far as a chat asks for it.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Listed {
    /// Its name.
    pub(crate) id: String,
    /// `ready`, `loading`, `on_disk` and so on.
    #[serde(default)]
    state: String,
    /// 0 is unknown.
    #[serde(default)]
    context_length: u32,
}

/// The models that the fleet serves or could.
pub(crate) async fn models(queen: &Api) -> Result<Vec<Listed>, api::Error> {
    #[derive(Deserialize)]
    struct List {
        data: Vec<Listed>,
    }
    queen.get::<List>("/v1/models").await.map(|list| list.data)
}

/// What people do to a chat besides typing.
pub(crate) struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    /// Forgets a Ctrl-C that came too late for the answer before.
    fn calm(&mut self) {
        while self.interrupt.recv().now_or_never().is_some() {}
    }
}

/// A chat, until the user ends it.
pub(crate) async fn chat(global: &Global, args: RunArgs, model: String) -> anyhow::Result<ExitCode> {
    let queen = Client::new(global)?.open_ai();
    let wanted: Listed = queen.get(&format!("/v1/models/{}", api::segment(&model))).await?;
    let names = models(&queen).await?.into_iter().map(|model| model.id).collect();
    let history = History::of_user().filter(|_| !args.no_history);
    let terminal = Terminal::new().context("look at the terminal")?;
    let mut signals = Signals::new().context("listen for signals")?;
    let mut editor = LineEditor::new(names, history)?;
    let mut session = Session::new(queen, &args, &wanted);
    render::note(&report::greeting(&wanted, session.is_raw()));
    if session.is_raw() && args.system.is_some() {
        render::note("(--system changes nothing: a base model takes no instruction)");
    }
    loop {
        let read = tokio::select! {
            read = editor.read() => read,
            // The thread that reads is left behind; the terminal is put in order by its guard.
            _ = signals.terminate.recv() => return Ok(ExitCode::from(INTERRUPTED)),
        };
        let typed;
        (editor, typed) = read?;
        let line = match typed {
            Typed::Line(line) => command::parse(&line),
            Typed::Dropped => Line::Empty,
            Typed::End => return Ok(ExitCode::SUCCESS),
        };
        signals.calm();
        let hush = terminal.hush();
        let next = session.take(line, &mut signals).await?;
        drop(hush);
        match next {
            Next::Line => {}
            Next::End => return Ok(ExitCode::SUCCESS),
            Next::Terminated => return Ok(ExitCode::from(INTERRUPTED)),
        }
    }
}
