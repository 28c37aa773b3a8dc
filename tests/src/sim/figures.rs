//! Measurements of the heartbeat plane under one kind of trouble at a time.

use std::time::Duration;

use super::{
    Run, Tally, play,
    scenario::{Cut, Scenario, Trouble},
};

const HOUR: Duration = Duration::from_secs(3_600);
/// When the trouble begins: everybody is known by then.
const BEGIN: Duration = Duration::from_secs(300);

/// `slots` workers for `hours` at a loss of requests and of answers, and nothing else wrong: whoever is called lost is called so
/// falsely.
pub fn lossy(seed: u64, slots: usize, hours: u32, loss: f64) -> Run {
    let mut scenario = Scenario::quiet(seed, slots, HOUR * hours);
    scenario.network.loss = loss;
    play(&scenario, false)
}

/// One host in ten is cut off for `lasting`, and its members come back.
pub fn healed(seed: u64, slots: usize, lasting: Duration) -> Run {
    let mut scenario = Scenario::quiet(seed, slots, BEGIN * 2 + lasting);
    let (first, count) = (0, scenario.hosts.div_ceil(10));
    scenario.troubles = vec![(
        BEGIN,
        Trouble::CutOff {
            first,
            count,
            cut: Cut::Both,
            lasting,
        },
    )];
    play(&scenario, false)
}

/// One worker in ten dies without a word.
pub fn killed(seed: u64, slots: usize) -> Run {
    let mut scenario = Scenario::quiet(seed, slots, BEGIN * 2);
    let gap = Duration::from_millis(137);
    let crash = |n: usize| (BEGIN + gap * n as u32, Trouble::Crash { slot: n * 10 });
    scenario.troubles = (0..slots / 10).map(crash).collect();
    play(&scenario, false)
}

/// The queen's own link is cut for `lasting`.
pub fn silenced(seed: u64, slots: usize, lasting: Duration) -> Run {
    let mut scenario = Scenario::quiet(seed, slots, BEGIN * 2 + lasting);
    let count = scenario.hosts;
    scenario.troubles = vec![(
        BEGIN,
        Trouble::CutOff {
            first: 0,
            count,
            cut: Cut::Both,
            lasting,
        },
    )];
    play(&scenario, false)
}

/// Beats per second that reach the queen, once she has asked `slots` senders for at most `max_beats_per_s`.
pub fn paced(seed: u64, slots: usize, max_beats_per_s: u32) -> f64 {
    let arrivals = |lasting: Duration| {
        let mut scenario = Scenario::quiet(seed, slots, lasting);
        scenario.max_beats_per_s = max_beats_per_s;
        let tally: Tally = play(&scenario, false).tally;
        tally.of("beats sent") as f64
    };
    (arrivals(HOUR * 2) - arrivals(HOUR)) / HOUR.as_secs_f64()
}
