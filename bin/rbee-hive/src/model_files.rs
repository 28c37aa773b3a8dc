//! The folder of models in the contract's words.

use hive_contract::ModelEntry;
use model_store::{DamagedModel, Listing, StoredModel};

use crate::facts::{FactsCache, in_contract};

/// What lies in the folder.
#[derive(Debug, Default)]
pub(crate) struct Listed {
    /// What can be used.
    pub(crate) models: Vec<(StoredModel, ModelEntry)>,
    /// What cannot, with the problem.
    pub(crate) damaged: Vec<ModelEntry>,
    /// Of what nobody can tell what it was.
    pub(crate) unreadable: Vec<DamagedModel>,
}

impl Listed {
    /// Describes all that was found.
    pub(crate) async fn new(listing: Listing, facts: &FactsCache) -> Self {
        let mut listed = Self::default();
        for model in listing.models {
            let entry = entry(&model, facts).await;
            listed.models.push((model, entry));
        }
        for model in listing.damaged {
            match damaged_entry(&model) {
                Some(entry) => listed.damaged.push(entry),
                None => listed.unreadable.push(model),
            }
        }
        listed
    }

    /// All that has a name, whether it can be used or not.
    pub(crate) fn entries(&self) -> Vec<ModelEntry> {
        let whole = self.models.iter().map(|(_, entry)| entry);
        whole.chain(&self.damaged).cloned().collect()
    }
}

/// A model that can be used.
pub(crate) async fn entry(model: &StoredModel, facts: &FactsCache) -> ModelEntry {
    let facts = match facts.of(&model.path).await {
        Ok(facts) => Some(in_contract(&facts)),
        Err(why) => {
            tracing::debug!(model = %model.id, why, "the header of a model cannot be read");
            None
        }
    };
    ModelEntry {
        id: model.id.clone(),
        reference: model.reference.to_string(),
        size_bytes: model.size_bytes,
        sha256: model.sha256.clone(),
        revision: model.revision.clone(),
        facts,
        problem: None,
    }
}

fn damaged_entry(model: &DamagedModel) -> Option<ModelEntry> {
    Some(ModelEntry {
        id: model.id.clone()?,
        reference: model.reference.as_ref()?.to_string(),
        size_bytes: 0,
        sha256: None,
        revision: None,
        facts: None,
        problem: Some(problem(model).to_owned()),
    })
}

/// What is wrong with a model: the file, what it is instead, and what to do.
pub(crate) fn problem(model: &DamagedModel) -> &str {
    model.why.strip_prefix("use ").unwrap_or(&model.why)
}
