//! What the queen can be asked to do.

use hive_contract::Operation;
use jobs::{Crowd, Order};
use serde::de::{DeserializeOwned, Error};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};
use shared_contract::HiveId;

use super::infer::{ANSWERS, Infer};

/// Body of the queen's `POST /v1/jobs`: an operation, and perhaps which hive is to do it.
#[derive(Debug, Clone, PartialEq)]
pub struct JobRequest {
    /// Left out: the queen finds it.
    pub hive_id: Option<HiveId>,
    /// What is to be done.
    pub operation: QueenOperation,
}

/// What the queen can be asked to do.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum QueenOperation {
    /// What she does herself.
    Own(OwnOperation),
    /// What a hive does for her.
    Hive(Operation),
}

/// What the queen does herself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "operation", rename_all = "snake_case", deny_unknown_fields)]
pub enum OwnOperation {
    /// Counts the fleet and lists its models.
    Status {},
    /// Continues a prompt, whether anybody listens or not.
    Infer(Infer),
}

impl<'de> Deserialize<'de> for QueenOperation {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        operation(Map::deserialize(deserializer)?)
    }
}

impl<'de> Deserialize<'de> for JobRequest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut fields = Map::deserialize(deserializer)?;
        let hive_id = match name(&fields) {
            // Refused as a field that it does not have.
            Some("status") => None,
            _ => fields.remove("hive_id"),
        };
        let hive_id: Option<Option<HiveId>> = hive_id.map(part::<_, D::Error>).transpose()?;
        Ok(Self {
            hive_id: hive_id.flatten(),
            operation: operation(fields)?,
        })
    }
}

fn operation<E: Error>(fields: Map<String, Value>) -> Result<QueenOperation, E> {
    match name(&fields) {
        Some("status" | "infer") => part(Value::Object(fields)).map(QueenOperation::Own),
        _ => part(Value::Object(fields)).map(QueenOperation::Hive),
    }
}

fn name(fields: &Map<String, Value>) -> Option<&str> {
    fields.get("operation").and_then(Value::as_str)
}

pub(super) fn part<T: DeserializeOwned, E: Error>(value: Value) -> Result<T, E> {
    serde_json::from_value(value).map_err(E::custom)
}

impl QueenOperation {
    /// As its job shows it, which keeps no long texts.
    pub(super) fn shown(self) -> Self {
        match self {
            Self::Own(OwnOperation::Infer(infer)) => Self::Own(OwnOperation::Infer(infer.shown())),
            other => other,
        }
    }
}

impl Order for QueenOperation {
    fn name(&self) -> &'static str {
        match self {
            Self::Own(OwnOperation::Status {}) => "status",
            Self::Own(OwnOperation::Infer(_)) => "infer",
            Self::Hive(operation) => operation.name(),
        }
    }

    fn crowd(&self) -> Option<Crowd> {
        match self {
            Self::Own(OwnOperation::Status {}) => None,
            Self::Own(OwnOperation::Infer(_)) => Some(ANSWERS),
            Self::Hive(operation) => operation.crowd(),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(json: Value) -> Result<JobRequest, String> {
        serde_json::from_value(json).map_err(|error| error.to_string())
    }

    #[test]
    fn an_operation_of_the_hives_may_name_the_hive_and_is_shown_as_it_was_asked() {
        let pull = json!({"operation": "model_pull", "model": "m"});
        let request = read(json!({"operation": "model_pull", "model": "m", "hive_id": "h"})).unwrap();
        assert_eq!(request.hive_id, Some(HiveId::new("h").unwrap()));
        assert_eq!(serde_json::to_value(&request.operation).unwrap(), pull);
        assert_eq!(read(pull).unwrap().hive_id, None);
        assert_eq!(
            read(json!({"operation": "device_list", "hive_id": null}))
                .unwrap()
                .hive_id,
            None
        );
    }

    #[test]
    fn an_answer_is_asked_for_as_of_a_worker_and_its_job_keeps_the_beginning_of_the_prompt() {
        let prompt = "ä".repeat(1_000);
        let json = json!({"operation": "infer", "model": "m", "prompt": prompt, "stop": ["x"], "hive_id": "h"});
        let request = read(json).unwrap();
        assert_eq!(request.hive_id, Some(HiveId::new("h").unwrap()));
        let QueenOperation::Own(OwnOperation::Infer(infer)) = &request.operation else {
            panic!("{request:?}")
        };
        assert_eq!((infer.request.temperature, infer.request.max_tokens), (0.0, None));
        assert_eq!(infer.request.prompt, prompt);
        let shown = serde_json::to_value(request.operation.shown()).unwrap();
        let beginning = "ä".repeat(80) + "…";
        assert_eq!(
            shown,
            json!({"operation": "infer", "model": "m", "prompt": beginning, "stop": ["x"],
                   "max_tokens": null, "temperature": 0.0, "top_p": 1.0, "seed": null})
        );
        assert!(read(shown).is_ok(), "programs read it back");
    }

    #[test]
    fn what_nobody_knows_is_refused_by_its_name() {
        for (json, word) in [
            (json!({"operation": "model_pul", "model": "m"}), "model_pul"),
            (json!({"operation": "model_pull", "modle": "m"}), "modle"),
            (json!({"operation": "status", "hive_id": "h"}), "hive_id"),
            (json!({"operation": "model_list", "hive_id": "a b"}), "id"),
            (json!({"model": "m"}), "operation"),
            (
                json!({"operation": "infer", "model": "m", "prompt": "p", "n": 2}),
                "`n`",
            ),
            (json!({"operation": "infer", "prompt": "p"}), "model"),
            (json!({"operation": "infer", "model": "m"}), "prompt"),
            (json!({"operation": "infer", "model": 1, "prompt": "p"}), "string"),
        ] {
            let error = read(json).unwrap_err();
            assert!(error.contains(word), "{error}");
        }
    }
}
