//! The figures of a bench, and the table that shows them.

use std::time::Duration;

use serde::Serialize;

use super::load::{Round, Sample};
use crate::render::{self, Look, Text, Tone};

const HEADER: [&str; 9] = [
    "STREAMS", "SERVER", "TOK/S", "EACH", "TTFT MS", "GAP MS", "CACHED", "ANSWERS", "FAILED",
];
/// Different reasons of failures that are kept.
const MAX_REASONS: usize = 3;
/// A cached share of the prompts below this is the chat template's, and not worth a column.
const CACHED_WORTH_TELLING: f64 = 0.1;
/// An event with clearly more than one token makes gaps look longer than a token takes.
const TOKENS_PER_EVENT: f64 = 1.2;
/// From this share of one core on, the client may be what was measured.
const BUSY_CLIENT: f64 = 0.5;

/// All that was measured.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Report {
    /// The model as the queen names it.
    pub(super) model: String,
    /// Most tokens of an answer.
    pub(super) max_tokens: u32,
    /// Tokens of a prompt that were asked for.
    pub(super) prompt_tokens: u32,
    /// Whether the prompts began alike.
    pub(super) same_prefix: bool,
    /// Whether texts were continued, without a chat.
    pub(super) raw: bool,
    /// One for each concurrency, in the order of the command line.
    pub(super) levels: Vec<Level>,
    /// What measuring cost.
    pub(super) client: ClientCost,
}

/// One concurrency.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Level {
    /// Streams at once.
    pub(super) concurrency: u32,
    /// The queen first.
    pub(super) servers: Vec<Figures>,
}

/// What the client itself used.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct ClientCost {
    /// While requests were under way.
    pub(super) wall_s: f64,
    /// Processor time of the one thread that sends, reads and times; `None` where the system does not tell.
    pub(super) cpu_s: Option<f64>,
}

/// Median and 99th percentile.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct Spread {
    /// Half are not above it.
    pub(super) p50: f64,
    /// All but one of a hundred are not above it.
    pub(super) p99: f64,
}

/// One server at one concurrency.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Figures {
    /// Its name in this report.
    pub(super) server: String,
    /// Whole answers.
    pub(super) answers: usize,
    /// Requests without one.
    pub(super) failed: usize,
    /// Why, each reason once, at most 3.
    pub(super) reasons: Vec<String>,
    /// While its requests were under way.
    pub(super) wall_s: f64,
    /// Of all whole answers.
    pub(super) output_tokens: u64,
    /// `usage`, `events`, or `mixed`: how they were counted.
    pub(super) tokens_counted_by: &'static str,
    /// Tokens for each event with text, mean.
    pub(super) tokens_per_event: Option<f64>,
    /// All output tokens through the time.
    pub(super) tokens_per_s: f64,
    /// Of one answer after its first token, median.
    pub(super) stream_tokens_per_s: Option<f64>,
    /// From the request to the first event with text.
    pub(super) ttft_ms: Option<Spread>,
    /// Between events with text.
    pub(super) inter_token_ms: Option<Spread>,
    /// Of a prompt, mean, where the server says so.
    pub(super) prompt_tokens: Option<f64>,
    /// Share of the prompts that came from a cache, where the server says so.
    pub(super) cached_share: Option<f64>,
}

impl Figures {
    /// Sums up the rounds of one server.
    pub(super) fn of(server: &str, rounds: &[Round]) -> Self {
        let samples: Vec<&Sample> = rounds.iter().flat_map(|round| &round.samples).collect();
        let failures = rounds.iter().flat_map(|round| &round.failures);
        let wall: Duration = rounds.iter().map(|round| round.wall).sum();
        let output_tokens: u64 = samples.iter().map(|sample| sample.tokens).sum();
        let events: usize = samples.iter().map(|sample| sample.gaps.len() + 1).sum();
        let counted = samples.iter().filter(|sample| sample.is_counted).count();
        let mut reasons: Vec<String> = Vec::new();
        for failure in failures.clone() {
            let reason = failure.to_string();
            if reasons.len() < MAX_REASONS && !reasons.contains(&reason) {
                reasons.push(reason);
            }
        }
        let prompts: Vec<u64> = samples.iter().filter_map(|sample| sample.prompt_tokens).collect();
        let cached: Vec<u64> = samples.iter().filter_map(|sample| sample.cached_tokens).collect();
        let sum = |counts: &[u64]| counts.iter().sum::<u64>() as f64;
        Self {
            server: server.to_owned(),
            answers: samples.len(),
            failed: failures.count(),
            reasons,
            wall_s: wall.as_secs_f64(),
            output_tokens,
            tokens_counted_by: match counted {
                0 => "events",
                all if all == samples.len() => "usage",
                _ => "mixed",
            },
            tokens_per_event: (events > 0).then(|| output_tokens as f64 / events as f64),
            tokens_per_s: ratio(output_tokens as f64, wall.as_secs_f64()).unwrap_or(0.0),
            stream_tokens_per_s: spread(samples.iter().filter_map(|sample| own_rate(sample))).map(|rate| rate.p50),
            ttft_ms: spread(samples.iter().map(|sample| ms(sample.ttft))),
            inter_token_ms: spread(samples.iter().flat_map(|sample| &sample.gaps).map(|gap| ms(*gap))),
            prompt_tokens: ratio(sum(&prompts), prompts.len() as f64),
            cached_share: ratio(sum(&cached), sum(&prompts)).filter(|_| !cached.is_empty()),
        }
    }

    fn row(&self, streams: &str, name: &str) -> Vec<Text> {
        let cached = self.cached_share.filter(|share| *share >= CACHED_WORTH_TELLING);
        let failed = (self.failed > 0).then(|| self.failed.to_string());
        vec![
            streams.into(),
            name.into(),
            number(self.tokens_per_s).into(),
            self.stream_tokens_per_s.map(number).unwrap_or_default().into(),
            self.ttft_ms.map(pair).unwrap_or_default().into(),
            self.inter_token_ms.map(pair).unwrap_or_default().into(),
            cached
                .map(|share| format!("{:.0} %", share * 100.0))
                .unwrap_or_default()
                .into(),
            self.answers.to_string().into(),
            Text::toned(failed.unwrap_or_default(), Tone::Bad),
        ]
    }
}

/// Tokens a second of one answer, without the wait for its first one.
fn own_rate(sample: &Sample) -> Option<f64> {
    let decoding: Duration = sample.gaps.iter().sum();
    // Several tokens may have come with the first event; they are the wait's.
    let first = sample.tokens.div_ceil(sample.gaps.len() as u64 + 1);
    ratio(sample.tokens.saturating_sub(first) as f64, decoding.as_secs_f64()).filter(|rate| *rate > 0.0)
}

fn ratio(above: f64, below: f64) -> Option<f64> {
    (below > 0.0).then(|| above / below)
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// By nearest rank: values that were really measured.
fn spread(values: impl Iterator<Item = f64>) -> Option<Spread> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let at = |share: f64| {
        let rank = (share * values.len() as f64).ceil() as usize;
        values.get(rank.max(1) - 1).copied()
    };
    Some(Spread {
        p50: at(0.5)?,
        p99: at(0.99)?,
    })
}

/// Three digits that matter, or all before the point.
fn number(value: f64) -> String {
    match value {
        value if value < 10.0 => format!("{value:.2}"),
        value if value < 100.0 => format!("{value:.1}"),
        value => format!("{value:.0}"),
    }
}

fn pair(spread: Spread) -> String {
    format!("{}/{}", number(spread.p50), number(spread.p99))
}

/// The whole report for people.
pub(super) fn page(look: Look, report: &Report) -> String {
    let beside = report.levels.iter().any(|level| level.servers.len() > 1);
    let rows: Vec<_> = report
        .levels
        .iter()
        .flat_map(|level| level_rows(level, beside))
        .collect();
    let mut text = render::table(look, &HEADER, &rows);
    for note in notes(report, beside) {
        text.push('\n');
        text.push_str(&render::wrapped(look, &render::clean(&note)));
    }
    text.push('\n');
    text
}

fn level_rows(level: &Level, beside: bool) -> Vec<Vec<Text>> {
    let streams = level.concurrency.to_string();
    let name = |figures: &Figures| if beside { figures.server.clone() } else { String::new() };
    let Some((first, others)) = level.servers.split_first() else {
        return Vec::new();
    };
    let mut rows = vec![first.row(&streams, &name(first))];
    for other in others {
        rows.push(other.row(&streams, &name(other)));
        rows.push(ratio_row(&streams, first, other));
    }
    rows
}

/// The first server's figures divided by the other's.
fn ratio_row(streams: &str, first: &Figures, other: &Figures) -> Vec<Text> {
    let times = |a: f64, b: f64| ratio(a, b).map(|times| format!("{times:.2}x"));
    let option = |a: Option<f64>, b: Option<f64>| times(a?, b?);
    let spreads = |a: Option<Spread>, b: Option<Spread>| {
        let (a, b) = (a?, b?);
        Some(format!("{}/{}", times(a.p50, b.p50)?, times(a.p99, b.p99)?))
    };
    let mut row = vec![Text::from(""); HEADER.len()];
    row[0] = streams.into();
    row[1] = "ratio".into();
    row[2] = times(first.tokens_per_s, other.tokens_per_s).unwrap_or_default().into();
    row[3] = option(first.stream_tokens_per_s, other.stream_tokens_per_s)
        .unwrap_or_default()
        .into();
    row[4] = spreads(first.ttft_ms, other.ttft_ms).unwrap_or_default().into();
    row[5] = spreads(first.inter_token_ms, other.inter_token_ms)
        .unwrap_or_default()
        .into();
    row
}

/// What the figures mean, and what speaks against them.
fn notes(report: &Report, beside: bool) -> Vec<String> {
    let all = || report.levels.iter().flat_map(|level| &level.servers);
    let mut notes = vec![
        "TOK/S: output tokens of all streams a second. EACH: of one stream after its first token, median.".to_owned(),
        "TTFT: request to first text. GAP: between texts of a stream. Each: median/99th percentile.".to_owned(),
    ];
    if beside {
        let first = all().next().map_or("", |figures| figures.server.as_str());
        notes.push(format!(
            "ratio: {first} divided by the server above it: in its favour above 1 for tokens a second, below 1 for times."
        ));
    }
    notes.push(format!(
        "Prompts: {}. Answers: at most {} tokens.",
        prompts(report),
        report.max_tokens
    ));
    let mut told: Vec<&str> = Vec::new();
    for figures in all().filter(|figures| figures.answers > 0) {
        if told.contains(&figures.server.as_str()) {
            continue;
        }
        let mut odd = Vec::new();
        if figures.tokens_counted_by != "usage" {
            odd.push("it does not report usage for all answers: tokens are counted by events".to_owned());
        }
        if let Some(per_event) = figures
            .tokens_per_event
            .filter(|per_event| *per_event > TOKENS_PER_EVENT)
        {
            odd.push(format!(
                "its events carry {per_event:.1} tokens, so a GAP is longer than a token takes"
            ));
        }
        if !odd.is_empty() {
            told.push(&figures.server);
            notes.push(format!("{}: {}.", figures.server, odd.join("; ")));
        }
    }
    for level in &report.levels {
        for figures in level.servers.iter().filter(|figures| figures.failed > 0) {
            notes.push(format!(
                "{} of {} requests failed at {} streams ({}): {}",
                figures.failed,
                figures.failed + figures.answers,
                level.concurrency,
                figures.server,
                figures.reasons.join("; ")
            ));
        }
    }
    notes.push(cost(report.client));
    notes
}

fn prompts(report: &Report) -> String {
    let means = report.levels.iter().flat_map(|level| &level.servers);
    let means: Vec<f64> = means.filter_map(|figures| figures.prompt_tokens).collect();
    let kind = match report.same_prefix {
        true => "the same but for their last tenth",
        false => "all different",
    };
    match ratio(means.iter().sum(), means.len() as f64) {
        Some(mean) => format!("{kind}, {mean:.0} tokens"),
        None => format!(
            "{kind}, about {} words (no server counts their tokens)",
            report.prompt_tokens
        ),
    }
}

fn cost(client: ClientCost) -> String {
    let Some(share) = client.cpu_s.and_then(|cpu| ratio(cpu, client.wall_s)) else {
        return "What measuring itself cost is not known on this system.".to_owned();
    };
    let percent = share * 100.0;
    match share >= BUSY_CLIENT {
        true => format!(
            "Measuring itself took {percent:.0} % of one core: the figures may be the client's. Use fewer streams, \
             or another machine for the client."
        ),
        false => format!("Measuring itself took {percent:.1} % of one core."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(ttft: u64, gaps: &[u64], tokens: u64) -> Sample {
        Sample {
            ttft: Duration::from_millis(ttft),
            gaps: gaps.iter().copied().map(Duration::from_millis).collect(),
            tokens,
            is_counted: true,
            prompt_tokens: Some(100),
            cached_tokens: Some(50),
        }
    }

    fn round(wall_ms: u64, samples: Vec<Sample>) -> Round {
        Round {
            wall: Duration::from_millis(wall_ms),
            samples,
            failures: Vec::new(),
        }
    }

    #[test]
    fn rounds_add_up() {
        let rounds = [
            round(1_000, vec![sample(10, &[20, 20], 3)]),
            round(1_000, vec![sample(30, &[40, 40], 3)]),
        ];
        let figures = Figures::of("s", &rounds);
        assert_eq!(
            (figures.answers, figures.output_tokens, figures.tokens_per_s),
            (2, 6, 3.0)
        );
        assert_eq!(figures.stream_tokens_per_s, Some(25.0));
        assert_eq!(figures.ttft_ms, Some(Spread { p50: 10.0, p99: 30.0 }));
        assert_eq!(figures.inter_token_ms, Some(Spread { p50: 20.0, p99: 40.0 }));
        assert_eq!((figures.prompt_tokens, figures.cached_share), (Some(100.0), Some(0.5)));
    }

    #[test]
    fn percentiles_are_by_nearest_rank() {
        let of = |count: u32| spread((1..=count).rev().map(f64::from)).unwrap();
        assert_eq!(of(1), Spread { p50: 1.0, p99: 1.0 });
        assert_eq!(of(100), Spread { p50: 50.0, p99: 99.0 });
        assert_eq!(of(200), Spread { p50: 100.0, p99: 198.0 });
        assert_eq!(spread(std::iter::empty()), None);
    }

    #[test]
    fn a_round_without_answers_has_no_figures_and_does_not_divide_by_zero() {
        let figures = Figures::of("s", &[Round::default()]);
        assert_eq!(
            (figures.tokens_per_s, figures.ttft_ms, figures.tokens_counted_by),
            (0.0, None, "events")
        );
    }

    fn report(servers: Vec<Figures>) -> Report {
        Report {
            model: "m".into(),
            max_tokens: 8,
            prompt_tokens: 100,
            same_prefix: false,
            raw: false,
            levels: vec![Level {
                concurrency: 2,
                servers,
            }],
            client: ClientCost {
                wall_s: 2.0,
                cpu_s: Some(0.1),
            },
        }
    }

    fn lines(report: &Report) -> Vec<String> {
        let text = page(Look::Plain, report);
        text.lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
            .collect()
    }

    #[test]
    fn one_server_is_a_line_a_concurrency() {
        let figures = Figures::of("queen", &[round(1_000, vec![sample(10, &[20, 20], 3)])]);
        let lines = lines(&report(vec![figures]));
        assert_eq!(lines[0], "STREAMS TOK/S EACH TTFT MS GAP MS CACHED ANSWERS");
        assert_eq!(lines[1], "2 3.00 50.0 10.0/10.0 20.0/20.0 50 % 1");
        assert!(
            lines.contains(&"Measuring itself took 5.0 % of one core.".to_owned()),
            "{lines:?}"
        );
        assert!(
            lines.iter().any(|line| line.contains("all different, 100 tokens")),
            "{lines:?}"
        );
    }

    #[test]
    fn beside_another_server_there_are_ratios() {
        let fast = Figures::of("queen", &[round(1_000, vec![sample(10, &[20, 20], 3)])]);
        let slow = Figures::of("other", &[round(2_000, vec![sample(40, &[40, 40], 3)])]);
        let lines = lines(&report(vec![fast, slow]));
        assert!(
            lines[3].starts_with("2 ratio 2.00x 2.00x 0.25x/0.25x 0.50x/0.50x"),
            "{lines:?}"
        );
        assert!(
            lines.iter().any(|line| line.starts_with("ratio: queen divided by")),
            "{lines:?}"
        );
    }

    #[test]
    fn what_speaks_against_the_figures_is_said() {
        let mut uncounted = sample(10, &[20], 5);
        uncounted.is_counted = false;
        let figures = Figures::of("queen", &[round(1_000, vec![uncounted])]);
        let mut report = report(vec![figures]);
        report.client.cpu_s = Some(1.5);
        let text = page(Look::Plain, &report);
        assert!(
            text.contains("counted by events") && text.contains("carry 2.5 tokens"),
            "{text}"
        );
        assert!(
            text.contains("75 % of one core") && text.contains("another machine"),
            "{text}"
        );
        report.client.cpu_s = None;
        assert!(page(Look::Plain, &report).contains("not known"));
    }
}
