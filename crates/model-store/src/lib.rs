//! Model files: which are meant, where they come from, and that they are whole.
//!
//! Owns: model references and the ids that follow from them, the catalogue of short names, downloads of Python wheels (by
//! the user's pip), from model hubs (single files and whole repositories), from web servers and from other hives of the
//! fleet, their resumption and verification, and the folder in which finished files lie: its budget, and who holds which
//! model.
//! Must not know: what is inside a model file, who wants it and why, which hives there are, devices, workers, or how
//! progress is shown.
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
mod folder;
mod holds;
mod http;
mod hub;
mod manifest;
mod options;
mod peers;
mod pip;
mod process;
mod progress;
mod pull;
mod reference;
mod repository;
mod room;
mod space;
mod speed;
mod store;
mod stored;
#[cfg(test)]
mod tests;
mod web;
mod wheel;

pub use catalogue::{Catalogue, CatalogueEntry, CataloguePart};
pub use error::StoreError;
pub use holds::Hold;
pub use http::Retry;
pub use options::{StoreOptions, default_root};
pub use peers::Peer;
pub use progress::{Phase, Progress};
pub use reference::{CatalogueName, FileRef, HubRef, ModelRef, ModelRefError, PipRef, RepositoryRef, UrlRef};
pub use store::{ModelStore, Resolved};
pub use stored::{DamagedModel, Listing, StoredFile, StoredModel};
