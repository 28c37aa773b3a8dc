//! `rbee decisions`: where models went lately and why, and the same decided once more from the record.

use std::process::ExitCode;

use anyhow::bail;
use chrono::{DateTime, Utc};
use queen_rbee::supply::{DecisionList, DecisionOutcome, DecisionView, Trigger};
use scheduler::Decision;

use crate::api::Api;
use crate::cli::{DecisionsArgs, Global};
use crate::fleet::Client;
use crate::render::{self, Look, Text, Tone};
use crate::{FAILED, why};

const HEADER: [&str; 7] = ["ID", "AGO", "MODEL", "WANTED FOR", "GOES TO", "IN PLACE OF", "OUTCOME"];
/// As many as a queen keeps.
const ALL: u32 = 1_000;

/// `rbee decisions`.
pub(crate) async fn decisions(global: &Global, args: &DecisionsArgs) -> anyhow::Result<ExitCode> {
    let queen = Client::new(global)?.queen();
    if let Some(id) = args.replay {
        return replay(global, &queen, id).await;
    }
    if global.json {
        // As the queen says it, so that programs also get what this version does not know.
        let list: serde_json::Value = list(&queen, args.limit).await?;
        render::json_line(&list)?;
        return Ok(ExitCode::SUCCESS);
    }
    let list: DecisionList = list(&queen, args.limit).await?;
    render::print(&page(Look::detect(), &list, Utc::now()))?;
    Ok(ExitCode::SUCCESS)
}

async fn list<T: serde::de::DeserializeOwned>(queen: &Api, limit: u32) -> Result<T, crate::api::Error> {
    queen.query("/v1/decisions", &[("limit", limit)]).await
}

/// Decides once more from what was known, and says whether it comes to the same.
async fn replay(global: &Global, queen: &Api, id: u64) -> anyhow::Result<ExitCode> {
    let list: DecisionList = list(queen, ALL).await?;
    let Some(record) = list.decisions.iter().find(|decision| decision.id == id) else {
        match (list.decisions.last(), list.decisions.first()) {
            (Some(oldest), Some(newest)) => {
                bail!(
                    "the queen keeps no decision {id}: she has {} to {}",
                    oldest.id,
                    newest.id
                )
            }
            _ => bail!("the queen has made no decision yet"),
        }
    };
    let again = scheduler::decide(&record.problem);
    let is_same = again == record.decision;
    if global.json {
        render::json_line(&serde_json::json!({
            "id": id, "same": is_same, "problem": record.problem, "recorded": record.decision, "replayed": again,
        }))?;
    } else {
        render::print(&replayed(Look::detect(), record, &again))?;
    }
    Ok(ExitCode::from(if is_same { 0 } else { FAILED }))
}

fn page(look: Look, list: &DecisionList, now: DateTime<Utc>) -> String {
    if list.decisions.is_empty() {
        return "no decisions yet\n".to_owned();
    }
    let rows: Vec<_> = list.decisions.iter().map(|decision| row(decision, now)).collect();
    render::table(look, &HEADER, &rows)
}

fn row(record: &DecisionView, now: DateTime<Utc>) -> Vec<Text> {
    let choice = record.decision.choice.as_ref();
    vec![
        record.id.to_string().into(),
        ago(record, now).into(),
        record.problem.model.as_str().into(),
        trigger(&record.trigger).into(),
        choice
            .map(|choice| format!("{} {}", choice.host, choice.device))
            .unwrap_or_default()
            .into(),
        choice.map(|choice| choice.evict.join(", ")).unwrap_or_default().into(),
        outcome(record),
    ]
}

/// By the clock of this machine, which may differ from the queen's: never in the future.
fn ago(record: &DecisionView, now: DateTime<Utc>) -> String {
    let ms = now.signed_duration_since(record.timestamp).num_milliseconds();
    render::age(u64::try_from(ms).unwrap_or(0))
}

fn trigger(trigger: &Trigger) -> String {
    match trigger {
        Trigger::Demand { waiting: 1 } => "1 request".to_owned(),
        Trigger::Demand { waiting } => format!("{waiting} requests"),
        Trigger::Line { waiting, running } => format!("a line of {waiting} at {running} workers"),
        Trigger::Serve { wanted, running } => format!("serve, {running} of {wanted} run"),
        Trigger::Operator => "an operator".to_owned(),
    }
}

fn outcome(record: &DecisionView) -> Text {
    match &record.outcome {
        DecisionOutcome::Nowhere => Text::toned(format!("nowhere: {}", record.decision), Tone::Bad),
        DecisionOutcome::UnderWay => Text::toned("under way", Tone::Warn),
        DecisionOutcome::Ready { worker, after_ms } => {
            let seconds = *after_ms as f64 / 1e3;
            Text::toned(format!("{worker} after {seconds:.1} s"), Tone::Good)
        }
        DecisionOutcome::Failed { reason } => Text::toned(format!("failed: {reason}"), Tone::Bad),
        DecisionOutcome::GivenUp => "given up".into(),
    }
}

fn replayed(look: Look, record: &DecisionView, again: &Decision) -> String {
    let goes_to = |decision: &Decision| match &decision.choice {
        Some(choice) => why::target(choice),
        None => "nowhere".to_owned(),
    };
    let mut text = format!(
        "decision {} of {}: {} for {}\n\n",
        record.id,
        record.timestamp.format("%Y-%m-%d %H:%M:%S UTC"),
        render::clean(&record.problem.model),
        trigger(&record.trigger)
    );
    if !again.verdicts.is_empty() {
        text.push_str(&why::devices(look, &record.problem, again));
        text.push('\n');
    }
    if *again == record.decision {
        text.push_str(&format!("The replay decides the same: {}.\n", goes_to(again)));
    } else {
        text.push_str(&format!(
            "The replay decides differently: {}; the record: {}.\n",
            goes_to(again),
            goes_to(&record.decision)
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::why::tests::problem;

    fn record(id: u64, free_gb: u64, trigger: &Value, outcome: &Value) -> Value {
        let problem = problem(free_gb);
        let decision = scheduler::decide(&serde_json::from_value(problem.clone()).unwrap());
        json!({
            "id": id, "timestamp": "2026-01-02T03:04:05Z", "trigger": trigger, "problem": problem,
            "decision": decision, "outcome": outcome,
        })
    }

    /// Five seconds later.
    fn now() -> DateTime<Utc> {
        "2026-01-02T03:04:10Z".parse().unwrap()
    }

    fn words(text: &str) -> Vec<String> {
        text.lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
            .collect()
    }

    #[test]
    fn the_latest_stand_first_with_why_where_and_what_came_of_it() {
        let ready = json!({"state": "ready", "worker": "worker-2", "after_ms": 1_840});
        let mut nowhere = record(
            2,
            2,
            &json!({"why": "demand", "waiting": 1}),
            &json!({"state": "nowhere"}),
        );
        nowhere["decision"] = json!({"choice": null, "verdicts": []});
        let list = json!({"decisions": [
            record(4, 6, &json!({"why": "serve", "wanted": 2, "running": 1}), &json!({"state": "under_way"})),
            record(3, 2, &json!({"why": "line", "waiting": 9, "running": 1}), &ready),
            nowhere,
        ]});
        assert_eq!(
            words(&page(Look::Plain, &serde_json::from_value(list).unwrap(), now())),
            [
                "ID AGO MODEL WANTED FOR GOES TO IN PLACE OF OUTCOME",
                "4 5 s m serve, 1 of 2 run gpu-box cuda:0 - under way",
                "3 5 s m a line of 9 at 1 workers gpu-box cuda:0 worker-9 worker-2 after 1.8 s",
                "2 5 s m 1 request - - nowhere: there is no device",
            ]
        );
        let none = DecisionList { decisions: Vec::new() };
        assert_eq!(page(Look::Plain, &none, now()), "no decisions yet\n");
    }

    #[test]
    fn a_clock_that_is_behind_the_queens_shows_no_time_to_come() {
        let record = record(
            1,
            2,
            &json!({"why": "demand", "waiting": 2}),
            &json!({"state": "given_up"}),
        );
        let record: DecisionView = serde_json::from_value(record).unwrap();
        assert_eq!(ago(&record, "2026-01-02T03:00:00Z".parse().unwrap()), "now");
    }

    #[test]
    fn a_replay_says_whether_it_comes_to_the_same() {
        let record = record(
            7,
            6,
            &json!({"why": "demand", "waiting": 2}),
            &json!({"state": "under_way"}),
        );
        let mut record: DecisionView = serde_json::from_value(record).unwrap();
        let replay = |record: &DecisionView| {
            let again = scheduler::decide(&record.problem);
            words(&replayed(Look::Plain, record, &again))
        };
        let lines = replay(&record);
        assert_eq!(lines[0], "decision 7 of 2026-01-02 03:04:05 UTC: m for 2 requests");
        assert_eq!(
            lines.last().unwrap(),
            "The replay decides the same: gpu-box cuda:0, with a cache of 8192 tokens (4.8 GB in all)."
        );
        record.decision.choice = None;
        let lines = replay(&record);
        assert!(
            lines
                .last()
                .unwrap()
                .starts_with("The replay decides differently: gpu-box cuda:0")
        );
        assert!(lines.last().unwrap().ends_with("; the record: nowhere."));
    }
}
