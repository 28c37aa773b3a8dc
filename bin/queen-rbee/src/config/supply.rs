//! Settings of the supply: which models there are, and how workers are brought up for them.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use clap::ValueEnum;
use clap::builder::BoolishValueParser;
use model_store::{Catalogue, ModelRef};
use scheduler::Strategy;
use shared_contract::ModelId;

/// As they are written.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Models and where they run")]
pub(super) struct SupplyArgs {
    /// Another name for a model, as NAME=MODEL; may be given several times. MODEL is a model's id, a name of the catalogue
    /// or a reference as `rbee pull` takes it
    #[arg(long, env = "RBEE_ALIASES", value_delimiter = ',', value_name = "NAME=MODEL")]
    alias: Vec<String>,
    /// TOML file with models that join or replace those of the built-in catalogue; the hives need it, too
    #[arg(long, env = "RBEE_CATALOGUE", value_name = "FILE")]
    catalogue: Option<PathBuf>,
    /// Start no workers for requests: only what `rbee serve` states and what is started by hand runs
    #[arg(long, env = "RBEE_NO_LOAD_ON_DEMAND", value_parser = BoolishValueParser::new())]
    no_load_on_demand: bool,
    /// Where a worker goes that fits on several devices: where most is free, or where it fits most tightly
    #[arg(long, env = "RBEE_PLACEMENT", value_enum, default_value = "spread")]
    placement: Placement,
    /// Requests that may wait for a model before it gets a further worker; 0: it never does
    #[arg(long, env = "RBEE_SCALE_UP_WAITING", value_name = "COUNT", default_value_t = 8)]
    scale_up_waiting: usize,
    /// For how long more than that must have waited
    #[arg(long, env = "RBEE_SCALE_UP_AFTER_MS", value_name = "MS", default_value_t = 10_000)]
    scale_up_after_ms: u64,
    /// Workers that waiting requests may bring one model to
    #[arg(long, env = "RBEE_MAX_REPLICAS", value_name = "COUNT", default_value_t = 8)]
    max_replicas: usize,
    /// Folder for what `rbee serve` and `rbee drain` stated [default: queen-PORT in $XDG_STATE_HOME/rbee or
    /// ~/.local/state/rbee; none with --port 0]
    #[arg(long, env = "RBEE_STATE_DIR", value_name = "DIR")]
    state_dir: Option<PathBuf>,
}

/// The words for the scheduler's strategies.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Placement {
    Spread,
    Pack,
}

/// As they are used.
#[derive(Debug, Clone)]
pub struct SupplyConfig {
    /// Models that hives can fetch by a short name.
    pub catalogue: Catalogue,
    /// Other names of models, each with what it stands for; never an alias itself.
    pub aliases: BTreeMap<String, Alias>,
    /// Whether requests bring up workers.
    pub loads_on_demand: bool,
    /// Where a worker goes that fits on several devices.
    pub strategy: Strategy,
    /// Requests that may wait for a model before it gets a further worker; `None`: it never does.
    pub scale_up_waiting: Option<usize>,
    /// For how long more must have waited.
    pub scale_up_after: Duration,
    /// Workers that waiting requests may bring one model to.
    pub max_replicas: usize,
    /// Where statements are kept; `None`: in memory only.
    pub state_dir: Option<PathBuf>,
}

/// What an alias stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Alias {
    /// The model.
    pub model: ModelId,
    /// Where hives can fetch it, if the operator wrote a reference.
    pub reference: Option<ModelRef>,
}

impl Default for SupplyConfig {
    fn default() -> Self {
        Self {
            catalogue: Catalogue::built_in(),
            aliases: BTreeMap::new(),
            loads_on_demand: true,
            strategy: Strategy::Spread,
            scale_up_waiting: Some(8),
            scale_up_after: Duration::from_secs(10),
            max_replicas: 8,
            state_dir: None,
        }
    }
}

impl SupplyArgs {
    /// Checks them; `port` names the default folder.
    pub(super) fn check(self, port: u16) -> Result<SupplyConfig, Vec<String>> {
        let mut mistakes = Vec::new();
        let mut catalogue = Catalogue::built_in();
        if let Some(file) = &self.catalogue {
            match catalogue.clone().extended(file) {
                Ok(extended) => catalogue = extended,
                Err(error) => mistakes.push(format!("--catalogue: failed to {error}")),
            }
        }
        let aliases = match aliases(&self.alias, &catalogue) {
            Ok(aliases) => aliases,
            Err(more) => {
                mistakes.extend(more);
                BTreeMap::new()
            }
        };
        if self.max_replicas == 0 {
            mistakes.push("--max-replicas must be above 0; --no-load-on-demand starts none".to_owned());
        }
        if !mistakes.is_empty() {
            return Err(mistakes);
        }
        Ok(SupplyConfig {
            catalogue,
            aliases,
            loads_on_demand: !self.no_load_on_demand,
            strategy: match self.placement {
                Placement::Spread => Strategy::Spread,
                Placement::Pack => Strategy::Pack,
            },
            scale_up_waiting: Some(self.scale_up_waiting).filter(|count| *count > 0),
            scale_up_after: Duration::from_millis(self.scale_up_after_ms),
            max_replicas: self.max_replicas,
            state_dir: self.state_dir.or_else(|| default_state_dir(port)),
        })
    }
}

/// A folder for each port, so that two queens of one machine do not share it. A queen on a port by chance is not there to
/// stay, and keeps nothing.
fn default_state_dir(port: u16) -> Option<PathBuf> {
    let folder = |name| {
        std::env::var_os(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    let state = folder("XDG_STATE_HOME").or_else(|| Some(folder("HOME")?.join(".local/state")))?;
    (port != 0).then(|| state.join(format!("rbee/queen-{port}")))
}

/// Reads `NAME=MODEL`s. A name may stand for another name, as long as that leads somewhere.
fn aliases(written: &[String], catalogue: &Catalogue) -> Result<BTreeMap<String, Alias>, Vec<String>> {
    let mut mistakes = Vec::new();
    let mut targets: BTreeMap<&str, &str> = BTreeMap::new();
    for text in written {
        let Some((name, target)) = text.split_once('=') else {
            mistakes.push(format!(
                "--alias `{text}` should look like NAME=MODEL, for example gpt-4o-mini=smollm2-135m-instruct"
            ));
            continue;
        };
        let (name, target) = (name.trim(), target.trim());
        if let Err(why) = ModelId::new(name) {
            mistakes.push(format!("--alias `{text}`: the name: {why}"));
        } else if catalogue.get(name).is_some() {
            mistakes.push(format!(
                "--alias `{text}`: `{name}` is a model of the catalogue; choose another name"
            ));
        } else if targets.insert(name, target).is_some_and(|other| other != target) {
            mistakes.push(format!("--alias `{name}` is there twice, for different models"));
        }
    }
    let mut aliases = BTreeMap::new();
    for &name in targets.keys() {
        match end_of(name, &targets).and_then(alias_of) {
            Ok(alias) => drop(aliases.insert(name.to_owned(), alias)),
            Err(why) => mistakes.push(format!("--alias `{name}`: {why}")),
        }
    }
    let mut sources: BTreeMap<&ModelId, (&str, &ModelRef)> = BTreeMap::new();
    for (name, alias) in &aliases {
        if let Some(reference) = &alias.reference {
            let (first, source) = *sources.entry(&alias.model).or_insert((name, reference));
            if source != reference {
                mistakes.push(format!(
                    "--alias `{name}`: its reference and that of `{first}` are both called `{}`; only one of them can be served",
                    alias.model
                ));
            }
        }
    }
    if mistakes.is_empty() {
        Ok(aliases)
    } else {
        Err(mistakes)
    }
}

/// What a name leads to in the end.
fn end_of<'a>(name: &'a str, targets: &BTreeMap<&'a str, &'a str>) -> Result<&'a str, String> {
    let mut at = name;
    for _ in 0..=targets.len() {
        match targets.get(at) {
            Some(&next) => at = next,
            None => return Ok(at),
        }
    }
    Err("it stands for itself in the end".to_owned())
}

/// A text with a scheme is a reference; any other one is a model's id.
fn alias_of(target: &str) -> Result<Alias, String> {
    let is_reference = ["pip:", "hf:", "http:", "https:", "file:"]
        .iter()
        .any(|scheme| target.starts_with(scheme));
    if is_reference {
        let reference: ModelRef = target
            .parse()
            .map_err(|error: model_store::ModelRefError| format!("failed to {error}"))?;
        return Ok(Alias {
            model: reference.model_id(),
            reference: Some(reference),
        });
    }
    match ModelId::new(target) {
        Ok(model) => Ok(Alias { model, reference: None }),
        Err(why) => Err(format!("its model: {why}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(written: &[&str]) -> Result<BTreeMap<String, Alias>, Vec<String>> {
        let written: Vec<String> = written.iter().map(|text| (*text).to_owned()).collect();
        aliases(&written, &Catalogue::built_in())
    }

    #[test]
    fn an_alias_leads_to_a_model_or_a_reference_through_others_if_need_be() {
        let read = read(&["gpt-4o=small", "small=smollm2-135m-instruct", "qwen=hf:Qwen/Qwen3-0.6B"]).unwrap();
        assert_eq!(read["gpt-4o"].model.as_str(), "smollm2-135m-instruct");
        assert_eq!(read["small"], read["gpt-4o"]);
        assert_eq!(read["qwen"].model.as_str(), "qwen/qwen3-0.6b");
        assert!(read["qwen"].reference.is_some());
    }

    #[test]
    fn an_alias_that_leads_nowhere_or_takes_anothers_name_is_a_mistake() {
        for (written, word) in [
            (&["a"][..], "NAME=MODEL"),
            (&["=m"], "the name"),
            (&["a="], "its model"),
            (&["a=b", "b=a"], "itself"),
            (&["a=a"], "itself"),
            (&["a=m", "a=n"], "twice"),
            (&["smollm2-135m-instruct=m"], "catalogue"),
            (&["a=hf:me"], "REPO"),
            (&["a=file:/x/m.gguf", "b=file:/y/m.gguf"], "both called"),
        ] {
            let mistakes = read(written).unwrap_err();
            assert!(mistakes[0].contains(word), "{written:?}: {mistakes:?}");
        }
        assert_eq!(read(&["a=m", "a=m"]).unwrap().len(), 1);
    }
}
