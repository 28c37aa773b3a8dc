//! A thousand simulated clusters, each with its own troubles, and not one lie. See `rbee_tests::sim`.
//!
//! `RBEE_SIM_SEED=123` replays one seed and tells its story; `RBEE_SIM_SEEDS=100000` runs more of them.

use std::{
    collections::BTreeMap,
    env,
    num::NonZeroUsize,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use rbee_tests::sim::{self, Rule, Run, Tally, figures};

const SEEDS: u64 = 1_000;

fn number(name: &str) -> Option<u64> {
    let text = env::var(name).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{name} must be a number, not `{text}`")),
    )
}

/// Runs all seeds on all cores; the order of the results says nothing.
fn run_all(seeds: u64) -> Vec<Run> {
    let next = AtomicU64::new(0);
    let runs = Mutex::new(Vec::new());
    let threads = thread::available_parallelism().map_or(1, NonZeroUsize::get);
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds {
                        return;
                    }
                    let run = sim::run(seed);
                    runs.lock().expect("no run panics").push(run);
                }
            });
        }
    });
    runs.into_inner().expect("no run panics")
}

/// Tells the story of a seed; true if it was without a lie.
fn tell(seed: u64) -> bool {
    let run = sim::replay(seed);
    run.story.iter().for_each(|line| println!("{line}"));
    match &run.violation {
        Some(violation) => println!("{:>12.3} s  BROKEN {}", violation.at.as_secs_f64(), violation.broken),
        None => println!("seed {seed}: no lie"),
    }
    run.violation.is_none()
}

#[test]
fn in_a_thousand_clusters_the_queen_never_lies() {
    if let Some(seed) = number("RBEE_SIM_SEED") {
        assert!(tell(seed), "seed {seed} broke a rule: see its story above");
        return;
    }
    let seeds = number("RBEE_SIM_SEEDS").unwrap_or(SEEDS);
    let mut runs = run_all(seeds);
    runs.sort_by_key(|run| run.seed);
    let mut broken: BTreeMap<Rule, Vec<u64>> = BTreeMap::new();
    let mut tally = Tally::default();
    for run in runs {
        if let Some(violation) = &run.violation {
            broken.entry(violation.broken.rule).or_default().push(run.seed);
        }
        tally.merge(run.tally);
    }
    println!("{} node-hours: {:?}", tally.node_seconds / 3_600, tally.counts);
    for (rule, seeds) in &broken {
        println!(
            "{rule:?} broken by {} seeds, for example {:?}",
            seeds.len(),
            &seeds[..seeds.len().min(5)]
        );
    }
    if let Some(seed) = broken.values().flatten().min() {
        tell(*seed);
        panic!("replay it with: RBEE_SIM_SEED={seed} cargo test -p rbee-tests --test simulation");
    }
    if seeds < SEEDS {
        return;
    }
    let happened = [
        "new",
        "updated",
        "restarted",
        "goodbye",
        "duplicate",
        "reordered",
        "older_incarnation",
        "departed",
        "conflict",
        "lost",
        "forgotten",
        "held back",
        "degraded view began or ended",
        "conflicts began",
        "conflicts ended",
        "exits told",
        "suspected",
        "call-backs answered",
        "call-backs in vain",
        "waited for a stopped queen",
        "refuted",
    ];
    for what in happened {
        assert!(
            tally.of(what) > 0,
            "`{what}` never happened: the simulation proves nothing about it"
        );
    }
}

#[test]
fn the_same_seed_gives_the_same_run() {
    for seed in 0..20 {
        let (one, other, told) = (sim::run(seed), sim::run(seed), sim::replay(seed));
        assert_eq!((one.digest, &one.tally), (other.digest, &other.tally), "seed {seed}");
        assert_eq!(one.digest, told.digest, "seed {seed}, told");
    }
    assert_ne!(sim::run(0).digest, sim::run(1).digest);
}

fn spread(mut times: Vec<Duration>) -> (Duration, Duration, Duration) {
    times.sort();
    assert!(!times.is_empty(), "nothing was measured");
    (times[0], times[times.len() / 2], times[times.len() - 1])
}

fn honest(run: Run) -> Tally {
    let violation = run.violation;
    assert!(violation.is_none(), "{violation:?}");
    run.tally
}

#[test]
fn at_five_percent_loss_nobody_who_beats_is_called_lost() {
    let mut tally = Tally::default();
    for seed in 0..4 {
        tally.merge(honest(figures::lossy(seed, 100, 10, 0.05)));
    }
    let (hours, lost) = (tally.node_seconds / 3_600, tally.of("lost"));
    println!("5 % loss: {lost} false positives in {hours} node-hours");
    assert!(hours >= 3_900);
    assert_eq!(lost, 0);
}

#[test]
fn a_healed_host_is_online_within_one_interval() {
    let tally = honest(figures::healed(1, 200, Duration::from_secs(300)));
    let (least, median, most) = spread(tally.heal_to_online);
    println!("from heal to online: least {least:?}, median {median:?}, most {most:?}");
    assert!(
        most <= Duration::from_secs(45),
        "one interval, its jitter and a try that hangs"
    );
}

#[test]
fn the_dead_are_lost_after_their_ttl_and_one_sweep() {
    let tally = honest(figures::killed(1, 200));
    let (least, median, most) = spread(tally.death_to_lost);
    println!("from death to lost: least {least:?}, median {median:?}, most {most:?}");
    assert!(
        most <= Duration::from_secs(91) + Duration::from_millis(50),
        "the TTL, a sweep, and the last beat's way"
    );
}

#[test]
fn an_hour_without_its_own_link_costs_the_queen_no_member() {
    let tally = honest(figures::silenced(1, 100, Duration::from_secs(3_600)));
    println!(
        "queen's own link cut for an hour: {} lost, {} forgotten",
        tally.of("lost"),
        tally.of("forgotten")
    );
    assert_eq!((tally.of("lost"), tally.of("forgotten")), (100, 0));
    assert_eq!(tally.of("degraded view began or ended"), 2);
}

#[test]
fn the_queen_gets_about_as_many_beats_as_she_asked_for() {
    let rate = figures::paced(1, 600, 5);
    println!("600 senders asked for 5 beats/s send {rate:.2} beats/s");
    // Jitter may shorten a pause by a tenth, and lengthen it up to a third of the TTL only.
    assert!((4.5..=5.5).contains(&rate), "{rate}");
}
