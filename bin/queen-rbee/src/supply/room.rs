//! Room for a worker: those that stand in its way answer what they have, and end.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use hive_contract::Operation;
use shared_contract::{HiveId, WorkerId};

use super::Service;
use super::attempt::{Go, Setback};
use super::hive::{HiveApi, OrderError};
use super::load::LOOK_AGAIN;
use super::scene::HostNow;

/// How long a worker may take to answer what it has before another one's place is given up on.
const LEAVE_LIMIT: Duration = Duration::from_secs(120);
/// How long its hive may take to say that it is gone,
const GONE_LIMIT: Duration = Duration::from_secs(10);
/// and that its memory is free: a moment later than the process is.
const FREE_LIMIT: Duration = Duration::from_secs(3);

impl Service {
    /// Has the workers end that stand in the way, and waits until their memory is free.
    pub(super) async fn make_room(&self, go: &Go) -> Result<(), Setback> {
        let orders = go.evict.iter().map(|worker| self.end(&go.api, worker));
        for (worker, result) in go.evict.iter().zip(join_all(orders).await) {
            // One that is not known has gone by itself.
            if let Err(error) = result
                && self.host(&go.hive, Instant::now()).is_some_and(|host| host.has(worker))
            {
                return Err(Setback::Failed(format!("worker {worker} did not make room: {error}")));
            }
        }
        let are_gone = |host: &HostNow| !go.evict.iter().any(|worker| host.has(worker));
        if !self.until(&go.hive, GONE_LIMIT, are_gone).await {
            return Err(Setback::Failed(
                "its hive does not say that there is room now".to_owned(),
            ));
        }
        let is_free = |host: &HostNow| {
            let free = host.free_bytes(&go.choice.device, go.kind);
            free.is_some_and(|free| free >= go.choice.bytes)
        };
        self.shared.metrics.evicted(go.evict.len());
        self.tell_evicted(go);
        // If it does not show by then, the hive itself knows best.
        self.until(&go.hive, FREE_LIMIT, is_free).await;
        Ok(())
    }

    /// Has a worker answer what it has, and end.
    pub(super) async fn end(&self, api: &HiveApi, worker: &WorkerId) -> Result<(), OrderError> {
        let order = Operation::WorkerDrain {
            worker_id: worker.clone(),
        };
        match tokio::time::timeout(LEAVE_LIMIT, api.order(&order, |_| {})).await {
            Ok(result) => result.map(drop),
            Err(_) => {
                let seconds = LEAVE_LIMIT.as_secs();
                Err(OrderError::Lost(format!("it still answers requests after {seconds} s")))
            }
        }
    }

    /// Waits until a hive says something; `false` if it does not within the limit.
    async fn until(&self, hive: &HiveId, limit: Duration, says: impl Fn(&HostNow) -> bool) -> bool {
        let mut happened = self.shared.happened.subscribe();
        let wait = async {
            loop {
                happened.mark_unchanged();
                if self.host(hive, Instant::now()).is_some_and(|host| says(&host)) {
                    return;
                }
                // Telemetry is no event of the fleet.
                let _ = tokio::time::timeout(LOOK_AGAIN / 5, happened.changed()).await;
            }
        };
        tokio::time::timeout(limit, wait).await.is_ok()
    }
}
