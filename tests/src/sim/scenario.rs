//! What happens in a run: drawn from its seed, and nothing else decides it.

use std::{ops::RangeInclusive, time::Duration};

use heartbeat_registry::{Pace, RegistryOptions};
use rand::{RngExt as _, SeedableRng as _, rngs::SmallRng};

use super::clock::Time;

/// One run: who there is, how good the network is, and what goes wrong when.
#[derive(Debug, Clone)]
pub(super) struct Scenario {
    /// Of everything that is drawn while it runs.
    pub seed: u64,
    /// Hives instead of workers.
    pub hives: bool,
    /// Ids.
    pub slots: usize,
    /// Machines that they run on, the queen's not counted.
    pub hosts: usize,
    /// What the queen asks of few senders.
    pub pace: Pace,
    /// Beyond so many beats per second she stretches it.
    pub max_beats_per_s: u32,
    /// Her registry's settings.
    pub options: RegistryOptions,
    /// Pause between two of her sweeps.
    pub sweep_pause: Duration,
    /// She asks all members 5 s after each start.
    pub pulls: bool,
    /// She calls back whoever is new at an address.
    pub calls_back: bool,
    /// Until `calm_from`; then nothing is lost any more.
    pub network: Network,
    /// Wall clocks of members are wrong by up to this.
    pub skew: Duration,
    /// Members start within this time.
    pub starts_within: Duration,
    /// What goes wrong, in order of time.
    pub troubles: Vec<(Time, Trouble)>,
    /// Everything is mended, and nothing goes wrong any more.
    pub calm_from: Time,
    /// The end.
    pub until: Time,
}

/// How good the network is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Network {
    /// Share of requests and of answers that are lost.
    pub loss: f64,
    /// Share of requests that come twice.
    pub duplicates: f64,
    /// Least and most time under way.
    pub delay: (Duration, Duration),
    /// Most time under way of a second copy, and of what a cut link held back.
    pub late: Duration,
}

/// Whether a stopped machine's monotonic clock goes on (SIGSTOP) or not (sleep).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Clock {
    /// It goes on.
    Runs,
    /// It stands still.
    Stands,
}

/// Which direction is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Cut {
    /// Both.
    Both,
    /// Beats do not arrive.
    Beats,
    /// Beats arrive, their answers do not.
    Acks,
    /// Only connections that the queen opens fail.
    Calls,
}

/// Whose twin a second sender with the same id is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Twin {
    /// Started later from a copy of the disk: a higher incarnation.
    Newer,
    /// Started with an older incarnation.
    Older,
    /// A copy of the running machine: the same incarnation and the same next sequence number.
    Snapshot,
}

/// One thing that goes wrong, or that people do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Trouble {
    /// A process dies for ever.
    Crash { slot: usize },
    /// It dies and starts again under the next incarnation, perhaps on another host.
    Restart { slot: usize, host: usize, down: Duration },
    /// It dies, and its hive tells the queen so.
    Exit { slot: usize, told_after: Duration },
    /// It stops cleanly; `back_after` zero: for ever.
    Goodbye { slot: usize, back_after: Duration },
    /// All processes of a host die at once.
    PowerCut { host: usize },
    /// A second sender with the same id.
    Clone {
        slot: usize,
        host: usize,
        twin: Twin,
        lives: Duration,
    },
    /// It goes to another host without a restart, as a laptop does.
    Move { slot: usize, host: usize },
    /// It is stopped for a time.
    Stop {
        slot: usize,
        clock: Clock,
        lasting: Duration,
    },
    /// A share of the hosts, from one on, is cut off.
    CutOff {
        first: usize,
        count: usize,
        cut: Cut,
        lasting: Duration,
    },
    /// The queen is stopped.
    StopQueen { clock: Clock, lasting: Duration },
    /// She starts again, knowing nothing.
    RestartQueen { down: Duration },
    /// A request to the member takes some time and fails.
    Suspect { slot: usize, took: Duration },
    /// A request to the member takes some time and is answered.
    Answer { slot: usize, took: Duration },
    /// Its status changes.
    Change { slot: usize },
    /// A request is sent to it and lasts for a time.
    Claim { slot: usize, lasting: Duration },
}

/// Kinds of [`Trouble`]: each run leaves some of them out, so that rare combinations come together.
const KINDS: u32 = 15;

impl Scenario {
    /// The run of a seed.
    pub(super) fn draw(seed: u64) -> Self {
        let mut draw = Draw(SmallRng::seed_from_u64(seed));
        let (slots, minutes, troubles) = match draw.0.random_range(0..100) {
            0..3 => (draw.of(300..=1_000), draw.of(5..=12), draw.of(10..=80)),
            3..15 => (draw.of(30..=150), draw.of(8..=40), draw.of(10..=80)),
            _ => (draw.of(1..=16), draw.of(10..=90), draw.of(3..=50)),
        };
        let hosts = (slots / draw.of(1..=8)).max(1);
        let pace = draw.pace();
        let calm_pace = pace.interval;
        let max_beats_per_s = match draw.chance(0.2) {
            true => ((slots as f64 / calm_pace.as_secs_f64() / draw.0.random_range(1.0..4.0)) as u32).max(1),
            false => 50,
        };
        let stretched = pace.stretched(slots, max_beats_per_s);
        let retention = draw.one_of(&[600, 600, 300, 120]);
        let retention = Duration::from_secs(retention).max(stretched.ttl / 2);
        let sweep_pause = (pace.ttl / 10).clamp(Duration::from_millis(50), Duration::from_secs(1));
        let options = RegistryOptions {
            retention,
            tombstones: draw.day_or(Duration::from_secs(1_800)),
            preservation: draw.day_or(Duration::from_secs(1_200)),
            longest_pause: sweep_pause * 2,
            event_capacity: 8 * slots + 64,
            ..RegistryOptions::default()
        };
        let calm_from = Duration::from_secs(60 * minutes as u64);
        let tail = if draw.chance(0.4) { retention } else { Duration::ZERO };
        let until = calm_from + stretched.ttl + 3 * stretched.interval + tail + Duration::from_secs(30);
        let troubles = draw.troubles(troubles, slots, hosts, calm_from);
        Self {
            seed,
            hives: draw.chance(0.25),
            slots,
            hosts,
            pace,
            max_beats_per_s,
            options,
            sweep_pause,
            pulls: draw.chance(0.3),
            calls_back: draw.chance(0.5),
            network: draw.network(pace.interval),
            skew: Duration::from_secs(if draw.chance(0.5) { 3_600 } else { 0 }),
            starts_within: draw.one_of(&[Duration::ZERO, Duration::from_secs(30), Duration::from_secs(300)]),
            troubles,
            calm_from,
            until,
        }
    }

    /// A quiet fleet of workers at the contract's pace, for measurements that add their own trouble.
    pub(super) fn quiet(seed: u64, slots: usize, lasting: Duration) -> Self {
        Self {
            seed,
            hives: false,
            slots,
            hosts: slots.div_ceil(4),
            pace: Pace::default(),
            max_beats_per_s: 50,
            options: RegistryOptions {
                longest_pause: Duration::from_secs(2),
                event_capacity: 8 * slots + 64,
                ..RegistryOptions::default()
            },
            sweep_pause: Duration::from_secs(1),
            pulls: false,
            calls_back: false,
            network: Network {
                loss: 0.0,
                duplicates: 0.0,
                delay: (Duration::from_millis(1), Duration::from_millis(50)),
                late: Duration::ZERO,
            },
            skew: Duration::ZERO,
            starts_within: Duration::from_secs(30),
            troubles: Vec::new(),
            calm_from: lasting,
            until: lasting,
        }
    }
}

/// The draws of one scenario.
struct Draw(SmallRng);

impl Draw {
    fn of(&mut self, range: RangeInclusive<usize>) -> usize {
        self.0.random_range(range)
    }

    fn chance(&mut self, share: f64) -> bool {
        self.0.random_bool(share)
    }

    fn one_of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.0.random_range(0..choices.len())]
    }

    fn day_or(&mut self, short: Duration) -> Duration {
        if self.chance(0.7) {
            Duration::from_secs(86_400)
        } else {
            short
        }
    }

    fn pace(&mut self) -> Pace {
        let interval = Duration::from_secs(self.one_of(&[30, 30, 30, 30, 30, 10, 5, 2]));
        Pace {
            interval,
            ttl: 3 * interval,
        }
    }

    /// Short ones are as likely as long ones.
    fn lasting(&mut self, least_s: f64, most_s: f64) -> Duration {
        let exponent = self.0.random_range(least_s.ln()..=most_s.ln());
        Duration::from_secs_f64(exponent.exp())
    }

    fn network(&mut self, interval: Duration) -> Network {
        let most = self.one_of(&[0.05, 0.3, 1.0, 5.0, 10.0]);
        let most = Duration::from_secs_f64(most).min(interval / 3);
        Network {
            loss: self.one_of(&[0.0, 0.0, 0.0, 0.01, 0.05, 0.2]),
            duplicates: self.one_of(&[0.0, 0.05, 0.3]),
            delay: (Duration::from_micros(100), most),
            late: self.one_of(&[most, most, Duration::from_secs(8), Duration::from_secs(60)]),
        }
    }

    fn troubles(&mut self, count: usize, slots: usize, hosts: usize, before: Time) -> Vec<(Time, Trouble)> {
        let kinds: Vec<u32> = (0..KINDS).filter(|_| self.0.random_bool(0.5)).collect();
        if kinds.is_empty() {
            return Vec::new();
        }
        let mut troubles: Vec<_> = (0..count)
            .map(|_| {
                let kind = self.one_of(&kinds);
                (
                    self.0.random_range(Time::ZERO..before),
                    self.trouble(kind, slots, hosts),
                )
            })
            .collect();
        troubles.sort_by_key(|(at, _)| *at);
        troubles
    }

    fn trouble(&mut self, kind: u32, slots: usize, hosts: usize) -> Trouble {
        let (slot, host) = (self.of(0..=slots - 1), self.of(0..=hosts - 1));
        let clock = self.one_of(&[Clock::Runs, Clock::Stands]);
        match kind {
            0 => Trouble::Crash { slot },
            1 => Trouble::Restart {
                slot,
                host,
                down: self.lasting(0.1, 300.0),
            },
            2 => Trouble::Exit {
                slot,
                told_after: self.lasting(0.05, 5.0),
            },
            3 => Trouble::Goodbye {
                slot,
                back_after: if self.chance(0.5) {
                    self.lasting(0.1, 100.0)
                } else {
                    Duration::ZERO
                },
            },
            4 => Trouble::PowerCut { host },
            5 => Trouble::Clone {
                slot,
                host,
                twin: self.one_of(&[Twin::Newer, Twin::Older, Twin::Snapshot]),
                lives: self.lasting(1.0, 1_200.0),
            },
            6 => Trouble::Move { slot, host },
            7 => Trouble::Stop {
                slot,
                clock,
                lasting: self.lasting(0.5, 600.0),
            },
            8 => self.cut_off(hosts),
            9 => Trouble::StopQueen {
                clock,
                lasting: self.lasting(0.1, 600.0),
            },
            10 => Trouble::RestartQueen {
                down: self.lasting(0.05, 120.0),
            },
            11 => Trouble::Suspect {
                slot,
                took: self.lasting(0.001, 60.0),
            },
            12 => Trouble::Answer {
                slot,
                took: self.lasting(0.001, 60.0),
            },
            13 => Trouble::Change { slot },
            _ => Trouble::Claim {
                slot,
                lasting: self.lasting(1.0, 300.0),
            },
        }
    }

    /// One host, some of them, or all: then it is the queen's own link.
    fn cut_off(&mut self, hosts: usize) -> Trouble {
        let count = match self.0.random_range(0..3) {
            0 => 1,
            1 => self.of(1..=hosts),
            _ => hosts,
        };
        Trouble::CutOff {
            first: self.of(0..=hosts - 1),
            count,
            cut: self.one_of(&[Cut::Both, Cut::Both, Cut::Beats, Cut::Acks, Cut::Calls]),
            lasting: self.lasting(1.0, 1_500.0),
        }
    }
}
