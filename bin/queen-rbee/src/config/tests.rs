use std::ffi::OsString;
use std::io::Write;

use daemon::config::{Loaded, load};

use super::*;

fn configure(args: &[&str]) -> Result<Config, Vec<String>> {
    match load::<Args>("queen-rbee", args.iter().map(OsString::from)).unwrap() {
        Loaded::Run(args) => args.try_into(),
        Loaded::Print(text) => panic!("asked to print {text}"),
    }
}

#[test]
fn the_defaults_of_the_flags_are_those_of_the_type() {
    let (mut written, default) = (configure(&[]).unwrap(), Config::default());
    // A queen that is made without a word of the user keeps nothing on disk.
    written.supply.state_dir = None;
    assert_eq!(format!("{written:?}"), format!("{default:?}"));
}

#[test]
fn all_mistakes_are_told_at_once() {
    let mistakes = configure(&[
        "--host",
        "0.0.0.0",
        "--heartbeat-ttl-ms",
        "1000",
        "--queue-timeout-ms",
        "0",
    ])
    .unwrap_err();
    for word in ["--token", "--api-key", "--heartbeat-ttl-ms", "--queue-timeout-ms"] {
        assert!(
            mistakes.iter().any(|mistake| mistake.contains(word)),
            "{word}: {mistakes:?}"
        );
    }
}

#[test]
fn an_open_address_needs_both_secrets_or_the_operators_word() {
    let token = ["--host", "0.0.0.0", "--token", "token-token"];
    assert_eq!(configure(&token).unwrap_err().len(), 1);
    assert!(configure(&[&token[..], &["--api-key", "key-key-key"]].concat()).is_ok());
    assert!(configure(&["--host", "0.0.0.0", "--insecure"]).is_ok());
}

#[test]
fn a_key_under_the_clients_name_is_a_mistake_even_where_none_is_needed() {
    let address = |host: &str| format!("{host}:7833").parse().unwrap();
    for host in ["127.0.0.1", "0.0.0.0"] {
        let mistake = missing_keys(address(host), true).unwrap();
        assert!(
            mistake.starts_with("RBEE_API_KEY is") && mistake.contains("RBEE_API_KEYS"),
            "{mistake}"
        );
    }
    assert_eq!(missing_keys(address("127.0.0.1"), false), None);
    assert!(
        missing_keys(address("0.0.0.0"), false)
            .unwrap()
            .contains("RBEE_API_KEYS")
    );
}

#[test]
fn the_hives_are_named_once_each_and_without_a_slash_at_the_end() {
    let config = configure(&["--hive", "http://a:7835/,https://b/rbee/", "--hive", "http://a:7835"]).unwrap();
    assert_eq!(config.hives, ["http://a:7835", "https://b/rbee"]);
    let mistakes = configure(&[
        "--hive",
        "a:7835",
        "--hive",
        "http://",
        "--hive",
        "http://user:secret-word@a:7835",
        "--hive",
        "http://a:7835/?x=1",
        "--advertise-url",
        "ftp://queen",
    ])
    .unwrap_err();
    assert_eq!(mistakes.len(), 5, "{mistakes:?}");
    assert!(
        mistakes.iter().all(|mistake| mistake.contains("http://HOST:PORT")),
        "{mistakes:?}"
    );
    assert!(mistakes[4].starts_with("--advertise-url"), "{mistakes:?}");
    assert!(
        !mistakes.concat().contains("secret-word"),
        "a password is never shown: {mistakes:?}"
    );
}

#[test]
fn the_users_ssh_configuration_is_read_if_no_other_file_is_named() {
    let path = |args: &[&str]| configure(args).unwrap().hives_from_ssh;
    assert_eq!(path(&[]), None);
    assert_eq!(
        path(&["--hives-from-ssh", "/etc/hosts.ssh"]),
        Some("/etc/hosts.ssh".into())
    );
    let users = std::env::home_dir().map(|home| home.join(".ssh/config"));
    assert_eq!(path(&["--hives-from-ssh", "--mdns"]), users);
}

#[test]
fn keys_are_read_from_a_file_and_a_bad_line_is_named() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(b"# team\nfirst-key-1\n\n  second-key-2\n").unwrap();
    let path = file.path().to_str().unwrap().to_owned();
    let path = path.as_str();
    let config = configure(&["--api-key-file", path, "--api-key", "third-key-3,fourth-key-4"]).unwrap();
    let keys: Vec<_> = config.api_keys.iter().map(Secret::expose).collect();
    assert_eq!(keys, ["third-key-3", "fourth-key-4", "first-key-1", "second-key-2"]);
    file.write_all(b"short\n").unwrap();
    let mistakes = configure(&["--api-key-file", path]).unwrap_err();
    assert!(mistakes[0].contains("line 5"), "{mistakes:?}");
    assert!(!mistakes[0].contains("short"), "a key is never shown: {mistakes:?}");
}
