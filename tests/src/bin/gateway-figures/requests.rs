//! Whole answers: as many as 64 clients get, and 200 a second.

use std::time::Duration;

use crate::load::{Ask, Load, quantile};
use crate::stage::{Stage, weigh};
use crate::table::{Column, Table};
use crate::{Result, Run};

/// Clients that ask without a pause.
const CLIENTS: usize = 64;
/// Requests a second where latency is measured.
const RATE: u32 = 200;

const CLOSED: &[Column] = &[
    Column {
        name: "requests/s",
        digits: 0,
        has_ratio: false,
    },
    Column {
        name: "CPU-s per 1,000",
        digits: 4,
        has_ratio: true,
    },
    Column {
        name: "p50 ms",
        digits: 2,
        has_ratio: false,
    },
    Column {
        name: "p99 ms",
        digits: 2,
        has_ratio: false,
    },
];

const PACED: &[Column] = &[
    Column {
        name: "p50 ms",
        digits: 3,
        has_ratio: false,
    },
    Column {
        name: "added p50",
        digits: 3,
        has_ratio: false,
    },
    Column {
        name: "added p99",
        digits: 3,
        has_ratio: false,
    },
    Column {
        name: "added first token p50",
        digits: 3,
        has_ratio: false,
    },
    Column {
        name: "added first token p99",
        digits: 3,
        has_ratio: false,
    },
];

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1_000.0
}

/// Clients that ask without a pause, for whole answers.
pub(crate) async fn closed(run: &Run, workers: u16, cpu: Option<usize>) -> Result<()> {
    let stage = Stage::set(run, workers, cpu).await?;
    let place = cpu.map_or(String::new(), |_| ", each gateway on one CPU".to_owned());
    let title = format!("Whole answers, {CLIENTS} clients without a pause, {workers} workers{place}");
    let mut table = Table::new(title, CLOSED);
    for _ in 0..run.rounds {
        for gateway in &stage.gateways {
            let (mut tally, cpu) = weigh(gateway, Ask::Plain, CLIENTS, run.time).await?;
            let count = tally.took.len() as f64;
            let values = [
                count / tally.elapsed.as_secs_f64(),
                cpu / count * 1_000.0,
                millis(quantile(&mut tally.took, 0.5)),
                millis(quantile(&mut tally.took, 0.99)),
            ];
            table.add(&gateway.name, values);
        }
    }
    table.print();
    Ok(())
}

/// A steady rate, of whole answers and of streams; what a gateway adds is reckoned against the same without one, in the same
/// round.
pub(crate) async fn paced(run: &Run) -> Result<()> {
    let stage = Stage::set(run, 2, None).await?;
    let direct = ("no gateway", stage.direct()?);
    let gateways = stage
        .gateways
        .iter()
        .map(|gateway| (gateway.name.as_str(), gateway.address));
    let targets: Vec<_> = std::iter::once(direct).chain(gateways).collect();
    let stream = Ask::Stream {
        chunks: 2,
        gap: Duration::ZERO,
    };
    let title = format!("{RATE} requests a second, whole answers and the first event of streams, in ms");
    let mut table = Table::new(title, PACED);
    for _ in 0..run.rounds {
        let mut base = None;
        for (name, address) in &targets {
            let mut plain = Load::new(*address, Ask::Plain).rate(RATE, run.time).await.check(name)?;
            let mut first = Load::new(*address, stream).rate(RATE, run.time).await.check(name)?;
            let seen = [
                millis(quantile(&mut plain.took, 0.5)),
                millis(quantile(&mut plain.took, 0.99)),
                millis(quantile(&mut first.first_token, 0.5)),
                millis(quantile(&mut first.first_token, 0.99)),
            ];
            let base = base.get_or_insert(seen);
            let added = seen.iter().zip(base).map(|(seen, base)| seen - *base);
            table.add(name, std::iter::once(seen[0]).chain(added));
        }
    }
    table.print();
    Ok(())
}
