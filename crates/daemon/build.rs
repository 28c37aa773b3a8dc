//! Tells the programs which commit they are built of; see `src/build.rs`.
//!
//! A dev build says `dev`, so that a commit does not make the whole workspace build anew.

use std::path::Path;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=RBEE_COMMIT");
    let told = std::env::var("RBEE_COMMIT").ok().filter(|told| !told.trim().is_empty());
    let is_release = std::env::var("PROFILE").is_ok_and(|profile| profile == "release");
    let commit = match told {
        Some(told) => told,
        None if is_release => of_git().unwrap_or_else(|| "unknown".to_owned()),
        None => "dev".to_owned(),
    };
    let mut words = commit.split_whitespace();
    println!(
        "cargo::rustc-env=RBEE_BUILD_COMMIT={}",
        words.next().unwrap_or("unknown")
    );
    println!("cargo::rustc-env=RBEE_BUILD_DATE={}", words.next().unwrap_or_default());
}

/// `COMMIT DATE` of the repository that holds these sources, and not of one that merely lies around them.
fn of_git() -> Option<String> {
    git(&["ls-files", "--error-unmatch", "Cargo.toml"])?;
    let branch = git(&["rev-parse", "--symbolic-full-name", "HEAD"])?;
    for name in ["HEAD", &branch, "packed-refs"] {
        let path = git(&["rev-parse", "--git-path", name])?;
        // Cargo takes a file that is not there for one that has changed.
        if Path::new(&path).exists() {
            println!("cargo::rerun-if-changed={path}");
        }
    }
    git(&["log", "-1", "--abbrev=12", "--format=%h %cs"])
}

/// What git says to this, if it is there and agrees. Build scripts run in the folder of their package.
fn git(args: &[&str]) -> Option<String> {
    let output = Command::new("git").args(args).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}
