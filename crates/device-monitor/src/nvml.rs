//! NVIDIA GPUs, by NVML: NVIDIA's management library, which comes with the driver and is loaded at run time.

use std::collections::HashMap;
use std::mem::MaybeUninit;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use hive_contract::DeviceKind;
use nvml_wrapper::enum_wrappers::device::TemperatureSensor;
use nvml_wrapper::enums::device::UsedGpuMemory;
use nvml_wrapper::error::{NvmlError, nvml_try};
use nvml_wrapper::{Device, Nvml as Library};

use crate::system::process_name;
use crate::{Gpu, GpuProcess, GpuReading, Gpus, LocalOptions, Named};

const MB: u64 = 1024 * 1024;
/// Longest pause between two tries to load a driver that was there before.
const RETRY_SEEN: Duration = Duration::from_secs(5);
/// An administrator may change the power limit: it is read again after so many readings.
const POWER_LIMIT_EVERY: u32 = 60;
/// The driver itself holds less. More than this in use and no process named: the processes are hidden from us.
const DRIVER_OWN_MB: u64 = 1024;
/// Readings without a new sample after which a process is taken for idle: a driver may sample as seldom as we read.
const IDLE_READINGS: u8 = 2;

/// The NVIDIA GPUs of this host. Without a driver there are none, and now and then it is looked for again. A GPU keeps its
/// number for as long as this lives, through reloads of the driver.
#[derive(Debug)]
pub struct Nvml {
    library: Option<PathBuf>,
    retry: Duration,
    proc_root: PathBuf,
    loaded: Option<Library>,
    last_try: Option<(Instant, Failure)>,
    /// All that were ever seen, by their number.
    cards: Vec<Card>,
    /// The driver's positions, as numbers of cards.
    order: Vec<usize>,
    readings: u32,
}

/// Why there is no driver.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Failure {
    reason: String,
    /// Nothing hints at a GPU.
    is_absent: bool,
}

/// What is known of a GPU beyond one reading.
#[derive(Debug, Default)]
struct Card {
    uuid: Option<String>,
    name: Option<String>,
    compute_capability: Option<String>,
    power_limit_watts: Option<f32>,
    /// Time of the newest sample of its processes, on the driver's clock.
    last_sample: u64,
    /// Share of its time by process, as of the last samples.
    shares: HashMap<u32, f32>,
    /// Readings since then.
    idle_readings: u8,
}

impl Nvml {
    /// Reads through `options.nvml_library`, or through the system's `libnvidia-ml.so.1`.
    pub fn new(options: &LocalOptions) -> Self {
        Self {
            library: options.nvml_library.clone(),
            retry: options.nvml_retry,
            proc_root: options.proc_root.clone(),
            loaded: None,
            last_try: None,
            cards: Vec::new(),
            order: Vec::new(),
            readings: 0,
        }
    }

    /// The loaded driver; loads it unless that was tried a moment ago.
    fn take_library(&mut self, now: Instant) -> Result<Library, Failure> {
        if let Some(library) = self.loaded.take() {
            return Ok(library);
        }
        let pause = if self.cards.is_empty() {
            self.retry
        } else {
            self.retry.min(RETRY_SEEN)
        };
        if let Some((at, failure)) = &self.last_try
            && now.duration_since(*at) < pause
        {
            return Err(failure.clone());
        }
        let loaded = self.load();
        match &loaded {
            Ok(_) => {
                self.last_try = None;
                // The order of a driver that was exchanged need not be that of the last one.
                self.order.clear();
            }
            Err(failure) => {
                if self.last_try.as_ref().is_none_or(|(_, last)| last != failure) {
                    tracing::debug!(reason = %failure.reason, "no GPUs by NVML");
                }
                self.last_try = Some((now, failure.clone()));
            }
        }
        loaded
    }

    fn load(&self) -> Result<Library, Failure> {
        let result = match &self.library {
            None => Library::init(),
            Some(path) => Library::builder().lib_path(path.as_os_str()).init(),
        };
        result.map_err(|error| match error {
            NvmlError::LibloadingError(error) => Failure {
                reason: format!("no NVIDIA driver: {error}"),
                is_absent: true,
            },
            NvmlError::LibRmVersionMismatch => Failure {
                reason:
                    "NVIDIA driver: its library and its kernel module are of different versions; restart the machine \
                         to load the new module"
                        .to_owned(),
                is_absent: false,
            },
            error => Failure {
                reason: format!("NVIDIA driver: {error}"),
                is_absent: matches!(error, NvmlError::DriverNotLoaded | NvmlError::LibraryNotFound),
            },
        })
    }

    /// All GPUs that were ever seen, as they are now.
    fn gpus(&mut self, library: &Library) -> Result<Vec<Gpu>, NvmlError> {
        self.learn_order(library)?;
        let limit_is_due = self.readings.is_multiple_of(POWER_LIMIT_EVERY);
        self.readings = self.readings.wrapping_add(1);
        let gone = "the NVIDIA driver no longer lists it; if it does not come back, restart the machine";
        let mut gpus = self.unusable(gone);
        for (position, &number) in (0..).zip(&self.order) {
            let card = &mut self.cards[number];
            let mut problem = None;
            let device = known(library.device_by_index(position), &mut problem);
            let gpu = &mut gpus[number];
            if let Some(device) = &device {
                card.learn(device, limit_is_due, &mut problem);
                *gpu = card.known(number);
                card.read(device, gpu, &self.proc_root, &mut problem);
            } else if problem.is_none() {
                problem = Some("the NVIDIA driver gives no access to it".to_owned());
            }
            if problem.is_some() {
                // Half a reading of a GPU that failed in the middle of it would look like an idle one.
                *gpu = card.known(number);
            }
            gpu.problem = problem;
        }
        Ok(gpus)
    }

    /// Finds out which card stands at which of the driver's positions, where that may have changed.
    fn learn_order(&mut self, library: &Library) -> Result<(), NvmlError> {
        let count = library.device_count()? as usize;
        if self.order.len() == count && self.order.iter().all(|&number| self.cards[number].uuid.is_some()) {
            return Ok(());
        }
        let uuids: Vec<Option<String>> = (0..count as u32)
            .map(|position| library.device_by_index(position).and_then(|device| device.uuid()).ok())
            .collect();
        self.number(&uuids);
        Ok(())
    }

    /// Gives each of the driver's positions, told by their unique ids, the number of a card.
    fn number(&mut self, uuids: &[Option<String>]) {
        self.order.clear();
        for (position, uuid) in uuids.iter().enumerate() {
            let number = self.number_of(position, uuid.as_deref(), uuids);
            if uuid.is_some() {
                self.cards[number].uuid.clone_from(uuid);
            }
            self.order.push(number);
        }
    }

    /// The number of the card at this position: the one with this unique id, else the one that was there, else a new one.
    fn number_of(&mut self, position: usize, uuid: Option<&str>, present: &[Option<String>]) -> usize {
        let same = |card: &Card| uuid.is_some() && card.uuid.as_deref() == uuid;
        if let Some(number) = self.cards.iter().position(same) {
            return number;
        }
        let before = self.cards.get(position).filter(|_| !self.order.contains(&position));
        if let Some(card) = before {
            // One that tells no id now may be the one that was there, unless that one is seen elsewhere.
            let is_elsewhere = card.uuid.is_some() && present.contains(&card.uuid);
            if card.uuid.is_none() || (uuid.is_none() && !is_elsewhere) {
                return position;
            }
        }
        self.cards.push(Card::default());
        self.cards.len() - 1
    }

    /// All cards, each with this problem and nothing measured.
    fn unusable(&self, problem: &str) -> Vec<Gpu> {
        let cards = self.cards.iter().enumerate();
        cards
            .map(|(number, card)| Gpu {
                problem: Some(problem.to_owned()),
                ..card.known(number)
            })
            .collect()
    }

    fn failed(&self, failure: Failure) -> GpuReading {
        let Failure { reason, is_absent } = failure;
        if !self.cards.is_empty() {
            GpuReading::Present(self.unusable(&reason))
        } else if is_absent {
            GpuReading::Absent { reason }
        } else {
            GpuReading::Failed { reason }
        }
    }
}

impl Gpus for Nvml {
    fn driver(&self) -> &'static str {
        "NVIDIA driver"
    }

    fn read(&mut self) -> GpuReading {
        let now = Instant::now();
        let library = match self.take_library(now) {
            Ok(library) => library,
            Err(failure) => return self.failed(failure),
        };
        let gpus = match self.gpus(&library) {
            Ok(gpus) => gpus,
            // A driver that was exchanged under us answers only a new initialisation, which the next reading tries.
            Err(error) => {
                return self.failed(Failure {
                    reason: format!("NVIDIA driver: {error}"),
                    is_absent: false,
                });
            }
        };
        match gpus.iter().map(|gpu| gpu.problem.as_ref()).collect::<Option<Vec<_>>>() {
            // So it is where all of them fail, but it costs seconds, so not at every reading.
            Some(problems) if !problems.is_empty() => {
                let failure = Failure {
                    reason: problems[0].clone(),
                    is_absent: false,
                };
                self.last_try = Some((now, failure));
            }
            _ => self.loaded = Some(library),
        }
        GpuReading::Present(gpus)
    }
}

impl Card {
    /// Reads what stays as it is, unless it is known.
    fn learn(&mut self, device: &Device<'_>, limit_is_due: bool, problem: &mut Option<String>) {
        if self.name.is_none() {
            self.name = known(device.name(), problem);
            let capability = known(device.cuda_compute_capability(), problem);
            self.compute_capability = capability.map(|version| format!("{}.{}", version.major, version.minor));
            self.power_limit_watts = None;
        }
        if limit_is_due || self.power_limit_watts.is_none() {
            self.power_limit_watts = known(device.enforced_power_limit(), problem).map(watts);
        }
    }

    /// What is known of it without asking.
    fn known(&self, number: usize) -> Gpu {
        Gpu {
            uuid: self.uuid.clone(),
            name: self.name.clone(),
            compute_capability: self.compute_capability.clone(),
            power_limit_watts: self.power_limit_watts,
            ..Gpu::new(DeviceKind::Cuda, number as u32)
        }
    }

    /// Reads what changes.
    fn read(&mut self, device: &Device<'_>, gpu: &mut Gpu, proc_root: &Path, problem: &mut Option<String>) {
        if let Some((total, used)) = memory(device, problem) {
            gpu.memory_total_mb = Some(total / MB);
            gpu.memory_used_mb = Some(used / MB);
        }
        gpu.util_percent = known(device.utilization_rates(), problem).map(|util| util.gpu as f32);
        let celsius = known(device.temperature(TemperatureSensor::Gpu), problem);
        gpu.temperature_celsius = celsius.map(|celsius| celsius as f32);
        gpu.power_watts = known(device.power_usage(), problem).map(watts);

        let computing = known(device.running_compute_processes(), problem);
        let drawing = known(device.running_graphics_processes(), problem);
        let answers = computing.is_some();
        for running in computing.into_iter().chain(drawing).flatten() {
            let memory_mb = match running.used_gpu_memory {
                UsedGpuMemory::Used(bytes) => Some(bytes / MB),
                UsedGpuMemory::Unavailable => None,
            };
            // One that computes and draws stands in both lists, each time with all its memory.
            let process = gpu.processes.entry(running.pid).or_default();
            process.memory_mb = process.memory_mb.max(memory_mb);
        }
        let is_hidden = gpu.processes.is_empty() && gpu.memory_used_mb.is_some_and(|used| used > DRIVER_OWN_MB);
        gpu.named = if answers && !is_hidden { Named::All } else { Named::None };
        self.share(device, &mut gpu.processes, problem);
        for (&pid, process) in &mut gpu.processes {
            process.name = process_name(proc_root, pid);
        }
    }

    /// Fills in how much of the device's time each process takes.
    fn share(&mut self, device: &Device<'_>, processes: &mut HashMap<u32, GpuProcess>, problem: &mut Option<String>) {
        if processes.is_empty() {
            return;
        }
        let samples = match device.process_utilization_stats(self.last_sample) {
            // No process was busy since the last sample.
            Err(NvmlError::NotFound) => Vec::new(),
            samples => match known(samples, problem) {
                Some(samples) => samples,
                None => return,
            },
        };
        if samples.is_empty() {
            self.idle_readings = self.idle_readings.saturating_add(1);
        } else {
            self.shares = newest(
                samples
                    .iter()
                    .map(|sample| (sample.pid, sample.timestamp, sample.sm_util)),
            );
            self.last_sample = samples
                .iter()
                .map(|sample| sample.timestamp)
                .fold(self.last_sample, u64::max);
            self.idle_readings = 0;
        }
        if self.idle_readings >= IDLE_READINGS {
            self.shares.clear();
        }
        for (pid, process) in processes {
            process.util_percent = Some(self.shares.get(pid).copied().unwrap_or(0.0));
        }
    }
}

/// The newest of each process's samples, given as process id, time and percent.
fn newest(samples: impl Iterator<Item = (u32, u64, u32)>) -> HashMap<u32, f32> {
    let mut newest: HashMap<u32, (u64, u32)> = HashMap::new();
    for (pid, at, percent) in samples {
        let last = newest.entry(pid).or_default();
        if at >= last.0 {
            *last = (at, percent);
        }
    }
    newest
        .into_iter()
        .map(|(pid, (_, percent))| (pid, percent as f32))
        .collect()
}

/// Bytes of device memory: all, and those that cannot be taken, the driver's own among them.
fn memory(device: &Device<'_>, problem: &mut Option<String>) -> Option<(u64, u64)> {
    match device.memory_info() {
        Ok(memory) => Some((memory.total, memory.total.saturating_sub(memory.free))),
        Err(NvmlError::FailedToLoadSymbol(_)) => known(memory_before_510(device), problem),
        Err(error) => known(Err(error), problem),
    }
}

/// The same from a driver older than 510, which nvml-wrapper no longer asks.
fn memory_before_510(device: &Device<'_>) -> Result<(u64, u64), NvmlError> {
    let symbol = device.nvml().lib().nvmlDeviceGetMemoryInfo.as_ref();
    let call = symbol.map_err(|error| NvmlError::FailedToLoadSymbol(error.to_string()))?;
    let mut memory = MaybeUninit::zeroed();
    // SAFETY: the symbol comes from the library that gave the handle, which `device` keeps loaded; the argument is a
    // writable structure of the type that the binding declares for this call. It holds numbers alone, so all zeros,
    // as it is before the call, is valid, too.
    let memory = unsafe {
        nvml_try(call(device.handle(), memory.as_mut_ptr()))?;
        memory.assume_init()
    };
    Ok((memory.total, memory.total.saturating_sub(memory.free)))
}

fn watts(milliwatts: u32) -> f32 {
    milliwatts as f32 / 1000.0
}

/// A call that a driver or device does not offer says nothing; one that shows the device unusable is its problem.
fn known<T>(result: Result<T, NvmlError>, problem: &mut Option<String>) -> Option<T> {
    match result {
        Ok(value) => Some(value),
        Err(error) => {
            let remedy = match error {
                NvmlError::GpuLost => Some("; restart the machine"),
                NvmlError::ResetRequired => Some("; `nvidia-smi --gpu-reset` or a restart of the machine does it"),
                NvmlError::InsufficientPower
                | NvmlError::Uninitialized
                | NvmlError::DriverNotLoaded
                | NvmlError::LibRmVersionMismatch => Some(""),
                _ => None,
            };
            if let Some(remedy) = remedy
                && problem.is_none()
            {
                *problem = Some(format!("{error}{remedy}"));
            }
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nowhere() -> Nvml {
        Nvml::new(&LocalOptions {
            nvml_library: Some("/nowhere/libnvidia-ml.so.1".into()),
            ..LocalOptions::default()
        })
    }

    #[test]
    fn without_a_driver_there_are_no_gpus_and_the_reason_is_told() {
        let mut nvml = nowhere();
        for _ in 0..2 {
            let GpuReading::Absent { reason } = nvml.read() else {
                panic!("a library that is not there gave GPUs")
            };
            assert!(reason.contains("/nowhere/libnvidia-ml.so.1"), "{reason}");
        }
    }

    #[test]
    fn a_driver_that_goes_leaves_its_gpus_listed_and_unusable() {
        let mut nvml = nowhere();
        nvml.cards.push(Card {
            uuid: Some("GPU-1".into()),
            ..Card::default()
        });
        let GpuReading::Present(gpus) = nvml.read() else {
            panic!("the GPUs are forgotten")
        };
        assert_eq!((gpus.len(), gpus[0].uuid.as_deref()), (1, Some("GPU-1")));
        assert!(gpus[0].problem.as_ref().unwrap().contains("no NVIDIA driver"));
    }

    #[test]
    fn what_a_driver_does_not_support_is_unknown_and_no_problem() {
        let mut problem = None;
        assert_eq!(known::<u32>(Err(NvmlError::NotSupported), &mut problem), None);
        assert_eq!(
            known::<u32>(Err(NvmlError::FailedToLoadSymbol("v2".into())), &mut problem),
            None
        );
        assert_eq!(known(Ok(3), &mut problem), Some(3));
        assert_eq!(problem, None);
    }

    #[test]
    fn a_gpu_that_fell_off_the_bus_is_a_problem() {
        let mut problem = None;
        assert_eq!(known::<u32>(Err(NvmlError::GpuLost), &mut problem), None);
        assert!(problem.unwrap().contains("fell off the bus"));
    }

    #[test]
    fn of_several_samples_of_a_process_the_newest_counts() {
        let samples = [(7, 20, 50), (7, 10, 90), (8, 5, 0)];
        assert_eq!(newest(samples.into_iter()), HashMap::from([(7, 50.0), (8, 0.0)]));
    }

    /// The numbers that the cards with these ids get, in the driver's order.
    fn numbers(nvml: &mut Nvml, uuids: &[Option<&str>]) -> Vec<usize> {
        let uuids: Vec<Option<String>> = uuids.iter().map(|uuid| uuid.map(str::to_owned)).collect();
        nvml.number(&uuids);
        nvml.order.clone()
    }

    #[test]
    fn gpus_keep_their_numbers_when_one_of_them_goes_and_comes_back() {
        let mut nvml = nowhere();
        assert_eq!(numbers(&mut nvml, &[Some("a"), Some("b"), Some("c")]), [0, 1, 2]);
        assert_eq!(numbers(&mut nvml, &[Some("a"), Some("c")]), [0, 2]);
        assert_eq!(numbers(&mut nvml, &[Some("a"), Some("b"), Some("c")]), [0, 1, 2]);
    }

    #[test]
    fn another_gpu_in_the_place_of_one_that_went_gets_a_number_of_its_own() {
        let mut nvml = nowhere();
        assert_eq!(numbers(&mut nvml, &[Some("a"), Some("b")]), [0, 1]);
        assert_eq!(numbers(&mut nvml, &[Some("a"), Some("x")]), [0, 2]);
    }

    #[test]
    fn a_gpu_that_tells_no_id_is_the_one_that_stood_there() {
        let mut nvml = nowhere();
        assert_eq!(numbers(&mut nvml, &[Some("a"), None]), [0, 1]);
        assert_eq!(numbers(&mut nvml, &[Some("a"), Some("b")]), [0, 1]);
        assert_eq!(numbers(&mut nvml, &[None, Some("b")]), [0, 1]);
    }
}
