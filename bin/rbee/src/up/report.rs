//! What `rbee up` says: lines for people, or JSON lines for programs.

use std::io::{self, IsTerminal};
use std::path::Path;

use serde::Serialize;
use serde_json::json;
use shared_contract::{ModelId, WorkerId};

use super::children::Children;
use super::plan::Plan;
use crate::cli::{BaseUrl, Global, QUEEN_PORT};
use crate::render;

/// Says in one of two ways what happens.
#[derive(Debug)]
pub(crate) struct Report {
    json: bool,
}

/// The daemons run; they may not answer yet.
#[derive(Debug, Serialize)]
pub(crate) struct Started {
    queen_url: String,
    hive_url: String,
    queen_pid: Option<u32>,
    hive_pid: Option<u32>,
    process_group: i32,
    log_dir: String,
}

/// Requests can be sent.
#[derive(Debug, Serialize)]
pub(crate) struct Ready {
    /// What OpenAI clients call the base URL.
    pub(crate) base_url: String,
    /// The model as clients name it.
    pub(crate) model: ModelId,
    /// Who serves it.
    pub(crate) worker_id: WorkerId,
    /// On which device.
    pub(crate) device: String,
    /// Whether it can chat, or only continue a text.
    pub(crate) chat: bool,
}

/// An event as a JSON line.
#[derive(Debug, Serialize)]
struct Event<'a, T> {
    event: &'static str,
    #[serde(flatten)]
    data: &'a T,
}

impl Started {
    /// As planned and started.
    pub(crate) fn new(plan: &Plan, children: &Children) -> Self {
        Self {
            queen_url: plan.queen_url.to_string(),
            hive_url: plan.hive_url.to_string(),
            queen_pid: children.pid("queen"),
            hive_pid: children.pid("hive"),
            process_group: children.group(),
            log_dir: plan.folder.display().to_string(),
        }
    }
}

impl Report {
    /// In JSON lines, or for people.
    pub(crate) fn new(json: bool) -> Self {
        Self { json }
    }

    /// Whether in JSON lines.
    pub(crate) fn is_json(&self) -> bool {
        self.json
    }

    /// The daemons run.
    pub(crate) fn started(&self, started: &Started) -> io::Result<()> {
        match self.json {
            true => render::json_line(&Event {
                event: "started",
                data: started,
            }),
            false => render::print(&format!("logs: {}", started.log_dir)),
        }
    }

    /// Requests can be sent.
    pub(crate) fn ready(&self, ready: &Ready, plan: &Plan, global: &Global) -> io::Result<()> {
        if self.json {
            return render::json_line(&Event {
                event: "ready",
                data: ready,
            });
        }
        let mut text = welcome(ready, &plan.queen_url, global.api_key.is_some(), &own_name());
        if plan.queen.ip().is_unspecified() {
            let host = nix::unistd::gethostname().unwrap_or_default();
            let (host, port) = (host.to_string_lossy(), plan.queen.port());
            text.push_str(&format!("\nFrom other machines: http://{host}:{port}/v1\n"));
        }
        text.push_str("\nCtrl-C stops it.\n");
        render::print(&text)
    }

    /// The end has begun, by a signal or not.
    pub(crate) fn stopping(&self, signalled: bool) {
        if self.json {
            self.event("stopping");
        } else if signalled && io::stderr().is_terminal() {
            // Behind the `^C` that the terminal shows.
            render::note("");
        }
    }

    /// No process is left.
    pub(crate) fn stopped(&self) {
        match self.json {
            true => self.event("stopped"),
            false => render::note("stopped"),
        }
    }

    /// Whoever read this may be the reason for the end, so a failure to tell it is none.
    fn event(&self, event: &'static str) {
        let _ = render::json_line(&json!({"event": event}));
    }
}

fn welcome(ready: &Ready, queen_url: &BaseUrl, needs_key: bool, rbee: &str) -> String {
    let Ready {
        base_url,
        model,
        device,
        ..
    } = ready;
    // Written out, because people read it: `json!` would sort the keys.
    let name = json!(model);
    let (path, body, prompt) = match ready.chat {
        true => {
            let prompt = "Say hello.";
            let messages = format!(r#"[{{"role": "user", "content": "{prompt}"}}]"#);
            (
                "chat/completions",
                format!(r#"{{"model": {name}, "messages": {messages}}}"#),
                prompt,
            )
        }
        false => {
            let prompt = "Once upon a time";
            (
                "completions",
                format!(r#"{{"model": {name}, "prompt": "{prompt}", "max_tokens": 64}}"#),
                prompt,
            )
        }
    };
    let key = if needs_key {
        " -H \"authorization: Bearer $RBEE_API_KEY\""
    } else {
        ""
    };
    let body = quoted(&body);
    let raw = if ready.chat { "" } else { " --raw" };
    let queen = match *queen_url == BaseUrl::local(QUEEN_PORT) {
        true => String::new(),
        false => format!(" --queen-url {queen_url}"),
    };
    let open_ai_key = if needs_key { "\"$RBEE_API_KEY\"" } else { "unused" };
    let chat = if ready.chat {
        ""
    } else {
        "; it continues texts and does not chat"
    };
    format!(
        "\n{model} is served on {device}{chat}.\n\
         \n\
         Base URL: {base_url}\n\
         \n\
         Try it in another terminal:\n  \
         curl {base_url}/{path}{key} -H 'content-type: application/json' -d {body}\n  \
         {rbee} run{queen}{raw} {} {}\n\
         \n\
         OpenAI clients:\n  \
         export OPENAI_BASE_URL={base_url} OPENAI_API_KEY={open_ai_key}\n",
        quoted(model.as_str()),
        quoted(prompt),
    )
}

/// A text as one word of a shell.
fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:@=".contains(c);
    match !text.is_empty() && text.chars().all(plain) {
        true => text.to_owned(),
        false => format!("'{}'", text.replace('\'', r"'\''")),
    }
}

/// How the user can call this program: by its name where a shell would find it, by its path elsewhere.
fn own_name() -> String {
    let Ok(program) = std::env::current_exe() else {
        return "rbee".to_owned();
    };
    let same = |path: &Path| path.canonicalize().is_ok_and(|path| path == program);
    let folders = std::env::var_os("PATH").unwrap_or_default();
    if std::env::split_paths(&folders).any(|folder| same(&folder.join("rbee"))) {
        return "rbee".to_owned();
    }
    let here = std::env::current_dir().unwrap_or_default();
    match program.strip_prefix(&here) {
        // A shell looks for a bare name on its PATH only.
        Ok(path) => quoted(&Path::new(".").join(path).display().to_string()),
        Err(_) => quoted(&program.display().to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ready(chat: bool) -> Ready {
        Ready {
            base_url: "http://127.0.0.1:7833/v1".into(),
            model: ModelId::new("m").unwrap(),
            worker_id: WorkerId::new("w").unwrap(),
            device: "cpu".into(),
            chat,
        }
    }

    fn queen(url: &str) -> BaseUrl {
        url.parse().unwrap()
    }

    #[test]
    fn the_curl_line_asks_the_endpoint_that_the_model_has() {
        let text = welcome(&ready(true), &queen("http://127.0.0.1:7833"), false, "rbee");
        let body = r#"-d '{"model": "m", "messages": [{"role": "user", "content": "Say hello."}]}'"#;
        assert!(
            text.contains("curl http://127.0.0.1:7833/v1/chat/completions -H"),
            "{text}"
        );
        assert!(text.contains(body), "{text}");
        assert!(text.contains("\n  rbee run m 'Say hello.'\n"), "{text}");
        let text = welcome(&ready(false), &queen("http://127.0.0.1:7833"), false, "rbee");
        assert!(
            text.contains("/v1/completions -H") && text.contains("rbee run --raw m"),
            "{text}"
        );
    }

    #[test]
    fn what_is_pasted_finds_another_port_and_the_key() {
        let text = welcome(&ready(true), &queen("http://127.0.0.1:9"), true, "rbee");
        assert!(text.contains("rbee run --queen-url http://127.0.0.1:9 m"), "{text}");
        assert!(text.contains(r#"-H "authorization: Bearer $RBEE_API_KEY""#), "{text}");
    }

    #[test]
    fn a_word_for_the_shell_stays_one_word() {
        assert_eq!(quoted("org/model-1.5"), "org/model-1.5");
        assert_eq!(quoted("it's"), r"'it'\''s'");
        assert_eq!(quoted(""), "''");
    }
}
