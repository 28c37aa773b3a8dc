//! The worker's program; everything is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    daemon::app::main::<llm_worker_rbee::Worker>("llm-worker-rbee", std::env::args_os().skip(1))
}
