//! What `rbee up` is going to start, checked before anything starts.

use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use model_store::{Catalogue, ModelRef};
use tokio::process::Command;

use crate::Usage;
use crate::cli::{BaseUrl, Global, UpArgs};
use crate::control;

/// Limit for asking whoever holds a port who they are.
const WHO_LIMIT: Duration = Duration::from_secs(1);

/// Addresses, files and programs of one `rbee up`.
#[derive(Debug)]
pub(crate) struct Plan {
    /// What the worker shall serve, as the user named it.
    pub(crate) model: String,
    /// Device for it, if the user named one.
    pub(crate) device: Option<String>,
    /// Where the queen listens.
    pub(crate) queen: SocketAddr,
    /// How this machine reaches the queen.
    pub(crate) queen_url: BaseUrl,
    /// How this machine reaches the hive.
    pub(crate) hive_url: BaseUrl,
    /// Logs and state of this run.
    pub(crate) folder: PathBuf,
    /// The queen's output.
    pub(crate) queen_log: PathBuf,
    /// The hive's output.
    pub(crate) hive_log: PathBuf,
    program: PathBuf,
    hive: SocketAddr,
    insecure: bool,
}

impl Plan {
    /// Checks what can be checked: the model's name, the ports, the folders.
    pub(crate) async fn new(http: &reqwest::Client, args: UpArgs, global: &Global) -> anyhow::Result<Self> {
        check_model(&args.model)?;
        check_host(&args, global)?;
        if args.port == args.hive_port && args.port != 0 {
            return Err(Usage(format!("--port and --hive-port are both {}", args.port)).into());
        }
        // Both are held until both are found, so that two free ones are not the same one.
        let queen_port = reserve(http, args.host, args.port, "--port").await?;
        let hive_port = reserve(http, IpAddr::V4(Ipv4Addr::LOCALHOST), args.hive_port, "--hive-port").await?;
        let (queen, hive) = (queen_port.local_addr()?, hive_port.local_addr()?);
        let state = args.state_dir.map_or_else(default_state_dir, Ok)?;
        // Several may run on one machine, told apart by their ports.
        let folder = std::path::absolute(state)?.join(format!("up-{}", queen.port()));
        Ok(Self {
            model: args.model,
            device: args.device,
            queen,
            queen_url: url(queen),
            hive_url: url(hive),
            queen_log: folder.join("queen.log"),
            hive_log: folder.join("hive.log"),
            folder,
            program: std::env::current_exe().context("find the own program")?,
            hive,
            insecure: args.insecure,
        })
    }

    /// The queen's command line and environment.
    pub(crate) fn queen_command(&self, global: &Global) -> Command {
        let mut command = self.daemon("queen", self.queen, global);
        command.arg("--state-dir").arg(self.folder.join("queen"));
        if self.insecure {
            command.arg("--insecure");
        }
        // Secrets never stand on a command line, where everybody on the machine can read them.
        if let Some(key) = &global.api_key {
            let more = std::env::var_os("RBEE_API_KEYS").filter(|keys| !keys.is_empty());
            command.env("RBEE_API_KEYS", joined(key.expose(), more));
        }
        command
    }

    /// The hive's command line and environment.
    pub(crate) fn hive_command(&self, global: &Global) -> Command {
        let mut command = self.daemon("hive", self.hive, global);
        command.arg("--queen-url").arg(self.queen_url.as_str());
        command.arg("--state-dir").arg(self.folder.join("hive"));
        // Workers are this same program, unless the user has another, built for CUDA for example.
        if std::env::var_os("RBEE_WORKER_COMMAND").is_none() {
            command
                .arg("--worker-command")
                .arg(&self.program)
                .arg("--worker-command")
                .arg("worker");
        }
        // The queen may see the hive's beats come from another address of this machine, where nobody listens.
        command.arg("--advertise-host").arg(self.hive.ip().to_string());
        command.env_remove("RBEE_API_KEYS");
        command
    }

    fn daemon(&self, word: &str, address: SocketAddr, global: &Global) -> Command {
        let mut command = Command::new(&self.program);
        command
            .arg(word)
            .arg("--host")
            .arg(address.ip().to_string())
            .arg("--port")
            .arg(address.port().to_string());
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

/// Finds out whether the queen would refuse to listen there, to say so in the words of this command.
fn check_host(args: &UpArgs, global: &Global) -> Result<(), Usage> {
    let has_key = global.api_key.is_some() || std::env::var_os("RBEE_API_KEYS").is_some_and(|keys| !keys.is_empty());
    if args.host.is_loopback() || args.insecure || (global.token.is_some() && has_key) {
        return Ok(());
    }
    Err(Usage(format!(
        "{} can be reached from other machines: set a token and an API key (--token, --api-key, or RBEE_TOKEN and \
         RBEE_API_KEY), or --insecure to serve without",
        args.host
    )))
}

/// Finds an unknown name before anything starts.
fn check_model(model: &str) -> anyhow::Result<()> {
    let reference = control::reference(model)?;
    let catalogue = Catalogue::built_in();
    if matches!(reference, ModelRef::Catalogue(_)) && catalogue.get(model).is_none() {
        let names: Vec<_> = catalogue.entries().iter().map(|entry| entry.id.as_str()).collect();
        let names = names.join(", ");
        return Err(Usage(format!(
            "there is no model `{model}`; choose one of {names}, or give a reference (pip:, hf:, file:)"
        ))
        .into());
    }
    Ok(())
}

/// Checks that the port can be had. Port 0 becomes one that is free now.
async fn reserve(http: &reqwest::Client, host: IpAddr, port: u16, flag: &str) -> anyhow::Result<TcpListener> {
    let address = SocketAddr::new(host, port);
    match TcpListener::bind(address) {
        Ok(listener) => Ok(listener),
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {
            let holder = who(http, &url(address)).await;
            bail!("port {port} is taken by {holder}; choose another with {flag}");
        }
        Err(error) => Err(anyhow!(error).context(format!("listen on {address}; see --host and {flag}"))),
    }
}

/// Asks whoever listens there.
async fn who(http: &reqwest::Client, url: &BaseUrl) -> String {
    let ask = async {
        let response = http.get(format!("{url}/health")).timeout(WHO_LIMIT).send().await.ok()?;
        response.json::<serde_json::Value>().await.ok()
    };
    let health = ask.await.unwrap_or_default();
    if health["queen_id"].is_string() {
        return format!("a queen that is already running at {url} (`rbee ps --queen-url {url}` shows its fleet)");
    }
    match health["hive_id"].as_str() {
        Some(id) => format!("the hive {} that is already running", crate::render::clean(id)),
        None => "another program".to_owned(),
    }
}

/// The address at which this machine reaches a listener.
fn url(address: SocketAddr) -> BaseUrl {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    BaseUrl::of(SocketAddr::new(ip, address.port()))
}

fn joined(key: &str, more: Option<OsString>) -> OsString {
    let mut keys = OsString::from(key);
    if let Some(more) = more {
        keys.push(",");
        keys.push(more);
    }
    keys
}

fn default_state_dir() -> anyhow::Result<PathBuf> {
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
    use axum::Router;
    use axum::routing::get;

    use super::*;
    use crate::api::tests::serve;

    fn args(port: u16) -> UpArgs {
        UpArgs {
            model: crate::cli::DEFAULT_MODEL.into(),
            device: None,
            host: IpAddr::V4(Ipv4Addr::LOCALHOST),
            port,
            hive_port: 0,
            insecure: false,
            state_dir: Some("/nonexistent".into()),
        }
    }

    fn global() -> Global {
        Global {
            queen_url: BaseUrl::local(1),
            token: None,
            api_key: None,
            json: false,
        }
    }

    fn http() -> reqwest::Client {
        daemon::client::new().unwrap()
    }

    fn port(url: &BaseUrl) -> u16 {
        url.as_str().rsplit(':').next().unwrap().parse().unwrap()
    }

    #[tokio::test]
    async fn a_taken_port_is_named_with_its_flag_and_its_holder() {
        let stranger = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let taken = stranger.local_addr().unwrap().port();
        // It takes the connection and closes it without a word.
        let silence = async { stranger.accept().await.map(drop) };
        let (http, global) = (http(), global());
        let (error, _) = tokio::join!(Plan::new(&http, args(taken), &global), silence);
        let error = error.unwrap_err().to_string();
        assert_eq!(
            error,
            format!("port {taken} is taken by another program; choose another with --port")
        );
    }

    #[tokio::test]
    async fn a_queen_that_already_runs_is_recognised() {
        let url = serve(Router::new().route("/health", get(async || r#"{"queen_id": "q"}"#))).await;
        let error = Plan::new(&http(), args(port(&url)), &global())
            .await
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("a queen that is already running") && error.contains(url.as_str()),
            "{error}"
        );
    }

    #[test]
    fn an_address_that_others_reach_needs_both_secrets_or_an_explicit_word() {
        let everywhere = UpArgs {
            host: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            ..args(0)
        };
        let token = Some("correct-horse".parse().unwrap());
        let api_key = Some("battery-staple".parse().unwrap());
        assert!(check_host(&everywhere, &global()).is_err());
        let only_token = Global {
            token: token.clone(),
            ..global()
        };
        let both = Global {
            token,
            api_key,
            ..global()
        };
        assert!(check_host(&everywhere, &only_token).is_err());
        assert!(check_host(&everywhere, &both).is_ok());
        assert!(
            check_host(
                &UpArgs {
                    insecure: true,
                    ..everywhere
                },
                &global()
            )
            .is_ok()
        );
        assert!(check_host(&args(0), &global()).is_ok());
    }

    #[tokio::test]
    async fn an_unknown_model_is_found_before_anything_starts() {
        let unknown = UpArgs {
            model: "no-such-model".into(),
            ..args(0)
        };
        let error = Plan::new(&http(), unknown, &global()).await.unwrap_err();
        assert!(error.is::<Usage>());
        assert!(error.to_string().contains(crate::cli::DEFAULT_MODEL), "{error}");
    }

    #[tokio::test]
    async fn secrets_travel_by_the_environment_and_only_where_they_belong() {
        let global = Global {
            token: Some("correct-horse".parse().unwrap()),
            api_key: Some("battery-staple".parse().unwrap()),
            ..global()
        };
        let plan = Plan::new(&http(), args(0), &global).await.unwrap();
        let environment = |command: &Command, name: &str| {
            let found = command
                .as_std()
                .get_envs()
                .find(|(key, _)| *key == name)
                .map(|(_, value)| value);
            found.flatten().map(|value| value.to_string_lossy().into_owned())
        };
        let (queen, hive) = (plan.queen_command(&global), plan.hive_command(&global));
        for command in [&queen, &hive] {
            let line: Vec<_> = command.as_std().get_args().map(|arg| arg.to_string_lossy()).collect();
            assert!(
                !line
                    .iter()
                    .any(|arg| arg.contains("correct-horse") || arg.contains("battery-staple")),
                "{line:?}"
            );
            assert_eq!(environment(command, "RBEE_TOKEN").as_deref(), Some("correct-horse"));
            assert_eq!(environment(command, "RBEE_API_KEY"), None);
        }
        assert!(
            environment(&queen, "RBEE_API_KEYS")
                .unwrap()
                .starts_with("battery-staple")
        );
        assert_eq!(environment(&hive, "RBEE_API_KEYS"), None);
        // Each has a folder of its own, below the one of this run.
        for (command, name) in [(&queen, "queen"), (&hive, "hive")] {
            let mut line = command.as_std().get_args();
            line.find(|arg| *arg == "--state-dir");
            assert_eq!(line.next(), Some(plan.folder.join(name).as_os_str()));
        }
    }

    #[test]
    fn a_listener_on_every_address_is_reached_by_the_loopback() {
        assert_eq!(url("0.0.0.0:80".parse().unwrap()).as_str(), "http://127.0.0.1:80");
        assert_eq!(url("[::]:7833".parse().unwrap()).as_str(), "http://[::1]:7833");
        assert_eq!(url("10.0.0.5:7833".parse().unwrap()).as_str(), "http://10.0.0.5:7833");
    }

    #[test]
    fn logs_lie_in_the_state_folder_of_the_user() {
        let path = Path::new;
        assert_eq!(state_dir(Some(path("/s")), Some(path("/h"))), Some("/s/rbee".into()));
        assert_eq!(state_dir(None, Some(path("/h"))), Some("/h/.local/state/rbee".into()));
        assert_eq!(state_dir(None, None), None);
    }
}
