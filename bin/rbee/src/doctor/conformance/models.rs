//! The list of models, and single ones.

use serde_json::Value;

use super::subject::Subject;
use super::wire::{field, saw};
use super::{Check, Verdict, Wrong, check, ensure, shown};
use crate::api::segment;

pub(super) const CHECKS: &[Check] = &[
    check!("list of models", list),
    check!("list has the model", listed),
    check!("one model by its id", one),
    check!("ids with a slash", slash),
    check!("unknown id is 404", unknown),
];

fn ids(list: &Value) -> Vec<&str> {
    let models = list["data"].as_array().into_iter().flatten();
    models.filter_map(|model| model["id"].as_str()).collect()
}

async fn list(subject: &Subject) -> Verdict {
    let list = subject.list.success()?;
    field(&list, "object", "list")?;
    let models = list["data"].as_array();
    let models = models.ok_or_else(|| Wrong::Fail(format!("data is {}", shown(&list["data"]))))?;
    for model in models {
        has_fields(model)?;
    }
    saw(format!("models in it: {}", models.len()))
}

fn has_fields(model: &Value) -> Result<(), Wrong> {
    field(model, "object", "model")?;
    let is_whole = model["id"].is_string() && model["created"].is_u64() && model["owned_by"].is_string();
    ensure(is_whole, || {
        format!("a model lacks id, created or owned_by: {}", shown(model))
    })
}

async fn listed(subject: &Subject) -> Verdict {
    let list = subject.list.success()?;
    ensure(ids(&list).contains(&subject.model()), || {
        format!("{} is not in the list", subject.model())
    })?;
    saw(subject.model())
}

async fn one(subject: &Subject) -> Verdict {
    let reply = subject.get(&format!("/v1/models/{}", subject.model())).await?;
    let model = reply.success()?;
    has_fields(&model)?;
    field(&model, "id", subject.model())?;
    saw("same id")
}

async fn slash(subject: &Subject) -> Verdict {
    let list = subject.list.success()?;
    let Some(id) = ids(&list).into_iter().find(|id| id.contains('/')) else {
        return Err(Wrong::Skip("no id in the list has one".to_owned()));
    };
    for path in [id.to_owned(), segment(id)] {
        let model = subject.get(&format!("/v1/models/{path}")).await?.success()?;
        field(&model, "id", id)?;
    }
    saw(format!("{id}, plain and as %2F"))
}

async fn unknown(subject: &Subject) -> Verdict {
    let error = subject.get("/v1/models/no-such-model").await?.refused(404)?;
    saw(format!("code {}", shown(&error["code"])))
}
