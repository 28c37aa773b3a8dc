//! The queen's view of the fleet, and whom of it a command means.

use anyhow::{Context, bail};
use queen_rbee::fleet::{FleetView, HiveView, WorkerView};

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
        let http = daemon::client::new().context("read the system's certificates")?;
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

    /// The hive that the user names by id or URL, or the only one.
    pub(crate) async fn hive(&self, named: Option<&str>) -> anyhow::Result<Api> {
        if let Some(url) = named.filter(|text| text.contains("://")) {
            let url = url.parse().map_err(|error| Usage(format!("--hive {url}: {error}")))?;
            return Ok(self.api(Peer::Hive, &url));
        }
        let fleet = self.fleet().await?;
        let hive = choose_hive(&fleet.hives, named)?;
        self.hive_at(hive)
    }

    /// The hive that the queen describes.
    pub(crate) fn hive_at(&self, hive: &HiveView) -> anyhow::Result<Api> {
        Ok(self.api(Peer::Hive, &address("hive", hive.id.as_str(), &hive.base_url)?))
    }

    /// The worker that the queen describes.
    pub(crate) fn worker_at(&self, worker: &WorkerView) -> anyhow::Result<Api> {
        Ok(self.api(Peer::Worker, &address("worker", worker.id.as_str(), &worker.base_url)?))
    }
}

fn address(kind: &str, id: &str, url: &str) -> anyhow::Result<BaseUrl> {
    url.parse()
        .map_err(anyhow::Error::msg)
        .with_context(|| format!("address of {kind} {id}, `{url}`"))
}

fn choose_hive<'a>(hives: &'a [HiveView], named: Option<&str>) -> anyhow::Result<&'a HiveView> {
    let ids = || hives.iter().map(|hive| hive.id.as_str()).collect::<Vec<_>>().join(", ");
    match (named, hives) {
        (_, []) => bail!("the fleet has no hive: start one on a host with `rbee hive --queen-url URL`"),
        (Some(id), _) => hives
            .iter()
            .find(|hive| hive.id.as_str() == id)
            .with_context(|| format!("the fleet has no hive `{id}`; it has {}", ids())),
        (None, [only]) => Ok(only),
        (None, _) => Err(Usage(format!(
            "the fleet has several hives: name one with --hive, of {}",
            ids()
        ))
        .into()),
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

    fn hives(ids: &[&str]) -> Vec<HiveView> {
        ids.iter().map(|id| serde_json::from_value(hive(id)).unwrap()).collect()
    }

    fn workers(ids: &[&str]) -> Vec<WorkerView> {
        ids.iter()
            .map(|id| serde_json::from_value(worker(id)).unwrap())
            .collect()
    }

    #[test]
    fn the_only_hive_needs_no_name_and_one_of_several_does() {
        assert_eq!(choose_hive(&hives(&["a"]), None).unwrap().id.as_str(), "a");
        assert_eq!(choose_hive(&hives(&["a", "b"]), Some("b")).unwrap().id.as_str(), "b");
        let error = choose_hive(&hives(&["a", "b"]), None).unwrap_err();
        assert!(error.is::<Usage>());
        assert!(
            error.to_string().contains("--hive") && error.to_string().contains("a, b"),
            "{error}"
        );
        let error = choose_hive(&hives(&["a", "b"]), Some("c")).unwrap_err().to_string();
        assert_eq!(error, "the fleet has no hive `c`; it has a, b");
        assert!(choose_hive(&[], None).unwrap_err().to_string().contains("rbee hive"));
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
