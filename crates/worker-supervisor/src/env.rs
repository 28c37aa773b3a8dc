//! The environment of a child: only what it needs, so that a worker does not change with what its parent happened to have.

use std::ffi::{OsStr, OsString};

/// Variable by which a process says whose worker it is: that of all supervisors of one folder of records.
pub(crate) const MARK: &str = "RBEE_SUPERVISOR";
/// Variable by which a process says which worker it is.
pub(crate) const WORKER_MARK: &str = "RBEE_WORKER_ID";

/// Variables that a child inherits, with the reason; a `*` at the end stands for anything.
pub const INHERITED: &[(&str, &str)] = &[
    ("PATH", "a program named without its folder is found"),
    ("HOME", "caches lie below it"),
    ("LANG", "messages of system libraries"),
    ("TMPDIR", "temporary files"),
    ("SSL_CERT_*", "where certificates are"),
    ("XDG_*", "caches and state may lie elsewhere"),
    ("HF_*", "the model hub's endpoint and token"),
    ("PIP_*", "the package index"),
    ("CUDA*", "which devices are seen, and the toolkit"),
    ("NVIDIA_*", "containers pass devices by it"),
    ("LD_LIBRARY_PATH", "where CUDA's libraries are"),
    ("RUST_*", "backtraces"),
    ("RAYON_*", "number of threads"),
    ("RBEE_*", "the operator's settings for all workers"),
];

/// Variables of the house that a child does not inherit, because they are its parent's own settings.
pub const WITHHELD: &[(&str, &str)] = &[
    ("RBEE_CONFIG", "another daemon's settings file"),
    ("RBEE_ANNOUNCE", "another daemon's file"),
    ("RBEE_HOST", "another daemon's address"),
    ("RBEE_PORT", "another daemon's port"),
    ("RBEE_TOKEN", "a secret is given, not leaked"),
    ("RBEE_API_KEY*", "secrets of the queen"),
    (
        "RBEE_QUEEN_*",
        "the queen's settings, and its address, which is given as an argument",
    ),
    (
        "RBEE_HIVE_*",
        "the hive's settings, and its id, which is given as an argument",
    ),
    ("RBEE_WORKER_*", "how a hive starts workers"),
    ("RBEE_MODEL", "given as an argument"),
    ("RBEE_MODEL_ID", "given as an argument"),
    ("RBEE_DEVICE", "given as an argument"),
    ("RBEE_DEVICE_NAME", "given as an argument"),
    (MARK, "whose worker a process is, given anew at each start"),
    ("RBEE_STATE_DIR", "another daemon's folder"),
    ("RBEE_INCARNATION", "given anew at each start"),
    ("RBEE_ADVERTISE_HOST", "given as an argument"),
];

/// Those of `variables` that a child inherits.
pub(crate) fn inherited(
    variables: impl IntoIterator<Item = (OsString, OsString)>,
) -> impl Iterator<Item = (OsString, OsString)> {
    variables
        .into_iter()
        .filter(|(name, _)| is_in(INHERITED, name) && !is_in(WITHHELD, name))
}

fn is_in(patterns: &[(&str, &str)], name: &OsStr) -> bool {
    // A name that is not UTF-8 is none of ours.
    let name = name.to_str().unwrap_or_default();
    patterns.iter().any(|(pattern, _)| match pattern.strip_suffix('*') {
        Some(start) => name.starts_with(start),
        None => name == *pattern,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_listed_reaches_a_child() {
        let parent = [
            "PATH",
            "HF_TOKEN",
            "CUDA_VISIBLE_DEVICES",
            "RBEE_SLOTS",
            "RBEE_TOKEN",
            "RBEE_CONFIG",
            "RBEE_SUPERVISOR",
            "RBEE_WORKER_ID",
            "AWS_SECRET",
            "PATHOLOGY",
        ];
        let variables = parent.iter().map(|name| (OsString::from(name), OsString::from("x")));
        let names: Vec<_> = inherited(variables).map(|(name, _)| name).collect();
        assert_eq!(names, ["PATH", "HF_TOKEN", "CUDA_VISIBLE_DEVICES", "RBEE_SLOTS"]);
    }
}
