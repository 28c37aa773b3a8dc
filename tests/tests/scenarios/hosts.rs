//! Several hosts: workers on addresses of their own.

use std::process::Stdio;

use rbee_tests::{Process, Program, http, models};
use serde_json::json;
use tokio::process::Command;

/// A network namespace joined to this one by a pair of virtual interfaces; removed when dropped.
struct Host {
    name: String,
    ours: String,
    theirs: String,
}

impl Host {
    /// Makes one, or says why it cannot be made here.
    async fn join() -> Result<Self, String> {
        let number = std::process::id() % 250;
        let name = format!("rbee-{}", std::process::id());
        let (ours, theirs) = (format!("10.213.{number}.1"), format!("10.213.{number}.2"));
        let host = Self { name, ours, theirs };
        let (n, link, peer) = (&host.name, format!("rbee{number}a"), format!("rbee{number}b"));
        for arguments in [
            format!("netns add {n}"),
            format!("link add {link} type veth peer name {peer} netns {n}"),
            format!("addr add {}/30 dev {link}", host.ours),
            format!("link set {link} up"),
            format!("-n {n} addr add {}/30 dev {peer}", host.theirs),
            format!("-n {n} link set {peer} up"),
            format!("-n {n} link set lo up"),
        ] {
            let output = Command::new("ip")
                .args(arguments.split(' '))
                .stdin(Stdio::null())
                .output()
                .await;
            let output = output.map_err(|error| format!("`ip` (package iproute2): {error}"))?;
            if !output.status.success() {
                return Err(format!(
                    "ip {arguments}: {}",
                    String::from_utf8_lossy(&output.stderr).trim()
                ));
            }
        }
        Ok(host)
    }

    fn command(&self, program: Program) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]).arg(program.path());
        command
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = std::process::Command::new("ip")
            .args(["netns", "del", &self.name])
            .status();
    }
}

/// Takes more than five seconds: a real model is loaded.
#[tokio::test]
async fn the_queen_dials_the_address_that_a_workers_heartbeat_came_from() {
    let host = match Host::join().await {
        Ok(host) => host,
        // CI runs as root and must not lose this test unseen.
        Err(reason) if std::env::var_os("CI").is_none() => {
            println!("skipped: no network namespace can be made here: {reason}");
            return;
        }
        Err(reason) => panic!("no network namespace can be made: {reason}"),
    };
    let token = ["--token", "a-fleet-token"];
    let args = ["--host", &host.ours, "--port", "0", "--api-key", "sk-first-key"];
    let mut queen = Process::daemon(Program::Queen, args.into_iter().chain(token)).await;
    queen.address.set_ip(host.ours.parse().unwrap());
    let args = [
        "--host",
        "0.0.0.0",
        "--port",
        "0",
        "--queen-url",
        &queen.url(),
        "--model",
        models::SMOLLM2,
    ];
    let _worker = Process::daemon_from(host.command(Program::Worker), args.into_iter().chain(token)).await;

    let fleet = async || {
        http::send(
            http::client()
                .get(format!("{}/v1/fleet", queen.url()))
                .bearer_auth(token[1]),
        )
        .await
    };
    let worker = rbee_tests::eventually("the worker is ready", async || {
        let fleet = fleet().await.body;
        fleet["workers"]
            .as_array()?
            .iter()
            .find(|worker| worker["ready"] == true)
            .cloned()
    })
    .await;
    let base_url = worker["base_url"].as_str().unwrap();
    assert!(base_url.starts_with(&format!("http://{}:", host.theirs)), "{base_url}");

    let body = json!({"model": models::SMOLLM2, "max_tokens": 2, "messages": [{"role": "user", "content": "Hello"}]});
    let request = http::client().post(format!("{}/v1/chat/completions", queen.url()));
    let answer = http::send(request.bearer_auth("sk-first-key").json(&body)).await;
    assert_eq!(answer.status, 200, "{answer:?}");
}
