//! What is under `bin/rbee/packaging`: it is valid, it says what the programs say, and what is installed by it runs.
//!
//! No release build and no root: the program is the one that all tests use, and it is installed below a temporary folder.
//! Where systemd or shellcheck is missing, a test says that it is skipped; with `CI` set it fails instead.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use rbee_tests::clients::Clients;
use rbee_tests::{Process, Program, eventually, http, models};
use serde_json::Value;
use tempfile::TempDir;

/// A token of the fleet, and a key of its clients.
const TOKEN: &str = "token-of-the-fleet";
const KEY: &str = "key-of-a-client";
/// The units, and the exposure that `systemd-analyze security` may find in each, in tenths: 100 is wide open, 0 is shut.
const UNITS: [(&str, u8); 3] = [
    ("rbee-queen.service", 15),
    ("rbee-hive.service", 20),
    ("rbee-worker@.service", 20),
];

#[test]
fn the_installed_units_are_valid_and_leave_little_open() {
    let Some(systemd) = tool("systemd-analyze") else { return };
    let installed = Installed::new();
    let folder = tempfile::tempdir().unwrap();
    for (name, limit) in UNITS {
        let unit = folder.path().join(name);
        fs::write(&unit, installed.read(&format!("usr/local/lib/systemd/system/{name}"))).unwrap();
        succeeds(Command::new(&systemd).args(["verify", "--man=no"]).arg(&unit));
        let mut security = Command::new(&systemd);
        security.args(["security", "--no-pager", "--offline=true", "--threshold"]);
        succeeds(security.arg(limit.to_string()).arg(&unit));
    }
}

#[test]
fn the_scripts_are_what_every_shell_understands() {
    let Some(shellcheck) = tool("shellcheck") else { return };
    let mut check = Command::new(shellcheck);
    check.arg("--shell=sh").arg(packaging("install.sh"));
    for script in ["postinst", "prerm", "postrm", "build.sh"] {
        check.arg(packaging("debian").join(script));
    }
    succeeds(&mut check);
}

#[test]
fn install_keeps_settings_and_uninstall_leaves_nothing_but_them() {
    let installed = Installed::new();
    let version = succeeds(Command::new(installed.path("usr/local/bin/rbee")).arg("--version"));
    assert!(version.starts_with("rbee "), "{version}");
    let completions = installed.read("usr/local/share/bash-completion/completions/rbee");
    assert!(completions.contains("rbee"), "{completions}");
    let manual = installed.read("usr/local/share/man/man1/rbee.1");
    assert!(manual.contains(".TH"), "{manual}");

    let settings = installed.path("etc/rbee/queen.toml");
    fs::write(&settings, "port = 7000\n").unwrap();
    let said = installed.script(&[]);
    assert!(said.contains("kept /etc/rbee/queen.toml"), "{said}");
    assert_eq!(fs::read_to_string(&settings).unwrap(), "port = 7000\n");

    installed.script(&["--uninstall"]);
    let names = ["hive.env", "hive.toml", "queen.env", "queen.toml"];
    let left: BTreeSet<PathBuf> = names.map(|name| installed.path("etc/rbee").join(name)).into();
    assert_eq!(files_below(installed.folder.path()), left);
}

/// Takes more than five seconds: a real model is loaded.
#[tokio::test]
async fn what_the_units_start_answers_with_a_model() {
    models::smollm2().await;
    let cache = model_store::default_root().unwrap();
    let installed = Installed::new();
    let state = tempfile::tempdir().unwrap();

    let mut queen = installed.start("rbee-queen.service");
    queen.env("RBEE_API_KEYS", KEY);
    let queen_state = state.path().join("queen");
    let words = ["--port", "0", "--state-dir", text(&queen_state)];
    let queen = Process::daemon_from(queen, words).await;
    assert_eq!(http::get(format!("{}/ready", queen.url())).await.status, 200);

    let mut hive = installed.start("rbee-hive.service");
    // The settings let workers go on; here they end with the hive.
    hive.env("RBEE_QUEEN_URL", queen.url())
        .env("RBEE_KEEP_WORKERS", "false");
    let hive_state = state.path().join("hive");
    let words = [
        "--port",
        "0",
        "--state-dir",
        text(&hive_state),
        "--models-dir",
        text(&cache),
    ];
    let hive = Process::daemon_from(hive, words).await;
    assert_eq!(http::get(format!("{}/health", hive.url())).await.status, 200);

    eventually("the queen has the hive", async || {
        let request = http::client().get(format!("{}/v1/fleet", queen.url()));
        let fleet: Value = request.bearer_auth(TOKEN).send().await.unwrap().json().await.unwrap();
        (fleet["hives"].as_array()?.len() == 1).then_some(())
    })
    .await;

    let mut rbee = clean(installed.path("usr/local/bin/rbee"));
    rbee.env("RBEE_QUEEN_URL", queen.url())
        .env("RBEE_TOKEN", TOKEN)
        .env("RBEE_API_KEY", KEY)
        .args([
            "run",
            models::SMOLLM2,
            "Why is the sky blue?",
            "--temperature",
            "0",
            "--max-tokens",
            "24",
        ]);
    let answer = rbee.output().await.unwrap();
    assert!(answer.status.success(), "{answer:?}\n{}", hive.log());
    assert!(String::from_utf8_lossy(&answer.stdout).contains("sky"), "{answer:?}");
}

#[tokio::test]
async fn the_settings_that_are_installed_are_the_defaults_they_say() {
    for daemon in ["queen", "hive"] {
        let template = fs::read_to_string(packaging(&format!("settings/{daemon}.toml"))).unwrap();
        let plain = print_config(daemon, "").await;
        let as_installed = print_config(daemon, &template).await;
        // A setting that is commented out has no space after the `#`.
        let is_setting = |line: &&str| line.starts_with('#') && !line.starts_with("# ") && line.len() > 1;
        let commented: Vec<&str> = template.lines().filter(is_setting).map(|line| &line[1..]).collect();
        assert!(commented.len() > 5, "{template}");
        for line in commented {
            let printed = print_config(daemon, line).await;
            let (key, _) = line.split_once(" = ").expect("KEY = VALUE");
            let of_key = |config: &str| {
                config
                    .lines()
                    .find(|line| line.starts_with(&format!("{key} = ")))
                    .map(str::to_owned)
            };
            let default = of_key(&plain);
            // One without a default, such as a list of devices, stands there as an example.
            assert!(default.is_none() || default == of_key(&printed), "{daemon}: {line}");
            assert_eq!(of_key(&as_installed), default, "{daemon}: {line} is commented out");
        }
    }
}

#[test]
fn the_manifests_are_what_kubernetes_and_compose_understand() {
    let tools = Clients::installed(env!("CARGO_TARGET_TMPDIR"));
    let folder = packaging("kubernetes");
    let kustomization = fs::read_to_string(folder.join("kustomization.yaml")).unwrap();
    let manifests = files_below(&folder)
        .into_iter()
        .filter(|file| !file.ends_with("kustomization.yaml"));
    let manifests: Vec<PathBuf> = manifests.collect();
    for manifest in &manifests {
        let name = manifest.file_name().unwrap().to_str().unwrap();
        // The secret is a template, which nobody should apply unseen.
        assert_eq!(
            kustomization.contains(&format!("\n  - {name}\n")),
            name != "secret.yaml",
            "{name}"
        );
    }
    let mut kubernetes = tools.tool("kubernetes-validate");
    succeeds(kubernetes.arg("--strict").args(&manifests));
    let mut compose = tools.tool("check-jsonschema");
    compose.args(["--builtin-schema", "vendor.compose-spec"]);
    succeeds(compose.arg(packaging("containers/compose.yaml")));
}

#[tokio::test]
async fn every_variable_that_a_package_names_is_read_by_a_program() {
    let mut known = BTreeSet::new();
    for words in [
        &["queen", "--help"][..],
        &["hive", "--help"],
        &["worker", "--help"],
        &["--help"],
    ] {
        let help = Program::Rbee.command().args(words).output().await.unwrap();
        known.extend(variables(&String::from_utf8_lossy(&help.stdout)));
    }
    // Read when the program is built.
    known.insert("RBEE_COMMIT".to_owned());
    for file in files_below(&packaging("")) {
        let unknown = &variables(&fs::read_to_string(&file).unwrap()) - &known;
        assert!(unknown.is_empty(), "{}: {unknown:?}", file.display());
    }
}

#[test]
fn the_images_are_built_with_the_toolchain_of_the_tree() {
    let read = |path: PathBuf| fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let toolchain = read(manifest_folder().join("../../rust-toolchain.toml"));
    let version = toolchain
        .lines()
        .find_map(|line| line.strip_prefix("channel = \"")?.strip_suffix('"'))
        .expect("a channel");
    for file in ["Containerfile", "Containerfile.cuda"] {
        let file = read(packaging("containers").join(file));
        assert!(
            file.contains(&format!("\nARG RUST_VERSION={version}\n")),
            "{version}: {file}"
        );
    }
}

#[test]
fn every_file_of_the_debian_package_is_there() {
    let mut cargo = Command::new(env!("CARGO"));
    cargo
        .current_dir(packaging(""))
        .args(["metadata", "--no-deps", "--offline", "--format-version", "1"]);
    let metadata: Value = serde_json::from_str(&succeeds(&mut cargo)).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    let rbee = packages.iter().find(|package| package["name"] == "rbee").unwrap();
    let package = &rbee["metadata"]["deb"];
    let assets = package["assets"].as_array().unwrap();
    let mut targets = BTreeSet::new();
    for asset in assets {
        let source = asset[0].as_str().unwrap();
        // What is built is not there yet.
        assert!(
            source.starts_with("target/release/") || manifest_folder().join(source).exists(),
            "{source}"
        );
        targets.insert(format!("/{}", asset[1].as_str().unwrap()));
    }
    let settings = |path: &&String| path.starts_with("/etc/");
    let conffiles = package["conf-files"]
        .as_array()
        .unwrap()
        .iter()
        .map(|file| file.as_str().unwrap().to_owned());
    assert_eq!(
        conffiles.collect::<BTreeSet<_>>(),
        targets.iter().filter(settings).cloned().collect()
    );
    for (unit, _) in UNITS {
        assert!(
            targets.contains(&format!("/usr/lib/systemd/system/{unit}")),
            "{targets:?}"
        );
    }
}

/// What `install.sh` makes of a folder.
struct Installed {
    folder: TempDir,
}

impl Installed {
    fn new() -> Self {
        let installed = Self {
            folder: tempfile::tempdir().unwrap(),
        };
        installed.script(&[]);
        installed
    }

    /// Runs the script once more, with these words.
    fn script(&self, words: &[&str]) -> String {
        let mut install = Command::new("sh");
        install
            .arg(packaging("install.sh"))
            .arg("--program")
            .arg(Program::Rbee.path());
        succeeds(install.arg("--destdir").arg(self.folder.path()).args(words))
    }

    fn path(&self, path: &str) -> PathBuf {
        self.folder.path().join(path)
    }

    /// A file in which the paths are those that the files have now, instead of those that they will have.
    fn read(&self, path: &str) -> String {
        let read = fs::read_to_string(self.path(path)).unwrap_or_else(|error| panic!("{path}: {error}"));
        let folder = text(self.folder.path());
        read.replace("/usr/local/", &format!("{folder}/usr/local/"))
            .replace("/etc/rbee/", &format!("{folder}/etc/rbee/"))
    }

    /// The command that a unit starts, with settings as they were installed and the token in its environment.
    fn start(&self, unit: &str) -> tokio::process::Command {
        let toml = if unit.contains("queen") {
            "queen.toml"
        } else {
            "hive.toml"
        };
        let settings = format!("etc/rbee/{toml}");
        fs::write(self.path(&settings), self.read(&settings)).unwrap();
        let unit = self.read(&format!("usr/local/lib/systemd/system/{unit}"));
        let start = unit
            .lines()
            .find_map(|line| line.strip_prefix("ExecStart="))
            .expect("a command");
        let mut words = start.split(' ');
        let mut command = clean(words.next().expect("a program").into());
        command.args(words).env("RBEE_TOKEN", TOKEN);
        command
    }
}

/// The settings that are in effect with this file.
async fn print_config(daemon: &str, settings: &str) -> String {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), settings).unwrap();
    let mut command = Program::Rbee.command();
    command
        .env_remove("RBEE_MODELS")
        .args([daemon, "--print-config", "--config"])
        .arg(file.path());
    let output = command.output().await.unwrap();
    assert!(output.status.success(), "{daemon}: {settings}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// A command in an environment without the user's settings, on a system without certificates: this fleet speaks http.
fn clean(program: PathBuf) -> tokio::process::Command {
    let mut command = tokio::process::Command::new(program);
    command
        .env_clear()
        .env("SSL_CERT_FILE", "/nonexistent")
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .kill_on_drop(true);
    command
}

/// The words that look like this project's variables.
fn variables(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    words
        .filter(|word| word.starts_with("RBEE_"))
        .map(str::to_owned)
        .collect()
}

fn manifest_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../bin/rbee")
}

fn packaging(path: &str) -> PathBuf {
    manifest_folder().join("packaging").join(path)
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path of letters")
}

fn files_below(folder: &Path) -> BTreeSet<PathBuf> {
    let mut files = BTreeSet::new();
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            files.extend(files_below(&entry.path()));
        } else {
            files.insert(entry.path());
        }
    }
    files
}

/// Path of a program that not every system has. Where it is missing it says that the test is skipped.
fn tool(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path)
        .map(|folder| folder.join(name))
        .find(|file| file.is_file());
    let is_ci = std::env::var_os("CI").is_some();
    assert!(
        found.is_some() || !is_ci,
        "there is no {name} on the PATH, where CI has installed it"
    );
    if found.is_none() {
        println!("skipped: there is no {name} on the PATH");
    }
    found
}

/// What a program prints; it must succeed.
fn succeeds(command: &mut Command) -> String {
    let Output { status, stdout, stderr } = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let (stdout, stderr) = (String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
    assert!(status.success(), "{command:?}:\n{stdout}{stderr}");
    stdout.into_owned()
}
