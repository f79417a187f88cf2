//! Three `serve` processes, and their end: closing a child's stdin stops it, so that even a parent killed outright
//! leaves none behind.

use super::super::Failure;
use super::layout::{Layout, NODES};
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use std::fs::OpenOptions;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, ChildStdin, Command};

/// How long a node may take to open its store and listen.
const START: Duration = Duration::from_secs(60);
/// How long a node may take to stop before it is killed.
const STOP: Duration = Duration::from_secs(15);
/// Pause before a killed node is started again, so that its absence can be seen.
const RESTART: Duration = Duration::from_secs(2);

pub(super) struct Cluster<'a> {
    layout: &'a Layout,
    nodes: Vec<Node>,
}

struct Node {
    child: Child,
    /// Held open as long as the node shall run. Apart from `child`, because waiting for a child closes its stdin.
    stdin: Option<ChildStdin>,
}

impl<'a> Cluster<'a> {
    /// Starts all nodes and waits until each says that it is ready. When one does not, the others are stopped.
    pub(super) async fn start(layout: &'a Layout) -> Result<Self, Failure> {
        let mut cluster = Self { layout, nodes: Vec::new() };
        for node in 0..NODES {
            cluster.nodes.push(spawn(layout, node)?);
        }
        for (at, node) in cluster.nodes.iter_mut().enumerate() {
            if let Err(failure) = until_ready(layout, at, &mut node.child).await {
                cluster.stop().await;
                return Err(failure);
            }
        }
        Ok(cluster)
    }

    /// The process ids.
    pub(super) fn pids(&self) -> Vec<Option<u32>> {
        self.nodes.iter().map(|node| node.child.id()).collect()
    }

    /// Watches over the nodes for ever. One that was killed is started again; one that stopped by itself said why, and
    /// is left alone. Cancel-safe: the next call sees again what this one did not finish.
    pub(super) async fn supervise(&mut self) -> Failure {
        let mut given_up = [false; NODES];
        loop {
            let (node, status) = {
                let mut exits: FuturesUnordered<_> = self
                    .nodes
                    .iter_mut()
                    .enumerate()
                    .filter(|(at, _)| !given_up.get(*at).copied().unwrap_or(true))
                    .map(|(at, node)| async move { (at, node.child.wait().await) })
                    .collect();
                match exits.next().await {
                    Some(exit) => exit,
                    None => return Failure::new("all nodes have stopped"),
                }
            };
            let name = format!("n{}", node + 1);
            match status {
                Ok(status) if status.signal().is_some() => {
                    eprintln!("{name} was killed; starting it again in {} s", RESTART.as_secs());
                    tokio::time::sleep(RESTART).await;
                    match self.restart(node).await {
                        Ok(()) => eprintln!("{name} is back"),
                        Err(failure) => {
                            failure.print();
                            given_up[node] = true;
                        }
                    }
                }
                Ok(status) => {
                    stopped(self.layout, node, status).print();
                    given_up[node] = true;
                }
                Err(e) => return Failure::new(format!("cannot watch {name}: {e}")),
            }
        }
    }

    async fn restart(&mut self, node: usize) -> Result<(), Failure> {
        let mut started = spawn(self.layout, node)?;
        until_ready(self.layout, node, &mut started.child).await?;
        self.nodes[node] = started;
        Ok(())
    }

    /// Stops every node cleanly; one that does not stop in time is killed.
    pub(super) async fn stop(mut self) {
        for node in &mut self.nodes {
            drop(node.stdin.take());
        }
        for (at, node) in self.nodes.iter_mut().enumerate() {
            if tokio::time::timeout(STOP, node.child.wait()).await.is_err() {
                eprintln!("n{} did not stop within {} s and is killed", at + 1, STOP.as_secs());
                if let Err(e) = node.child.kill().await {
                    eprintln!("n{} cannot be killed: {e}", at + 1);
                }
            }
        }
    }
}

fn spawn(layout: &Layout, node: usize) -> Result<Node, Failure> {
    let fail = |e| Failure::new(format!("cannot start n{}: {e}", node + 1));
    let program = std::env::current_exe().map_err(fail)?;
    let log = OpenOptions::new().create(true).append(true).open(layout.log(node)).map_err(fail)?;
    let Some(ports) = layout.members.get(node) else { return Err(Failure::new(format!("there is no n{}", node + 1))) };
    let mut child = Command::new(program)
        .arg("serve")
        .arg("--data")
        .arg(layout.data(node))
        .arg("--genesis")
        .arg(layout.genesis_path())
        .args(["--listen", &ports.peer_address().to_string(), "--http", &ports.http_address().to_string()])
        .arg("--exit-with-stdin")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(log)
        // A group of its own: Ctrl-C reaches this process alone, which then stops the nodes in order.
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(fail)?;
    Ok(Node { stdin: child.stdin.take(), child })
}

async fn until_ready(layout: &Layout, node: usize, child: &mut Child) -> Result<(), Failure> {
    let name = format!("n{}", node + 1);
    let Some(stdout) = child.stdout.take() else { return Err(Failure::new(format!("{name} has no stdout"))) };
    let mut lines = BufReader::new(stdout).lines();
    match tokio::time::timeout(START, lines.next_line()).await {
        Ok(Ok(Some(line))) if line.starts_with("ready ") => Ok(()),
        Ok(Ok(Some(line))) => Err(Failure::new(format!("{name} said {line:?} instead of being ready"))),
        Ok(Ok(None)) => match child.wait().await {
            Ok(status) => Err(stopped(layout, node, status)),
            Err(e) => Err(Failure::new(format!("cannot watch {name}: {e}"))),
        },
        Ok(Err(e)) => Err(Failure::new(format!("cannot read what {name} says: {e}"))),
        Err(_) => Err(Failure::new(format!("{name} is not ready after {} s", START.as_secs()))
            .hint(format!("its log is {}", layout.log(node).display()))),
    }
}

/// A node that stopped by itself, with the last line of its log, which says why.
fn stopped(layout: &Layout, node: usize, status: ExitStatus) -> Failure {
    let path = layout.log(node);
    let log = std::fs::read(&path).unwrap_or_default();
    let log = String::from_utf8_lossy(&log);
    let last = log.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("it logged nothing");
    Failure::new(format!("n{} stopped ({status}): {last}", node + 1)).hint(format!("its log is {}", path.display()))
}
