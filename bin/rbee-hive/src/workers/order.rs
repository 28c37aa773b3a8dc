//! What a worker is to serve and where, and the command line that follows from it.

use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use daemon::traces::Collector;
use heartbeat_client::QueenUrl;
use hive_contract::{DeviceInfo, DeviceKind};
use serde::{Deserialize, Serialize};
use shared_contract::{HiveId, ModelId, WorkerId};
use worker_supervisor::Spec;

use crate::config::Config;

/// What a worker gets beyond its grace period, to cut what is left and say goodbye, before it is killed.
const FAREWELL: Duration = Duration::from_secs(5);

/// What a worker is to serve, and what it is granted. It is kept on disk with the process, so that a later hive knows it
/// again: hence no secrets.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Order {
    pub(crate) id: WorkerId,
    /// As the worker's `--model` takes it.
    pub(crate) reference: String,
    pub(crate) model: ModelId,
    pub(crate) device: DeviceInfo,
    pub(crate) grant: Grant,
    /// Longest prompt plus answer in tokens, if somebody asked for one.
    #[serde(default)]
    pub(crate) context_length: Option<u32>,
    /// Requests that are computed together, if somebody asked for a number.
    #[serde(default)]
    pub(crate) slots: Option<u32>,
    /// Time without a request after which it is stopped; `None`: never.
    #[serde(default)]
    pub(crate) keep_alive: Option<Duration>,
    /// Whether somebody asked that it is never stopped for idleness.
    #[serde(default)]
    pub(crate) pinned: bool,
}

/// Memory of a device that is promised to a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Grant {
    /// All that it may take.
    pub(crate) bytes: u64,
    /// Of that, what it takes in any case once it is ready.
    pub(crate) fixed_bytes: u64,
    /// Tokens of its KV cache, which takes the rest.
    pub(crate) kv_tokens: u64,
}

impl Order {
    /// As it is kept with the process.
    pub(crate) fn label(&self) -> String {
        serde_json::to_string(self).expect("texts and numbers are JSON")
    }

    /// What stands in a label that some hive wrote; `None` if it is not understood.
    pub(crate) fn from_label(label: &str) -> Option<Self> {
        serde_json::from_str(label).ok()
    }
}

/// How this hive starts workers.
#[derive(Debug, Clone)]
pub(crate) struct Launcher {
    program: OsString,
    leading_args: Vec<OsString>,
    host: IpAddr,
    advertise_host: Option<String>,
    token: Option<daemon::Secret>,
    insecure: bool,
    hive_id: HiveId,
    models_dir: PathBuf,
    announce_dir: PathBuf,
    grace: Duration,
    memory_max_bytes: Option<u64>,
    otlp_endpoint: Option<Collector>,
}

impl Launcher {
    pub(crate) fn new(config: &Config, hive_id: HiveId) -> Self {
        let mut words = config.worker_command.iter().cloned();
        Self {
            program: words.next().unwrap_or_default(),
            leading_args: words.collect(),
            host: config.worker_host,
            advertise_host: config.advertise_host.clone(),
            token: config.token.clone(),
            insecure: config.insecure,
            hive_id,
            models_dir: config.models_dir.clone(),
            announce_dir: config.state_dir.join("announced"),
            grace: config.grace,
            memory_max_bytes: config.sharing.worker_memory_max,
            otlp_endpoint: config.otlp_endpoint.clone(),
        }
    }

    /// The worker program and the arguments that always come first.
    pub(crate) fn program(&self) -> (&OsString, &[OsString]) {
        (&self.program, &self.leading_args)
    }

    /// Where workers write the port that they listen on.
    pub(crate) fn announce_dir(&self) -> &Path {
        &self.announce_dir
    }

    /// How long a process that was asked to end may live on, with this grace instead of the settings'.
    pub(crate) fn stop_limit(&self, grace: Option<Duration>) -> Duration {
        grace.unwrap_or(self.grace).saturating_add(FAREWELL)
    }

    pub(crate) fn announce_file(&self, id: &WorkerId) -> PathBuf {
        self.announce_dir.join(format!("{id}.json"))
    }

    /// The command line for an order. The worker reports to these queens for as long as it is kept.
    pub(crate) fn spec(&self, order: &Order, queens: &[QueenUrl]) -> Spec {
        let announce = self.announce_file(&order.id);
        let (device, device_env) = as_the_worker_sees(&order.device);
        let mut args = self.leading_args.clone();
        let mut add = |flag: &str, value: &dyn AsRef<std::ffi::OsStr>| {
            args.push(flag.into());
            args.push(value.as_ref().to_owned());
        };
        let is_signed = order.reference.contains('?');
        if !is_signed {
            add("--model", &order.reference);
        }
        add("--model-id", &order.model.as_str());
        add("--device", &device);
        add("--device-name", &order.device.id);
        add("--kv-tokens", &order.grant.kv_tokens.to_string());
        if let Some(tokens) = order.context_length {
            add("--context-length", &tokens.to_string());
        }
        if let Some(slots) = order.slots {
            add("--slots", &slots.to_string());
        }
        add("--host", &self.host.to_string());
        add("--port", &"0");
        for url in queens {
            add("--queen-url", &url.as_str());
        }
        add("--hive-id", &self.hive_id.as_str());
        add("--worker-id", &order.id.as_str());
        add("--models-dir", &self.models_dir);
        add("--grace-s", &self.grace.as_secs().to_string());
        add("--announce", &announce);
        if let Some(host) = &self.advertise_host {
            add("--advertise-host", host);
        }
        if self.insecure {
            args.push("--insecure".into());
        }
        let mut env: Vec<(OsString, OsString)> = device_env.into_iter().collect();
        if is_signed {
            // The query of an address may be what gives access to it.
            env.push(("RBEE_MODEL".into(), order.reference.clone().into()));
        }
        if let Some(token) = &self.token {
            // Not as an argument: other users can read those.
            env.push(("RBEE_TOKEN".into(), token.expose().into()));
        }
        if let Some(collector) = &self.otlp_endpoint {
            // A variable, as a worker program of another make may not know the flag.
            env.push(("RBEE_OTLP_ENDPOINT".into(), collector.to_string().into()));
        }
        Spec {
            id: order.id.clone(),
            label: order.label(),
            program: self.program.clone(),
            args,
            env,
            start_number: Some("RBEE_INCARNATION".into()),
            announce: Some(announce),
            memory_max_bytes: self.memory_max_bytes,
        }
    }

    /// Where this host reaches a worker that listens on `port`.
    pub(crate) fn base_url(&self, port: u16) -> String {
        let host = match self.host {
            IpAddr::V4(host) if host.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(host) if host.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
            host => host,
        };
        format!("http://{}", SocketAddr::new(host, port))
    }
}

/// The worker's `--device` for a device of this host, and the variable that makes it so.
fn as_the_worker_sees(device: &DeviceInfo) -> (String, Option<(OsString, OsString)>) {
    let variable = |name: &str, value: &str| Some((name.into(), value.into()));
    match (device.kind, &device.uuid) {
        // It sees this GPU only, whatever happens to the numbers of the others.
        (DeviceKind::Cuda, Some(uuid)) => ("cuda:0".to_owned(), variable("CUDA_VISIBLE_DEVICES", uuid)),
        // CUDA's own order is fastest first; ours, NVML's, is that of the bus.
        (DeviceKind::Cuda, None) => (device.id.clone(), variable("CUDA_DEVICE_ORDER", "PCI_BUS_ID")),
        _ => (device.id.clone(), None),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    fn launcher(host: &str) -> Launcher {
        Launcher {
            program: "rbee".into(),
            leading_args: vec!["worker".into()],
            host: host.parse().unwrap(),
            advertise_host: Some("gpu-box".into()),
            token: Some("a-long-secret".parse().unwrap()),
            insecure: false,
            hive_id: HiveId::new("hive-1").unwrap(),
            models_dir: "/models".into(),
            announce_dir: "/state/announced".into(),
            grace: Duration::from_secs(30),
            memory_max_bytes: None,
            otlp_endpoint: None,
        }
    }

    /// An order for this device.
    pub(crate) fn order(device: &str) -> Order {
        Order {
            id: WorkerId::new("worker-1").unwrap(),
            reference: "example".into(),
            model: ModelId::new("example").unwrap(),
            device: DeviceInfo {
                id: device.into(),
                kind: device.parse().unwrap(),
                name: String::new(),
                memory_total_mb: 0,
                memory_reserved_mb: 0,
                uuid: None,
                compute_capability: None,
            },
            grant: Grant {
                bytes: 3 << 30,
                fixed_bytes: 1 << 30,
                kv_tokens: 4096,
            },
            context_length: None,
            slots: None,
            keep_alive: Some(Duration::from_secs(900)),
            pinned: false,
        }
    }

    fn spec(order: &Order) -> Spec {
        let queens = ["http://a:1", "http://b:2"].map(|url| url.parse().unwrap());
        launcher("0.0.0.0").spec(order, &queens)
    }

    fn line(order: &Order) -> String {
        let args: Vec<_> = spec(order)
            .args
            .into_iter()
            .map(|arg| arg.into_string().unwrap())
            .collect();
        args.join(" ")
    }

    #[test]
    fn a_worker_is_told_its_model_its_device_its_memory_and_every_queen() {
        let spec = spec(&order("cpu"));
        assert_eq!(
            (spec.program.to_str(), spec.args[0].to_str()),
            (Some("rbee"), Some("worker"))
        );
        let line = line(&order("cpu"));
        for part in [
            "--model example --model-id example --device cpu --device-name cpu --kv-tokens 4096 --host 0.0.0.0 --port 0",
            "--queen-url http://a:1 --queen-url http://b:2",
            "--hive-id hive-1 --worker-id worker-1",
            "--announce /state/announced/worker-1.json",
            "--advertise-host gpu-box",
        ] {
            assert!(line.contains(part), "{part} is not in {line}");
        }
    }

    #[test]
    fn what_was_asked_for_is_passed_on_and_nothing_else() {
        let mut order = order("cpu");
        assert!(!line(&order).contains("--slots") && !line(&order).contains("--context-length"));
        order.context_length = Some(2048);
        order.slots = Some(2);
        assert!(line(&order).contains("--context-length 2048 --slots 2"));
    }

    #[test]
    fn the_token_goes_by_the_environment_where_other_users_cannot_read_it() {
        let spec = spec(&order("cpu"));
        assert!(spec.args.iter().all(|arg| arg != "a-long-secret"));
        assert!(!spec.label.contains("a-long-secret"));
        assert_eq!(spec.env, [("RBEE_TOKEN".into(), "a-long-secret".into())]);
    }

    #[test]
    fn the_query_of_an_address_may_be_a_secret_and_goes_the_same_way() {
        let mut order = order("cpu");
        order.reference = "https://models.example/tiny.gguf?signature=abc".into();
        assert!(!line(&order).contains("abc"), "{}", line(&order));
        assert!(
            spec(&order)
                .env
                .contains(&("RBEE_MODEL".into(), order.reference.into()))
        );
    }

    #[test]
    fn a_cuda_worker_sees_its_gpu_only_and_has_its_name_for_the_world() {
        let mut order = order("cuda:3");
        order.device.uuid = Some("GPU-77".into());
        assert!(line(&order).contains("--device cuda:0 --device-name cuda:3"));
        assert!(
            spec(&order)
                .env
                .contains(&("CUDA_VISIBLE_DEVICES".into(), "GPU-77".into()))
        );
        order.device.uuid = None;
        assert!(line(&order).contains("--device cuda:3 --device-name cuda:3"));
        assert!(
            spec(&order)
                .env
                .contains(&("CUDA_DEVICE_ORDER".into(), "PCI_BUS_ID".into()))
        );
    }

    #[test]
    fn a_label_tells_a_later_hive_the_whole_order() {
        let mut order = order("cuda:3");
        order.slots = Some(2);
        assert_eq!(Order::from_label(&order.label()), Some(order));
        assert_eq!(Order::from_label("{}"), None);
    }

    #[test]
    fn a_worker_is_asked_and_told_where_this_host_reaches_it() {
        assert_eq!(launcher("0.0.0.0").base_url(1), "http://127.0.0.1:1");
        assert_eq!(launcher("::").base_url(1), "http://[::1]:1");
        assert_eq!(launcher("10.0.0.1").base_url(1), "http://10.0.0.1:1");
    }
}
