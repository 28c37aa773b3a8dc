//! Stored models: how they are found, which files they have, and whether these are whole.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use tokio_util::sync::CancellationToken;

use super::support::{Fault, TestHub, listen, noise, options, pull, reference, sha256};
use crate::folder::folder_name;
use crate::{Catalogue, ModelRef, ModelStore, Phase, StoreError, StoredModel};

/// A store with one model, and the hub from which it came.
pub(super) struct Stored {
    pub(super) root: tempfile::TempDir,
    pub(super) hub: TestHub,
    pub(super) store: ModelStore,
    pub(super) model: StoredModel,
    pub(super) content: Vec<u8>,
}

impl Stored {
    pub(super) async fn new() -> Self {
        let (root, content) = (tempfile::tempdir().unwrap(), noise(3_000_000, 1));
        let hub = TestHub::with(&content, Some("v1"), Some(&sha256(&content))).await;
        let store = ModelStore::open_with(root.path(), hub.options()).unwrap();
        let model = pull(&store, &reference()).await.unwrap();
        Self {
            root,
            hub,
            store,
            model,
            content,
        }
    }

    pub(super) fn folder(&self) -> PathBuf {
        self.root.path().join(folder_name(&reference()))
    }

    async fn verify(&self) -> Result<(), StoreError> {
        self.store.verify(&self.model, |_| (), &CancellationToken::new()).await
    }
}

/// A model of this reference, as a pull would have left it.
pub(super) fn place(root: &Path, reference: &str, content: &[u8]) {
    let reference: ModelRef = reference.parse().unwrap();
    let folder = root.join(folder_name(&reference));
    fs::create_dir_all(folder.join("files")).unwrap();
    fs::write(folder.join("files/m.gguf"), content).unwrap();
    let manifest = serde_json::json!({
        "version": 1, "id": reference.model_id(), "reference": reference, "file": "m.gguf",
        "size_bytes": content.len(), "sha256": sha256(content), "origins": [],
    });
    fs::write(folder.join("manifest.json"), manifest.to_string()).unwrap();
}

#[tokio::test]
async fn a_model_of_the_hub_tells_the_commit_from_which_it_came() {
    let stored = Stored::new().await;
    let commit = Some(super::support::COMMIT.to_owned());
    assert_eq!(stored.model.revision, commit);
    assert_eq!(stored.store.list().await.unwrap().models[0].revision, commit);
}

#[tokio::test]
async fn a_model_is_found_by_reference_and_id_and_what_is_not_there_is_told() {
    let stored = Stored::new().await;
    for text in ["hf:org/repo/m.gguf", "hf:org/repo@main/m.gguf", "org/repo/m"] {
        assert_eq!(stored.store.find(text).await.unwrap(), stored.model, "{text}");
    }
    let error = stored.store.find("gemma3-270m").await.unwrap_err();
    assert!(matches!(error, StoreError::NotStored { .. }), "{error}");
    assert!(error.to_string().contains("there are: hf:org/repo/m.gguf"), "{error}");

    let error = stored
        .store
        .find("https://a.example/m.gguf?signature=secret")
        .await
        .unwrap_err();
    assert!(error.to_string().contains("`https://a.example/m.gguf`"), "{error}");

    place(stored.root.path(), "hf:org/repo@v1/m.gguf", b"other");
    let error = stored.store.find("org/repo/m").await.unwrap_err();
    assert!(matches!(error, StoreError::Ambiguous { .. }), "{error}");
    assert!(
        error.to_string().contains("hf:org/repo/m.gguf, hf:org/repo@v1/m.gguf"),
        "{error}"
    );
    assert_eq!(stored.store.find("hf:org/repo/m.gguf").await.unwrap(), stored.model);
    let empty = ModelStore::open_with(stored.root.path().join("empty"), options()).unwrap();
    assert!(
        empty
            .find("x")
            .await
            .unwrap_err()
            .to_string()
            .contains("there are: none")
    );
}

#[tokio::test]
async fn a_catalogue_name_finds_its_model_before_others_with_that_id() {
    let root = tempfile::tempdir().unwrap();
    place(root.path(), "gemma3-270m", b"the one");
    place(root.path(), "pip:a==1/x/gemma3-270m.gguf", b"another");
    let store = ModelStore::open_with(root.path(), options()).unwrap();
    let found = store.find("gemma3-270m").await.unwrap();
    assert_eq!(found.reference, "gemma3-270m".parse().unwrap());
}

#[tokio::test]
async fn a_model_that_the_catalogue_pins_otherwise_now_is_not_given_out() {
    let root = tempfile::tempdir().unwrap();
    let store = ModelStore::open_with(root.path(), options()).unwrap();
    place(root.path(), "gemma3-270m", b"of another release");
    assert_eq!(store.get(&"gemma3-270m".parse().unwrap()).await.unwrap(), None);
    assert_eq!(store.list().await.unwrap().models.len(), 1);
}

#[tokio::test]
async fn a_damaged_file_is_named_with_what_is_wrong_and_the_others_are_listed() {
    let stored = Stored::new().await;
    place(stored.root.path(), "hf:org/other/m.gguf", b"whole");
    let file = File::options().write(true).open(&stored.model.path).unwrap();
    file.set_len(2_999_999).unwrap();
    let shown = async || {
        let listing = stored.store.list().await.unwrap();
        assert_eq!(listing.models.len(), 1);
        assert_eq!(listing.models[0].reference, "hf:org/other/m.gguf".parse().unwrap());
        let [damaged] = <[_; 1]>::try_from(listing.damaged).unwrap();
        damaged
    };
    let short = shown().await;
    assert_eq!((&short.path, short.reference), (&stored.model.path, Some(reference())));
    assert!(
        short.why.contains("expected 3000000 bytes, found 2999999 bytes"),
        "{}",
        short.why
    );
    assert!(
        short.why.contains("m.gguf") && short.why.contains("pull it again"),
        "{}",
        short.why
    );
    let error = stored.store.find("org/repo/m").await.unwrap_err();
    assert!(matches!(error, StoreError::DamagedModel { .. }), "{error}");

    fs::remove_file(&stored.model.path).unwrap();
    assert!(shown().await.why.contains("No such file"));

    let manifest = stored.folder().join("manifest.json");
    for nonsense in ["{", "{}"] {
        fs::write(&manifest, nonsense).unwrap();
        let unreadable = shown().await;
        assert_eq!((&unreadable.path, unreadable.id), (&manifest, None));
    }
    stored.store.delete_damaged(&shown().await).await.unwrap();
    let listing = stored.store.list().await.unwrap();
    assert_eq!((listing.models.len(), listing.damaged.len()), (1, 0));
}

#[tokio::test]
async fn a_manifest_that_leads_out_of_its_folder_or_lies_in_anothers_is_none_of_a_usable_model() {
    let root = tempfile::tempdir().unwrap();
    let store = ModelStore::open_with(root.path(), options()).unwrap();
    place(root.path(), "gemma3-270m", b"1234");
    fs::rename(root.path().join("gemma3-270m"), root.path().join("renamed")).unwrap();
    let why = &store.list().await.unwrap().damaged[0].why;
    assert!(
        why.contains("expected the folder's name gemma3-270m, found renamed"),
        "{why}"
    );

    let manifest = root.path().join("renamed/manifest.json");
    let climbing = fs::read_to_string(&manifest).unwrap().replace("m.gguf", "../../m.gguf");
    fs::write(root.path().join("m.gguf"), b"1234").unwrap();
    fs::write(&manifest, climbing).unwrap();
    let listing = store.list().await.unwrap();
    assert_eq!((listing.models.len(), &listing.damaged[0].path), (0, &manifest));
}

#[tokio::test]
async fn a_models_files_are_given_with_their_sizes_and_checksums() {
    let stored = Stored::new().await;
    let files = stored.store.files(&stored.model).await.unwrap();
    assert_eq!(files.len(), 1);
    assert_eq!((files[0].name.as_str(), &files[0].path), ("m.gguf", &stored.model.path));
    assert_eq!(
        (files[0].size_bytes, &files[0].sha256),
        (3_000_000, &sha256(&stored.content))
    );

    let root = tempfile::tempdir().unwrap();
    let hub = TestHub::repository(&[
        ("tokenizer.json", b"{}"),
        ("model.safetensors", b"weights"),
        ("config.json", b"{ }"),
    ])
    .await;
    let store = ModelStore::open_with(root.path(), hub.options()).unwrap();
    let model = pull(&store, &"hf:org/repo".parse().unwrap()).await.unwrap();
    let files = store.files(&model).await.unwrap();
    let names: Vec<_> = files.iter().map(|file| file.name.as_str()).collect();
    assert_eq!(names, ["config.json", "model.safetensors", "tokenizer.json"]);
    for file in files {
        let content = fs::read(&file.path).unwrap();
        assert_eq!((file.size_bytes, file.sha256), (content.len() as u64, sha256(&content)));
    }
}

#[tokio::test]
async fn verifying_reads_every_byte_and_names_the_file_that_is_not_what_was_pulled() {
    let stored = Stored::new().await;
    let (heard, progress) = listen();
    let cancel = CancellationToken::new();
    stored.store.verify(&stored.model, progress, &cancel).await.unwrap();
    let heard = heard.lock().unwrap().clone();
    assert!(
        heard
            .iter()
            .all(|p| p.phase == Phase::Verify && p.total_bytes == Some(3_000_000))
    );
    assert_eq!(heard.last().unwrap().done_bytes, 3_000_000);

    let mut content = stored.content.clone();
    content[2_999_999] ^= 1;
    fs::write(&stored.model.path, &content).unwrap();
    assert!(
        stored.store.get(&reference()).await.unwrap().is_some(),
        "its size is right"
    );
    let error = stored.verify().await.unwrap_err();
    let said = error.to_string();
    assert!(matches!(error, StoreError::Damaged { .. }), "{said}");
    for part in [
        sha256(&content),
        sha256(&stored.content),
        stored.model.path.display().to_string(),
    ] {
        assert!(said.contains(&part), "{said}");
    }
    stored.store.delete(&stored.model).await.unwrap();
    assert_eq!(
        pull(&stored.store, &reference()).await.unwrap().sha256,
        stored.model.sha256
    );
}

#[tokio::test]
async fn verifying_can_be_cancelled_and_holds_the_model_meanwhile() {
    let stored = Stored::new().await;
    let cancel = CancellationToken::new();
    let (trigger, lock) = (cancel.clone(), stored.root.path().join(".locks"));
    let name = format!("{}@use", folder_name(&reference()));
    let progress = move |_| {
        let lock = File::open(lock.join(&name)).unwrap();
        assert!(lock.try_lock().is_err(), "nobody holds it");
        trigger.cancel();
    };
    let error = stored.store.verify(&stored.model, progress, &cancel).await.unwrap_err();
    assert!(matches!(error, StoreError::Cancelled), "{error}");
    stored.store.delete(&stored.model).await.unwrap();
}

#[tokio::test]
async fn a_catalogue_file_adds_models_that_are_held_against_what_the_hub_says() {
    let stored = Stored::new().await;
    let file = stored.root.path().join("mine.toml");
    let entry = r#"
        [[model]]
        id = "mine"
        family = "llama"
        parameters = 1
        quantization = "Q8_0"
        licence = "MIT"
        licence_url = "https://example.org"
        context_length = 2048
        file_name = "mine.gguf"
        chat = true
        parts = [{ reference = "hf:org/repo/m.gguf" }]
    "#;
    let opened = |text: &str| {
        fs::write(&file, text).unwrap();
        let options = crate::StoreOptions {
            catalogue_file: Some(file.clone()),
            ..stored.hub.options()
        };
        ModelStore::open_with(stored.root.path(), options).unwrap()
    };
    let store = opened(entry);
    assert_eq!(
        store.catalogue().entries().len(),
        Catalogue::built_in().entries().len() + 1
    );
    let mine: ModelRef = "mine".parse().unwrap();
    stored.hub.cdn.fault(Fault::Other(noise(3_000_000, 9)));
    let error = pull(&store, &mine).await.unwrap_err();
    assert!(matches!(error, StoreError::WrongChecksum { .. }), "{error}");
    let model = pull(&store, &mine).await.unwrap();
    assert_eq!(
        (model.id.as_str(), fs::read(&model.path).unwrap()),
        ("mine", stored.content)
    );
    assert!(model.path.ends_with("mine.gguf"));

    store.delete(&model).await.unwrap();
    let before = stored.hub.cdn.seen().len();
    for (pin, offered) in [
        (format!("sha256 = '{}'", "0".repeat(64)), sha256(&noise(3_000_000, 1))),
        ("size_bytes = 7".to_owned(), "3000000 bytes".to_owned()),
    ] {
        let error = pull(&opened(&format!("{entry}{pin}")), &mine).await.unwrap_err();
        assert!(matches!(error, StoreError::OtherFile { .. }), "{error}");
        assert!(error.to_string().contains(&offered), "{error}");
    }
    assert_eq!(
        stored.hub.cdn.seen().len(),
        before,
        "what cannot be the pinned file is not fetched"
    );
}
