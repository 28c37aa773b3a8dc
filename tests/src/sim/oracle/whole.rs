//! What must be true of the fleet as a whole: mass silence.

use std::{collections::HashSet, time::Duration};

use super::{Broken, Mass, Oracle, Rule, Told};

impl Oracle {
    /// The queen swept; whether the registry calls the view degraded after it. To be told before the sweep's events.
    pub(crate) fn swept(&mut self, queen_time: Duration, is_degraded: bool) -> Result<(), Broken> {
        self.listening.sweep(queen_time);
        self.waking = false;
        self.just_swept = true;
        let listened = self.listening.total;
        self.note_mass(listened);
        let began = self.degraded;
        if let (Some(since), false) = (began, is_degraded)
            && listened - since + self.plan.sweep_pause >= self.plan.options.preservation
        {
            // Believed in the end.
            self.mass = None;
        } else if began.is_some() && !is_degraded {
            self.restored = Some(listened);
        }
        self.degraded = is_degraded.then(|| began.unwrap_or(listened));
        let broken = |what: &str| {
            Err(Broken {
                rule: Rule::MassSilenceDegrades,
                slot: None,
                what: what.to_owned(),
            })
        };
        if is_degraded && began.is_none() && !self.is_mass(listened, true) {
            return broken("the view is degraded without mass silence");
        }
        if is_degraded && !self.is_mass(listened, false) {
            return broken("the view is still degraded, though most are back");
        }
        match &self.mass {
            Some(mass) if !is_degraded && !self.is_believed(mass, listened) => {
                broken("many fell silent together, and the view is not degraded")
            }
            _ => Ok(()),
        }
    }

    /// The looks after a sweep are over.
    pub(crate) fn looked(&mut self) {
        self.just_swept = false;
    }

    /// Whether it has lasted for so long that the silence must be believed.
    pub(super) fn is_believed(&self, mass: &Mass, listened: Duration) -> bool {
        // The registry may have noticed it somewhat earlier.
        let slack = self.longest_ttl() * 2;
        listened.saturating_sub(mass.since) + slack >= self.plan.options.preservation
    }

    fn longest_ttl(&self) -> Duration {
        let ttls = self.slots.iter().filter_map(|slot| slot.told).map(|told| told.ttl);
        ttls.max().unwrap_or_default()
    }

    /// Who is lost, each with how long ago.
    fn silent(&self, listened: Duration) -> impl Iterator<Item = (usize, Told, Duration)> {
        self.slots.iter().enumerate().filter_map(move |(place, slot)| {
            let told = slot.told?;
            let lost_for = self.silence(&told, listened).checked_sub(told.ttl)?;
            Some((place, told, lost_for))
        })
    }

    fn alive_hosts(&self, listened: Duration) -> (usize, HashSet<usize>) {
        let beating = self.slots.iter().filter_map(|slot| slot.told);
        let beating = beating.filter(|told| self.silence(told, listened) < told.ttl);
        let hosts: Vec<usize> = beating.map(|told| told.host).collect();
        (hosts.len(), hosts.into_iter().collect())
    }

    /// The rule to the letter: of those that fell silent within a TTL and those that beat, more than a third fell silent, two
    /// at least, and not just the whole of one host while another lives. Once it has begun, all that are silent may count.
    fn is_mass(&self, listened: Duration, is_start: bool) -> bool {
        let fell: Vec<usize> = self
            .silent(listened)
            .filter(|(_, told, lost_for)| !is_start || *lost_for < told.ttl)
            .map(|(_, told, _)| told.host)
            .collect();
        let (alive, alive_hosts) = self.alive_hosts(listened);
        let is_one_host = || {
            let hosts: HashSet<usize> = fell.iter().copied().collect();
            hosts.len() == 1 && alive_hosts.iter().any(|host| !hosts.contains(host))
        };
        fell.len() >= 2 && fell.len() * 3 > fell.len() + alive && !(is_start && is_one_host())
    }

    /// Notes what nobody can take for anything else: more than a third of all that are known, even of those lost long ago.
    fn note_mass(&mut self, listened: Duration) {
        let members = self.slots.iter().filter(|slot| slot.told.is_some()).count();
        let (_, alive_hosts) = self.alive_hosts(listened);
        let mut fell = Vec::new();
        let mut hosts = HashSet::new();
        let mut silent = HashSet::new();
        for (place, told, lost_for) in self.silent(listened) {
            silent.insert(place);
            if lost_for < told.ttl.mul_f64(0.9) {
                fell.push(place);
                hosts.insert(told.host);
            }
        }
        if let Some(mass) = &mut self.mass {
            mass.cohort.retain(|place| silent.contains(place));
            let is_over = mass.cohort.len() < 2 || mass.cohort.len() * 3 <= members;
            if !is_over {
                return;
            }
            self.mass = None;
        }
        let is_one_host = hosts.len() == 1 && alive_hosts.iter().any(|host| !hosts.contains(host));
        if fell.len() >= 2 && fell.len() * 3 > members && !is_one_host {
            self.mass = Some(Mass {
                since: listened,
                cohort: fell,
            });
        }
    }
}
