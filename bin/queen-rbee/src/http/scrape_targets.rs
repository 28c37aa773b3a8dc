//! `GET /v1/scrape-targets`: the members of the fleet, as Prometheus' HTTP service discovery reads them. Workers take the ports
//! that are free, so no file can name them.
//!
//! Source: <https://prometheus.io/docs/prometheus/latest/http_sd/>.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::State as Shared;
use daemon::{ApiError, Json, Query};
use heartbeat_registry::Address;
use hive_contract::HiveHeartbeat;
use serde::{Deserialize, Serialize};
use worker_contract::WorkerHeartbeat;

use crate::State;

/// Which members.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Which {
    /// Left out: all.
    kind: Option<Kind>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Kind {
    Worker,
    Hive,
}

/// Who is scraped, and what all its series are labelled with.
#[derive(Debug, Serialize)]
pub(super) struct Target {
    /// `HOST:PORT`.
    targets: [String; 1],
    labels: Labels,
}

#[derive(Debug, Default, Serialize)]
struct Labels {
    #[serde(skip_serializing_if = "Option::is_none")]
    hive: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    worker: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    model: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    device: Option<String>,
}

pub(super) async fn list(
    Shared(state): Shared<Arc<State>>,
    which: Result<Query<Which>, ApiError>,
) -> Result<Json<Vec<Target>>, ApiError> {
    let Query(Which { kind }) = which?;
    let now = Instant::now();
    let mut targets = Vec::new();
    if kind != Some(Kind::Worker) {
        let hives = state.hives.list_all(now);
        targets.extend(hives.iter().map(|hive| hive_target(hive.item(), hive.address())));
    }
    if kind != Some(Kind::Hive) {
        let workers = state.workers.list_all(now);
        targets.extend(
            workers
                .iter()
                .map(|worker| worker_target(worker.item(), worker.address())),
        );
    }
    Ok(Json(targets))
}

fn hive_target(beat: &HiveHeartbeat, address: &Address) -> Target {
    let labels = Labels {
        hive: Some(beat.hive.id.to_string()),
        ..Labels::default()
    };
    target(address, labels)
}

fn worker_target(beat: &WorkerHeartbeat, address: &Address) -> Target {
    let worker = &beat.worker;
    let labels = Labels {
        hive: worker.hive_id.as_ref().map(ToString::to_string),
        worker: Some(worker.id.to_string()),
        model: Some(worker.model_id.to_string()),
        device: Some(worker.device.clone()),
    };
    target(address, labels)
}

fn target(address: &Address, labels: Labels) -> Target {
    let url = address.base_url();
    let authority = url.split_once("://").map_or(url, |(_, authority)| authority);
    Target {
        targets: [authority.to_owned()],
        labels,
    }
}
