//! `POST /v1/messages` and `POST /v1/messages/count_tokens`.

use std::sync::Arc;

use api_dialects::messages;
use axum::body::Body;
use axum::extract::{Request, State as Shared};
use axum::middleware::Next;
use axum::response::Response;
use daemon::ApiError;
use daemon::extract::json_body;
use daemon::serve::REQUEST_ID;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderName, HeaderValue};
use router::Endpoint;
use shared_contract::{ErrorBody, ErrorKind};

use super::{Call, Chat, answer, invalid, whole};
use crate::State;

/// Anthropic's header for the name of a request.
const ANTHROPICS_REQUEST_ID: HeaderName = HeaderName::from_static("request-id");
/// Header that says which version of the shapes is spoken.
const VERSION: HeaderName = HeaderName::from_static("anthropic-version");
/// Those that are spoken: their answers have the same shapes. The newer one knows no `temperature`, `top_p` and `top_k`; they
/// are understood all the same, because open models are used with them.
const SPOKEN: [&str; 2] = ["2023-06-01", "2026-10-21"];

/// Largest body of an error that is put into Anthropic's shape.
const MAX_ERROR_BYTES: usize = 1 << 20;

pub(super) async fn create(Shared(state): Shared<Arc<State>>, request: Request) -> Result<Response, ApiError> {
    check_version(&request)?;
    answer(&state, request, messages::translate).await
}

pub(super) async fn count(Shared(state): Shared<Arc<State>>, request: Request) -> Result<Response, ApiError> {
    check_version(&request)?;
    let call = Call::new(&request)?;
    let body = json_body(request, &()).await?;
    let translated = messages::translate_count(&body).map_err(invalid)?;
    let (head, body) = match call.chat(&state, Endpoint::CountTokens, &translated).await? {
        Chat::Answer(response) => response.into_parts(),
        Chat::Refusal(refusal) => return Ok(refusal),
    };
    let told = messages::count(&whole(body).await?).map_err(ApiError::internal)?;
    Ok(Response::from_parts(head, Body::from(told)))
}

fn check_version(request: &Request) -> Result<(), ApiError> {
    match request.headers().get(VERSION) {
        Some(version) if !SPOKEN.iter().any(|spoken| version == spoken) => {
            let message = format!(
                "{VERSION}: only {} are spoken; send one of them, or leave it out",
                SPOKEN.join(" and ")
            );
            Err(ApiError::new(ErrorKind::InvalidRequest, message).with_param(VERSION.as_str()))
        }
        _ => Ok(()),
    }
}

/// Middleware: names the request as Anthropic does, and puts errors, whoever answered them, into Anthropic's shape.
pub(super) async fn in_shape(request: Request, next: Next) -> Response {
    let id = request.headers().get(REQUEST_ID).cloned();
    let mut response = next.run(request).await;
    if response.status().is_client_error() || response.status().is_server_error() {
        let id = id.as_ref().and_then(|id| id.to_str().ok());
        response = reshaped(response, id).await;
    }
    if let Some(id) = id {
        response.headers_mut().insert(ANTHROPICS_REQUEST_ID, id);
    }
    response
}

async fn reshaped(response: Response, id: Option<&str>) -> Response {
    let (mut head, body) = response.into_parts();
    let error = axum::body::to_bytes(body, MAX_ERROR_BYTES).await.ok();
    let error = error.and_then(|body| serde_json::from_slice::<ErrorBody>(&body).ok());
    let error = error.map_or_else(
        || ErrorKind::UpstreamFailed.object(format!("the worker answered {}", head.status), None),
        |body| body.error,
    );
    head.headers.remove(CONTENT_LENGTH);
    head.headers
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Response::from_parts(head, Body::from(messages::error_body(&error, id)))
}
