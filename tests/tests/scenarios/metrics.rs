//! The metrics are what the README says, and what monitoring systems are given asks for nothing else.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use futures_util::StreamExt;
use rbee_tests::chats::with;
use rbee_tests::cluster::chat_body;
use rbee_tests::promtool::Promtool;
use rbee_tests::{Cluster, gpu, http, models};
use serde_json::{Value, json};

/// One metric: its type, and the names of its labels.
type Metric = (String, BTreeSet<String>);

/// What `/metrics` says.
async fn scrape(url: &str) -> String {
    let response = http::client().get(format!("{url}/metrics")).send().await.unwrap();
    assert_eq!(response.status(), 200);
    response.text().await.unwrap()
}

/// The metrics of an output by name; a histogram is one.
fn found(text: &str) -> BTreeMap<String, Metric> {
    let mut metrics: BTreeMap<String, Metric> = BTreeMap::new();
    for line in text.lines() {
        if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
            metrics.insert(name.to_owned(), (kind.to_owned(), BTreeSet::new()));
        } else if !line.starts_with('#') {
            let name = line.split(['{', ' ']).next().unwrap();
            let parts = ["_bucket", "_sum", "_count"];
            let stem = parts.iter().find_map(|part| name.strip_suffix(part));
            let family = stem.filter(|stem| metrics.get(*stem).is_some_and(|(kind, _)| kind == "histogram"));
            let (_, labels) = metrics
                .get_mut(family.unwrap_or(name))
                .unwrap_or_else(|| panic!("{name} has no type"));
            labels.extend(label_names(line));
        }
    }
    metrics
}

/// The names of a sample's labels, but for those of a histogram's buckets.
fn label_names(sample: &str) -> Vec<String> {
    // Values stand in quotes: every other piece lies outside of them. None of rbee's has a quote within.
    let outside = sample.split('"').step_by(2);
    let names = outside.filter_map(|piece| piece.strip_suffix('=')?.rsplit(['{', ',']).next());
    names.filter(|name| *name != "le").map(str::to_owned).collect()
}

/// The metrics of a daemon by the README's table.
fn documented(daemon: &str) -> BTreeMap<String, Metric> {
    let rows = table();
    let of_daemon = rows.iter().filter(|row| row[3] == daemon || row[3] == "all");
    let code = |cell: &str| -> BTreeSet<String> {
        let words = cell.split('`').skip(1).step_by(2);
        words.map(str::to_owned).collect()
    };
    let metric = |row: &[String; 4]| {
        let name = code(&row[0]).into_iter().next().expect("a name");
        (name, (row[1].clone(), code(&row[2])))
    };
    of_daemon.map(metric).collect()
}

/// The first four cells of each row of the README's table: metric, type, labels, daemon.
fn table() -> Vec<[String; 4]> {
    let readme = std::fs::read_to_string(root().join("README.md")).unwrap();
    let section = readme.split("\n## ").find(|section| section.starts_with("Metrics\n"));
    let rows = section.expect("a section on metrics").lines();
    let cells = rows.filter(|line| line.starts_with("| `")).map(|line| {
        let cells: Vec<_> = line.split('|').map(|cell| cell.trim().to_owned()).collect();
        <[String; 4]>::try_from(cells[1..5].to_vec()).unwrap()
    });
    cells.collect()
}

fn root() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

fn monitoring(file: &str) -> PathBuf {
    root().join("bin/rbee/packaging/monitoring").join(file)
}

/// Takes more than five seconds: a real model is loaded.
#[tokio::test]
async fn the_table_lists_every_metric_of_every_daemon_with_its_type_and_labels_and_no_other() {
    let cluster = Cluster::start().await;
    let host = gpu::Host::start(&cluster, 1, 4_096, &[]).await;
    let spawn = json!({"operation": "worker_spawn", "model": models::SMOLLM2, "worker": "cuda"});
    let spawned = cluster.job(&host.hive, &spawn).await;
    assert_eq!(spawned["state"], "succeeded", "{spawned:#}");
    cluster.until_ready(models::SMOLLM2, 1).await;
    assert_eq!(cluster.chat(models::SMOLLM2, "Hello").await.status, 200);
    assert_eq!(cluster.chat("no-such-model", "Hello").await.status, 404);
    let streamed = with(chat_body(models::SMOLLM2, "Hello"), &json!({"stream": true}));
    let lines: Vec<String> = http::post_stream(cluster.chat_url(), &streamed).await.collect().await;
    assert_eq!(lines.last().map(String::as_str), Some("[DONE]"), "{lines:?}");

    let worker = cluster.fleet().await.workers[0].base_url.clone();
    let promtool = Promtool::find();
    for (daemon, url) in [("queen", cluster.url()), ("hive", host.hive.url()), ("worker", worker)] {
        let text = scrape(&url).await;
        assert_eq!(found(&text), documented(daemon), "the {daemon}'s metrics");
        if let Some(promtool) = &promtool {
            promtool
                .check(&["check", "metrics"], &text)
                .unwrap_or_else(|said| panic!("the {daemon}'s metrics: {said}"));
        }
    }
    // What passed through is counted, whatever the client has read of it by now.
    let tokens = format!("rbee_output_tokens_total{{model=\"{}\"}} ", models::SMOLLM2);
    let text = scrape(&cluster.url()).await;
    let counted = text.lines().find_map(|line| line.strip_prefix(&tokens)).unwrap();
    assert!(
        counted.parse::<u32>().unwrap() >= 10,
        "two answers of at most 8 tokens: {counted}"
    );
}

/// The names of rbee's series in an expression, or in a whole file of them.
fn series(text: &str) -> BTreeSet<&str> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    words
        .filter(|word| word.starts_with("rbee_") || word.starts_with("process_"))
        .collect()
}

/// All names of series that there are by the README's table.
fn known_series() -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for daemon in ["queen", "hive", "worker"] {
        for (name, (kind, _)) in documented(daemon) {
            if kind == "histogram" {
                names.extend(["bucket", "sum", "count"].map(|part| format!("{name}_{part}")));
            } else {
                names.insert(name);
            }
        }
    }
    names
}

/// All texts under the key `expr` in a dashboard.
fn expressions<'a>(json: &'a Value, into: &mut Vec<&'a str>) {
    match json {
        Value::Object(members) => {
            into.extend(members.get("expr").and_then(Value::as_str));
            members.values().for_each(|member| expressions(member, into));
        }
        Value::Array(items) => items.iter().for_each(|item| expressions(item, into)),
        _ => {}
    }
}

fn dashboard() -> Value {
    serde_json::from_slice(&std::fs::read(monitoring("grafana-dashboard.json")).unwrap()).unwrap()
}

#[test]
fn the_alerts_and_the_dashboard_ask_only_for_metrics_that_there_are() {
    let known = known_series();
    let unknown = |text: &str| -> Vec<String> {
        let asked = series(text).into_iter();
        asked.filter(|name| !known.contains(*name)).map(str::to_owned).collect()
    };
    let alerts = std::fs::read_to_string(monitoring("alerts.yml")).unwrap();
    assert_eq!(unknown(&alerts), [""; 0]);
    let dashboard = dashboard();
    let mut asked = Vec::new();
    expressions(&dashboard, &mut asked);
    assert!(asked.len() > 30, "{asked:?}");
    for expression in asked {
        assert_eq!(unknown(expression), [""; 0], "{expression}");
        assert!(!series(expression).is_empty(), "{expression}");
    }
    for variable in dashboard["templating"]["list"].as_array().unwrap() {
        assert_eq!(unknown(&variable["query"].to_string()), [""; 0], "{variable}");
    }
}

#[test]
fn prometheus_takes_the_files_for_it_and_every_expression_of_the_dashboard() {
    let Some(promtool) = Promtool::find() else { return };
    let check = |args: &[&str]| {
        promtool
            .check(args, "")
            .unwrap_or_else(|said| panic!("{args:?}: {said}"));
    };
    let path = |file: PathBuf| file.to_str().unwrap().to_owned();
    check(&["check", "rules", &path(monitoring("alerts.yml"))]);
    check(&["check", "config", &path(monitoring("prometheus.yml"))]);
    check(&["test", "rules", &path(root().join("tests/monitoring/alerts.yml"))]);

    let dashboard = dashboard();
    let mut asked = Vec::new();
    expressions(&dashboard, &mut asked);
    let rule = |(number, expression): (usize, &&str)| {
        // What Grafana puts in place of its own words.
        let expression = expression.replace("$__rate_interval", "5m");
        json!({"record": format!("panel:{number}"), "expr": expression})
    };
    let rules: Vec<_> = asked.iter().enumerate().map(rule).collect();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("dashboard.json");
    // JSON is YAML, too.
    let groups = json!({"groups": [{"name": "dashboard", "rules": rules}]});
    std::fs::write(&file, groups.to_string()).unwrap();
    check(&["check", "rules", &path(file)]);
}
