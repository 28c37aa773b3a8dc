//! Words of hives and of the queen's own logs, made fit for clients: short, and without places.

use std::net::{IpAddr, SocketAddr};

/// Letters of a hive's words that are shown to clients.
const MAX_CLIENT_REASON: usize = 240;

/// A hive's words as clients are shown them: a line of limited length. A failed worker's log is for operators.
pub(super) fn for_clients(reason: &str) -> String {
    let line = reason.lines().next().unwrap_or_default();
    let line = line.split("; its last lines were").next().unwrap_or_default();
    let mut text: String = line.chars().take(MAX_CLIENT_REASON).collect();
    if text.len() < line.len() {
        text.push('…');
    }
    without_places(&text)
}

/// A text without addresses and paths of files, which are no business of clients; those of files can carry signatures.
pub(super) fn without_places(text: &str) -> String {
    let words = text.split(' ').map(|word| {
        let bare = word.trim_matches(|c: char| !c.is_alphanumeric() && !matches!(c, '/' | '~' | '\\' | '[' | ']'));
        match place(bare) {
            Some(place) => word.replace(bare, place),
            None => word.to_owned(),
        }
    });
    words.collect::<Vec<_>>().join(" ")
}

/// What a word names, if that is a place.
fn place(word: &str) -> Option<&'static str> {
    let rest = word.strip_prefix("file:").unwrap_or(word);
    let is_drive = matches!(rest.as_bytes(), [drive, b':', b'\\' | b'/', ..] if drive.is_ascii_alphabetic());
    if word.contains("://") || ["http:", "https:"].iter().any(|scheme| word.starts_with(scheme)) {
        return Some("(an address)");
    }
    if rest.len() < word.len() || is_drive || rest.starts_with("~/") || (rest.len() > 1 && rest.starts_with('/')) {
        return Some("(a file)");
    }
    let is_port =
        |(host, port): (&str, &str)| (host.contains('.') || host == "localhost") && port.parse::<u16>().is_ok();
    let is_address = word.parse::<SocketAddr>().is_ok()
        || word.trim_matches(['[', ']']).parse::<IpAddr>().is_ok()
        || word.rsplit_once(':').is_some_and(is_port);
    is_address.then_some("(an address)")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_are_shown_one_line_of_a_hives_words() {
        let said = "failed to start worker w: exit code 1; its last lines were:\nsecret path";
        assert_eq!(for_clients(said), "failed to start worker w: exit code 1");
        assert!(for_clients(&"é".repeat(1_000)).chars().count() <= MAX_CLIENT_REASON + 1);
    }

    #[test]
    fn clients_are_shown_no_addresses_and_no_paths() {
        for (said, shown) in [
            (
                "failed to read `/home/me/m.gguf`: gone",
                "failed to read `(a file)`: gone",
            ),
            ("failed to open file:/m/x.gguf", "failed to open (a file)"),
            ("C:\\models\\x.gguf is cut off", "(a file) is cut off"),
            (
                "failed to fetch https://h.example/m.gguf?sig=secret: 403",
                "failed to fetch (an address): 403",
            ),
            (
                "asked 10.0.0.7:7835, [::1]:80 and box.lan:7835.",
                "asked (an address), (an address) and (an address).",
            ),
            (
                "10.0.0.7 and fe80::1 are silent",
                "(an address) and (an address) are silent",
            ),
            (
                "hf:Qwen/Qwen3-0.6B takes 1.5 GiB / 2.0 GiB of cuda:0, at 12:30",
                "hf:Qwen/Qwen3-0.6B takes 1.5 GiB / 2.0 GiB of cuda:0, at 12:30",
            ),
        ] {
            assert_eq!(for_clients(said), shown);
        }
    }
}
