//! The program `rbee-hive`.

use std::process::ExitCode;

fn main() -> ExitCode {
    daemon::app::main::<rbee_hive::Hive>("rbee-hive", std::env::args_os().skip(1))
}
