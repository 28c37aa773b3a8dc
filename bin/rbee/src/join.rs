//! `rbee join`: a hive on this machine for somebody's queen, for as long as this command runs.

use std::net::{IpAddr, SocketAddr};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use daemon::Shutdown;
use queen_rbee::fleet::{HiveView, Liveness};
use serde::Serialize;
use tokio::net::TcpStream;
use tokio::process::Command;

use crate::api::{Api, Peer};
use crate::cli::{BaseUrl, Global, JoinArgs};
use crate::fleet::Client;
use crate::local::{Children, Launcher, START_POLL, Say, healthy, live, reserve, url};
use crate::progress::Progress;
use crate::{NoQueen, Usage, render};

/// Limit for a connection to the queen.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// How long the queen may take to hear of the hive, and to find out whether she reaches it.
const HEARD_LIMIT: Duration = Duration::from_secs(30);

/// `rbee join`.
pub(crate) async fn join(mut global: Global, args: JoinArgs, shutdown: &Shutdown) -> anyhow::Result<ExitCode> {
    global.queen_url = args.url.clone();
    let seen_as = welcome_at(&global, &args).await?;
    let host = args.host.unwrap_or(seen_as);
    let http = daemon::client::new().context("make an HTTP client")?;
    let port = reserve(&http, host, args.port, "--port").await?;
    let address = port.local_addr()?;
    drop(port);

    let launcher = Launcher::new(args.state_dir.clone(), &format!("join-{}", address.port()))?;
    let say = Say::new(global.json);
    let mut children = Children::new()?;
    children.start(
        "hive",
        command(&launcher, address, &global, &args),
        &launcher.log("hive"),
    )?;
    let started = Started {
        queen_url: global.queen_url.to_string(),
        hive_url: url(address).to_string(),
        hive_pid: children.pid("hive"),
        process_group: children.group(),
        log_dir: launcher.folder().display().to_string(),
    };
    say.event("started", &started, || format!("logs: {}", started.log_dir))?;
    live(children, say, shutdown, be_heard(&global, address, say)).await
}

/// The hive runs; the queen may not know it yet.
#[derive(Debug, Serialize)]
struct Started {
    queen_url: String,
    hive_url: String,
    hive_pid: Option<u32>,
    process_group: i32,
    log_dir: String,
}

/// The queen can give it work.
#[derive(Debug, Serialize)]
struct Joined {
    queen_url: String,
    hive_id: String,
    hive_url: String,
    devices: Vec<String>,
}

/// Finds out whether the queen is there and takes this fleet's token; answers with the address that she sees of this machine.
async fn welcome_at(global: &Global, args: &JoinArgs) -> anyhow::Result<IpAddr> {
    let seen_as = own_side(&args.url).await?;
    if global.token.is_none() && !args.insecure && !args.host.unwrap_or(seen_as).is_loopback() {
        return Err(Usage(
            "pass the fleet's token by RBEE_TOKEN or --token (`rbee up --share` shows it), or --insecure for a fleet \
             without one"
                .to_owned(),
        )
        .into());
    }
    let client = Client::new(global)?;
    let queen = client.queen();
    let health: serde_json::Value = queen.get("/health").await?;
    if !health["queen_id"].is_string() {
        bail!(
            "{} answers, but is no queen: name the one that `rbee up --share` shows",
            args.url
        );
    }
    let (theirs, ours) = (
        health["version"].as_str().unwrap_or_default(),
        env!("CARGO_PKG_VERSION"),
    );
    if theirs != ours {
        render::note(&format!(
            "the queen is version {}, this is {ours}: install the same one where you can",
            render::clean(theirs)
        ));
    }
    client.fleet().await?;
    Ok(seen_as)
}

/// This machine's address on a connection to the queen.
async fn own_side(queen: &BaseUrl) -> anyhow::Result<IpAddr> {
    let url = reqwest::Url::parse(queen.as_str())?;
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']).to_owned();
    let port = url.port_or_known_default().unwrap_or_default();
    let unreachable = |reason: String| {
        NoQueen(format!(
            "no queen answers at {queen} ({reason}): is it right, does she run with --share or --host, and does her \
             firewall let port {port} pass?"
        ))
    };
    match tokio::time::timeout(CONNECT_LIMIT, TcpStream::connect((host, port))).await {
        Ok(Ok(stream)) => Ok(stream.local_addr()?.ip()),
        Ok(Err(error)) => Err(unreachable(crate::api::root_cause(&error)).into()),
        Err(_) => Err(unreachable(format!("no answer within {} s", CONNECT_LIMIT.as_secs())).into()),
    }
}

fn command(launcher: &Launcher, address: SocketAddr, global: &Global, args: &JoinArgs) -> Command {
    let mut command = launcher.hive(address, &global.queen_url, None, global);
    for (flag, value) in [("--hive-id", &args.hive_id), ("--devices", &args.devices)] {
        if let Some(value) = value {
            command.arg(flag).arg(value);
        }
    }
    if args.insecure {
        command.arg("--insecure");
    }
    command
}

/// Waits until the queen can give the hive work.
async fn be_heard(global: &Global, address: SocketAddr, say: Say) -> anyhow::Result<()> {
    let client = Client::new(global)?;
    let hive = client.api(Peer::Hive, &url(address));
    let mut progress = Progress::new(global.json);
    progress.step("starting the hive");
    let health = healthy(&hive, "hive").await?;
    let id = health["hive_id"].as_str().context("the hive did not say its name")?;

    progress.step(&format!("waiting until the queen has heard of {id}"));
    let view = heard(&client, &hive, id).await?;
    drop(progress);
    let devices = view.capabilities.iter().flat_map(|capabilities| &capabilities.devices);
    let joined = Joined {
        queen_url: global.queen_url.to_string(),
        hive_id: view.id.to_string(),
        hive_url: view.base_url.clone(),
        devices: devices.map(|device| device.id.clone()).collect(),
    };
    say.event("joined", &joined, || text(&joined))?;
    Ok(())
}

fn text(joined: &Joined) -> String {
    let Joined {
        queen_url,
        hive_id,
        hive_url,
        devices,
    } = joined;
    format!(
        "\n{hive_id} has joined {queen_url}.\n\n\
         Devices:   {}\n\
         Listens:   {hive_url}\n\
         Dashboard: {queen_url}/\n\n\
         Workers start here when a request needs them; `rbee serve MODEL --queen-url {queen_url}` keeps one running.\n\n\
         Ctrl-C leaves the fleet.\n",
        devices.join(", ")
    )
}

async fn heard(client: &Client<'_>, hive: &Api, id: &str) -> anyhow::Result<HiveView> {
    let mut obstacle = None;
    let look = async {
        loop {
            let fleet = client.fleet().await?;
            let view = fleet.hives.into_iter().find(|hive| hive.id.as_str() == id);
            match view {
                Some(view) if view.ready && view.capabilities.is_some() => return anyhow::Ok(view),
                Some(view) => obstacle = why(&view).or(obstacle.take()),
                // It knows best what keeps it from the queen.
                None => {
                    let health: serde_json::Value = hive.get("/health").await?;
                    obstacle = health["queen_problem"].as_str().map(render::clean).or(obstacle.take());
                }
            }
            tokio::time::sleep(START_POLL * 4).await;
        }
    };
    match tokio::time::timeout(HEARD_LIMIT, look).await {
        Ok(result) => result,
        Err(_) => {
            let obstacle = obstacle.unwrap_or_else(|| "she has not heard of it".to_owned());
            bail!(
                "the queen cannot use {id} after {} s: {obstacle}",
                HEARD_LIMIT.as_secs()
            )
        }
    }
}

/// What keeps the queen from giving it work, and what to do.
fn why(view: &HiveView) -> Option<String> {
    let reason = render::clean(view.reason.as_deref()?);
    Some(match view.liveness {
        Liveness::Unreachable => {
            format!(
                "{reason}; let its firewall pass the hive's port, and those above 1024 for its workers, from the queen"
            )
        }
        _ => reason,
    })
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::routing::get;
    use daemon::ApiError;
    use shared_contract::ErrorKind;

    use super::*;
    use crate::api::tests::serve;

    fn args(url: &BaseUrl) -> JoinArgs {
        JoinArgs {
            url: url.clone(),
            host: None,
            port: 0,
            hive_id: None,
            devices: None,
            insecure: false,
            state_dir: None,
        }
    }

    async fn welcome(router: Router) -> anyhow::Result<IpAddr> {
        let url = serve(router).await;
        let global = Global {
            queen_url: url.clone(),
            token: None,
            api_key: None,
            json: false,
        };
        welcome_at(&global, &args(&url)).await
    }

    #[tokio::test]
    async fn a_stranger_on_the_queens_port_is_told_apart() {
        let error = welcome(Router::new().route("/health", get(async || r#"{"hive_id": "h"}"#)))
            .await
            .unwrap_err()
            .to_string();
        assert!(error.contains("is no queen"), "{error}");
    }

    #[tokio::test]
    async fn a_wrong_token_is_found_before_anything_starts() {
        let router = Router::new()
            .route("/health", get(async || r#"{"queen_id": "q", "version": "0.1.0"}"#))
            .route(
                "/v1/fleet",
                get(async || ApiError::new(ErrorKind::Unauthorized, "this endpoint needs a token")),
            );
        let error = welcome(router).await.unwrap_err().to_string();
        assert!(error.contains("--token or RBEE_TOKEN"), "{error}");
    }

    #[tokio::test]
    async fn a_host_that_others_reach_needs_the_token() {
        let url = serve(Router::new()).await;
        let open = JoinArgs {
            host: Some("10.0.0.5".parse().unwrap()),
            ..args(&url)
        };
        let global = Global {
            queen_url: url.clone(),
            token: None,
            api_key: None,
            json: false,
        };
        let error = welcome_at(&global, &open).await.unwrap_err();
        assert!(error.is::<Usage>(), "{error}");
    }

    #[tokio::test]
    async fn a_queen_that_is_not_there_is_named_with_what_may_be_wrong() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = BaseUrl::local(listener.local_addr().unwrap().port());
        drop(listener);
        let error = own_side(&url).await.unwrap_err().to_string();
        assert!(error.contains(url.as_str()) && error.contains("firewall"), "{error}");
    }
}
