//! `dev`, from nothing to an audited log, and what it leaves behind.

use crate::support::{Ran, program, run};
use serde_json::Value;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::mpsc;
use std::time::Duration;
use tempfile::tempdir;

/// The file that a node locks in its store.
const LOCK: &str = "lock";

/// Where the ports of a `dev` begin. It takes a few from there on, which those of other tests must not be.
fn free_port() -> String {
    let ports: Vec<u16> = (0..8).map(|_| crate::ports::free_port()).collect();
    ports[0].to_string()
}

fn once(dir: &Path, more: &[&str]) -> Ran {
    let mut arguments = vec!["dev", "--once", "--data", "d"];
    arguments.extend(more);
    run(dir, &arguments)
}

#[test]
fn dev_commits_audits_and_continues_from_the_same_data() {
    let dir = tempdir().unwrap();
    let first = once(dir.path(), &["--port", &free_port()]).succeeds();
    assert!(first.stdout.contains("imported   500 lines"), "{}", first.stdout);
    assert!(first.stdout.contains("500 certified") && !first.stdout.contains("already there"), "{}", first.stdout);
    assert!(first.stdout.contains("on every node"), "{}", first.stdout);

    let second = once(dir.path(), &[]).succeeds();
    assert!(second.stdout.contains("500 already there"), "{}", second.stdout);

    // The stopped nodes' stores pass the same audit, and hold each line once.
    for node in ["d/n1", "d/n2", "d/n3"] {
        let audit = run(dir.path(), &["--json", "audit", "--genesis", "d/genesis.json", "--data", node]).succeeds();
        let audit: Value = serde_json::from_str(&audit.stdout).unwrap();
        assert_eq!(audit["summary"]["proposals"], 500, "{audit}");
    }
    // Another cluster's genesis is refused, by the audit and by the node.
    let other = tempdir().unwrap();
    crate::support::three(other.path());
    let genesis = other.path().join("genesis.json");
    let genesis = genesis.to_str().unwrap();
    run(dir.path(), &["audit", "--genesis", genesis, "--data", "d/n1"]).fails_with(&["belongs to the cluster \"dev\""]);
    let serve = ["serve", "--data", "d/n1", "--genesis", genesis, "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"];
    run(dir.path(), &serve).fails_with(&["cannot start the node"]);
}

#[test]
fn a_file_of_good_and_bad_lines_gets_one_outcome_each() {
    let dir = tempdir().unwrap();
    let mut dev = Dev::start(dir.path());
    let file = dir.path().join("updates.jsonl");
    let agent = r#"{"op":"register","agent":{"agent_id":"a","display_name":"A","endpoint":"http://a"}}"#;
    let lines = [
        agent,
        r#"{"op":"set_status","agent_id":"a","status":"busy"}"#,
        "not json",
        r#"{"op":"set_status","agent_id":"a","status":"asleep"}"#,
        r#"{"op":"deregister","agent_id":"a"}"#,
        r#"{"any":"thing"}"#,
    ];
    fs::write(&file, lines.join("\n")).unwrap();
    let propose = ["propose", "--file", "updates.jsonl", "--concurrency", "4"];
    let ran = dev.run(dir.path(), &propose).fails_with(&["2 of 6 lines failed"]);
    let mut outcomes: Vec<Value> = ran.stdout.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    outcomes.sort_by_key(|o| o["line"].as_u64());
    let states: Vec<&str> = outcomes.iter().map(|o| o["state"].as_str().unwrap()).collect();
    assert_eq!(states, ["certified", "certified", "refused", "refused", "certified", "certified"]);
    let results: Vec<&str> = [0, 1, 4, 5].iter().map(|&i| outcomes[i]["outcome"]["result"].as_str().unwrap()).collect();
    assert_eq!(results, ["registered", "status_set", "deregistered", "opaque"]);

    // Again: the same indexes, nothing new.
    let again = dev.run(dir.path(), &propose).fails_with(&["2 of 6 lines failed"]);
    for line in again.stdout.lines().map(|l| serde_json::from_str::<Value>(l).unwrap()) {
        let first = &outcomes[usize::try_from(line["line"].as_u64().unwrap()).unwrap() - 1];
        assert_eq!((&line["state"], &line["index"]), (&first["state"], &first["index"]));
        assert!(line["repeated"] == true || line["state"] == "refused", "{line}");
    }

    let index = outcomes[0]["index"].to_string();
    dev.run(dir.path(), &["receipt", &index, "--out", "r.json"]).succeeds();
    run(dir.path(), &["verify", "--genesis", "d/genesis.json", "r.json"]).succeeds();
    let history = dev.run(dir.path(), &["--json", "history", "agent", "a"]).succeeds();
    assert_eq!(history.stdout.lines().count(), 3);
    dev.run(dir.path(), &["get", "agent", "a"]).fails_with(&["agent"]);
    let audit = dev.run(dir.path(), &["audit", "--genesis", "d/genesis.json"]).succeeds();
    assert!(audit.stdout.contains("certified  "), "{}", audit.stdout);
    dev.kill();
}

#[test]
fn nodes_end_with_a_dev_that_was_killed_outright() {
    let dir = tempdir().unwrap();
    let mut dev = Dev::start(dir.path());
    dev.kill();
    // A node holds its store's lock as long as it lives.
    for node in ["d/n1", "d/n2", "d/n3"] {
        let lock = fs::File::open(dir.path().join(node).join("store").join(LOCK)).unwrap();
        let (released, wait) = mpsc::channel();
        std::thread::spawn(move || released.send(lock.lock()));
        wait.recv_timeout(Duration::from_secs(60)).unwrap_or_else(|_| panic!("{node} outlived its parent")).unwrap();
    }
}

/// A `dev` that serves.
pub(crate) struct Dev {
    child: Child,
    nodes: String,
}

impl Dev {
    pub(crate) fn start(dir: &Path) -> Self {
        fs::write(dir.join("one.jsonl"), "{\"first\":1}\n").unwrap();
        let mut child = program()
            .current_dir(dir)
            .args(["dev", "--data", "d", "--import", "one.jsonl", "--port", &free_port()])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let mut nodes = String::new();
        let mut lines = stdout.lines().map(Result::unwrap);
        for line in lines.by_ref() {
            if let Some((_, rest)) = line.split_once("CONCORDAT_NODES=") {
                nodes = rest.trim_end_matches("):").to_owned();
                break;
            }
        }
        assert!(!nodes.is_empty(), "dev ended before its summary; see {}", dir.join("d/n1.log").display());
        // Read on, or dev would end because nobody reads what it prints.
        std::thread::spawn(move || lines.for_each(drop));
        Self { child, nodes }
    }

    pub(crate) fn first_node(&self) -> &str {
        self.nodes.split(',').next().unwrap()
    }

    pub(crate) fn run(&self, dir: &Path, arguments: &[&str]) -> Ran {
        let output = program().current_dir(dir).env("CONCORDAT_NODES", &self.nodes).args(arguments).output().unwrap();
        Ran::of(&output)
    }

    fn kill(&mut self) {
        // Already gone is as good.
        let _ = self.child.kill();
        self.child.wait().unwrap();
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        self.kill();
    }
}
