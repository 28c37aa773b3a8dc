//! What this program was built of.
//!
//! A release build asks git; `RBEE_COMMIT` (`COMMIT` or `COMMIT DATE`, as `git log -1 --format='%h %cs'` prints them) at build
//! time goes before it, for builds without the repository. A dev build says `dev`.

/// Version of rbee, as `0.1.0`.
pub const fn version() -> &'static str {
    env!("CARGO_PKG_VERSION")
}

/// Abbreviated commit; `dev` in a dev build, `unknown` where nobody knew it.
pub const fn commit() -> &'static str {
    env!("RBEE_BUILD_COMMIT")
}

/// Day of the commit, as `2026-01-31`, where it is known.
pub const fn date() -> Option<&'static str> {
    let date = env!("RBEE_BUILD_DATE");
    if date.is_empty() { None } else { Some(date) }
}

/// What `--version` says behind the program's name: `0.1.0 (COMMIT DATE, features: cpu, metal)`.
pub fn describe(features: &[impl AsRef<str>]) -> String {
    describe_as(commit(), date(), features)
}

fn describe_as(commit: &str, date: Option<&str>, features: &[impl AsRef<str>]) -> String {
    let mut text = format!("{} ({commit}", version());
    if let Some(date) = date {
        text.push(' ');
        text.push_str(date);
    }
    for (number, feature) in features.iter().enumerate() {
        text.push_str(if number == 0 { ", features: " } else { ", " });
        text.push_str(feature.as_ref());
    }
    text.push(')');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_names_commit_date_and_features_as_far_as_there_are_any() {
        let full = describe_as("0123abc", Some("2026-01-31"), &["cpu", "cuda sm_89"]);
        let version = version();
        assert_eq!(
            full,
            format!("{version} (0123abc 2026-01-31, features: cpu, cuda sm_89)")
        );
        assert_eq!(describe_as("dev", None, &[] as &[&str]), format!("{version} (dev)"));
    }
}
