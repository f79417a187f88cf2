//! `concordat serve` processes on loopback.

#![allow(dead_code, reason = "each of the tests that share it uses a part")]

use crate::ports::free_port;
use concordat::api::{Role, Status};
use concordat::client::{Client, Options};
use std::ffi::OsString;
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

/// Members, each a process of its own; killed when dropped.
pub(crate) struct Nodes {
    root: tempfile::TempDir,
    peers: Vec<String>,
    http: Vec<String>,
    children: Vec<Option<Child>>,
    /// What each process gets besides the environment of the test.
    pub(crate) environment: Vec<Vec<(&'static str, OsString)>>,
    /// What `serve` gets besides the usual; by node.
    pub(crate) arguments: Vec<Vec<OsString>>,
}

impl Nodes {
    /// As many members of policy `auto`, running and led.
    pub(crate) async fn start(count: usize) -> Self {
        let mut nodes = Self::prepare(&vec!["auto"; count]);
        nodes.run().await;
        nodes
    }

    /// Keys, stores and a genesis for members of these policies; nothing runs yet.
    pub(crate) fn prepare(policies: &[&str]) -> Self {
        Self::prepare_as(policies, &[])
    }

    /// As [`Nodes::prepare`], with more arguments for `genesis`.
    pub(crate) fn prepare_as(policies: &[&str], more: &[&str]) -> Self {
        let root = tempfile::tempdir().expect("a temporary directory");
        let address = |_: &&str| format!("127.0.0.1:{}", free_port());
        let (peers, http): (Vec<_>, Vec<_>) = policies.iter().map(|p| (address(p), address(p))).unzip();
        let mut genesis = program();
        genesis
            .args(["genesis", "--name", "test", "--quorum", "majority", "--out"])
            .arg(root.path().join("genesis.json"));
        for (n, (address, policy)) in peers.iter().zip(policies).enumerate() {
            let data = root.path().join(n.to_string());
            let init = program().args(["init", "--address", address, "--policy", policy, "--data"]).arg(&data).output();
            let made = init.expect("init runs");
            assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
            genesis.arg("--member").arg(data.join("member.json"));
        }
        let made = genesis.args(more).output().expect("genesis runs");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let children = peers.iter().map(|_| None).collect();
        let environment = peers.iter().map(|_| Vec::new()).collect();
        let arguments = peers.iter().map(|_| Vec::new()).collect();
        Self { root, peers, http, children, environment, arguments }
    }

    /// Makes one more member, that no table names yet; gives its number.
    pub(crate) fn add(&mut self) -> usize {
        let (n, peer) = (self.peers.len(), format!("127.0.0.1:{}", free_port()));
        let init = program().args(["init", "--address", &peer, "--data"]).arg(self.data(n)).output();
        let made = init.expect("init runs");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        self.peers.push(peer);
        self.http.push(format!("127.0.0.1:{}", free_port()));
        self.children.push(None);
        self.environment.push(Vec::new());
        self.arguments.push(Vec::new());
        n
    }

    /// Starts all and waits for a leader.
    pub(crate) async fn run(&mut self) {
        for n in 0..self.peers.len() {
            self.restart(n).await;
        }
        self.leader().await;
    }

    pub(crate) fn genesis(&self) -> PathBuf {
        self.root.path().join("genesis.json")
    }

    pub(crate) fn root(&self) -> &Path {
        self.root.path()
    }

    pub(crate) fn data(&self, n: usize) -> PathBuf {
        self.root.path().join(n.to_string())
    }

    /// What a node has logged so far.
    pub(crate) fn log(&self, n: usize) -> String {
        std::fs::read_to_string(self.root.path().join(format!("{n}.log"))).unwrap_or_default()
    }

    pub(crate) fn urls(&self) -> Vec<String> {
        self.http.iter().map(|a| format!("http://{a}")).collect()
    }

    pub(crate) fn client(&self) -> Client {
        let patience = Options { stream_patience: DEADLINE, ..Options::default() };
        Client::new(self.urls(), patience).expect("a client")
    }

    pub(crate) fn url(&self, n: usize) -> String {
        format!("http://{}", self.http[n])
    }

    pub(crate) fn one(&self, n: usize) -> Client {
        let short = Options { deadline: Duration::from_secs(2), ..Options::default() };
        Client::new([self.url(n)], short).expect("a client")
    }

    /// Starts a node and waits until it says that it is ready.
    pub(crate) async fn restart(&mut self, n: usize) {
        let log = std::fs::File::options().create(true).append(true).open(self.root.path().join(format!("{n}.log")));
        let mut child = program()
            .args(["serve", "--listen", &self.peers[n], "--http", &self.http[n], "--data"])
            .arg(self.data(n))
            .arg("--genesis")
            .arg(self.genesis())
            .args(&self.arguments[n])
            .envs(self.environment[n].iter().map(|(name, value)| (name, value)))
            .stdout(Stdio::piped())
            .stderr(log.expect("a log file"))
            .spawn()
            .expect("serve starts");
        let output = BufReader::new(child.stdout.take().expect("piped"));
        let first = tokio::task::spawn_blocking(move || output.lines().next());
        let first = tokio::time::timeout(DEADLINE, first).await.expect("serve answers").expect("no panic");
        assert!(matches!(&first, Some(Ok(line)) if line.starts_with("ready ")), "{first:?}\n{}", self.log(n));
        self.children[n] = Some(child);
    }

    /// `kill -9`.
    pub(crate) fn kill(&mut self, n: usize) {
        let mut child = self.children[n].take().expect("it runs");
        child.kill().expect("killed");
        child.wait().expect("reaped");
    }

    /// Waits until a node has ended by itself, and gives its exit code.
    pub(crate) async fn ended(&mut self, n: usize) -> Option<i32> {
        let mut child = self.children[n].take().expect("it runs");
        until("the node ends", async || child.try_wait().expect("it can be waited for")).await.code()
    }

    /// What the running nodes say, each with its number; `None` unless all answer.
    async fn statuses(&self) -> Option<Vec<(usize, Status)>> {
        let mut all = Vec::new();
        for (n, _) in self.children.iter().enumerate().filter(|(_, child)| child.is_some()) {
            all.push((n, self.one(n).status().await.ok()?));
        }
        Some(all)
    }

    /// The leader that all running nodes follow.
    pub(crate) async fn leader(&self) -> usize {
        until("all nodes follow one leader", async || {
            let all = self.statuses().await?;
            let (n, leader) = all.iter().find(|(_, s)| s.snapshot.role == Role::Leader)?;
            all.iter().all(|(_, s)| s.leader == Some(leader.id)).then_some(*n)
        })
        .await
    }

    /// The leader among some of the nodes.
    pub(crate) async fn leader_of(&self, some: &[usize]) -> usize {
        until("one of them leads", async || {
            for n in some {
                if self.one(*n).status().await.ok()?.snapshot.role == Role::Leader {
                    return Some(*n);
                }
            }
            None
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
            all.iter().map(|(_, s)| s.certified_index).max()
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
            let last = all.iter().map(|(_, s)| s.last_index).max()?;
            all.iter().all(|(_, s)| s.applied_index == last && s.certified_index == last).then_some(())
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
