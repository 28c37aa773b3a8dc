//! The fleet, as its queen tells of it, and whether this machine reaches its members, too.

use std::time::{Duration, SystemTime};

use chrono::{DateTime, Utc};
use futures_util::{StreamExt, stream};
use hive_contract::{Capabilities, DeviceKind};
use queen_rbee::fleet::{FleetView, HiveView, Liveness, QueenView, WorkerView};
use queen_rbee::supply::ServeList;
use serde_json::Value;
use shared_contract::HealthStatus;

use super::{Finding, Status};
use crate::api::{self, Api, Peer, root_cause};
use crate::cli::{BaseUrl, Global, QUEEN_PORT};
use crate::fleet::Client;
use crate::render;

const GROUP: &str = "fleet";
/// Clocks further apart than this make logs hard to read and certificates fail.
const MAX_SKEW: Duration = Duration::from_secs(5);
/// A heartbeat older than so many intervals is late, whatever their jitter.
const LATE_BEATS: u64 = 2;
/// Longest that a member may take to answer this machine.
const PATIENCE: Duration = Duration::from_secs(5);
/// Members that are called at once.
const CALLS: usize = 16;

fn found(check: impl Into<String>, status: Status, text: impl Into<String>) -> Finding {
    Finding::new(GROUP, check, status, text)
}

/// Looks at everything that a queen can tell.
pub(super) async fn examine(global: &Global) -> anyhow::Result<Vec<Finding>> {
    let client = Client::new(global)?;
    let fleet: FleetView = match client.fleet().await {
        Ok(fleet) => fleet,
        Err(error) => return Ok(vec![no_fleet(global, &error)]),
    };
    let mut findings = vec![
        of_queen(&fleet.queen),
        found("token", Status::Ok, "it opens the fleet's view"),
    ];
    findings.push(of_key(client.open_ai().get::<Value>("/v1/models").await.map(drop)));
    findings.push(of_clock(own_skew(&client).await));
    findings.push(of_versions(&fleet));
    findings.extend(of_view(&fleet.queen));
    findings.extend(fleet.hives.iter().flat_map(|hive| of_hive(hive, &fleet.queen)));
    findings.extend(fleet.workers.iter().flat_map(|worker| of_worker(worker, &fleet.queen)));
    findings.extend(of_members(&fleet));
    findings.extend(reached(&client, &fleet).await);
    findings.extend(match client.queen().get::<ServeList>("/v1/serve").await {
        Ok(list) => of_stated(&list),
        Err(error) => vec![found("models that must run", Status::Fail, error.to_string())],
    });
    Ok(findings)
}

/// Nobody at the usual place is no mistake; nobody at the one that was named is.
fn no_fleet(global: &Global, error: &api::Error) -> Finding {
    let is_named = global.queen_url != BaseUrl::local(QUEEN_PORT);
    match error {
        api::Error::Unreachable { .. } if !is_named => found("queen", Status::Skipped, error.to_string()),
        api::Error::Refused { status: 401 | 403, .. } => found("token", Status::Fail, error.to_string()),
        _ => found("queen", Status::Fail, error.to_string()),
    }
}

fn of_queen(queen: &QueenView) -> Finding {
    let text = format!(
        "{}, version {}, up for {}",
        queen.id,
        queen.version,
        render::age(queen.uptime_ms)
    );
    found("queen", Status::Ok, text)
}

fn of_key(models: Result<(), api::Error>) -> Finding {
    match models {
        Ok(()) => found("API key", Status::Ok, "the OpenAI endpoints answer"),
        Err(error) => found("API key", Status::Fail, error.to_string()),
    }
}

/// How far this machine's clock is ahead of the queen's, as far as a header of whole seconds tells.
async fn own_skew(client: &Client<'_>) -> Option<i64> {
    let before = SystemTime::now();
    let response = client.queen().open("/health").await.ok()?;
    let (date, after) = (response.headers().get("date")?.to_str().ok()?, SystemTime::now());
    let queen = DateTime::parse_from_rfc2822(date).ok()?.with_timezone(&Utc);
    let midway = before + after.duration_since(before).ok()? / 2;
    // The header is cut to the second: half of one is the likeliest rest.
    Some((DateTime::<Utc>::from(midway) - queen).num_milliseconds() - 500)
}

fn is_far(skew_ms: i64) -> bool {
    u128::from(skew_ms.unsigned_abs()) > MAX_SKEW.as_millis()
}

/// A difference of clocks in words.
fn apart(skew_ms: i64) -> String {
    let direction = if skew_ms < 0 { "behind" } else { "ahead of" };
    format!("{:.1} s {direction} the queen's", skew_ms.unsigned_abs() as f64 / 1e3)
}

fn of_clock(skew_ms: Option<i64>) -> Finding {
    const CHECK: &str = "this machine's clock";
    match skew_ms {
        None => found(CHECK, Status::Skipped, "the queen's answer has no date"),
        Some(skew) if is_far(skew) => found(CHECK, Status::Warn, apart(skew)).next("let NTP set both"),
        Some(_) => found(
            CHECK,
            Status::Ok,
            format!("within {} s of the queen's", MAX_SKEW.as_secs()),
        ),
    }
}

fn of_versions(fleet: &FleetView) -> Finding {
    let ours = env!("CARGO_PKG_VERSION");
    let queen = fleet.queen.version.as_str();
    let hives = fleet.hives.iter().map(|hive| (hive.id.as_str(), hive.version.as_str()));
    // Another server's version is its own matter.
    let workers = fleet
        .workers
        .iter()
        .filter(|worker| worker.implementation == "llm-worker-rbee");
    let workers = workers.map(|worker| (worker.id.as_str(), worker.version.as_str()));
    let members = [("this command", ours)].into_iter().chain(hives).chain(workers);
    let others: Vec<String> = members
        .filter(|(_, version)| *version != queen)
        .map(|(id, version)| format!("{id} {version}"))
        .collect();
    match others.as_slice() {
        [] => found("versions", Status::Ok, format!("all {queen}")),
        others => found(
            "versions",
            Status::Warn,
            format!("the queen is {queen}; {}", others.join(", ")),
        )
        .next("install the same one everywhere"),
    }
}

fn of_view(queen: &QueenView) -> Option<Finding> {
    let reason = queen.degraded_reason.as_deref().unwrap_or("many fell silent at once");
    queen.degraded_view.then(|| {
        found("queen's view", Status::Warn, format!("she doubts it: {reason}"))
            .next("look at her network; nobody is forgotten meanwhile")
    })
}

/// What every member has, hive or worker.
struct Member<'a> {
    name: String,
    base_url: &'a str,
    liveness: Liveness,
    reason: Option<&'a str>,
    skew_ms: i64,
    age_ms: u64,
    missed: u64,
    beats: u64,
    rival: Option<&'a str>,
}

impl<'a> Member<'a> {
    fn hive(hive: &'a HiveView) -> Self {
        Self {
            name: format!("hive {}", hive.id),
            base_url: &hive.base_url,
            liveness: hive.liveness,
            reason: hive.reason.as_deref(),
            skew_ms: hive.clock_skew_ms,
            age_ms: hive.last_beat_age_ms,
            missed: hive.missed_beats,
            beats: hive.beats,
            rival: hive.conflict.as_ref().map(|conflict| conflict.base_url.as_str()),
        }
    }

    fn worker(worker: &'a WorkerView) -> Self {
        Self {
            name: worker.id.to_string(),
            base_url: &worker.base_url,
            liveness: worker.liveness,
            reason: worker.reason.as_deref(),
            skew_ms: worker.clock_skew_ms,
            age_ms: worker.last_beat_age_ms,
            missed: worker.missed_beats,
            beats: worker.beats,
            rival: worker.conflict.as_ref().map(|conflict| conflict.base_url.as_str()),
        }
    }

    /// What is wrong between the queen and it; nothing where all is well.
    fn findings(&self, queen: &QueenView) -> Vec<Finding> {
        let mut findings = Vec::new();
        let mut add = |status, text: String, next: &str| {
            findings.push(found(self.name.as_str(), status, text).next(next));
        };
        let reason = self.reason.unwrap_or("no reason is known");
        match self.liveness {
            Liveness::Online => {}
            Liveness::Suspect => add(Status::Warn, format!("suspect: {reason}"), "see its log"),
            Liveness::Unreachable => add(
                Status::Fail,
                format!("the queen cannot reach it at {}: {reason}", self.base_url),
                "open that port, or set --advertise-host to what the queen can reach",
            ),
            Liveness::Lost => add(
                Status::Fail,
                format!("lost: {reason}"),
                "is its machine on, and does it reach the queen?",
            ),
        }
        let is_late = queen.interval_ms > 0 && self.age_ms > LATE_BEATS * queen.interval_ms;
        if is_late && self.liveness == Liveness::Online {
            let text = format!("its last heartbeat came {} ago", render::age(self.age_ms));
            add(Status::Warn, text, "does it still reach the queen? See its log");
        }
        if self.missed > 0 && self.liveness != Liveness::Lost {
            let text = format!(
                "{} of {} heartbeats did not come",
                self.missed,
                self.missed + self.beats
            );
            add(Status::Warn, text, "look at the network between it and the queen");
        }
        if is_far(self.skew_ms) {
            add(
                Status::Warn,
                format!("its clock is {}", apart(self.skew_ms)),
                "let NTP set it",
            );
        }
        if let Some(rival) = self.rival {
            let text = format!("{} and {rival} both use this name", self.base_url);
            add(Status::Fail, text, "give one of them another id");
        }
        findings
    }
}

fn of_hive(hive: &HiveView, queen: &QueenView) -> Vec<Finding> {
    let member = Member::hive(hive);
    let mut findings = member.findings(queen);
    let mut add = |status, text: String| findings.push(found(member.name.as_str(), status, text));
    let health = hive.health_reason.as_deref().unwrap_or("no reason is known");
    match hive.health_status {
        HealthStatus::Healthy => {}
        HealthStatus::Degraded => add(Status::Warn, format!("degraded: {health}")),
        HealthStatus::Unhealthy => add(Status::Fail, format!("unhealthy: {health}")),
    }
    if hive.drained {
        let undo = format!("`rbee drain {} --undo` lets it work again", hive.id);
        findings.push(found(member.name.as_str(), Status::Warn, "drained: it gets no new workers").next(undo));
    }
    if let Some(capabilities) = &hive.capabilities {
        findings.extend(of_capabilities(hive.id.as_str(), &member.name, capabilities));
    }
    findings
}

fn of_capabilities(id: &str, name: &str, capabilities: &Capabilities) -> Vec<Finding> {
    let damaged = capabilities.models.iter().filter_map(|model| {
        let problem = model.problem.as_deref()?;
        let next = format!("`rbee rm {} --hive {id}`, then pull it again", model.id);
        Some(found(name, Status::Fail, format!("{}: {problem}", model.id)).next(next))
    });
    let gpus = capabilities
        .devices
        .iter()
        .filter(|device| device.kind != DeviceKind::Cpu);
    let unused = gpus.filter(|gpu| {
        let built = |kind| capabilities.engines.iter().any(|engine| engine.kinds.contains(&kind));
        !capabilities.engines.is_empty() && !built(gpu.kind)
    });
    let unused = unused.map(|gpu| {
        let text = format!(
            "{} ({}) is not used: its worker program is not built for {}",
            gpu.id, gpu.name, gpu.kind
        );
        found(name, Status::Warn, text).next("set --worker-command to one that is")
    });
    damaged.chain(unused).collect()
}

fn of_worker(worker: &WorkerView, queen: &QueenView) -> Vec<Finding> {
    Member::worker(worker).findings(queen)
}

/// How many there are, and how many of them are well.
fn of_members(fleet: &FleetView) -> Vec<Finding> {
    let online = |liveness: &mut dyn Iterator<Item = Liveness>| liveness.filter(|it| *it == Liveness::Online).count();
    let hives = online(&mut fleet.hives.iter().map(|hive| hive.liveness));
    let workers = online(&mut fleet.workers.iter().map(|worker| worker.liveness));
    let line = |check: &str, online: usize, all: usize, next: &str| match all {
        0 => found(check, Status::Warn, "none").next(next),
        all if online == 0 => found(check, Status::Fail, format!("none of {all} is online")),
        all => found(check, Status::Ok, format!("{online} of {all} online")),
    };
    vec![
        line("hives", hives, fleet.hives.len(), "`rbee join` on a host makes one"),
        line("workers", workers, fleet.workers.len(), "`rbee spawn MODEL` starts one"),
    ]
}

/// Calls each member from here, as a host does that fetches a model's files from another one.
async fn reached(client: &Client<'_>, fleet: &FleetView) -> Vec<Finding> {
    let is_there = |liveness| matches!(liveness, Liveness::Online | Liveness::Suspect);
    let hives = fleet.hives.iter().filter(|hive| is_there(hive.liveness));
    let hives = hives.map(|hive| {
        (
            format!("hive {}", hive.id),
            client.member(Peer::Hive, hive.id.as_str(), &hive.base_url),
        )
    });
    let workers = fleet.workers.iter().filter(|worker| is_there(worker.liveness));
    let workers = workers.map(|worker| {
        (
            worker.id.to_string(),
            client.member(Peer::Worker, worker.id.as_str(), &worker.base_url),
        )
    });
    let members: Vec<_> = hives.chain(workers).collect();
    let calls = stream::iter(members).map(|(name, api)| async move {
        let failure = match api {
            Ok(api) => call(&api).await.err(),
            Err(error) => Some(format!("{error:#}")),
        };
        (name, failure)
    });
    let answers: Vec<(String, Option<String>)> = calls.buffered(CALLS).collect().await;
    of_reached(&answers)
}

async fn call(api: &Api) -> Result<(), String> {
    let call = tokio::time::timeout(PATIENCE, api.get::<Value>("/health")).await;
    let answer = call.map_err(|_| format!("no answer within {} s", PATIENCE.as_secs()))?;
    match answer {
        Ok(_) => Ok(()),
        Err(error) => Err(root_cause(&error)),
    }
}

fn of_reached(answers: &[(String, Option<String>)]) -> Vec<Finding> {
    const CHECK: &str = "members from here";
    let failed: Vec<Finding> = answers
        .iter()
        .filter_map(|(name, failure)| Some((name, failure.as_ref()?)))
        .map(|(name, failure)| {
            found(CHECK, Status::Warn, format!("{name}: {failure}"))
                .next("commands and clients need only the queen; let hosts of the fleet reach each other")
        })
        .collect();
    match (answers.len(), failed.len()) {
        (0, _) => vec![found(CHECK, Status::Skipped, "nobody is there")],
        (all, 0) => vec![found(CHECK, Status::Ok, format!("all {all} answer this machine, too"))],
        _ => failed,
    }
}

fn of_stated(list: &ServeList) -> Vec<Finding> {
    const CHECK: &str = "models that must run";
    if list.models.is_empty() {
        return vec![found(CHECK, Status::Ok, "none is stated")];
    }
    let stated = list.models.iter().map(|model| {
        let text = format!("{}: {} of {}", model.model, model.running, model.replicas);
        let reason = model.reason.as_deref().unwrap_or("no reason is known");
        match (model.is_met, model.starting) {
            (true, _) => found(CHECK, Status::Ok, text),
            (false, 0) => found(CHECK, Status::Fail, format!("{text}; {reason}"))
                .next(format!("`rbee why {}` shows each device", model.model)),
            (false, starting) => found(CHECK, Status::Warn, format!("{text}, {starting} starting")),
        }
    });
    stated.collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::fleet::tests::{hive, worker};

    fn queen() -> QueenView {
        serde_json::from_value(json!({
            "id": "queen-1", "version": env!("CARGO_PKG_VERSION"), "uptime_ms": 1, "degraded_view": false,
            "interval_ms": 30_000, "ttl_ms": 90_000,
        }))
        .unwrap()
    }

    /// What is found of a worker with this difference.
    fn of_changed_worker(field: &str, value: Value) -> Vec<(Status, String)> {
        let mut changed = worker("worker-1");
        changed[field] = value;
        told(of_worker(&serde_json::from_value(changed).unwrap(), &queen()))
    }

    fn of_changed_hive(change: impl Fn(&mut Value)) -> Vec<(Status, String)> {
        let mut changed = hive("gpu-box");
        changed["health_status"] = "healthy".into();
        change(&mut changed);
        told(of_hive(&serde_json::from_value(changed).unwrap(), &queen()))
    }

    fn told(findings: Vec<Finding>) -> Vec<(Status, String)> {
        let told = findings.into_iter().map(|finding| {
            let next = finding.next.unwrap_or_default();
            (finding.status, format!("{}: {next}", finding.found))
        });
        told.collect()
    }

    #[test]
    fn of_a_member_that_is_well_there_is_nothing_to_say() {
        assert_eq!(of_changed_worker("leases", 0.into()), []);
        assert_eq!(of_changed_hive(|_| ()), []);
    }

    #[test]
    fn each_trouble_between_a_member_and_its_queen_is_told_once_with_the_remedy() {
        let conflict = json!({"base_url": "http://10.0.0.6:1", "incarnation": 2, "last_beat_age_ms": 4, "beats": 3});
        for (field, value, status, words) in [
            ("liveness", json!("suspect"), Status::Warn, "suspect"),
            (
                "liveness",
                json!("unreachable"),
                Status::Fail,
                "the queen cannot reach it at http://10.0.0.5:9301",
            ),
            ("liveness", json!("lost"), Status::Fail, "lost"),
            ("missed_beats", json!(3), Status::Warn, "3 of 3 heartbeats did not come"),
            (
                "last_beat_age_ms",
                json!(61_000),
                Status::Warn,
                "its last heartbeat came 61 s ago",
            ),
            (
                "clock_skew_ms",
                json!(-7_000),
                Status::Warn,
                "its clock is 7.0 s behind the queen's",
            ),
            (
                "conflict",
                conflict,
                Status::Fail,
                "http://10.0.0.6:1 both use this name",
            ),
        ] {
            let findings = of_changed_worker(field, value);
            let [(found, text)] = findings.as_slice() else {
                panic!("{field}: {findings:?}")
            };
            assert_eq!(*found, status, "{field}");
            assert!(text.contains(words) && !text.ends_with(": "), "{field}: {text}");
        }
    }

    #[test]
    fn a_hive_tells_of_its_host_its_files_and_its_gpus() {
        let one = |change: fn(&mut Value)| {
            let findings = of_changed_hive(change);
            assert_eq!(findings.len(), 1, "{findings:?}");
            findings.into_iter().next().unwrap()
        };
        assert_eq!(one(|hive| hive["health_status"] = "degraded".into()).0, Status::Warn);
        assert_eq!(one(|hive| hive["health_status"] = "unhealthy".into()).0, Status::Fail);
        let (status, text) = one(|hive| hive["drained"] = true.into());
        assert!(
            status == Status::Warn && text.contains("rbee drain gpu-box --undo"),
            "{text}"
        );
        let (status, text) = one(|hive| {
            hive["capabilities"]["models"] =
                json!([{"id": "m", "reference": "m", "size_bytes": 1, "problem": "damaged"}]);
        });
        assert!(
            status == Status::Fail && text.contains("rbee rm m --hive gpu-box"),
            "{text}"
        );
        let (status, text) = one(|hive| {
            hive["capabilities"] = json!({
                "devices": [{"id": "cuda:0", "kind": "cuda", "name": "RTX", "memory_total_mb": 1}],
                "engines": [{"implementation": "w", "version": "0.1.0", "kinds": ["cpu"]}],
            });
        });
        assert!(
            status == Status::Warn && text.contains("cuda:0 (RTX) is not used"),
            "{text}"
        );
    }

    fn view(hives: &[Value], workers: &[Value]) -> FleetView {
        let queen = serde_json::to_value(queen()).unwrap();
        serde_json::from_value(json!({"queen": queen, "hives": hives, "workers": workers})).unwrap()
    }

    #[test]
    fn other_versions_are_named_but_not_those_of_other_peoples_servers() {
        let same = view(&[hive("h")], &[worker("w")]);
        assert_eq!(of_versions(&same).status, Status::Ok);
        let (mut old, mut foreign) = (hive("old"), worker("foreign"));
        old["version"] = "0.0.9".into();
        foreign["version"] = "1.0".into();
        foreign["implementation"] = "llama.cpp".into();
        let finding = of_versions(&view(&[old], &[foreign]));
        assert_eq!(finding.status, Status::Warn);
        assert!(
            finding.found.contains("old 0.0.9") && !finding.found.contains("foreign"),
            "{}",
            finding.found
        );
    }

    #[test]
    fn members_are_counted_and_none_at_all_is_told() {
        let statuses = |fleet: &FleetView| of_members(fleet).iter().map(|line| line.status).collect::<Vec<_>>();
        assert_eq!(statuses(&view(&[hive("h")], &[worker("w")])), [Status::Ok, Status::Ok]);
        assert_eq!(statuses(&view(&[], &[])), [Status::Warn, Status::Warn]);
        let mut lost = worker("w");
        lost["liveness"] = "lost".into();
        assert_eq!(statuses(&view(&[hive("h")], &[lost])), [Status::Ok, Status::Fail]);
    }

    #[test]
    fn a_doubtful_view_a_clock_and_unmet_replicas_are_told() {
        assert_eq!(of_view(&queen()), None);
        let mut doubtful = queen();
        doubtful.degraded_view = true;
        assert_eq!(of_view(&doubtful).unwrap().status, Status::Warn);
        assert_eq!(of_clock(Some(-4_999)).status, Status::Ok);
        assert_eq!(of_clock(Some(-5_001)).status, Status::Warn);
        assert_eq!(of_clock(None).status, Status::Skipped);
        let stated = |running: u32, starting: u32| {
            let list = json!({"models": [{
                "model": "m", "reference": "m", "replicas": 2, "pin": false, "running": running, "starting": starting,
                "is_met": running >= 2, "reason": null,
            }]});
            of_stated(&serde_json::from_value(list).unwrap())[0].status
        };
        assert_eq!(
            [stated(2, 0), stated(1, 1), stated(1, 0)],
            [Status::Ok, Status::Warn, Status::Fail]
        );
    }

    #[test]
    fn whom_this_machine_cannot_reach_is_named() {
        let answer = |name: &str, failure: Option<&str>| (name.to_owned(), failure.map(str::to_owned));
        assert_eq!(of_reached(&[])[0].status, Status::Skipped);
        assert_eq!(of_reached(&[answer("a", None)])[0].status, Status::Ok);
        let findings = of_reached(&[answer("a", None), answer("b", Some("refused"))]);
        assert_eq!(findings.len(), 1);
        assert!(findings[0].status == Status::Warn && findings[0].found.contains("b: refused"));
    }

    #[tokio::test]
    async fn a_token_that_does_not_open_is_a_failure_and_a_missing_queen_only_where_one_was_named() {
        use axum::routing::get;
        use clap::Parser;
        let global = |url: &str| crate::cli::Cli::parse_from(["rbee", "--queen-url", url, "ps"]).global;
        let refusal =
            async || daemon::ApiError::new(shared_contract::ErrorKind::Unauthorized, "this endpoint needs a token");
        let locked = api::tests::serve(axum::Router::new().route("/v1/fleet", get(refusal))).await;
        let findings = examine(&global(locked.as_str())).await.unwrap();
        assert_eq!(
            (findings[0].check.as_str(), findings[0].status),
            ("token", Status::Fail)
        );
        let nobody = api::Error::Unreachable {
            peer: Peer::Queen,
            url: String::new(),
            reason: String::new(),
        };
        let status = |url: &str| no_fleet(&global(url), &nobody).status;
        assert_eq!(status("http://127.0.0.1:7833"), Status::Skipped);
        assert_eq!(status("http://control:7833"), Status::Fail);
    }
}
