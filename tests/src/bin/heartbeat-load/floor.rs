//! The least that an endpoint for heartbeats can do: axum, serde_json and a sharded map, without liveness, order, events or
//! metrics. A figure of the queen is quoted as a ratio to it.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use axum::extract::State;
use axum::routing::post;
use axum::serve::ListenerExt;
use axum::{Json, Router};
use shared_contract::{HeartbeatAck, WorkerId, timing};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::TcpListener;
use tokio::process::{Child, Command};
use worker_contract::WorkerHeartbeat;

use crate::run::Target;

const SHARDS: usize = 64;

/// The server, in a process of its own so that its CPU time can be told; ended when dropped.
#[derive(Debug)]
pub(crate) struct Floor {
    child: Child,
    url: String,
}

impl Floor {
    pub(crate) async fn start() -> Result<Self, String> {
        let program = std::env::current_exe().map_err(|error| format!("find this program: {error}"))?;
        let mut child = Command::new(program)
            .arg("--serve-floor")
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| format!("start the floor: {error}"))?;
        let output = child.stdout.take().ok_or("read from the floor")?;
        let line = BufReader::new(output).lines().next_line().await;
        match line {
            Ok(Some(url)) => Ok(Self { child, url }),
            line => Err(format!("learn where the floor listens: {line:?}")),
        }
    }

    pub(crate) fn target(&self) -> Target {
        Target {
            name: "floor",
            url: self.url.clone(),
            pid: self.child.id(),
            calls_back: false,
        }
    }
}

type Shard = Mutex<HashMap<WorkerId, (WorkerHeartbeat, Instant)>>;

#[derive(Debug)]
struct Members {
    hasher: RandomState,
    shards: Vec<Shard>,
}

/// Prints where it listens, and serves until it is killed.
pub(crate) async fn serve() -> Result<(), String> {
    let members = Members {
        hasher: RandomState::new(),
        shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
    };
    let router = Router::new()
        .route("/v1/worker-heartbeat", post(beat))
        .with_state(Arc::new(members));
    let listener = TcpListener::bind("127.0.0.1:0").await;
    let listener = listener.map_err(|error| format!("listen: {error}"))?;
    let address = listener.local_addr().map_err(|error| format!("listen: {error}"))?;
    println!("http://{address}");
    let listener = listener.tap_io(|stream| {
        // It is slower without, and no less right.
        let _ = stream.set_nodelay(true);
    });
    axum::serve(listener, router)
        .await
        .map_err(|error| format!("serve: {error}"))
}

async fn beat(State(members): State<Arc<Members>>, Json(beat): Json<WorkerHeartbeat>) -> Json<HeartbeatAck> {
    let id = beat.worker.id.clone();
    let place = members.hasher.hash_one(&id) as usize % SHARDS;
    let mut shard = members.shards[place].lock().unwrap_or_else(PoisonError::into_inner);
    shard.insert(id, (beat, Instant::now()));
    drop(shard);
    Json(HeartbeatAck {
        status: "ok".to_owned(),
        message: "recorded".to_owned(),
        interval_ms: timing::HEARTBEAT_INTERVAL.as_millis() as u64,
        ttl_ms: timing::HEARTBEAT_TTL.as_millis() as u64,
        want_full: false,
        queen_id: None,
        dropped: None,
        known_incarnation: None,
    })
}
