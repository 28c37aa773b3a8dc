//! `POST /v1/worker-heartbeat` and `POST /v1/hive-heartbeat`.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use axum::extract::{ConnectInfo, State as Shared};
use chrono::Utc;
use daemon::{ApiError, Json};
use heartbeat_registry::{Error, Outcome, Recorded};
use hive_contract::HiveHeartbeat;
use shared_contract::{HeartbeatAck, HeartbeatItem, OperationalStatus};
use worker_contract::{WorkerHeartbeat, WorkerStatus};

use crate::State;
use crate::fleet::millis;

pub(super) async fn worker(
    Shared(state): Shared<Arc<State>>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    body: Result<Json<WorkerHeartbeat>, ApiError>,
) -> Result<Json<HeartbeatAck>, ApiError> {
    let recorded = body.and_then(|Json(beat)| {
        check_worker(&beat)?;
        state
            .workers
            .record(beat, address(peer), Instant::now(), Utc::now())
            .map_err(|error| no_host(&error, "worker.host"))
    });
    acknowledge::<WorkerHeartbeat>(&state, recorded)
}

pub(super) async fn hive(
    Shared(state): Shared<Arc<State>>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    body: Result<Json<HiveHeartbeat>, ApiError>,
) -> Result<Json<HeartbeatAck>, ApiError> {
    let recorded = body.and_then(|Json(beat)| {
        check_hive(&beat)?;
        state
            .hives
            .record_with_exits(beat, &state.workers, address(peer), Instant::now(), Utc::now())
            .map_err(|error| no_host(&error, "hive.hostname"))
    });
    acknowledge::<HiveHeartbeat>(&state, recorded)
}

fn acknowledge<T: HeartbeatItem>(
    state: &State,
    recorded: Result<Recorded, ApiError>,
) -> Result<Json<HeartbeatAck>, ApiError> {
    let (outcome, message) = match &recorded {
        Err(_) => ("refused", ""),
        Ok(recorded) => match recorded.outcome {
            Outcome::New => ("new", "welcome"),
            Outcome::Updated => ("updated", "recorded"),
            Outcome::Restarted => ("restarted", "welcome back"),
            Outcome::Goodbye => ("goodbye", "goodbye"),
            Outcome::Stale => ("stale", "dropped: a newer heartbeat came first"),
        },
    };
    state.metrics.beat(T::KIND, outcome);
    Ok(Json(HeartbeatAck {
        status: "ok".to_owned(),
        message: message.to_owned(),
        interval_ms: millis(state.config.heartbeat_interval),
        ttl_ms: millis(state.config.heartbeat_ttl),
        want_full: recorded?.want_full,
        queen_id: Some(state.id.clone()),
    }))
}

/// A socket of both families shows IPv4 peers as IPv6 addresses.
fn address(peer: SocketAddr) -> IpAddr {
    peer.ip().to_canonical()
}

fn no_host(error: &Error, param: &'static str) -> ApiError {
    ApiError::invalid(param, format!("{param}: {error}"))
}

/// What the types cannot say of a worker's heartbeat.
fn check_worker(beat: &WorkerHeartbeat) -> Result<(), ApiError> {
    let worker = &beat.worker;
    let takes_work = matches!(worker.status, WorkerStatus::Ready | WorkerStatus::Busy);
    require(
        !takes_work || worker.port != 0,
        "worker.port",
        "0 is no port that the queen can dial",
    )?;
    require(worker.slots != 0, "worker.slots", "a worker has at least 1")?;
    let detail = worker.status_detail.as_ref();
    let progress = detail.and_then(|detail| detail.progress).unwrap_or_default();
    require(
        (0.0..=1.0).contains(&progress),
        "worker.status_detail.progress",
        "must be from 0 to 1",
    )?;
    let speed = beat.load.tokens_per_second;
    require(
        speed.is_finite() && speed >= 0.0,
        "load.tokens_per_second",
        "must be a number from 0",
    )
}

/// What the types cannot say of a hive's heartbeat. A JSON number that is too large for its field becomes infinite.
fn check_hive(beat: &HiveHeartbeat) -> Result<(), ApiError> {
    let takes_work = beat.hive.operational_status == OperationalStatus::Ready;
    require(
        !takes_work || beat.hive.port != 0,
        "hive.port",
        "0 is no port that the queen can dial",
    )?;
    let finite = |value: f32, param: &str| require(value.is_finite(), param, "is too large");
    finite(beat.monitor.cpu_usage_percent, "monitor.cpu_usage_percent")?;
    for (place, device) in beat.monitor.devices.iter().enumerate() {
        let values = [device.util_percent, device.temperature_celsius, device.power_watts];
        for value in values.into_iter().flatten() {
            finite(value, &format!("monitor.devices[{place}]"))?;
        }
    }
    for (place, process) in beat.workers.iter().enumerate() {
        let values = [process.cpu_pct, process.io_r_mb_s, process.io_w_mb_s];
        for value in values.into_iter().chain(process.gpu_util_pct) {
            finite(value, &format!("workers[{place}]"))?;
        }
    }
    Ok(())
}

fn require(holds: bool, param: &str, otherwise: &str) -> Result<(), ApiError> {
    if holds {
        return Ok(());
    }
    Err(ApiError::invalid(param, format!("{param}: {otherwise}")))
}
