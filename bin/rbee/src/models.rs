//! `rbee models`: what is served, what is on disk, and what could be.

use std::collections::BTreeMap;
use std::process::ExitCode;

use hive_contract::ModelEntry;
use model_store::Catalogue;
use queen_rbee::fleet::{FleetView, Liveness};
use serde::Serialize;
use shared_contract::{HiveId, ModelId};

use crate::cli::{Global, ModelsArgs};
use crate::control;
use crate::fleet::Client;
use crate::render::{self, Look, Text, Tone};

const HEADER: [&str; 5] = ["MODEL", "SERVED BY", "ON DISK OF", "SIZE", "CATALOGUE"];

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

#[derive(Debug, Serialize)]
struct Offer {
    id: ModelId,
    family: String,
    chat: bool,
    size_bytes: u64,
    context_length: u32,
    licence: String,
}

/// `rbee models`.
pub(crate) async fn models(global: &Global, args: ModelsArgs) -> anyhow::Result<ExitCode> {
    let catalogue = offers(&Catalogue::built_in());
    if args.local {
        let stored = control::open_store()?.list().await.map_err(control::StoreFailed)?;
        let on_disk = vec![OnDisk {
            hive_id: None,
            models: stored.iter().map(control::entry).collect(),
        }];
        return show(
            global,
            &Models {
                served: None,
                on_disk,
                catalogue,
            },
        );
    }
    let fleet = match Client::new(global)?.fleet().await {
        Ok(fleet) => fleet,
        Err(error) => {
            // What can be had is of use to somebody who is about to start; the exit status still says what is missing.
            show(
                global,
                &Models {
                    served: None,
                    on_disk: Vec::new(),
                    catalogue,
                },
            )?;
            return Err(error.into());
        }
    };
    show(
        global,
        &Models {
            served: Some(served(&fleet)),
            on_disk: on_disk(fleet),
            catalogue,
        },
    )
}

fn offers(catalogue: &Catalogue) -> Vec<Offer> {
    let offer = |entry: &model_store::CatalogueEntry| Offer {
        id: entry.id.clone(),
        family: entry.family.clone(),
        chat: entry.chat,
        size_bytes: entry.size_bytes,
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
        }
    }
    for offer in &models.catalogue {
        let row = rows.entry(offer.id.as_str()).or_default();
        row.size_bytes.get_or_insert(offer.size_bytes);
        row.offer = Some(offer);
    }
    let rows: Vec<_> = rows.into_iter().map(|(id, row)| cells(id, &row)).collect();
    render::table(look, &HEADER, &rows)
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
    vec![
        id.into(),
        served,
        row.hosts.join(", ").into(),
        size.into(),
        offer.into(),
    ]
}

#[cfg(test)]
mod tests {
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
                size_bytes: 1_000_000,
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
                "a - - 1.0 MB chat, llama, Apache-2.0",
                "b 2 workers, 1 ready gpu-box 2.0 MB -"
            ]
        );
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
