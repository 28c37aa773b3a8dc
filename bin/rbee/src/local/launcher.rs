//! The command lines of the daemons that this program starts of itself.

use std::ffi::OsString;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::Context;
use tokio::process::Command;

use crate::cli::{BaseUrl, Global};

/// The queen's own variable for her keys.
const KEYS: &str = "RBEE_API_KEYS";

/// Starts daemons of this program's own, which keep logs and state below one folder.
#[derive(Debug)]
pub(crate) struct Launcher {
    program: PathBuf,
    folder: PathBuf,
}

impl Launcher {
    /// Of daemons that live in `name` below the folder for state, which is the user's own unless one is given.
    pub(crate) fn new(state_dir: Option<PathBuf>, name: &str) -> anyhow::Result<Self> {
        let state = state_dir.map_or_else(default_state_dir, Ok)?;
        Ok(Self {
            program: std::env::current_exe().context("find the own program")?,
            folder: std::path::absolute(state)?.join(name),
        })
    }

    /// Where logs and state are.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// What a daemon prints.
    pub(crate) fn log(&self, daemon: &str) -> PathBuf {
        self.folder.join(daemon).with_extension("log")
    }

    /// The queen's command line and environment.
    pub(crate) fn queen(&self, address: SocketAddr, global: &Global, insecure: bool) -> Command {
        let mut command = self.daemon("queen", address, global);
        if insecure {
            command.arg("--insecure");
        }
        // Secrets never stand on a command line, where everybody on the machine can read them.
        if let Some(key) = &global.api_key {
            command.env(KEYS, joined(key.expose(), set(KEYS)));
        }
        command
    }

    /// The hive's command line and environment. `known_as` is where the queen finds it; left out, it is where its beats come
    /// from.
    pub(crate) fn hive(
        &self,
        address: SocketAddr,
        queen: &BaseUrl,
        known_as: Option<IpAddr>,
        global: &Global,
    ) -> Command {
        let mut command = self.daemon("hive", address, global);
        command.arg("--queen-url").arg(queen.as_str());
        // Workers are this same program, unless the user has another, built for CUDA for example.
        if std::env::var_os("RBEE_WORKER_COMMAND").is_none() {
            command
                .arg("--worker-command")
                .arg(&self.program)
                .arg("--worker-command")
                .arg("worker");
        }
        if let Some(host) = known_as {
            command.arg("--advertise-host").arg(host.to_string());
        }
        command.env_remove(KEYS);
        command
    }

    fn daemon(&self, word: &str, address: SocketAddr, global: &Global) -> Command {
        let mut command = Command::new(&self.program);
        command
            .arg(word)
            .arg("--host")
            .arg(address.ip().to_string())
            .arg("--port")
            .arg(address.port().to_string())
            .arg("--state-dir")
            .arg(self.folder.join(word));
        // One settings file cannot fit both daemons, and a key for clients is not theirs.
        command
            .env_remove("RBEE_CONFIG")
            .env_remove("RBEE_API_KEY")
            .env_remove("RBEE_INSECURE");
        match &global.token {
            Some(token) => command.env("RBEE_TOKEN", token.expose()),
            None => command.env_remove("RBEE_TOKEN"),
        };
        command
    }
}

/// Whether a queen that this program starts asks clients for a key: she reads her own variables, too.
pub(crate) fn has_api_key(global: &Global) -> bool {
    global.api_key.is_some() || set(KEYS).or_else(|| set("RBEE_API_KEY_FILE")).is_some()
}

fn set(name: &str) -> Option<OsString> {
    std::env::var_os(name).filter(|value| !value.is_empty())
}

fn joined(key: &str, more: Option<OsString>) -> OsString {
    let mut keys = OsString::from(key);
    if let Some(more) = more {
        keys.push(",");
        keys.push(more);
    }
    keys
}

/// The user's folder for logs and state: `$XDG_STATE_HOME/rbee` or `~/.local/state/rbee`.
pub(crate) fn default_state_dir() -> anyhow::Result<PathBuf> {
    let folder = |name: &str| {
        std::env::var_os(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    state_dir(folder("XDG_STATE_HOME").as_deref(), folder("HOME").as_deref())
        .context("choose a folder for logs: set HOME, or name one with --state-dir")
}

fn state_dir(xdg: Option<&Path>, home: Option<&Path>) -> Option<PathBuf> {
    match (xdg, home) {
        (Some(state), _) => Some(state.join("rbee")),
        (None, Some(home)) => Some(home.join(".local/state/rbee")),
        (None, None) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADDRESS: &str = "127.0.0.1:1";

    fn environment(command: &Command, name: &str) -> Option<String> {
        let found = command
            .as_std()
            .get_envs()
            .find(|(key, _)| *key == name)
            .map(|(_, value)| value);
        found.flatten().map(|value| value.to_string_lossy().into_owned())
    }

    #[test]
    fn secrets_travel_by_the_environment_and_only_where_they_belong() {
        let global = Global {
            queen_url: BaseUrl::local(1),
            token: Some("correct-horse".parse().unwrap()),
            api_key: Some("battery-staple".parse().unwrap()),
            json: false,
        };
        let launcher = Launcher::new(Some("/nonexistent".into()), "up-1").unwrap();
        let address = ADDRESS.parse().unwrap();
        let queen = launcher.queen(address, &global, false);
        let hive = launcher.hive(address, &global.queen_url, None, &global);
        for (command, name) in [(&queen, "queen"), (&hive, "hive")] {
            let line: Vec<_> = command.as_std().get_args().map(|arg| arg.to_string_lossy()).collect();
            assert!(
                !line
                    .iter()
                    .any(|arg| arg.contains("correct-horse") || arg.contains("battery-staple")),
                "{line:?}"
            );
            assert_eq!(environment(command, "RBEE_TOKEN").as_deref(), Some("correct-horse"));
            assert_eq!(environment(command, "RBEE_API_KEY"), None);
            // Each has a folder of its own, below the one of this run.
            let mut line = command.as_std().get_args();
            line.find(|arg| *arg == "--state-dir");
            assert_eq!(line.next(), Some(launcher.folder().join(name).as_os_str()));
        }
        assert!(
            environment(&queen, "RBEE_API_KEYS")
                .unwrap()
                .starts_with("battery-staple")
        );
        assert_eq!(environment(&hive, "RBEE_API_KEYS"), None);
    }

    #[test]
    fn logs_lie_in_the_state_folder_of_the_user() {
        let path = Path::new;
        assert_eq!(state_dir(Some(path("/s")), Some(path("/h"))), Some("/s/rbee".into()));
        assert_eq!(state_dir(None, Some(path("/h"))), Some("/h/.local/state/rbee".into()));
        assert_eq!(state_dir(None, None), None);
    }
}
