//! The call-back: that a member's heartbeats arrive does not say that it can be reached.
//!
//! Whoever comes to an address, and whoever was suspected and beats again, is called there once. Who answers, with whatever
//! status, is not called again. Who does not is unreachable, and is called after each of [`RETRIES`](agenda::RETRIES) and then
//! every [`REST`](agenda::REST), until it answers.

mod agenda;

use std::error::Error;
use std::ops::Deref;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use heartbeat_registry::{About, EventKind, Liveness, Member, Reach, Registry, RegistryEvent};
use http::{Request, header};
use http_body_util::Empty;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use shared_contract::HeartbeatItem;
use tokio::sync::broadcast::{Receiver, error::RecvError};

use self::agenda::{Agenda, Call};
use crate::metrics::Metrics;

/// How long an answer may take, connection included.
const LIMIT: Duration = Duration::from_secs(5);

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
    call: Call<Id>,
    about: About,
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
        Self {
            events: registry.subscribe(),
            registry,
            agenda: Agenda::default(),
            // Nobody is called often enough for a connection to be kept.
            client: Client::builder(TokioExecutor::new())
                .pool_max_idle_per_host(0)
                .build_http(),
            metrics,
        }
    }

    pub(crate) async fn run(mut self) {
        let mut calls = FuturesUnordered::new();
        loop {
            let now = Instant::now();
            while let Some(call) = self.agenda.take(now) {
                match self.about(&call.id, now) {
                    Some(about) => calls.push(make(self.client.clone(), call, about)),
                    None => {
                        self.agenda.ended(&call);
                        self.agenda.forget(&call.id);
                    }
                }
            }
            let next = self.agenda.next_at();
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

    fn heard(&mut self, event: &RegistryEvent<T>) {
        if let EventKind::Left { .. } = event.kind {
            self.agenda.forget(event.member.id());
        } else {
            self.look(&event.member);
        }
    }

    /// Events were missed.
    fn look_at_all(&mut self) {
        let registry = Arc::clone(&self.registry);
        registry.for_each(|member| self.look(member));
    }

    /// Decides by what is known of the member now: the event may be old.
    fn look(&mut self, member: &Arc<Member<T>>) {
        match member.report().reach {
            Reach::Unknown => self.agenda.call(member.id(), Instant::now()),
            Reach::Unreachable(_) => self.agenda.call_unless_planned(member.id(), Instant::now()),
            Reach::Reached => {}
        }
    }

    fn called(&mut self, called: &Called<T::Id>) {
        let now = Instant::now();
        let Called { call, about, result } = called;
        let id = &call.id;
        self.agenda.ended(call);
        let word = match result {
            Ok(()) => {
                self.registry.mark_reached(id, about, now);
                self.agenda.forget(id);
                "reached"
            }
            Err(reason) => {
                self.registry.mark_unreachable(id, about, reason.as_str(), now);
                self.agenda.failed(id, now);
                "unreachable"
            }
        };
        self.metrics.callback(T::KIND, word);
        // It may have gone to another address meanwhile.
        if let Some(member) = self.registry.get(id) {
            self.look(&member);
        }
    }

    /// Whom to call now, and where; `None` if there is no reason to.
    fn about(&self, id: &T::Id, now: Instant) -> Option<About> {
        let member = self.registry.get(id)?;
        let report = member.report();
        let is_open = report.reach != Reach::Reached && member.liveness(now) != Liveness::Lost;
        // Port 0: it does not listen yet.
        (is_open && report.address.port() != 0).then(|| report.about(now))
    }
}

/// Any answer will do: it is not asked how the member is, only whether somebody is there. The token stays at home, for it
/// is not known yet who that is.
async fn make<Id>(client: Client<HttpConnector, Empty<Bytes>>, call: Call<Id>, about: About) -> Called<Id> {
    let request = Request::get(format!("{}/health", about.address.base_url()))
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
    Called { call, about, result }
}

/// The innermost cause: it says what happened, the outer ones only during what.
pub(crate) fn root_cause(error: &(dyn Error + 'static)) -> String {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
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

    use super::agenda::MAX_CALLS;
    use super::*;
    use crate::registry::WorkerRegistry;

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
