//! The senders' side of the world and the network: who sends what, what is lost, comes late or twice, and how a request ends.

use std::time::Duration;

use heartbeat_client::Beat;
use rand::RngExt as _;
use shared_contract::Stamp;

use super::{
    ground::Ground,
    kind::{Kind, Said},
    queen::{Letter, wall},
    sender::Answer,
    world::{Event, World},
};

/// Most that a process takes to look at what lies in its sockets when it runs again.
pub(super) const WAKING: Duration = Duration::from_millis(60);

impl<K: Kind> World<'_, K> {
    /// Lets a process send what is due, and sets its timers. To be called whenever its machine was told something.
    pub(super) fn stir(&mut self, process: usize) {
        let now = self.agenda.now();
        let facts = &self.ground.processes[process];
        let sender = &mut self.senders[process];
        if facts.ended.is_some() || facts.running.is_none() || sender.leaving {
            return;
        }
        let sent = sender.poll(now);
        sender.timer += 1;
        if let Some(at) = sender.due() {
            let timer = sender.timer;
            self.agenda.at(at, Event::Wake { process, timer });
        }
        if let Some((exchange, at)) = sender.limit() {
            self.agenda.at(at, Event::Limit { process, exchange });
        }
        if let Some((beat, exchange)) = sent {
            let letter = self.write(process, beat, false, Some(exchange));
            self.post(letter);
        }
    }

    pub(super) fn write(&mut self, process: usize, beat: Beat, goodbye: bool, exchange: Option<u64>) -> Letter<K> {
        let now = self.agenda.now();
        let facts = &mut self.ground.processes[process];
        if facts.incarnation != beat.incarnation {
            facts.incarnation = beat.incarnation;
            facts.renewed = now;
            self.journal.tally.count("refuted");
        }
        let (facts, sender) = (&self.ground.processes[process], &self.senders[process]);
        let named = facts.names_host.then(|| Ground::address(facts.host).to_string());
        let mut item = K::compose(
            Said {
                slot: facts.slot,
                process,
                host: named.as_deref(),
                port: facts.port,
                ready: sender.ready,
                goodbye,
            },
            beat.delivery,
        );
        item.stamp(Stamp {
            incarnation: beat.incarnation,
            seq: beat.seq,
            timestamp: wall(now, sender.skew_ms),
        });
        Letter {
            run: self.queen.run,
            process,
            host: facts.host,
            exchange,
            sent: now,
            item,
        }
    }

    /// Gives a request to the network.
    pub(super) fn post(&mut self, letter: Letter<K>) {
        let now = self.agenda.now();
        self.journal.tally.count("beats sent");
        let slot = self.ground.processes[letter.process].slot;
        let order = letter.item.order();
        self.journal.note(now, Some(slot), (letter.process, order), || {
            format!("process {} sends {order:?} from host {}", letter.process, letter.host)
        });
        let network = self.plan.network;
        let delay = self.delay();
        if !self.ground.hosts[letter.host].beats.is_open() {
            // What the kernel holds may come through once the link is back, though nobody waits for it any more.
            if self.rng.random_bool(0.25) {
                let at = now + self.draw(network.late);
                self.agenda.at(at, Event::Arrive(Box::new(letter)));
            }
            return;
        }
        if self.queen.registry.is_none() {
            return self.reply(&letter, None);
        }
        if !self.is_calm && self.rng.random_bool(network.loss) {
            return self.journal.tally.count("requests lost");
        }
        if self.rng.random_bool(network.duplicates) {
            let late = if self.is_calm { delay } else { self.draw(network.late) };
            let copy = Letter {
                exchange: None,
                ..letter.clone()
            };
            self.agenda.after(late, Event::Arrive(Box::new(copy)));
        }
        self.agenda.after(delay, Event::Arrive(Box::new(letter)));
    }

    /// Sends an answer on its way.
    pub(super) fn reply(&mut self, letter: &Letter<K>, answer: Answer) {
        let (process, Some(exchange)) = (letter.process, letter.exchange) else {
            return;
        };
        let is_lost = !self.is_calm && self.rng.random_bool(self.plan.network.loss);
        if is_lost || !self.ground.hosts[letter.host].acks.is_open() {
            return;
        }
        let delay = self.delay();
        self.agenda.after(
            delay,
            Event::Answer {
                process,
                exchange,
                answer,
            },
        );
    }

    pub(super) fn answer(&mut self, process: usize, exchange: u64, answer: Answer) {
        let facts = &self.ground.processes[process];
        if facts.ended.is_some() || !self.ground.hosts[facts.host].acks.is_open() {
            return;
        }
        let now = self.agenda.now();
        if facts.running.is_none() {
            return self.senders[process].keep(exchange, answer);
        }
        if self.senders[process].settle(exchange, &answer, now) {
            self.settled(process, &answer);
        }
    }

    /// An exchange ended with an answer.
    pub(super) fn settled(&mut self, process: usize, answer: &Answer) {
        if let Some(ack) = answer {
            self.ground.processes[process].interval = Duration::from_millis(ack.interval_ms);
        }
        if self.senders[process].leaving {
            self.say_goodbye(process);
        }
        self.stir(process);
    }

    pub(super) fn limit(&mut self, process: usize, exchange: u64) {
        let now = self.agenda.now();
        let is_awake = self.ground.processes[process].running.is_some();
        let sender = &mut self.senders[process];
        if is_awake && sender.limit().is_some_and(|(current, _)| current == exchange) {
            sender.give_up_if_late(now);
            self.stir(process);
        }
    }

    /// Up to the most that the network takes.
    pub(super) fn delay(&mut self) -> Duration {
        let (least, most) = self.plan.network.delay;
        // Mostly short, at times long.
        let share = self.rng.random_range(0.0_f64..1.0).powi(4);
        least + most.saturating_sub(least).mul_f64(share)
    }

    pub(super) fn draw(&mut self, most: Duration) -> Duration {
        self.rng.random_range(Duration::ZERO..=most)
    }

    /// A moment after a process runs again.
    pub(super) fn waking(&mut self) -> Duration {
        self.draw(WAKING)
    }
}
