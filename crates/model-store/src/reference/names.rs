//! Checks of the names that references consist of, and what becomes of them in ids.

use super::{Fault, HUB_EXAMPLE, fault};

/// Longest single name in a path, in bytes: what common file systems take.
pub(super) const MAX_NAME_BYTES: usize = 255;

pub(super) fn alphanumeric(c: char) -> bool {
    c.is_ascii_alphanumeric()
}

pub(super) fn check_hub_name(part: &'static str, name: &str) -> Result<(), Fault> {
    let allowed = |c: char| alphanumeric(c) || "._-".contains(c);
    let well_formed = !name.is_empty()
        && name.len() <= 96
        && name.chars().all(allowed)
        && !name.contains("..")
        && !name.starts_with(['.', '-'])
        && !name.ends_with(['.', '-']);
    if well_formed {
        return Ok(());
    }
    let why = format!("`{name}` is no hub name: at most 96 letters, digits, `.`, `_`, `-`, no `.` or `-` at an end");
    fault(part, why, HUB_EXAMPLE)
}

pub(super) fn check_revision(revision: &str) -> Result<(), Fault> {
    // A `/` in a branch's name is written `%2F`, as in the hub's own URLs.
    let plain = revision.replace("%2F", "-");
    let well_formed = !plain.is_empty()
        && plain.chars().all(|c| alphanumeric(c) || "._-".contains(c))
        && !plain.contains("..")
        && !plain.starts_with(['.', '-']);
    if well_formed {
        return Ok(());
    }
    let why = format!("`{revision}` is no branch, tag or commit (a `/` in it is written `%2F`)");
    fault("REV", why, HUB_EXAMPLE)
}

/// A relative path of plain names: nothing in it climbs, and its last name can name a file here.
pub(super) fn check_path(part: &'static str, path: &str, example: &'static str) -> Result<(), Fault> {
    if path.contains('\\') {
        return fault(part, format!("`{path}` contains a backslash"), example);
    }
    for name in path.split('/') {
        match name {
            "" => {
                return fault(
                    part,
                    format!("`{path}` has an empty name between slashes or at an end"),
                    example,
                );
            }
            "." | ".." => return fault(part, format!("`{path}` contains `{name}`"), example),
            _ if name.len() > MAX_NAME_BYTES => {
                return fault(part, format!("has a name longer than {MAX_NAME_BYTES} bytes"), example);
            }
            _ => {}
        }
    }
    Ok(())
}

/// Last name of a path that has been checked to have one.
pub(super) fn last_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// The file's name without the ending that says its format; any other dot belongs to the name.
pub(super) fn stem(file_name: &str) -> &str {
    let endings = [".gguf", ".GGUF", ".safetensors"];
    endings
        .iter()
        .find_map(|ending| file_name.strip_suffix(ending))
        .filter(|stem| !stem.is_empty())
        .unwrap_or(file_name)
}

/// Lower-case letters, digits, `.`, `_`, `-`; every other character becomes a `-`.
pub(crate) fn slug(text: &str) -> String {
    text.chars()
        .map(|c| match c.to_ascii_lowercase() {
            c if c.is_ascii_alphanumeric() || "._-".contains(c) => c,
            _ => '-',
        })
        .collect()
}
