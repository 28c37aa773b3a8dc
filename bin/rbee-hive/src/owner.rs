//! The machine's owner comes first: which foreign process on a GPU is the owner at work, and when he has left.
//!
//! Decisions only; `watch.rs` acts on them. A device's owner is away, at work, or gone for less than the calm.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use device_monitor::{ForeignProcess, Gpu, Named};
use hive_contract::{DeviceKind, OwnerProcess};
use tokio::time::Instant;

/// How long an owner has to be gone before workers come back: a game that loads its next level lets go for a moment.
const CALM: Duration = Duration::from_secs(30);
/// How long the drivers may go on naming a process of ours that has ended.
const AFTERLIFE: Duration = Duration::from_secs(10);

/// How long memory of a GPU has to be held by nobody whom the driver names, before it is the owner's: the list of processes
/// and the memory in use are not of the same moment.
const DOUBT: Duration = Duration::from_secs(5);
/// Number of an owner's process that the driver does not name. No process on a device has it.
const UNNAMED: u32 = 0;

/// What is seen of the owner on a GPU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Seen {
    /// At work.
    Owner(OwnerProcess),
    /// Not at work.
    Nobody,
    /// Nobody of a name is; whether somebody without is cannot be told.
    NobodyNamed,
}

/// Looks for the owner on a GPU, of which `used_mb` is in use now, and which the processes `ours` use. `None` if it does not
/// answer.
pub(crate) fn look_at(
    gpu: &Gpu,
    used_mb: Option<u64>,
    foreign: &[ForeignProcess],
    ours: &BTreeSet<u32>,
    least_bytes: u64,
) -> Option<Seen> {
    if let Some(owner) = at_work(foreign, least_bytes) {
        return Some(Seen::Owner(owner));
    }
    // Where the GPU has no memory of its own, or does not tell of it, there is nothing to go by.
    if gpu.named == Named::All || gpu.kind == DeviceKind::Metal || gpu.memory_used_mb.is_none() {
        return Some(Seen::Nobody);
    }
    let holds = |pid: &u32| gpu.processes.get(pid).and_then(|process| process.memory_mb);
    if ours.iter().any(|pid| holds(pid).is_none()) {
        return Some(Seen::NobodyNamed);
    }
    let named: u64 = gpu.processes.keys().filter_map(holds).sum();
    let vram_mb = used_mb?.saturating_sub(named);
    Some(match vram_mb << 20 >= least_bytes {
        true => Seen::Owner(OwnerProcess {
            pid: UNNAMED,
            name: None,
            vram_mb,
        }),
        false => Seen::Nobody,
    })
}

/// The process by which the owner uses a device: the one that holds most of it, if that is at least `least_bytes`.
fn at_work(foreign: &[ForeignProcess], least_bytes: u64) -> Option<OwnerProcess> {
    let holds = |process: &ForeignProcess| process.memory_mb.unwrap_or(0);
    let largest = foreign.iter().max_by_key(|process| holds(process))?;
    (holds(largest) << 20 >= least_bytes).then(|| OwnerProcess {
        pid: largest.pid,
        name: largest.name.clone(),
        vram_mb: holds(largest),
    })
}

/// An owner for people: `` `blender` (process 77) holds 9000 MiB ``.
pub(crate) fn describe(owner: &OwnerProcess) -> String {
    format!("{} holds {} MiB", name(owner), owner.vram_mb)
}

/// The same without what it holds.
pub(crate) fn name(owner: &OwnerProcess) -> String {
    match &owner.name {
        Some(name) => format!("`{name}` (process {})", owner.pid),
        None if owner.pid == UNNAMED => "a process that the driver does not name".to_owned(),
        None => format!("process {}", owner.pid),
    }
}

/// Something changed on a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Turn {
    /// Its owner is at work.
    Came { device: String, owner: OwnerProcess },
    /// Its owner has let go, perhaps for a moment only.
    Left { device: String },
}

/// Where owners are, by device; one that is away is not listed.
#[derive(Debug, Default)]
pub(crate) struct Owners {
    devices: BTreeMap<String, Presence>,
    /// Where an owner without a name has been seen, and since when.
    doubts: BTreeMap<String, Instant>,
}

#[derive(Debug)]
enum Presence {
    AtWork(OwnerProcess),
    GoneSince(Instant),
}

impl Owners {
    /// The owner who is at work on a device now.
    pub(crate) fn on(&self, device: &str) -> Option<&OwnerProcess> {
        match self.devices.get(device)? {
            Presence::AtWork(owner) => Some(owner),
            Presence::GoneSince(_) => None,
        }
    }

    /// Whether the owner has been away for so long that workers may come back.
    pub(crate) fn is_calm(&self, device: &str) -> bool {
        !self.devices.contains_key(device)
    }

    /// Takes note of who was seen at work on which device. A device that is not listed could not be looked at: it stays as
    /// it is.
    pub(crate) fn look(&mut self, seen: BTreeMap<String, Seen>, now: Instant) -> Vec<Turn> {
        let mut turns = Vec::new();
        for (device, seen) in seen {
            let owner = self.settle(&device, seen, now);
            let presence = self.devices.get(&device);
            match (presence, owner) {
                (None, None) => {}
                (Some(Presence::AtWork(_)), Some(owner)) => {
                    self.devices.insert(device, Presence::AtWork(owner));
                }
                (None | Some(Presence::GoneSince(_)), Some(owner)) => {
                    self.devices.insert(device.clone(), Presence::AtWork(owner.clone()));
                    turns.push(Turn::Came { device, owner });
                }
                (Some(Presence::AtWork(_)), None) => {
                    self.devices.insert(device.clone(), Presence::GoneSince(now));
                    turns.push(Turn::Left { device });
                }
                (Some(Presence::GoneSince(since)), None) => {
                    if now.saturating_duration_since(*since) >= CALM {
                        self.devices.remove(&device);
                    }
                }
            }
        }
        turns
    }

    /// Who is at work for all that is known by now.
    fn settle(&mut self, device: &str, seen: Seen, now: Instant) -> Option<OwnerProcess> {
        let before = self.on(device).cloned();
        match seen {
            Seen::Owner(owner) if owner.pid == UNNAMED && before.is_none() => {
                let since = *self.doubts.entry(device.to_owned()).or_insert(now);
                Some(owner).filter(|_| now.saturating_duration_since(since) >= DOUBT)
            }
            seen => {
                self.doubts.remove(device);
                match seen {
                    Seen::Owner(owner) => Some(owner),
                    Seen::Nobody => None,
                    Seen::NobodyNamed => before.filter(|owner| owner.pid == UNNAMED),
                }
            }
        }
    }
}

/// The hive's own processes, as opposed to foreign ones. One that has ended is remembered for as long as a driver may
/// still name it.
#[derive(Debug, Default)]
pub(crate) struct OwnProcesses {
    living: BTreeSet<u32>,
    ended: Vec<(u32, Instant)>,
}

impl OwnProcesses {
    /// From now on these live and no others.
    pub(crate) fn set(&mut self, living: BTreeSet<u32>, now: Instant) {
        let ended = self.living.difference(&living).map(|pid| (*pid, now));
        self.ended.extend(ended);
        self.ended
            .retain(|(_, since)| now.saturating_duration_since(*since) < AFTERLIFE);
        self.living = living;
    }

    /// All that are not to be taken for foreign ones.
    pub(crate) fn pids(&self, now: Instant) -> BTreeSet<u32> {
        let ended = self.ended.iter();
        let ended = ended.filter(|(_, since)| now.saturating_duration_since(*since) < AFTERLIFE);
        self.living.iter().copied().chain(ended.map(|(pid, _)| *pid)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn process(pid: u32, memory_mb: Option<u64>) -> ForeignProcess {
        ForeignProcess {
            pid,
            name: Some("blender".into()),
            memory_mb,
            util_percent: None,
        }
    }

    fn owner(pid: u32) -> Option<OwnerProcess> {
        at_work(&[process(pid, Some(9000))], GIB)
    }

    fn seen(owner: Option<OwnerProcess>) -> BTreeMap<String, Seen> {
        see(owner.map_or(Seen::Nobody, Seen::Owner))
    }

    fn see(seen: Seen) -> BTreeMap<String, Seen> {
        BTreeMap::from([("cuda:0".to_owned(), seen)])
    }

    fn unnamed(vram_mb: u64) -> OwnerProcess {
        OwnerProcess {
            pid: UNNAMED,
            name: None,
            vram_mb,
        }
    }

    /// A GPU of which 5000 MB are in use, whose driver names these processes.
    fn gpu(kind: DeviceKind, named: Named, processes: &[(u32, Option<u64>)]) -> Gpu {
        let held = |memory_mb| device_monitor::GpuProcess {
            memory_mb,
            ..Default::default()
        };
        Gpu {
            named,
            memory_used_mb: Some(5000),
            processes: processes.iter().map(|(pid, mb)| (*pid, held(*mb))).collect(),
            ..Gpu::new(kind, 0)
        }
    }

    #[test]
    fn memory_that_nobody_of_a_name_holds_is_the_owners() {
        let look = |gpu: &Gpu, used, ours: &[u32]| look_at(gpu, used, &[], &ours.iter().copied().collect(), GIB);
        let amd = |processes: &[_]| gpu(DeviceKind::Rocm, Named::Own, processes);
        let stranger = |mb| Some(Seen::Owner(unnamed(mb)));
        assert_eq!(look(&amd(&[]), Some(5000), &[]), stranger(5000));
        assert_eq!(look(&amd(&[(7, Some(3000))]), Some(5000), &[7]), stranger(2000));
        assert_eq!(look(&amd(&[(7, Some(4500))]), Some(5000), &[7]), Some(Seen::Nobody));
        assert_eq!(
            look(&amd(&[]), Some(5000), &[7]),
            Some(Seen::NobodyNamed),
            "it may be ours"
        );
        assert_eq!(look(&amd(&[]), None, &[]), None, "the driver hangs");
        let hidden = gpu(DeviceKind::Cuda, Named::None, &[]);
        assert_eq!(look(&hidden, Some(5000), &[]), stranger(5000));
        // One whose driver names all has none without a name, and the memory of a Mac is everybody's.
        assert_eq!(
            look(&gpu(DeviceKind::Cuda, Named::All, &[]), Some(5000), &[]),
            Some(Seen::Nobody)
        );
        assert_eq!(
            look(&gpu(DeviceKind::Metal, Named::None, &[]), Some(5000), &[]),
            Some(Seen::Nobody)
        );
    }

    #[test]
    fn an_owner_without_a_name_is_believed_after_a_while_and_until_he_is_seen_to_have_left() {
        let mut owners = Owners::default();
        let start = Instant::now();
        let mut look = |seen, seconds| words(&owners.look(see(seen), start + Duration::from_secs(seconds)));
        let nothing = Vec::<&str>::new();
        // A worker that has just ended, say.
        assert_eq!(look(Seen::Owner(unnamed(9000)), 0), nothing);
        assert_eq!(look(Seen::Nobody, 1), nothing);
        assert_eq!(look(Seen::Owner(unnamed(9000)), 2), nothing);
        assert_eq!(look(Seen::Owner(unnamed(9000)), 6), nothing);
        assert_eq!(look(Seen::Owner(unnamed(9000)), 7), ["came"]);
        assert_eq!(look(Seen::NobodyNamed, 8), nothing, "it cannot be told");
        assert_eq!(look(Seen::Nobody, 9), ["left"]);
        // Of one who had a name it can be told.
        assert_eq!(look(Seen::Owner(owner(7).unwrap()), 10), ["came"]);
        assert_eq!(look(Seen::NobodyNamed, 11), ["left"]);
        assert_eq!(
            describe(&unnamed(9000)),
            "a process that the driver does not name holds 9000 MiB"
        );
    }

    fn words(turns: &[Turn]) -> Vec<&'static str> {
        turns
            .iter()
            .map(|turn| match turn {
                Turn::Came { .. } => "came",
                Turn::Left { .. } => "left",
            })
            .collect()
    }

    #[test]
    fn the_largest_foreign_process_is_the_owner_if_it_is_large_enough() {
        let desktop = [process(1, Some(300)), process(2, Some(1023)), process(3, None)];
        assert_eq!(at_work(&desktop, GIB), None);
        let game = [process(1, Some(1024)), process(2, Some(4000)), process(3, None)];
        let owner = at_work(&game, GIB).unwrap();
        assert_eq!((owner.pid, owner.vram_mb), (2, 4000));
        assert_eq!(describe(&owner), "`blender` (process 2) holds 4000 MiB");
        assert_eq!(at_work(&[], GIB), None);
    }

    #[test]
    fn coming_and_leaving_is_told_once_and_calm_returns_after_a_while() {
        let mut owners = Owners::default();
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(words(&owners.look(seen(None), at(0))), Vec::<&str>::new());
        assert_eq!(words(&owners.look(seen(owner(7)), at(1))), ["came"]);
        assert_eq!(
            words(&owners.look(seen(owner(8)), at(2))),
            Vec::<&str>::new(),
            "still at work"
        );
        assert_eq!(owners.on("cuda:0").unwrap().pid, 8);
        assert_eq!(words(&owners.look(seen(None), at(3))), ["left"]);
        assert_eq!(owners.on("cuda:0"), None);
        for (seconds, is_calm) in [(32, false), (33, true), (34, true)] {
            assert_eq!(words(&owners.look(seen(None), at(seconds))), Vec::<&str>::new());
            assert_eq!(owners.is_calm("cuda:0"), is_calm, "after {seconds} s");
        }
    }

    #[test]
    fn an_owner_who_is_back_before_the_calm_begins_it_anew() {
        let mut owners = Owners::default();
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        owners.look(seen(owner(7)), at(0));
        owners.look(seen(None), at(1));
        assert_eq!(words(&owners.look(seen(owner(7)), at(20))), ["came"]);
        owners.look(seen(None), at(21));
        owners.look(seen(None), at(50));
        assert!(!owners.is_calm("cuda:0"));
        owners.look(seen(None), at(51));
        assert!(owners.is_calm("cuda:0"));
    }

    #[test]
    fn a_device_that_cannot_be_looked_at_stays_as_it_was() {
        let mut owners = Owners::default();
        let start = Instant::now();
        owners.look(seen(owner(7)), start);
        owners.look(BTreeMap::new(), start + Duration::from_secs(600));
        assert!(owners.on("cuda:0").is_some());
    }

    #[test]
    fn a_worker_that_has_just_ended_is_no_stranger() {
        let mut own = OwnProcesses::default();
        let start = Instant::now();
        own.set(BTreeSet::from([3, 4]), start);
        own.set(BTreeSet::from([4]), start + Duration::from_secs(100));
        let pids = |seconds| own.pids(start + Duration::from_secs(seconds));
        assert_eq!(pids(101), BTreeSet::from([3, 4]));
        assert_eq!(pids(110), BTreeSet::from([4]));
    }
}
