//! What `rbee up` is going to start, checked before anything starts.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use model_store::{Catalogue, ModelRef};
use tokio::process::Command;

use super::share;
use crate::Usage;
use crate::cli::{BaseUrl, Global, UpArgs};
use crate::control;
use crate::local::{Launcher, has_api_key, own_address, reserve, url};

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const EVERYWHERE: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);

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
    /// How other machines reach the queen, if they can and may.
    pub(crate) shared_url: Option<BaseUrl>,
    /// Where the secrets stand that other machines need, if they were made.
    pub(crate) secrets_file: Option<PathBuf>,
    /// Starts the daemons.
    pub(crate) launcher: Launcher,
    hive: SocketAddr,
    insecure: bool,
    catalogue: Option<PathBuf>,
}

impl Plan {
    /// Checks what can be checked: the model's name, the ports, the folders. Completes the secrets where they are to be shared.
    pub(crate) async fn new(http: &reqwest::Client, args: UpArgs, global: &mut Global) -> anyhow::Result<Self> {
        check_model(&args.model, &control::catalogue(&args.catalogue)?)?;
        let host = args.host.unwrap_or(if args.share { EVERYWHERE } else { LOOPBACK });
        check_host(host, &args, global)?;
        if args.port == args.hive_port && args.port != 0 {
            return Err(Usage(format!("--port and --hive-port are both {}", args.port)).into());
        }
        // Other hosts fetch model files from this one, too.
        let hive_host = if args.share { host } else { LOOPBACK };
        // Both are held until both are found, so that two free ones are not the same one.
        let queen_port = reserve(http, host, args.port, "--port").await?;
        let hive_port = reserve(http, hive_host, args.hive_port, "--hive-port").await?;
        let (queen, hive) = (queen_port.local_addr()?, hive_port.local_addr()?);
        // Several may run on one machine, told apart by their ports.
        let launcher = Launcher::new(args.state_dir, &format!("up-{}", queen.port()))?;
        let secrets_file = args.share.then(|| launcher.folder().join(share::FILE));
        if let Some(file) = &secrets_file {
            share::complete(global, file)?;
        }
        let seen_as = match host {
            host if host.is_loopback() => None,
            host if host.is_unspecified() => own_address(),
            host => Some(host),
        };
        Ok(Self {
            model: args.model,
            device: args.device,
            queen,
            queen_url: url(queen),
            hive_url: url(hive),
            shared_url: seen_as.map(|ip| BaseUrl::of(SocketAddr::new(ip, queen.port()))),
            secrets_file,
            launcher,
            hive,
            insecure: args.insecure,
            catalogue: args.catalogue.catalogue,
        })
    }

    /// The queen's command line and environment.
    pub(crate) fn queen_command(&self, global: &Global) -> Command {
        self.with_catalogue(self.launcher.queen(self.queen, global, self.insecure))
    }

    /// The hive's command line and environment.
    pub(crate) fn hive_command(&self, global: &Global) -> Command {
        self.with_catalogue(match &self.shared_url {
            // Its beats come from where others find it, too.
            Some(shared) if !self.hive.ip().is_loopback() => self.launcher.hive(self.hive, shared, None, global),
            // The queen may see its beats come from another address of this machine, where nobody listens.
            _ => self
                .launcher
                .hive(self.hive, &self.queen_url, Some(self.known_as()), global),
        })
    }

    /// Both must know the same names.
    fn with_catalogue(&self, mut command: Command) -> Command {
        if let Some(file) = &self.catalogue {
            command.arg("--catalogue").arg(file);
        }
        command
    }

    /// Where the queen, on this machine, finds the hive.
    fn known_as(&self) -> IpAddr {
        match self.hive.ip() {
            ip if ip.is_unspecified() => LOOPBACK,
            ip => ip,
        }
    }
}

/// Finds out whether the queen would refuse to listen there, to say so in the words of this command.
fn check_host(host: IpAddr, args: &UpArgs, global: &Global) -> Result<(), Usage> {
    if host.is_loopback() && args.share {
        return Err(Usage(format!(
            "--share is for other machines, and {host} cannot be reached from them"
        )));
    }
    if host.is_loopback() || args.share || args.insecure || (global.token.is_some() && has_api_key(global)) {
        return Ok(());
    }
    Err(Usage(format!(
        "{host} can be reached from other machines: add --share, which makes a token and an API key, or set them (--token, \
         --api-key, or RBEE_TOKEN and RBEE_API_KEY), or --insecure to serve without"
    )))
}

/// Finds an unknown name before anything starts.
fn check_model(model: &str, catalogue: &Catalogue) -> anyhow::Result<()> {
    let reference = control::reference(model)?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::CatalogueArgs;

    fn args(host: Option<IpAddr>) -> UpArgs {
        UpArgs {
            model: crate::cli::DEFAULT_MODEL.into(),
            device: None,
            host,
            port: 0,
            hive_port: 0,
            share: false,
            insecure: false,
            state_dir: Some("/nonexistent".into()),
            catalogue: CatalogueArgs::default(),
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

    fn checked(args: &UpArgs, global: &Global) -> Result<(), Usage> {
        check_host(args.host.unwrap_or(LOOPBACK), args, global)
    }

    #[test]
    fn an_address_that_others_reach_needs_both_secrets_or_an_explicit_word() {
        let everywhere = args(Some(EVERYWHERE));
        let only_token = Global {
            token: Some("correct-horse".parse().unwrap()),
            ..global()
        };
        let both = Global {
            api_key: Some("battery-staple".parse().unwrap()),
            token: only_token.token.clone(),
            ..global()
        };
        assert!(checked(&everywhere, &global()).is_err());
        assert!(checked(&everywhere, &only_token).is_err());
        assert!(checked(&everywhere, &both).is_ok());
        let insecure = UpArgs {
            insecure: true,
            ..args(Some(EVERYWHERE))
        };
        assert!(checked(&insecure, &global()).is_ok());
        assert!(checked(&args(None), &global()).is_ok());
    }

    #[test]
    fn sharing_makes_its_own_secrets_but_not_on_an_address_that_nobody_reaches() {
        let shared = |host| UpArgs {
            share: true,
            ..args(Some(host))
        };
        assert!(checked(&shared(EVERYWHERE), &global()).is_ok());
        assert!(checked(&shared(LOOPBACK), &global()).is_err());
    }

    #[tokio::test]
    async fn a_shared_fleet_listens_for_others_with_secrets_that_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        let args = UpArgs {
            share: true,
            state_dir: Some(folder.path().to_owned()),
            ..args(None)
        };
        let mut global = global();
        let plan = Plan::new(&daemon::client::new().unwrap(), args, &mut global)
            .await
            .unwrap();
        assert!(plan.queen.ip().is_unspecified() && plan.hive.ip().is_unspecified());
        assert!(global.token.is_some() && global.api_key.is_some());
        assert!(plan.secrets_file.unwrap().is_file());
    }

    #[tokio::test]
    async fn a_model_of_the_users_catalogue_is_known_to_both_daemons() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("mine.toml");
        let entry = "[[model]]\nid = \"mine\"\nfamily = \"llama\"\nparameters = 1\nquantization = \"Q8_0\"\n\
                     licence = \"MIT\"\nlicence_url = \"https://example.org\"\ncontext_length = 1\n\
                     file_name = \"mine.gguf\"\nchat = true\nparts = [{ reference = \"hf:me/mine/mine.gguf\" }]\n";
        std::fs::write(&file, entry).unwrap();
        let args = UpArgs {
            model: "mine".into(),
            catalogue: CatalogueArgs {
                catalogue: Some(file.clone()),
            },
            ..args(None)
        };
        let plan = Plan::new(&daemon::client::new().unwrap(), args, &mut global())
            .await
            .unwrap();
        for command in [plan.queen_command(&global()), plan.hive_command(&global())] {
            let mut line = command.as_std().get_args();
            line.find(|arg| *arg == "--catalogue");
            assert_eq!(line.next(), Some(file.as_os_str()));
        }
    }

    #[tokio::test]
    async fn an_unknown_model_is_found_before_anything_starts() {
        let unknown = UpArgs {
            model: "no-such-model".into(),
            ..args(None)
        };
        let error = Plan::new(&daemon::client::new().unwrap(), unknown, &mut global())
            .await
            .unwrap_err();
        assert!(error.is::<Usage>());
        assert!(error.to_string().contains(crate::cli::DEFAULT_MODEL), "{error}");
    }
}
