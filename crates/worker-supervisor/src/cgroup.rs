//! Memory limits by cgroup v2: see the kernel's `Documentation/admin-guide/cgroup-v2.rst`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use shared_contract::WorkerId;

use crate::log::file_stem;
use crate::proc::counter;
use crate::{Error, Options, Spec};

/// A folder of the cgroup v2 tree that was given to us: each worker gets a group of its own below it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cgroup {
    root: PathBuf,
}

impl Cgroup {
    /// Takes over the folder `root`, for example one that systemd made for a service with `Delegate=memory`, and passes
    /// the memory controller on to the groups below it.
    pub fn delegated(root: &Path) -> Result<Self, Error> {
        let error = |path: &Path, problem: String| Error::Cgroup {
            path: path.to_owned(),
            problem,
        };
        let offered = root.join("cgroup.controllers");
        let controllers = fs::read_to_string(&offered).map_err(|source| {
            let problem = format!("{source}; name a folder of a cgroup v2 tree that belongs to this user");
            error(&offered, problem)
        })?;
        if !has_memory(&controllers) {
            let problem = "the memory controller is not among the controllers; the folder above must pass it on \
                           (systemd: `Delegate=memory`)";
            return Err(error(&offered, problem.to_owned()));
        }
        let passed_on = root.join("cgroup.subtree_control");
        if !has_memory(&fs::read_to_string(&passed_on).unwrap_or_default()) {
            fs::write(&passed_on, "+memory").map_err(|source| {
                let problem = match source.kind() {
                    io::ErrorKind::ResourceBusy => {
                        "processes lie in the folder itself, which excludes groups with limits below it; put them into \
                         a folder below it (systemd: `DelegateSubgroup=`)"
                            .to_owned()
                    }
                    _ => format!("{source}; the folder must be writable for this user"),
                };
                error(&passed_on, problem)
            })?;
        }
        let probe = root.join("rbee-probe");
        // One may be there: that of a process that was killed just then, or tries the same now.
        unless(io::ErrorKind::AlreadyExists, fs::create_dir(&probe))
            .and_then(|()| unless(io::ErrorKind::NotFound, fs::remove_dir(&probe)))
            .map_err(|source| error(root, format!("{source}; the folder must be writable for this user")))?;
        Ok(Self { root: root.to_owned() })
    }

    /// Makes the group of a worker, or takes it as an earlier process left it, and sets its limit.
    fn group(&self, id: &WorkerId, memory_max_bytes: Option<u64>) -> Result<Group, Error> {
        let path = self.path(id);
        let make = || {
            unless(io::ErrorKind::AlreadyExists, fs::create_dir(&path))?;
            let limit = memory_max_bytes.map_or("max".to_owned(), |bytes| bytes.to_string());
            fs::write(path.join("memory.max"), limit)
        };
        make().map_err(|source| Error::Cgroup {
            path: path.clone(),
            problem: source.to_string(),
        })?;
        Ok(Group { path })
    }

    /// The group that a worker was given by an earlier supervisor.
    pub(crate) fn existing(&self, id: &WorkerId) -> Option<Group> {
        let path = self.path(id);
        path.is_dir().then_some(Group { path })
    }

    fn path(&self, id: &WorkerId) -> PathBuf {
        self.root.join(format!("worker-{}", file_stem(id)))
    }
}

/// The group that a worker is to be put in, made for it; none where groups are not used.
pub(crate) fn group_for(options: &Options, spec: &Spec) -> Result<Option<Group>, Error> {
    match (&options.cgroup, spec.memory_max_bytes) {
        (Some(cgroup), limit) => Ok(Some(cgroup.group(&spec.id, limit)?)),
        (None, Some(_)) => Err(Error::NoCgroup(spec.id.clone())),
        (None, None) => Ok(None),
    }
}

/// Takes an error of this kind for success.
fn unless(kind: io::ErrorKind, result: io::Result<()>) -> io::Result<()> {
    result.or_else(|error| if error.kind() == kind { Ok(()) } else { Err(error) })
}

fn has_memory(controllers: &str) -> bool {
    controllers.split_ascii_whitespace().any(|name| name == "memory")
}

/// The group of one worker.
#[derive(Debug, Clone)]
pub(crate) struct Group {
    path: PathBuf,
}

impl Group {
    /// Puts a process in, with all that it will start.
    pub(crate) fn enter(&self, pid: u32) -> Result<(), Error> {
        let processes = self.path.join("cgroup.procs");
        fs::write(&processes, pid.to_string()).map_err(|source| Error::Cgroup {
            path: processes.clone(),
            problem: format!("{source}; the folder above all groups concerned must be writable for this user"),
        })
    }

    /// Processes of the group that were killed because memory ran out.
    pub(crate) fn oom_kills(&self) -> u64 {
        counter(&self.path.join("memory.events"), "oom_kill").unwrap_or(0)
    }

    /// Removes it; it stays, and is used again, as long as something runs in it.
    pub(crate) fn remove(&self) {
        if let Err(error) = fs::remove_dir(&self.path) {
            tracing::debug!(group = %self.path.display(), %error, "memory group stays");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Plain files instead of the kernel's.
    fn tree(controllers: &str) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("cgroup.controllers"), controllers).unwrap();
        fs::write(root.path().join("cgroup.subtree_control"), "").unwrap();
        root
    }

    fn id() -> WorkerId {
        WorkerId::new("w/1").unwrap()
    }

    #[test]
    fn a_delegated_folder_passes_memory_on_and_limits_a_group() {
        let root = tree("cpu memory pids\n");
        let cgroup = Cgroup::delegated(root.path()).unwrap();
        let read = |name: &str| fs::read_to_string(root.path().join(name)).unwrap();
        assert_eq!(read("cgroup.subtree_control"), "+memory");

        let group = cgroup.group(&id(), Some(1 << 30)).unwrap();
        group.enter(42).unwrap();
        assert_eq!(read("worker-w_1/memory.max"), "1073741824");
        assert_eq!(read("worker-w_1/cgroup.procs"), "42");
        // Started again, without a limit.
        cgroup.group(&id(), None).unwrap();
        assert_eq!(read("worker-w_1/memory.max"), "max");
    }

    #[test]
    fn what_a_killed_process_left_does_not_keep_a_folder_from_being_used() {
        let root = tree("memory");
        fs::create_dir(root.path().join("rbee-probe")).unwrap();
        assert!(Cgroup::delegated(root.path()).is_ok());
        assert!(!root.path().join("rbee-probe").exists());
    }

    #[test]
    fn a_folder_without_the_memory_controller_is_refused_with_the_remedy() {
        for (root, says) in [
            (tree("cpu pids\n"), "Delegate=memory"),
            (tempfile::tempdir().unwrap(), "cgroup v2"),
        ] {
            let refused = Cgroup::delegated(root.path()).map(|_| ());
            let error = match refused {
                Err(error) => error.to_string(),
                // The second one has no file at all.
                Ok(()) => panic!("{} was taken", root.path().display()),
            };
            assert!(error.contains(says) && error.contains("cgroup.controllers"), "{error}");
        }
    }

    #[test]
    fn kills_are_counted_and_an_empty_group_goes() {
        let root = tree("memory");
        let cgroup = Cgroup::delegated(root.path()).unwrap();
        assert!(cgroup.existing(&id()).is_none());
        let group = cgroup.group(&id(), None).unwrap();
        assert_eq!(group.oom_kills(), 0);
        let folder = root.path().join("worker-w_1");
        fs::write(
            folder.join("memory.events"),
            "low 0\nmax 7\noom 1\noom_kill 1\noom_group_kill 0\n",
        )
        .unwrap();
        assert_eq!(group.oom_kills(), 1);
        // The kernel's files do not keep a folder from going; plain ones do.
        fs::remove_file(folder.join("memory.events")).unwrap();
        fs::remove_file(folder.join("memory.max")).unwrap();
        group.remove();
        assert!(cgroup.existing(&id()).is_none());
    }
}
