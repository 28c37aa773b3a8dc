//! `POST /v1/jobs` of the queen.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::extract::{ConnectInfo, State as Shared};
use axum::routing::{MethodRouter, post};
use daemon::{ApiError, Guard, Json};
use hive_contract::JobAccepted;
use http::{HeaderMap, StatusCode};

use crate::State;
use crate::jobs::{self, JobRequest, OwnOperation, QueenOperation};

/// Whoever manages the fleet may have jobs done. To have a model answer he needs what `models` asks for, too: a queen may
/// have keys for her models and no token for the fleet.
pub(super) fn create(models: &Guard) -> MethodRouter<Arc<State>> {
    let models = models.clone();
    post(
        async move |Shared(state): Shared<Arc<State>>,
                    ConnectInfo(peer): ConnectInfo<SocketAddr>,
                    headers: HeaderMap,
                    Json(request): Json<JobRequest>|
                    -> Result<(StatusCode, Json<JobAccepted>), ApiError> {
            if let QueenOperation::Own(OwnOperation::Infer(_)) = &request.operation {
                models.check_bearer(&headers)?;
            }
            let job = jobs::start(&state, request, peer)?;
            Ok(::jobs::http::accepted(&job))
        },
    )
}
