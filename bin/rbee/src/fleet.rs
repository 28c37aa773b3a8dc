//! The queen's view of the fleet, and whom of it a command means.

use anyhow::{Context, bail};
use queen_rbee::fleet::{FleetView, WorkerView};

use crate::Usage;
use crate::api::{self, Api, Peer};
use crate::cli::{BaseUrl, Global};

/// The daemons of a fleet, as this command calls them.
#[derive(Debug, Clone)]
pub(crate) struct Client<'a> {
    global: &'a Global,
    http: reqwest::Client,
}

impl<'a> Client<'a> {
    /// Calls with the addresses and secrets of the command line.
    pub(crate) fn new(global: &'a Global) -> anyhow::Result<Self> {
        let http = daemon::client::new().context("make an HTTP client")?;
        Ok(Self { global, http })
    }

    /// The queen's own endpoints.
    pub(crate) fn queen(&self) -> Api {
        self.api(Peer::Queen, &self.global.queen_url)
    }

    /// The queen's OpenAI endpoints.
    pub(crate) fn open_ai(&self) -> Api {
        let key = self.global.api_key.clone().or_else(|| self.global.token.clone());
        Api::new(self.http.clone(), Peer::OpenAi, &self.global.queen_url, key)
    }

    /// A hive or worker at this address.
    pub(crate) fn api(&self, peer: Peer, base: &BaseUrl) -> Api {
        Api::new(self.http.clone(), peer, base, self.global.token.clone())
    }

    /// What the queen knows now.
    pub(crate) async fn fleet(&self) -> Result<FleetView, api::Error> {
        self.queen().get("/v1/fleet").await
    }

    /// A hive or worker, where the queen says it is.
    pub(crate) fn member(&self, peer: Peer, id: &str, url: &str) -> anyhow::Result<Api> {
        let base = url.parse().map_err(anyhow::Error::msg);
        let base = base.with_context(|| format!("address of {id}, `{url}`"))?;
        Ok(self.api(peer, &base))
    }
}

/// The worker with this id, or the only one whose id begins with it.
pub(crate) fn choose_worker<'a>(workers: &'a [WorkerView], named: &str) -> anyhow::Result<&'a WorkerView> {
    if let Some(worker) = workers.iter().find(|worker| worker.id.as_str() == named) {
        return Ok(worker);
    }
    let begins: Vec<_> = workers
        .iter()
        .filter(|worker| worker.id.as_str().starts_with(named))
        .collect();
    let ids = |workers: &mut dyn Iterator<Item = &WorkerView>| {
        workers.map(|worker| worker.id.as_str()).collect::<Vec<_>>().join(", ")
    };
    match (begins.as_slice(), workers) {
        ([only], _) => Ok(only),
        ([], []) => bail!("the fleet has no worker"),
        ([], _) => bail!("the fleet has no worker `{named}`; it has {}", ids(&mut workers.iter())),
        _ => Err(Usage(format!(
            "several workers begin with `{named}`: {}",
            ids(&mut begins.iter().copied())
        ))
        .into()),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// A hive as the queen shows it.
    pub(crate) fn hive(id: &str) -> Value {
        json!({
            "id": id, "base_url": "http://10.0.0.5:7835", "operational_status": "ready",
            "health_status": "degraded", "health_reason": "the disk is nearly full", "liveness": "online",
            "reason": null, "since_ms_ago": 1, "last_beat_age_ms": 200, "clock_skew_ms": 0, "version": "0.1.0",
            "incarnation": 1, "monitor": {"cpu_usage_percent": 12.4, "ram_used_mb": 1_500, "ram_total_mb": 64_000},
            "capabilities": {"devices": [{"id": "cpu", "kind": "cpu", "name": "CPU", "memory_total_mb": 64_000}]},
            "workers": [],
        })
    }

    /// A worker as the queen shows it.
    pub(crate) fn worker(id: &str) -> Value {
        json!({
            "id": id, "model_id": "m", "device": "cpu", "base_url": "http://10.0.0.5:9301", "hive_id": "gpu-box",
            "status": "ready", "status_detail": null, "liveness": "online", "ready": true, "reason": null,
            "since_ms_ago": 1, "last_beat_age_ms": 3_000, "clock_skew_ms": 0, "slots": 4, "context_length": 2_048,
            "load": {"running": 1, "waiting": 2, "kv_used_tokens": 0, "kv_total_tokens": 0, "tokens_per_second": 51.26},
            "leases": 1, "incarnation": 1, "implementation": "llm-worker-rbee", "version": "0.1.0",
            "model_revision": null, "pid": 1, "endpoints": ["chat_completions"],
        })
    }

    fn workers(ids: &[&str]) -> Vec<WorkerView> {
        ids.iter()
            .map(|id| serde_json::from_value(worker(id)).unwrap())
            .collect()
    }

    #[test]
    fn a_worker_is_named_by_its_id_or_by_a_beginning_that_only_it_has() {
        let all = workers(&["worker-1", "worker-12", "worker-2"]);
        let chosen = |named| choose_worker(&all, named).map(|worker| worker.id.as_str().to_owned());
        assert_eq!(
            chosen("worker-1").unwrap(),
            "worker-1",
            "the whole id wins over a beginning"
        );
        assert_eq!(chosen("worker-2").unwrap(), "worker-2");
        assert_eq!(chosen("worker-12").unwrap(), "worker-12");
        assert!(chosen("worker-").unwrap_err().is::<Usage>());
        assert!(chosen("x").unwrap_err().to_string().contains("worker-12"));
        assert!(choose_worker(&[], "x").is_err());
    }
}
