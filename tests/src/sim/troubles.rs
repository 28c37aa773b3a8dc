//! How each trouble befalls the world, and how it ends.

use std::time::Duration;

use heartbeat_registry::About;
use rand::RngExt as _;

use super::{
    clock::MachineClock,
    ground::Process,
    kind::Kind,
    oracle::Broken,
    scenario::{Clock, Cut, Trouble, Twin},
    sender::Sender,
    world::{Event, Mend, World},
};

/// A goodbye waits so long for the beat before it.
const LAST_ANSWER: Duration = Duration::from_secs(1);

impl<K: Kind> World<'_, K> {
    pub(super) fn trouble(&mut self, trouble: Trouble) -> Result<(), Broken> {
        self.note_trouble(trouble);
        match trouble {
            Trouble::Crash { slot } => self.crash(slot),
            Trouble::Restart { slot, host, down } => {
                self.crash(slot);
                self.agenda.after(down, Event::Start { slot, host });
            }
            Trouble::Exit { slot, told_after } => {
                if let Some(process) = self.newest(slot) {
                    self.end(process);
                    self.agenda.after(told_after, Event::Ended { process });
                }
            }
            Trouble::Goodbye { slot, back_after } => self.leave(slot, back_after),
            Trouble::PowerCut { host } => {
                for process in 0..self.ground.processes.len() {
                    if self.ground.processes[process].host == host {
                        self.end(process);
                    }
                }
            }
            Trouble::Clone {
                slot,
                host,
                twin,
                lives,
            } => self.clone_sender(slot, host, twin, lives),
            Trouble::Move { slot, host } => self.move_to(slot, host),
            Trouble::Stop { slot, clock, lasting } => self.stop(slot, clock, lasting),
            Trouble::CutOff {
                first,
                count,
                cut,
                lasting,
            } => {
                for host in first..first + count {
                    self.cut_off(host % self.plan.hosts, cut, lasting);
                }
            }
            Trouble::StopQueen { clock, lasting } => self.stop_queen(clock, lasting),
            Trouble::RestartQueen { down } => self.restart_queen(down),
            Trouble::Suspect { slot, took } => self.ask(slot, took, false),
            Trouble::Answer { slot, took } => self.ask(slot, took, true),
            Trouble::Change { slot } => {
                for process in self.running(slot) {
                    self.senders[process].ready ^= true;
                    self.senders[process].machine.beat_now();
                    self.stir(process);
                }
            }
            Trouble::Claim { slot, lasting } => self.claim(slot, lasting),
        }
        Ok(())
    }

    pub(super) fn mend(&mut self, mend: Mend) -> Result<(), Broken> {
        let now = self.agenda.now();
        match mend {
            Mend::Link { host, cut } => {
                self.journal
                    .note(now, None, host, || format!("host {host}: {cut:?} mended"));
                let host = &mut self.ground.hosts[host];
                if matches!(cut, Cut::Both | Cut::Beats) {
                    host.beats.unblock(now);
                }
                if matches!(cut, Cut::Both | Cut::Acks) {
                    host.acks.unblock(now);
                }
                if cut == Cut::Calls {
                    host.calls.unblock(now);
                }
            }
            Mend::Process {
                process,
                stopped,
                clock,
            } => self.resume(process, stopped, clock),
            Mend::Queen { stopped, clock } => self.resume_queen(stopped, clock)?,
            Mend::QueenUp => self.start_queen(),
            Mend::Twin { process } => self.end(process),
        }
        Ok(())
    }

    /// A new process under an id, with the next incarnation.
    pub(super) fn start(&mut self, slot: usize, host: usize) -> usize {
        let ids = self.ground.slots[slot].iter();
        let highest = ids.map(|it| self.ground.processes[*it].incarnation).max();
        // Newer ones leave room for a twin that is older than all.
        let incarnation = highest.unwrap_or(10_000) + 10;
        let now = self.agenda.now();
        let (clock, seed) = (MachineClock::new(self.base), self.rng.random());
        let skew = self.plan.skew.as_millis() as i64;
        let skew_ms = self.rng.random_range(-skew..=skew);
        let sender = Sender::new(self.plan.pace, incarnation, seed, clock, now, skew_ms);
        let process = self.add(slot, host, incarnation, sender);
        self.stir(process);
        process
    }

    fn add(&mut self, slot: usize, host: usize, incarnation: u64, sender: Sender) -> usize {
        let (now, process) = (self.agenda.now(), self.ground.processes.len());
        // Often the port of before, as a configured one is.
        let is_free = self.ground.living(slot).next().is_none() && self.rng.random_bool(0.5);
        let port = if is_free {
            9_000
        } else {
            20_000 + (process % 40_000) as u16
        };
        self.ground.processes.push(Process {
            slot,
            incarnation,
            host,
            port,
            names_host: self.rng.random_bool(0.3),
            started: now,
            born: now,
            renewed: now,
            ended: None,
            running: Some(now),
            settled: now,
            interval: self.plan.pace.interval,
        });
        self.ground.slots[slot].push(process);
        self.senders.push(sender);
        self.journal.note(now, Some(slot), process, || {
            format!("process {process} starts on host {host}, port {port}, incarnation {incarnation}")
        });
        process
    }

    /// The process that lives under an id, the newest if there are several.
    fn newest(&self, slot: usize) -> Option<usize> {
        self.ground
            .living(slot)
            .max_by_key(|it| self.ground.processes[*it].incarnation)
    }

    fn running(&self, slot: usize) -> Vec<usize> {
        let is_awake = |it: &usize| self.ground.processes[*it].running.is_some() && !self.senders[*it].leaving;
        self.ground.living(slot).filter(is_awake).collect()
    }

    fn crash(&mut self, slot: usize) {
        for process in self.ground.living(slot).collect::<Vec<_>>() {
            self.end(process);
        }
    }

    fn end(&mut self, process: usize) {
        let now = self.agenda.now();
        let facts = &mut self.ground.processes[process];
        if facts.ended.is_none() {
            facts.ended = Some(now);
            self.journal.tally.node_seconds += (now - facts.started).as_secs();
            let slot = facts.slot;
            self.journal
                .note(now, Some(slot), process, || format!("process {process} ends"));
        }
    }

    /// Counts the time of those that live at the end of the run.
    pub(super) fn end_all(&mut self) {
        (0..self.ground.processes.len()).for_each(|process| self.end(process));
    }

    fn leave(&mut self, slot: usize, back_after: Duration) {
        for process in self.running(slot) {
            self.senders[process].leaving = true;
            if self.senders[process].is_in_flight() {
                self.agenda.after(LAST_ANSWER, Event::Goodbye { process });
            } else {
                self.say_goodbye(process);
            }
        }
        if !back_after.is_zero() {
            let host = self.rng.random_range(0..self.plan.hosts);
            self.agenda.after(back_after + LAST_ANSWER, Event::Start { slot, host });
        }
    }

    pub(super) fn say_goodbye(&mut self, process: usize) {
        if self.ground.processes[process].ended.is_some() || self.ground.processes[process].running.is_none() {
            return;
        }
        self.senders[process].drop_exchange();
        let beat = self.senders[process].machine.goodbye();
        let letter = self.write(process, beat, true, None);
        self.post(letter);
        self.end(process);
    }

    fn clone_sender(&mut self, slot: usize, host: usize, twin: Twin, lives: Duration) {
        let Some(original) = self.newest(slot) else { return };
        let process = match twin {
            Twin::Newer => self.start(slot, host),
            Twin::Older | Twin::Snapshot => {
                let now = self.agenda.now();
                let (born, incarnation) = (
                    self.ground.processes[original].born,
                    self.ground.processes[original].incarnation,
                );
                let (sender, incarnation, born) = match twin {
                    Twin::Snapshot => (self.senders[original].snapshot(now), incarnation, born),
                    _ => {
                        let (clock, seed) = (MachineClock::new(self.base), self.rng.random());
                        // As if it had run all the time, unheard.
                        (
                            Sender::new(self.plan.pace, incarnation - 5, seed, clock, now, 0),
                            incarnation - 5,
                            Duration::ZERO,
                        )
                    }
                };
                let process = self.add(slot, host, incarnation, sender);
                self.ground.processes[process].born = born;
                self.stir(process);
                process
            }
        };
        // One that was taken while it was about to stop does so, too.
        if self.senders[process].leaving {
            self.say_goodbye(process);
        }
        self.ends(lives, Mend::Twin { process });
    }

    fn move_to(&mut self, slot: usize, host: usize) {
        let now = self.agenda.now();
        for process in self.running(slot) {
            let facts = &mut self.ground.processes[process];
            facts.host = host;
            facts.settled = now;
        }
    }

    fn stop(&mut self, slot: usize, clock: Clock, lasting: Duration) {
        let stopped = self.agenda.now();
        for process in self.running(slot) {
            self.ground.processes[process].running = None;
            self.ends(
                lasting,
                Mend::Process {
                    process,
                    stopped,
                    clock,
                },
            );
        }
    }

    fn resume(&mut self, process: usize, stopped: Duration, clock: Clock) {
        let now = self.agenda.now();
        let facts = &mut self.ground.processes[process];
        facts.running = Some(now);
        let slot = facts.slot;
        self.journal
            .note(now, Some(slot), process, || format!("process {process} runs again"));
        let answer = self.senders[process].resume(now, slept(now, stopped, clock));
        if let Some(answer) = answer {
            self.settled(process, &answer);
        }
        self.stir(process);
    }

    fn cut_off(&mut self, host: usize, cut: Cut, lasting: Duration) {
        let ways = &mut self.ground.hosts[host];
        if matches!(cut, Cut::Both | Cut::Beats) {
            ways.beats.block();
        }
        if matches!(cut, Cut::Both | Cut::Acks) {
            ways.acks.block();
        }
        if cut == Cut::Calls {
            ways.calls.block();
        }
        self.ends(lasting, Mend::Link { host, cut });
    }

    fn stop_queen(&mut self, clock: Clock, lasting: Duration) {
        if !self.queen.running {
            return;
        }
        let stopped = self.agenda.now();
        self.queen.running = false;
        self.ground.queen = None;
        self.ends(lasting, Mend::Queen { stopped, clock });
    }

    /// Her sockets are full and her timer is late; in which order she finds them is chance.
    fn resume_queen(&mut self, stopped: Duration, clock: Clock) -> Result<(), Broken> {
        if self.queen.registry.is_none() || self.queen.running {
            return Ok(());
        }
        let now = self.agenda.now();
        self.queen.clock.sleep(slept(now, stopped, clock));
        self.queen.run_again();
        self.ground.queen = Some(now);
        self.journal
            .note(now, None, "queen runs", || "queen runs again".to_owned());
        let (chain, at) = (self.queen.chain, self.waking());
        self.agenda.after(at, Event::Sweep { chain });
        for letter in std::mem::take(&mut self.queen.backlog) {
            let at = self.waking();
            self.agenda.after(at, Event::Arrive(Box::new(letter)));
        }
        self.oracle.queen_wakes();
        // Somebody may read before she sweeps.
        for slot in 0..self.plan.slots {
            self.look(slot)?;
        }
        Ok(())
    }

    fn restart_queen(&mut self, down: Duration) {
        if self.queen.registry.is_none() || !self.queen.running {
            return;
        }
        self.queen.stop();
        self.ground.queen = None;
        self.ends(down, Mend::QueenUp);
    }

    /// The process's hive told that it ended: only if it is the one that is known, as the queen decides by its pid.
    pub(super) fn ended(&mut self, process: usize) -> Result<(), Broken> {
        let now = self.agenda.now();
        let (slot, host) = (self.ground.processes[process].slot, self.ground.processes[process].host);
        let Some(registry) = self.queen.registry.as_ref().filter(|_| self.queen.running) else {
            return Ok(());
        };
        let id = K::id_of(slot);
        let known = registry
            .get(&id)
            .map(|member| member.report())
            .filter(|report| report.item.process() == process && self.ground.hosts[host].beats.is_open());
        let Some(report) = known else { return Ok(()) };
        registry.remove(&id, &report.about(self.queen.clock.read(now)));
        self.journal.tally.count("exits told");
        self.oracle.ended(slot, self.queen.clock.elapsed(now));
        self.hear_news()?;
        self.look(slot)
    }

    /// A request goes to the member as it is known now; how it ends is known later.
    fn ask(&mut self, slot: usize, took: Duration, is_answered: bool) {
        let asked = self.queen.clock.read(self.agenda.now());
        let member = self.queen.registry.as_ref().filter(|_| self.queen.running);
        if let Some(member) = member.and_then(|registry| registry.get(&K::id_of(slot))) {
            let (run, about) = (self.queen.run, Box::new(member.report().about(asked)));
            let ended = Event::Asked {
                run,
                slot,
                about,
                is_answered,
            };
            self.agenda.after(took, ended);
        }
    }

    pub(super) fn asked(&mut self, run: u32, slot: usize, about: &About, is_answered: bool) -> Result<(), Broken> {
        if run != self.queen.run || !self.queen.running {
            return Ok(());
        }
        let now = self.agenda.now();
        let queen_time = self.queen.clock.elapsed(now);
        if is_answered && self.queen.answered(slot, about, now) {
            let asked = about.asked.saturating_duration_since(self.base);
            self.oracle.called(slot, true, asked, queen_time);
        } else if !is_answered && self.queen.failed(slot, about, now) {
            self.journal.tally.count("suspected");
            self.oracle.suspected(slot, queen_time);
        }
        self.hear_news()?;
        self.look(slot)
    }

    fn claim(&mut self, slot: usize, lasting: Duration) {
        let now = self.agenda.now();
        let member = self
            .queen
            .registry
            .as_ref()
            .and_then(|registry| registry.get(&K::id_of(slot)));
        if let Some(member) = member {
            self.queen.leases.push((member.claim(), now + lasting));
            self.agenda.after(lasting, Event::Release);
        }
    }
}

fn slept(now: Duration, stopped: Duration, clock: Clock) -> Duration {
    match clock {
        Clock::Runs => Duration::ZERO,
        Clock::Stands => now - stopped,
    }
}
