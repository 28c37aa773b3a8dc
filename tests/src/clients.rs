//! Other people's client programs: Python and Node packages, installed once for all tests, and the scripts that use them.
//!
//! What is installed stands in `tests/python` and `tests/javascript`, beside the scripts.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The clients, installed.
#[derive(Debug)]
pub struct Clients {
    venv: PathBuf,
    javascript: PathBuf,
}

impl Clients {
    /// Installs them once for all tests, in a folder of this one, which is the target folder's for such things; whoever
    /// comes meanwhile waits.
    pub fn installed(target_tmpdir: &str) -> Self {
        let folder = Path::new(target_tmpdir).join("clients");
        fs::create_dir_all(&folder).expect("a folder in the target folder");
        let lock = File::create(folder.join("lock")).expect("a lock file");
        lock.lock().expect("the lock");
        let clients = Self {
            venv: folder.join("venv"),
            javascript: folder.join("javascript"),
        };
        once(&clients.venv, &source("python/requirements.txt"), |requirements| {
            run(Command::new("python3").args(["-m", "venv"]).arg(&clients.venv));
            let mut pip = clients.tool("pip");
            run(pip.args(["install", "--quiet", "--requirement"]).arg(requirements));
        });
        let packages = source("javascript/package-lock.json");
        once(&clients.javascript, &packages, |lock_file| {
            clients.copy(&lock_file.with_file_name("package.json"));
            clients.copy(lock_file);
            let mut npm = clients.tool("npm");
            npm.args(["ci", "--ignore-scripts", "--no-audit", "--no-fund"]);
            run(npm.current_dir(&clients.javascript));
        });
        // Node looks for packages beside a script, so the scripts lie where the packages are.
        for file in fs::read_dir(source("javascript")).expect("a folder of this package") {
            let file = file.expect("a file of this package").path();
            if file.extension().is_some_and(|end| end == "js") {
                clients.copy(&file);
            }
        }
        clients
    }

    /// A command for a script of `tests/python`.
    pub fn python(&self, script: &str) -> Command {
        let mut command = self.tool("python");
        command.arg(source(&format!("python/{script}")));
        command
    }

    /// A command for a script of `tests/javascript`.
    pub fn node(&self, script: &str) -> Command {
        let mut command = self.tool("node");
        command.arg(self.javascript.join(script));
        command
    }

    /// A program of the virtual environment, which finds the others there before all others.
    pub fn tool(&self, name: &str) -> Command {
        let programs = self.venv.join("bin");
        let path = std::env::var_os("PATH").unwrap_or_default();
        let folders = std::iter::once(programs.clone()).chain(std::env::split_paths(&path));
        let mut command = Command::new(programs.join(name));
        command.env("PATH", std::env::join_paths(folders).expect("a list of folders"));
        command
    }

    /// Puts a file beside the packages; only if it is not there, since another test may be reading it.
    fn copy(&self, file: &Path) {
        let to = self.javascript.join(file.file_name().expect("a file's name"));
        let text = fs::read(file).expect("a file of this package");
        if !fs::read(&to).is_ok_and(|there| there == text) {
            fs::write(to, text).expect("a copy in the target folder");
        }
    }
}

fn source(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// Fills the folder anew, unless that was done already by what is written in `recipe`.
fn once(folder: &Path, recipe: &Path, install: impl FnOnce(&Path)) {
    let (done, text) = (
        folder.join("installed"),
        fs::read(recipe).expect("a file of this package"),
    );
    if fs::read(&done).is_ok_and(|there| there == text) {
        return;
    }
    if folder.exists() {
        fs::remove_dir_all(folder).expect("a folder of the target folder");
    }
    fs::create_dir_all(folder).expect("a folder in the target folder");
    install(recipe);
    fs::write(done, text).expect("a mark in the target folder");
}

fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let text = [output.stdout, output.stderr].concat();
    assert!(
        output.status.success(),
        "{command:?}:\n{}",
        String::from_utf8_lossy(&text)
    );
}
