//! Options in, handle out.

use std::sync::Arc;

use shared_contract::{DropReason, HeartbeatPayload, QueenId};
use tokio::sync::watch;

use crate::{
    ClientState, Error, Options, Source,
    driver::{Commands, Driver, Status},
    transport::{HttpTransport, Transport},
};

/// Sends the heartbeats of one sender to one queen.
pub struct HeartbeatClient<T: HeartbeatPayload> {
    options: Options,
    transport: HttpTransport,
    source: Arc<dyn Source<T>>,
}

impl<T: HeartbeatPayload> HeartbeatClient<T> {
    /// `http` is the daemon's one pooled client.
    ///
    /// # Errors
    /// If the queen's URL or the token cannot be used.
    pub fn new(options: Options, http: reqwest::Client, source: Arc<dyn Source<T>>) -> Result<Self, Error> {
        let transport = HttpTransport::new(http, &options.queen_url, T::PATH, options.token.as_ref())?;
        Ok(Self {
            options,
            transport,
            source,
        })
    }

    /// Starts to look for the queen, as one task on the current runtime.
    pub fn start(self) -> HeartbeatHandle {
        start(&self.options, self.transport, self.source)
    }
}

pub(crate) fn start<T, X>(options: &Options, transport: X, source: Arc<dyn Source<T>>) -> HeartbeatHandle
where
    T: HeartbeatPayload,
    X: Transport,
{
    let (commands, wanted) = watch::channel(Commands::default());
    let (state, states) = watch::channel(ClientState::Startup);
    let (last_error, last_errors) = watch::channel(None);
    let (last_drop, last_drops) = watch::channel(None);
    let (queen, queens) = watch::channel(None);
    let status = Status {
        state,
        queen,
        last_error,
        last_drop,
    };
    tokio::spawn(Driver::new(options, transport, source, status).run(wanted));
    HeartbeatHandle {
        commands,
        states,
        queens,
        last_errors,
        last_drops,
    }
}

/// A running client. Clones are cheap; the client ends, without a goodbye, when the last one is dropped.
#[derive(Debug, Clone)]
#[must_use = "the client ends when its last handle is dropped"]
pub struct HeartbeatHandle {
    commands: watch::Sender<Commands>,
    states: watch::Receiver<ClientState>,
    queens: watch::Receiver<Option<QueenId>>,
    last_errors: watch::Receiver<Option<Arc<Error>>>,
    last_drops: watch::Receiver<Option<DropReason>>,
}

impl HeartbeatHandle {
    /// Where the sender stands with its queen.
    pub fn state(&self) -> ClientState {
        *self.states.borrow()
    }

    /// Follows the state. Closed once the client has ended.
    pub fn watch(&self) -> watch::Receiver<ClientState> {
        self.states.clone()
    }

    /// Which run of which queen answers; `None` while she is looked for, and if she does not say.
    pub fn queen(&self) -> Option<QueenId> {
        self.queens.borrow().clone()
    }

    /// Follows who answers. Closed once the client has ended; does not keep it alive.
    pub fn watch_queen(&self) -> watch::Receiver<Option<QueenId>> {
        self.queens.clone()
    }

    /// Why the last beat failed; `None` if it was acknowledged.
    pub fn last_error(&self) -> Option<Arc<Error>> {
        self.last_errors.borrow().clone()
    }

    /// Why the queen acknowledges the beats and yet takes them for no news of this sender; `None` if she takes them.
    /// Never [`DropReason::Duplicate`] or [`DropReason::Reordered`], which say nothing against the sender, and
    /// [`DropReason::Departed`] only if she did not believe the beat that refuted it.
    pub fn last_drop(&self) -> Option<DropReason> {
        *self.last_drops.borrow()
    }

    /// The sender's status changed: beats at once. Calls that come close together make one beat, and the last of them is
    /// always followed by a beat that was built after it.
    pub fn beat_now(&self) {
        self.commands.send_modify(|commands| commands.beats += 1);
    }

    /// The queen asked for our capabilities: ends discovery and beats in full at once.
    pub fn discovered_by_pull(&self) {
        self.commands.send_modify(|commands| commands.pulls += 1);
    }

    /// Sends one last beat and ends the client; returns when it has ended, within 2 s. Set the sender's status to stopped
    /// first: the payload is built by the source as always.
    pub async fn goodbye(&self) {
        self.commands.send_modify(|commands| commands.goodbye = true);
        let mut states = self.states.clone();
        while states.changed().await.is_ok() {}
    }
}
