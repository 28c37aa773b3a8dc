//! What a host's monitor says of NVIDIA GPUs, whatever their driver does, with a fake driver.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use device_monitor::{Gpu, GpuReading, Gpus, Host, LocalOptions, Monitor, Named, Nvml, Options, Snapshot};
use rbee_tests::PATIENCE;
use rbee_tests::nvml::{self, Driver, GpuProcess, Scenario, code};

fn options(scenario: &Scenario) -> LocalOptions {
    LocalOptions {
        nvml_library: Some(scenario.library()),
        nvml_retry: Duration::ZERO,
        sysfs_root: "/nowhere".into(),
        ..LocalOptions::default()
    }
}

/// The driver as one source, read when the test says so.
fn source(scenario: &Scenario) -> Nvml {
    Nvml::new(&options(scenario))
}

fn present(source: &mut Nvml) -> Vec<Gpu> {
    match source.read() {
        GpuReading::Present(gpus) => gpus,
        other => panic!("no GPUs: {other:?}"),
    }
}

/// The whole host, read without a pause.
fn monitor(scenario: &Scenario, deadline: Duration) -> Monitor {
    let host = Host::local(&options(scenario)).unwrap();
    let interval = Duration::from_millis(1);
    Monitor::start(host, Options { interval, deadline }).unwrap()
}

/// Waits until the monitor's snapshot is as expected.
fn until(monitor: &Monitor, what: &str, is_so: impl Fn(&Snapshot) -> bool) -> Snapshot {
    let started = Instant::now();
    loop {
        let snapshot = monitor.snapshot();
        if is_so(&snapshot) {
            return snapshot;
        }
        assert!(
            started.elapsed() < PATIENCE,
            "waited in vain until {what}: {snapshot:?}"
        );
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn device_ids(snapshot: &Snapshot) -> Vec<String> {
    snapshot.devices().into_iter().map(|device| device.id).collect()
}

fn none() -> BTreeSet<u32> {
    BTreeSet::new()
}

#[test]
fn a_host_without_the_library_has_no_gpus_and_no_problem() {
    let host = Host::local(&LocalOptions {
        nvml_library: Some("/nowhere/libnvidia-ml.so.1".into()),
        sysfs_root: "/nowhere".into(),
        ..LocalOptions::default()
    });
    let snapshot = Monitor::start(host.unwrap(), Options::default()).unwrap().snapshot();
    assert_eq!(device_ids(&snapshot), ["cpu"]);
    assert_eq!(snapshot.problem(), None);
}

#[test]
fn a_library_without_a_driver_is_no_problem_either() {
    let scenario = Scenario::new(Driver {
        error: Some(code::DRIVER_NOT_LOADED),
        ..Driver::with_gpus(1)
    });
    let GpuReading::Absent { reason } = source(&scenario).read() else {
        panic!("a driver that is not loaded shows GPUs")
    };
    assert!(reason.contains("not loaded"), "{reason}");
}

#[test]
fn a_library_of_another_version_than_the_driver_is_a_problem_with_a_remedy() {
    let scenario = Scenario::new(Driver {
        error: Some(code::VERSION_MISMATCH),
        ..Driver::with_gpus(1)
    });
    let snapshot = monitor(&scenario, PATIENCE).snapshot();
    let problem = snapshot.problem().unwrap();
    assert!(problem.contains("different versions; restart the machine"), "{problem}");
    assert_eq!(device_ids(&snapshot), ["cpu"]);
}

#[test]
fn a_gpu_is_told_with_all_its_figures() {
    let mut driver = Driver::with_gpus(1);
    driver.gpus[0].reserved_mb = 300;
    driver.gpus[0].used_mb = 64;
    driver.gpus[0].util = 35;
    let mut gpu = driver.gpus[0].clone().running(4_000_001, 900);
    gpu.processes[0].util = Some(25);
    driver.gpus[0] = gpu;
    let scenario = Scenario::new(driver);
    let gpu = present(&mut source(&scenario)).remove(0);
    assert_eq!(gpu.id(), "cuda:0");
    assert_eq!(gpu.uuid.as_deref(), Some("GPU-00000000-0000-0000-0000-000000000000"));
    assert_eq!(gpu.name.as_deref(), Some("NVIDIA GeForce RTX 4090"));
    assert_eq!(gpu.compute_capability.as_deref(), Some("8.9"));
    // What the driver keeps for itself cannot be taken.
    assert_eq!(
        (gpu.memory_total_mb, gpu.memory_used_mb),
        (Some(24_564), Some(300 + 64 + 900))
    );
    assert_eq!((gpu.util_percent, gpu.temperature_celsius), (Some(35.0), Some(42.0)));
    assert_eq!((gpu.power_watts, gpu.power_limit_watts), (Some(31.0), Some(450.0)));
    let process = &gpu.processes[&4_000_001];
    assert_eq!((process.memory_mb, process.util_percent), (Some(900), Some(25.0)));
    // No process of this number can exist.
    assert_eq!(process.name, None);
    assert_eq!((gpu.named, gpu.problem), (Named::All, None));
}

#[test]
fn eight_gpus_are_eight_devices_in_their_order() {
    let scenario = Scenario::new(Driver::with_gpus(8));
    let snapshot = monitor(&scenario, PATIENCE).snapshot();
    let expected: Vec<_> = (0..8).map(|index| format!("cuda:{index}")).collect();
    assert_eq!(device_ids(&snapshot)[1..], expected);
    let loads = snapshot.monitor(Duration::ZERO, &none()).devices;
    assert!(
        loads
            .iter()
            .all(|load| load.vram_foreign_mb == Some(0) && load.vram_used_mb == Some(0))
    );
    assert_eq!(snapshot.problem(), None);
}

#[test]
fn what_a_gpu_does_not_offer_is_unknown_and_the_rest_is_told() {
    let mut driver = Driver::with_gpus(1);
    let calls = [
        "nvmlDeviceGetPowerUsage",
        "nvmlDeviceGetEnforcedPowerLimit",
        "nvmlDeviceGetTemperature",
        "nvmlDeviceGetUtilizationRates",
        "nvmlDeviceGetProcessUtilization",
    ];
    driver.gpus[0].unsupported = calls.map(str::to_owned).into();
    driver.gpus[0] = driver.gpus[0].clone().running(4_000_001, 900);
    let scenario = Scenario::new(driver);
    let gpu = present(&mut source(&scenario)).remove(0);
    assert_eq!((gpu.power_watts, gpu.power_limit_watts), (None, None));
    assert_eq!((gpu.temperature_celsius, gpu.util_percent), (None, None));
    assert_eq!(gpu.processes[&4_000_001].util_percent, None);
    assert_eq!((gpu.memory_used_mb, gpu.problem), (Some(900), None));
}

#[test]
fn a_driver_from_before_510_tells_its_memory_by_the_older_call() {
    let mut driver = Driver::with_gpus(1);
    driver.gpus[0].used_mb = 2_000;
    let calls = [
        "nvmlDeviceGetMemoryInfo_v2",
        "nvmlDeviceGetComputeRunningProcesses_v3",
        "nvmlDeviceGetGraphicsRunningProcesses_v3",
    ];
    let scenario = Scenario::without(driver, &calls);
    let gpu = present(&mut source(&scenario)).remove(0);
    assert_eq!((gpu.memory_total_mb, gpu.memory_used_mb), (Some(24_564), Some(2_000)));
    assert_eq!((gpu.named, gpu.problem), (Named::None, None));
}

#[test]
fn a_driver_that_tells_no_memory_leaves_it_unknown() {
    let calls = ["nvmlDeviceGetMemoryInfo_v2", "nvmlDeviceGetMemoryInfo"];
    let scenario = Scenario::without(Driver::with_gpus(1), &calls);
    let gpu = present(&mut source(&scenario)).remove(0);
    assert_eq!((gpu.memory_total_mb, gpu.memory_used_mb), (None, None));
    assert_eq!((gpu.temperature_celsius, gpu.problem), (Some(42.0), None));
}

#[test]
fn a_gpu_that_is_lost_while_it_runs_stays_listed_without_figures_until_it_is_back() {
    let mut scenario = Scenario::new(Driver::with_gpus(3));
    let monitor = monitor(&scenario, PATIENCE);
    assert_eq!(device_ids(&monitor.snapshot()).len(), 4);

    scenario.change(|driver| driver.gpus[1].error = Some(code::GPU_IS_LOST));
    let snapshot = until(&monitor, "the loss shows", |snapshot| snapshot.problem().is_some());
    assert_eq!(device_ids(&snapshot), ["cpu", "cuda:0", "cuda:2"]);
    let loads = snapshot.monitor(Duration::ZERO, &none()).devices;
    assert_eq!((loads.len(), loads[1].id.as_str()), (3, "cuda:1"));
    assert_eq!((loads[1].vram_total_mb, loads[1].temperature_celsius), (None, None));
    assert_eq!(loads[2].vram_total_mb, Some(24_564));
    let problem = snapshot.problem().unwrap();
    assert!(problem.starts_with("cuda:1: device fell off the bus"), "{problem}");

    scenario.change(|driver| driver.gpus[1].error = None);
    let snapshot = until(&monitor, "it is back", |snapshot| snapshot.problem().is_none());
    assert_eq!(device_ids(&snapshot).len(), 4);
}

#[test]
fn a_gpu_that_a_reload_does_not_bring_back_leaves_the_others_their_names() {
    let mut scenario = Scenario::new(Driver::with_gpus(3));
    let mut source = source(&scenario);
    let before = present(&mut source);
    scenario.change(|driver| {
        driver.loads += 1;
        driver.gpus.remove(1);
    });
    let failed = present(&mut source);
    assert!(failed.iter().all(|gpu| gpu.problem.is_some()));
    let after = present(&mut source);
    assert_eq!(after.len(), 3);
    assert!(after[1].problem.as_ref().unwrap().contains("no longer lists it"));
    assert_eq!((&after[0], &after[2]), (&before[0], &before[2]));
}

#[test]
fn a_driver_that_is_reloaded_fails_and_then_answers_again() {
    let mut scenario = Scenario::new(Driver::with_gpus(2));
    let mut source = source(&scenario);
    let before = present(&mut source);

    scenario.change(|driver| driver.error = Some(code::DRIVER_NOT_LOADED));
    for _ in 0..2 {
        let gone = present(&mut source);
        assert!(
            gone.iter()
                .all(|gpu| gpu.problem.as_ref().unwrap().contains("not loaded"))
        );
        // Which GPUs they are is still known.
        assert_eq!((&gone[1].uuid, gone[1].memory_used_mb), (&before[1].uuid, None));
    }

    scenario.change(|driver| {
        driver.error = None;
        driver.loads += 1;
        driver.gpus[0].power_limit_watts = 300;
    });
    let after = present(&mut source);
    assert_eq!(after[1], before[1]);
    assert_eq!(after[0].problem, None);
}

#[test]
fn a_driver_whose_gpus_all_fail_is_initialised_anew() {
    let mut scenario = Scenario::new(Driver::with_gpus(2));
    let mut source = source(&scenario);
    present(&mut source);
    for lost in [true, false] {
        scenario.change(|driver| {
            for gpu in &mut driver.gpus {
                gpu.error = lost.then_some(code::GPU_IS_LOST);
            }
            driver.loads += u32::from(!lost);
        });
        assert!(present(&mut source).iter().all(|gpu| gpu.problem.is_some() == lost));
    }
}

#[test]
fn a_driver_that_hangs_hides_nothing_else_and_answers_again_later() {
    let mut scenario = Scenario::new(Driver::with_gpus(1));
    let monitor = monitor(&scenario, Duration::from_millis(200));
    until(&monitor, "the GPU is there", |snapshot| device_ids(snapshot).len() == 2);
    scenario.change(|driver| driver.hangs = true);
    let snapshot = until(&monitor, "the driver is late", |snapshot| {
        let problem = snapshot.problem().unwrap_or_default();
        problem.starts_with("the NVIDIA driver has not answered")
    });
    let load = snapshot.monitor(Duration::ZERO, &none());
    assert!(load.ram_total_mb > 0);
    assert_eq!(
        (load.devices[0].vram_used_mb, load.devices[0].vram_foreign_mb),
        (None, None)
    );

    scenario.change(|driver| driver.hangs = false);
    until(&monitor, "it answers again", |snapshot| snapshot.problem().is_none());
}

#[test]
fn a_driver_that_hangs_from_the_start_does_not_keep_the_monitor_from_starting() {
    let scenario = Scenario::new(Driver {
        hangs: true,
        ..Driver::with_gpus(1)
    });
    let snapshot = monitor(&scenario, Duration::from_millis(50)).snapshot();
    assert_eq!(device_ids(&snapshot), ["cpu"]);
}

#[test]
fn a_slow_driver_is_not_late() {
    let scenario = Scenario::new(Driver {
        delay_ms: 1,
        ..Driver::with_gpus(1)
    });
    let monitor = monitor(&scenario, PATIENCE);
    assert_eq!(device_ids(&monitor.snapshot()), ["cpu", "cuda:0"]);
    assert_eq!(monitor.snapshot().problem(), None);
}

#[test]
fn a_game_that_starts_shows_by_name_with_the_memory_that_it_takes() {
    // The test itself plays the game: a real process, so that its name can be found.
    let game = std::process::id();
    let worker = 4_000_001;
    let mut driver = Driver::with_gpus(2);
    driver.gpus[0] = nvml::Gpu::numbered(0).running(worker, 6_000);
    let mut scenario = Scenario::new(driver);
    let monitor = monitor(&scenario, PATIENCE);
    let ours = BTreeSet::from([worker]);
    let snapshot = monitor.snapshot();
    assert!(snapshot.foreign("cuda:0", &ours).is_empty());
    assert_eq!(
        snapshot.monitor(Duration::ZERO, &ours).devices[0].vram_foreign_mb,
        Some(0)
    );

    scenario.change(|driver| {
        // It draws and computes, and so stands in both of the driver's lists.
        driver.gpus[0].processes.push(GpuProcess {
            pid: game,
            memory_mb: Some(9_000),
            computes: true,
            draws: true,
            util: Some(80),
        });
    });
    // The memory is read first: what else is read then is of the game's time, too.
    let snapshot = until(&monitor, "the game shows", |snapshot| {
        snapshot.monitor(Duration::ZERO, &ours).devices[0].vram_used_mb == Some(15_000)
    });
    let foreign = snapshot.foreign("cuda:0", &ours);
    assert_eq!((foreign.len(), foreign[0].pid), (1, game));
    assert_eq!(
        (foreign[0].memory_mb, foreign[0].util_percent),
        (Some(9_000), Some(80.0))
    );
    let name = std::fs::read_to_string("/proc/self/comm").unwrap();
    assert_eq!(foreign[0].name.as_deref(), Some(name.trim_end()));
    let load = &snapshot.monitor(Duration::ZERO, &ours).devices[0];
    assert_eq!((load.vram_foreign_mb, load.vram_used_mb), (Some(9_000), Some(15_000)));
    assert!(snapshot.foreign("cuda:1", &ours).is_empty());
}

#[test]
fn a_driver_that_hides_the_processes_leaves_foreign_memory_open() {
    // So it is in many containers: 20 GB in use, by nobody.
    let mut driver = Driver::with_gpus(1);
    driver.gpus[0].used_mb = 20_000;
    let scenario = Scenario::new(driver);
    let snapshot = monitor(&scenario, PATIENCE).snapshot();
    let foreign = |ours: &[u32]| {
        let ours = ours.iter().copied().collect();
        snapshot.monitor(Duration::ZERO, &ours).devices[0].vram_foreign_mb
    };
    assert_eq!((foreign(&[]), foreign(&[7])), (Some(20_000), None));
}

#[test]
fn a_process_that_has_become_idle_takes_no_share_of_the_time() {
    let mut driver = Driver::with_gpus(1);
    driver.gpus[0] = nvml::Gpu::numbered(0).running(4_000_001, 900);
    driver.gpus[0].processes[0].util = Some(70);
    let mut scenario = Scenario::new(driver);
    let mut source = source(&scenario);
    let mut share = || present(&mut source)[0].processes[&4_000_001].util_percent;
    assert_eq!(share(), Some(70.0));
    scenario.change(|driver| driver.gpus[0].processes[0].util = None);
    // One reading without a sample says little: drivers sample about as seldom as they are asked.
    assert_eq!((share(), share()), (Some(70.0), Some(0.0)));
}
