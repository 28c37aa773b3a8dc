//! The models that the fleet serves or could, as clients see them.

use openai_api::Model;
use serde::Serialize;
use shared_contract::{HiveId, ModelId};

use crate::supply::{ModelState, Service, ShownModel};

/// One model of `GET /v1/models`: OpenAI's fields, and what a request for it would find.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct ListedModel {
    #[serde(flatten)]
    model: Model,
    state: ModelState,
    /// Workers that are online.
    workers: usize,
    /// Those of them that would take a request now.
    ready_workers: usize,
    /// Longest prompt plus answer in tokens of the worker with the longest, or what the model was made for; 0 is unknown.
    context_length: u32,
    /// Size of its files; `null` where nobody knows yet.
    size_bytes: Option<u64>,
    /// Hives that serve it or have its file.
    hives: Vec<HiveId>,
    /// The model that this name stands for, where it is an alias.
    #[serde(skip_serializing_if = "Option::is_none")]
    alias_of: Option<ModelId>,
}

/// All models that are served or could be, sorted, and after them their aliases.
pub(crate) fn list(supply: &Service, created: i64) -> Vec<ListedModel> {
    let models = supply.models();
    let aliases: Vec<ListedModel> = supply
        .aliases()
        .filter_map(|(name, id)| {
            let model = models.iter().find(|model| model.id == *id)?;
            Some(listed(name, model, created))
        })
        .collect();
    // An alias takes the name of a model that has it, too.
    let is_own = |model: &&ShownModel| supply.aliases().all(|(name, _)| name != model.id.as_str());
    let models = models
        .iter()
        .filter(is_own)
        .map(|model| listed(model.id.as_str(), model, created));
    models.chain(aliases).collect()
}

/// One of them, by its name or an alias.
pub(crate) fn find(supply: &Service, name: &str, created: i64) -> Option<ListedModel> {
    supply.find_model(name).map(|model| listed(name, &model, created))
}

fn listed(name: &str, shown: &ShownModel, created: i64) -> ListedModel {
    ListedModel {
        model: Model::new(name, created),
        state: shown.state,
        workers: shown.workers,
        ready_workers: shown.ready_workers,
        context_length: shown.context_length,
        size_bytes: shown.size_bytes,
        hives: shown.hives.clone(),
        alias_of: (name != shown.id.as_str()).then(|| shown.id.clone()),
    }
}
