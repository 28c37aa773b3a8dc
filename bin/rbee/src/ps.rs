//! `rbee ps`: who is there, and how it does.

use std::process::ExitCode;

use hive_contract::{ProcessState, ProcessStats};
use queen_rbee::fleet::{ConflictView, FleetView, GoneView, HiveView, LeaveReason, Liveness, WorkerView};
use shared_contract::{HealthStatus, OperationalStatus};
use worker_contract::WorkerStatus;

use crate::cli::{BaseUrl, Global};
use crate::fleet::Client;
use crate::render::{self, Look, Text, Tone};

const HIVES: [&str; 11] = [
    "HIVE", "LIVENESS", "STATUS", "ADDRESS", "DEVICES", "CPU", "RAM", "BEAT", "MISSED", "VERSION", "WHY",
];
const WORKERS: [&str; 13] = [
    "WORKER", "MODEL", "DEVICE", "HIVE", "ADDRESS", "LIVENESS", "STATUS", "BUSY", "TOK/S", "MEMORY", "BEAT", "MISSED",
    "WHY",
];
/// What a narrow terminal goes without, one after another.
const SPARE_OF_HIVES: [&str; 3] = ["VERSION", "CPU", "RAM"];
const SPARE_OF_WORKERS: [&str; 5] = ["ADDRESS", "MEMORY", "BEAT", "MISSED", "HIVE"];
const GONE: [&str; 4] = ["GONE", "KIND", "AGO", "WHY"];

/// How long somebody who left is shown.
const SHOWN_GONE_MS: u64 = 10 * 60 * 1_000;
/// Of those who left, so many are shown.
const SHOWN_GONE: usize = 10;

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
    render::print(&page(Look::detect(), &fleet, &global.queen_url))?;
    Ok(ExitCode::SUCCESS)
}

fn page(look: Look, fleet: &FleetView, queen: &BaseUrl) -> String {
    let mut text = String::new();
    if fleet.queen.degraded_view {
        text.push_str(&format!("{}\n\n", doubt(fleet.queen.degraded_reason.as_deref())));
    }
    if fleet.hives.is_empty() {
        let next = format!("no hives: `rbee join {queen}` makes this machine one; alone, `rbee up` does all");
        text.push_str(&render::wrapped(look, &next));
        text.push('\n');
    } else {
        let rows: Vec<_> = fleet.hives.iter().map(hive_row).collect();
        text.push_str(&render::table_sparing(look, &HIVES, &rows, &SPARE_OF_HIVES));
    }
    text.push('\n');
    let silent = fleet.hives.iter().flat_map(|hive| unheard(hive, &fleet.workers));
    let rows: Vec<_> = fleet.workers.iter().map(worker_row).chain(silent).collect();
    match rows.as_slice() {
        [] if fleet.hives.is_empty() => text.push_str("no workers\n"),
        [] => text.push_str("no workers: a request for a model starts one, or `rbee spawn MODEL`\n"),
        rows => text.push_str(&render::table_sparing(look, &WORKERS, rows, &SPARE_OF_WORKERS)),
    }
    let gone = fleet.gone.iter().filter(|gone| gone.ms_ago <= SHOWN_GONE_MS);
    let rows: Vec<_> = gone.take(SHOWN_GONE).map(gone_row).collect();
    if !rows.is_empty() {
        text.push('\n');
        text.push_str(&render::table(look, &GONE, &rows));
    }
    text
}

/// The queen's word that she may see wrongly.
fn doubt(reason: Option<&str>) -> String {
    let reason = reason.map(render::clean);
    format!(
        "The queen doubts what she sees and forgets nobody: {}.",
        reason.as_deref().unwrap_or("many fell silent at once")
    )
}

fn gone_row(gone: &GoneView) -> Vec<Text> {
    let why = match gone.reason {
        LeaveReason::Goodbye => "said goodbye".into(),
        LeaveReason::Lost => Text::toned("lost for too long", Tone::Warn),
        LeaveReason::Ended => Text::toned("its process ended", Tone::Warn),
    };
    vec![
        gone.id.as_str().into(),
        gone.kind.as_str().into(),
        render::age(gone.ms_ago).into(),
        why,
    ]
}

fn hive_row(hive: &HiveView) -> Vec<Text> {
    let devices = hive.capabilities.iter().flat_map(|capabilities| &capabilities.devices);
    let devices: Vec<_> = devices.map(|device| device.id.as_str()).collect();
    let monitor = &hive.monitor;
    let ram = match monitor.ram_total_mb {
        0 => String::new(),
        total => format!("{:.1}/{:.1} GB", monitor.ram_used_mb as f64 / 1e3, total as f64 / 1e3),
    };
    let conflict = hive.conflict.as_ref().map(rival);
    // Of one that is ready, the queen has nothing to say but that.
    let reason = hive.reason.as_deref().filter(|_| conflict.is_none() || !hive.ready);
    let health = hive.health_reason.as_deref();
    // The queen's own reason may quote it.
    let health = health.filter(|health| reason.is_none_or(|reason| !reason.contains(health)));
    let why = [reason, health, conflict.as_deref()];
    vec![
        hive.id.as_str().into(),
        liveness(hive.liveness),
        hive_status(hive),
        host_and_port(&hive.base_url).into(),
        devices.join(", ").into(),
        format!("{:.0} %", monitor.cpu_usage_percent).into(),
        ram.into(),
        render::age(hive.last_beat_age_ms).into(),
        missed(hive.missed_beats),
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
        worker.process.as_ref().map(memory).unwrap_or_default().into(),
        render::age(worker.last_beat_age_ms).into(),
        missed(worker.missed_beats),
        why(worker).into(),
    ]
}

/// The reason why it takes no request, unless that is just the status once more, and who else uses its name.
fn why(worker: &WorkerView) -> String {
    let status = worker_status(worker);
    let conflict = worker.conflict.as_ref().map(rival);
    let reason = worker
        .reason
        .as_deref()
        // Of one that is ready, the queen has nothing to say but that.
        .filter(|_| conflict.is_none() || !worker.ready)
        .filter(|reason| *reason != status.as_str());
    let why = [reason, conflict.as_deref()];
    why.into_iter().flatten().collect::<Vec<_>>().join("; ")
}

/// Somebody else with a member's name; the member's own address stands in its row.
fn rival(conflict: &ConflictView) -> String {
    format!(
        "conflict: {} uses this id too and is not listened to (last beat: {}); give one of them another id",
        host_and_port(&conflict.base_url),
        render::age(conflict.last_beat_age_ms)
    )
}

/// Heartbeats that did not come; most members have missed none, and the column goes.
fn missed(beats: u64) -> Text {
    match beats {
        0 => "".into(),
        beats => Text::toned(beats.to_string(), Tone::Warn),
    }
}

/// What a process holds in main memory, and on its device; empty while it is not measured.
fn memory(process: &ProcessStats) -> String {
    let gb = |mb: u64| format!("{:.1} GB", mb as f64 / 1e3);
    let main = Some(process.rss_mb).filter(|mb| *mb > 0).map(gb);
    let device = process.vram_mb.map(|mb| format!("{} VRAM", gb(mb)));
    main.into_iter().chain(device).collect::<Vec<_>>().join(" + ")
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
    row[9] = memory(process).into();
    row[12] = match process.state {
        ProcessState::Failed => "ended too often; its hive keeps the log".into(),
        _ => "no heartbeat yet".into(),
    };
    row
}

fn liveness(liveness: Liveness) -> Text {
    match liveness {
        Liveness::Online => Text::toned("online", Tone::Good),
        Liveness::Suspect => Text::toned("suspect", Tone::Warn),
        Liveness::Unreachable => Text::toned("unreachable", Tone::Bad),
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
        lines(json!({"queen": queen, "hives": hives, "workers": workers}))
    }

    fn lines(fleet: serde_json::Value) -> Vec<String> {
        let queen = "http://q:7833".parse().unwrap();
        let text = page(Look::Plain, &serde_json::from_value(fleet).unwrap(), &queen);
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
    fn an_empty_fleet_says_what_to_do_next() {
        let lines = shown(&[], &[]);
        assert!(
            lines[0].contains("`rbee join http://q:7833`") && lines[0].contains("`rbee up`"),
            "{lines:?}"
        );
        assert_eq!(lines[2], "no workers");
        let lines = shown(&[hive("gpu-box")], &[]);
        assert!(lines[3].contains("`rbee spawn MODEL`"), "{lines:?}");
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
    fn a_member_that_the_queen_cannot_call_is_unreachable_and_says_why() {
        let reason = "cannot be reached from the queen at http://10.0.0.5:7835: connection refused";
        let (mut hive, mut worker) = (hive("gpu-box"), worker("worker-1"));
        for member in [&mut hive, &mut worker] {
            member["liveness"] = "unreachable".into();
            member["reason"] = reason.into();
            member["ready"] = false.into();
        }
        let lines = shown(&[hive], &[worker]);
        assert!(lines[1].starts_with("gpu-box unreachable "), "{lines:?}");
        assert!(
            lines[1].ends_with(&format!("{reason}; the disk is nearly full")),
            "{lines:?}"
        );
        assert!(
            lines[4].contains(" unreachable ") && lines[4].ends_with(reason),
            "{lines:?}"
        );
    }

    #[test]
    fn heartbeats_that_did_not_come_are_counted_where_there_are_any() {
        let mut flaky = worker("worker-2");
        flaky["missed_beats"] = 17.into();
        let lines = shown(&[], &[worker("worker-1"), flaky]);
        assert!(lines[2].ends_with("TOK/S BEAT MISSED"), "{lines:?}");
        assert!(lines[3].ends_with("51.3 3 s -"), "{lines:?}");
        assert!(lines[4].ends_with("51.3 3 s 17"), "{lines:?}");
    }

    #[test]
    fn a_conflict_is_shown_with_both_addresses_also_where_something_else_is_wrong() {
        let conflict = json!({
            "base_url": "http://10.0.0.6:9301", "incarnation": 2, "last_beat_age_ms": 4_000, "beats": 3,
        });
        let mut contended = worker("worker-1");
        contended["conflict"] = conflict.clone();
        contended["reason"] = "two live processes use the id".into();
        let ours = "conflict: 10.0.0.6:9301 uses this id too and is not listened to (last beat: 4 s); \
                    give one of them another id";
        let row = &shown(&[], &[contended.clone()])[3];
        assert!(
            row.contains("10.0.0.5:9301") && row.ends_with(&format!("51.3 3 s {ours}")),
            "{row}"
        );
        contended["ready"] = false.into();
        contended["reason"] = "all 4 slots are taken".into();
        let row = &shown(&[], &[contended])[3];
        assert!(row.ends_with(&format!("all 4 slots are taken; {ours}")), "{row}");
        let mut hive = hive("gpu-box");
        hive["conflict"] = conflict;
        let row = &shown(&[hive], &[])[1];
        assert!(row.ends_with(&format!("the disk is nearly full; {ours}")), "{row}");
    }

    #[test]
    fn a_worker_is_shown_with_the_memory_that_its_hive_measured() {
        let process = |vram: Option<u64>| {
            json!({
                "pid": 1, "group": "llm-worker", "instance": "9301", "cpu_pct": 0.0, "rss_mb": 1_240, "io_r_mb_s": 0.0,
                "io_w_mb_s": 0.0, "uptime_s": 1, "model": "m", "state": "running", "worker_id": "worker-1",
                "device": "cpu", "vram_mb": vram,
            })
        };
        let row = |vram| {
            let mut measured = worker("worker-1");
            measured["process"] = process(vram);
            shown(&[], &[measured]).remove(3)
        };
        assert!(row(None).ends_with("51.3 1.2 GB 3 s"), "{}", row(None));
        assert!(
            row(Some(20_100)).ends_with("1.2 GB + 20.1 GB VRAM 3 s"),
            "{}",
            row(Some(20_100))
        );
    }

    #[test]
    fn a_queen_who_doubts_her_view_says_so_first_and_why() {
        let page = |reason: Option<&str>| {
            let queen = json!({
                "id": "queen-1", "version": "0.1.0", "uptime_ms": 1, "degraded_view": true, "degraded_reason": reason,
            });
            lines(json!({"queen": queen, "hives": [], "workers": []}))
        };
        assert_eq!(
            page(Some("3 of 4 workers fell silent together 12 s ago"))[..2],
            [
                "The queen doubts what she sees and forgets nobody: 3 of 4 workers fell silent together 12 s ago.",
                ""
            ]
        );
        assert!(page(None)[0].ends_with("many fell silent at once."));
    }

    #[test]
    fn who_left_in_the_last_minutes_is_listed_below() {
        let gone = |kind: &str, id: &str, reason: &str, ms: u64| json!({"kind": kind, "id": id, "reason": reason, "ms_ago": ms});
        let queen = json!({"id": "queen-1", "version": "0.1.0", "uptime_ms": 1, "degraded_view": false});
        let lines = lines(json!({
            "queen": queen, "hives": [], "workers": [],
            "gone": [
                gone("worker", "worker-1", "ended", 3_000),
                gone("hive", "gpu-box", "goodbye", 500_000),
                gone("worker", "worker-2", "lost", 900_000),
            ],
        }));
        assert_eq!(
            lines[3..],
            [
                "",
                "GONE KIND AGO WHY",
                "worker-1 worker 3 s its process ended",
                "gpu-box hive 8 min said goodbye"
            ]
        );
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
