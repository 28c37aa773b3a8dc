//! `rbee bench`: how fast a model answers, by the number of streams at once, and beside other servers.
//!
//! A closed loop: each stream sends its next request when its last one has ended, so the load follows the server. What is
//! measured is what a client sees: the queen, the network between, and this program, whose own cost is told.

mod load;
mod report;

use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use daemon::Shutdown;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::time::Instant;

use self::load::{Ask, Failure, Prompts, Round, Server, Until};
use self::report::{ClientCost, Figures, Level, Report};
use crate::answer::NO_CHAT;
use crate::cli::{BenchArgs, Global};
use crate::fleet::Client;
use crate::render::{self, Look};
use crate::{FAILED, INTERRUPTED};

/// Beside others, each server's share of a concurrency is cut into so many turns.
const TURNS: u32 = 2;
/// Least requests of a concurrency.
const LEAST_REQUESTS: u32 = 4;
/// Tokens that a warm-up asks for.
const WARM_UP_TOKENS: u32 = 4;
/// Processor time of the calling thread on Linux; its first number, in nanoseconds.
const THREAD_TIME: &str = "/proc/thread-self/schedstat";
const BAR: &str = "{spinner} {msg} {bar:30} {pos}/{len} ETA {eta}";
const COUNT: &str = "{spinner} {msg} {pos} answers, {elapsed}";

/// `rbee bench`.
pub(crate) async fn bench(global: &Global, args: &BenchArgs, shutdown: &Shutdown) -> anyhow::Result<ExitCode> {
    let mut bench = Bench::new(global, args)?;
    let mut levels = Vec::new();
    let measuring = async {
        // The queen's refusals say what to do about them.
        Client::new(global)?
            .open_ai()
            .get::<serde_json::Value>("/v1/models")
            .await?;
        bench.warm_up().await?;
        bench.measure(&mut levels).await;
        anyhow::Ok(())
    };
    let is_whole = tokio::select! {
        done = measuring => done.map(|()| true)?,
        // What was measured until now is still worth showing.
        () = shutdown.requested() => false,
    };
    let has_failed = levels
        .iter()
        .flat_map(|level| &level.servers)
        .any(|figures| figures.failed > 0);
    if !levels.is_empty() {
        let report = bench.report(levels);
        match global.json {
            true => render::json_line(&report)?,
            false => render::print(&report::page(Look::detect(), &report))?,
        }
    }
    Ok(match (is_whole, has_failed) {
        (false, _) => ExitCode::from(INTERRUPTED),
        (true, true) => ExitCode::from(FAILED),
        (true, false) => ExitCode::SUCCESS,
    })
}

/// A bench under way.
struct Bench<'a> {
    args: &'a BenchArgs,
    /// The queen first.
    servers: Vec<Server>,
    source: Source,
    /// While rounds were under way.
    wall: Duration,
    /// Processor time of this thread meanwhile; `None` where the system does not tell.
    cpu: Option<Duration>,
}

/// Where requests come from.
struct Source {
    prompts: Prompts,
    /// How many there were.
    handed_out: u64,
    /// For each server: how many words make a prompt of the length that is asked for.
    words: Vec<usize>,
    max_tokens: u32,
    raw: bool,
}

impl Source {
    fn next(&mut self, server: usize) -> Ask {
        self.handed_out += 1;
        Ask {
            prompt: self.prompts.text(self.handed_out, self.words[server]),
            max_tokens: self.max_tokens,
            raw: self.raw,
        }
    }
}

impl<'a> Bench<'a> {
    fn new(global: &Global, args: &'a BenchArgs) -> anyhow::Result<Self> {
        let http = || daemon::client::new().context("make an HTTP client");
        let mut servers = vec![Server {
            name: "queen".to_owned(),
            base: global.queen_url.to_string(),
            model: args.model.clone(),
            key: global.api_key.clone().or_else(|| global.token.clone()),
            http: http()?,
        }];
        for beside in &args.beside {
            let url = beside.url.as_str();
            servers.push(Server {
                name: url.split_once("://").map_or(url, |(_, rest)| rest).to_owned(),
                base: url.to_owned(),
                model: beside.model.clone().unwrap_or_else(|| args.model.clone()),
                key: args.beside_key.clone(),
                http: http()?,
            });
        }
        let source = Source {
            prompts: Prompts::new(args.same_prefix),
            handed_out: 0,
            words: vec![args.prompt_tokens.get() as usize; servers.len()],
            max_tokens: args.max_tokens.get(),
            raw: args.raw,
        };
        Ok(Self {
            args,
            servers,
            source,
            wall: Duration::ZERO,
            cpu: Some(Duration::ZERO),
        })
    }

    /// Wakes each server up and finds how many words make a prompt as long as wanted.
    async fn warm_up(&mut self) -> anyhow::Result<()> {
        for server in 0..self.servers.len() {
            render::note(&format!("warming up {}", self.servers[server].name));
            let mut first = self.greet(server).await;
            let has_no_chat = matches!(&first, Err(failure) if failure.code.as_deref() == Some(NO_CHAT));
            if has_no_chat && !self.source.raw {
                render::note("the model cannot chat: texts are continued instead, as with --raw");
                self.source.raw = true;
                first = self.greet(server).await;
            }
            let first = first.with_context(|| {
                let Server { name, base, .. } = &self.servers[server];
                format!("warm up {name} at {base}")
            })?;
            let wanted = self.args.prompt_tokens.get() as usize;
            let words = self.source.words[server];
            let Some(got) = first else { continue };
            self.source.words[server] = scaled(words, wanted, got);
            let Ok(Some(again)) = self.greet(server).await else {
                continue;
            };
            self.source.words[server] = corrected((words, got), (self.source.words[server], again), wanted);
        }
        Ok(())
    }

    /// A short request; returns the prompt's tokens, where the server counts them.
    async fn greet(&mut self, server: usize) -> Result<Option<usize>, Failure> {
        let mut ask = self.source.next(server);
        ask.max_tokens = ask.max_tokens.min(WARM_UP_TOKENS);
        let sample = self.servers[server].ask(ask).await?;
        Ok(sample.prompt_tokens.map(|tokens| tokens as usize))
    }

    /// All concurrencies; what is done is in `levels` even if this is dropped.
    async fn measure(&mut self, levels: &mut Vec<Level>) {
        let turns = if self.servers.len() > 1 { TURNS } else { 1 };
        for streams in self.args.concurrency.iter().map(|streams| streams.get()) {
            let mut rounds: Vec<Vec<Round>> = self.servers.iter().map(|_| Vec::new()).collect();
            for turn in 0..turns {
                let mut order: Vec<usize> = (0..self.servers.len()).collect();
                // Who comes second finds a hotter machine: they take turns at that, too.
                if turn % 2 == 1 {
                    order.reverse();
                }
                for server in order {
                    let round = self.round(server, streams, until(self.args, streams, turns)).await;
                    rounds[server].push(round);
                }
            }
            let servers = self.servers.iter().zip(&rounds);
            levels.push(Level {
                concurrency: streams,
                servers: servers
                    .map(|(server, rounds)| Figures::of(&server.name, rounds))
                    .collect(),
            });
        }
    }

    async fn round(&mut self, index: usize, streams: u32, until: Until) -> Round {
        let Self { servers, source, .. } = self;
        let server = &servers[index];
        let plural = if streams == 1 { "" } else { "s" };
        let meter = Meter::new(format!("{streams} stream{plural}, {}:", server.name), until);
        let (cpu, begin) = (thread_time(), Instant::now());
        let round = server
            .round(streams as usize, until, || source.next(index), || meter.step())
            .await;
        meter.end(&round);
        self.wall += begin.elapsed();
        let used = cpu.zip(thread_time()).map(|(from, to)| to.saturating_sub(from));
        self.cpu = self.cpu.zip(used).map(|(sum, used)| sum + used);
        round
    }

    fn report(&self, levels: Vec<Level>) -> Report {
        Report {
            model: self.args.model.clone(),
            max_tokens: self.source.max_tokens,
            prompt_tokens: self.args.prompt_tokens.get(),
            same_prefix: self.args.same_prefix,
            raw: self.source.raw,
            levels,
            client: ClientCost {
                wall_s: self.wall.as_secs_f64(),
                cpu_s: self.cpu.map(|cpu| cpu.as_secs_f64()),
            },
        }
    }
}

/// When one turn at this concurrency ends.
fn until(args: &BenchArgs, streams: u32, turns: u32) -> Until {
    match args.duration {
        Some(span) => Until::Elapsed(span.duration() / turns),
        None => {
            let wanted = args.requests.map_or_else(
                || streams.saturating_mul(2).max(LEAST_REQUESTS),
                |requests| requests.get(),
            );
            // With fewer there would never be that many streams.
            Until::Requests(wanted.div_ceil(turns).max(streams))
        }
    }
}

/// The first correction: as if each word were as many tokens.
fn scaled(words: usize, wanted: usize, got: usize) -> usize {
    (words * wanted).div_ceil(got.max(1)).max(1)
}

/// The second one: a line through two tries, which knows what the chat template adds.
fn corrected(first: (usize, usize), second: (usize, usize), wanted: usize) -> usize {
    let [(x1, y1), (x2, y2)] = [first, second].map(|(x, y)| (x as f64, y as f64));
    if x1 == x2 || y1 == y2 {
        return second.0;
    }
    let words = x2 + (wanted as f64 - y2) * (x2 - x1) / (y2 - y1);
    (words.round() as usize).max(1)
}

/// Processor time that this thread has had. One thread does all of this program's work while it measures.
fn thread_time() -> Option<Duration> {
    let text = std::fs::read_to_string(THREAD_TIME).ok()?;
    text.split_whitespace().next()?.parse().ok().map(Duration::from_nanos)
}

/// How a round goes on, on standard error: a bar on a terminal, elsewhere a line at its end.
struct Meter {
    title: String,
    bar: Option<ProgressBar>,
}

impl Meter {
    fn new(title: String, until: Until) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let (length, shape) = match until {
                Until::Requests(count) => (Some(u64::from(count)), BAR),
                Until::Elapsed(_) => (None, COUNT),
            };
            let bar = ProgressBar::with_draw_target(length, ProgressDrawTarget::stderr());
            bar.set_style(ProgressStyle::with_template(shape).unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar.set_message(title.clone());
            bar
        });
        Self { title, bar }
    }

    fn step(&self) {
        if let Some(bar) = &self.bar {
            bar.inc(1);
        }
    }

    fn end(&self, round: &Round) {
        match &self.bar {
            Some(bar) => bar.finish_and_clear(),
            None => render::note(&format!(
                "{} {} answers in {:.1} s, {} failed",
                self.title,
                round.samples.len(),
                round.wall.as_secs_f64(),
                round.failures.len()
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command};

    fn args(words: &[&str]) -> BenchArgs {
        let cli = Cli::try_parse_from(["rbee", "bench", "m"].iter().chain(words)).unwrap();
        match cli.command {
            Command::Bench(args) => args,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_round_has_twice_as_many_requests_as_streams_unless_told_otherwise() {
        assert_eq!(until(&args(&[]), 1, 1), Until::Requests(4));
        assert_eq!(until(&args(&[]), 16, 1), Until::Requests(32));
        assert_eq!(until(&args(&["-n", "50"]), 16, 1), Until::Requests(50));
    }

    #[test]
    fn turns_share_the_requests_or_the_time() {
        assert_eq!(until(&args(&["-n", "5"]), 2, 2), Until::Requests(3));
        let half = Until::Elapsed(Duration::from_secs(15));
        assert_eq!(until(&args(&["--duration", "30s"]), 16, 2), half);
    }

    #[test]
    fn there_are_never_fewer_requests_than_streams() {
        assert_eq!(until(&args(&["-n", "5"]), 16, 1), Until::Requests(16));
        assert_eq!(until(&args(&["-n", "5"]), 16, 2), Until::Requests(16));
    }

    #[test]
    fn the_number_of_words_is_found_though_the_template_adds_to_them() {
        // 30 tokens of a template, and 1.25 tokens a word.
        let tokens = |words: usize| 30 + words * 5 / 4;
        let second = scaled(128, 128, tokens(128));
        let words = corrected((128, tokens(128)), (second, tokens(second)), 128);
        assert!(
            tokens(words).abs_diff(128) <= 1,
            "{words} words are {} tokens",
            tokens(words)
        );
        assert_eq!(corrected((10, 40), (1, 30), 5), 1, "the template alone is longer");
        assert_eq!(corrected((4, 9), (4, 9), 9), 4);
    }

    #[test]
    fn a_concurrency_is_a_list_of_positive_numbers() {
        let numbers: Vec<u32> = args(&["-c", "1,8"]).concurrency.iter().map(|n| n.get()).collect();
        assert_eq!(numbers, [1, 8]);
        for wrong in [
            &["-c", "0"][..],
            &["-c", "x"],
            &["-n", "1", "--duration", "1s"],
            &["--beside-key", "k"],
        ] {
            assert!(
                Cli::try_parse_from(["rbee", "bench", "m"].iter().chain(wrong)).is_err(),
                "{wrong:?}"
            );
        }
    }
}
