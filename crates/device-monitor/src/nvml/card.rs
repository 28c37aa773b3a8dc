//! One NVIDIA GPU: what its driver tells of it.

use std::collections::HashMap;
use std::mem::MaybeUninit;
use std::path::Path;

use hive_contract::DeviceKind;
use nvml_wrapper::Device;
use nvml_wrapper::enum_wrappers::device::TemperatureSensor;
use nvml_wrapper::enums::device::UsedGpuMemory;
use nvml_wrapper::error::{NvmlError, nvml_try};

use crate::system::process_name;
use crate::{Gpu, GpuProcess, Named};

const MB: u64 = 1024 * 1024;
/// The driver itself holds less. More than this in use and no process named: the processes are hidden from us.
const DRIVER_OWN_MB: u64 = 1024;
/// Readings without a new sample after which a process is taken for idle: a driver may sample as seldom as we read.
const IDLE_READINGS: u8 = 2;

/// What is known of a GPU beyond one reading.
#[derive(Debug, Default)]
pub(super) struct Card {
    pub(super) uuid: Option<String>,
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

impl Card {
    /// Reads what stays as it is, unless it is known.
    pub(super) fn learn(&mut self, device: &Device<'_>, limit_is_due: bool, problem: &mut Option<String>) {
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
    pub(super) fn known(&self, number: usize) -> Gpu {
        Gpu {
            uuid: self.uuid.clone(),
            name: self.name.clone(),
            compute_capability: self.compute_capability.clone(),
            power_limit_watts: self.power_limit_watts,
            ..Gpu::new(DeviceKind::Cuda, number as u32)
        }
    }

    /// Reads what changes.
    pub(super) fn read(&mut self, device: &Device<'_>, gpu: &mut Gpu, proc_root: &Path, problem: &mut Option<String>) {
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
pub(super) fn known<T>(result: Result<T, NvmlError>, problem: &mut Option<String>) -> Option<T> {
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
}
