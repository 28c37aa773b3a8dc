//! A simulated cluster: the real sender's machine and the real registry under one virtual clock and a seeded network.
//!
//! One seed is one run. `scenario` draws what goes wrong, `world` (with `troubles`, `network`, `sender`, `queen`) makes it happen, and
//! `oracle` says at every step what the queen must show; it knows the truth (`ground`) and what reached her, and nothing of
//! how the registry works. The same seed gives the same run, so a failing one can be told again as a story (`journal`).
//! Must not know: wall clocks, threads, sockets, how the registry decides.

mod clock;
pub mod figures;
mod ground;
mod journal;
mod kind;
mod network;
mod oracle;
mod queen;
mod scenario;
mod sender;
mod troubles;
mod world;

pub use clock::Time;
pub use journal::Tally;
pub use oracle::{Broken, Rule};

use hive_contract::HiveHeartbeat;
use worker_contract::WorkerHeartbeat;

use self::{kind::Kind, scenario::Scenario, world::World};

/// Lines of a story that a person can be expected to read.
const STORY: usize = 150;

/// The first lie of a run.
#[derive(Debug, Clone)]
pub struct Violation {
    /// When, since the start of the run.
    pub at: Time,
    /// Which rule was broken.
    pub broken: Broken,
}

/// What came of a run.
#[derive(Debug, Clone)]
pub struct Run {
    /// Its seed.
    pub seed: u64,
    /// Two runs with the same digest were the same.
    pub digest: u64,
    /// Counts and times.
    pub tally: Tally,
    /// The first lie, if there was one.
    pub violation: Option<Violation>,
    /// What led to it, or what happened last; empty unless it was to be told.
    pub story: Vec<String>,
}

/// Runs a seed without a word: fast.
pub fn run(seed: u64) -> Run {
    play(&Scenario::draw(seed), false)
}

/// Runs a seed again and tells what happened up to the first lie, or up to the end.
pub fn replay(seed: u64) -> Run {
    play(&Scenario::draw(seed), true)
}

fn play(scenario: &Scenario, is_told: bool) -> Run {
    if scenario.hives {
        play_as::<HiveHeartbeat>(scenario, is_told)
    } else {
        play_as::<WorkerHeartbeat>(scenario, is_told)
    }
}

fn play_as<K: Kind>(scenario: &Scenario, is_told: bool) -> Run {
    let mut world = World::<K>::new(scenario, is_told);
    let violation = world.run();
    world.end_all();
    let slot = violation.as_ref().and_then(|violation| violation.broken.slot);
    let mut story = vec![world.summary()];
    story.extend(world.journal.story(slot, STORY));
    Run {
        seed: scenario.seed,
        digest: world.journal.digest(),
        tally: world.journal.tally,
        violation,
        story: if is_told { story } else { Vec::new() },
    }
}
