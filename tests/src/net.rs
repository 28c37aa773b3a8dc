//! Several hosts on one network, in one machine: each host is a network namespace with an address of its own, joined by a
//! bridge in one more namespace, which is the switch. The machine's own network is left alone, so that no address need be
//! free and any number of tests can run at once.
//!
//! Needs root (or `CAP_NET_ADMIN` and `CAP_SYS_ADMIN`), `ip` (package iproute2) and, for walls and loss, `nft` (package
//! nftables).

mod queen;

use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use serde_json::Value;
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use crate::http::{self, Answer};
use crate::process::is_alive;
use crate::{Process, Program};

pub use queen::{Queen, hive, worker};

/// Namespaces are named `rbee-PID-LAN-HOST`, so that those of a test that was killed can be told and removed.
const PREFIX: &str = "rbee";
/// The interface of a host.
const CABLE: &str = "eth0";

/// A switch, and what it takes to plug hosts into it.
#[derive(Debug)]
pub struct Lan {
    switch: Arc<Namespace>,
    hosts: AtomicU8,
}

impl Lan {
    /// A network without hosts. Where none can be made it says that the test is skipped, and yields `None`.
    ///
    /// # Panics
    /// If none can be made and `CI` is set: there no test may go missing unseen.
    pub fn build() -> Option<Self> {
        match Self::try_build() {
            Ok(lan) => Some(lan),
            Err(reason) if std::env::var_os("CI").is_none() => {
                println!("skipped: no network namespace can be made here: {reason}");
                None
            }
            Err(reason) => panic!("no network namespace can be made: {reason}"),
        }
    }

    fn try_build() -> Result<Self, String> {
        remove_leftovers();
        run("nft", &["--version"]).map_err(|error| format!("{error} (package nftables)"))?;
        // The first number that no other test of this process has.
        let switch = (0..u8::MAX)
            .find_map(|lan| {
                let made = Namespace::make(format!("{PREFIX}-{}-{lan}-switch", std::process::id()));
                made.map_or_else(
                    |error| (!error.contains("File exists")).then_some(Err(error)),
                    |made| Some(Ok(made)),
                )
            })
            .unwrap_or_else(|| Err("too many networks at once".to_owned()))?;
        switch.ip("link add bridge type bridge")?;
        switch.ip("link set bridge up")?;
        Ok(Self {
            switch: Arc::new(switch),
            hosts: AtomicU8::new(0),
        })
    }

    /// One more host, plugged in.
    pub async fn host(&self) -> Host {
        let number = self.hosts.fetch_add(1, Ordering::Relaxed) + 1;
        let switch = Arc::clone(&self.switch);
        Host::plug_in(switch, number)
            .await
            .unwrap_or_else(|error| panic!("host {number}: {error}"))
    }
}

/// How a host's wall keeps others out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wall {
    /// A knock is answered with a refusal, at once.
    Refuses,
    /// A knock is not answered at all.
    Ignores,
}

/// A host. What runs on it keeps running when this is dropped, but nothing reaches it by name any more: drop it after its
/// processes.
#[derive(Debug)]
pub struct Host {
    /// Its only address besides loopback.
    pub address: IpAddr,
    port: String,
    inside: Handle,
    /// Dropped, it ends the thread inside.
    _leave: oneshot::Sender<()>,
    namespace: Namespace,
    switch: Arc<Namespace>,
}

impl Host {
    async fn plug_in(switch: Arc<Namespace>, number: u8) -> Result<Self, String> {
        let name = switch.name.replace("switch", &number.to_string());
        let namespace = Namespace::make(name)?;
        let address = Ipv4Addr::new(10, 77, 0, number);
        let port = format!("port{number}");
        namespace.ip(&format!(
            "link add {CABLE} type veth peer name {port} netns {}",
            switch.name
        ))?;
        switch.ip(&format!("link set {port} master bridge up"))?;
        namespace.ip("link set lo up")?;
        namespace.ip(&format!("addr add {address}/24 broadcast + dev {CABLE}"))?;
        namespace.ip(&format!("link set {CABLE} up"))?;
        let (inside, leave) = enter(namespace.name.clone()).await?;
        Ok(Self {
            address: IpAddr::V4(address),
            port,
            inside,
            _leave: leave,
            namespace,
            switch,
        })
    }

    /// Runs a piece of the test on this host: the sockets that it opens are this host's.
    pub async fn run<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> T {
        match self.inside.spawn(work).await {
            Ok(value) => value,
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }

    /// GET from this host.
    pub async fn get(&self, url: impl Into<String>) -> Answer {
        let url = url.into();
        self.run(async move { http::get(url).await }).await
    }

    /// POST from this host.
    pub async fn post(&self, url: impl Into<String>, body: Value) -> Answer {
        let url = url.into();
        self.run(async move { http::post(url, &body).await }).await
    }

    /// Asks a daemon with a jobs endpoint for a job and waits for its end, all from this host; yields its last event.
    pub async fn job(&self, daemon: &Process, operation: Value) -> Value {
        let url = daemon.url();
        self.run(async move { http::job(&url, &operation).await }).await
    }

    /// A command that runs one of the programs on this host. It keeps its process id when it enters.
    pub fn command(&self, program: Program) -> tokio::process::Command {
        program.command_by(&["ip", "netns", "exec", &self.namespace.name])
    }

    /// Starts a daemon that listens on this host's address, and waits until it does.
    pub async fn daemon(&self, program: Program, args: impl IntoIterator<Item = impl Into<OsString>>) -> Process {
        let listen = ["--host".to_owned(), self.address.to_string(), "--insecure".to_owned()];
        let args = listen
            .into_iter()
            .map(OsString::from)
            .chain(args.into_iter().map(Into::into));
        let mut process = Process::daemon_from(self.command(program), args).await;
        process.address.set_ip(self.address);
        process
    }

    /// Pulls the cable.
    pub fn cut(&self) {
        self.must(self.switch.ip(&format!("link set {} down", self.port)));
    }

    /// Puts the cable back.
    pub fn heal(&self) {
        self.must(self.switch.ip(&format!("link set {} up", self.port)));
    }

    /// From now on nobody can open a connection to this host, which still reaches everybody.
    pub fn one_way(&self, wall: Wall) {
        self.keep_out("", wall);
    }

    /// From now on this one other host cannot open a connection to this host.
    pub fn shut_out(&self, other: &Host, wall: Wall) {
        self.keep_out(&format!("ip saddr {}", other.address), wall);
    }

    fn keep_out(&self, whom: &str, wall: Wall) {
        let verdict = match wall {
            Wall::Refuses => "reject with tcp reset",
            Wall::Ignores => "drop",
        };
        self.both_ways();
        self.must(self.namespace.nft(&format!(
            "table inet wall {{ chain knocks {{ type filter hook input priority 0; \
             iifname {CABLE} {whom} tcp flags & (syn | ack) == syn {verdict}; }}; }}"
        )));
    }

    /// Takes the wall down.
    pub fn both_ways(&self) {
        // Made first, so that there is one to delete.
        self.must(self.namespace.nft("table inet wall {}; delete table inet wall"));
    }

    /// From now on this share of the packets to and from this host, 0 to 99 in 100, is lost on the way, each by itself.
    pub fn loss(&self, percent: u8) {
        for (end, interface) in [(&self.namespace, CABLE), (&*self.switch, &self.port)] {
            self.must(end.nft(&format!(
                "table netdev {port} {{}}; delete table netdev {port}; \
                 table netdev {port} {{ chain noise {{ type filter hook ingress device {interface} priority 0; \
                 numgen random mod 100 < {percent} drop; }}; }}",
                port = self.port
            )));
        }
    }

    fn must(&self, done: Result<(), String>) {
        done.unwrap_or_else(|error| panic!("host {}: {error}", self.address));
    }
}

/// A network namespace, removed when dropped.
#[derive(Debug)]
struct Namespace {
    name: String,
}

impl Namespace {
    fn make(name: String) -> Result<Self, String> {
        run("ip", &["netns", "add", &name]).map_err(|error| format!("{error} (package iproute2)"))?;
        Ok(Self { name })
    }

    fn ip(&self, arguments: &str) -> Result<(), String> {
        let words: Vec<&str> = ["-n", &self.name].into_iter().chain(arguments.split(' ')).collect();
        run("ip", &words)
    }

    fn nft(&self, script: &str) -> Result<(), String> {
        run("ip", &["netns", "exec", &self.name, "nft", script])
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // There is nobody to tell; what stays is removed by the next test.
        let _ = run("ip", &["netns", "del", &self.name]);
    }
}

/// Starts a thread inside a namespace, and on it a runtime that runs until the sender is dropped.
async fn enter(name: String) -> Result<(Handle, oneshot::Sender<()>), String> {
    let (leave, left) = oneshot::channel::<()>();
    let (entered, inside) = oneshot::channel();
    std::thread::spawn(move || {
        let runtime = set_namespace(&name).and_then(|()| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.map_err(|error| format!("start a runtime: {error}"))
        });
        match runtime {
            Ok(runtime) => {
                // A test that has gone meanwhile has dropped the other sender, too.
                let _ = entered.send(Ok(runtime.handle().clone()));
                let _ = runtime.block_on(left);
                runtime.shutdown_background();
            }
            Err(error) => drop(entered.send(Err(error))),
        }
    });
    let handle = inside.await.map_err(|_| "the thread inside ended".to_owned())??;
    Ok((handle, leave))
}

/// Moves this thread, and those that it will start, into a namespace.
#[cfg(target_os = "linux")]
fn set_namespace(name: &str) -> Result<(), String> {
    use nix::sched::{CloneFlags, setns};
    let path = format!("/run/netns/{name}");
    let file = std::fs::File::open(&path).map_err(|error| format!("open {path}: {error}"))?;
    setns(file, CloneFlags::CLONE_NEWNET).map_err(|error| format!("enter {path}: {error}"))
}

#[cfg(not(target_os = "linux"))]
fn set_namespace(name: &str) -> Result<(), String> {
    Err(format!("enter {name}: only Linux has network namespaces"))
}

/// Removes the namespaces of tests that were killed before they could.
fn remove_leftovers() {
    let Ok(entries) = std::fs::read_dir("/run/netns") else {
        return;
    };
    for name in entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()) {
        let mut words = name.split('-');
        let is_ours = words.next() == Some(PREFIX);
        let maker = words.next().and_then(|pid| pid.parse().ok());
        if is_ours && maker.is_some_and(|pid| !is_alive(pid)) {
            // Another test may be removing it, too.
            let _ = run("ip", &["netns", "del", &name]);
        }
    }
}

fn run(program: &str, arguments: &[&str]) -> Result<(), String> {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output();
    let output = output.map_err(|error| format!("run `{program}`: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let says = String::from_utf8_lossy(&output.stderr);
    Err(format!("`{program} {}`: {}", arguments.join(" "), says.trim()))
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;
    use std::time::Duration;

    use tokio::net::{TcpListener, TcpStream};
    use tokio::time::timeout;

    use super::*;

    /// Takes connections on a port of this host for as long as its thread lives.
    async fn listen(host: &Host) -> u16 {
        let address = host.address;
        host.run(async move {
            let listener = TcpListener::bind((address, 0)).await.unwrap();
            let port = listener.local_addr().unwrap().port();
            tokio::spawn(async move { while listener.accept().await.is_ok() {} });
            port
        })
        .await
    }

    /// Whether a connection can be opened; `None` if nothing answers.
    async fn connects(from: &Host, to: &Host, port: u16) -> Option<Result<(), ErrorKind>> {
        let address = to.address;
        let connecting = async move { timeout(Duration::from_secs(1), TcpStream::connect((address, port))).await };
        let connected = from.run(connecting).await.ok()?;
        Some(connected.map(drop).map_err(|error| error.kind()))
    }

    #[tokio::test]
    async fn a_cut_cable_carries_nothing_and_a_wall_lets_only_one_way_through() {
        let Some(lan) = Lan::build() else { return };
        let (near, far) = (lan.host().await, lan.host().await);
        let (near_port, far_port) = (listen(&near).await, listen(&far).await);
        let comes_to = async |from: &Host, to: &Host, port: u16, seen: Option<Result<(), ErrorKind>>| {
            // The kernel may take a second to see a link, and a busy machine one to answer.
            crate::eventually(&format!("a knock comes to {seen:?}"), async || {
                (connects(from, to, port).await == seen).then_some(())
            })
            .await;
        };
        let is_fine = Some(Ok(()));
        comes_to(&near, &far, far_port, is_fine).await;

        far.cut();
        assert_eq!(connects(&near, &far, far_port).await, None);
        assert_eq!(connects(&far, &near, near_port).await, None);
        far.heal();
        comes_to(&near, &far, far_port, is_fine).await;

        for (wall, seen) in [
            (Wall::Refuses, Some(Err(ErrorKind::ConnectionRefused))),
            (Wall::Ignores, None),
        ] {
            far.one_way(wall);
            comes_to(&near, &far, far_port, seen).await;
            comes_to(&far, &near, near_port, is_fine).await;
        }
        far.both_ways();
        comes_to(&near, &far, far_port, is_fine).await;
        far.loss(99);
        comes_to(&near, &far, far_port, None).await;
        far.loss(0);
        comes_to(&near, &far, far_port, is_fine).await;
    }

    #[tokio::test]
    async fn a_network_is_gone_when_its_hosts_are_dropped() {
        let Some(lan) = Lan::build() else { return };
        let host = lan.host().await;
        let path = std::path::Path::new("/run/netns").join(&host.namespace.name);
        assert!(path.exists());
        drop((lan, host));
        assert!(!path.exists());
    }
}
