//! NVIDIA GPUs, by NVML: NVIDIA's management library, which comes with the driver and is loaded at run time.

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nvml_wrapper::enum_wrappers::device::TemperatureSensor;
use nvml_wrapper::enums::device::UsedGpuMemory;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::{Device, Nvml as Library};

use crate::{Gpu, GpuProcess, GpuReading, Gpus};

const MB: u64 = 1024 * 1024;
/// Pause between two tries to load a driver that was not there.
const RETRY: Duration = Duration::from_secs(30);

/// The NVIDIA GPUs of this host. Without a driver there are none, and now and then it is looked for again.
#[derive(Debug, Default)]
pub struct Nvml {
    library: Option<PathBuf>,
    loaded: Option<Library>,
    seen: bool,
    last_try: Option<(Instant, String)>,
}

impl Nvml {
    /// Reads through this library, or through the system's `libnvidia-ml.so.1`.
    pub fn new(library: Option<PathBuf>) -> Self {
        Self {
            library,
            ..Self::default()
        }
    }

    fn load(&self) -> Result<Library, String> {
        let result = match &self.library {
            None => Library::init(),
            Some(path) => Library::builder().lib_path(path.as_os_str()).init(),
        };
        result.map_err(|error| match error {
            NvmlError::LibloadingError(error) => format!("no NVIDIA driver: {error}"),
            error => format!("NVIDIA driver: {error}"),
        })
    }

    /// Loads the driver unless it is loaded or was looked for a moment ago.
    fn ensure(&mut self, now: Instant) -> Result<(), String> {
        if self.loaded.is_some() {
            return Ok(());
        }
        if let Some((at, reason)) = &self.last_try
            && now.duration_since(*at) < RETRY
        {
            return Err(reason.clone());
        }
        match self.load() {
            Ok(library) => {
                self.loaded = Some(library);
                self.seen = true;
                self.last_try = None;
                Ok(())
            }
            Err(reason) => {
                if self.last_try.as_ref().is_none_or(|(_, last)| *last != reason) {
                    tracing::debug!(%reason, "no GPUs by NVML");
                }
                self.last_try = Some((now, reason.clone()));
                Err(reason)
            }
        }
    }
}

impl Gpus for Nvml {
    fn read(&mut self) -> GpuReading {
        let read = self.ensure(Instant::now()).and_then(|()| match &self.loaded {
            Some(library) => gpus(library).map_err(|error| format!("NVIDIA driver: {error}")),
            None => Ok(Vec::new()),
        });
        match read {
            Ok(gpus) => GpuReading::Present(gpus),
            Err(reason) if self.seen => {
                // A driver that was exchanged under us answers only a new initialisation.
                self.loaded = None;
                GpuReading::Failed { reason }
            }
            Err(reason) => GpuReading::Absent { reason },
        }
    }
}

fn gpus(library: &Library) -> Result<Vec<Gpu>, NvmlError> {
    let count = library.device_count()?;
    Ok((0..count)
        .map(|index| match library.device_by_index(index) {
            Ok(device) => gpu(index, &device),
            Err(error) => Gpu {
                index,
                problem: Some(error.to_string()),
                ..Gpu::default()
            },
        })
        .collect())
}

fn gpu(index: u32, device: &Device<'_>) -> Gpu {
    let mut problem = None;
    let uuid = known(device.uuid(), &mut problem);
    let name = known(device.name(), &mut problem);
    let capability = known(device.cuda_compute_capability(), &mut problem);
    let memory = known(device.memory_info(), &mut problem);
    let util = known(device.utilization_rates(), &mut problem);
    let temperature = known(device.temperature(TemperatureSensor::Gpu), &mut problem);
    let milliwatts = known(device.power_usage(), &mut problem);
    let processes = processes(device, &mut problem);
    Gpu {
        index,
        uuid,
        name,
        compute_capability: capability.map(|version| format!("{}.{}", version.major, version.minor)),
        memory_total_mb: memory.as_ref().map(|memory| memory.total / MB),
        memory_used_mb: memory.as_ref().map(|memory| memory.used / MB),
        util_percent: util.map(|util| util.gpu as f32),
        temperature_celsius: temperature.map(|celsius| celsius as f32),
        power_watts: milliwatts.map(|milliwatts| milliwatts as f32 / 1000.0),
        processes,
        problem,
    }
}

fn processes(device: &Device<'_>, problem: &mut Option<String>) -> HashMap<u32, GpuProcess> {
    let mut processes: HashMap<u32, GpuProcess> = HashMap::new();
    for running in known(device.running_compute_processes(), problem).unwrap_or_default() {
        let memory_mb = match running.used_gpu_memory {
            UsedGpuMemory::Used(bytes) => Some(bytes / MB),
            UsedGpuMemory::Unavailable => None,
        };
        processes.entry(running.pid).or_default().memory_mb = memory_mb;
    }
    if processes.is_empty() {
        return processes;
    }
    let mut samples = known(device.process_utilization_stats(None), problem).unwrap_or_default();
    samples.sort_by_key(|sample| sample.timestamp);
    for sample in samples {
        if let Some(process) = processes.get_mut(&sample.pid) {
            process.util_percent = Some(sample.sm_util as f32);
        }
    }
    processes
}

/// A call that a driver or device does not offer says nothing; one that shows the device unusable is its problem.
fn known<T>(result: Result<T, NvmlError>, problem: &mut Option<String>) -> Option<T> {
    match result {
        Ok(value) => Some(value),
        Err(error) => {
            let unusable = matches!(
                error,
                NvmlError::GpuLost
                    | NvmlError::ResetRequired
                    | NvmlError::InsufficientPower
                    | NvmlError::Uninitialized
                    | NvmlError::DriverNotLoaded
                    | NvmlError::LibRmVersionMismatch
            );
            if unusable && problem.is_none() {
                *problem = Some(error.to_string());
            }
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_driver_there_are_no_gpus_and_the_reason_is_told() {
        let mut nvml = Nvml::new(Some("/nowhere/libnvidia-ml.so.1".into()));
        for _ in 0..2 {
            let GpuReading::Absent { reason } = nvml.read() else {
                panic!("a library that is not there gave GPUs")
            };
            assert!(reason.contains("/nowhere/libnvidia-ml.so.1"), "{reason}");
        }
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
}
