//! Who listens on a port of this machine.

use std::net::{Ipv4Addr, TcpListener};

use serde::Deserialize;

/// State of a listening socket in `/proc/net/tcp`.
const LISTENING: &str = "0A";

/// What stands at a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Holder {
    /// Nobody.
    Nobody,
    /// A daemon of rbee.
    Rbee {
        /// Its version.
        version: String,
    },
    /// Another program, by name and process where that may be seen.
    Other(Option<String>),
    /// It cannot be taken for another reason.
    Refused(String),
}

/// The part of a daemon's `/health` by which it is known.
#[derive(Debug, Deserialize)]
struct Health {
    alive: bool,
    version: String,
}

/// Looks at a port of the loopback. It is taken for a moment, to see whether it can be.
pub(super) async fn holder(http: &reqwest::Client, port: u16) -> Holder {
    match TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
        Ok(_) => return Holder::Nobody,
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {}
        Err(error) => return Holder::Refused(crate::api::root_cause(&error)),
    }
    match health(http, port).await {
        Some(health) if health.alive => Holder::Rbee {
            version: health.version,
        },
        _ => Holder::Other(process_at(port)),
    }
}

async fn health(http: &reqwest::Client, port: u16) -> Option<Health> {
    let request = http.get(format!("http://127.0.0.1:{port}/health"));
    let response = request.timeout(std::time::Duration::from_secs(3)).send().await.ok()?;
    response.json().await.ok()
}

/// The process that listens there, as `NAME (process PID)`. Only Linux tells, and only of one's own processes.
fn process_at(port: u16) -> Option<String> {
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"];
    let inode = tables
        .iter()
        .filter_map(|table| std::fs::read_to_string(table).ok())
        .find_map(|table| listener_inode(&table, port))?;
    let socket = format!("socket:[{inode}]");
    let processes = std::fs::read_dir("/proc").ok()?.filter_map(Result::ok);
    for process in processes {
        let Ok(pid) = process.file_name().to_string_lossy().parse::<u32>() else {
            continue;
        };
        let Ok(files) = std::fs::read_dir(process.path().join("fd")) else {
            continue;
        };
        let mut files = files.filter_map(Result::ok);
        if files.any(|file| std::fs::read_link(file.path()).is_ok_and(|target| target.as_os_str() == socket.as_str())) {
            let name = std::fs::read_to_string(process.path().join("comm")).ok()?;
            return Some(format!("{} (process {pid})", name.trim()));
        }
    }
    None
}

/// The inode of the socket that listens on this port, of a table as `/proc/net/tcp`.
fn listener_inode(table: &str, port: u16) -> Option<u64> {
    let port = format!(":{port:04X}");
    table.lines().find_map(|line| {
        let mut fields = line.split_whitespace();
        let (local, state) = (fields.nth(1)?, fields.nth(1)?);
        let inode = fields.nth(5)?.parse().ok()?;
        (local.ends_with(&port) && state == LISTENING).then_some(inode)
    })
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::routing::get;
    use serde_json::json;

    use super::*;

    async fn held(router: Router) -> Holder {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move { axum::serve(listener, router).await });
        holder(&daemon::client::new().unwrap(), port).await
    }

    #[tokio::test]
    async fn a_daemon_is_known_by_its_health_and_another_program_by_its_process() {
        let health = axum::Json(json!({"alive": true, "version": "0.1.0"}));
        let rbee = held(Router::new().route("/health", get(async move || health))).await;
        let version = "0.1.0".to_owned();
        assert_eq!(rbee, Holder::Rbee { version });
        let Holder::Other(process) = held(Router::new()).await else {
            panic!("another program")
        };
        if cfg!(target_os = "linux") {
            let ours = format!("(process {})", std::process::id());
            assert!(
                process.as_ref().is_some_and(|process| process.ends_with(&ours)),
                "{process:?}"
            );
        }
    }

    #[tokio::test]
    async fn a_port_that_nobody_has_is_free() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        assert_eq!(holder(&daemon::client::new().unwrap(), port).await, Holder::Nobody);
    }

    #[test]
    fn only_a_listening_socket_counts() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
             0: 0100007F:1E99 0100007F:C350 01 00000000:00000000 00:00000000 00000000  1000        0 11 1\n\
             1: 0100007F:1E99 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 22 1\n";
        assert_eq!(listener_inode(table, 7833), Some(22));
        assert_eq!(listener_inode(table, 7834), None);
    }
}
