//! The world: carries beats, answers and troubles from the agenda to whom they concern, and shows the oracle what came of it.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use heartbeat_registry::{About, Outcome};
use rand::{SeedableRng as _, rngs::SmallRng};

use super::{
    Violation,
    clock::{Agenda, Time},
    ground::{Ground, Host},
    journal::Journal,
    kind::Kind,
    network::WAKING,
    oracle::{Arrival, Broken, Oracle, Sight},
    queen::{Letter, Queen},
    scenario::{Clock, Cut, Scenario, Trouble},
    sender::{Answer, Sender},
};

/// The queen's questions go out so long after her start.
const PULL_AFTER: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(super) enum Event<K> {
    Trouble(usize),
    /// A trouble's end, void if everything was mended before.
    Mend(u64),
    /// A process may have a beat to send.
    Wake {
        process: usize,
        timer: u64,
    },
    /// The exchange in flight may be late.
    Limit {
        process: usize,
        exchange: u64,
    },
    Arrive(Box<Letter<K>>),
    Answer {
        process: usize,
        exchange: u64,
        answer: Answer,
    },
    Goodbye {
        process: usize,
    },
    /// Void if she was stopped meanwhile.
    Sweep {
        chain: u64,
    },
    Pull {
        run: u32,
    },
    /// Somebody tries to reach a member for the queen, and the trial's end.
    Call {
        run: u32,
        slot: usize,
        about: Box<About>,
    },
    /// A request to a member ended.
    Asked {
        run: u32,
        slot: usize,
        about: Box<About>,
        is_answered: bool,
    },
    /// A hive tells that this process has ended.
    Ended {
        process: usize,
    },
    Start {
        slot: usize,
        host: usize,
    },
    Release,
    Calm,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Mend {
    Link {
        host: usize,
        cut: Cut,
    },
    Process {
        process: usize,
        stopped: Time,
        clock: Clock,
    },
    Queen {
        stopped: Time,
        clock: Clock,
    },
    QueenUp,
    /// The twin dies.
    Twin {
        process: usize,
    },
}

pub(super) struct World<'a, K: Kind> {
    pub(super) plan: &'a Scenario,
    pub(super) rng: SmallRng,
    pub(super) agenda: Agenda<Event<K>>,
    pub(super) base: Instant,
    pub(super) ground: Ground,
    pub(super) senders: Vec<Sender>,
    pub(super) queen: Queen<K>,
    pub(super) oracle: Oracle,
    pub(super) journal: Journal,
    /// Troubles that will end, so that calm can end them early.
    mends: BTreeMap<u64, Mend>,
    pub(super) is_calm: bool,
}

impl<'a, K: Kind> World<'a, K> {
    pub(super) fn new(plan: &'a Scenario, is_told: bool) -> Self {
        let base = Instant::now();
        let mut world = Self {
            plan,
            rng: SmallRng::seed_from_u64(plan.seed ^ 0x5eed),
            agenda: Agenda::new(),
            base,
            ground: Ground {
                hosts: vec![Host::default(); plan.hosts],
                slots: vec![Vec::new(); plan.slots],
                lossless: (plan.network.loss == 0.0).then_some(Time::ZERO),
                ..Ground::default()
            },
            senders: Vec::new(),
            queen: Queen::new(plan.slots, base),
            oracle: Oracle::new(plan),
            journal: Journal::new(is_told),
            mends: BTreeMap::new(),
            is_calm: false,
        };
        world.agenda.at(plan.calm_from, Event::Calm);
        for (place, (at, _)) in plan.troubles.iter().enumerate() {
            world.agenda.at(*at, Event::Trouble(place));
        }
        for slot in 0..plan.slots {
            let at = world.draw(plan.starts_within);
            let host = slot % plan.hosts;
            world.agenda.at(at, Event::Start { slot, host });
        }
        world.start_queen();
        world
    }

    /// Runs to the end or to the first lie.
    pub(super) fn run(&mut self) -> Option<Violation> {
        while let Some(event) = self.agenda.next(self.plan.until) {
            if let Err(broken) = self.happen(event) {
                let at = self.agenda.now();
                return Some(Violation { at, broken });
            }
        }
        None
    }

    fn happen(&mut self, event: Event<K>) -> Result<(), Broken> {
        let now = self.agenda.now();
        match event {
            Event::Trouble(place) => self.trouble(self.plan.troubles[place].1)?,
            Event::Mend(number) => {
                if let Some(mend) = self.mends.remove(&number) {
                    self.mend(mend)?;
                }
            }
            Event::Wake { process, timer } => {
                if self.senders[process].timer == timer {
                    self.stir(process);
                }
            }
            Event::Limit { process, exchange } => self.limit(process, exchange),
            Event::Arrive(letter) => self.arrive(*letter)?,
            Event::Answer {
                process,
                exchange,
                answer,
            } => self.answer(process, exchange, answer),
            Event::Goodbye { process } => self.say_goodbye(process),
            Event::Sweep { chain } => self.sweep(chain)?,
            Event::Pull { run } => self.pull(run),
            Event::Call { run, slot, about } => self.call(run, slot, about)?,
            Event::Asked {
                run,
                slot,
                about,
                is_answered,
            } => self.asked(run, slot, &about, is_answered)?,
            Event::Ended { process } => self.ended(process)?,
            Event::Start { slot, host } => drop(self.start(slot, host)),
            Event::Release => self.queen.leases.retain(|(_, until)| *until > now),
            Event::Calm => self.calm()?,
        }
        Ok(())
    }

    fn arrive(&mut self, letter: Letter<K>) -> Result<(), Broken> {
        if !self.ground.hosts[letter.host].beats.is_open() {
            return Ok(());
        }
        if self.queen.registry.is_none() || letter.run != self.queen.run {
            self.reply(&letter, None);
            return Ok(());
        }
        if !self.queen.running {
            let is_let_in = self.queen.keep(letter);
            self.journal.tally.count(if is_let_in {
                "waited for a stopped queen"
            } else {
                "backlog full"
            });
            return Ok(());
        }
        let now = self.agenda.now();
        let slot = self.ground.processes[letter.process].slot;
        let order = letter.item.order();
        let (receipt, recorded, ack) = self.queen.record(self.plan, &letter, now);
        self.journal.tally.count(outcome_word(recorded.outcome));
        self.journal.note(now, Some(slot), outcome_word(recorded.outcome), || {
            format!(
                "queen: {order:?} of process {} is {:?}",
                letter.process, recorded.outcome
            )
        });
        let arrival = Arrival {
            slot,
            process: letter.process,
            host: letter.host,
            order,
            goodbye: letter.item.is_goodbye(),
            pace: receipt.pace,
            sent: letter.sent,
            ahead_ms: self.senders[letter.process].skew_ms,
        };
        self.oracle
            .arrived(&self.ground, self.queen.clock.elapsed(now), now, &arrival, &recorded)?;
        self.reply(&letter, Some(ack));
        self.hear_news()?;
        self.look(slot)?;
        if self.plan.calls_back
            && let Some(about) = self.queen.wants_call(slot, now)
        {
            let (run, delay) = (self.queen.run, self.delay());
            let about = Box::new(about);
            self.agenda.after(delay, Event::Call { run, slot, about });
        }
        Ok(())
    }

    fn sweep(&mut self, chain: u64) -> Result<(), Broken> {
        if chain != self.queen.chain || !self.queen.running {
            return Ok(());
        }
        let now = self.agenda.now();
        self.agenda.after(self.plan.sweep_pause, Event::Sweep { chain });
        let Some(registry) = &self.queen.registry else {
            return Ok(());
        };
        let cleanup = registry.cleanup_stale(self.queen.clock.read(now), false);
        let preservation = registry.preservation();
        self.journal.tally.add("lost", cleanup.lost.len() as u64);
        self.journal.tally.add("forgotten", cleanup.removed.len() as u64);
        self.journal.tally.add("held back", cleanup.held_back as u64);
        let was_degraded = self.oracle.is_degraded();
        self.oracle
            .swept(self.queen.clock.elapsed(now), preservation.is_some())?;
        self.hear_news()?;
        self.look_at_all()?;
        self.oracle.looked();
        if was_degraded != preservation.is_some() {
            self.journal.tally.count("degraded view began or ended");
            self.journal.note(now, None, preservation.is_some(), || {
                format!("queen: preservation {preservation:?}")
            });
        }
        self.queen.leases_add_up().then_some(()).ok_or_else(Broken::leases)
    }

    /// Takes what the registry tells its subscribers.
    pub(super) fn hear_news(&mut self) -> Result<(), Broken> {
        let now = self.agenda.now();
        let news = self.queen.news(|item| self.ground.processes[item.process()].slot);
        let queen_time = self.queen.clock.elapsed(now);
        for (slot, event) in news {
            self.journal.note(now, Some(slot), format!("{:?}", event.kind), || {
                format!("event: {:?}", event.kind)
            });
            let order = event.report.item.order();
            self.oracle.event(
                &self.ground,
                (now, queen_time),
                slot,
                order,
                event.kind,
                &mut self.journal.tally,
            )?;
        }
        Ok(())
    }

    /// Compares what the registry shows of one id with what is true.
    pub(super) fn look(&mut self, slot: usize) -> Result<(), Broken> {
        let now = self.agenda.now();
        let Some(registry) = &self.queen.registry else {
            return Ok(());
        };
        let view = registry.view(&K::id_of(slot), self.queen.clock.read(now));
        let sight = view.as_ref().map(Sight::of);
        self.oracle.look(self.queen.clock.elapsed(now), slot, sight)
    }

    /// The same of all ids, and what holds for the whole.
    pub(super) fn look_at_all(&mut self) -> Result<(), Broken> {
        let now = self.agenda.now();
        for slot in 0..self.plan.slots {
            self.look(slot)?;
            self.oracle.converged(&self.ground, now, slot)?;
        }
        Ok(())
    }

    pub(super) fn start_queen(&mut self) {
        let now = self.agenda.now();
        self.queen.start(self.plan);
        self.ground.queen = Some(now);
        self.oracle.queen_started(self.queen.clock.elapsed(now));
        let run = self.queen.run;
        self.journal.note(now, None, run, || format!("queen starts, run {run}"));
        let chain = self.queen.chain;
        self.agenda.after(Duration::ZERO, Event::Sweep { chain });
        if self.plan.pulls {
            self.agenda.after(PULL_AFTER, Event::Pull { run });
        }
    }

    fn pull(&mut self, run: u32) {
        if run != self.queen.run || !self.queen.running {
            return;
        }
        for process in 0..self.senders.len() {
            if self.ground.can_be_called(process) && !self.senders[process].leaving {
                self.senders[process].pulled();
                self.stir(process);
            }
        }
    }

    fn call(&mut self, run: u32, slot: usize, about: Box<About>) -> Result<(), Broken> {
        if run != self.queen.run {
            return Ok(());
        }
        if !self.queen.running {
            self.agenda.after(WAKING, Event::Call { run, slot, about });
            return Ok(());
        }
        let now = self.agenda.now();
        let is_there = |process: &usize| {
            let facts = &self.ground.processes[*process];
            let address = Ground::address(facts.host).to_string();
            (about.address.host(), about.address.port()) == (address.as_str(), facts.port)
        };
        let living = self.ground.living(slot).filter(is_there);
        let is_answered = living.filter(|it| self.ground.can_be_called(*it)).count() > 0;
        if self.queen.called(slot, &about, is_answered, now) {
            let asked = about.asked.saturating_duration_since(self.base);
            self.oracle
                .called(slot, is_answered, asked, self.queen.clock.elapsed(now));
        }
        self.journal.tally.count(if is_answered {
            "call-backs answered"
        } else {
            "call-backs in vain"
        });
        self.hear_news()?;
        self.look(slot)
    }

    /// From now on nothing goes wrong.
    fn calm(&mut self) -> Result<(), Broken> {
        let now = self.agenda.now();
        self.journal
            .note(now, None, "calm", || "everything is mended".to_owned());
        self.is_calm = true;
        if self.ground.lossless.is_none() {
            self.ground.lossless = Some(now);
        }
        for mend in std::mem::take(&mut self.mends).into_values() {
            self.mend(mend)?;
        }
        Ok(())
    }

    /// A trouble that ends after a time, or when everything is mended.
    pub(super) fn ends(&mut self, lasting: Duration, mend: Mend) {
        let number = self.mends.last_key_value().map_or(0, |(last, _)| last + 1);
        self.mends.insert(number, mend);
        self.agenda.after(lasting, Event::Mend(number));
    }

    /// The run in one line.
    pub(super) fn summary(&self) -> String {
        let plan = self.plan;
        format!(
            "{} {} on {} hosts, pace {:?}/{:?}, at most {} beats/s, {:?}, calm from {:?}, until {:?}",
            plan.slots,
            K::KIND,
            plan.hosts,
            plan.pace.interval,
            plan.pace.ttl,
            plan.max_beats_per_s,
            plan.network,
            plan.calm_from,
            plan.until
        )
    }

    pub(super) fn note_trouble(&mut self, trouble: Trouble) {
        let now = self.agenda.now();
        self.journal
            .note(now, None, trouble, || format!("trouble: {trouble:?}"));
    }
}

fn outcome_word(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::New => "new",
        Outcome::Updated => "updated",
        Outcome::Restarted => "restarted",
        Outcome::Goodbye => "goodbye",
        Outcome::Dropped(reason) => reason.as_str(),
    }
}
