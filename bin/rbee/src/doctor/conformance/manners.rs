//! What all replies have in common, and what happens to requests that nobody wants any more.

use std::collections::HashSet;
use std::time::Duration;

use tokio::time::sleep;

use super::subject::Subject;
use super::wire::{Reply, saw};
use super::{Check, Verdict, Wrong, check, ensure};

/// Names that servers have for the number of requests that they work on.
const GAUGES: [&str; 5] = [
    "rbee_requests_in_flight",
    "rbee_worker_sequences_running",
    "vllm:num_requests_running",
    "sglang:num_running_reqs",
    "llamacpp:requests_processing",
];
/// How often the number is looked at after a client has left.
const LOOKS: u32 = 20;
/// The pause between two looks.
pub(super) const PAUSE: Duration = Duration::from_millis(250);
/// Tokens of the answer that is left: it would take far longer than all looks.
const ENDLESS: u32 = 4_000;

pub(super) const CHECKS: &[Check] = &[
    check!("a client that leaves frees its slot", cancel),
    check!("errors have their four keys", four_keys),
    check!("every reply has a request id", request_id),
    check!("Retry-After where it is full", retry_after),
];

/// The sum of a gauge's samples in Prometheus' text format.
fn gauge(text: &str) -> Option<f64> {
    let sample = |line: &str| {
        let name = line.split(['{', ' ']).next()?;
        let value: f64 = line.rsplit_once(' ')?.1.parse().ok()?;
        GAUGES.contains(&name).then_some(value)
    };
    let samples: Vec<f64> = text
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(sample)
        .collect();
    (!samples.is_empty()).then(|| samples.iter().sum())
}

async fn running(subject: &Subject) -> Result<f64, Wrong> {
    let unknown = || Wrong::Skip("the server does not tell at /metrics how many requests it works on".to_owned());
    let reply = subject.get_as("/metrics", None).await.map_err(|_| unknown())?;
    let text = String::from_utf8_lossy(&reply.body);
    gauge(&text).filter(|_| reply.status == 200).ok_or_else(unknown)
}

async fn cancel(subject: &Subject) -> Verdict {
    let before = running(subject).await?;
    let mut response = subject.open_stream(ENDLESS).await?;
    let first = response.chunk().await;
    ensure(matches!(first, Ok(Some(_))), || "the stream did not begin".to_owned())?;
    if running(subject).await? <= before {
        return Err(Wrong::Skip("the answer was over before it could be left".to_owned()));
    }
    drop(response);
    for _ in 0..LOOKS {
        if running(subject).await? <= before {
            return saw("at once");
        }
        sleep(subject.pause).await;
    }
    let waited = subject.pause * LOOKS;
    Err(Wrong::Fail(format!(
        "the request still runs {:.1} s after its client has left",
        waited.as_secs_f64()
    )))
}

fn of_the_api(replies: Vec<Reply>) -> impl Iterator<Item = Reply> {
    replies.into_iter().filter(|reply| reply.asked.contains(" /v1/"))
}

async fn four_keys(subject: &Subject) -> Verdict {
    let errors: Vec<Reply> = of_the_api(subject.replies())
        .filter(|reply| reply.status >= 400)
        .collect();
    if errors.is_empty() {
        return Err(Wrong::Skip("no error was seen".to_owned()));
    }
    errors.iter().try_for_each(Reply::error_shape)?;
    saw(format!("in {} errors", errors.len()))
}

async fn request_id(subject: &Subject) -> Verdict {
    let replies: Vec<Reply> = of_the_api(subject.replies()).collect();
    if let Some(without) = replies.iter().find(|reply| reply.header("x-request-id").is_empty()) {
        return Err(Wrong::Fail(format!(
            "{} (status {}) has no x-request-id",
            without.asked, without.status
        )));
    }
    let ids: HashSet<&str> = replies.iter().map(|reply| reply.header("x-request-id")).collect();
    ensure(ids.len() == replies.len(), || {
        format!("{} ids for {} replies", ids.len(), replies.len())
    })?;
    saw(format!("{} different ones", ids.len()))
}

/// No load is made for this: what came by itself is judged.
async fn retry_after(subject: &Subject) -> Verdict {
    let full: Vec<Reply> = of_the_api(subject.replies())
        .filter(|reply| matches!(reply.status, 429 | 503))
        .collect();
    if full.is_empty() {
        return Err(Wrong::Skip("no reply was 429 or 503, and none is provoked".to_owned()));
    }
    match full.iter().find(|reply| reply.header("retry-after").is_empty()) {
        Some(without) => Err(Wrong::Fail(format!(
            "{} (status {}) has none",
            without.asked, without.status
        ))),
        None => saw(format!("in {} replies", full.len())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gauge_is_found_under_the_names_that_servers_have_for_it() {
        assert_eq!(
            gauge("# TYPE x gauge\nvllm:num_requests_running{model=\"a b\"} 2.0\n"),
            Some(2.0)
        );
        assert_eq!(gauge("rbee_requests_in_flight 1\nother 5\n"), Some(1.0));
        assert_eq!(
            gauge("llamacpp:requests_processing 1\nllamacpp:requests_processing 2"),
            Some(3.0)
        );
        assert_eq!(gauge("rbee_requests_total 1\n"), None);
    }
}
