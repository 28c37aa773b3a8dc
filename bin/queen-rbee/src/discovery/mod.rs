//! The queen looks for hives: those of her settings, of an SSH configuration, and of the local network.
//!
//! A hive that is asked for its capabilities learns by it where the queen is, and beats to her from then on. So a hive is
//! asked 5 s after the queen's start (before, most have found her by themselves), and after that only while it is not
//! there: in the steady state nobody is asked anything.
//!
//! `asker.rs` decides when, `ask.rs` asks, `own_url.rs` finds the address that the hive is told, and `ssh.rs` and
//! `network.rs` find whom to ask.

mod ask;
mod asker;
mod network;
mod own_url;
mod ssh;
#[cfg(test)]
mod support;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use heartbeat_registry::Liveness;
use tokio_util::task::AbortOnDropHandle;

pub use self::ssh::SshError;

use crate::State;
use crate::discovery::ask::Questioner;
use crate::discovery::asker::{Asker, LastAsked, Origin, Target, Timing};
use crate::discovery::own_url::OwnUrl;

/// What all askers share.
struct Discovery {
    state: Arc<State>,
    questioner: Arc<Questioner>,
    timing: Timing,
    started: Instant,
}

impl Discovery {
    /// The future that asks this hive whenever it is not there, beginning no earlier than the first question is due, and the
    /// next one after `asked`.
    fn asker(&self, target: Target, asked: LastAsked) -> impl Future<Output = ()> + Send + 'static {
        let state = Arc::clone(&self.state);
        let first = self.timing.first.saturating_sub(self.started.elapsed());
        let delay = first.max(asked.left_of(self.timing.again));
        let asker = Asker {
            questioner: Arc::clone(&self.questioner),
            target,
            timing: self.timing,
            asked,
            // One that cannot be reached at its own address beats all the same.
            beats: move |hive: &_| {
                let liveness = state.hives.get(hive).map(|member| member.liveness(Instant::now()));
                matches!(liveness, Some(Liveness::Online | Liveness::Unreachable))
            },
        };
        asker.run(delay)
    }
}

/// Starts to look for hives, as the settings say; ends when the handles are dropped. `bound` is where the queen listens.
///
/// # Errors
/// If the SSH configuration cannot be read.
pub(crate) fn start(state: &Arc<State>, bound: SocketAddr) -> Result<Vec<AbortOnDropHandle<()>>, SshError> {
    let config = &state.config;
    let targets = targets(config)?;
    if targets.is_empty() && !config.mdns {
        return Ok(Vec::new());
    }
    let own = OwnUrl {
        advertised: config.advertise_url.clone(),
        bound,
    };
    if own.is_for_this_host_only() && (config.mdns || config.hives_from_ssh.is_some()) {
        tracing::warn!(
            "this queen listens on {bound} only, where no hive of another machine can reach her: start her with --host \
             (0.0.0.0 for all addresses) and --token, or name another way to her with --advertise-url"
        );
    }
    let timing = Timing::default();
    let discovery = Arc::new(Discovery {
        state: Arc::clone(state),
        questioner: Arc::new(Questioner::new(
            state.client.clone(),
            config.token.clone(),
            own,
            timing.limit,
        )),
        timing,
        started: Instant::now(),
    });
    let spawn = |target| AbortOnDropHandle::new(tokio::spawn(discovery.asker(target, LastAsked::default())));
    let mut tasks: Vec<_> = targets.into_iter().map(spawn).collect();
    if config.mdns {
        tasks.push(AbortOnDropHandle::new(tokio::spawn(network::follow(Arc::clone(
            &discovery,
        )))));
    }
    Ok(tasks)
}

/// Those that are known from the start, each once.
fn targets(config: &crate::Config) -> Result<Vec<Target>, SshError> {
    let target = |url: String, origin| Target {
        urls: vec![url],
        hive_id: None,
        origin,
    };
    let mut targets: Vec<_> = config
        .hives
        .iter()
        .map(|url| target(url.clone(), Origin::Settings))
        .collect();
    if let Some(path) = &config.hives_from_ssh {
        let hives = ssh::hives(path, std::env::home_dir().as_deref())?;
        tracing::info!(path = %path.display(), hosts = hives.len(), "the hosts of the SSH configuration are asked for hives");
        tracing::debug!(?hives, "hosts of the SSH configuration");
        let new = hives.into_iter().filter(|hive| !config.hives.contains(&hive.url));
        targets.extend(new.map(|hive| target(hive.url, Origin::Ssh)));
    }
    Ok(targets)
}
