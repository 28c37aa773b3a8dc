//! `rbee health`: whether one daemon answers and is ready; for containers without any other program, and for scripts that wait.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use serde::Deserialize;
use serde_json::json;

use crate::api;
use crate::cli::{BaseUrl, Global, HealthArgs};
use crate::render;

/// Longer than any daemon takes that is well.
const TIMEOUT: Duration = Duration::from_secs(4);

/// What every daemon says of itself at `/health`.
#[derive(Debug, Deserialize)]
struct Health {
    ready: bool,
    #[serde(default)]
    reason: Option<String>,
}

/// `rbee health`.
pub(crate) async fn health(global: &Global, args: &HealthArgs) -> anyhow::Result<ExitCode> {
    let url = args.url.as_ref().unwrap_or(&global.queen_url);
    let health = ask(url).await?;
    if global.json {
        render::json_line(&json!({"url": url.as_str(), "ready": health.ready, "reason": health.reason}))?;
    } else if health.ready {
        render::print("ready")?;
    }
    if !health.ready {
        let reason = health.reason.map(|reason| format!(": {}", render::clean(&reason)));
        bail!("{url} is not ready{}", reason.unwrap_or_default());
    }
    Ok(ExitCode::SUCCESS)
}

async fn ask(url: &BaseUrl) -> anyhow::Result<Health> {
    let request = daemon::client::new()?.get(format!("{url}/health")).timeout(TIMEOUT);
    let answer = match request.send().await {
        Ok(answer) => answer,
        Err(error) => bail!("no daemon answers at {url}: {}", api::root_cause(&error)),
    };
    let answer = answer
        .error_for_status()
        .with_context(|| format!("{url} is no daemon of rbee"))?;
    answer
        .json()
        .await
        .with_context(|| format!("{url} is no daemon of rbee"))
}

#[cfg(test)]
mod tests {
    use axum::Json;
    use axum::Router;
    use axum::routing::get;

    use super::*;
    use crate::api::tests::serve;

    async fn of(answer: serde_json::Value) -> anyhow::Result<Health> {
        ask(&serve(Router::new().route("/health", get(async move || Json(answer)))).await).await
    }

    #[tokio::test]
    async fn what_a_daemon_says_of_itself_is_read() {
        assert!(of(json!({"ready": true, "version": "1"})).await.unwrap().ready);
        let draining = of(json!({"ready": false, "reason": "draining"})).await.unwrap();
        assert_eq!((draining.ready, draining.reason.as_deref()), (false, Some("draining")));
    }

    #[tokio::test]
    async fn another_server_is_not_taken_for_a_daemon() {
        let error = of(json!("fine")).await.unwrap_err();
        assert!(error.to_string().contains("no daemon of rbee"), "{error}");
        let error = ask(&serve(Router::new()).await).await.unwrap_err();
        assert!(error.to_string().contains("no daemon of rbee"), "{error}");
    }

    #[tokio::test]
    async fn nobody_there_is_an_error_that_names_the_address() {
        let free = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = BaseUrl::of(free.local_addr().unwrap());
        drop(free);
        let error = ask(&url).await.unwrap_err().to_string();
        assert!(error.contains(url.as_str()) && error.contains("refused"), "{error}");
    }
}
