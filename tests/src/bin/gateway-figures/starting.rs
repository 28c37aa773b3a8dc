//! A queen's start, and what she takes while nothing happens.

use std::time::{Duration, Instant};

use crate::peers::Peer;
use crate::table::{Column, Table};
use crate::{Result, Run};

/// Until a queen that was just started has come to rest.
const REST: Duration = Duration::from_secs(1);

const COLUMNS: &[Column] = &[
    Column {
        name: "answers after ms",
        digits: 0,
        has_ratio: false,
    },
    Column {
        name: "idle MiB",
        digits: 1,
        has_ratio: false,
    },
    Column {
        name: "idle CPU ms per s",
        digits: 2,
        has_ratio: false,
    },
];

pub(crate) async fn measure(run: &Run) -> Result<()> {
    let mut table = Table::new("Start and rest of a queen", COLUMNS);
    for _ in 0..run.rounds {
        for queen in &run.queens {
            let start = Instant::now();
            let peer = Peer::queen(queen, &[], None).await?;
            peer.health().await?;
            let started = start.elapsed().as_secs_f64() * 1_000.0;
            tokio::time::sleep(REST).await;
            let before = peer.cpu()?;
            tokio::time::sleep(REST).await;
            let cpu = peer.cpu()?.saturating_sub(before);
            let idle = cpu.as_secs_f64() / REST.as_secs_f64() * 1_000.0;
            let mib = peer.rss()? as f64 / f64::from(1 << 20);
            table.add(&queen.name, [started, mib, idle]);
        }
    }
    table.print();
    Ok(())
}
