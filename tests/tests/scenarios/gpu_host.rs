//! A host with GPUs: how workers are packed onto them, and what happens when their owner wants one.
//!
//! No GPU is at hand: the driver is a fake library, and a worker that is told to use a GPU computes on the CPU. Hive, queen,
//! requests and processes are real. Takes more than five seconds: each worker loads a real model.

use std::process::{Child, Command};

use rbee_tests::nvml::{GpuProcess, code};
use rbee_tests::process::is_alive;
use rbee_tests::{Cluster, eventually, gpu, http, models};
use serde_json::{Value, json};

/// A host with GPUs, and its queen.
struct GpuHost {
    cluster: Cluster,
    host: gpu::Host,
}

impl GpuHost {
    /// Each GPU has so much memory.
    async fn start(gpus: u32, memory_mb: u64, more: &[&str]) -> Self {
        let cluster = Cluster::start().await;
        let host = gpu::Host::start(&cluster, gpus, memory_mb, more).await;
        Self { cluster, host }
    }

    async fn spawn(&self, more: &Value) -> Value {
        let mut operation = json!({"operation": "worker_spawn", "model": models::SMOLLM2, "worker": "cuda"});
        let more = more.as_object().cloned().unwrap_or_default();
        operation.as_object_mut().unwrap().extend(more);
        self.cluster.job(&self.host.hive, &operation).await
    }

    /// Spawns a worker that must come up; its device, id and pid.
    async fn spawned(&self) -> (String, String, i32) {
        let spawned = self.spawn(&json!({})).await;
        assert_eq!(spawned["state"], "succeeded", "{spawned:#}");
        let field = |name: &str| spawned["result"][name].as_str().expect("a text").to_owned();
        let pid = spawned["result"]["pid"].as_i64().expect("a pid") as i32;
        (field("device"), field("worker_id"), pid)
    }

    /// The worker of this id, as the hive lists it.
    async fn worker(&self, id: &str) -> Option<Value> {
        let listed = http::get(format!("{}/v1/workers", self.host.hive.url())).await.body;
        let workers = listed["workers"].as_array()?;
        workers.iter().find(|worker| worker["worker_id"] == id).cloned()
    }

    /// The devices with their load, as the hive lists them.
    async fn device(&self, id: &str) -> Value {
        let listed = self
            .cluster
            .job(&self.host.hive, &json!({"operation": "device_list"}))
            .await;
        let devices = listed["result"]["devices"].as_array().cloned().expect("devices");
        let found = devices.into_iter().find(|device| device["id"] == id);
        found.unwrap_or_else(|| panic!("no device {id} in {listed:#}"))
    }

    /// A process of the machine's owner takes most of a GPU.
    fn owner_takes(&mut self, gpu: usize) -> Owner {
        let process = Command::new("sleep").arg("600").spawn().expect("a process");
        let pid = process.id();
        self.host.driver.change(|driver| {
            driver.gpus[gpu].processes.push(GpuProcess {
                pid,
                memory_mb: Some(3_000),
                draws: true,
                ..GpuProcess::default()
            });
        });
        Owner(process)
    }

    fn owner_leaves(&mut self, owner: Owner) {
        let pid = owner.0.id();
        drop(owner);
        self.host.driver.change(|driver| {
            driver
                .gpus
                .iter_mut()
                .for_each(|gpu| gpu.processes.retain(|process| process.pid != pid));
        });
    }
}

/// A process that ends with the test.
struct Owner(Child);

impl Drop for Owner {
    fn drop(&mut self) {
        // It has ended by itself if the test took ten minutes.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn environment(pid: i32, variable: &str) -> Option<String> {
    let text = std::fs::read(format!("/proc/{pid}/environ")).ok()?;
    let found = text.split(|byte| *byte == 0).find_map(|entry| {
        entry
            .strip_prefix(format!("{variable}=").as_bytes())
            .map(<[u8]>::to_vec)
    });
    String::from_utf8(found?).ok()
}

#[tokio::test]
async fn workers_are_packed_onto_eight_gpus_and_each_sees_only_its_own() {
    let mut host = GpuHost::start(8, 4_096, &[]).await;
    let mut workers = Vec::new();
    for _ in 0..5 {
        workers.push(host.spawned().await);
    }
    let devices: Vec<&str> = workers.iter().map(|(device, _, _)| device.as_str()).collect();
    assert_eq!(devices, ["cuda:0", "cuda:0", "cuda:1", "cuda:1", "cuda:2"]);
    for (device, _, pid) in &workers {
        let number: usize = device.trim_start_matches("cuda:").parse().unwrap();
        let uuid = format!("GPU-00000000-0000-0000-0000-{number:012}");
        assert_eq!(environment(*pid, "CUDA_VISIBLE_DEVICES"), Some(uuid));
    }
    host.cluster.until_ready(models::SMOLLM2, 5).await;
    let anywhere = host.spawn(&json!({"worker": null, "context_length": 256})).await;
    assert_eq!(
        anywhere["result"]["device"], "cuda:2",
        "a GPU comes before the CPU: {anywhere:#}"
    );
    let worker = anywhere["result"]["worker_id"].clone();
    host.cluster
        .job(
            &host.host.hive,
            &json!({"operation": "worker_stop", "worker_id": worker}),
        )
        .await;
    let fleet = host
        .cluster
        .until("the five are there, and only they", |fleet| {
            let ready = fleet.workers.iter().filter(|worker| worker.ready).count();
            (ready == 5 && fleet.workers.len() == 5).then(|| fleet.clone())
        })
        .await;
    let mut told: Vec<&str> = fleet.workers.iter().map(|worker| worker.device.as_str()).collect();
    told.sort_unstable();
    assert_eq!(told, devices, "what the workers say of themselves");
    assert_eq!(host.cluster.chat(models::SMOLLM2, "Hello").await.status, 200);

    // What the driver says of a process is its worker's own, and what was promised and not taken counts as taken.
    let (_, id, pid) = workers.last().cloned().unwrap();
    host.host
        .driver
        .change(|driver| driver.gpus[2] = driver.gpus[2].clone().running(pid as u32, 700));
    let granted = eventually("the hive reads the driver again", async || {
        let workers = http::get(format!("{}/v1/workers", host.host.hive.url())).await.body;
        let entry = workers["workers"]
            .as_array()?
            .iter()
            .find(|entry| entry["worker_id"] == id)?
            .clone();
        let granted = entry["granted_mb"].as_u64().filter(|granted| *granted > 1_000);
        (entry["vram_mb"] == 700).then_some(granted?)
    })
    .await;
    let device = host.device("cuda:2").await["load"].clone();
    assert_eq!(
        (&device["vram_foreign_mb"], &device["owner"]),
        (&json!(0), &Value::Null),
        "{device:#}"
    );
    let free = device["vram_free_mb"].as_u64().unwrap();
    assert!(free.abs_diff(4_096 - 512 - granted) <= 1, "{free} beside {granted}");
}

#[tokio::test]
async fn a_model_that_fits_on_no_device_is_refused_with_the_figures_of_each() {
    let host = GpuHost::start(2, 1_024, &[]).await;
    let refused = host.spawn(&json!({})).await;
    assert_eq!(refused["error"]["code"], "no_capacity", "{refused:#}");
    let message = refused["error"]["message"].as_str().expect("a message");
    for part in ["step `place`", "cuda:0", "cuda:1", "MiB"] {
        assert!(message.contains(part), "{part} is not in: {message}");
    }
    // The CPU takes it where nobody insists on a GPU.
    let anywhere = host.spawn(&json!({"worker": null})).await;
    assert_eq!(anywhere["result"]["device"], "cpu", "{anywhere:#}");
    // A GPU that has room for less is found by asking for less.
    let host = GpuHost::start(1, 1_700, &[]).await;
    let small = host.spawn(&json!({"context_length": 1_024})).await;
    assert_eq!(small["state"], "succeeded", "{small:#}");
    host.cluster.until_ready(models::SMOLLM2, 1).await;
    assert_eq!(host.cluster.fleet().await.workers[0].context_length, 1_024);
}

/// Takes more than half a minute: workers come back only after the owner was gone for that long.
#[tokio::test]
async fn a_gpu_whose_owner_comes_is_left_to_him_and_taken_back_afterwards() {
    let mut host = GpuHost::start(2, 4_096, &["--yield-to-owner"]).await;
    let (device, id, pid) = host.spawned().await;
    assert_eq!(device, "cuda:0");
    host.cluster.until_ready(models::SMOLLM2, 1).await;

    let owner = host.owner_takes(0);
    let seen = host
        .cluster
        .until("the queen hears of the owner", |fleet| {
            let devices = &fleet.hives.first()?.monitor.devices;
            devices.iter().find(|device| device.id == "cuda:0")?.owner.clone()
        })
        .await;
    assert_eq!((seen.name.as_deref(), seen.vram_mb), (Some("sleep"), 3_000));
    eventually("the worker has left", async || (!is_alive(pid)).then_some(())).await;
    let waiting = eventually("the hive knows that it has left", async || {
        let worker = host.worker(&id).await?;
        (worker["state"] == "restarting").then_some(worker)
    })
    .await;
    assert!(
        waiting["reason"]
            .as_str()
            .is_some_and(|reason| reason.contains("`sleep`")),
        "{waiting:#}"
    );
    let refused = host.spawn(&json!({"device": "cuda:0"})).await;
    let message = refused["error"]["message"]
        .as_str()
        .unwrap_or_else(|| panic!("{refused:#}"));
    assert!(message.contains("sleep"), "{message}");
    assert_eq!(host.spawned().await.0, "cuda:1", "the other GPU is free");

    host.owner_leaves(owner);
    eventually("the worker is back on its GPU", async || {
        let worker = host.worker(&id).await?;
        (worker["device"] == "cuda:0" && worker["state"] == "running").then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_gpu_that_falls_off_the_bus_gets_no_worker_and_its_host_says_why() {
    let mut host = GpuHost::start(2, 4_096, &[]).await;
    host.host
        .driver
        .change(|driver| driver.gpus[0].error = Some(code::GPU_IS_LOST));
    let health = host
        .cluster
        .until("the queen hears of it", |fleet| {
            fleet.hives.first()?.health_reason.clone()
        })
        .await;
    assert!(health.contains("cuda:0"), "{health}");
    assert_eq!(host.spawned().await.0, "cuda:1");
    host.host.driver.change(|driver| driver.gpus[0].error = None);
    host.cluster
        .until("the host is well again", |fleet| {
            fleet
                .hives
                .first()
                .filter(|hive| hive.health_reason.is_none())
                .map(drop)
        })
        .await;
}
