//! `dev`, from nothing to an audited log, and what it leaves behind.

use crate::support::{Lines, Ran, program, run};
use concordat::core::Write;
use concordat::storage::{STORE_DIR, Store};
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, mpsc};
use std::time::Duration;
use tempfile::tempdir;

/// The file that a node locks in its store.
const LOCK: &str = "lock";

/// Where the three peer ports of a `dev` begin. They are taken together, or another test's node could sit on one of them
/// while a killed node is away.
fn free_port() -> String {
    let [base, _, _] = [(); 3].map(|()| crate::ports::free_port());
    base.to_string()
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

/// Puts another aggregate signature into the newest head certificate of a stopped node's store.
fn forge_certificate(data: &Path) {
    let (store, recovered) = Store::open(&data.join(STORE_DIR)).unwrap();
    let newest = recovered.restored.certificate.expect("the log is certified");
    let other = store.certificates(0, 1).unwrap().remove(0);
    assert_ne!(newest.head, other.head);
    let mut forged = (*newest).clone();
    forged.halves[0].aggregate = other.halves[0].aggregate;
    let (done, wait) = mpsc::channel();
    let committer = store.start(move |written| done.send(written).unwrap());
    committer.submit(1, Write { certificate: Some(Arc::new(forged)), ..Write::default() }).unwrap();
    wait.recv().unwrap().unwrap();
    committer.close();
}

#[test]
fn dev_once_fails_when_the_audit_of_any_node_finds_a_flaw() {
    let dir = tempdir().unwrap();
    fs::write(dir.path().join("one.jsonl"), "{\"first\":1}\n").unwrap();
    let import = ["--import", "one.jsonl"];
    once(dir.path(), &[&import[..], &["--port", &free_port()]].concat()).succeeds();
    forge_certificate(&dir.path().join("d/n2"));
    let ran = once(dir.path(), &import).fails_with(&["n2: FLAW: ", "certificate"]);
    assert!(!ran.stdout.contains("audited"), "{}", ran.stdout);
}

#[test]
fn a_node_of_dev_that_was_killed_is_started_again() {
    let dir = tempdir().unwrap();
    let mut dev = Dev::start(dir.path());
    let row = dev.summary.iter().find(|line| line.contains("  leader ")).expect("a row for the leader").clone();
    let [name, _, url, _, pid, ..] = row.split_whitespace().collect::<Vec<_>>()[..] else { panic!("{row}") };
    assert!(Command::new("kill").args(["-9", pid]).status().unwrap().success());
    dev.lines.says(&format!("{name} is back"));
    let told = run(dir.path(), &["--json", "--node", url, "get", "entry", "2"]).succeeds().stdout;
    assert_eq!(serde_json::from_str::<Value>(&told).unwrap()["payload"]["first"], 1, "what it had committed is there");
    run(dir.path(), &["--node", url, "propose", "{\"second\":2}"]).succeeds();
}

/// A `dev` that serves.
pub(crate) struct Dev {
    lines: Lines,
    summary: Vec<String>,
    nodes: String,
}

impl Dev {
    pub(crate) fn start(dir: &Path) -> Self {
        fs::write(dir.join("one.jsonl"), "{\"first\":1}\n").unwrap();
        let child = program()
            .current_dir(dir)
            .args(["dev", "--data", "d", "--import", "one.jsonl", "--port", &free_port()])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = Lines::of(child);
        let mut summary = Vec::new();
        let nodes = loop {
            let line = lines.next();
            if let Some((_, rest)) = line.split_once("CONCORDAT_NODES=") {
                break rest.trim_end_matches("):").to_owned();
            }
            summary.push(line);
        };
        Self { lines, summary, nodes }
    }

    pub(crate) fn first_node(&self) -> &str {
        self.nodes.split(',').next().unwrap()
    }

    pub(crate) fn run(&self, dir: &Path, arguments: &[&str]) -> Ran {
        let output = program().current_dir(dir).env("CONCORDAT_NODES", &self.nodes).args(arguments).output().unwrap();
        Ran::of(&output)
    }

    fn kill(&mut self) {
        self.lines.kill();
    }
}
