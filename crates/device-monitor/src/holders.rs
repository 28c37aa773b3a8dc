//! Which processes hold memory of a DRM device, by what the kernel tells of their open files (`drm-usage-stats`).
//!
//! Files of other users' processes cannot be read without privileges, so these are this user's own.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

use crate::GpuProcess;
use crate::system::process_name;

const MB: u64 = 1024 * 1024;
/// Going through all processes is dear, so it is done when the memory that no known process holds changed by this much,
const STEP_MB: u64 = 64;
/// but at most once in so many readings,
const LEAST_READINGS: u32 = 5;
/// and at least once in so many, for drivers that do not tell how much is in use.
const MOST_READINGS: u32 = 60;

/// Finds the processes, and remembers them.
#[derive(Debug)]
pub(crate) struct Holders {
    proc_root: PathBuf,
    known: BTreeSet<u32>,
    /// By device, what no known process held after the last search.
    unexplained: BTreeMap<String, u64>,
    since_search: u32,
}

/// Processes by device, which is named by its PCI address.
pub(crate) type Held = HashMap<String, HashMap<u32, GpuProcess>>;

impl Holders {
    pub(crate) fn new(proc_root: PathBuf) -> Self {
        Self {
            proc_root,
            known: BTreeSet::new(),
            unexplained: BTreeMap::new(),
            since_search: MOST_READINGS,
        }
    }

    /// Who holds memory now. `used` says for each device how much is in use, where that is known.
    pub(crate) fn read(&mut self, used: &BTreeMap<String, Option<u64>>) -> Held {
        let held = self.look(self.known.iter().copied().collect());
        self.since_search = self.since_search.saturating_add(1);
        let left = unexplained(used, &held);
        let moved = left.iter().any(|(device, left)| {
            let before = self.unexplained.get(device).copied().unwrap_or(0);
            left.abs_diff(before) >= STEP_MB
        });
        if self.since_search < MOST_READINGS && !(moved && self.since_search >= LEAST_READINGS) {
            return held;
        }
        self.since_search = 0;
        let held = self.look(all_processes(&self.proc_root));
        self.unexplained = unexplained(used, &held);
        held
    }

    fn look(&mut self, pids: Vec<u32>) -> Held {
        let mut held = Held::new();
        self.known.clear();
        for pid in pids {
            for (device, bytes) in memory_of(&self.proc_root, pid) {
                self.known.insert(pid);
                let process = GpuProcess {
                    name: process_name(&self.proc_root, pid),
                    memory_mb: Some(bytes / MB),
                    util_percent: None,
                };
                held.entry(device).or_default().insert(pid, process);
            }
        }
        held
    }
}

/// By device, the memory in use that these processes do not hold.
fn unexplained(used: &BTreeMap<String, Option<u64>>, held: &Held) -> BTreeMap<String, u64> {
    let known = used.iter().filter_map(|(device, used)| Some((device, (*used)?)));
    known
        .map(|(device, used)| {
            let processes = held.get(device).into_iter().flat_map(HashMap::values);
            let sum: u64 = processes.filter_map(|process| process.memory_mb).sum();
            (device.clone(), used.saturating_sub(sum))
        })
        .collect()
}

fn all_processes(proc_root: &Path) -> Vec<u32> {
    let entries = fs::read_dir(proc_root).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect()
}

/// Bytes that a process holds of each DRM device that it has open.
fn memory_of(proc_root: &Path, pid: u32) -> BTreeMap<String, u64> {
    let process = proc_root.join(pid.to_string());
    let files = fs::read_dir(process.join("fd")).into_iter().flatten().flatten();
    // Several files may belong to one client of the driver, and then tell the same.
    let mut clients: BTreeMap<(String, u64), u64> = BTreeMap::new();
    for file in files {
        if !fs::read_link(file.path()).is_ok_and(|target| target.starts_with("/dev/dri")) {
            continue;
        }
        let text = fs::read_to_string(process.join("fdinfo").join(file.file_name()));
        if let Some(client) = text.ok().as_deref().and_then(client) {
            clients.insert((client.device, client.id), client.bytes);
        }
    }
    let mut devices = BTreeMap::new();
    for ((device, _), bytes) in clients {
        *devices.entry(device).or_default() += bytes;
    }
    devices
}

/// What one open file tells of a client of a DRM driver.
#[derive(Debug, PartialEq, Eq)]
struct Client {
    device: String,
    id: u64,
    bytes: u64,
}

/// Reads the text of a `/proc/PID/fdinfo/N`.
fn client(text: &str) -> Option<Client> {
    let values: HashMap<&str, &str> = text
        .lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(key, value)| (key.trim(), value.trim()))
        .collect();
    let device = (*values.get("drm-pdev")?).to_owned();
    let id = values.get("drm-client-id")?.parse().ok()?;
    // The newer key says what lies there now; the older one, of amdgpu alone, the same. Regions are `vram`, or `vram0`
    // and so on where there are several.
    let sum = |prefix: &str| {
        let regions = values.iter().filter(|(key, _)| key.starts_with(prefix));
        let sizes: Vec<u64> = regions.filter_map(|(_, value)| size(value)).collect();
        (!sizes.is_empty()).then(|| sizes.iter().sum())
    };
    let bytes = sum("drm-resident-vram").or_else(|| sum("drm-memory-vram"))?;
    Some(Client { device, id, bytes })
}

/// Reads a size with an optional unit.
fn size(text: &str) -> Option<u64> {
    let mut parts = text.split_whitespace();
    let number: u64 = parts.next()?.parse().ok()?;
    let unit = match parts.next() {
        None => 1,
        Some("KiB") => 1 << 10,
        Some("MiB") => 1 << 20,
        Some(_) => return None,
    };
    number.checked_mul(unit)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) const DEVICE: &str = "0000:0a:00.0";

    /// Gives a process an open file of a DRM device.
    pub(crate) fn open(proc_root: &Path, pid: u32, file: u32, fdinfo: &str) {
        let process = proc_root.join(pid.to_string());
        fs::create_dir_all(process.join("fd")).unwrap();
        fs::create_dir_all(process.join("fdinfo")).unwrap();
        fs::write(process.join("comm"), format!("game-{pid}\n")).unwrap();
        let link = process.join(format!("fd/{file}"));
        let _ = fs::remove_file(&link);
        std::os::unix::fs::symlink("/dev/dri/renderD128", link).unwrap();
        fs::write(process.join(format!("fdinfo/{file}")), fdinfo).unwrap();
    }

    pub(crate) fn fdinfo(client: u64, mebibytes: u64) -> String {
        format!(
            "pos:\t0\ndrm-driver:\tamdgpu\ndrm-client-id:\t{client}\ndrm-pdev:\t{DEVICE}\ndrm-memory-vram:\t{} KiB\n\
             drm-memory-gtt: \t9999 KiB\n",
            mebibytes * 1024
        )
    }

    fn in_use(mebibytes: u64) -> BTreeMap<String, Option<u64>> {
        BTreeMap::from([(DEVICE.to_owned(), Some(mebibytes))])
    }

    fn memory(held: &Held) -> BTreeMap<u32, Option<u64>> {
        let processes = held.get(DEVICE).into_iter().flatten();
        processes.map(|(&pid, process)| (pid, process.memory_mb)).collect()
    }

    #[test]
    fn a_process_holds_what_its_clients_hold_and_each_client_counts_once() {
        let proc = tempfile::tempdir().unwrap();
        open(proc.path(), 7, 3, &fdinfo(1, 100));
        open(proc.path(), 7, 4, &fdinfo(1, 100));
        open(proc.path(), 7, 5, &fdinfo(2, 20));
        let held = Holders::new(proc.path().into()).read(&in_use(120));
        let process = &held[DEVICE][&7];
        assert_eq!(
            (process.memory_mb, process.name.as_deref()),
            (Some(120), Some("game-7"))
        );
    }

    #[test]
    fn a_newer_driver_names_its_regions_and_units_as_it_likes() {
        let text = "drm-driver: xe\ndrm-client-id: 3\ndrm-pdev: 0000:03:00.0\ndrm-total-vram0: 99 MiB\n\
                    drm-resident-vram0: 2 MiB\ndrm-resident-vram1: 512 KiB\ndrm-resident-gtt: 7 MiB\n";
        let expected = Client {
            device: "0000:03:00.0".into(),
            id: 3,
            bytes: (2 << 20) + (512 << 10),
        };
        assert_eq!(client(text), Some(expected));
        assert_eq!(client("pos:\t0\nflags:\t02\n"), None);
        assert_eq!(
            (size("0"), size("12"), size("1 GiB"), size("x")),
            (Some(0), Some(12), None, None)
        );
    }

    #[test]
    fn a_process_that_starts_is_found_when_memory_goes_that_nobody_known_holds() {
        let proc = tempfile::tempdir().unwrap();
        let mut holders = Holders::new(proc.path().into());
        assert!(holders.read(&in_use(500)).is_empty());
        open(proc.path(), 8, 3, &fdinfo(1, 1000));
        let readings = (1..).find(|_| !memory(&holders.read(&in_use(1500))).is_empty());
        assert_eq!(readings, Some(LEAST_READINGS));
    }

    #[test]
    fn known_processes_are_read_each_time_and_forgotten_when_they_end() {
        let proc = tempfile::tempdir().unwrap();
        let mut holders = Holders::new(proc.path().into());
        open(proc.path(), 7, 3, &fdinfo(1, 100));
        assert_eq!(memory(&holders.read(&in_use(100))), BTreeMap::from([(7, Some(100))]));
        open(proc.path(), 7, 3, &fdinfo(1, 101));
        assert_eq!(memory(&holders.read(&in_use(101))), BTreeMap::from([(7, Some(101))]));
        fs::remove_dir_all(proc.path().join("7")).unwrap();
        assert_eq!(memory(&holders.read(&in_use(0))), BTreeMap::new());
    }

    #[test]
    fn nothing_is_searched_while_the_memory_in_use_stays() {
        let proc = tempfile::tempdir().unwrap();
        let mut holders = Holders::new(proc.path().into());
        assert!(holders.read(&in_use(500)).is_empty());
        // It holds too little to be noticed, so that it shows when all are looked through again.
        open(proc.path(), 9, 3, &fdinfo(1, 1));
        let readings = (1..).find(|_| !memory(&holders.read(&in_use(501))).is_empty());
        assert_eq!(readings, Some(MOST_READINGS));
    }
}
