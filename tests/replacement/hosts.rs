//! Nodes as processes, each on loopback or on a host of its own: a network namespace with an address on a common bridge,
//! whose cable can be pulled. Everything is asked of a node through the command line, from its own host.

use crate::ports::free_port;
use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// How long any condition may take before the test fails: far beyond what a loaded machine needs.
const DEADLINE: Duration = Duration::from_secs(180);

/// Waits for a condition with a deadline. Looks by running a process, which is pause enough.
#[expect(clippy::disallowed_methods, reason = "a test's deadline")]
pub(crate) fn until<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + DEADLINE;
    loop {
        if let Some(found) = condition() {
            return found;
        }
        assert!(Instant::now() < end, "within {DEADLINE:?}: {what}");
    }
}

fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().expect("the program runs");
    let why = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {}: {why}", arguments.join(" "));
}

/// Network namespaces on one bridge.
struct Network {
    /// Distinguishes what this run made from whatever else there is.
    tag: String,
    hosts: Mutex<Vec<String>>,
}

impl Network {
    fn new() -> Self {
        let tag = format!("cc{}", std::process::id() % 10_000);
        run("ip", &["link", "add", &format!("{tag}br"), "type", "bridge"]);
        run("ip", &["link", "set", &format!("{tag}br"), "up"]);
        Self { tag, hosts: Mutex::default() }
    }

    fn host(&self, n: usize) -> String {
        format!("{}h{n}", self.tag)
    }

    /// The end of a host's cable that lies on the bridge.
    fn cable(&self, n: usize) -> String {
        format!("{}v{n}", self.tag)
    }

    fn address(n: usize) -> String {
        format!("10.77.7.{}", n + 1)
    }

    fn add_host(&self, n: usize) {
        let (host, cable, inner) = (self.host(n), self.cable(n), format!("{}i{n}", self.tag));
        run("ip", &["netns", "add", &host]);
        self.hosts.lock().expect("no panic").push(host.clone());
        run("ip", &["link", "add", &cable, "type", "veth", "peer", "name", &inner, "netns", &host]);
        run("ip", &["link", "set", &cable, "master", &format!("{}br", self.tag), "up"]);
        run("ip", &["-n", &host, "addr", "add", &format!("{}/24", Self::address(n)), "dev", &inner]);
        run("ip", &["-n", &host, "link", "set", &inner, "up"]);
        run("ip", &["-n", &host, "link", "set", "lo", "up"]);
    }

    fn connect(&self, n: usize, up: bool) {
        run("ip", &["link", "set", &self.cable(n), if up { "up" } else { "down" }]);
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        // What is gone already is no news.
        for host in self.hosts.lock().expect("no panic").iter() {
            let _gone = Command::new("ip").args(["netns", "del", host]).output();
        }
        let _gone = Command::new("ip").args(["link", "del", &format!("{}br", self.tag)]).output();
    }
}

struct Node {
    peers: String,
    http: String,
    child: Mutex<Option<Child>>,
}

/// The nodes of one cluster, old and new.
pub(crate) struct Hosts {
    root: tempfile::TempDir,
    network: Option<Network>,
    nodes: Vec<Node>,
}

impl Hosts {
    pub(crate) fn new(namespaces: bool) -> Self {
        let root = tempfile::tempdir().expect("a temporary directory");
        Self { root, network: namespaces.then(Network::new), nodes: Vec::new() }
    }

    /// Makes a node's keys and store, on a host of its own if hosts are told apart.
    pub(crate) fn init(&mut self) -> usize {
        let n = self.nodes.len();
        let (peers, http) = match &self.network {
            None => (format!("127.0.0.1:{}", free_port()), format!("127.0.0.1:{}", free_port())),
            Some(network) => {
                network.add_host(n);
                (format!("{}:7001", Network::address(n)), "127.0.0.1:7101".into())
            }
        };
        let data = self.data(n);
        let made = program().args(["init", "--address", &peers, "--data"]).arg(data).output().expect("init runs");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        self.nodes.push(Node { peers, http, child: Mutex::default() });
        n
    }

    pub(crate) fn make_genesis(&self) {
        let mut genesis = program();
        genesis.args(["genesis", "--name", "test", "--quorum", "majority", "--out"]).arg(self.genesis());
        for n in 0..self.nodes.len() {
            genesis.arg("--member").arg(self.data(n).join("member.json"));
        }
        assert!(genesis.output().expect("genesis runs").status.success());
    }

    pub(crate) fn genesis(&self) -> PathBuf {
        self.root.path().join("genesis.json")
    }

    pub(crate) fn data(&self, n: usize) -> PathBuf {
        self.root.path().join(n.to_string())
    }

    pub(crate) fn member_file(&self, n: usize) -> String {
        self.data(n).join("member.json").display().to_string()
    }

    /// The program, on a node's host.
    fn on_host(&self, n: usize) -> Command {
        let Some(network) = &self.network else { return program() };
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &network.host(n), env!("CARGO_BIN_EXE_concordat")]);
        command.env_remove("CONCORDAT_NODES").env_remove("RUST_LOG");
        command
    }

    /// Starts a node and waits until it says that it is ready.
    pub(crate) fn start(&self, n: usize, more: &[&str]) {
        let log = self.root.path().join(format!("{n}.log"));
        let log = std::fs::File::options().create(true).append(true).open(log).expect("a log file");
        let node = &self.nodes[n];
        let mut child = self
            .on_host(n)
            .args(["serve", "--listen", &node.peers, "--http", &node.http, "--data"])
            .arg(self.data(n))
            .arg("--genesis")
            .arg(self.genesis())
            .args(more)
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .expect("serve starts");
        let first = BufReader::new(child.stdout.take().expect("piped")).lines().next();
        assert!(matches!(&first, Some(Ok(line)) if line.starts_with("ready ")), "{first:?}\n{}", self.log(n));
        *node.child.lock().expect("no panic") = Some(child);
    }

    /// Runs a node that is expected not to start.
    pub(crate) fn serve(&self, n: usize) -> Output {
        let node = &self.nodes[n];
        let mut serve = self.on_host(n);
        serve.args(["serve", "--listen", &node.peers, "--http", &node.http, "--data"]).arg(self.data(n));
        serve.arg("--genesis").arg(self.genesis()).output().expect("serve runs")
    }

    pub(crate) fn log(&self, n: usize) -> String {
        std::fs::read_to_string(self.root.path().join(format!("{n}.log"))).unwrap_or_default()
    }

    /// `kill -9`, or SIGTERM and its end.
    pub(crate) fn stop(&self, n: usize, outright: bool) {
        let mut child = self.nodes[n].child.lock().expect("no panic").take().expect("it runs");
        if outright {
            child.kill().expect("killed");
            child.wait().expect("reaped");
            return;
        }
        run("kill", &["-TERM", &child.id().to_string()]);
        let status = child.wait().expect("reaped");
        assert!(status.success(), "node {n} ended with {status}\n{}", self.log(n));
    }

    /// Pulls a node's cable out, or puts it in again; says whether there is one. On loopback there is none.
    pub(crate) fn connect(&self, n: usize, up: bool) -> bool {
        if let Some(network) = &self.network {
            network.connect(n, up);
        }
        self.network.is_some()
    }

    /// Runs a command of the command line against one node, from its host.
    pub(crate) fn ask(&self, n: usize, arguments: &[&str]) -> Output {
        let node = format!("http://{}", self.nodes[n].http);
        self.on_host(n).args(["--json", "--node", &node]).args(arguments).output().expect("the command runs")
    }

    /// As [`Hosts::ask`]; the answer as JSON, when there is one.
    pub(crate) fn told(&self, n: usize, arguments: &[&str]) -> Option<Value> {
        let output = self.ask(n, arguments);
        if !output.status.success() {
            return None;
        }
        serde_json::from_slice(&output.stdout).ok()
    }

    pub(crate) fn status(&self, n: usize) -> Option<Value> {
        self.told(n, &["status"])
    }
}

fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_concordat"));
    command.env_remove("CONCORDAT_NODES").env_remove("RUST_LOG");
    command
}

impl Drop for Hosts {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for n in 0..self.nodes.len() {
                let log = self.log(n);
                let tail: Vec<&str> = log.lines().rev().take(15).collect();
                eprintln!("node {n}:\n{}", tail.into_iter().rev().collect::<Vec<_>>().join("\n"));
            }
        }
        for node in &mut self.nodes {
            if let Some(child) = node.child.get_mut().expect("no panic") {
                // Whatever a failed test left; a process that is gone already is no news.
                let _gone = child.kill();
                let _reaped = child.wait();
            }
        }
    }
}
