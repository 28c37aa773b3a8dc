//! `rbee doctor`: what is wrong, and what to do about it.
//!
//! This machine is looked at by the same libraries that a hive has; what the daemons know already comes from their
//! endpoints. Nothing is changed: no folder is made, no model loaded, no port kept.

mod conformance;
mod fleet;
mod host;
mod local;
mod port;

use std::process::ExitCode;

use serde::Serialize;

use crate::FAILED;
use crate::cli::{DoctorArgs, Global};
use crate::render::{self, Look, Text, Tone};

/// `rbee doctor`.
pub(crate) async fn doctor(global: &Global, args: &DoctorArgs) -> anyhow::Result<ExitCode> {
    let report = match &args.api {
        // The fleet's token is nobody else's business.
        Some(url) => conformance::examine(url, global.api_key.clone(), args.model.as_deref()).await?,
        None => {
            let mut findings = local::examine(args).await;
            findings.extend(fleet::examine(global).await?);
            let about = format!("this machine, and the fleet of {}", global.queen_url);
            Report { about, findings }
        }
    };
    match global.json {
        true => render::json_line(&report.document())?,
        false => render::print(&report.page(Look::detect()))?,
    }
    Ok(match report.count(Status::Fail) {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::from(FAILED),
    })
}

/// What came of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Status {
    /// As it should be.
    Ok,
    /// It works, and may not for long or not for all.
    Warn,
    /// It does not work.
    Fail,
    /// It could not be looked at.
    Skipped,
}

impl Status {
    const ALL: [Self; 4] = [Self::Ok, Self::Warn, Self::Fail, Self::Skipped];

    fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "FAIL",
            Self::Skipped => "skipped",
        }
    }

    fn tone(self) -> Tone {
        match self {
            Self::Ok => Tone::Good,
            Self::Warn => Tone::Warn,
            Self::Fail => Tone::Bad,
            Self::Skipped => Tone::Plain,
        }
    }
}

/// One check and what came of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Finding {
    group: &'static str,
    check: String,
    status: Status,
    /// What was seen.
    found: String,
    /// What to do next.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
}

impl Finding {
    fn new(group: &'static str, check: impl Into<String>, status: Status, found: impl Into<String>) -> Self {
        Self {
            group,
            check: check.into(),
            status,
            found: found.into(),
            next: None,
        }
    }

    /// With what to do next.
    fn next(self, next: impl Into<String>) -> Self {
        Self {
            next: Some(next.into()),
            ..self
        }
    }

    fn row(&self) -> Vec<Text> {
        let found = match &self.next {
            Some(next) => format!("{}: {next}", self.found),
            None => self.found.clone(),
        };
        vec![
            self.check.as_str().into(),
            Text::toned(self.status.word(), self.status.tone()),
            found.into(),
        ]
    }
}

/// All checks of a run.
#[derive(Debug)]
struct Report {
    /// What was examined.
    about: String,
    /// In groups, in order.
    findings: Vec<Finding>,
}

/// The same for programs.
#[derive(Debug, Serialize)]
struct Document<'a> {
    examined: &'a str,
    ok: bool,
    counts: serde_json::Map<String, serde_json::Value>,
    checks: &'a [Finding],
}

impl Report {
    fn count(&self, status: Status) -> usize {
        self.findings.iter().filter(|finding| finding.status == status).count()
    }

    fn document(&self) -> Document<'_> {
        let counts = Status::ALL.map(|status| (status.word().to_lowercase(), self.count(status).into()));
        Document {
            examined: &self.about,
            ok: self.count(Status::Fail) == 0,
            counts: counts.into_iter().collect(),
            checks: &self.findings,
        }
    }

    fn page(&self, look: Look) -> String {
        let mut text = String::new();
        for group in self.findings.chunk_by(|one, other| one.group == other.group) {
            let title = group[0].group.to_uppercase();
            let rows: Vec<_> = group.iter().map(Finding::row).collect();
            text.push_str(&render::table(look, &[title.as_str(), "STATE", "FOUND"], &rows));
            text.push('\n');
        }
        let counts = Status::ALL.map(|status| (status, self.count(status)));
        let counts = counts.iter().filter(|(_, count)| *count > 0);
        let counts: Vec<String> = counts
            .map(|(status, count)| format!("{count} {}", status.word()))
            .collect();
        text.push_str(&format!("{} ({})\n", counts.join(", "), render::clean(&self.about)));
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let findings = vec![
            Finding::new("this machine", "port", Status::Ok, "7833 is free"),
            Finding::new("this machine", "disk", Status::Warn, "1.0 GB free").next("make room"),
            Finding::new("fleet", "token", Status::Skipped, "no queen"),
        ];
        Report {
            about: "all".into(),
            findings,
        }
    }

    #[test]
    fn checks_stand_in_groups_with_what_to_do_and_their_count() {
        assert_eq!(
            report().page(Look::Plain),
            "THIS MACHINE  STATE  FOUND\n\
             port          ok     7833 is free\n\
             disk          warn   1.0 GB free: make room\n\
             \n\
             FLEET  STATE    FOUND\n\
             token  skipped  no queen\n\
             \n\
             1 ok, 1 warn, 1 skipped (all)\n"
        );
    }

    #[test]
    fn programs_get_the_same() {
        let document = serde_json::to_value(report().document()).unwrap();
        assert_eq!(
            (&document["ok"], &document["counts"]["fail"]),
            (&true.into(), &0.into())
        );
        let disk = serde_json::json!({
            "group": "this machine", "check": "disk", "status": "warn", "found": "1.0 GB free", "next": "make room",
        });
        assert_eq!(document["checks"][1], disk);
    }
}
