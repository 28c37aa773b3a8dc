//! One worker: one model on one device.

use serde::{Deserialize, Serialize};
use shared_contract::{HiveId, ModelId, WorkerId};

/// What a worker is. The first seven fields are required on the wire, the rest has defaults.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WorkerInfo {
    /// Names this worker process.
    pub id: WorkerId,
    /// The model it serves, as clients name it.
    pub model_id: ModelId,
    /// The device it runs on, for example `cpu`, `cuda:0`.
    pub device: String,
    /// The port on which it listens.
    pub port: u16,
    /// What it is doing.
    pub status: WorkerStatus,
    /// Program name, for example `llm-worker-rbee`.
    pub implementation: String,
    /// Version of that program.
    pub version: String,
    /// Host under which it can be reached; `None` means the address that its heartbeat came from.
    #[serde(default)]
    pub host: Option<String>,
    /// The hive that started it, if one did.
    #[serde(default)]
    pub hive_id: Option<HiveId>,
    /// Grows at every start.
    #[serde(default)]
    pub incarnation: u64,
    /// Sequences that it decodes together.
    #[serde(default = "one")]
    pub slots: u32,
    /// Longest prompt plus answer in tokens; 0 is unknown.
    #[serde(default)]
    pub context_length: u32,
    /// Revision of the model's file, for example its checksum.
    #[serde(default)]
    pub model_revision: Option<String>,
    /// The OpenAI endpoints that the model can serve.
    #[serde(default = "chat_only")]
    pub endpoints: Vec<Endpoint>,
    /// What it can do beyond the endpoints.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub features: Vec<Feature>,
    /// Process id on its host.
    #[serde(default)]
    pub pid: Option<u32>,
    /// What belongs to the status.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status_detail: Option<StatusDetail>,
}

fn one() -> u32 {
    1
}

fn chat_only() -> Vec<Endpoint> {
    vec![Endpoint::ChatCompletions]
}

/// What a worker is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WorkerStatus {
    /// Loads its model.
    Starting,
    /// Takes requests.
    Ready,
    /// Takes requests, and all its slots are taken.
    Busy,
    /// Finishes what it has, takes nothing new.
    Draining,
    /// Gone on purpose: its goodbye.
    Stopped,
    /// Cannot serve; the detail has the reason.
    Failed,
}

/// What belongs to a [`WorkerStatus`].
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct StatusDetail {
    /// Step of a longer work, for example `download`, `load`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<String>,
    /// How much of the step is done, 0 to 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<f32>,
    /// Why, where the status needs it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// What a worker can do beyond the endpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Feature {
    /// Goes on with a stream that another worker began, token by token; see [`Resume`](crate::Resume).
    Resume,
    /// Goes on with an assistant's last message instead of beginning another one, where a chat request has
    /// `continue_final_message: true` and `add_generation_prompt: false`, as vLLM has them.
    ContinueFinalMessage,
    /// Counts a chat's tokens: `POST /v1/count_tokens`.
    CountTokens,
    /// One that this version does not know.
    #[serde(other)]
    Unknown,
}

/// An OpenAI endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Endpoint {
    /// `POST /v1/chat/completions`
    ChatCompletions,
    /// `POST /v1/completions`
    Completions,
    /// `POST /v1/embeddings`
    Embeddings,
    /// One that this version does not know.
    #[serde(other)]
    Unknown,
}
