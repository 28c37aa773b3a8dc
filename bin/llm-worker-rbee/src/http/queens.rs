//! `POST /v1/queens`: a queen that found this worker's hive after the worker was started.

use axum::extract::State as FromState;
use daemon::{ApiError, Json};
use heartbeat_client::{Error, QueenUrl, Queens};
use shared_contract::ErrorKind;
use worker_contract::{QueenList, QueenNotice};

use super::draining;

pub(super) async fn add(
    FromState(queens): FromState<Queens>,
    Json(notice): Json<QueenNotice>,
) -> Result<Json<QueenList>, ApiError> {
    let url: QueenUrl = notice
        .queen_url
        .parse()
        .map_err(|why| ApiError::invalid("queen_url", format!("queen_url: {why}")))?;
    queens.pulled_by(&url).map_err(|error| match error {
        Error::TooManyQueens => ApiError::new(ErrorKind::Conflict, error.to_string()).with_param("queen_url"),
        Error::Ended => draining(),
        why => ApiError::invalid("queen_url", why.to_string()),
    })?;
    let queens = queens.urls().iter().map(ToString::to_string).collect();
    Ok(Json(QueenList { queens }))
}
