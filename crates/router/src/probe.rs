//! The queen's own requests to a worker that failed: they find out when it answers again, so that no client's request has to.

use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use serde_json::json;
use tokio::time::sleep;
use worker_contract::{Endpoint as Served, WorkerInfo};

use crate::attempt;
use crate::endpoint::Endpoint;
use crate::health::{Break, Health};
use crate::line::Line;
use crate::worker::Worker;

/// Between the failure and the first probe.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// The longest pause between two probes: a worker that is back is found out within this and the time of its answer.
const LONGEST_PAUSE: Duration = Duration::from_millis(1_500);
/// How long the answer to a probe may take. Only one is under way, so a process that was stopped and goes on finds one to
/// answer, and is back at once.
const LIMIT: Duration = Duration::from_secs(10);

/// Probes a worker until it answers, has answered somebody else, is another process, or is no member any more.
pub(crate) async fn run(line: Weak<Line>, worker: Worker, health: Arc<Health>, broken: Break) {
    let mut pause = FIRST_PAUSE;
    loop {
        sleep(pause).await;
        let Some(line) = line.upgrade() else { return };
        let report = worker.report();
        if !health.is_still(broken, report.item.worker.incarnation) || !line.is_member(&worker) {
            return;
        }
        let asked = std::time::Instant::now();
        let request = smallest_request(&report.item.worker);
        match attempt::probe(line.upstream(), request, &report.address, LIMIT).await {
            Ok(()) => {
                tracing::info!(worker = %worker.id(), "a worker that failed answers again");
                line.metrics().probe("answered");
                health.mend(broken);
                line.is_reached(&worker, &report.about(asked));
                return;
            }
            Err(failure) => {
                tracing::debug!(worker = %worker.id(), %failure, "a worker that failed does not answer yet");
                line.metrics().probe(failure.reason());
            }
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// One token, from an endpoint that the worker serves.
fn smallest_request(worker: &WorkerInfo) -> (Endpoint, Bytes) {
    let model = worker.model_id.as_str();
    let serves = |endpoint| worker.endpoints.contains(&endpoint);
    let (endpoint, body) = if serves(Served::ChatCompletions) {
        let messages = json!([{"role": "user", "content": "."}]);
        (
            Endpoint::ChatCompletions,
            json!({"model": model, "messages": messages, "max_tokens": 1}),
        )
    } else if serves(Served::Embeddings) && !serves(Served::Completions) {
        (Endpoint::Embeddings, json!({"model": model, "input": "."}))
    } else {
        (
            Endpoint::Completions,
            json!({"model": model, "prompt": ".", "max_tokens": 1}),
        )
    };
    (endpoint, body.to_string().into())
}
