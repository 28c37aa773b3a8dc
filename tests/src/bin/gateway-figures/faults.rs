//! What clients notice of workers that hang, stop, end, are slow, or are asked for nonsense.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::backend::{Backends, name};
use crate::load::{Ask, Load, Tally, quantile};
use crate::peers::{Peer, Queen, Workers};
use crate::{Result, Run};

/// Clients that ask without a pause.
const CLIENTS: usize = 16;
/// Requests a second where it is counted how many are lost time to a fault: seldom two at once, so that each was sent to the
/// faulty worker by a choice that could have known.
const RATE: u32 = 100;
/// What the queens are told: how long a worker may be silent.
const SILENCE: [&str; 2] = ["--first-byte-timeout-ms", "1000"];
/// A request that took so long was lost time by a fault: well below that, and far above what an answer takes.
const SLOWED: Duration = Duration::from_millis(900);
/// What a healthy worker takes for an answer, in ms.
const DELAY_MS: u64 = 5;
/// Answers of a worker before it hangs.
const HANGS_AFTER: u64 = 50;
/// How long each fault lasts.
const FAULT: Duration = Duration::from_secs(6);
/// How long a worker that has come back is waited for.
const RETURN: Duration = Duration::from_secs(90);
/// How long a pair works before its fault, so that the queen knows what is usual.
const WARM_UP: Duration = Duration::from_secs(1);
/// Load between two looks at whether it has.
const SLICE: Duration = Duration::from_millis(100);

/// A queen with two workers, of which the second one has the fault.
struct Pair {
    queen: Peer,
    _good: Workers,
    bad: Workers,
    bad_options: Backends,
}

impl Pair {
    async fn start(queen: &Queen, bad: Backends) -> Result<Self> {
        let queen = Peer::queen(queen, &SILENCE, None).await?;
        let options = Backends {
            delay_ms: bad.delay_ms.min(DELAY_MS),
            hang_after: None,
            queen: vec![queen.address],
            ..bad.clone()
        };
        let bad_options = Backends {
            first: 1,
            queen: vec![queen.address],
            ..bad
        };
        let good = Workers::start(&options).await?;
        let bad = Workers::start(&bad_options).await?;
        queen.knows(2).await?;
        Ok(Self {
            queen,
            _good: good,
            bad,
            bad_options,
        })
    }

    fn load(&self, ask: Ask) -> Load {
        Load::new(self.queen.address, ask)
    }

    /// Streams for so long, of clients that ask without a pause.
    async fn streams(&self, time: Duration) -> Tally {
        self.load(STREAM).clients(CLIENTS, time).await
    }

    /// Streams for so long at a steady rate.
    async fn steady(&self, time: Duration) -> Tally {
        self.load(STREAM).rate(RATE, time).await
    }

    /// Streams until the second worker answers one; tells when that was.
    async fn returned(&self) -> (Tally, String) {
        let (start, mut all) = (Instant::now(), Tally::default());
        while start.elapsed() < RETURN {
            all.merge(self.steady(SLICE).await);
            if all.workers.contains_key(&name(1)) {
                return (
                    all,
                    format!("served again after {:.1} s", start.elapsed().as_secs_f64()),
                );
            }
        }
        (all, format!("did not serve again within {} s", RETURN.as_secs()))
    }
}

const STREAM: Ask = Ask::Stream {
    chunks: 3,
    gap: Duration::ZERO,
};

fn healthy() -> Backends {
    Backends {
        delay_ms: DELAY_MS,
        ..Backends::default()
    }
}

pub(crate) async fn measure(run: &Run) -> Result<()> {
    for queen in &run.queens {
        println!("\nFaults, 2 workers: {}", queen.name);
        println!(
            "| | answers | failed | slowed beyond {} ms | longest ms | |",
            SLOWED.as_millis()
        );
        println!("|---|---|---|---|---|---|");
        hung(queen).await?;
        stopped(queen).await?;
        killed(queen).await?;
        slow(queen).await?;
        nonsense(queen).await?;
    }
    Ok(())
}

fn row(fault: &str, mut tally: Tally, note: &str) {
    let slowed = tally.took.iter().filter(|took| **took > SLOWED).count();
    let longest = quantile(&mut tally.took, 1.0).as_millis();
    let first = tally
        .first_error
        .map_or(String::new(), |error| format!(" (the first: {error})"));
    println!(
        "| {fault} | {} | {}{first} | {slowed} | {longest} | {note} |",
        tally.took.len(),
        tally.errors
    );
}

/// Its health is fine and it beats, and it never answers.
async fn hung(queen: &Queen) -> Result<()> {
    let bad = Backends {
        hang_after: Some(HANGS_AFTER),
        ..healthy()
    };
    let pair = Pair::start(queen, bad).await?;
    let tally = pair.steady(2 * FAULT).await;
    row("one hangs after some answers, with a fine /health", tally, "");
    Ok(())
}

async fn stopped(queen: &Queen) -> Result<()> {
    let pair = Pair::start(queen, healthy()).await?;
    pair.steady(WARM_UP).await.check(&queen.name)?;
    pair.bad.signal(Signal::SIGSTOP);
    let mut tally = pair.steady(FAULT).await;
    // What was sent while it was stopped it answers first; that is not counted as serving.
    pair.bad.signal(Signal::SIGCONT);
    let (more, note) = pair.returned().await;
    tally.merge(more);
    row("one is stopped (SIGSTOP), then goes on", tally, &note);
    Ok(())
}

async fn killed(queen: &Queen) -> Result<()> {
    let mut pair = Pair::start(queen, healthy()).await?;
    pair.streams(WARM_UP).await.check(&queen.name)?;
    let port = pair.bad.ports.first().copied().unwrap_or_default();
    pair.bad.kill().await;
    let mut tally = pair.streams(FAULT).await;
    let again = Backends {
        port,
        ..pair.bad_options.clone()
    };
    pair.bad = Workers::start(&again).await?;
    let (more, note) = pair.returned().await;
    tally.merge(more);
    row("one is killed, then comes back", tally, &note);
    Ok(())
}

/// Ten times slower than the other: with as many requests at each, it gets an eleventh of them.
async fn slow(queen: &Queen) -> Result<()> {
    let bad = Backends {
        delay_ms: 10 * DELAY_MS,
        ..Backends::default()
    };
    let pair = Pair::start(queen, bad).await?;
    let tally = pair.load(Ask::Plain).clients(CLIENTS, FAULT).await;
    let answers = tally.took.len() as f64;
    let of_slow = tally.workers.get(&name(1)).copied().unwrap_or_default() as f64;
    let note = format!(
        "the slow one's share: {:.1} % (even load: 9.1 %); {:.0} answers/s",
        of_slow / answers * 100.0,
        answers / tally.elapsed.as_secs_f64()
    );
    row("one is ten times slower", tally, &note);
    Ok(())
}

/// Half of the clients send what every worker refuses with status 400.
async fn nonsense(queen: &Queen) -> Result<()> {
    let pair = Pair::start(queen, healthy()).await?;
    let bad = pair.load(Ask::Bad);
    let (good, bad) = tokio::join!(pair.streams(FAULT), bad.clients(CLIENTS, FAULT));
    let share = good.workers.get(&name(1)).copied().unwrap_or_default() as f64 / good.took.len().max(1) as f64;
    let note = format!(
        "{} answers with 400 meanwhile; both serve ({:.0} %)",
        bad.errors,
        share * 100.0
    );
    row("one client's 400s", good, &note);
    Ok(())
}
