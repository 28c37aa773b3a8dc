//! A fake NVIDIA driver: a library (`examples/fake_nvml.rs`) that answers NVML calls from a scenario, which the test may
//! change while the program under test runs.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use serde::{Deserialize, Serialize};
use tempfile::TempDir;

use crate::process::cargo;

/// NVML's numbers for what went wrong.
pub mod code {
    /// It was not initialised, or the driver has been loaded anew since.
    pub const UNINITIALIZED: u32 = 1;
    /// A parameter makes no sense.
    pub const INVALID_ARGUMENT: u32 = 2;
    /// The device does not offer this.
    pub const NOT_SUPPORTED: u32 = 3;
    /// Not for this user.
    pub const NO_PERMISSION: u32 = 4;
    /// There is no such thing.
    pub const NOT_FOUND: u32 = 6;
    /// The buffer is too small.
    pub const INSUFFICIENT_SIZE: u32 = 7;
    /// There is a library, and no driver.
    pub const DRIVER_NOT_LOADED: u32 = 9;
    /// The GPU fell off the bus.
    pub const GPU_IS_LOST: u32 = 15;
    /// The library is of another version than the driver's module.
    pub const VERSION_MISMATCH: u32 = 18;
}

/// The driver of a host.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Driver {
    /// Its version, as text.
    pub version: String,
    /// What each call gives instead of an answer, initialising included.
    pub error: Option<u32>,
    /// How often it was loaded. Who was initialised by an earlier load has to be initialised again.
    pub loads: u32,
    /// How long each call takes.
    pub delay_ms: u64,
    /// Whether calls wait until this is over.
    pub hangs: bool,
    /// In PCI bus order.
    pub gpus: Vec<Gpu>,
}

/// A GPU.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Gpu {
    /// Unique id.
    pub uuid: String,
    /// Model.
    pub name: String,
    /// CUDA compute capability.
    pub capability: (i32, i32),
    /// Device memory that there is.
    pub memory_mb: u64,
    /// Of that, what the driver keeps for itself.
    pub reserved_mb: u64,
    /// What is in use beside the processes' memory.
    pub used_mb: u64,
    /// Percent.
    pub util: u32,
    /// Degrees Celsius.
    pub temperature: u32,
    /// Drawn now.
    pub power_watts: u32,
    /// Most that it may draw.
    pub power_limit_watts: u32,
    /// What each call on it gives instead of an answer.
    pub error: Option<u32>,
    /// Calls that it does not offer, for example `nvmlDeviceGetPowerUsage`.
    pub unsupported: Vec<String>,
    /// What runs on it.
    pub processes: Vec<GpuProcess>,
}

/// A process on a GPU. Its name is the real process's.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct GpuProcess {
    /// Process id.
    pub pid: u32,
    /// Device memory that it holds; `None`: the driver does not tell.
    pub memory_mb: Option<u64>,
    /// Whether it computes.
    pub computes: bool,
    /// Whether it draws.
    pub draws: bool,
    /// Percent of the device's time; `None`: no sample of it.
    pub util: Option<u32>,
}

impl Driver {
    /// With this many GPUs, idle and alike but for their ids.
    pub fn with_gpus(count: u32) -> Self {
        Self {
            version: "580.95.05".into(),
            error: None,
            loads: 1,
            delay_ms: 0,
            hangs: false,
            gpus: (0..count).map(Gpu::numbered).collect(),
        }
    }
}

impl Gpu {
    /// An idle GPU whose id ends in this number.
    pub fn numbered(number: u32) -> Self {
        Self {
            uuid: format!("GPU-00000000-0000-0000-0000-{number:012}"),
            name: "NVIDIA GeForce RTX 4090".into(),
            capability: (8, 9),
            memory_mb: 24_564,
            reserved_mb: 0,
            used_mb: 0,
            util: 0,
            temperature: 42,
            power_watts: 31,
            power_limit_watts: 450,
            error: None,
            unsupported: Vec::new(),
            processes: Vec::new(),
        }
    }

    /// The same with one more process, which computes.
    pub fn running(mut self, pid: u32, memory_mb: u64) -> Self {
        self.processes.push(GpuProcess {
            pid,
            memory_mb: Some(memory_mb),
            computes: true,
            ..GpuProcess::default()
        });
        self
    }
}

/// A host with a fake driver, for as long as this lives: a library of its own, and what it answers.
#[derive(Debug)]
pub struct Scenario {
    folder: TempDir,
    driver: Driver,
}

impl Scenario {
    /// A host with this driver.
    pub fn new(driver: Driver) -> Self {
        Self::with_library(driver, |_| {})
    }

    /// A host whose driver is too old to have these calls.
    pub fn without(driver: Driver, calls: &[&str]) -> Self {
        Self::with_library(driver, |library| calls.iter().for_each(|call| hide(library, call)))
    }

    fn with_library(driver: Driver, change: impl FnOnce(&mut Vec<u8>)) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let scenario = Self { folder, driver };
        // A copy: the same file loaded twice in a process would be one library with one scenario.
        let mut bytes = std::fs::read(library()).expect("the fake library");
        change(&mut bytes);
        std::fs::write(scenario.library(), bytes).expect("a copy of the fake library");
        scenario.write();
        scenario
    }

    /// The library, as a hive's `--nvml-library` takes it.
    pub fn library(&self) -> PathBuf {
        self.folder.path().join("libnvidia-ml.so.1")
    }

    /// The file that says what the library answers: it lies beside it, with `.json` added.
    pub fn file(&self) -> PathBuf {
        self.folder.path().join("libnvidia-ml.so.1.json")
    }

    /// Changes the host; the next call gives the new answer.
    pub fn change(&mut self, change: impl FnOnce(&mut Driver)) {
        change(&mut self.driver);
        self.write();
    }

    fn write(&self) {
        let text = serde_json::to_vec(&self.driver).expect("a scenario is JSON");
        let new = self.folder.path().join("scenario.new");
        std::fs::write(&new, text).expect("write the scenario");
        // In one step, so that no call reads half of it.
        std::fs::rename(new, self.file()).expect("replace the scenario");
    }
}

impl Drop for Scenario {
    /// A thread that hangs in the driver would outlive the test.
    fn drop(&mut self) {
        if self.driver.hangs {
            self.change(|driver| driver.hangs = false);
        }
    }
}

/// The fake library as it was built, built if need be.
pub fn library() -> &'static Path {
    static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        let test = std::env::current_exe().expect("path of this test binary");
        // A test lies in PROFILE/deps, a program in PROFILE itself.
        let folder = test.parent().expect("the folder of this program");
        let profile = folder.parent().filter(|_| folder.ends_with("deps")).unwrap_or(folder);
        let mut cargo = cargo();
        // Of the whole workspace, so that it shares the tests' features of its dependencies and all these builds: for this
        // package alone, much of it would be built once more.
        cargo.args(["build", "--workspace", "--example", "fake_nvml", "--quiet"]);
        if profile.ends_with("release") {
            cargo.arg("--release");
        }
        assert!(
            cargo.status().expect("cargo runs").success(),
            "the fake library could not be built"
        );
        let name = format!(
            "{}fake_nvml{}",
            std::env::consts::DLL_PREFIX,
            std::env::consts::DLL_SUFFIX
        );
        profile.join("examples").join(name)
    })
}

/// Renames a function in a library's table of names, so that it is not found by its own name any more.
fn hide(library: &mut [u8], call: &str) {
    let name: Vec<u8> = [b"\0", call.as_bytes(), b"\0"].concat();
    let places: Vec<usize> = library
        .windows(name.len())
        .enumerate()
        .filter_map(|(place, bytes)| (bytes == name).then_some(place))
        .collect();
    assert!(!places.is_empty(), "the fake library has no {call}");
    for place in places {
        library[place + 1] = b'X';
    }
}
