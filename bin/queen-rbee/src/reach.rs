//! The call-back: that a member's heartbeats arrive does not say that it can be reached.
//!
//! Whoever comes to an address, and whoever was suspected and beats again, is called there once. Who answers, with whatever
//! status, is not called again. Who does not is unreachable, and is called after each of [`RETRIES`] and then with each
//! of its heartbeats, until it answers.

use std::collections::{BTreeSet, HashMap};
use std::hash::Hash;
use std::ops::Deref;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use heartbeat_registry::{Address, EventKind, Liveness, Member, Reach, Registry, RegistryEvent};
use http::{Request, header};
use http_body_util::Empty;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use shared_contract::HeartbeatItem;
use tokio::sync::broadcast::{Receiver, error::RecvError};

use crate::gateway::root_cause;
use crate::metrics::Metrics;

/// How long an answer may take, connection included.
const LIMIT: Duration = Duration::from_secs(5);
/// Pauses before the next tries at who did not answer.
const RETRIES: [Duration; 5] = [
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(4),
    Duration::from_secs(8),
    Duration::from_secs(16),
];
/// Calls under way at once, for each kind of members.
const MAX_CALLS: usize = 32;

/// Calls the members of one registry; ends with the registry.
pub(crate) struct CallBack<R, T: HeartbeatItem> {
    registry: Arc<R>,
    events: Receiver<RegistryEvent<T>>,
    agenda: Agenda<T::Id>,
    client: Client<HttpConnector, Empty<Bytes>>,
    metrics: Arc<Metrics>,
}

/// What came of a call.
struct Called<Id> {
    id: Id,
    address: Address,
    /// Why there was no answer.
    result: Result<(), String>,
}

impl<R, T> CallBack<R, T>
where
    R: Deref<Target = Registry<T>>,
    T: HeartbeatItem,
{
    /// Subscribes to the registry: who joins from now on is called once [`run`](Self::run) does.
    pub(crate) fn new(registry: Arc<R>, metrics: Arc<Metrics>) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(LIMIT));
        Self {
            events: registry.subscribe(),
            registry,
            agenda: Agenda::default(),
            // Nobody is called often enough for a connection to be kept.
            client: Client::builder(TokioExecutor::new())
                .pool_max_idle_per_host(0)
                .build(connector),
            metrics,
        }
    }

    pub(crate) async fn run(mut self) {
        let mut calls = FuturesUnordered::new();
        loop {
            let now = Instant::now();
            while calls.len() < MAX_CALLS
                && let Some(id) = self.agenda.take(now)
            {
                match self.address(&id, now) {
                    Some(address) => calls.push(call(self.client.clone(), id, address)),
                    None => self.agenda.forget(&id),
                }
            }
            let next = self.agenda.next_at().filter(|_| calls.len() < MAX_CALLS);
            tokio::select! {
                event = self.events.recv() => match event {
                    Ok(event) => self.heard(&event),
                    Err(RecvError::Lagged(_)) => self.look_at_all(),
                    Err(RecvError::Closed) => return,
                },
                Some(called) = calls.next(), if !calls.is_empty() => self.called(&called),
                () = tokio::time::sleep_until(next.unwrap_or(now).into()), if next.is_some() => {}
            }
        }
    }

    /// Nearly all events are beats of members that were reached: those cost one comparison.
    fn heard(&mut self, event: &RegistryEvent<T>) {
        if let EventKind::Left { .. } = event.kind {
            self.agenda.forget(event.member.id());
        } else if event.report.reach != Reach::Reached {
            let is_beat = !matches!(event.kind, EventKind::StateChanged { .. } | EventKind::Contended { .. });
            self.look(&event.member, is_beat);
        }
    }

    /// Events were missed.
    fn look_at_all(&mut self) {
        let registry = Arc::clone(&self.registry);
        registry.for_each(|member| self.look(member, true));
    }

    /// Decides by what is known of the member now: the event may be old.
    fn look(&mut self, member: &Arc<Member<T>>, has_beaten: bool) {
        match member.report().reach {
            Reach::Unknown => self.agenda.call(member.id(), Instant::now()),
            Reach::Unreachable(_) if has_beaten => self.agenda.call_unless_planned(member.id(), Instant::now()),
            Reach::Unreachable(_) | Reach::Reached => {}
        }
    }

    fn called(&mut self, called: &Called<T::Id>) {
        let now = Instant::now();
        let Called { id, address, result } = called;
        let word = match result {
            Ok(()) => {
                self.registry.mark_reached(id, address, now);
                self.agenda.forget(id);
                "reached"
            }
            Err(reason) => {
                self.registry.mark_unreachable(id, address, reason.as_str(), now);
                self.agenda.failed(id, now);
                "unreachable"
            }
        };
        self.metrics.callback(T::KIND, word);
        // It may have gone to another address meanwhile.
        if let Some(member) = self.registry.get(id) {
            self.look(&member, false);
        }
    }

    /// Where to call a member; `None` if there is no reason to.
    fn address(&self, id: &T::Id, now: Instant) -> Option<Address> {
        let member = self.registry.get(id)?;
        let report = member.report();
        let is_open = report.reach != Reach::Reached && member.liveness(now) != Liveness::Lost;
        // Port 0: it does not listen yet.
        (is_open && report.address.port() != 0).then(|| report.address.clone())
    }
}

/// Any answer will do: it is not asked how the member is, only whether somebody is there. The token stays at home, for it
/// is not known yet who that is.
async fn call<Id>(client: Client<HttpConnector, Empty<Bytes>>, id: Id, address: Address) -> Called<Id> {
    let request = Request::get(format!("{}/health", address.base_url()))
        .header(header::USER_AGENT, concat!("rbee/", env!("CARGO_PKG_VERSION")))
        .body(Empty::new());
    let result = match request {
        Err(error) => Err(error.to_string()),
        Ok(request) => match tokio::time::timeout(LIMIT, client.request(request)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(root_cause(&error)),
            Err(_) => Err(format!("no answer within {} s", LIMIT.as_secs())),
        },
    };
    Called { id, address, result }
}

/// Whom to call, and when. Holds nobody but those who are to be called, are being called, or did not answer.
struct Agenda<Id> {
    entries: HashMap<Id, Entry>,
    /// Those whose turn is due, by time.
    due: BTreeSet<(Instant, Id)>,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    turn: Turn,
    /// Calls without an answer.
    failures: usize,
}

/// `Due -> Calling -> Due` after each failure, until the retries are used up: then `Resting -> Due` with each beat. An
/// answer ends the entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Turn {
    Due(Instant),
    Calling,
    Resting,
}

impl<Id> Default for Agenda<Id> {
    fn default() -> Self {
        Self {
            entries: HashMap::new(),
            due: BTreeSet::new(),
        }
    }
}

impl<Id: Clone + Eq + Hash + Ord> Agenda<Id> {
    /// Plans a call now, as the first one of its kind. A call that is under way is left to end.
    fn call(&mut self, id: &Id, now: Instant) {
        let is_planned = |entry: &Entry| match entry.turn {
            Turn::Due(at) => at <= now,
            Turn::Calling => true,
            Turn::Resting => false,
        };
        if !self.entries.get(id).is_some_and(is_planned) {
            self.forget(id);
            self.plan(id, 0, now);
        }
    }

    /// Plans a call now for somebody who did not answer, unless a call is planned or under way.
    fn call_unless_planned(&mut self, id: &Id, now: Instant) {
        match self.entries.get(id) {
            None => self.plan(id, 0, now),
            Some(Entry {
                turn: Turn::Resting,
                failures,
            }) => self.plan(id, *failures, now),
            Some(_) => {}
        }
    }

    /// Who is to be called now. Whoever is taken is being called until [`failed`](Self::failed) or
    /// [`forget`](Self::forget).
    fn take(&mut self, now: Instant) -> Option<Id> {
        if self.next_at()? > now {
            return None;
        }
        let (_, id) = self.due.pop_first()?;
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.turn = Turn::Calling;
        }
        Some(id)
    }

    /// When the next call is due.
    fn next_at(&self) -> Option<Instant> {
        self.due.first().map(|(at, _)| *at)
    }

    /// A call got no answer.
    fn failed(&mut self, id: &Id, now: Instant) {
        let Some(entry) = self.entries.get_mut(id) else { return };
        if entry.turn != Turn::Calling {
            return;
        }
        let retry = RETRIES.get(entry.failures);
        entry.failures += 1;
        entry.turn = Turn::Resting;
        let failures = entry.failures;
        if let Some(pause) = retry {
            self.plan(id, failures, now + *pause);
        }
    }

    /// It answered, has left, or need not be called for another reason.
    fn forget(&mut self, id: &Id) {
        if let Some(Entry {
            turn: Turn::Due(at), ..
        }) = self.entries.remove(id)
        {
            self.due.remove(&(at, id.clone()));
        }
    }

    fn plan(&mut self, id: &Id, failures: usize, at: Instant) {
        let turn = Turn::Due(at);
        self.entries.insert(id.clone(), Entry { turn, failures });
        self.due.insert((at, id.clone()));
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};
    use std::sync::atomic::{AtomicUsize, Ordering};

    use axum::Router;
    use axum::routing::get;
    use chrono::Utc;
    use heartbeat_registry::{Pace, Receipt, RegistryOptions};
    use tokio::net::TcpListener;
    use tokio_util::task::AbortOnDropHandle;

    use super::*;
    use crate::registry::WorkerRegistry;

    /// Seconds after `start` at which the next calls are made, each of which fails at once.
    fn calls(agenda: &mut Agenda<u32>, start: Instant) -> Vec<u64> {
        let mut times = Vec::new();
        while let Some(at) = agenda.next_at() {
            assert_eq!(agenda.take(at), Some(7));
            agenda.failed(&7, at);
            times.push((at - start).as_secs());
        }
        times
    }

    #[test]
    fn who_does_not_answer_is_called_after_growing_pauses_and_then_with_each_beat() {
        let (mut agenda, start) = (Agenda::default(), Instant::now());
        agenda.call(&7, start);
        assert_eq!(calls(&mut agenda, start), [0, 1, 3, 7, 15, 31]);
        for minute in 1..3 {
            agenda.call_unless_planned(&7, start + Duration::from_secs(60 * minute));
            assert_eq!(calls(&mut agenda, start), [60 * minute]);
        }
    }

    #[test]
    fn beats_do_not_hurry_the_next_try_and_a_new_address_does() {
        let (mut agenda, start) = (Agenda::default(), Instant::now());
        agenda.call(&7, start);
        assert_eq!(agenda.take(start), Some(7));
        agenda.failed(&7, start);
        agenda.call_unless_planned(&7, start);
        assert_eq!(agenda.take(start), None, "the next try is planned");
        agenda.call(&7, start);
        assert_eq!(calls(&mut agenda, start), [0, 1, 3, 7, 15, 31], "as if it was new");
    }

    #[test]
    fn nobody_is_called_twice_at_once_and_who_answered_is_not_called_again() {
        let (mut agenda, now) = (Agenda::default(), Instant::now());
        agenda.call(&7, now);
        agenda.call(&7, now);
        assert_eq!(agenda.take(now), Some(7));
        agenda.call(&7, now);
        agenda.call_unless_planned(&7, now);
        assert_eq!(agenda.take(now), None);
        agenda.forget(&7);
        assert!(agenda.entries.is_empty() && agenda.due.is_empty());
        agenda.failed(&7, now);
        assert_eq!(agenda.next_at(), None, "it has left while it was called");
    }

    #[test]
    fn whose_turn_comes_first_is_called_first() {
        let (mut agenda, now) = (Agenda::default(), Instant::now());
        let later = now + Duration::from_secs(1);
        agenda.call(&1, later);
        agenda.call(&2, now);
        assert_eq!((agenda.take(now), agenda.take(now)), (Some(2), None));
        assert_eq!(agenda.take(later), Some(1));
    }

    fn join(registry: &WorkerRegistry, id: usize, port: u16) {
        let beat = daemon::extract::from_slice(
            format!(
                r#"{{"worker": {{"id": "w-{id}", "model_id": "m", "device": "cpu", "port": {port}, "status": "ready",
                     "implementation": "x", "version": "0"}}, "timestamp": "2025-10-24T10:00:00Z"}}"#
            )
            .as_bytes(),
        )
        .unwrap();
        let receipt = Receipt {
            peer: IpAddr::V4(Ipv4Addr::LOCALHOST),
            at: Instant::now(),
            wall: Utc::now(),
            pace: Pace::default(),
        };
        registry.record(beat, receipt).unwrap();
    }

    #[tokio::test]
    async fn however_many_come_at_once_all_are_called_and_not_too_many_together() {
        const MEMBERS: usize = 5 * MAX_CALLS;
        let (open, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let health = get({
            let most = Arc::clone(&most);
            async move || {
                most.fetch_max(open.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                // Lets those come that are on their way.
                for _ in 0..100 {
                    tokio::task::yield_now().await;
                }
                open.fetch_sub(1, Ordering::SeqCst);
            }
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = axum::serve(listener, Router::new().route("/health", health));
        let _server = AbortOnDropHandle::new(tokio::spawn(async move { server.await.unwrap() }));

        // More happens than is kept for whoever does not keep up.
        let registry = Arc::new(WorkerRegistry::new(RegistryOptions {
            event_capacity: 4,
            ..RegistryOptions::default()
        }));
        let metrics = Arc::new(Metrics::new());
        let call_back = CallBack::new(Arc::clone(&registry), metrics);
        for id in 0..MEMBERS {
            join(&registry, id, port);
        }
        let _task = AbortOnDropHandle::new(tokio::spawn(call_back.run()));
        let all_are_reached = async {
            loop {
                let mut reached = 0;
                registry.for_each(|member| reached += usize::from(member.report().reach == Reach::Reached));
                if reached == MEMBERS {
                    return;
                }
                tokio::task::yield_now().await;
            }
        };
        let patience = Duration::from_secs(20);
        tokio::time::timeout(patience, all_are_reached)
            .await
            .expect("all are called");
        let most = most.load(Ordering::SeqCst);
        assert!((2..=MAX_CALLS).contains(&most), "{most} at once");
    }
}
