//! The README says what the programs do.

use std::collections::BTreeSet;

use rbee_tests::Program;

/// The words that look like flags: `--` and letters.
fn flags(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '-'));
    words
        .filter(|word| word.len() > 2 && word.starts_with("--"))
        .map(str::to_owned)
        .collect()
}

#[tokio::test]
async fn the_table_of_settings_lists_every_flag_of_every_daemon_and_no_other() {
    let readme = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../README.md")).unwrap();
    let table: String = readme.lines().filter(|line| line.starts_with("| `--")).collect();
    let mut there = BTreeSet::new();
    for program in [Program::Queen, Program::Hive, Program::Worker] {
        let output = program.command().arg("--help").output().await.unwrap();
        let help = String::from_utf8(output.stdout).unwrap();
        let lines = help.lines().filter(|line| line.trim_start().starts_with('-'));
        there.extend(flags(&lines.collect::<Vec<_>>().join("\n")));
    }
    let common = BTreeSet::from(["--help".to_owned(), "--version".to_owned()]);
    assert_eq!(flags(&table), &there - &common);
}
