//! Builds the queen anew when a file of the dashboard comes or goes: the compiler sees by itself only that one changed.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=dashboard");
}
