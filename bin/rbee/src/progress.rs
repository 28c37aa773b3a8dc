//! What a long work looks like while it lasts: a bar on a terminal, plain lines elsewhere, JSON lines for programs.

use std::io::IsTerminal;
use std::time::Duration;

use hive_contract::{JobEvent, JobProgress};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use model_store::Phase;
use serde::Serialize;

use crate::render;

/// Pause between two frames of a spinner.
const TICK: Duration = Duration::from_millis(100);
/// Plain lines tell of progress in steps of this many percent.
const LINE_STEP: u64 = 10;

const SPINNER: &str = "{spinner} {msg}";
const BYTES: &str = "{spinner} {msg} {bar:30} {decimal_bytes}/{decimal_total_bytes} {decimal_bytes_per_sec} ETA {eta}";
const BYTES_OPEN: &str = "{spinner} {msg} {decimal_bytes} {decimal_bytes_per_sec}";
const PERCENT: &str = "{spinner} {msg} {bar:30} {percent}%";
const COUNT: &str = "{spinner} {msg} {bar:30} {pos}/{len}";
const COUNT_OPEN: &str = "{spinner} {msg} {pos}";

/// Shows how a work goes on. Everything but JSON goes to standard error.
#[derive(Debug)]
pub(crate) enum Progress {
    /// A bar that is drawn again and again; cleared when this is dropped.
    Bar {
        /// The line on the terminal.
        bar: ProgressBar,
        /// The phase and shape that it shows.
        shape: Option<(String, &'static str)>,
    },
    /// A line now and then, for logs and pipes.
    Lines {
        /// What the last line said: phase and step.
        last: Option<(String, u64)>,
    },
    /// One JSON object a line on standard output.
    Json,
}

/// A job's event as a JSON line of a command that tells of other things, too.
#[derive(Debug, Serialize)]
struct Tagged<'a> {
    event: &'static str,
    #[serde(flatten)]
    job: &'a JobEvent,
}

impl Progress {
    /// The form that fits where this command runs.
    pub(crate) fn new(json: bool) -> Self {
        match (json, std::io::stderr().is_terminal()) {
            (true, _) => Self::Json,
            (false, true) => Self::bar(ProgressDrawTarget::stderr()),
            (false, false) => Self::Lines { last: None },
        }
    }

    fn bar(target: ProgressDrawTarget) -> Self {
        Self::Bar {
            bar: ProgressBar::with_draw_target(None, target),
            shape: None,
        }
    }

    /// A step of which nothing but its name is known.
    pub(crate) fn step(&mut self, name: &str) {
        let name = render::clean(name);
        match self {
            Self::Bar { bar, shape } => {
                let begins = set_style(bar, shape, &name, SPINNER);
                bar.set_message(name);
                keep_moving(bar, begins);
            }
            Self::Lines { last } => {
                if last.as_ref().is_none_or(|(phase, _)| *phase != name) {
                    render::note(&name);
                    *last = Some((name, 0));
                }
            }
            Self::Json => {}
        }
    }

    /// What a job says of itself.
    pub(crate) fn job(&mut self, event: &JobEvent) -> std::io::Result<()> {
        if let Self::Json = self {
            return render::json_line(event);
        }
        self.draw(event);
        Ok(())
    }

    /// The same in a command whose JSON lines tell of other things, too.
    pub(crate) fn tagged_job(&mut self, event: &JobEvent) -> std::io::Result<()> {
        if let Self::Json = self {
            return render::json_line(&Tagged {
                event: "job",
                job: event,
            });
        }
        self.draw(event);
        Ok(())
    }

    fn draw(&mut self, event: &JobEvent) {
        match (&event.progress, &event.message) {
            // The store's last word, which the job's own next step says better.
            (Some(progress), _) if progress.phase == Phase::Done.as_str() => {}
            (Some(progress), _) => self.measured(progress),
            (None, Some(message)) if !event.state.is_final() => self.step(message),
            _ => {}
        }
    }

    fn measured(&mut self, progress: &JobProgress) {
        let phase = match &progress.source {
            Some(source) => render::clean(&format!("{} from {source}", words(&progress.phase))),
            None => render::clean(&words(&progress.phase)),
        };
        match self {
            Self::Bar { bar, shape } => {
                let begins = set_style(bar, shape, &phase, template(progress));
                match progress.total {
                    Some(total) => bar.set_length(total),
                    None => bar.unset_length(),
                }
                bar.set_message(phase);
                bar.set_position(progress.done);
                if begins {
                    // What an earlier attempt left behind was not fetched at this speed.
                    bar.disable_steady_tick();
                    bar.tick();
                    bar.reset_eta();
                }
                keep_moving(bar, begins);
            }
            Self::Lines { last } => {
                let step = percent(progress).map_or(0, |percent| percent / LINE_STEP);
                if last.as_ref().is_none_or(|(name, told)| *name != phase || *told < step) {
                    render::note(&line(&phase, progress));
                    *last = Some((phase, step));
                }
            }
            Self::Json => {}
        }
    }

    /// Takes the bar off the terminal, so that what follows has the line for itself.
    pub(crate) fn clear(&mut self) {
        if let Self::Bar { bar, .. } = self {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.clear();
    }
}

/// A new phase starts its own clock, so that speed and ETA are its own. Tells whether one begins.
fn set_style(
    bar: &ProgressBar,
    shape: &mut Option<(String, &'static str)>,
    phase: &str,
    template: &'static str,
) -> bool {
    if shape
        .as_ref()
        .is_some_and(|(name, shown)| name == phase && *shown == template)
    {
        return false;
    }
    // The templates are constants of this file, and a test reads each.
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars("━╸ "));
    }
    bar.reset();
    *shape = Some((phase.to_owned(), template));
    true
}

/// Starts the ticks once there is something to show, so that no frame comes before it.
fn keep_moving(bar: &ProgressBar, begins: bool) {
    if begins {
        bar.enable_steady_tick(TICK);
    }
}

fn template(progress: &JobProgress) -> &'static str {
    match (progress.unit.as_str(), progress.total) {
        ("bytes", Some(_)) => BYTES,
        // Waiting and searching have nothing to count.
        ("bytes", None) if progress.done == 0 => SPINNER,
        ("bytes", None) => BYTES_OPEN,
        ("percent", Some(_)) => PERCENT,
        (_, Some(_)) => COUNT,
        (_, None) => COUNT_OPEN,
    }
}

fn percent(progress: &JobProgress) -> Option<u64> {
    match progress.total {
        None | Some(0) => None,
        Some(total) => Some((progress.done as f64 / total as f64 * 100.0).clamp(0.0, 100.0) as u64),
    }
}

/// A phase as people read it: `warm_up` is `warm up`.
fn words(phase: &str) -> String {
    phase.replace('_', " ")
}

fn line(phase: &str, progress: &JobProgress) -> String {
    let amount = |number: u64| match progress.unit.as_str() {
        "bytes" => render::bytes(number),
        _ => number.to_string(),
    };
    match (percent(progress), progress.total, progress.unit.as_str()) {
        (Some(percent), _, "percent") => format!("{phase}: {percent} %"),
        (Some(percent), Some(total), _) => {
            format!("{phase}: {} of {} ({percent} %)", amount(progress.done), amount(total))
        }
        _ if progress.done == 0 => phase.to_owned(),
        _ => format!("{phase}: {}", amount(progress.done)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(unit: &str, done: u64, total: Option<u64>) -> JobProgress {
        JobProgress {
            phase: "download".into(),
            done,
            total,
            unit: unit.into(),
            per_second: None,
            eta_s: None,
            source: None,
        }
    }

    #[test]
    fn every_template_is_valid() {
        for template in [SPINNER, BYTES, BYTES_OPEN, PERCENT, COUNT, COUNT_OPEN] {
            assert!(ProgressStyle::with_template(template).is_ok(), "{template}");
        }
    }

    #[test]
    fn a_plain_line_says_how_much_of_what() {
        let say = |progress: &JobProgress| line("download", progress);
        assert_eq!(
            say(&at("bytes", 49_000_000, Some(98_000_000))),
            "download: 49.0 MB of 98.0 MB (50 %)"
        );
        assert_eq!(say(&at("bytes", 49_000_000, None)), "download: 49.0 MB");
        assert_eq!(say(&at("bytes", 0, None)), "download");
        assert_eq!(say(&at("percent", 30, Some(100))), "download: 30 %");
        assert_eq!(say(&at("files", 1, Some(4))), "download: 1 of 4 (25 %)");
        assert_eq!(say(&at("files", 1, Some(0))), "download: 1");
    }

    #[test]
    fn a_bar_follows_the_phases_and_their_units() {
        let mut progress = Progress::bar(ProgressDrawTarget::hidden());
        progress.step("starting");
        progress.measured(&at("bytes", 5, Some(10)));
        let Progress::Bar { bar, .. } = &progress else {
            panic!("a bar")
        };
        assert_eq!(
            (bar.position(), bar.length(), bar.message().as_str()),
            (5, Some(10), "download")
        );
        progress.measured(&at("bytes", 6, None));
        let Progress::Bar { bar, .. } = &progress else {
            panic!("a bar")
        };
        assert_eq!((bar.position(), bar.length()), (6, None));
    }

    #[test]
    fn plain_lines_come_in_steps_and_not_for_every_event() {
        let mut progress = Progress::Lines { last: None };
        for done in 0..=100 {
            progress.measured(&at("percent", done, Some(100)));
            let Progress::Lines { last: Some((_, step)) } = &progress else {
                panic!("a line was told")
            };
            assert_eq!(*step, done / LINE_STEP);
        }
    }
}
