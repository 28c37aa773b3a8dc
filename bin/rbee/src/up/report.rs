//! What `rbee up` says: lines for people, or JSON lines for programs.

use std::io;
use std::path::Path;

use serde::Serialize;
use serde_json::json;
use shared_contract::{ModelId, WorkerId};

use super::plan::Plan;
use crate::cli::{BaseUrl, Global, QUEEN_PORT};
use crate::local::{Children, Say, has_api_key};

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
    /// Where a browser sees the fleet.
    pub(crate) dashboard_url: String,
    /// Where the secrets stand that other machines need, if they were made.
    pub(crate) secrets_file: Option<String>,
    /// The model as clients name it.
    pub(crate) model: ModelId,
    /// Who serves it.
    pub(crate) worker_id: WorkerId,
    /// On which device.
    pub(crate) device: String,
    /// Whether it can chat, or only continue a text.
    pub(crate) chat: bool,
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
            log_dir: plan.launcher.folder().display().to_string(),
        }
    }

    /// Tells it.
    pub(crate) fn tell(&self, say: Say) -> io::Result<()> {
        say.event("started", self, || format!("logs: {}", self.log_dir))
    }
}

impl Ready {
    /// Tells it.
    pub(crate) fn tell(&self, say: Say, plan: &Plan, global: &Global) -> io::Result<()> {
        say.event("ready", self, || {
            let rbee = own_name();
            let mut text = welcome(self, &plan.queen_url, has_api_key(global), &rbee);
            if let Some(url) = &plan.shared_url {
                text.push_str(&invitation(url, plan.secrets_file.as_deref(), global));
            }
            text.push_str("\nCtrl-C stops it.\n");
            text
        })
    }
}

/// What other machines need. Secrets that this command made are shown: nobody knows them yet.
fn invitation(url: &BaseUrl, secrets_file: Option<&Path>, global: &Global) -> String {
    let Some(file) = secrets_file else {
        return format!("\nFrom other machines: {url}/v1\n");
    };
    let shown = |secret: &Option<daemon::Secret>| secret.as_ref().map_or("", daemon::Secret::expose).to_owned();
    let (token, key) = (shown(&global.token), shown(&global.api_key));
    format!(
        "\nAnother GPU machine joins with:\n  \
         RBEE_TOKEN={token} rbee join {url}\n\
         \nClients on other machines:\n  \
         export OPENAI_BASE_URL={url}/v1 OPENAI_API_KEY={key}\n\
         \nThese secrets are kept in {}.\n",
        file.display()
    )
}

fn welcome(ready: &Ready, queen_url: &BaseUrl, needs_key: bool, rbee: &str) -> String {
    let Ready {
        base_url,
        dashboard_url,
        secrets_file,
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
                // Left to itself, a small model may talk for a minute.
                format!(r#"{{"model": {name}, "messages": {messages}, "max_tokens": 64}}"#),
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
    // The keys that were made are not in anybody's environment yet.
    let secrets = secrets_file
        .as_ref()
        .map_or_else(String::new, |file| format!("  export $(cat {})\n", quoted(file)));
    let open_ai_key = if needs_key { "\"$RBEE_API_KEY\"" } else { "unused" };
    let chat = if ready.chat {
        ""
    } else {
        "; it continues texts and does not chat"
    };
    format!(
        "\n{model} is served on {device}{chat}.\n\
         \n\
         Base URL:  {base_url}\n\
         Dashboard: {dashboard_url}\n\
         \n\
         Try it in another terminal:\n{secrets}  \
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
            dashboard_url: "http://127.0.0.1:7833/".into(),
            secrets_file: None,
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
        let body = r#"-d '{"model": "m", "messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 64}'"#;
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
    fn what_is_pasted_has_the_secrets_that_were_made() {
        let shared = Ready {
            secrets_file: Some("/s/secrets.env".into()),
            ..ready(true)
        };
        let text = welcome(&shared, &queen("http://127.0.0.1:7833"), true, "rbee");
        assert!(
            text.contains("terminal:\n  export $(cat /s/secrets.env)\n  curl"),
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
    fn another_machine_is_told_all_that_it_needs() {
        let global = Global {
            queen_url: queen("http://127.0.0.1:7833"),
            token: Some("correct-horse".parse().unwrap()),
            api_key: Some("battery-staple".parse().unwrap()),
            json: false,
        };
        let url = queen("http://10.0.0.5:7833");
        let text = invitation(&url, Some(Path::new("/s/secrets.env")), &global);
        assert!(
            text.contains("RBEE_TOKEN=correct-horse rbee join http://10.0.0.5:7833\n")
                && text.contains("OPENAI_BASE_URL=http://10.0.0.5:7833/v1 OPENAI_API_KEY=battery-staple")
                && text.contains("/s/secrets.env"),
            "{text}"
        );
        // Secrets that the user has chosen are known to the user, and stay off the screen.
        let text = invitation(&url, None, &global);
        assert!(
            !text.contains("correct-horse") && text.contains("http://10.0.0.5:7833/v1"),
            "{text}"
        );
    }

    #[test]
    fn a_word_for_the_shell_stays_one_word() {
        assert_eq!(quoted("org/model-1.5"), "org/model-1.5");
        assert_eq!(quoted("it's"), r"'it'\''s'");
        assert_eq!(quoted(""), "''");
    }
}
