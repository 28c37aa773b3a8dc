//! Heartbeats of pretended workers, as the worker contract has them.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use chrono::Utc;
use shared_contract::HeartbeatAck;
use worker_contract::{Endpoint, Feature, WorkerHeartbeat, WorkerInfo, WorkerLoad, WorkerStatus};

use crate::backend::{Backends, name};
use crate::wire::Connection;
use crate::{MODEL, Result};

/// Pause before a queen that did not take a beat is tried again.
const RETRY: Duration = Duration::from_millis(200);

/// Beats for all workers of this process at the pace that the queen asks for, until the process ends.
pub(crate) async fn keep(queen: SocketAddr, options: Backends, ports: Vec<u16>) {
    let incarnation = Utc::now().timestamp_millis().unsigned_abs();
    let mut seq = 0;
    loop {
        seq += 1;
        let pause = match round(queen, &options, &ports, incarnation, seq).await {
            Ok(interval) => interval,
            Err(_) => RETRY,
        };
        tokio::time::sleep(pause).await;
    }
}

/// Each beats once; tells the pause until the next round.
async fn round(
    queen: SocketAddr,
    options: &Backends,
    ports: &[u16],
    incarnation: u64,
    seq: u64,
) -> io::Result<Duration> {
    let mut connection = Connection::open(queen).await?;
    let mut interval = RETRY;
    for (number, port) in (options.first..).zip(ports) {
        let beat = beat(number, *port, options, incarnation, seq).map_err(io::Error::other)?;
        let body = serde_json::to_vec(&beat)?;
        let mut request = format!(
            "POST /v1/worker-heartbeat HTTP/1.1\r\nhost: {queen}\r\ncontent-type: application/json\r\n\
             content-length: {}\r\n\r\n",
            body.len()
        )
        .into_bytes();
        request.extend_from_slice(&body);
        connection.send(&request).await?;
        let (head, bytes) = connection.message().await?.ok_or(io::ErrorKind::UnexpectedEof)?;
        let length = bytes.len();
        let ack: HeartbeatAck = serde_json::from_slice(&bytes[head.len..])?;
        connection.used(length);
        interval = Duration::from_millis(ack.interval_ms);
    }
    Ok(interval)
}

fn beat(number: u16, port: u16, options: &Backends, incarnation: u64, seq: u64) -> Result<WorkerHeartbeat> {
    let failed = |error| format!("name a worker: {error}");
    Ok(WorkerHeartbeat {
        worker: WorkerInfo {
            id: name(number).try_into().map_err(failed)?,
            model_id: MODEL.to_owned().try_into().map_err(failed)?,
            device: "cuda:0".to_owned(),
            port,
            status: WorkerStatus::Ready,
            implementation: "gateway-figures".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            host: None,
            hive_id: Some(format!("figures-hive-{}", number / 8).try_into().map_err(failed)?),
            incarnation,
            slots: options.slots,
            context_length: 8_192,
            model_revision: Some("0123456789abcdef".to_owned()),
            endpoints: vec![Endpoint::ChatCompletions, Endpoint::Completions],
            // So that a queen that can take up streams asks for what she needs for it: that is part of its price.
            features: vec![Feature::Resume],
            pid: Some(1_000 + u32::from(number)),
            status_detail: None,
        },
        timestamp: Utc::now(),
        seq,
        load: WorkerLoad::default(),
    })
}
