//! AMD and Intel GPUs, by what the kernel's DRM drivers show below `/sys/class/drm`.
//!
//! NVIDIA's cards stand there, too, but tell nothing; NVML reads them. Neither do the display chips of server boards count.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use hive_contract::DeviceKind;

use crate::holders::Holders;
use crate::{Gpu, GpuReading, Gpus, LocalOptions, Named};

const MB: u64 = 1024 * 1024;
/// Cards come and go seldom (by Thunderbolt, by a fault): they are looked for once in so many readings.
const SCAN_EVERY: u32 = 10;

/// The AMD and Intel GPUs of this host. A GPU keeps its number for as long as this lives.
#[derive(Debug)]
pub struct Drm {
    class: PathBuf,
    holders: Holders,
    /// All that were ever seen.
    cards: Vec<Card>,
    readings: u32,
}

/// A GPU, and what of it stays as it is.
#[derive(Debug)]
struct Card {
    /// Its PCI address, for example `0000:0a:00.0`.
    address: String,
    kind: DeviceKind,
    /// Among those of its kind.
    index: u32,
    is_there: bool,
    folder: PathBuf,
    /// Where its sensors stand.
    sensors: Option<PathBuf>,
    uuid: Option<String>,
    name: String,
    power_limit_watts: Option<f32>,
    /// Whether it lives on main memory: what the firmware cut out for it and what it may map beyond that count alike.
    shares_memory: bool,
    /// Microjoules that it had taken, and when, of a driver that tells no power.
    energy: Option<(u64, Instant)>,
}

impl Drm {
    /// Reads below `options.sysfs_root`.
    pub fn new(options: &LocalOptions) -> Self {
        Self {
            class: options.sysfs_root.join("class/drm"),
            holders: Holders::new(options.proc_root.clone()),
            cards: Vec::new(),
            readings: 0,
        }
    }

    /// Looks which cards there are.
    fn scan(&mut self) {
        let entries = fs::read_dir(&self.class).into_iter().flatten().flatten();
        // `card1` is a card, `card1-DP-1` is one of its connectors. Numbers may have gaps.
        let cards = entries.filter(|entry| {
            let name = entry.file_name();
            let number = name.to_str().and_then(|name| name.strip_prefix("card"));
            number.is_some_and(|number| number.parse::<u32>().is_ok())
        });
        let found: BTreeMap<String, (DeviceKind, PathBuf)> = cards
            .filter_map(|entry| {
                let folder = fs::canonicalize(entry.path().join("device")).ok()?;
                let address = folder.file_name()?.to_str()?.to_owned();
                Some((address, (kind_of(&folder)?, folder)))
            })
            .collect();
        for card in &mut self.cards {
            card.is_there = found.contains_key(&card.address);
        }
        for (address, (kind, folder)) in found {
            let known = self
                .cards
                .iter_mut()
                .find(|card| card.address == address && card.kind == kind);
            if let Some(card) = known {
                *card = Card {
                    energy: card.energy,
                    ..Card::read(address, kind, card.index, folder)
                };
            } else {
                let index = self.cards.iter().filter(|card| card.kind == kind).count() as u32;
                self.cards.push(Card::read(address, kind, index, folder));
            }
        }
    }
}

impl Gpus for Drm {
    fn driver(&self) -> &'static str {
        "kernel's graphics driver"
    }

    fn read(&mut self) -> GpuReading {
        if self.readings.is_multiple_of(SCAN_EVERY) {
            self.scan();
        }
        self.readings = self.readings.wrapping_add(1);
        if self.cards.is_empty() {
            return GpuReading::Absent {
                reason: format!("no AMD or Intel GPU below {}", self.class.display()),
            };
        }
        let now = Instant::now();
        let mut gpus: Vec<Gpu> = self.cards.iter_mut().map(|card| card.gpu(now)).collect();
        let there = self.cards.iter().zip(&gpus).filter(|(card, _)| card.is_there);
        let used = there
            .map(|(card, gpu)| (card.address.clone(), gpu.memory_used_mb))
            .collect();
        let mut held = self.holders.read(&used);
        for (card, gpu) in self.cards.iter().zip(&mut gpus) {
            gpu.processes = held.remove(&card.address).unwrap_or_default();
        }
        GpuReading::Present(gpus)
    }
}

impl Card {
    /// Reads what stays as it is.
    fn read(address: String, kind: DeviceKind, index: u32, folder: PathBuf) -> Self {
        let sensors = fs::read_dir(folder.join("hwmon")).ok().and_then(|entries| {
            let mut folders: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
            folders.sort();
            folders.into_iter().next()
        });
        let limit = sensors.as_deref().and_then(|sensors| {
            let microwatts = number(sensors, "power1_cap").or_else(|| number(sensors, "power1_max"))?;
            Some(microwatts as f32 / 1e6)
        });
        let vendor = if kind == DeviceKind::Rocm { "AMD" } else { "Intel" };
        let device = text(&folder, "device").unwrap_or_else(|| address.clone());
        let model = text(&folder, "product_name");
        let name = model.unwrap_or_else(|| format!("{vendor} GPU {}", device.trim_start_matches("0x")));
        // As ROCm writes it.
        let uuid = text(&folder, "unique_id").map(|id| format!("GPU-{id}"));
        Self {
            shares_memory: kind == DeviceKind::Rocm && shares_memory(&folder, sensors.as_deref()),
            address,
            kind,
            index,
            is_there: true,
            folder,
            sensors,
            uuid,
            name,
            power_limit_watts: limit,
            energy: None,
        }
    }

    /// What is known of it, and what changes as it is now.
    fn gpu(&mut self, now: Instant) -> Gpu {
        let gpu = Gpu {
            uuid: self.uuid.clone(),
            name: Some(self.name.clone()),
            power_limit_watts: self.power_limit_watts,
            named: Named::Own,
            ..Gpu::new(self.kind, self.index)
        };
        if !self.is_there {
            return Gpu {
                problem: Some(
                    "it is no longer on the PCI bus; if it does not come back, restart the machine".to_owned(),
                ),
                ..gpu
            };
        }
        // To be asked for more would wake it, and once a second would never let it sleep.
        let is_asleep = self.is_asleep();
        let gpu = Gpu {
            memory_total_mb: self.memory("total"),
            memory_used_mb: self.memory("used"),
            util_percent: is_asleep.then_some(0.0),
            ..gpu
        };
        if is_asleep {
            return gpu;
        }
        Gpu {
            util_percent: number(&self.folder, "gpu_busy_percent").map(|percent| percent as f32),
            temperature_celsius: self
                .sensor(&["temp1_input", "temp2_input"])
                .map(|milli| milli as f32 / 1e3),
            power_watts: self.power(now),
            ..gpu
        }
    }

    /// Device memory in MB, `total` or `used`.
    fn memory(&self, which: &str) -> Option<u64> {
        let own = number(&self.folder, &format!("mem_info_vram_{which}"))?;
        let mapped = if self.shares_memory {
            number(&self.folder, &format!("mem_info_gtt_{which}")).unwrap_or(0)
        } else {
            0
        };
        Some((own + mapped) / MB)
    }

    /// Whether the kernel has switched it off, as nobody uses it.
    fn is_asleep(&self) -> bool {
        text(&self.folder, "power/runtime_status").is_some_and(|status| status == "suspended")
    }

    /// The first of these sensors that there is.
    fn sensor(&self, names: &[&str]) -> Option<u64> {
        let sensors = self.sensors.as_deref()?;
        names.iter().find_map(|name| number(sensors, name))
    }

    /// Watts drawn now, or since the last reading.
    fn power(&mut self, now: Instant) -> Option<f32> {
        if let Some(microwatts) = self.sensor(&["power1_average", "power1_input"]) {
            return Some(microwatts as f32 / 1e6);
        }
        let energy = self.sensor(&["energy1_input"])?;
        let (before, at) = self.energy.replace((energy, now))?;
        let seconds = now.duration_since(at).as_secs_f64();
        let watts = energy.checked_sub(before)? as f64 / 1e6 / seconds;
        watts.is_finite().then_some(watts as f32)
    }
}

/// The backend of a card, by its driver; `None` for one that runs no models or that another source reads.
fn kind_of(folder: &Path) -> Option<DeviceKind> {
    let link = fs::read_link(folder.join("driver")).ok();
    let linked = link
        .as_ref()
        .and_then(|link| link.file_name()?.to_str().map(str::to_owned));
    let driver = linked.or_else(|| {
        let text = fs::read_to_string(folder.join("uevent")).ok()?;
        text.lines()
            .find_map(|line| line.strip_prefix("DRIVER=").map(str::to_owned))
    })?;
    match driver.as_str() {
        "amdgpu" => Some(DeviceKind::Rocm),
        "xe" | "i915" => Some(DeviceKind::Xpu),
        _ => None,
    }
}

/// Whether an AMD GPU is part of a processor. No file says so; but its memory is then a small cut of main memory, and
/// amdgpu shows neither the load of a memory controller of its own nor a fan.
fn shares_memory(folder: &Path, sensors: Option<&Path>) -> bool {
    let own = number(folder, "mem_info_vram_total");
    let mapped = number(folder, "mem_info_gtt_total");
    let has = |folder: &Path, name: &str| folder.join(name).exists();
    let is_card = has(folder, "mem_busy_percent") || sensors.is_some_and(|sensors| has(sensors, "fan1_input"));
    !is_card && own.zip(mapped).is_some_and(|(own, mapped)| own < mapped)
}

/// The line that a file holds; `None` where it is missing or empty.
fn text(folder: &Path, name: &str) -> Option<String> {
    let text = fs::read_to_string(folder.join(name)).ok()?;
    Some(text.trim().to_owned()).filter(|text| !text.is_empty())
}

/// The number that a file holds.
fn number(folder: &Path, name: &str) -> Option<u64> {
    text(folder, name)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::holders::tests as proc;

    const GIB: u64 = 1 << 30;

    /// A tree as below `/sys`, and processes as below `/proc`.
    struct Tree(tempfile::TempDir);

    impl Tree {
        fn new() -> Self {
            let tree = Self(tempfile::tempdir().unwrap());
            fs::create_dir_all(tree.path().join("class/drm")).unwrap();
            tree
        }

        fn path(&self) -> &Path {
            self.0.path()
        }

        fn device(&self, address: &str) -> PathBuf {
            self.path().join("devices").join(address)
        }

        /// A card with this driver, and these files of its device.
        fn card(&self, number: u32, address: &str, driver: &str, files: &[(&str, &str)]) -> &Self {
            let device = self.device(address);
            let card = device.join(format!("drm/card{number}"));
            let drivers = self.path().join("drivers").join(driver);
            for folder in [&card, &drivers] {
                fs::create_dir_all(folder).unwrap();
            }
            let class = self.path().join("class/drm");
            std::os::unix::fs::symlink(&drivers, device.join("driver")).unwrap();
            std::os::unix::fs::symlink(&device, card.join("device")).unwrap();
            std::os::unix::fs::symlink(&card, class.join(format!("card{number}"))).unwrap();
            // Below the folder of the card: what it is plugged into.
            let connector = card.join(format!("card{number}-DP-1"));
            fs::create_dir_all(&connector).unwrap();
            std::os::unix::fs::symlink(&connector, class.join(format!("card{number}-DP-1"))).unwrap();
            for (name, text) in files {
                self.put(address, name, text);
            }
            self
        }

        fn put(&self, address: &str, name: &str, text: &str) {
            let file = self.device(address).join(name);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, format!("{text}\n")).unwrap();
        }

        fn memory(&self, address: &str, region: &str, total: u64, used: u64) -> &Self {
            self.put(address, &format!("mem_info_{region}_total"), &total.to_string());
            self.put(address, &format!("mem_info_{region}_used"), &used.to_string());
            self
        }

        fn drm(&self) -> Drm {
            Drm::new(&LocalOptions {
                sysfs_root: self.path().into(),
                proc_root: self.path().join("proc"),
                ..LocalOptions::default()
            })
        }
    }

    fn present(drm: &mut Drm) -> Vec<Gpu> {
        match drm.read() {
            GpuReading::Present(gpus) => gpus,
            other => panic!("no GPUs: {other:?}"),
        }
    }

    #[test]
    fn a_host_without_such_cards_has_none_and_that_is_fine() {
        let tree = Tree::new();
        tree.card(0, "0000:04:00.0", "ast", &[])
            .card(1, "0000:01:00.0", "nvidia", &[]);
        assert!(matches!(tree.drm().read(), GpuReading::Absent { .. }));
        let nowhere = LocalOptions {
            sysfs_root: "/nowhere".into(),
            ..LocalOptions::default()
        };
        assert!(matches!(Drm::new(&nowhere).read(), GpuReading::Absent { .. }));
    }

    #[test]
    fn an_amd_card_tells_its_memory_load_and_sensors() {
        let tree = Tree::new();
        let files = [
            ("device", "0x744c"),
            ("unique_id", "5f2c1d9e8a7b6c5d"),
            ("gpu_busy_percent", "87"),
            ("mem_busy_percent", "40"),
            ("hwmon/hwmon3/temp1_input", "64000"),
            ("hwmon/hwmon3/power1_average", "285000000"),
            ("hwmon/hwmon3/power1_cap", "303000000"),
        ];
        let address = "0000:0a:00.0";
        tree.card(1, address, "amdgpu", &files);
        // It may map more of main memory than it has itself, which makes it no part of a processor.
        tree.memory(address, "vram", 8 * GIB, 3 * GIB)
            .memory(address, "gtt", 32 * GIB, GIB);
        let gpus = present(&mut tree.drm());
        let expected = Gpu {
            uuid: Some("GPU-5f2c1d9e8a7b6c5d".into()),
            name: Some("AMD GPU 744c".into()),
            memory_total_mb: Some(8 * 1024),
            memory_used_mb: Some(3 * 1024),
            util_percent: Some(87.0),
            temperature_celsius: Some(64.0),
            power_watts: Some(285.0),
            power_limit_watts: Some(303.0),
            named: Named::Own,
            ..Gpu::new(DeviceKind::Rocm, 0)
        };
        assert_eq!(gpus, [expected]);
    }

    #[test]
    fn a_card_that_sleeps_is_idle_and_is_not_woken() {
        let tree = Tree::new();
        let files = [("power/runtime_status", "suspended"), ("gpu_busy_percent", "87")];
        tree.card(0, "0000:0a:00.0", "amdgpu", &files)
            .memory("0000:0a:00.0", "vram", 8 * GIB, 0);
        let mut drm = tree.drm();
        let gpu = &present(&mut drm)[0];
        assert_eq!((gpu.memory_total_mb, gpu.util_percent), (Some(8 * 1024), Some(0.0)));
        tree.put("0000:0a:00.0", "power/runtime_status", "active");
        assert_eq!(present(&mut drm)[0].util_percent, Some(87.0));
    }

    #[test]
    fn a_gpu_in_a_processor_has_the_main_memory_that_it_may_map() {
        let tree = Tree::new();
        let address = "0000:0c:00.0";
        tree.card(2, address, "amdgpu", &[("gpu_busy_percent", "3")]);
        tree.memory(address, "vram", GIB / 2, GIB / 4)
            .memory(address, "gtt", 15 * GIB, GIB);
        let gpu = &present(&mut tree.drm())[0];
        assert_eq!(
            (gpu.memory_total_mb, gpu.memory_used_mb),
            (Some(15 * 1024 + 512), Some(1024 + 256))
        );
    }

    #[test]
    fn gpus_count_by_kind_in_the_order_of_the_bus_whatever_their_card_numbers() {
        let tree = Tree::new();
        tree.card(12, "0000:0a:00.0", "amdgpu", &[("device", "0xa")])
            .card(3, "0000:0e:00.0", "xe", &[])
            .card(4, "0000:0b:00.0", "amdgpu", &[("product_name", "Instinct")])
            .card(7, "0000:00:02.0", "i915", &[]);
        let gpus = present(&mut tree.drm());
        let mut ids: Vec<_> = gpus.iter().map(|gpu| (gpu.id(), gpu.name.clone().unwrap())).collect();
        ids.sort();
        let ids: Vec<_> = ids.iter().map(|(id, name)| (id.as_str(), name.as_str())).collect();
        assert_eq!(
            ids,
            [
                ("rocm:0", "AMD GPU a"),
                ("rocm:1", "Instinct"),
                ("xpu:0", "Intel GPU 0000:00:02.0"),
                ("xpu:1", "Intel GPU 0000:0e:00.0"),
            ]
        );
    }

    #[test]
    fn what_a_card_does_not_show_is_unknown() {
        let tree = Tree::new();
        tree.card(0, "0000:0e:00.0", "xe", &[("hwmon/hwmon5/power1_max", "190000000")]);
        let gpu = &present(&mut tree.drm())[0];
        assert_eq!(
            (gpu.memory_total_mb, gpu.util_percent, gpu.power_watts),
            (None, None, None)
        );
        assert_eq!((gpu.power_limit_watts, &gpu.problem), (Some(190.0), &None));
    }

    #[test]
    fn a_card_that_counts_energy_tells_the_power_between_two_readings() {
        let tree = Tree::new();
        let address = "0000:0e:00.0";
        tree.card(0, address, "xe", &[("hwmon/hwmon5/energy1_input", "1000000")]);
        let mut drm = tree.drm();
        drm.scan();
        let start = Instant::now();
        assert_eq!(drm.cards[0].power(start), None);
        tree.put(address, "hwmon/hwmon5/energy1_input", "61000000");
        drm.scan();
        assert_eq!(drm.cards[0].power(start + Duration::from_secs(2)), Some(30.0));
        // A counter that starts anew.
        tree.put(address, "hwmon/hwmon5/energy1_input", "5");
        assert_eq!(drm.cards[0].power(start + Duration::from_secs(3)), None);
    }

    #[test]
    fn a_card_that_leaves_the_bus_stays_listed_and_keeps_its_number() {
        let tree = Tree::new();
        tree.card(0, "0000:0a:00.0", "amdgpu", &[])
            .card(1, "0000:0b:00.0", "amdgpu", &[]);
        let mut drm = tree.drm();
        assert_eq!(present(&mut drm).len(), 2);
        fs::remove_file(tree.path().join("class/drm/card0")).unwrap();
        drm.scan();
        let gpus = present(&mut drm);
        let problems: Vec<_> = gpus.iter().map(|gpu| (gpu.id(), gpu.problem.is_some())).collect();
        assert_eq!(problems, [("rocm:0".to_owned(), true), ("rocm:1".to_owned(), false)]);
    }

    #[test]
    fn processes_of_this_user_are_named_with_the_memory_that_they_hold() {
        let tree = Tree::new();
        tree.card(0, proc::DEVICE, "amdgpu", &[])
            .memory(proc::DEVICE, "vram", 8 * GIB, GIB);
        proc::open(&tree.path().join("proc"), 7, 3, &proc::fdinfo(1, 700));
        let gpu = present(&mut tree.drm()).remove(0);
        assert_eq!(gpu.processes[&7].memory_mb, Some(700));
        assert_eq!(gpu.named, Named::Own);
    }
}
