//! Why a process ended, for people: what happened, and what helps.

use crate::Exit;
use crate::exit::LIBRARIES_MISSING;

/// Longest quotation of a line, in characters.
const QUOTED_CHARS: usize = 300;
const MEMORY_REMEDY: &str = "free memory, or use a smaller model, a shorter context or fewer slots";

/// Puts into words how a process ended. `oom_kill`: the kernel killed something for want of memory just then; `lines`: the
/// last ones of the log.
pub(crate) fn explain(exit: Exit, oom_kill: bool, lines: &[String]) -> String {
    if oom_kill && matches!(exit, Exit::Signal(9) | Exit::Unknown) {
        return format!("out of memory: {exit}, by the system; {MEMORY_REMEDY}");
    }
    if exit == Exit::Code(0) {
        return exit.to_string();
    }
    if let Some(line) = lines.iter().rev().find(|line| tells_of_memory(line)) {
        return format!("out of memory: {exit}, its log says `{}`; {MEMORY_REMEDY}", cut(line));
    }
    if exit == Exit::Code(LIBRARIES_MISSING)
        && let Some(library) = lines.iter().rev().find_map(|line| missing_library(line))
    {
        return format!(
            "exit code {LIBRARIES_MISSING}: the shared library {library} is missing; install it (the driver or the \
             toolkit of the device), or use a worker that is built without it"
        );
    }
    exit.to_string()
}

/// Adds the end of the log to the reason of a failure.
pub(crate) fn quote(reason: &mut String, lines: &[String]) {
    if lines.is_empty() {
        reason.push_str("; its log is empty");
    } else {
        let lines: Vec<String> = lines.iter().map(|line| cut(line)).collect();
        reason.push_str(&format!("; its last lines were: {}", lines.join(" | ")));
    }
}

fn tells_of_memory(line: &str) -> bool {
    let line = line.to_ascii_lowercase();
    // In this order: a worker's refusal to load, CUDA's words, its name of it, the system's, Rust's allocator's.
    let signs = [
        "does not fit",
        "out of memory",
        "out_of_memory",
        "cannot allocate memory",
        "memory allocation of ",
    ];
    signs.iter().any(|sign| line.contains(sign))
}

/// What the loader of programs did not find.
fn missing_library(line: &str) -> Option<&str> {
    let (_, found) = line.split_once("error while loading shared libraries: ")?;
    let (library, _) = found.split_once(':')?;
    Some(library)
}

fn cut(line: &str) -> String {
    match line.char_indices().nth(QUOTED_CHARS) {
        Some((end, _)) => format!("{}...", &line[..end]),
        None => line.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn explained(exit: Exit, oom_kill: bool, lines: &[&str]) -> String {
        let lines: Vec<String> = lines.iter().map(|line| (*line).to_owned()).collect();
        explain(exit, oom_kill, &lines)
    }

    #[test]
    fn a_kill_by_the_system_is_told_from_one_by_a_person() {
        let told = explained(Exit::Signal(9), true, &[]);
        assert!(told.starts_with("out of memory: killed by signal 9"), "{told}");
        assert_eq!(explained(Exit::Signal(9), false, &[]), "killed by signal 9 (SIGKILL)");
        // Something else on this machine was killed while this one just failed.
        assert_eq!(explained(Exit::Code(1), true, &[]), "exit code 1");
    }

    #[test]
    fn what_a_log_says_of_memory_is_quoted_with_what_helps() {
        for line in [
            "DriverError(CUDA_ERROR_OUT_OF_MEMORY, ...)",
            "Error: Out of memory: 3 GiB are needed",
            "Error: the model does not fit: it takes 900 MiB of weights; lower --kv-tokens",
            "memory allocation of 8589934592 bytes failed",
            "mmap: Cannot allocate memory",
        ] {
            let told = explained(Exit::Code(1), false, &["loading", line, "bye"]);
            assert!(told.starts_with("out of memory: exit code 1"), "{told}");
            assert!(told.contains(line) && told.contains(MEMORY_REMEDY), "{told}");
        }
        assert_eq!(explained(Exit::Code(0), false, &["out of memory"]), "exit code 0");
    }

    #[test]
    fn a_missing_library_is_named() {
        let line = "worker: error while loading shared libraries: libcuda.so.1: cannot open shared object file";
        let told = explained(Exit::Code(127), false, &[line]);
        assert!(told.contains("the shared library libcuda.so.1 is missing"), "{told}");
        assert_eq!(explained(Exit::Code(127), false, &["?"]), Exit::Code(127).to_string());
    }

    #[test]
    fn a_quotation_is_short_and_never_splits_a_character() {
        let told = explained(Exit::Code(1), false, &[&format!("out of memory{}", "ä".repeat(5000))]);
        assert!(told.chars().count() < 500, "{}", told.len());
        let mut reason = "exit code 1".to_owned();
        quote(&mut reason, &[]);
        assert_eq!(reason, "exit code 1; its log is empty");
    }
}
