//! `rbee models`: what is served, what is on disk, and what could be.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::bail;
use hive_contract::{ModelEntry, Operation};
use model_store::Catalogue;
use queen_rbee::fleet::{FleetView, Liveness};
use serde::{Deserialize, Serialize};
use shared_contract::{HiveId, ModelId};

use crate::api::Api;
use crate::cli::{Global, ModelsArgs};
use crate::control;
use crate::fleet::Client;
use crate::jobs::{self, End, Order};
use crate::render::{self, Look, Text, Tone};

const HEADER: [&str; 6] = ["MODEL", "SERVED BY", "ON DISK OF", "SIZE", "WHAT", "CATALOGUE"];
/// What a narrow terminal goes without.
const SPARE: [&str; 1] = ["CATALOGUE"];
/// How long the hives may take to say what they offer.
const PATIENCE: Duration = Duration::from_secs(10);

/// What `rbee models --json` prints.
#[derive(Debug, Serialize)]
struct Models {
    /// Models of workers that are not lost; left out with `--local`.
    #[serde(skip_serializing_if = "Option::is_none")]
    served: Option<Vec<Served>>,
    on_disk: Vec<OnDisk>,
    catalogue: Vec<Offer>,
}

#[derive(Debug, Serialize)]
struct Served {
    model_id: ModelId,
    /// Workers that are not lost.
    workers: usize,
    /// Of these, those that take requests now.
    ready: usize,
}

#[derive(Debug, Serialize)]
struct OnDisk {
    /// `null` is this user's own store.
    hive_id: Option<HiveId>,
    models: Vec<ModelEntry>,
}

/// A model of a catalogue, as hives tell it, too.
#[derive(Debug, Serialize, Deserialize)]
struct Offer {
    id: ModelId,
    family: String,
    chat: bool,
    /// `null` where the hub tells it at the download.
    size_bytes: Option<u64>,
    parameters: u64,
    quantization: String,
    context_length: u32,
    licence: String,
}

/// What comes of the queen's job `model_list`.
#[derive(Debug, Deserialize)]
struct Told {
    hives: BTreeMap<HiveId, ToldOfHive>,
}

#[derive(Debug, Deserialize)]
struct ToldOfHive {
    catalogue: Vec<Offer>,
}

/// `rbee models`.
pub(crate) async fn models(global: &Global, args: ModelsArgs) -> anyhow::Result<ExitCode> {
    let own = || anyhow::Ok(offers(&control::catalogue(&args.catalogue)?));
    if args.local {
        let listing = control::open_store(&args.catalogue)?
            .list()
            .await
            .map_err(control::StoreFailed)?;
        for damaged in listing.damaged.iter().filter(|damaged| damaged.id.is_none()) {
            render::note(&format!("{}: {}", damaged.path.display(), damaged.why));
        }
        let damaged = listing.damaged.iter().filter_map(control::damaged_entry);
        let on_disk = vec![OnDisk {
            hive_id: None,
            models: listing.models.iter().map(control::entry).chain(damaged).collect(),
        }];
        return show(
            global,
            &Models {
                served: None,
                on_disk,
                catalogue: own()?,
            },
        );
    }
    let client = Client::new(global)?;
    let fleet = match client.fleet().await {
        Ok(fleet) => fleet,
        Err(error) => {
            // What can be had is of use to somebody who is about to start; the exit status still says what is missing.
            show(
                global,
                &Models {
                    served: None,
                    on_disk: Vec::new(),
                    catalogue: own()?,
                },
            )?;
            return Err(error.into());
        }
    };
    let told = match fleet.hives.as_slice() {
        [] => Vec::new(),
        _ => told(&client.queen()).await.unwrap_or_else(|error| {
            render::note(&format!(
                "what the hives offer is not known, and this program's own catalogue is shown: {error:#}"
            ));
            Vec::new()
        }),
    };
    show(
        global,
        &Models {
            served: Some(served(&fleet)),
            on_disk: on_disk(fleet),
            catalogue: if told.is_empty() { own()? } else { told },
        },
    )
}

/// The catalogues of all hives that answer: each may have one of its own.
async fn told(queen: &Api) -> anyhow::Result<Vec<Offer>> {
    let all = async {
        let job = jobs::start(queen, &Order::from(Operation::ModelList {})).await?;
        jobs::follow(queen, &job, |_| Ok(())).await
    };
    match tokio::time::timeout(PATIENCE, all).await {
        Ok(Ok(End::Succeeded(told))) => Ok(united(serde_json::from_value(told)?)),
        Ok(Ok(End::Failed(reason))) => bail!("{reason}"),
        Ok(Ok(End::Cancelled | End::Interrupted)) => bail!("the job was cancelled by somebody else"),
        Ok(Err(error)) => Err(error),
        Err(_) => bail!("not all of them have answered within {} s", PATIENCE.as_secs()),
    }
}

fn united(told: Told) -> Vec<Offer> {
    let mut offers = BTreeMap::new();
    for offer in told.hives.into_values().flat_map(|hive| hive.catalogue) {
        offers.entry(offer.id.clone()).or_insert(offer);
    }
    offers.into_values().collect()
}

fn offers(catalogue: &Catalogue) -> Vec<Offer> {
    let offer = |entry: &model_store::CatalogueEntry| Offer {
        id: entry.id.clone(),
        family: entry.family.clone(),
        chat: entry.chat,
        size_bytes: entry.size_bytes,
        parameters: entry.parameters,
        quantization: entry.quantization.clone(),
        context_length: entry.context_length,
        licence: entry.licence.clone(),
    };
    catalogue.entries().iter().map(offer).collect()
}

fn served(fleet: &FleetView) -> Vec<Served> {
    let mut models: BTreeMap<&ModelId, (usize, usize)> = BTreeMap::new();
    for worker in fleet.workers.iter().filter(|worker| worker.liveness != Liveness::Lost) {
        let (workers, ready) = models.entry(&worker.model_id).or_default();
        *workers += 1;
        *ready += usize::from(worker.ready);
    }
    models
        .into_iter()
        .map(|(model_id, (workers, ready))| Served {
            model_id: model_id.clone(),
            workers,
            ready,
        })
        .collect()
}

fn on_disk(fleet: FleetView) -> Vec<OnDisk> {
    let models = |hive: queen_rbee::fleet::HiveView| OnDisk {
        hive_id: Some(hive.id),
        models: hive
            .capabilities
            .map(|capabilities| capabilities.models)
            .unwrap_or_default(),
    };
    fleet.hives.into_iter().map(models).collect()
}

fn show(global: &Global, models: &Models) -> anyhow::Result<ExitCode> {
    if global.json {
        render::json_line(models)?;
    } else {
        render::print(&page(Look::detect(), models))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// One row for each model, wherever it was met.
#[derive(Debug, Default)]
struct Row<'a> {
    served: Option<&'a Served>,
    hosts: Vec<&'a str>,
    size_bytes: Option<u64>,
    /// Parameters and how they are stored.
    what: Option<(u64, &'a str)>,
    problem: Option<&'a str>,
    offer: Option<&'a Offer>,
}

fn page(look: Look, models: &Models) -> String {
    let mut rows: BTreeMap<&str, Row<'_>> = BTreeMap::new();
    for served in models.served.iter().flatten() {
        rows.entry(served.model_id.as_str()).or_default().served = Some(served);
    }
    for place in &models.on_disk {
        for model in &place.models {
            let row = rows.entry(model.id.as_str()).or_default();
            row.hosts
                .push(place.hive_id.as_ref().map_or("this machine", |id| id.as_str()));
            row.size_bytes = Some(model.size_bytes);
            row.problem = row.problem.or(model.problem.as_deref());
            let facts = model.facts.as_ref();
            row.what = row
                .what
                .or(facts.map(|facts| (facts.parameters, facts.quantization.as_str())));
        }
    }
    for offer in &models.catalogue {
        let row = rows.entry(offer.id.as_str()).or_default();
        row.size_bytes = row.size_bytes.or(offer.size_bytes);
        row.what.get_or_insert((offer.parameters, &offer.quantization));
        row.offer = Some(offer);
    }
    let rows: Vec<_> = rows.into_iter().map(|(id, row)| cells(id, &row)).collect();
    render::table_sparing(look, &HEADER, &rows, &SPARE)
}

fn cells(id: &str, row: &Row<'_>) -> Vec<Text> {
    let served = match row.served {
        None => Text::from(""),
        Some(served) => {
            let workers = if served.workers == 1 { "worker" } else { "workers" };
            let tone = if served.ready > 0 { Tone::Good } else { Tone::Warn };
            Text::toned(format!("{} {workers}, {} ready", served.workers, served.ready), tone)
        }
    };
    let offer = row.offer.map_or_else(String::new, |offer| {
        let kind = if offer.chat { "chat" } else { "base model" };
        format!("{kind}, {}, {}", offer.family, offer.licence)
    });
    let size = row.size_bytes.map(render::bytes).unwrap_or_default();
    let what = match (row.problem, row.what) {
        (Some(problem), _) => Text::toned(render::clean(problem), Tone::Bad),
        (None, Some((parameters, stored))) => format!("{} {}", count(parameters), render::clean(stored)).into(),
        (None, None) => Text::from(""),
    };
    vec![
        id.into(),
        served,
        row.hosts.join(", ").into(),
        size.into(),
        what,
        offer.into(),
    ]
}

/// A number of parameters as models are named by it, for example `135M`, `8.2B`.
fn count(parameters: u64) -> String {
    let millions = parameters as f64 / 1e6;
    if millions < 999.5 {
        return format!("{millions:.0}M");
    }
    format!("{:.1}B", millions / 1e3)
}

#[cfg(test)]
mod tests {
    use hive_contract::ModelFacts;

    use super::*;

    fn model(id: &str) -> ModelId {
        ModelId::new(id).unwrap()
    }

    #[test]
    fn a_model_has_one_row_wherever_it_was_met() {
        let entry = ModelEntry {
            id: model("b"),
            reference: "b".into(),
            size_bytes: 2_000_000,
            sha256: None,
            revision: None,
            facts: Some(ModelFacts {
                family: "llama".into(),
                name: None,
                parameters: 8_190_000_000,
                layers: 1,
                heads: 1,
                kv_heads: 1,
                context_length: 1,
                quantization: "Q4_K".into(),
                weight_bytes: 1,
                kv_bytes_per_token: 1,
                chat: true,
                memory: None,
            }),
            problem: None,
        };
        let models = Models {
            served: Some(vec![Served {
                model_id: model("b"),
                workers: 2,
                ready: 1,
            }]),
            on_disk: vec![OnDisk {
                hive_id: HiveId::new("gpu-box").ok(),
                models: vec![entry],
            }],
            catalogue: vec![Offer {
                id: model("a"),
                family: "llama".into(),
                chat: true,
                size_bytes: Some(1_000_000),
                parameters: 134_500_000,
                quantization: "Q8_0".into(),
                context_length: 2_048,
                licence: "Apache-2.0".into(),
            }],
        };
        let text = page(Look::Plain, &models);
        let lines: Vec<_> = text
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
            .collect();
        assert_eq!(
            lines[1..],
            [
                "a - - 1.0 MB 134M Q8_0 chat, llama, Apache-2.0",
                "b 2 workers, 1 ready gpu-box 2.0 MB 8.2B Q4_K -"
            ]
        );
    }

    #[test]
    fn what_any_hive_offers_can_be_had_and_is_listed_once() {
        let offer = |id: &str| {
            serde_json::json!({"id": id, "family": "llama", "chat": true, "size_bytes": null, "parameters": 1,
                   "quantization": "Q8_0", "context_length": 2_048, "licence": "MIT"})
        };
        let told = serde_json::json!({"failed": {"h3": "it is lost"}, "hives": {
            "h1": {"models": [], "catalogue": [offer("a"), offer("b")]},
            "h2": {"models": [], "catalogue": [offer("a"), offer("mine")]},
        }});
        let offers = united(serde_json::from_value(told).unwrap());
        let names: Vec<&str> = offers.iter().map(|offer| offer.id.as_str()).collect();
        assert_eq!(names, ["a", "b", "mine"]);
    }

    #[test]
    fn the_built_in_catalogue_is_offered_with_the_default_model() {
        assert!(
            offers(&Catalogue::built_in())
                .iter()
                .any(|offer| offer.id.as_str() == crate::cli::DEFAULT_MODEL)
        );
    }
}
