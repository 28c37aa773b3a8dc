//! The monitor: a polling thread for each source, so that a GPU driver that hangs hides nothing else, and their snapshots.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;

use crate::poller::Poller;
use crate::snapshot::DriverState;
use crate::{Drm, Error, GpuReading, Gpus, LocalSystem, Nvml, Snapshot, System, SystemReading};

/// How to poll.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Pause between two readings of a source.
    pub interval: Duration,
    /// A source that has not answered for this long is late: its load is no longer believed.
    pub deadline: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(1),
            deadline: Duration::from_secs(5),
        }
    }
}

/// What is polled.
pub struct Host {
    /// CPU, main memory and processes.
    pub system: Box<dyn System>,
    /// GPUs, each source with its own kinds of them.
    pub gpus: Vec<Box<dyn Gpus>>,
}

/// Where the system that this program runs on shows itself.
#[derive(Debug, Clone)]
pub struct LocalOptions {
    /// Replaces the system's `libnvidia-ml.so.1`.
    pub nvml_library: Option<PathBuf>,
    /// Pause between two tries to load an NVIDIA driver that is not there. One that was there is missed sooner.
    pub nvml_retry: Duration,
    /// The system's devices.
    pub sysfs_root: PathBuf,
    /// The control groups.
    pub cgroup_root: PathBuf,
    /// The processes.
    pub proc_root: PathBuf,
}

impl Default for LocalOptions {
    fn default() -> Self {
        Self {
            nvml_library: None,
            nvml_retry: Duration::from_secs(30),
            sysfs_root: "/sys".into(),
            cgroup_root: "/sys/fs/cgroup".into(),
            proc_root: "/proc".into(),
        }
    }
}

impl Host {
    /// The host that this program runs on.
    pub fn local(options: &LocalOptions) -> Result<Self, Error> {
        Ok(Self {
            system: Box::new(LocalSystem::new(options)?),
            gpus: vec![
                Box::new(Nvml::new(options)),
                Box::new(Drm::new(options)),
                #[cfg(target_os = "macos")]
                Box::new(crate::Apple::new()),
            ],
        })
    }
}

/// Handle of the polling threads, which end with its last clone.
#[derive(Debug, Clone)]
pub struct Monitor {
    system: Arc<Poller<SystemReading>>,
    gpus: Arc<[Driver]>,
    pids: Arc<ArcSwap<Vec<u32>>>,
    options: Options,
    started: Instant,
}

/// One source of GPUs.
#[derive(Debug)]
struct Driver {
    name: &'static str,
    poller: Poller<GpuReading>,
}

impl Monitor {
    /// Starts polling. Blocks until each source has answered once, at most the deadline.
    pub fn start(host: Host, options: Options) -> Result<Self, Error> {
        let started = Instant::now();
        let Host { mut system, gpus } = host;
        let pids: Arc<ArcSwap<Vec<u32>>> = Arc::default();
        let watched = Arc::clone(&pids);
        let thread = |what| move |source| Error::Thread { what, source };
        let system = Poller::start("monitor-system", options.interval, move || system.read(&watched.load()))
            .map_err(thread("processes and memory"))?;
        let gpus = gpus.into_iter().map(|mut source| {
            let name = source.driver();
            let poller = Poller::start("monitor-gpus", options.interval, move || source.read());
            Ok(Driver {
                name,
                poller: poller.map_err(thread(name))?,
            })
        });
        let gpus: Arc<[Driver]> = gpus.collect::<Result<_, Error>>()?;
        let deadline = started + options.deadline;
        let left = || deadline.saturating_duration_since(Instant::now());
        system.wait_first(left());
        gpus.iter().for_each(|driver| driver.poller.wait_first(left()));
        Ok(Self {
            system: Arc::new(system),
            gpus,
            pids,
            options,
            started,
        })
    }

    /// From now on these processes are measured and no others; the first figures come at once.
    pub fn watch(&self, pids: Vec<u32>) {
        self.pids.store(Arc::new(pids));
        self.system.read_now();
    }

    /// The last known state.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot {
            system: self.system.latest(),
            gpus: self
                .gpus
                .iter()
                .map(|driver| DriverState {
                    driver: driver.name,
                    reading: driver.poller.latest(),
                })
                .collect(),
            limit: self.options.interval + self.options.deadline,
            started: self.started,
            taken: Instant::now(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::mpsc;

    use hive_contract::DeviceKind;

    use super::*;
    use crate::Gpu;

    struct Scripted(mpsc::Receiver<GpuReading>);

    impl Gpus for Scripted {
        fn driver(&self) -> &'static str {
            "scripted driver"
        }

        fn read(&mut self) -> GpuReading {
            self.0.recv().unwrap_or_else(|_| GpuReading::Failed {
                reason: "end of the script".into(),
            })
        }
    }

    /// Tells which processes it was asked for.
    struct Echo(mpsc::Sender<Vec<u32>>);

    impl System for Echo {
        fn read(&mut self, pids: &[u32]) -> SystemReading {
            // The test may be over.
            let _ = self.0.send(pids.to_vec());
            SystemReading::default()
        }
    }

    fn monitor(interval: Duration) -> (Monitor, mpsc::Sender<GpuReading>, mpsc::Receiver<Vec<u32>>) {
        let (readings, script) = mpsc::channel();
        let (asked, asks) = mpsc::channel();
        let first = Gpu::new(DeviceKind::Cuda, 0);
        readings.send(GpuReading::Present(vec![first])).unwrap();
        let host = Host {
            system: Box::new(Echo(asked)),
            gpus: vec![Box::new(Scripted(script))],
        };
        let options = Options {
            interval,
            deadline: Duration::from_secs(60),
        };
        (Monitor::start(host, options).unwrap(), readings, asks)
    }

    #[test]
    fn the_devices_are_known_as_soon_as_the_monitor_has_started() {
        let (monitor, _readings, _) = monitor(Duration::from_secs(3600));
        let ids: Vec<_> = monitor.snapshot().devices().into_iter().map(|d| d.id).collect();
        assert_eq!(ids, ["cpu", "cuda:0"]);
    }

    #[test]
    fn a_driver_that_hangs_does_not_stop_the_other_readings() {
        let (monitor, _readings, asks) = monitor(Duration::from_millis(1));
        // The script gives no second reading, so the GPU thread hangs from here on.
        for _ in 0..3 {
            asks.recv().unwrap();
        }
        assert_eq!(monitor.snapshot().devices().len(), 2);
    }

    #[test]
    fn the_processes_that_were_last_named_are_measured_at_once() {
        let (monitor, _readings, asks) = monitor(Duration::from_secs(3600));
        assert_eq!(asks.recv().unwrap(), Vec::<u32>::new());
        monitor.watch(vec![3, 5]);
        assert_eq!(asks.recv().unwrap(), [3, 5]);
    }

    #[test]
    fn this_host_can_be_read_without_any_gpu() {
        let host = Host::local(&LocalOptions {
            nvml_library: Some("/nowhere/libnvidia-ml.so.1".into()),
            sysfs_root: "/nowhere".into(),
            ..LocalOptions::default()
        });
        let host = host.unwrap();
        let monitor = Monitor::start(host, Options::default()).unwrap();
        let snapshot = monitor.snapshot();
        assert_eq!(snapshot.devices().len(), 1);
        assert!(snapshot.monitor(Duration::ZERO, &BTreeSet::new()).ram_total_mb > 0);
        assert_eq!(snapshot.problem(), None);
    }
}
