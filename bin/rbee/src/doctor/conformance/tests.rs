//! Each check passes at a server that is right, and fails at one that is wrong in just this.

mod faults;
mod server;

use std::collections::HashSet;
use std::time::Duration;

use self::faults::FAULTS;
use self::server::{Fault, KEY, MODEL};
use super::*;

fn groups() -> impl Iterator<Item = (&'static str, &'static Check)> {
    GROUPS
        .iter()
        .flat_map(|(group, checks)| checks.iter().map(move |check| (*group, check)))
}

async fn subject(fault: Fault) -> Subject {
    let url = server::start(fault).await;
    let key = Some(KEY.parse().unwrap());
    let mut subject = Subject::meet(daemon::client::new().unwrap(), &url, key, Some(MODEL))
        .await
        .unwrap();
    // A server that is wrong stays so; nobody has to wait for it.
    subject.pause = Duration::from_millis(1);
    subject
}

#[tokio::test]
async fn a_server_that_is_right_passes_with_fewer_requests_than_the_limit() {
    let url = server::start(|_, _| ()).await;
    let report = examine(&url, Some(KEY.parse().unwrap()), None).await.unwrap();
    let others: Vec<_> = report
        .findings
        .iter()
        .filter(|finding| finding.status != Status::Ok)
        .collect();
    // Nothing was full, and nothing may be filled on purpose.
    let [skipped] = others.as_slice() else {
        panic!("{others:#?}")
    };
    assert_eq!(
        (skipped.check.as_str(), skipped.status),
        ("Retry-After where it is full", Status::Skipped)
    );
    let requests: usize = report.about.split_whitespace().rev().nth(1).unwrap().parse().unwrap();
    assert!(requests < MAX_REQUESTS, "{requests}");
}

#[tokio::test]
async fn each_check_fails_at_a_server_that_is_wrong_in_just_this() {
    let mut passed = Vec::new();
    for (name, fault) in FAULTS {
        let (group, check) = groups().find(|(_, check)| check.name == *name).expect(name);
        let subject = subject(*fault).await;
        if group == "manners" {
            // They judge what others have seen.
            for check in errors::CHECKS {
                let _ = (check.run)(&subject).await;
            }
        }
        let verdict = (check.run)(&subject).await;
        if !matches!(verdict, Err(Wrong::Fail(_))) {
            passed.push((name, verdict));
        }
    }
    assert!(passed.is_empty(), "{passed:#?}");
}

#[test]
fn there_is_a_wrong_server_for_each_check_and_no_two_checks_have_the_same_name() {
    let names: HashSet<&str> = groups().map(|(_, check)| check.name).collect();
    assert_eq!(names.len(), groups().count());
    let wrong: HashSet<&str> = FAULTS.iter().map(|(name, _)| *name).collect();
    let without: Vec<_> = names.symmetric_difference(&wrong).collect();
    assert!(without.is_empty(), "{without:?}");
}

#[tokio::test]
async fn what_a_server_honestly_does_not_offer_is_skipped() {
    let subject = subject(|asked, said| {
        if asked.path == "/v1/embeddings" || asked.body["tools"].is_array() {
            said.status = 400;
            said.body = server::Content::Json(serde_json::json!({"error": {"message": "not by this model"}}));
        }
    })
    .await;
    for name in [
        "a vector for each text",
        "tool_choice calls the tool",
        "a tool call in a stream",
    ] {
        let (_, check) = groups().find(|(_, check)| check.name == name).unwrap();
        let verdict = (check.run)(&subject).await;
        let Err(Wrong::Skip(reason)) = verdict else {
            panic!("{name}: {verdict:?}")
        };
        assert!(reason.contains("not by this model"), "{reason}");
    }
}

#[tokio::test]
async fn who_wants_a_key_and_who_has_no_model_is_told_how_to_name_them() {
    let url = server::start(|_, _| ()).await;
    let error = examine(&url, None, None).await.unwrap_err().to_string();
    assert!(error.contains("--api-key"), "{error}");
    let url = server::start(|_, said| {
        if let Some(body) = said.value() {
            body["data"] = serde_json::json!([]);
        }
    })
    .await;
    let error = examine(&url, Some(KEY.parse().unwrap()), None).await.unwrap_err();
    assert!(format!("{error:#}").contains("--model"), "{error:#}");
}

#[tokio::test]
async fn the_limit_of_requests_is_kept() {
    let subject = subject(|_, _| ()).await;
    for _ in subject.requests()..MAX_REQUESTS {
        subject.get("/v1/models").await.unwrap();
    }
    assert!(matches!(subject.get("/v1/models").await, Err(Wrong::Skip(_))));
    assert_eq!(subject.requests(), MAX_REQUESTS);
}
