//! `rbee serve`: what must always run.

use std::process::ExitCode;

use queen_rbee::supply::{ServeList, ServeRequest, ServeView};

use crate::cli::{Global, ServeArgs};
use crate::fleet::Client;
use crate::render::{self, Look, Text, Tone};

const HEADER: [&str; 5] = ["MODEL", "MUST RUN", "RUNNING", "PINNED", "STATE"];

/// `rbee serve`.
pub(crate) async fn serve(global: &Global, args: ServeArgs) -> anyhow::Result<ExitCode> {
    let queen = Client::new(global)?.queen();
    let Some(model) = args.model else {
        if global.json {
            // As the queen says it, so that programs also get what this version does not know.
            let list: serde_json::Value = queen.get("/v1/serve").await?;
            render::json_line(&list)?;
        } else {
            let list: ServeList = queen.get("/v1/serve").await?;
            render::print(&page(Look::detect(), &list))?;
        }
        return Ok(ExitCode::SUCCESS);
    };
    let request = ServeRequest {
        model,
        replicas: args.replicas,
        pin: args.pin,
    };
    if global.json {
        let stated: serde_json::Value = queen.post("/v1/serve", &request).await?;
        render::json_line(&stated)?;
    } else {
        let stated: ServeView = queen.post("/v1/serve", &request).await?;
        render::print(&sentence(&stated))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn page(look: Look, list: &ServeList) -> String {
    if list.models.is_empty() {
        return "no model must always run; `rbee serve MODEL` states one\n".to_owned();
    }
    let rows: Vec<_> = list.models.iter().map(row).collect();
    render::table(look, &HEADER, &rows)
}

fn row(model: &ServeView) -> Vec<Text> {
    let (words, tone) = state(model);
    vec![
        model.model.as_str().into(),
        model.replicas.to_string().into(),
        model.running.to_string().into(),
        if model.pin { "yes" } else { "" }.into(),
        Text::toned(words, tone),
    ]
}

fn state(model: &ServeView) -> (String, Tone) {
    if model.is_met {
        return ("all run".to_owned(), Tone::Good);
    }
    let starting = (model.starting > 0).then(|| format!("{} starting", model.starting));
    let tone = if model.starting > 0 { Tone::Warn } else { Tone::Bad };
    let words: Vec<_> = starting.into_iter().chain(model.reason.clone()).collect();
    match words.as_slice() {
        [] => ("under way".to_owned(), Tone::Warn),
        words => (words.join("; "), tone),
    }
}

fn sentence(stated: &ServeView) -> String {
    let model = &stated.model;
    let workers = if stated.replicas == 1 { "worker" } else { "workers" };
    let pinned = if stated.pin { " and stay, whatever comes" } else { "" };
    match stated.replicas {
        0 => format!("{model} need not run any longer"),
        replicas => format!(
            "{replicas} {workers} of {model} must run{pinned}: {} running, {}",
            stated.running,
            render::clean(&state(stated).0)
        ),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn stated(model: &str, replicas: u32, running: u32, starting: u32, reason: Option<&str>) -> Value {
        json!({
            "model": model, "reference": "hf:a/m", "replicas": replicas, "pin": replicas > 1, "running": running,
            "starting": starting, "is_met": running >= replicas, "reason": reason,
        })
    }

    #[test]
    fn what_must_run_is_listed_with_what_stands_in_its_way() {
        let reason = "gpu-box cuda:0: too little room";
        let list = json!({"models": [
            stated("a", 1, 1, 0, None), stated("b", 2, 1, 1, None), stated("c", 2, 0, 0, Some(reason)),
        ]});
        let text = page(Look::Plain, &serde_json::from_value(list).unwrap());
        let lines: Vec<_> = text
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
            .collect();
        assert_eq!(
            lines,
            [
                "MODEL MUST RUN RUNNING PINNED STATE",
                "a 1 1 - all run",
                "b 2 1 yes 1 starting",
                "c 2 0 yes gpu-box cuda:0: too little room",
            ]
        );
        let none = ServeList { models: Vec::new() };
        assert!(page(Look::Plain, &none).contains("rbee serve MODEL"));
    }

    #[test]
    fn a_statement_is_confirmed_with_how_it_stands() {
        let sentence = |value| sentence(&serde_json::from_value(value).unwrap());
        assert_eq!(
            sentence(stated("m", 1, 0, 1, None)),
            "1 worker of m must run: 0 running, 1 starting"
        );
        assert_eq!(
            sentence(stated("m", 2, 2, 0, None)),
            "2 workers of m must run and stay, whatever comes: 2 running, all run"
        );
        assert_eq!(sentence(stated("m", 0, 1, 0, None)), "m need not run any longer");
    }
}
