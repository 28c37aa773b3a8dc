//! Streams: what a token costs, how late it comes, and what a stream that is held open takes.

use std::time::Duration;

use crate::load::{Ask, Load, quantile};
use crate::stage::{Stage, weigh};
use crate::table::{Column, Table};
use crate::{Result, Run};

/// Streams at once, the events of each, and the pause between two of them.
const MIXES: [(usize, u32, Duration); 2] = [
    (64, 100, Duration::from_millis(10)),
    (1_000, 30, Duration::from_millis(100)),
];
/// Streams that are held open.
const HELD: usize = 1_000;
/// Plain requests before, so that what a process needs at all is not counted.
const WARM_UP: Duration = Duration::from_millis(200);
/// Longer than anybody waits here.
const FOR_EVER: Duration = Duration::from_secs(600);

const TOKENS: &[Column] = &[
    Column {
        name: "tokens/s",
        digits: 0,
        has_ratio: false,
    },
    Column {
        name: "CPU us per token",
        digits: 1,
        has_ratio: true,
    },
    Column {
        name: "delay of a token p50 ms",
        digits: 2,
        has_ratio: false,
    },
    Column {
        name: "p99 ms",
        digits: 2,
        has_ratio: false,
    },
];

const HOLDING: &[Column] = &[Column {
    name: "KiB per stream",
    digits: 1,
    has_ratio: true,
}];

/// Streams at a model's pace.
pub(crate) async fn tokens(run: &Run) -> Result<()> {
    let stage = Stage::set(run, 2, None).await?;
    for (streams, chunks, gap) in MIXES {
        let ask = Ask::Stream { chunks, gap };
        let title = format!("{streams} streams of {chunks} tokens, one each {} ms", gap.as_millis());
        let mut table = Table::new(title, TOKENS);
        for _ in 0..run.rounds {
            let mut direct = Load::new(stage.direct()?, ask)
                .clients(streams, run.time)
                .await
                .check("a worker")?;
            let late = [0.5, 0.99].map(|share| quantile(&mut direct.delays, share));
            for gateway in &stage.gateways {
                let (mut tally, cpu) = weigh(gateway, ask, streams, run.time).await?;
                let tokens = tally.delays.len() as f64;
                let [p50, p99] = [(0.5, late[0]), (0.99, late[1])].map(|(share, direct)| {
                    let seen = quantile(&mut tally.delays, share);
                    (seen.as_secs_f64() - direct.as_secs_f64()) * 1_000.0
                });
                let rate = tokens / tally.elapsed.as_secs_f64();
                table.add(&gateway.name, [rate, cpu / tokens * 1e6, p50, p99]);
            }
        }
        table.print();
    }
    println!(
        "Delays are beyond those without a gateway. Each stream is a request, whose price is shared by its tokens."
    );
    Ok(())
}

/// Streams that wait for their second event.
pub(crate) async fn held(run: &Run) -> Result<()> {
    let ask = Ask::Stream {
        chunks: 2,
        gap: FOR_EVER,
    };
    let mut table = Table::new(format!("Memory of {HELD} streams that are held open"), HOLDING);
    // New processes each time: what memory was once taken is not given back.
    for _ in 0..run.rounds.min(3) {
        let stage = Stage::set(run, 2, None).await?;
        for gateway in &stage.gateways {
            let warm_up = Load::new(gateway.address, Ask::Plain);
            warm_up.clients(2, WARM_UP).await.check(&gateway.name)?;
            let before = gateway.rss()?;
            let held = Load::new(gateway.address, ask).hold(HELD).await?;
            let grown = gateway.rss()?.saturating_sub(before) as f64;
            table.add(&gateway.name, [grown / held.len() as f64 / 1_024.0]);
        }
    }
    table.print();
    Ok(())
}
