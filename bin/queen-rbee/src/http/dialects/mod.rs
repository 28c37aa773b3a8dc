//! OpenAI's Responses and Anthropic's Messages: each request becomes a chat, and the chat's answer becomes theirs.

mod body;
mod headers;
mod messages;
mod responses;

use std::sync::Arc;

use api_dialects::{Identity, Reply, Translated};
use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::middleware::{from_fn, from_fn_with_state};
use axum::response::Response;
use axum::routing::post;
use bytes::Bytes;
use daemon::extract::json_body;
use daemon::{ApiError, Guard, auth, error};
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderMap};
use http::{HeaderValue, StatusCode};
use http_body_util::{BodyExt, Limited};
use openai_api::{InvalidRequest, STRICT_HEADER};
use router::{Account, Endpoint};
use shared_contract::{ErrorBody, ErrorKind};
use uuid::Uuid;

use self::body::Told;
use super::access::account_of;
use super::openai::{invalid, refused};
use crate::State;

/// Largest answer that is read as a whole.
const MAX_ANSWER_BYTES: usize = 64 << 20;

/// All routes. Those of Anthropic take `x-api-key` in place of a bearer token, too, and answer errors in Anthropic's shape.
pub(super) fn routes(guard: Guard) -> Router<Arc<State>> {
    let responses = Router::new()
        .route("/v1/responses", post(responses::create))
        .route_layer(from_fn_with_state(guard.clone(), auth::require));
    let messages = Router::new()
        .route(
            "/v1/messages",
            post(messages::create).fallback(error::method_not_allowed),
        )
        .route(
            "/v1/messages/count_tokens",
            post(messages::count).fallback(error::method_not_allowed),
        )
        .route_layer(from_fn_with_state(guard, auth::require_key))
        .layer(from_fn(messages::in_shape));
    responses.merge(messages)
}

/// What a dialect reads of a body.
type Read = Result<(Translated, Box<dyn Reply>), InvalidRequest>;

/// Answers a request in its dialect.
async fn answer(state: &State, request: Request, read: fn(&[u8]) -> Read) -> Result<Response, ApiError> {
    let call = Call::new(&request)?;
    let body = json_body(request, &()).await?;
    let (translated, reply) = read(&body).map_err(invalid)?;
    let identity = Identity {
        id: Uuid::new_v4().simple().to_string(),
        created: chrono::Utc::now().timestamp(),
    };
    let (mut head, body) = match call.chat(state, Endpoint::ChatCompletions, &translated).await? {
        Chat::Answer(response) => response.into_parts(),
        Chat::Refusal(refusal) => return Ok(refusal),
    };
    if translated.is_stream {
        return Ok(Response::from_parts(
            head,
            Body::new(Told::new(body, reply.stream(identity))),
        ));
    }
    let chat = whole(body).await?;
    let told = reply.whole(&chat, identity).map_err(ApiError::internal)?;
    head.headers
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(Response::from_parts(head, Body::from(told)))
}

/// What of a client's request goes with the translated one.
struct Call {
    headers: HeaderMap,
    account: Arc<Account>,
    is_strict: bool,
    /// Headers that have no effect.
    ignored: Vec<String>,
}

/// What a chat came to.
enum Chat {
    /// A completion or a stream of one; the headers name what was ignored.
    Answer(http::Response<router::Body>),
    /// The worker refused it; with the parameters named as the client wrote them.
    Refusal(Response),
}

impl Call {
    fn new(request: &Request) -> Result<Self, ApiError> {
        let (headers, is_strict, ignored) = headers::of_chat(request.headers())?;
        Ok(Self {
            headers,
            account: account_of(request),
            is_strict,
            ignored,
        })
    }

    /// Has a translated request answered.
    async fn chat(mut self, state: &State, endpoint: Endpoint, translated: &Translated) -> Result<Chat, ApiError> {
        self.ignored.extend(translated.ignored.iter().cloned());
        if self.is_strict
            && let Some(name) = self.ignored.first()
        {
            let message =
                format!("{name}: has no effect on this server, and `{STRICT_HEADER}` asks to be told; leave it out");
            return Err(ApiError::invalid(name.clone(), message).with_code("unsupported_parameter"));
        }
        let response = state
            .router
            .answer(endpoint, self.headers, translated.body.clone(), self.account)
            .await;
        let mut response = response.map_err(refused)?;
        headers::name_ignored(response.headers_mut(), &self.ignored);
        response.headers_mut().remove(CONTENT_LENGTH);
        if response.status() == StatusCode::OK {
            return Ok(Chat::Answer(response));
        }
        let (head, body) = response.into_parts();
        let body = whole(body).await?;
        // What is no error of ours passes as it is.
        let body = match serde_json::from_slice(&body) {
            Ok(ErrorBody { error }) => {
                let error = translated.error(error);
                Bytes::from(serde_json::to_vec(&ErrorBody { error }).map_err(ApiError::internal)?)
            }
            Err(_) => body,
        };
        Ok(Chat::Refusal(Response::from_parts(head, Body::from(body))))
    }
}

async fn whole(body: router::Body) -> Result<Bytes, ApiError> {
    let collected = Limited::new(body, MAX_ANSWER_BYTES).collect().await;
    let collected = collected.map_err(|error| {
        tracing::info!(%error, "a worker's answer broke off");
        ApiError::new(
            ErrorKind::UpstreamFailed,
            "the worker's answer broke off before its end; try again",
        )
    })?;
    Ok(collected.to_bytes())
}
