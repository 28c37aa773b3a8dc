//! The decision: what each device could do, and the best of them.

use std::cmp::{Ordering, Reverse};

use super::{Choice, Criterion, Decision, Device, Host, ModelNeed, Outcome, Problem, Strategy, Tenant, Verdict};
use crate::Need;

/// Decides where a model goes.
///
/// Total: any problem has a decision. Names of hosts, devices and workers are only passed on, never compared, but for
/// the model's, whose workers are not evicted.
pub fn decide(problem: &Problem) -> Decision {
    let mut verdicts = Vec::new();
    let mut offers: Vec<Offer<'_>> = Vec::new();
    for host in &problem.hosts {
        let own_workers = own_workers(problem, host);
        for device in &host.devices {
            let need = need_of(&problem.need, device);
            let (outcome, room) = examine(problem, need, host, device);
            let verdict = Verdict {
                host: host.id.clone(),
                device: device.id.clone(),
                outcome,
                lost_by: None,
                needs_bytes: need.bytes(need.least_tokens),
                free_bytes: device.free_bytes,
                total_bytes: device.total_bytes,
            };
            offers.extend(room.map(|room| Offer::new(verdicts.len(), need, host, own_workers, device, room)));
            verdicts.push(verdict);
        }
    }
    // The first of equals, as `min_by` has it.
    let best = offers.iter().min_by(|a, b| a.compare(b, problem.strategy).0);
    let Some(best) = best else {
        return Decision { choice: None, verdicts };
    };
    for other in offers.iter().filter(|offer| offer.verdict != best.verdict) {
        verdicts[other.verdict].lost_by = Some(best.compare(other, problem.strategy).1);
    }
    verdicts[best.verdict].outcome = Outcome::Chosen;
    Decision {
        choice: Some(best.choice()),
        verdicts,
    }
}

fn need_of<'a>(need: &'a ModelNeed, device: &Device) -> &'a Need {
    if device.is_gpu { &need.gpu } else { &need.cpu }
}

/// Workers of the model that the host has already.
fn own_workers(problem: &Problem, host: &Host) -> usize {
    let tenants = host.devices.iter().flat_map(|device| &device.tenants);
    tenants.filter(|tenant| tenant.model == problem.model).count()
}

/// Memory that the model could have of a device, and who would have to go.
struct Room<'a> {
    bytes: u64,
    evict: Vec<&'a Tenant>,
}

fn examine<'a>(problem: &Problem, need: &Need, host: &Host, device: &'a Device) -> (Outcome, Option<Room<'a>>) {
    if let Some(why) = host.closed.as_ref().or(device.closed.as_ref()) {
        return (Outcome::Closed { why: why.clone() }, None);
    }
    let free = device.free_bytes.min(device.total_bytes);
    if need.tokens_in(free).is_some() {
        let room = Room {
            bytes: free,
            evict: Vec::new(),
        };
        return (Outcome::Fits, Some(room));
    }
    let evictable = evictable(problem, device);
    // What they are said to give back may be an estimate; the device has no more than it has.
    let after = |evict: &[&Tenant]| free.saturating_add(bytes_of(evict)).min(device.total_bytes);
    if need.tokens_in(after(&evictable)).is_none() {
        let (pinned, others): (Vec<&Tenant>, Vec<&Tenant>) = device.tenants.iter().partition(|tenant| tenant.pinned);
        let too_small = Outcome::TooSmall {
            evictable_bytes: bytes_of(&evictable),
            busy: others.iter().filter(|tenant| tenant.idle_ms.is_none()).count(),
            pinned: pinned.len(),
        };
        return (too_small, None);
    }
    let missing = need.bytes(need.least_tokens).saturating_sub(free);
    let evict = fewest(&evictable, missing);
    let outcome = Outcome::FitsAfterEviction {
        evict: evict.iter().map(|tenant| tenant.worker.clone()).collect(),
        frees_bytes: bytes_of(&evict),
    };
    let bytes = after(&evict);
    (outcome, Some(Room { bytes, evict }))
}

fn bytes_of(tenants: &[&Tenant]) -> u64 {
    tenants
        .iter()
        .fold(0, |sum: u64, tenant| sum.saturating_add(tenant.bytes))
}

/// Those who may be evicted, in the order in which they are: spare ones first, then by how long they are idle; the first of
/// equals first.
fn evictable<'a>(problem: &Problem, device: &'a Device) -> Vec<&'a Tenant> {
    let may_go = |tenant: &&Tenant| tenant.idle_ms.is_some() && !tenant.pinned && tenant.model != problem.model;
    let tenants = device.tenants.iter().filter(|_| problem.may_evict);
    let mut evictable: Vec<&Tenant> = tenants.filter(may_go).collect();
    evictable.sort_by_key(|tenant| Reverse((tenant.is_replica, tenant.idle_ms)));
    evictable
}

/// The fewest of those, which are in order of preference, that give back the missing bytes; of several such sets the one
/// whose first member comes first in that order, and so on. All together are known to suffice.
fn fewest<'a>(evictable: &[&'a Tenant], missing: u64) -> Vec<&'a Tenant> {
    let count = largest(evictable).scan(0_u64, |sum, bytes| {
        *sum = sum.saturating_add(bytes);
        Some(*sum)
    });
    let count = count.take_while(|sum| *sum < missing).count() + 1;
    let mut chosen = Vec::with_capacity(count);
    let mut freed = 0_u64;
    for (place, tenant) in evictable.iter().enumerate() {
        let open = count - chosen.len();
        if open == 0 {
            break;
        }
        // Is enough left after this one, taking the largest of the others?
        let others = largest(&evictable[place + 1..]).take(open - 1);
        let most = others.fold(freed.saturating_add(tenant.bytes), u64::saturating_add);
        if most >= missing {
            freed = freed.saturating_add(tenant.bytes);
            chosen.push(*tenant);
        }
    }
    chosen
}

fn largest(tenants: &[&Tenant]) -> impl Iterator<Item = u64> + use<> {
    let mut bytes: Vec<u64> = tenants.iter().map(|tenant| tenant.bytes).collect();
    bytes.sort_unstable_by_key(|bytes| Reverse(*bytes));
    bytes.into_iter()
}

/// A device that could take the model, with all by which it is compared.
struct Offer<'a> {
    /// Its place among the verdicts.
    verdict: usize,
    host: &'a Host,
    device: &'a Device,
    evict: Vec<&'a Tenant>,
    own_workers: usize,
    kv_tokens: u64,
    bytes: u64,
    /// Free before the model comes, and after those who go have gone.
    room_bytes: u64,
}

impl<'a> Offer<'a> {
    fn new(
        verdict: usize,
        need: &Need,
        host: &'a Host,
        own_workers: usize,
        device: &'a Device,
        room: Room<'a>,
    ) -> Self {
        let kv_tokens = need.tokens_in(room.bytes).unwrap_or(need.least_tokens);
        Self {
            verdict,
            host,
            device,
            evict: room.evict,
            own_workers,
            kv_tokens,
            bytes: need.bytes(kv_tokens),
            room_bytes: room.bytes,
        }
    }

    fn choice(&self) -> Choice {
        Choice {
            host: self.host.id.clone(),
            device: self.device.id.clone(),
            kv_tokens: self.kv_tokens,
            bytes: self.bytes,
            evict: self.evict.iter().map(|tenant| tenant.worker.clone()).collect(),
        }
    }

    /// Less is better; and the criterion that made the difference.
    fn compare(&self, other: &Self, strategy: Strategy) -> (Ordering, Criterion) {
        let (by_own_workers, by_strategy) = match strategy {
            Strategy::Spread => (
                self.own_workers.cmp(&other.own_workers),
                (Criterion::FreeShare, self.by_free_share(other)),
            ),
            Strategy::Pack => (
                Ordering::Equal,
                (Criterion::Tighter, self.room_bytes.cmp(&other.room_bytes)),
            ),
        };
        let criteria = [
            (
                Criterion::NoEviction,
                (!self.evict.is_empty()).cmp(&!other.evict.is_empty()),
            ),
            (Criterion::Gpu, other.device.is_gpu.cmp(&self.device.is_gpu)),
            (Criterion::FewerEvictions, self.evict.len().cmp(&other.evict.len())),
            (
                Criterion::SpareEvictions,
                self.sole_evicted().cmp(&other.sole_evicted()),
            ),
            (Criterion::OtherHost, by_own_workers),
            (Criterion::HasFile, other.host.has_file.cmp(&self.host.has_file)),
            (Criterion::LargerCache, other.kv_tokens.cmp(&self.kv_tokens)),
            (
                Criterion::LongerIdle,
                other.shortest_idle_ms().cmp(&self.shortest_idle_ms()),
            ),
            by_strategy,
        ];
        let decisive = criteria.into_iter().find(|(_, ordering)| ordering.is_ne());
        decisive.map_or((Ordering::Equal, Criterion::Order), |(criterion, ordering)| {
            (ordering, criterion)
        })
    }

    /// Evicted workers whose model runs nowhere else.
    fn sole_evicted(&self) -> usize {
        self.evict.iter().filter(|tenant| !tenant.is_replica).count()
    }

    fn shortest_idle_ms(&self) -> u64 {
        let idle = self.evict.iter().filter_map(|tenant| tenant.idle_ms);
        idle.min().unwrap_or(u64::MAX)
    }

    /// The larger share first. Products instead of quotients, so that no rounding makes equals of unequals.
    fn by_free_share(&self, other: &Self) -> Ordering {
        let share = |of: &Self, total: u64| u128::from(of.room_bytes) * u128::from(total);
        share(other, self.device.total_bytes).cmp(&share(self, other.device.total_bytes))
    }
}
