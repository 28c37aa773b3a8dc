//! The queens that one process reports to: those of its settings, and those that find it while it runs.

use std::{
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use shared_contract::{DropReason, HeartbeatPayload, QueenId};
use tokio::{sync::watch, task::JoinSet};
use tracing::{info, warn};

use crate::{
    ClientState, Error, HeartbeatClient, HeartbeatHandle, Options, QueenUrl, Sequence, Source, Token, dropped::remedy,
};

/// Queens that a process knows at once, each way to the same one counted.
pub const MAX_QUEENS: usize = 8;

/// The queens that are reported to, and for each the number of her newest pull: 0 for one that never pulled, else it grows
/// with every pull by any of them.
pub type Roll = Vec<(QueenUrl, u64)>;

type Start = dyn Fn(&QueenUrl) -> Result<HeartbeatHandle, Error> + Send + Sync;

/// One client for each queen of a process, and one [`Sequence`] for all of them. Clones are cheap; the clients end, without a
/// goodbye, when the last one is dropped.
///
/// The same queen may have several addresses. When two clients are answered by the same run of the same queen, one of them
/// stays: the one from the settings before one that was pulled, the older before the newer. The other's address is kept as
/// another way to her, and is taken up again when the one that stays loses her or is answered by another run or queen: it is
/// unused only while it is known where it would lead.
#[derive(Clone)]
pub struct Queens(Arc<Shared>);

struct Shared {
    start: Box<Start>,
    roster: Mutex<Roster>,
    roll: watch::Sender<Roll>,
}

#[derive(Default)]
struct Roster {
    /// The older before the newer.
    clients: Vec<Client>,
    /// Pulls so far, by all of them.
    pulls: u64,
    /// The last beats are being sent.
    has_ended: bool,
}

struct Client {
    way: Way,
    handle: HeartbeatHandle,
    /// Number of her newest pull.
    pull: u64,
    /// Who answers, when it was last settled.
    queen: Option<QueenId>,
    /// Further ways to her.
    others: Vec<Way>,
}

/// An address of a queen.
struct Way {
    url: QueenUrl,
    /// Never given up for another queen.
    is_pinned: bool,
    /// Taken for a way to the queen who answers another client, and not tried again since, at her last pull by it.
    is_trusted: bool,
}

impl Queens {
    /// Without any queen yet. `http` is the daemon's one pooled client; `source` makes the source of the beats for one more
    /// queen.
    pub fn new<T: HeartbeatPayload>(
        http: reqwest::Client,
        token: Option<Token>,
        incarnation: u64,
        source: impl Fn() -> Arc<dyn Source<T>> + Send + Sync + 'static,
    ) -> Self {
        let sequence = Arc::new(Sequence::new(incarnation));
        Self::started_by(move |url| {
            let options = Options {
                token: token.clone(),
                ..Options::new(url.as_str(), Arc::clone(&sequence))
            };
            Ok(HeartbeatClient::new(options, http.clone(), source())?.start())
        })
    }

    pub(crate) fn started_by(
        start: impl Fn(&QueenUrl) -> Result<HeartbeatHandle, Error> + Send + Sync + 'static,
    ) -> Self {
        Self(Arc::new(Shared {
            start: Box::new(start),
            roster: Mutex::default(),
            roll: watch::Sender::default(),
        }))
    }

    /// Reports to a queen of the settings. A pinned one is never given up for another.
    ///
    /// # Errors
    /// If there is no room, the address or the token cannot be used, or goodbye has been said.
    pub fn add(&self, url: QueenUrl, is_pinned: bool) -> Result<(), Error> {
        let mut roster = self.0.lock();
        roster.make_room()?;
        self.0.take_up(&mut roster, Way::new(url, is_pinned), 0)?;
        self.0.publish(&roster);
        Ok(())
    }

    /// Reports to a queen that shows that she is there: she has asked for the capabilities, or somebody passes on that she
    /// did. One that is known gets a full beat at once. Where there is no room, the first that does not answer and is not
    /// pinned is given up for her.
    ///
    /// # Errors
    /// If there is no room, the address or the token cannot be used, or goodbye has been said.
    pub fn pulled_by(&self, url: &QueenUrl) -> Result<(), Error> {
        let mut roster = self.0.lock();
        let pull = roster.pulls + 1;
        let is_pinned = match roster.known(url, pull) {
            Known::Reported => {
                roster.pulls = pull;
                self.0.publish(&roster);
                return Ok(());
            }
            Known::Doubted { is_pinned } => is_pinned,
            Known::No => false,
        };
        roster.make_room()?;
        let client = self.0.take_up(&mut roster, Way::new(url.clone(), is_pinned), pull)?;
        client.handle.discovered_by_pull();
        info!(queen = %url, "found by a queen");
        roster.pulls = pull;
        self.0.publish(&roster);
        Ok(())
    }

    /// Something changed: tells all queens at once.
    pub fn beat_now(&self) {
        for client in &self.0.lock().clients {
            client.handle.beat_now();
        }
    }

    /// Where they are, each by the one way that is used.
    pub fn urls(&self) -> Vec<QueenUrl> {
        let roster = self.0.lock();
        roster.clients.iter().map(|client| client.way.url.clone()).collect()
    }

    /// The queens; the receiver wakes when one comes, goes or pulls.
    pub fn roll(&self) -> watch::Receiver<Roll> {
        self.0.roll.subscribe()
    }

    /// How many of them answer, of how many.
    pub fn counts(&self) -> (usize, usize) {
        let roster = self.0.lock();
        let answering = roster.clients.iter().filter(|client| client.answers()).count();
        (answering, roster.clients.len())
    }

    /// Why a queen takes what this process says for no news of it, for each that does.
    pub fn drops(&self) -> Vec<DropReason> {
        let roster = self.0.lock();
        let reasons = roster.clients.iter().filter_map(|client| client.handle.last_drop());
        reasons.collect()
    }

    /// What is wrong between this process and its queens, and what to do; `None` if they take what it says.
    pub fn problem(&self) -> Option<String> {
        let reason = *self.drops().first()?;
        Some(format!("a queen drops the heartbeats: {reason}; {}", remedy(reason)))
    }

    /// Says goodbye to all, within the limit of one goodbye. From then on, no queen is reported to.
    pub async fn goodbye(&self) {
        let clients = {
            let mut roster = self.0.lock();
            roster.has_ended = true;
            mem::take(&mut roster.clients)
        };
        let goodbyes: JoinSet<()> = clients
            .into_iter()
            .map(|client| async move { client.handle.goodbye().await })
            .collect();
        goodbyes.join_all().await;
    }
}

impl Shared {
    /// Starts a client, which the roster has room for.
    fn take_up<'a>(self: &Arc<Self>, roster: &'a mut Roster, way: Way, pull: u64) -> Result<&'a Client, Error> {
        let handle = (self.start)(&way.url)?;
        self.follow(&handle);
        Ok(roster.clients.push_mut(Client {
            way,
            handle,
            pull,
            queen: None,
            others: Vec::new(),
        }))
    }

    /// Settles who reports to whom whenever another queen answers this client, or none does any more.
    fn follow(self: &Arc<Self>, handle: &HeartbeatHandle) {
        let mut queen = handle.watch_queen();
        let shared = Arc::downgrade(self);
        tokio::spawn(async move {
            while queen.changed().await.is_ok() {
                let Some(shared) = shared.upgrade() else { return };
                shared.settle();
            }
        });
    }

    fn settle(self: &Arc<Self>) {
        let mut roster = self.lock();
        for way in roster.note_who_answers() {
            // Counts as a pull: whoever is told of pulls may not have heard of it.
            roster.pulls += 1;
            let (url, pull) = (way.url.clone(), roster.pulls);
            match self.take_up(&mut roster, way, pull) {
                Ok(_) => info!(queen = %url, "another way is taken up, since the queen whom it led to does not answer"),
                Err(error) => warn!(queen = %url, %error, "another way to a queen cannot be taken up"),
            }
        }
        while let Some((stays, goes)) = roster.reported_to_twice() {
            roster.merge(stays, goes);
        }
        self.publish(&roster);
    }

    fn publish(&self, roster: &Roster) {
        let entry = |client: &Client| (client.way.url.clone(), client.pull);
        let roll: Roll = roster.clients.iter().map(entry).collect();
        self.roll.send_if_modified(|last| {
            let is_other = *last != roll;
            *last = roll;
            is_other
        });
    }

    fn lock(&self) -> MutexGuard<'_, Roster> {
        self.roster.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is known of an address by which a queen pulls.
enum Known {
    /// She is reported to, and gets a beat at once.
    Reported,
    /// It led to a queen who is reported to by another way, and either may have changed since.
    Doubted {
        is_pinned: bool,
    },
    No,
}

impl Roster {
    /// Passes the pull on to the client that she is reported to by.
    fn known(&mut self, url: &QueenUrl, pull: u64) -> Known {
        for client in &mut self.clients {
            if client.way.url == *url {
                client.pulled(pull);
                return Known::Reported;
            }
            let Some(at) = client.others.iter().position(|way| way.url == *url) else {
                continue;
            };
            // Whoever pulls again after that beat has not heard it: somebody else may have the address by now.
            if mem::take(&mut client.others[at].is_trusted) {
                client.pulled(pull);
                return Known::Reported;
            }
            let way = client.others.remove(at);
            return Known::Doubted {
                is_pinned: way.is_pinned,
            };
        }
        Known::No
    }

    /// For one more: first a way that is not used is given up, then a queen that does not answer.
    fn make_room(&mut self) -> Result<(), Error> {
        if self.has_ended {
            return Err(Error::Ended);
        }
        let unused: usize = self.clients.iter().map(|client| client.others.len()).sum();
        if self.clients.len() + unused < MAX_QUEENS {
            return Ok(());
        }
        for client in &mut self.clients {
            if let Some(at) = client.others.iter().position(|way| !way.is_pinned) {
                client.others.remove(at);
                return Ok(());
            }
        }
        let silent = self
            .clients
            .iter()
            .position(|client| !client.way.is_pinned && !client.answers())
            .ok_or(Error::TooManyQueens)?;
        let given_up = self.clients.remove(silent);
        info!(queen = %given_up.way.url, "a queen that does not answer is given up for another");
        Ok(())
    }

    /// Returns the further ways of clients that somebody else answers now, or nobody.
    fn note_who_answers(&mut self) -> Vec<Way> {
        let mut elsewhere = Vec::new();
        for client in &mut self.clients {
            let queen = client.handle.queen();
            if client.queen != queen {
                client.queen = queen;
                elsewhere.append(&mut client.others);
            }
        }
        elsewhere
    }

    /// Two clients that the same queen answers: the one that stays, and the other.
    fn reported_to_twice(&self) -> Option<(usize, usize)> {
        let answered = self
            .clients
            .iter()
            .enumerate()
            .filter(|(_, client)| client.queen.is_some());
        for (at, newer) in answered {
            if let Some(before) = self.clients[..at].iter().position(|older| older.queen == newer.queen) {
                let is_newer_named = newer.way.is_pinned && !self.clients[before].way.is_pinned;
                return Some(if is_newer_named { (at, before) } else { (before, at) });
            }
        }
        None
    }

    /// Ends a client without a goodbye, which would take the sender off the queen's list. The other one beats at once: she is
    /// to call back where its beats come from.
    fn merge(&mut self, stays: usize, goes: usize) {
        let gone = self.clients.remove(goes);
        let client = &mut self.clients[if goes < stays { stays - 1 } else { stays }];
        info!(queen = %client.way.url, other = %gone.way.url, "two addresses are one queen, the first is used");
        client.others.push(Way {
            is_trusted: true,
            ..gone.way
        });
        client.others.extend(gone.others);
        client.pull = client.pull.max(gone.pull);
        client.handle.beat_now();
    }
}

impl Client {
    /// Whether the newest beat was acknowledged.
    fn answers(&self) -> bool {
        self.handle.state() == ClientState::Heartbeating || self.handle.queen().is_some()
    }

    fn pulled(&mut self, pull: u64) {
        self.handle.discovered_by_pull();
        self.pull = pull;
    }
}

impl Way {
    fn new(url: QueenUrl, is_pinned: bool) -> Self {
        Self {
            url,
            is_pinned,
            is_trusted: false,
        }
    }
}
