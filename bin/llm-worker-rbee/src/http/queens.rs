//! `POST /v1/queens`: a queen that found this worker's hive after the worker was started.

use std::sync::Arc;

use axum::extract::State as FromState;
use daemon::{ApiError, Json};
use heartbeat_client::QueenUrl;
use shared_contract::ErrorKind;
use worker_contract::{QueenList, QueenNotice};

use super::draining;
use crate::queens::{QueenError, Queens};

pub(super) async fn add(
    FromState(queens): FromState<Arc<Queens>>,
    Json(notice): Json<QueenNotice>,
) -> Result<Json<QueenList>, ApiError> {
    let url: QueenUrl = notice
        .queen_url
        .parse()
        .map_err(|why| ApiError::invalid("queen_url", format!("queen_url: {why}")))?;
    let queens = queens.add(url).map_err(|error| match error {
        QueenError::TooMany => ApiError::new(ErrorKind::Conflict, error.to_string()).with_param("queen_url"),
        QueenError::Ended => draining(),
        QueenError::Client(why) => ApiError::invalid("queen_url", why.to_string()),
    })?;
    let queens = queens.iter().map(ToString::to_string).collect();
    Ok(Json(QueenList { queens }))
}
