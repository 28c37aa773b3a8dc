//! How long the daemons run: until a signal, until one of them ends by itself, or until what they are for has failed.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use daemon::Shutdown;

use super::Say;
use super::children::{Children, Ended};
use crate::api::Api;
use crate::progress::Progress;
use crate::{FAILED, INTERRUPTED, render};

/// How long a daemon may take until it answers.
const START_LIMIT: Duration = Duration::from_secs(30);
/// Pause between two looks at what starts.
pub(crate) const START_POLL: Duration = Duration::from_millis(25);
/// Limit of one such look.
const START_ANSWER: Duration = Duration::from_secs(2);
/// How long the daemons may take to finish what runs: a little above their own grace period.
const STOP_LIMIT: Duration = Duration::from_secs(40);
/// How long the kernel may take to end what was killed.
const KILL_LIMIT: Duration = Duration::from_secs(5);

/// Why the daemons end.
enum Outcome {
    /// By a signal.
    Asked,
    /// A daemon ended by itself.
    Ended(Ended),
    /// What they were started for could not be done.
    Failed(anyhow::Error),
}

/// Does `work` and then lets the daemons run; ends all of them, in order if there is time for it.
pub(crate) async fn live(
    mut children: Children,
    say: Say,
    shutdown: &Shutdown,
    work: impl Future<Output = anyhow::Result<()>>,
) -> anyhow::Result<ExitCode> {
    let working = async {
        match work.await {
            Ok(()) => std::future::pending().await,
            Err(error) => error,
        }
    };
    let outcome = tokio::select! {
        // A signal that came together with an end was meant for what still runs.
        biased;
        () = shutdown.requested() => Outcome::Asked,
        ended = children.first_end() => Outcome::Ended(ended),
        error = working => Outcome::Failed(error),
    };
    let status = stop(&mut children, &outcome, say, shutdown).await?;
    match outcome {
        Outcome::Asked => Ok(status),
        Outcome::Ended(ended) => Err(ended.into_error()),
        Outcome::Failed(error) => Err(error),
    }
}

/// Waits until the daemon answers.
pub(crate) async fn healthy(daemon: &Api, name: &str) -> anyhow::Result<serde_json::Value> {
    let answers = async {
        loop {
            let look = daemon.get::<serde_json::Value>("/health");
            if let Ok(Ok(health)) = tokio::time::timeout(START_ANSWER, look).await {
                return health;
            }
            tokio::time::sleep(START_POLL).await;
        }
    };
    let limit = START_LIMIT.as_secs();
    tokio::time::timeout(START_LIMIT, answers)
        .await
        .with_context(|| format!("the {name} does not answer at {} after {limit} s", daemon.base()))
}

/// Ends all processes. Returns only when none is left.
///
/// Nothing here fails because nobody reads what it says: the terminal may be what went away.
async fn stop(children: &mut Children, outcome: &Outcome, say: Say, shutdown: &Shutdown) -> anyhow::Result<ExitCode> {
    say.stopping(matches!(outcome, Outcome::Asked));
    let mut progress = Progress::new(say.is_json());
    progress.step("stopping: letting running requests finish; Ctrl-C again ends all at once");
    let status = tokio::select! {
        () = children.end() => ExitCode::SUCCESS,
        () = second_signal(outcome, shutdown) => {
            children.kill();
            ExitCode::from(INTERRUPTED)
        }
        () = tokio::time::sleep(STOP_LIMIT) => {
            children.kill();
            progress.clear();
            render::note(&format!("not all processes ended within {} s and were killed", STOP_LIMIT.as_secs()));
            ExitCode::from(FAILED)
        }
    };
    drop(progress);
    if tokio::time::timeout(KILL_LIMIT, children.gone()).await.is_err() {
        bail!(
            "some processes of group {} cannot be ended; see `ps -g {0}`",
            children.group()
        );
    }
    say.stopped();
    Ok(status)
}

/// The signal that asks to end at once: the second one, or the first if the stop began without any.
async fn second_signal(outcome: &Outcome, shutdown: &Shutdown) {
    match outcome {
        Outcome::Asked => shutdown.forced().await,
        Outcome::Ended(_) | Outcome::Failed(_) => shutdown.requested().await,
    }
}
