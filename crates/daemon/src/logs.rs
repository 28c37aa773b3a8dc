//! Logs: to standard error, as text for people or JSON for programs.

mod flat;

use clap::ValueEnum;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

use crate::traces::{self, Traces};

/// How a log line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One flat JSON object a line.
    Json,
}

/// Starts logging for this process, and making spans for traces if there is somebody to get them. `filter` is a level or a
/// list such as `info,queen_rbee=debug`.
pub(crate) fn init(filter: &str, format: LogFormat, traces: Option<Traces>) -> Result<(), String> {
    let filter = EnvFilter::try_new(filter).map_err(|error| format!("--log: {error}"))?;
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let lines = match format {
        LogFormat::Text => {
            let ansi = std::io::IsTerminal::is_terminal(&std::io::stderr());
            lines.with_ansi(ansi).with_target(false).with_filter(filter).boxed()
        }
        LogFormat::Json => lines
            .fmt_fields(flat::Fields)
            .event_format(flat::Flat)
            .with_filter(filter)
            .boxed(),
    };
    let spans = traces.map(|traces| {
        tracing_opentelemetry::layer()
            .with_tracer(traces.tracer)
            // What of code and threads a span may know is noise to who reads a trace.
            .with_location(false)
            .with_threads(false)
            .with_target(false)
            .with_level(false)
            .with_tracked_inactivity(false)
            .with_context_activation(false)
            .with_filter(Targets::new().with_target(traces::TARGET, LevelFilter::TRACE))
    });
    tracing_subscriber::registry()
        .with(lines)
        .with(spans)
        .try_init()
        .map_err(|error| format!("start the log: {error}"))
}
