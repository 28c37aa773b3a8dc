//! `rbee ps`: who is there, and how it does.

use std::process::ExitCode;

use hive_contract::{ProcessState, ProcessStats};
use queen_rbee::fleet::{FleetView, HiveView, Liveness, WorkerView};
use shared_contract::{HealthStatus, OperationalStatus};
use worker_contract::WorkerStatus;

use crate::cli::Global;
use crate::fleet::Client;
use crate::render::{self, Look, Text, Tone};

const HIVES: [&str; 10] = [
    "HIVE", "LIVENESS", "STATUS", "ADDRESS", "DEVICES", "CPU", "RAM", "BEAT", "VERSION", "WHY",
];
const WORKERS: [&str; 11] = [
    "WORKER", "MODEL", "DEVICE", "HIVE", "ADDRESS", "LIVENESS", "STATUS", "BUSY", "TOK/S", "BEAT", "WHY",
];

/// `rbee ps`.
pub(crate) async fn ps(global: &Global) -> anyhow::Result<ExitCode> {
    let client = Client::new(global)?;
    if global.json {
        // As the queen says it, so that programs also get what this version does not know.
        let fleet: serde_json::Value = client.queen().get("/v1/fleet").await?;
        render::json_line(&fleet)?;
        return Ok(ExitCode::SUCCESS);
    }
    let fleet = client.fleet().await?;
    render::print(&page(Look::detect(), &fleet))?;
    Ok(ExitCode::SUCCESS)
}

fn page(look: Look, fleet: &FleetView) -> String {
    let mut text = String::new();
    if fleet.queen.degraded_view {
        text.push_str("Many are silent at once: the queen itself may be cut off, and shows what it last knew.\n\n");
    }
    if fleet.hives.is_empty() {
        text.push_str("no hives\n");
    } else {
        let rows: Vec<_> = fleet.hives.iter().map(hive_row).collect();
        text.push_str(&render::table(look, &HIVES, &rows));
    }
    text.push('\n');
    let silent = fleet.hives.iter().flat_map(|hive| unheard(hive, &fleet.workers));
    let rows: Vec<_> = fleet.workers.iter().map(worker_row).chain(silent).collect();
    match rows.as_slice() {
        [] => text.push_str("no workers; start one with `rbee spawn MODEL`\n"),
        rows => text.push_str(&render::table(look, &WORKERS, rows)),
    }
    text
}

fn hive_row(hive: &HiveView) -> Vec<Text> {
    let devices = hive.capabilities.iter().flat_map(|capabilities| &capabilities.devices);
    let devices: Vec<_> = devices.map(|device| device.id.as_str()).collect();
    let monitor = &hive.monitor;
    let ram = match monitor.ram_total_mb {
        0 => String::new(),
        total => format!("{:.1}/{:.1} GB", monitor.ram_used_mb as f64 / 1e3, total as f64 / 1e3),
    };
    let why = [hive.reason.as_deref(), hive.health_reason.as_deref()];
    vec![
        hive.id.as_str().into(),
        liveness(hive.liveness),
        hive_status(hive),
        host_and_port(&hive.base_url).into(),
        devices.join(", ").into(),
        format!("{:.0} %", monitor.cpu_usage_percent).into(),
        ram.into(),
        render::age(hive.last_beat_age_ms).into(),
        hive.version.as_str().into(),
        why.into_iter().flatten().collect::<Vec<_>>().join("; ").into(),
    ]
}

fn hive_status(hive: &HiveView) -> Text {
    let status = match hive.operational_status {
        OperationalStatus::Starting => "starting",
        OperationalStatus::Ready => "ready",
        OperationalStatus::Draining => "draining",
        OperationalStatus::Stopped => "stopped",
    };
    match (hive.operational_status, hive.health_status) {
        (_, HealthStatus::Unhealthy) => Text::toned(format!("{status}, unhealthy"), Tone::Bad),
        (_, HealthStatus::Degraded) => Text::toned(format!("{status}, degraded"), Tone::Warn),
        (OperationalStatus::Ready, HealthStatus::Healthy) => Text::toned(status, Tone::Good),
        (_, HealthStatus::Healthy) => Text::toned(status, Tone::Warn),
    }
}

fn worker_row(worker: &WorkerView) -> Vec<Text> {
    let busy = format!("{}/{}", worker.load.running, worker.slots);
    let busy = match worker.load.waiting {
        0 => busy,
        waiting => format!("{busy} +{waiting}"),
    };
    vec![
        worker.id.as_str().into(),
        worker.model_id.as_str().into(),
        worker.device.as_str().into(),
        worker.hive_id.as_ref().map_or("", |id| id.as_str()).into(),
        host_and_port(&worker.base_url).into(),
        liveness(worker.liveness),
        worker_status(worker),
        busy.into(),
        format!("{:.1}", worker.load.tokens_per_second).into(),
        render::age(worker.last_beat_age_ms).into(),
        why(worker).into(),
    ]
}

/// The reason why it takes no request, unless that is just the status once more.
fn why(worker: &WorkerView) -> &str {
    let status = worker_status(worker);
    worker
        .reason
        .as_deref()
        .filter(|reason| *reason != status.as_str())
        .unwrap_or("")
}

fn worker_status(worker: &WorkerView) -> Text {
    let (status, tone) = match worker.status {
        WorkerStatus::Starting => ("starting", Tone::Warn),
        WorkerStatus::Ready => ("ready", Tone::Good),
        WorkerStatus::Busy => ("busy", Tone::Good),
        WorkerStatus::Draining => ("draining", Tone::Warn),
        WorkerStatus::Stopped => ("stopped", Tone::Plain),
        WorkerStatus::Failed => ("failed", Tone::Bad),
    };
    Text::toned(status, tone)
}

/// Processes that their hive sees and the queen has not heard of, because they only just start or never came so far.
fn unheard(hive: &HiveView, workers: &[WorkerView]) -> Vec<Vec<Text>> {
    let known = |process: &ProcessStats| {
        workers
            .iter()
            .any(|worker| Some(&worker.id) == process.worker_id.as_ref())
    };
    hive.workers
        .iter()
        .filter(|process| !known(process))
        .map(|process| process_row(hive, process))
        .collect()
}

fn process_row(hive: &HiveView, process: &ProcessStats) -> Vec<Text> {
    let (status, tone) = match process.state {
        ProcessState::Starting => ("starting", Tone::Warn),
        ProcessState::Running => ("running", Tone::Warn),
        ProcessState::Restarting => ("restarting", Tone::Warn),
        ProcessState::Stopping => ("stopping", Tone::Warn),
        ProcessState::Failed => ("failed", Tone::Bad),
    };
    let mut row = vec![Text::from(""); WORKERS.len()];
    row[0] = process
        .worker_id
        .as_ref()
        .map_or_else(|| format!("pid {}", process.pid), ToString::to_string)
        .into();
    row[1] = process.model.as_ref().map_or("", |model| model.as_str()).into();
    row[2] = process.device.as_deref().unwrap_or("").into();
    row[3] = hive.id.as_str().into();
    row[5] = Text::toned("unheard", tone);
    row[6] = Text::toned(status, tone);
    row[10] = match process.state {
        ProcessState::Failed => "ended too often; its hive keeps the log".into(),
        _ => "no heartbeat yet".into(),
    };
    row
}

fn liveness(liveness: Liveness) -> Text {
    match liveness {
        Liveness::Online => Text::toned("online", Tone::Good),
        Liveness::Suspect => Text::toned("suspect", Tone::Warn),
        Liveness::Lost => Text::toned("lost", Tone::Bad),
    }
}

fn host_and_port(base_url: &str) -> &str {
    base_url.strip_prefix("http://").unwrap_or(base_url)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::fleet::tests::{hive, worker};

    fn shown(hives: &[serde_json::Value], workers: &[serde_json::Value]) -> Vec<String> {
        let queen = json!({"id": "queen-1", "version": "0.1.0", "uptime_ms": 1, "degraded_view": false});
        let fleet = json!({"queen": queen, "hives": hives, "workers": workers});
        let text = page(Look::Plain, &serde_json::from_value(fleet).unwrap());
        text.lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
            .collect()
    }

    #[test]
    fn a_fleet_is_two_tables() {
        let lines = shown(&[hive("gpu-box")], &[worker("worker-1")]);
        assert_eq!(
            lines,
            [
                "HIVE LIVENESS STATUS ADDRESS DEVICES CPU RAM BEAT VERSION WHY",
                "gpu-box online ready, degraded 10.0.0.5:7835 cpu 12 % 1.5/64.0 GB now 0.1.0 the disk is nearly full",
                "",
                "WORKER MODEL DEVICE HIVE ADDRESS LIVENESS STATUS BUSY TOK/S BEAT",
                "worker-1 m cpu gpu-box 10.0.0.5:9301 online ready 1/4 +2 51.3 3 s",
            ]
        );
    }

    #[test]
    fn an_empty_fleet_says_so() {
        assert_eq!(
            shown(&[], &[]),
            ["no hives", "", "no workers; start one with `rbee spawn MODEL`"]
        );
    }

    #[test]
    fn the_reason_is_shown_where_it_says_more_than_the_status() {
        let mut lost = worker("worker-1");
        lost["liveness"] = "lost".into();
        lost["reason"] = "no heartbeat for 91.0 s".into();
        assert!(shown(&[], &[lost])[3].ends_with("lost ready 1/4 +2 51.3 3 s no heartbeat for 91.0 s"));
        let mut starting = worker("worker-1");
        starting["status"] = "starting".into();
        starting["reason"] = "starting".into();
        assert!(shown(&[], &[starting])[3].ends_with("online starting 1/4 +2 51.3 3 s"));
    }

    #[test]
    fn a_process_that_the_queen_has_not_heard_of_is_shown_too() {
        let process = |id: &str, state: &str| {
            json!({
                "pid": 7, "group": "llm-worker", "instance": "", "cpu_pct": 0.0, "rss_mb": 1, "io_r_mb_s": 0.0,
                "io_w_mb_s": 0.0, "uptime_s": 1, "model": "m", "state": state, "worker_id": id, "device": "cpu",
            })
        };
        let mut hive = hive("gpu-box");
        hive["workers"] = json!([process("worker-1", "running"), process("worker-2", "failed")]);
        let lines = shown(&[hive], &[worker("worker-1")]);
        assert_eq!(lines.len(), 6, "{lines:?}");
        assert!(
            lines[5].starts_with("worker-2 m cpu gpu-box - unheard failed"),
            "{lines:?}"
        );
    }
}
