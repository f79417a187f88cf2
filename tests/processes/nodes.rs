//! `concordat serve` processes on loopback.

use crate::ports::free_port;
use concordat::api::{Role, Status};
use concordat::client::{Client, Options};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// How long any condition may take before a test fails: far beyond what a loaded machine needs.
const DEADLINE: Duration = Duration::from_secs(180);

pub(crate) fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_concordat"));
    command.env_remove("CONCORDAT_NODES").env_remove("RUST_LOG");
    command
}

/// Waits for a condition with a deadline.
pub(crate) async fn until<T>(what: &str, mut condition: impl AsyncFnMut() -> Option<T>) -> T {
    let poll = async {
        let mut tick = tokio::time::interval(Duration::from_millis(20));
        loop {
            if let Some(found) = condition().await {
                return found;
            }
            tick.tick().await;
        }
    };
    tokio::time::timeout(DEADLINE, poll).await.unwrap_or_else(|_| panic!("within {DEADLINE:?}: {what}"))
}

/// Three or more members, each a process of its own; killed when dropped.
pub(crate) struct Nodes {
    root: tempfile::TempDir,
    peers: Vec<String>,
    http: Vec<String>,
    children: Vec<Option<Child>>,
}

impl Nodes {
    pub(crate) async fn start(count: usize) -> Self {
        let root = tempfile::tempdir().expect("a temporary directory");
        let peers: Vec<String> = (0..count).map(|_| format!("127.0.0.1:{}", free_port())).collect();
        let http = (0..count).map(|_| format!("127.0.0.1:{}", free_port())).collect();
        let mut genesis = program();
        genesis
            .args(["genesis", "--name", "test", "--quorum", "majority", "--out"])
            .arg(root.path().join("genesis.json"));
        for (n, address) in peers.iter().enumerate() {
            let data = root.path().join(n.to_string());
            let made = program().args(["init", "--address", address, "--data"]).arg(&data).output().expect("init runs");
            assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
            genesis.arg("--member").arg(data.join("member.json"));
        }
        let made = genesis.output().expect("genesis runs");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let children = peers.iter().map(|_| None).collect();
        let mut nodes = Self { root, peers, http, children };
        for n in 0..count {
            nodes.restart(n).await;
        }
        nodes.leader().await;
        nodes
    }

    pub(crate) fn genesis(&self) -> PathBuf {
        self.root.path().join("genesis.json")
    }

    fn data(&self, n: usize) -> PathBuf {
        Path::new(self.root.path()).join(n.to_string())
    }

    pub(crate) fn urls(&self) -> Vec<String> {
        self.http.iter().map(|a| format!("http://{a}")).collect()
    }

    pub(crate) fn client(&self) -> Client {
        let patience = Options { stream_patience: DEADLINE, ..Options::default() };
        Client::new(self.urls(), patience).expect("a client")
    }

    fn one(&self, n: usize) -> Client {
        let short = Options { deadline: Duration::from_secs(2), ..Options::default() };
        Client::new([format!("http://{}", self.http[n])], short).expect("a client")
    }

    /// Starts a node and waits until it says that it is ready.
    pub(crate) async fn restart(&mut self, n: usize) {
        let log = std::fs::File::options().create(true).append(true).open(self.root.path().join(format!("{n}.log")));
        let mut child = program()
            .args(["serve", "--listen", &self.peers[n], "--http", &self.http[n], "--data"])
            .arg(self.data(n))
            .arg("--genesis")
            .arg(self.genesis())
            .stdout(Stdio::piped())
            .stderr(log.expect("a log file"))
            .spawn()
            .expect("serve starts");
        let output = BufReader::new(child.stdout.take().expect("piped"));
        let first = tokio::task::spawn_blocking(move || output.lines().next());
        let first = tokio::time::timeout(DEADLINE, first).await.expect("serve answers").expect("no panic");
        let log = std::fs::read_to_string(self.root.path().join(format!("{n}.log"))).unwrap_or_default();
        assert!(matches!(&first, Some(Ok(line)) if line.starts_with("ready ")), "{first:?}\n{log}");
        self.children[n] = Some(child);
    }

    /// `kill -9`.
    pub(crate) fn kill(&mut self, n: usize) {
        let mut child = self.children[n].take().expect("it runs");
        child.kill().expect("killed");
        child.wait().expect("reaped");
    }

    async fn statuses(&self) -> Option<Vec<Status>> {
        let mut all = Vec::new();
        for n in 0..self.http.len() {
            all.push(self.one(n).status().await.ok()?);
        }
        Some(all)
    }

    pub(crate) async fn leader(&self) -> usize {
        until("all nodes follow one leader", async || {
            let all = self.statuses().await?;
            let leader = all.iter().position(|s| s.snapshot.role == Role::Leader)?;
            all.iter().all(|s| s.leader == Some(all[leader].id)).then_some(leader)
        })
        .await
    }

    /// The leader, or a follower.
    pub(crate) async fn pick(&self, leader: bool) -> usize {
        let leads = self.leader().await;
        if leader { leads } else { (leads + 1) % self.http.len() }
    }

    /// The node holds what the others had certified when it was asked, and knows the leader.
    pub(crate) async fn rejoined(&self, n: usize) {
        let target = until("the others answer", async || {
            let all = self.statuses().await?;
            all.iter().map(|s| s.certified_index).max()
        })
        .await;
        until("the node has caught up", async || {
            let status = self.one(n).status().await.ok()?;
            (status.leader.is_some() && status.applied_index >= target).then_some(())
        })
        .await;
    }

    /// All nodes hold, apply and certify one log.
    pub(crate) async fn settled(&self) {
        until("all nodes hold and certify one log", async || {
            let all = self.statuses().await?;
            let last = all.iter().map(|s| s.last_index).max()?;
            all.iter().all(|s| s.applied_index == last && s.certified_index == last).then_some(())
        })
        .await;
    }
}

impl Drop for Nodes {
    fn drop(&mut self) {
        for child in self.children.iter_mut().flatten() {
            // Whatever a failed test left; a process that is gone already is no news.
            let _gone = child.kill();
            let _reaped = child.wait();
        }
    }
}
