//! `rbee why`: where a model would run now, and for each device why or why not.

use std::process::ExitCode;

use queen_rbee::supply::{LoadingView, ModelState, PlacementView, ServingView};
use scheduler::{Choice, Decision, Outcome, Problem, Verdict};

use crate::cli::{Global, WhyArgs};
use crate::fleet::Client;
use crate::render::{self, Look, Text, Tone};

const WORKERS: [&str; 5] = ["WORKER", "HIVE", "DEVICE", "STATE", "WHY"];
const DEVICES: [&str; 8] = ["HIVE", "DEVICE", "VERDICT", "NEEDS", "FREE", "OF", "FILE", "WHY"];

/// `rbee why`.
pub(crate) async fn why(global: &Global, args: &WhyArgs) -> anyhow::Result<ExitCode> {
    let queen = Client::new(global)?.queen();
    let parameters = [("model", &args.model)];
    if global.json {
        // As the queen says it, so that programs also get what this version does not know.
        let placement: serde_json::Value = queen.query("/v1/placement", &parameters).await?;
        render::json_line(&placement)?;
        return Ok(ExitCode::SUCCESS);
    }
    let placement: PlacementView = queen.query("/v1/placement", &parameters).await?;
    render::print(&page(Look::detect(), &placement))?;
    Ok(ExitCode::SUCCESS)
}

fn page(look: Look, placement: &PlacementView) -> String {
    let mut text = head(placement);
    text.push('\n');
    if !placement.workers.is_empty() {
        let rows: Vec<_> = placement.workers.iter().map(worker_row).collect();
        text.push_str(&render::table(look, &WORKERS, &rows));
        text.push('\n');
    }
    if !placement.decision.verdicts.is_empty() {
        text.push_str(&devices(look, &placement.problem, &placement.decision));
        text.push('\n');
    }
    text.push_str(&match &placement.decision.choice {
        Some(choice) => format!("One worker more would go to {}.\n", target(choice)),
        None if placement.decision.verdicts.is_empty() => {
            "The fleet has no host: start a hive with `rbee hive --queen-url URL`.\n".to_owned()
        }
        None => "No device has room for one worker more.\n".to_owned(),
    });
    if let Some(why) = &placement.estimate {
        text.push_str(&format!("What it needs is an estimate: {}.\n", render::clean(why)));
    }
    text
}

/// What the model is, and how it stands.
fn head(placement: &PlacementView) -> String {
    let alias = placement.alias.as_ref();
    let name = match alias {
        Some(alias) => format!("{} (asked for as {})", placement.model, render::clean(alias)),
        None => placement.model.to_string(),
    };
    let size = placement.size_bytes.map(render::bytes);
    let waiting = match placement.waiting {
        0 => None,
        1 => Some("1 request waits".to_owned()),
        waiting => Some(format!("{waiting} requests wait")),
    };
    let facts = [Some(state(placement.state).to_owned()), size, waiting];
    let mut text = format!(
        "{name}: {}\n",
        facts.into_iter().flatten().collect::<Vec<_>>().join(", ")
    );
    if let Some(loading) = &placement.loading {
        text.push_str(&format!("{}\n", load(loading)));
    }
    for failure in &placement.failures {
        text.push_str(&format!(
            "failed on {}: {}; tried there again in {} s\n",
            failure.hive,
            render::clean(&failure.reason),
            failure.retry_in_ms.div_ceil(1_000)
        ));
    }
    text
}

fn state(state: ModelState) -> &'static str {
    match state {
        ModelState::Ready => "ready",
        ModelState::Busy => "all its workers are busy",
        ModelState::Loading => "loading",
        ModelState::OnDisk => "on disk, not running",
        ModelState::Available => "not fetched yet",
    }
}

fn load(loading: &LoadingView) -> String {
    let hive = loading.hive.as_ref().map(|hive| hive.as_str());
    let place: Vec<_> = hive.into_iter().chain(loading.device.as_deref()).collect();
    let mut text = render::clean(&loading.words);
    if !place.is_empty() {
        text.push_str(&format!(", on {}", render::clean(&place.join(" "))));
    }
    text.push_str(&format!(", for {} s", loading.for_ms / 1_000));
    if let Some(eta) = loading.eta_ms {
        text.push_str(&format!(", some {} s to go", eta.div_ceil(1_000)));
    }
    text
}

fn worker_row(worker: &ServingView) -> Vec<Text> {
    let state = match worker.ready {
        true => Text::toned("ready", Tone::Good),
        false => Text::toned("not ready", Tone::Warn),
    };
    vec![
        worker.worker.as_str().into(),
        worker.hive.as_ref().map_or("", |hive| hive.as_str()).into(),
        worker.device.as_str().into(),
        state,
        worker.reason.as_deref().unwrap_or("").into(),
    ]
}

/// A table of what was found about each device.
pub(crate) fn devices(look: Look, problem: &Problem, decision: &Decision) -> String {
    let row = |verdict| device_row(problem, decision.choice.as_ref(), verdict);
    let rows: Vec<_> = decision.verdicts.iter().map(row).collect();
    render::table(look, &DEVICES, &rows)
}

fn device_row(problem: &Problem, choice: Option<&Choice>, verdict: &Verdict) -> Vec<Text> {
    let has_file = problem
        .hosts
        .iter()
        .any(|host| host.id == verdict.host && host.has_file);
    let (word, tone) = match &verdict.outcome {
        Outcome::Chosen => ("chosen", Tone::Good),
        Outcome::Fits => ("fits", Tone::Plain),
        Outcome::FitsAfterEviction { .. } => ("fits after eviction", Tone::Plain),
        Outcome::TooSmall { .. } => ("too small", Tone::Warn),
        Outcome::Closed { .. } => ("closed", Tone::Warn),
    };
    vec![
        verdict.host.as_str().into(),
        verdict.device.as_str().into(),
        Text::toned(word, tone),
        render::bytes(verdict.needs_bytes).into(),
        render::bytes(verdict.free_bytes).into(),
        render::bytes(verdict.total_bytes).into(),
        if has_file { "there" } else { "" }.into(),
        reason(choice, verdict).into(),
    ]
}

fn reason(choice: Option<&Choice>, verdict: &Verdict) -> String {
    let lost_by = verdict.lost_by.map(|criterion| criterion.to_string());
    let clause = match &verdict.outcome {
        Outcome::Chosen => {
            let evict = choice.map(|choice| choice.evict.as_slice()).unwrap_or_default();
            (!evict.is_empty()).then(|| format!("in the place of {}", evict.join(", ")))
        }
        Outcome::Fits => None,
        Outcome::FitsAfterEviction { evict, frees_bytes } => Some(format!(
            "in the place of {} ({})",
            evict.join(", "),
            render::bytes(*frees_bytes)
        )),
        Outcome::TooSmall {
            evictable_bytes,
            busy,
            pinned,
        } => Some(holders(*evictable_bytes, *busy, *pinned)).filter(|words| !words.is_empty()),
        Outcome::Closed { why } => Some(why.clone()),
    };
    clause.into_iter().chain(lost_by).collect::<Vec<_>>().join("; ")
}

/// Who holds the memory that is missing.
fn holders(evictable_bytes: u64, busy: usize, pinned: usize) -> String {
    let idle = (evictable_bytes > 0).then(|| format!("idle workers hold only {}", render::bytes(evictable_bytes)));
    let busy = (busy > 0).then(|| format!("{busy} busy"));
    let pinned = (pinned > 0).then(|| format!("{pinned} pinned"));
    [idle, busy, pinned]
        .into_iter()
        .flatten()
        .collect::<Vec<_>>()
        .join(", ")
}

/// The chosen place in words.
pub(crate) fn target(choice: &Choice) -> String {
    let place = format!("{} {}", render::clean(&choice.host), render::clean(&choice.device));
    let evict = match choice.evict.as_slice() {
        [] => String::new(),
        evict => format!(" in the place of {}", render::clean(&evict.join(", "))),
    };
    format!(
        "{place}{evict}, with a cache of {} tokens ({} in all)",
        choice.kv_tokens,
        render::bytes(choice.bytes)
    )
}

#[cfg(test)]
pub(crate) mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// A problem for one host with a GPU of 8 GB, of which so much is free, and a processor with 2 GB.
    pub(crate) fn problem(free_gb: u64) -> Value {
        let need = json!({
            "fixed_bytes": 4_000_000_000_u64, "kv_bytes_per_token": 100_000, "block_tokens": 32, "least_tokens": 4096,
            "wanted_tokens": 8192,
        });
        let idle = json!({
            "worker": "worker-9", "model": "other", "bytes": 6_000_000_000_u64, "idle_ms": 60_000, "pinned": false,
            "is_replica": false,
        });
        let gpu = json!({
            "id": "cuda:0", "is_gpu": true, "total_bytes": 8_000_000_000_u64,
            "free_bytes": free_gb * 1_000_000_000, "tenants": [idle],
        });
        let cpu = json!({"id": "cpu", "is_gpu": false, "total_bytes": 2_000_000_000, "free_bytes": 1_000_000_000});
        let drained = json!({
            "id": "old-box", "closed": "drained by the operator", "has_file": false, "devices": [cpu],
        });
        let host = json!({"id": "gpu-box", "has_file": true, "devices": [gpu, cpu]});
        json!({
            "model": "m", "need": {"cpu": need, "gpu": need}, "strategy": "spread", "may_evict": true,
            "hosts": [host, drained],
        })
    }

    fn placement(free_gb: u64) -> Value {
        let problem = problem(free_gb);
        let decision = scheduler::decide(&serde_json::from_value(problem.clone()).unwrap());
        json!({
            "model": "m", "state": "on_disk", "reference": "hf:a/m", "size_bytes": 3_900_000_000_u64, "workers": [],
            "waiting": 0, "problem": problem, "decision": decision,
        })
    }

    fn shown(placement: Value) -> Vec<String> {
        let text = page(Look::Plain, &serde_json::from_value(placement).unwrap());
        text.lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
            .collect()
    }

    #[test]
    fn each_device_has_its_verdict_with_figures_and_the_last_line_says_where_it_would_go() {
        assert_eq!(
            shown(placement(2)),
            [
                "m: on disk, not running, 3.9 GB",
                "",
                "HIVE DEVICE VERDICT NEEDS FREE OF FILE WHY",
                "gpu-box cuda:0 chosen 4.4 GB 2.0 GB 8.0 GB there in the place of worker-9",
                "gpu-box cpu too small 4.4 GB 1.0 GB 2.0 GB there -",
                "old-box cpu closed 4.4 GB 1.0 GB 2.0 GB - drained by the operator",
                "",
                "One worker more would go to gpu-box cuda:0 in the place of worker-9, with a cache of 8192 tokens (4.8 GB \
                 in all).",
            ]
        );
    }

    #[test]
    fn a_model_that_fits_nowhere_says_what_holds_the_room() {
        let mut nowhere = placement(2);
        nowhere["problem"]["hosts"][0]["devices"][0]["tenants"][0]["idle_ms"] = Value::Null;
        nowhere["problem"]["hosts"][0]["devices"][0]["tenants"][0]["pinned"] = true.into();
        let problem = serde_json::from_value(nowhere["problem"].clone()).unwrap();
        nowhere["decision"] = serde_json::to_value(scheduler::decide(&problem)).unwrap();
        let lines = shown(nowhere);
        assert_eq!(lines[3], "gpu-box cuda:0 too small 4.4 GB 2.0 GB 8.0 GB there 1 pinned");
        assert_eq!(lines[7], "No device has room for one worker more.");
    }

    #[test]
    fn a_load_that_is_under_way_its_failures_and_who_waits_stand_at_the_top() {
        let mut loading = placement(6);
        loading["alias"] = "gpt-4o-mini".into();
        loading["state"] = "loading".into();
        loading["waiting"] = 3.into();
        loading["estimate"] = "no hive has read its header yet".into();
        loading["loading"] = json!({
            "hive": "gpu-box", "device": "cuda:0", "words": "download 43 %", "progress": 0.43, "eta_ms": 11_200,
            "for_ms": 9_000,
        });
        loading["failures"] = json!([{"hive": "old-box", "reason": "the disk is full", "retry_in_ms": 4_100}]);
        loading["workers"] = json!([
            {"worker": "worker-1", "hive": null, "device": "cpu", "ready": false, "reason": "it loads weights"},
        ]);
        let lines = shown(loading);
        assert_eq!(
            lines[..6],
            [
                "m (asked for as gpt-4o-mini): loading, 3.9 GB, 3 requests wait",
                "download 43 %, on gpu-box cuda:0, for 9 s, some 12 s to go",
                "failed on old-box: the disk is full; tried there again in 5 s",
                "",
                "WORKER DEVICE STATE WHY",
                "worker-1 cpu not ready it loads weights",
            ]
        );
        assert_eq!(
            lines.last().unwrap(),
            "What it needs is an estimate: no hive has read its header yet."
        );
    }

    #[test]
    fn a_fleet_without_a_host_says_what_to_start() {
        let mut empty = placement(2);
        empty["problem"]["hosts"] = json!([]);
        empty["decision"] = json!({"choice": null, "verdicts": []});
        let lines = shown(empty);
        assert!(lines.last().unwrap().contains("rbee hive"), "{lines:?}");
    }
}
