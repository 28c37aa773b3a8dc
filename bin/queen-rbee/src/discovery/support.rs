//! A hive as far as a question sees it.

use std::net::{Ipv4Addr, TcpListener as StdListener};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use lan_discovery::Key;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use super::ask::Questioner;
use super::asker::Timing;
use super::own_url::OwnUrl;

/// Awaits something that must happen; far longer than it takes.
pub(super) async fn within<T>(future: impl Future<Output = T>) -> T {
    let happened = tokio::time::timeout(Duration::from_secs(60), future).await;
    happened.expect("it takes far too long")
}

/// A queen's questions, as she asks them by default.
pub(super) fn questioner(token: Option<&str>) -> Questioner {
    let own = OwnUrl {
        advertised: None,
        bound: (Ipv4Addr::LOCALHOST, 7833).into(),
    };
    let token = token.map(|token| token.parse().unwrap());
    Questioner::new(daemon::client::new().unwrap(), token, own, Timing::default().limit)
}

/// A port that refuses connections.
pub(super) fn closed_port() -> u16 {
    let listener = StdListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    listener.local_addr().unwrap().port()
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Answer {
    /// That of a hive with this id.
    Hive(&'static str),
    /// This status and body.
    Body(u16, &'static str),
    Never,
}

/// What a hive was asked.
pub(super) struct Question {
    pub(super) path: String,
    pub(super) queen_url: String,
    pub(super) authorization: Option<String>,
}

pub(super) struct FakeHive {
    pub(super) url: String,
    /// What it shows in its `/health`.
    pub(super) proofs: Vec<String>,
    questions: mpsc::Receiver<Question>,
    _task: AbortOnDropHandle<()>,
}

impl FakeHive {
    pub(super) async fn start(answer: Answer) -> Self {
        let reply = match answer {
            Answer::Hive(id) => return Self::showing(id, Vec::new()).await,
            Answer::Body(status, body) => Some(Reply::new(status, body)),
            Answer::Never => None,
        };
        Self::serve(listen().await, Vec::new(), reply)
    }

    /// A hive that knows this token.
    pub(super) async fn proving(id: &str, token: &str) -> Self {
        let listener = listen().await;
        let key = Key::derive(token).await;
        let proofs = lan_discovery::proofs(&key, id, listener.local_addr().unwrap()).unwrap();
        Self::hive(listener, id, proofs)
    }

    /// A hive, or somebody who says so, with these proofs.
    pub(super) async fn showing(id: &str, proofs: Vec<String>) -> Self {
        Self::hive(listen().await, id, proofs)
    }

    /// Somebody who sends whoever asks him to another place.
    pub(super) async fn redirecting(to: &str) -> Self {
        let moved = Reply {
            location: Some(format!("{to}/health")),
            ..Reply::new(307, "")
        };
        Self::serve(listen().await, Vec::new(), Some(moved))
    }

    fn hive(listener: TcpListener, id: &str, proofs: Vec<String>) -> Self {
        let shown = serde_json::json!({"hive_id": id, "proofs": proofs, "devices": [], "models": [], "engines": []});
        let reply = Reply::new(200, &shown.to_string());
        Self::serve(listener, proofs, Some(reply))
    }

    fn serve(listener: TcpListener, proofs: Vec<String>, reply: Option<Reply>) -> Self {
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (send, questions) = mpsc::channel(1024);
        let router = Router::new().fallback(move |request: Request| {
            // One that no test reads is dropped, so that the hive answers for ever.
            let _ = send.try_send(read(&request));
            let reply = reply.clone();
            async move {
                match reply {
                    Some(reply) => reply.into_response(),
                    None => std::future::pending().await,
                }
            }
        });
        let task = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self {
            url,
            proofs,
            questions,
            _task: AbortOnDropHandle::new(task),
        }
    }

    pub(super) async fn asked(&mut self) -> Question {
        self.questions.recv().await.unwrap()
    }

    /// What it has been asked for, if anything.
    pub(super) fn has_been_asked_for(&mut self) -> Option<Question> {
        self.questions.try_recv().ok()
    }
}

async fn listen() -> TcpListener {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap()
}

#[derive(Clone)]
struct Reply {
    status: u16,
    location: Option<String>,
    body: String,
}

impl Reply {
    fn new(status: u16, body: &str) -> Self {
        Self {
            status,
            location: None,
            body: body.to_owned(),
        }
    }

    fn into_response(self) -> Response {
        let response = Response::builder().status(self.status);
        let response = match self.location {
            Some(location) => response.header("location", location),
            None => response,
        };
        response.body(Body::from(self.body)).unwrap()
    }
}

fn read(request: &Request) -> Question {
    let query: axum::extract::Query<Vec<(String, String)>> = axum::extract::Query::try_from_uri(request.uri()).unwrap();
    let queen_url = query.0.into_iter().find(|(name, _)| name == "queen_url");
    let authorization = request.headers().get("authorization");
    Question {
        path: request.uri().path().to_owned(),
        queen_url: queen_url.map(|(_, url)| url).unwrap_or_default(),
        authorization: authorization.map(|value| value.to_str().unwrap().to_owned()),
    }
}
