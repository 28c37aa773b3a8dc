//! NVIDIA GPUs, by NVML: NVIDIA's management library, which comes with the driver and is loaded at run time.

mod card;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use nvml_wrapper::Nvml as Library;
use nvml_wrapper::error::NvmlError;

use self::card::{Card, known};
use crate::{Gpu, GpuReading, Gpus, LocalOptions};

/// Longest pause between two tries to load a driver that was there before.
const RETRY_SEEN: Duration = Duration::from_secs(5);
/// An administrator may change the power limit: it is read again after so many readings.
const POWER_LIMIT_EVERY: u32 = 60;

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
        nvml.number(&[Some("GPU-1".into())]);
        let GpuReading::Present(gpus) = nvml.read() else {
            panic!("the GPUs are forgotten")
        };
        assert_eq!((gpus.len(), gpus[0].uuid.as_deref()), (1, Some("GPU-1")));
        assert!(gpus[0].problem.as_ref().unwrap().contains("no NVIDIA driver"));
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
