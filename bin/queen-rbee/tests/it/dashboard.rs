//! The dashboard's files: how they are served, how large they are, and where those come from that others wrote.

use std::path::{Path, PathBuf};

use queen_rbee::Config;
use reqwest::Response;
use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::support::Queen;

/// What all files may take together.
const MAX_BYTES: usize = 200_000;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("dashboard")
}

/// All files below a folder, as paths below it with `/`.
fn files(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        if entry.file_type().unwrap().is_dir() {
            found.extend(files(&entry.path()).into_iter().map(|below| format!("{name}/{below}")));
        } else {
            found.push(name);
        }
    }
    found.sort();
    found
}

fn text(path: &str) -> String {
    std::fs::read_to_string(folder().join(path)).unwrap()
}

fn header<'a>(response: &'a Response, name: &str) -> &'a str {
    response
        .headers()
        .get(name)
        .unwrap_or_else(|| panic!("no {name}"))
        .to_str()
        .unwrap()
}

async fn get(queen: &Queen, path: &str) -> Response {
    queen.get(path).send().await.unwrap()
}

#[tokio::test]
async fn whoever_asks_gets_the_page_also_where_a_token_guards_the_fleet() {
    let queen = Queen::start(Config {
        token: Some("the-fleets-token".parse().unwrap()),
        ..Config::default()
    })
    .await;
    let page = get(&queen, "/").await;
    assert_eq!(page.status(), 200);
    assert_eq!(header(&page, "content-type"), "text/html; charset=utf-8");
    assert_eq!(page.text().await.unwrap(), text("index.html"));
    assert_eq!(get(&queen, "/dashboard/app.js").await.status(), 200);
    assert_eq!(get(&queen, "/v1/fleet").await.status(), 401);
}

#[tokio::test]
async fn every_file_of_the_folder_is_served_as_it_lies_there_with_its_type() {
    let queen = Queen::start(Config::default()).await;
    for path in files(&folder()) {
        let served = get(&queen, &format!("/dashboard/{path}")).await;
        assert_eq!(served.status(), 200, "{path}");
        let expected = match path.rsplit_once('.').unwrap().1 {
            "html" => "text/html; charset=utf-8",
            "js" => "text/javascript; charset=utf-8",
            "css" => "text/css; charset=utf-8",
            "svg" => "image/svg+xml",
            "toml" | "txt" => "text/plain; charset=utf-8",
            other => panic!("{path}: how is .{other} to be served?"),
        };
        assert_eq!(header(&served, "content-type"), expected, "{path}");
        let is_whole = served.bytes().await.unwrap() == std::fs::read(folder().join(&path)).unwrap();
        assert!(is_whole, "{path} is served with another content");
    }
}

#[tokio::test]
async fn a_page_of_the_queen_runs_nothing_but_her_own_files_and_is_embedded_nowhere() {
    let queen = Queen::start(Config::default()).await;
    for path in ["/", "/dashboard/app.js"] {
        let served = get(&queen, path).await;
        let policy = header(&served, "content-security-policy");
        for rule in [
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self'",
            "connect-src 'self'",
            "frame-ancestors 'none'",
        ] {
            assert!(policy.split("; ").any(|it| it == rule), "{rule} in {policy}");
        }
        assert_eq!(header(&served, "x-content-type-options"), "nosniff");
        assert_eq!(header(&served, "referrer-policy"), "no-referrer");
    }
}

#[tokio::test]
async fn a_browser_that_has_a_file_is_told_that_it_did_not_change() {
    let queen = Queen::start(Config::default()).await;
    let first = get(&queen, "/dashboard/style.css").await;
    assert_eq!(header(&first, "cache-control"), "no-cache");
    let tag = header(&first, "etag").to_owned();
    let asked_again = async |known: String| {
        let request = queen.get("/dashboard/style.css").header("if-none-match", known);
        request.send().await.unwrap()
    };
    for known in [
        tag.clone(),
        format!("W/{tag}"),
        format!("\"another\", {tag}"),
        "*".to_owned(),
    ] {
        let again = asked_again(known.clone()).await;
        assert_eq!(again.status(), 304, "{known}");
        assert_eq!(header(&again, "etag"), tag);
        assert_eq!(header(&again, "cache-control"), "no-cache");
        assert!(again.bytes().await.unwrap().is_empty());
    }
    assert_eq!(asked_again("\"another\"".to_owned()).await.status(), 200);
    let other = get(&queen, "/dashboard/app.js").await;
    assert_ne!(header(&other, "etag"), tag);
}

#[tokio::test]
async fn head_tells_of_a_file_without_sending_it() {
    let queen = Queen::start(Config::default()).await;
    let whole = get(&queen, "/").await;
    let head = queen.http.head(format!("{}/", queen.url)).send().await.unwrap();
    assert_eq!(head.status(), 200);
    for name in ["etag", "content-type", "content-length"] {
        assert_eq!(header(&head, name), header(&whole, name), "{name}");
    }
    assert!(head.bytes().await.unwrap().is_empty());
}

#[tokio::test]
async fn a_path_without_a_file_is_a_404_as_everywhere() {
    let queen = Queen::start(Config::default()).await;
    for path in [
        "/dashboard/nothing.js",
        "/dashboard/../Cargo.toml",
        "/dashboard/..%2fCargo.toml",
        "/dashboard/lib",
        "/favicon.ico",
    ] {
        let answer = get(&queen, path).await;
        assert_eq!(answer.status(), 404, "{path}");
        let body: serde_json::Value = answer.json().await.unwrap();
        assert!(body["error"]["message"].is_string(), "{path}: {body}");
    }
}

#[test]
fn the_dashboard_takes_less_than_200_kb_with_everything_in_it() {
    let sizes = files(&folder())
        .into_iter()
        .map(|path| (std::fs::metadata(folder().join(&path)).unwrap().len() as usize, path));
    let mut sizes: Vec<(usize, String)> = sizes.collect();
    sizes.sort_by(|left, right| right.cmp(left));
    let total: usize = sizes.iter().map(|(size, _)| size).sum();
    assert!(total < MAX_BYTES, "{total} bytes; the largest files: {:?}", &sizes[..8]);
}

/// What stands between quotes and looks like a relative path.
fn named_paths(source: &str) -> impl Iterator<Item = &str> {
    source.split(['\'', '"']).filter(|it| {
        (it.starts_with("./") || it.starts_with("../") || it.starts_with("dashboard/"))
            && !it.contains(char::is_whitespace)
    })
}

#[test]
fn every_file_that_a_file_names_is_there() {
    let all = files(&folder());
    let mut seen = 0;
    for path in all
        .iter()
        .filter(|path| path.ends_with(".js") || path.ends_with(".html"))
    {
        let source = text(path);
        for named in named_paths(&source) {
            // The page lies at `/`, everything else below `/dashboard/`.
            let mut place: Vec<&str> = path.split('/').collect();
            place.pop();
            for part in named.strip_prefix("dashboard/").unwrap_or(named).split('/') {
                match part {
                    "." => {}
                    ".." => drop(place.pop()),
                    part => place.push(part),
                }
            }
            assert!(
                all.contains(&place.join("/")),
                "{path} names {named}, which is not there"
            );
            seen += 1;
        }
    }
    assert!(seen > 20, "only {seen} names were found");
}

/// `vendor/vendored.toml`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Vendored {
    file: Vec<VendoredFile>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct VendoredFile {
    path: String,
    package: String,
    version: String,
    source: String,
    licence: String,
    licence_text: String,
    published_sha256: String,
    sha256: String,
    replaced: Option<Replaced>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Replaced {
    published: String,
    here: String,
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn what_others_wrote_is_as_published_but_for_the_changes_that_are_named() {
    let vendored: Vendored = toml::from_str(&text("vendor/vendored.toml")).unwrap();
    for file in &vendored.file {
        let VendoredFile {
            path,
            package,
            version,
            source,
            ..
        } = file;
        assert!(
            package.starts_with("npm:") && !version.is_empty() && !source.is_empty(),
            "{file:?}"
        );
        let here = text(&format!("vendor/{path}"));
        assert_eq!(sha256(here.as_bytes()), file.sha256, "{path} was changed");
        let published = match &file.replaced {
            Some(Replaced {
                published,
                here: changed,
            }) => here.replace(changed, published),
            None => here,
        };
        assert_eq!(
            sha256(published.as_bytes()),
            file.published_sha256,
            "{path} is not that of {package} {version}"
        );
    }
}

#[test]
fn every_file_that_others_wrote_is_listed_and_has_its_licence_beside_it() {
    let vendored: Vendored = toml::from_str(&text("vendor/vendored.toml")).unwrap();
    let mut listed = vec!["vendored.toml".to_owned()];
    for file in vendored.file {
        let licence = text(&format!("vendor/{}", file.licence_text));
        let words = match file.licence.as_str() {
            "MIT" => "Permission is hereby granted, free of charge",
            "Apache-2.0" => "Apache License",
            other => panic!("{}: is {other} a licence that may be passed on?", file.path),
        };
        assert!(licence.contains(words), "{} is not {}", file.licence_text, file.licence);
        listed.extend([file.path, file.licence_text]);
    }
    listed.sort();
    listed.dedup();
    assert_eq!(files(&folder().join("vendor")), listed);
}
