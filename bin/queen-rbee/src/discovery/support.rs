//! A hive as far as a question sees it.

use std::net::{Ipv4Addr, TcpListener as StdListener};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
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
    questions: mpsc::Receiver<Question>,
    _task: AbortOnDropHandle<()>,
}

impl FakeHive {
    pub(super) async fn start(answer: Answer) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (send, questions) = mpsc::channel(1024);
        let router = Router::new().fallback(move |request: Request| {
            // One that no test reads is dropped, so that the hive answers for ever.
            let _ = send.try_send(read(&request));
            respond(answer)
        });
        let task = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self {
            url,
            questions,
            _task: AbortOnDropHandle::new(task),
        }
    }

    pub(super) async fn asked(&mut self) -> Question {
        self.questions.recv().await.unwrap()
    }

    pub(super) fn has_been_asked(&mut self) -> bool {
        !self.questions.is_empty()
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

async fn respond(answer: Answer) -> Response {
    let (status, body) = match answer {
        Answer::Hive(id) => (
            200,
            format!(r#"{{"hive_id": "{id}", "devices": [], "models": [], "engines": []}}"#),
        ),
        Answer::Body(status, body) => (status, body.to_owned()),
        Answer::Never => std::future::pending().await,
    };
    Response::builder().status(status).body(Body::from(body)).unwrap()
}
