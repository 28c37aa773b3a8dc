//! A stand-in for `libnvidia-ml.so.1`, built as a library: the NVML calls that a hive makes, answered from a scenario's file
//! (`rbee_tests::nvml` writes it), which is read again whenever it changed.
//!
//! NVML's manual says what each call does; here a handle is a GPU's position in the scenario, plus one.

use std::ffi::{CStr, OsStr, c_char, c_int, c_uint, c_ulonglong, c_void};
use std::fs;
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use rbee_tests::nvml::{Driver, Gpu, GpuProcess, code};

/// 0, or one of [`code`].
type Return = c_uint;
/// A device.
type Handle = *mut c_void;

const MB: u64 = 1 << 20;
/// Stands for "not told" among NVML's numbers.
const NOT_AVAILABLE: u64 = u64::MAX;
/// A process that is not confined to a part of the GPU has this for the number of the part.
const WHOLE_GPU: c_uint = c_uint::MAX;

/// What this library remembers between calls. NVML gives its callers no object to hold it, so it can only be global.
static LIBRARY: Mutex<Library> = Mutex::new(Library {
    users: 0,
    loads: 0,
    scenario: None,
});

struct Library {
    /// Initialisations less shutdowns.
    users: u32,
    /// Which load of the driver they were for.
    loads: u32,
    /// The scenario, and of which state of its file.
    scenario: Option<((SystemTime, u64), Arc<Driver>)>,
}

#[repr(C)]
struct Memory {
    total: c_ulonglong,
    free: c_ulonglong,
    used: c_ulonglong,
}

#[repr(C)]
struct Memory2 {
    version: c_uint,
    total: c_ulonglong,
    reserved: c_ulonglong,
    free: c_ulonglong,
    used: c_ulonglong,
}

#[repr(C)]
struct Utilization {
    gpu: c_uint,
    memory: c_uint,
}

#[repr(C)]
struct ProcessInfo {
    pid: c_uint,
    used_memory: c_ulonglong,
    gpu_instance: c_uint,
    compute_instance: c_uint,
}

#[repr(C)]
struct ProcessSample {
    pid: c_uint,
    timestamp: c_ulonglong,
    sm: c_uint,
    memory: c_uint,
    encoder: c_uint,
    decoder: c_uint,
}

fn locked() -> MutexGuard<'static, Library> {
    LIBRARY.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The file of the scenario: beside the one that this code was loaded from.
fn scenario_file() -> Option<PathBuf> {
    let mut info = MaybeUninit::<nix::libc::Dl_info>::zeroed();
    // SAFETY: the first argument is an address in this library, which `dladdr` only compares; the second is a writable
    // structure of its type, of which all zeros is a valid value. The name lives as long as the library is loaded,
    // which is as long as this code runs.
    let name = unsafe {
        let found = nix::libc::dladdr((&raw const LIBRARY).cast(), info.as_mut_ptr());
        let name = info.assume_init().dli_fname;
        if found == 0 || name.is_null() {
            return None;
        }
        CStr::from_ptr(name)
    };
    let mut file = OsStr::from_bytes(name.to_bytes()).to_owned();
    file.push(".json");
    Some(file.into())
}

/// The scenario as it is now; `None` without one.
fn scenario() -> Option<Arc<Driver>> {
    let file = scenario_file()?;
    let metadata = fs::metadata(&file).ok()?;
    let state = (metadata.modified().ok()?, metadata.ino());
    let mut library = locked();
    if let Some((known, driver)) = &library.scenario
        && *known == state
    {
        return Some(Arc::clone(driver));
    }
    let driver: Arc<Driver> = Arc::new(serde_json::from_slice(&fs::read(&file).ok()?).ok()?);
    library.scenario = Some((state, Arc::clone(&driver)));
    Some(driver)
}

/// The driver, after the time that a call takes; as an error what it gives instead of an answer.
fn driver() -> Result<Arc<Driver>, Return> {
    loop {
        let driver = scenario().ok_or(code::DRIVER_NOT_LOADED)?;
        if !driver.hangs {
            std::thread::sleep(Duration::from_millis(driver.delay_ms));
            return driver.error.map_or(Ok(driver), Err);
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// The driver, if the library was initialised since it was loaded.
fn ready() -> Result<Arc<Driver>, Return> {
    let driver = driver()?;
    let library = locked();
    if library.users == 0 || library.loads != driver.loads {
        return Err(code::UNINITIALIZED);
    }
    Ok(driver)
}

/// Answers a call on a device.
fn on_device(device: Handle, call: &str, answer: impl FnOnce(&Gpu) -> Result<(), Return>) -> Return {
    result(ready().and_then(|driver| {
        let position = device.addr().checked_sub(1).ok_or(code::INVALID_ARGUMENT)?;
        let gpu = driver.gpus.get(position).ok_or(code::GPU_IS_LOST)?;
        if let Some(error) = gpu.error {
            return Err(error);
        }
        if gpu.unsupported.iter().any(|unsupported| unsupported == call) {
            return Err(code::NOT_SUPPORTED);
        }
        answer(gpu)
    }))
}

fn result(result: Result<(), Return>) -> Return {
    result.err().unwrap_or(0)
}

/// Writes an answer.
///
/// # Safety
/// `at` is null, or the caller's place for a `T`.
unsafe fn put<T>(at: *mut T, value: T) -> Result<(), Return> {
    if at.is_null() {
        return Err(code::INVALID_ARGUMENT);
    }
    // SAFETY: it is not null, so by the contract it may be written.
    unsafe { at.write(value) };
    Ok(())
}

/// Writes a text and the zero that ends it.
///
/// # Safety
/// `at` is null, or the caller's place for `length` bytes.
unsafe fn put_text(at: *mut c_char, length: c_uint, text: &str) -> Result<(), Return> {
    if at.is_null() {
        return Err(code::INVALID_ARGUMENT);
    }
    if text.len() >= length as usize {
        return Err(code::INSUFFICIENT_SIZE);
    }
    // SAFETY: there is room for `length` bytes, which is more than the text has, and the text is no part of it.
    unsafe {
        at.copy_from_nonoverlapping(text.as_ptr().cast(), text.len());
        at.add(text.len()).write(0);
    }
    Ok(())
}

/// Writes a list and its length, or the length alone where there is too little room.
///
/// # Safety
/// `count` is null, or holds how many `T` there is room for at `at`, unless that is null.
unsafe fn put_list<T>(count: *mut c_uint, at: *mut T, items: Vec<T>) -> Result<(), Return> {
    if count.is_null() {
        return Err(code::INVALID_ARGUMENT);
    }
    // SAFETY: `count` is not null, so by the contract it may be read and written.
    let room = unsafe { count.replace(items.len() as c_uint) } as usize;
    if !items.is_empty() && (at.is_null() || room < items.len()) {
        return Err(code::INSUFFICIENT_SIZE);
    }
    for (position, item) in items.into_iter().enumerate() {
        // SAFETY: `at` is not null and has room for more items than `position`.
        unsafe { at.add(position).write(item) };
    }
    Ok(())
}

/// Bytes of device memory in use but for the driver's own.
fn used(gpu: &Gpu) -> u64 {
    let processes: u64 = gpu.processes.iter().filter_map(|process| process.memory_mb).sum();
    (gpu.used_mb + processes) * MB
}

fn processes(gpu: &Gpu, is_wanted: fn(&GpuProcess) -> bool) -> Vec<ProcessInfo> {
    let wanted = gpu.processes.iter().filter(|process| is_wanted(process));
    wanted
        .map(|process| ProcessInfo {
            pid: process.pid,
            used_memory: process.memory_mb.map_or(NOT_AVAILABLE, |mb| mb * MB),
            gpu_instance: WHOLE_GPU,
            compute_instance: WHOLE_GPU,
        })
        .collect()
}

#[unsafe(no_mangle)]
extern "C" fn nvmlInit_v2() -> Return {
    result(driver().map(|driver| {
        let mut library = locked();
        // Those who use an older load of the driver have lost it.
        library.users = if library.loads == driver.loads {
            library.users + 1
        } else {
            1
        };
        library.loads = driver.loads;
    }))
}

#[unsafe(no_mangle)]
extern "C" fn nvmlShutdown() -> Return {
    let mut library = locked();
    let Some(users) = library.users.checked_sub(1) else {
        return code::UNINITIALIZED;
    };
    library.users = users;
    0
}

/// # Safety
/// `at` is null, or the caller's place for `length` bytes.
#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlSystemGetDriverVersion(at: *mut c_char, length: c_uint) -> Return {
    // SAFETY: as the caller promises.
    result(ready().and_then(|driver| unsafe { put_text(at, length, &driver.version) }))
}

/// # Safety
/// `at` is null, or the caller's place for the answer.
#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetCount_v2(at: *mut c_uint) -> Return {
    // SAFETY: as the caller promises.
    result(ready().and_then(|driver| unsafe { put(at, driver.gpus.len() as c_uint) }))
}

/// # Safety
/// `at` is null, or the caller's place for the answer.
#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetHandleByIndex_v2(index: c_uint, at: *mut Handle) -> Return {
    result(ready().and_then(|driver| {
        let gpu = driver.gpus.get(index as usize).ok_or(code::INVALID_ARGUMENT)?;
        if gpu.error == Some(code::GPU_IS_LOST) {
            return Err(code::GPU_IS_LOST);
        }
        let handle = std::ptr::without_provenance_mut(index as usize + 1);
        // SAFETY: as the caller promises.
        unsafe { put(at, handle) }
    }))
}

/// # Safety
/// `at` is null, or the caller's place for `length` bytes.
#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetUUID(device: Handle, at: *mut c_char, length: c_uint) -> Return {
    on_device(device, "nvmlDeviceGetUUID", |gpu| {
        // SAFETY: as the caller promises.
        unsafe { put_text(at, length, &gpu.uuid) }
    })
}

/// # Safety
/// `at` is null, or the caller's place for `length` bytes.
#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetName(device: Handle, at: *mut c_char, length: c_uint) -> Return {
    on_device(device, "nvmlDeviceGetName", |gpu| {
        // SAFETY: as the caller promises.
        unsafe { put_text(at, length, &gpu.name) }
    })
}

/// # Safety
/// `major` and `minor` are null, or the caller's places for the answer.
#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetCudaComputeCapability(
    device: Handle,
    major: *mut c_int,
    minor: *mut c_int,
) -> Return {
    on_device(device, "nvmlDeviceGetCudaComputeCapability", |gpu| {
        // SAFETY: as the caller promises.
        unsafe {
            put(major, gpu.capability.0)?;
            put(minor, gpu.capability.1)
        }
    })
}

/// # Safety
/// `at` is null, or the caller's place for the answer.
#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetMemoryInfo(device: Handle, at: *mut Memory) -> Return {
    on_device(device, "nvmlDeviceGetMemoryInfo", |gpu| {
        let total = gpu.memory_mb * MB;
        let used = used(gpu) + gpu.reserved_mb * MB;
        let memory = Memory {
            total,
            free: total.saturating_sub(used),
            used,
        };
        // SAFETY: as the caller promises.
        unsafe { put(at, memory) }
    })
}

/// # Safety
/// `at` is null, or the caller's place for the answer.
#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetMemoryInfo_v2(device: Handle, at: *mut Memory2) -> Return {
    on_device(device, "nvmlDeviceGetMemoryInfo_v2", |gpu| {
        let total = gpu.memory_mb * MB;
        let (reserved, used) = (gpu.reserved_mb * MB, used(gpu));
        let memory = Memory2 {
            version: size_of::<Memory2>() as c_uint | 2 << 24,
            total,
            reserved,
            free: total.saturating_sub(used + reserved),
            used,
        };
        // SAFETY: as the caller promises.
        unsafe { put(at, memory) }
    })
}

/// # Safety
/// `at` is null, or the caller's place for the answer.
#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetUtilizationRates(device: Handle, at: *mut Utilization) -> Return {
    on_device(device, "nvmlDeviceGetUtilizationRates", |gpu| {
        let utilization = Utilization {
            gpu: gpu.util,
            memory: gpu.util,
        };
        // SAFETY: as the caller promises.
        unsafe { put(at, utilization) }
    })
}

/// # Safety
/// `at` is null, or the caller's place for the answer.
#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetTemperature(device: Handle, sensor: c_uint, at: *mut c_uint) -> Return {
    on_device(device, "nvmlDeviceGetTemperature", |gpu| {
        // There is one sensor, that of the chip.
        if sensor != 0 {
            return Err(code::INVALID_ARGUMENT);
        }
        // SAFETY: as the caller promises.
        unsafe { put(at, gpu.temperature) }
    })
}

/// # Safety
/// `at` is null, or the caller's place for the answer.
#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetPowerUsage(device: Handle, at: *mut c_uint) -> Return {
    on_device(device, "nvmlDeviceGetPowerUsage", |gpu| {
        // SAFETY: as the caller promises.
        unsafe { put(at, gpu.power_watts * 1000) }
    })
}

/// # Safety
/// `at` is null, or the caller's place for the answer.
#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetEnforcedPowerLimit(device: Handle, at: *mut c_uint) -> Return {
    on_device(device, "nvmlDeviceGetEnforcedPowerLimit", |gpu| {
        // SAFETY: as the caller promises.
        unsafe { put(at, gpu.power_limit_watts * 1000) }
    })
}

/// # Safety
/// `count` is null, or holds how many entries there is room for at `at`, unless that is null.
#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetComputeRunningProcesses_v3(
    device: Handle,
    count: *mut c_uint,
    at: *mut ProcessInfo,
) -> Return {
    on_device(device, "nvmlDeviceGetComputeRunningProcesses_v3", |gpu| {
        // SAFETY: as the caller promises.
        unsafe { put_list(count, at, processes(gpu, |process| process.computes)) }
    })
}

/// # Safety
/// `count` is null, or holds how many entries there is room for at `at`, unless that is null.
#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetGraphicsRunningProcesses_v3(
    device: Handle,
    count: *mut c_uint,
    at: *mut ProcessInfo,
) -> Return {
    on_device(device, "nvmlDeviceGetGraphicsRunningProcesses_v3", |gpu| {
        // SAFETY: as the caller promises.
        unsafe { put_list(count, at, processes(gpu, |process| process.draws)) }
    })
}

/// # Safety
/// `count` is null, or holds how many entries there is room for at `at`, unless that is null.
#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetProcessUtilization(
    device: Handle,
    at: *mut ProcessSample,
    count: *mut c_uint,
    last_seen: c_ulonglong,
) -> Return {
    on_device(device, "nvmlDeviceGetProcessUtilization", |gpu| {
        let samples = gpu.processes.iter().filter_map(|process| {
            Some(ProcessSample {
                pid: process.pid,
                timestamp: last_seen + 1,
                sm: process.util?,
                memory: 0,
                encoder: 0,
                decoder: 0,
            })
        });
        let samples: Vec<ProcessSample> = samples.collect();
        if samples.is_empty() {
            return Err(code::NOT_FOUND);
        }
        // SAFETY: as the caller promises.
        unsafe { put_list(count, at, samples) }
    })
}
