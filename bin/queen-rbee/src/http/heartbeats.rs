//! `POST /v1/worker-heartbeat` and `POST /v1/hive-heartbeat`.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use axum::extract::{ConnectInfo, State as Shared};
use chrono::Utc;
use daemon::{ApiError, Json};
use heartbeat_registry::{Error, LeaveReason, Outcome, Receipt, Recorded};
use hive_contract::HiveHeartbeat;
use shared_contract::{HeartbeatAck, HeartbeatItem, OperationalStatus};
use worker_contract::{WorkerHeartbeat, WorkerStatus};

use crate::State;
use crate::fleet::millis;
use crate::metrics::BeatMetrics;

pub(super) async fn worker(
    Shared(state): Shared<Arc<State>>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    body: Result<Json<WorkerHeartbeat>, ApiError>,
) -> Result<Json<HeartbeatAck>, ApiError> {
    let receipt = receipt(&state, peer);
    let recorded = body.and_then(|Json(beat)| {
        check_worker(&beat)?;
        // A worker that takes work may have become free: those that wait for one look again.
        let line = beat
            .is_available()
            .then(|| state.router.line(&beat.worker.model_id))
            .flatten();
        let recorded = state.workers.record(beat, receipt);
        let recorded = recorded.map_err(|error| no_host(&error, "worker.host"))?;
        if let Some(line) = line {
            line.offer();
        }
        Ok(recorded)
    });
    acknowledge(&state, &state.metrics.worker_beats, &receipt, recorded)
}

pub(super) async fn hive(
    Shared(state): Shared<Arc<State>>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    body: Result<Json<HiveHeartbeat>, ApiError>,
) -> Result<Json<HeartbeatAck>, ApiError> {
    let receipt = receipt(&state, peer);
    let recorded = body.and_then(|Json(beat)| {
        check_hive(&beat)?;
        let recorded = state.hives.record_with_exits(beat, &state.workers, receipt);
        let (recorded, ended) = recorded.map_err(|error| no_host(&error, "hive.hostname"))?;
        state.metrics.worker_beats.left(LeaveReason::Ended, ended);
        Ok(recorded)
    });
    acknowledge(&state, &state.metrics.hive_beats, &receipt, recorded)
}

fn receipt(state: &State, peer: SocketAddr) -> Receipt {
    Receipt {
        // A socket of both families shows IPv4 peers as IPv6 addresses.
        peer: peer.ip().to_canonical(),
        at: Instant::now(),
        wall: Utc::now(),
        pace: state.pace(),
    }
}

fn acknowledge(
    state: &State,
    metrics: &BeatMetrics,
    receipt: &Receipt,
    recorded: Result<Recorded, ApiError>,
) -> Result<Json<HeartbeatAck>, ApiError> {
    let recorded = recorded.inspect_err(|_| metrics.refused())?;
    metrics.recorded(&recorded);
    let (message, dropped) = match recorded.outcome {
        Outcome::New => ("welcome".to_owned(), None),
        Outcome::Updated => ("recorded".to_owned(), None),
        Outcome::Restarted => ("welcome back".to_owned(), None),
        Outcome::Goodbye => {
            // That of somebody who is no member lets nobody leave.
            metrics.left(LeaveReason::Goodbye, recorded.gap.is_some().into());
            ("goodbye".to_owned(), None)
        }
        Outcome::Dropped(reason) => (format!("dropped: {reason}"), Some(reason)),
    };
    Ok(Json(HeartbeatAck {
        status: "ok".to_owned(),
        message,
        interval_ms: millis(receipt.pace.interval),
        ttl_ms: millis(receipt.pace.ttl),
        want_full: recorded.want_full,
        queen_id: Some(state.id.clone()),
        dropped,
        known_incarnation: recorded.known_incarnation,
    }))
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
