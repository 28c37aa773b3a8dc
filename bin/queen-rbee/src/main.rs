//! The queen's program.

fn main() -> std::process::ExitCode {
    daemon::app::main::<queen_rbee::Queen>("queen-rbee", std::env::args_os().skip(1))
}
