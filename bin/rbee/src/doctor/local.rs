//! This machine: could it run a queen, a hive, a worker?

use std::path::{Path, PathBuf};
use std::time::Duration;

use daemon::client::NoCertificates;
use device_monitor::{Host, LocalOptions, Monitor, Options, Snapshot};
use hive_contract::{DeviceInfo, DeviceKind};
use model_store::{Listing, ModelStore, StoreOptions};

use super::host::{self, Folder};
use super::port::{self, Holder};
use super::{Finding, Status};
use crate::cli::DoctorArgs;
use crate::local::default_state_dir;
use crate::render;

const GROUP: &str = "this machine";
/// Below this, not even a small model fits: on a disk, and in main memory.
const LEAST_DISK: u64 = 2_000_000_000;
const LEAST_MEMORY_MB: u64 = 1_000;
/// The daemons as programs of their own, which need not be there: `rbee` contains them.
const PROGRAMS: [&str; 3] = ["queen-rbee", "rbee-hive", "llm-worker-rbee"];
const WORKER: &str = "llm-worker-rbee";

fn found(check: &str, status: Status, text: impl Into<String>) -> Finding {
    Finding::new(GROUP, check, status, text)
}

/// Looks at everything.
pub(super) async fn examine(args: &DoctorArgs) -> Vec<Finding> {
    let mut findings = Vec::new();
    match daemon::client::new() {
        Ok(http) => {
            for (daemon, flag, port) in [("queen", "--port", args.port), ("hive", "--hive-port", args.hive_port)] {
                findings.push(of_port(daemon, flag, port, port::holder(&http, port).await));
            }
        }
        Err(error) => findings.push(found("HTTP client", Status::Fail, crate::api::root_cause(&error))),
    }
    findings.push(of_certificates(daemon::client::certificates()));
    let worker = worker_program().await;
    match tokio::task::spawn_blocking(snapshot).await {
        Ok(Ok(snapshot)) => {
            findings.push(of_memory(snapshot.ram_available_mb()));
            findings.push(of_drivers(
                &snapshot.devices(),
                snapshot.problem(),
                host::nvidia_driver(),
            ));
            findings.extend(of_engine(&snapshot.devices(), &worker));
        }
        Ok(Err(error)) => findings.push(found("devices", Status::Fail, error.to_string())),
        Err(error) => findings.push(found("devices", Status::Fail, error.to_string())),
    }
    let models = args.models_dir.clone().map_or_else(model_store::default_root, Ok);
    findings.extend(of_models(models.map_err(|error| error.to_string())).await);
    // Where a daemon's own folder is set, as in an image, that is the one which counts.
    let set = || std::env::var_os("RBEE_STATE_DIR").filter(|folder| !folder.is_empty());
    let state = args.state_dir.clone().or_else(|| set().map(PathBuf::from));
    let state = state.map_or_else(default_state_dir, Ok);
    let state = state.map_err(|error| format!("{error:#}"));
    findings.push(of_folder(
        "state folder",
        "--state-dir",
        state.as_deref().map_err(Clone::clone),
    ));
    findings.push(of_pip().await);
    for program in PROGRAMS {
        findings.extend(of_program(program).await);
    }
    findings
}

fn of_port(daemon: &str, flag: &str, port: u16, holder: Holder) -> Finding {
    let check = format!("port of a {daemon}");
    let found = |status, text: String| Finding::new(GROUP, check.as_str(), status, text);
    let other = format!("end it, or choose another port with `{flag}`");
    match holder {
        Holder::Nobody => found(Status::Ok, format!("{port} is free")),
        Holder::Rbee { version } => found(Status::Ok, format!("a daemon of rbee {version} listens at {port}")),
        Holder::Other(Some(process)) => found(Status::Warn, format!("{port} is taken by {process}")).next(other),
        Holder::Other(None) => found(Status::Warn, format!("{port} is taken by another program")).next(other),
        Holder::Refused(reason) => found(Status::Fail, format!("{port} cannot be taken: {reason}")).next(other),
    }
}

fn snapshot() -> Result<Snapshot, device_monitor::Error> {
    let options = Options {
        // Once is enough.
        interval: Duration::from_secs(3_600),
        ..Options::default()
    };
    Ok(Monitor::start(Host::local(&LocalOptions::default())?, options)?.snapshot())
}

/// A fleet that speaks http needs none; hubs and what is behind a proxy with TLS do.
fn of_certificates(certificates: Result<(), NoCertificates>) -> Finding {
    match certificates {
        Ok(()) => found("certificates", Status::Ok, "https servers can be told from impostors"),
        Err(error) => found("certificates", Status::Warn, error.to_string()),
    }
}

fn of_memory(available_mb: Option<u64>) -> Finding {
    match available_mb {
        None => found("memory", Status::Skipped, "it could not be read"),
        Some(mb) => {
            let text = format!("{} free", render::bytes(mb * 1_000_000));
            match mb < LEAST_MEMORY_MB {
                true => found("memory", Status::Warn, text).next("end other programs; models need more"),
                false => found("memory", Status::Ok, text),
            }
        }
    }
}

fn of_drivers(devices: &[DeviceInfo], problem: Option<String>, nvidia: Option<String>) -> Finding {
    let gpus: Vec<&DeviceInfo> = devices.iter().filter(|device| device.kind != DeviceKind::Cpu).collect();
    let driver = nvidia.map(|version| format!("NVIDIA driver {version}"));
    if let Some(problem) = problem {
        return found("GPU drivers", Status::Fail, problem)
            .next("see `nvidia-smi` or the kernel's log (`dmesg`); the CPU works without");
    }
    match (gpus.as_slice(), driver) {
        ([], None) => found("GPU drivers", Status::Ok, "no GPU; models run on the CPU"),
        ([], Some(driver)) => found(
            "GPU drivers",
            Status::Warn,
            format!("{driver} is loaded and shows no GPU"),
        )
        .next("see `nvidia-smi`; in a container, give it the devices and NVML"),
        (gpus, driver) => {
            let names = gpus.iter().map(|gpu| format!("{} ({})", gpu.name, gpu.id));
            let all: Vec<String> = driver.into_iter().chain(names).collect();
            found("GPU drivers", Status::Ok, all.join(", "))
        }
    }
}

/// The program that a hive would start here, and what its `--version` printed.
struct WorkerProgram {
    path: Option<PathBuf>,
    printed: Result<String, String>,
}

async fn worker_program() -> WorkerProgram {
    let own = || std::env::current_exe().map_err(|error| error.to_string());
    match host::on_path(WORKER) {
        Some(path) => WorkerProgram {
            printed: host::output_of(&path, &["--version"]).await,
            path: Some(path),
        },
        None => WorkerProgram {
            path: None,
            printed: match own() {
                Ok(rbee) => host::output_of(&rbee, &["worker", "--version"]).await,
                Err(error) => Err(error),
            },
        },
    }
}

/// Whether the worker program runs at all (its libraries are found), and whether it can use the GPUs.
fn of_engine(devices: &[DeviceInfo], worker: &WorkerProgram) -> Vec<Finding> {
    let name = worker
        .path
        .as_ref()
        .map_or("rbee worker".to_owned(), |path| path.display().to_string());
    let printed = match &worker.printed {
        Ok(printed) => printed,
        Err(error) => {
            let broken = found("worker program", Status::Fail, format!("{name} does not run: {error}"));
            return vec![broken.next("install the libraries that it names, or another build")];
        }
    };
    let mut findings = vec![found("worker program", Status::Ok, printed.as_str())];
    let (is_cuda, built_for) = host::cuda_in(printed);
    for device in devices.iter().filter(|device| device.kind == DeviceKind::Cuda) {
        let check = format!("{} and the worker", device.id);
        let has = device.compute_capability.as_deref().and_then(capability);
        let finding = match (is_cuda, has, built_for) {
            (false, ..) => Finding::new(GROUP, check, Status::Warn, "the worker program is built without CUDA")
                .next("use one that is, or models run on the CPU"),
            (true, Some(has), Some(needs)) if has < needs => {
                let text = format!(
                    "its compute capability is {}.{}, the program needs {}.{}",
                    has.0, has.1, needs.0, needs.1
                );
                let build = format!("build it with CUDA_COMPUTE_CAP={}{}", has.0, has.1);
                Finding::new(GROUP, check, Status::Fail, text).next(build)
            }
            _ => Finding::new(GROUP, check, Status::Ok, "the program is built for it"),
        };
        findings.push(finding);
    }
    findings
}

fn capability(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

fn of_folder(check: &str, flag: &str, path: Result<&Path, String>) -> Finding {
    let other = format!("name another one with {flag}");
    let path = match path {
        Ok(path) => path,
        Err(error) => return found(check, Status::Fail, error).next(other),
    };
    match Folder::look(path) {
        Ok(folder) => judge_folder(check, &folder, other),
        Err(error) => {
            let text = format!("{}: {}", path.display(), crate::api::root_cause(&error));
            found(check, Status::Fail, text).next(other)
        }
    }
}

fn judge_folder(check: &str, folder: &Folder, other: String) -> Finding {
    let path = folder.path.display();
    if !folder.is_writable {
        let text = match folder.exists {
            true => format!("{path} may not be written to by this user"),
            false => format!("{path} is not there and may not be made by this user"),
        };
        return found(check, Status::Fail, text).next(other);
    }
    let text = format!("{path}, {} free", render::bytes(folder.free_bytes));
    match folder.free_bytes < LEAST_DISK {
        true => found(check, Status::Warn, text).next("make room: models take gigabytes"),
        false => found(check, Status::Ok, text),
    }
}

async fn of_models(root: Result<PathBuf, String>) -> Vec<Finding> {
    let mut findings = vec![of_folder(
        "models folder",
        "--models-dir",
        root.as_deref().map_err(Clone::clone),
    )];
    // Opening the store would make the folder.
    let Some(root) = root.ok().filter(|root| root.is_dir()) else {
        return findings;
    };
    let store = match ModelStore::open(root) {
        Ok(store) => store.list().await,
        Err(error) => Err(error),
    };
    match store {
        Ok(listing) => findings.extend(of_listing(&listing)),
        Err(error) => findings.push(found("model files", Status::Fail, error.to_string())),
    }
    findings
}

fn of_listing(listing: &Listing) -> Vec<Finding> {
    if listing.damaged.is_empty() {
        let size: u64 = listing.models.iter().map(|model| model.size_bytes).sum();
        let text = format!("{} whole, {}", listing.models.len(), render::bytes(size));
        return vec![found("model files", Status::Ok, text)];
    }
    let damaged = listing.damaged.iter().map(|damaged| {
        let text = format!("{}: {}", damaged.path.display(), damaged.why);
        let finding = found("model files", Status::Fail, text);
        match &damaged.id {
            Some(id) => finding.next(format!("`rbee rm {id} --local`, then pull it again")),
            None => finding,
        }
    });
    damaged.collect()
}

async fn of_pip() -> Finding {
    let python = StoreOptions::from_env().python;
    match host::output_of(Path::new(&python), &["-m", "pip", "--version"]).await {
        Ok(printed) => {
            // The rest of the line is a path.
            let words: Vec<&str> = printed.split_whitespace().take(2).collect();
            found("pip", Status::Ok, format!("{} by {python}", words.join(" ")))
        }
        Err(error) => found("pip", Status::Warn, format!("{python} -m pip: {error}"))
            .next("models from pip: need it; hf:, https: and file: do not"),
    }
}

/// A daemon's own program on the search path: is it of this version?
async fn of_program(name: &'static str) -> Option<Finding> {
    let path = host::on_path(name)?;
    let printed = host::output_of(&path, &["--version"]).await;
    Some(judge_program(name, &path, &printed))
}

fn judge_program(name: &str, path: &Path, printed: &Result<String, String>) -> Finding {
    let ours = env!("CARGO_PKG_VERSION");
    let path = path.display();
    match printed.as_ref().map(|printed| host::version_in(printed)) {
        Ok(Some(version)) if version == ours => found(name, Status::Ok, format!("{version} at {path}")),
        Ok(version) => {
            let version = version.unwrap_or("of an unknown version");
            found(name, Status::Warn, format!("{path} is {version}, rbee is {ours}")).next("install them together")
        }
        Err(error) => found(name, Status::Fail, format!("{path} does not run: {error}"))
            .next("install it again, or remove it: rbee contains it"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gpu(capability: &str) -> DeviceInfo {
        DeviceInfo {
            id: "cuda:0".into(),
            kind: DeviceKind::Cuda,
            name: "RTX 4090".into(),
            memory_total_mb: 24_000,
            memory_reserved_mb: 0,
            uuid: None,
            compute_capability: Some(capability.into()),
        }
    }

    fn worker(printed: Result<&str, &str>) -> WorkerProgram {
        WorkerProgram {
            path: None,
            printed: printed.map(str::to_owned).map_err(str::to_owned),
        }
    }

    fn statuses(findings: &[Finding]) -> Vec<Status> {
        findings.iter().map(|finding| finding.status).collect()
    }

    #[test]
    fn a_port_is_free_or_ours_or_somebody_elses_who_is_named() {
        let of = |holder| of_port("queen", "--port", 7833, holder);
        assert_eq!(of(Holder::Nobody).status, Status::Ok);
        assert_eq!(
            of(Holder::Rbee {
                version: "0.1.0".into()
            })
            .status,
            Status::Ok
        );
        let other = of(Holder::Other(Some("nginx (process 7)".into())));
        assert_eq!(
            (other.status, other.found.as_str()),
            (Status::Warn, "7833 is taken by nginx (process 7)")
        );
        assert!(other.next.unwrap().contains("--port"));
        assert_eq!(of(Holder::Refused("permission denied".into())).status, Status::Fail);
    }

    #[test]
    fn a_worker_program_that_does_not_run_names_what_it_lacks() {
        let lacks = worker(Err("exit status: 127: libcublas.so.12: cannot open shared object file"));
        let findings = of_engine(&[gpu("8.9")], &lacks);
        assert_eq!(statuses(&findings), [Status::Fail]);
        assert!(findings[0].found.contains("libcublas.so.12"));
    }

    #[test]
    fn a_gpu_must_fit_the_worker_programs_kernels() {
        let of = |printed, has| statuses(&of_engine(&[gpu(has)], &worker(Ok(printed))));
        assert_eq!(of("w 0.1.0 (dev, features: cpu)", "8.9"), [Status::Ok, Status::Warn]);
        assert_eq!(
            of("w 0.1.0 (dev, features: cpu, cuda sm_90)", "8.9"),
            [Status::Ok, Status::Fail]
        );
        assert_eq!(
            of("w 0.1.0 (dev, features: cpu, cuda sm_80)", "8.9"),
            [Status::Ok, Status::Ok]
        );
        assert_eq!(
            of("w 0.1.0 (dev, features: cpu, cuda sm_90)", "12.0"),
            [Status::Ok, Status::Ok]
        );
    }

    #[test]
    fn a_driver_that_fails_is_told_and_a_machine_without_gpus_is_well() {
        assert_eq!(of_drivers(&[], None, None).status, Status::Ok);
        let loaded = || Some("550.1".to_owned());
        assert_eq!(of_drivers(&[], None, loaded()).status, Status::Warn);
        let well = of_drivers(&[gpu("8.9")], None, loaded());
        assert_eq!(
            (well.status, well.found.as_str()),
            (Status::Ok, "NVIDIA driver 550.1, RTX 4090 (cuda:0)")
        );
        let broken = of_drivers(&[], Some("versions differ".into()), loaded());
        assert_eq!(
            (broken.status, broken.found.as_str()),
            (Status::Fail, "versions differ")
        );
    }

    #[test]
    fn a_folder_needs_room_and_permission() {
        let folder = |is_writable, free_bytes| Folder {
            path: "/f".into(),
            exists: true,
            is_writable,
            free_bytes,
        };
        let of = |folder| judge_folder("state folder", &folder, String::new()).status;
        assert_eq!(of(folder(true, LEAST_DISK)), Status::Ok);
        assert_eq!(of(folder(true, LEAST_DISK - 1)), Status::Warn);
        assert_eq!(of(folder(false, LEAST_DISK)), Status::Fail);
    }

    #[test]
    fn too_little_memory_is_a_warning() {
        assert_eq!(of_memory(Some(64_000)).status, Status::Ok);
        assert_eq!(of_memory(Some(500)).status, Status::Warn);
        assert_eq!(of_memory(None).status, Status::Skipped);
    }

    #[test]
    fn programs_of_another_version_are_named() {
        let of = |printed: Result<&str, &str>| {
            let printed = printed.map(str::to_owned).map_err(str::to_owned);
            judge_program("rbee-hive", Path::new("/bin/rbee-hive"), &printed).status
        };
        let ours = format!("rbee-hive {} (dev)", env!("CARGO_PKG_VERSION"));
        assert_eq!(of(Ok(&ours)), Status::Ok);
        assert_eq!(of(Ok("rbee-hive 99.0.0 (dev)")), Status::Warn);
        assert_eq!(of(Err("exit status: 1")), Status::Fail);
    }

    #[tokio::test]
    async fn a_damaged_model_is_a_failure_with_the_remedy() {
        let root = tempfile::tempdir().unwrap();
        let of = async || of_models(Ok(root.path().to_owned())).await;
        assert_eq!(statuses(&of().await), [Status::Ok, Status::Ok]);
        let model = root.path().join("smollm2-135m-instruct");
        std::fs::create_dir(&model).unwrap();
        std::fs::write(model.join("manifest.json"), "cut off").unwrap();
        let findings = of().await;
        assert_eq!(statuses(&findings), [Status::Ok, Status::Fail]);
        let next = findings[1].next.as_deref().unwrap_or_default();
        assert!(next.contains("rbee rm smollm2-135m-instruct --local"), "{findings:?}");
    }

    #[tokio::test]
    async fn a_folder_of_models_that_is_not_there_is_not_made() {
        let root = tempfile::tempdir().unwrap();
        let gone = root.path().join("models");
        assert_eq!(of_models(Ok(gone.clone())).await.len(), 1);
        assert!(!gone.exists());
    }
}
