//! The main job as it is run for real: three `serve` processes, the whole file of registry updates, and `kill -9`.

#[path = "../support/nodes.rs"]
mod nodes;
#[path = "../support/ports.rs"]
mod ports;

use concordat::certificate::Kind;
use concordat::client::{self, Client, Page};
use concordat::ids::LogIndex;
use concordat::registry::{Agent, Outcome};
use futures::StreamExt;
use nodes::{Nodes, program};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

const UPDATES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/registry-updates.jsonl");
const LINES: usize = 5661;

/// By `agent/ID` or `config/KEY`, where the updates of each record were placed, in the order of the file.
fn places(outcomes: &[Value]) -> BTreeMap<String, Vec<LogIndex>> {
    let index = |o: &Value| Some((o["line"].as_u64()?, LogIndex(o["index"].as_u64()?)));
    let by_line: BTreeMap<u64, LogIndex> = outcomes.iter().filter_map(index).collect();
    let text = std::fs::read_to_string(UPDATES).expect("the fixture");
    let mut places: BTreeMap<String, Vec<LogIndex>> = BTreeMap::new();
    for (line, text) in (1..).zip(text.lines()) {
        let update: Value = serde_json::from_str(text).expect("JSON");
        let record = match (&update["key"], &update["agent_id"], &update["agent"]["agent_id"]) {
            (Value::String(key), _, _) => format!("config/{key}"),
            (_, Value::String(id), _) | (_, _, Value::String(id)) => format!("agent/{id}"),
            _ => panic!("an update of nothing: {text}"),
        };
        places.entry(record).or_default().push(by_line[&line]);
    }
    places
}

/// Agents by id and config by key, as applying the file line by line leaves them.
fn sequential_replay() -> (BTreeMap<String, Agent>, BTreeMap<String, Value>) {
    let (mut agents, mut config) = (BTreeMap::new(), BTreeMap::new());
    let text = std::fs::read_to_string(UPDATES).expect("the fixture");
    for line in text.lines() {
        let update: Value = serde_json::from_str(line).expect("JSON");
        match update["op"].as_str().expect("op") {
            "register" => {
                let agent: Agent = serde_json::from_value(update["agent"].clone()).expect("an agent");
                agents.insert(agent.agent_id.clone(), agent);
            }
            "deregister" => {
                agents.remove(update["agent_id"].as_str().expect("agent_id"));
            }
            "set_status" => {
                let agent = agents.get_mut(update["agent_id"].as_str().expect("agent_id")).expect("registered");
                agent.status = serde_json::from_value(update["status"].clone()).expect("a status");
            }
            "set_config" => {
                config.insert(update["key"].as_str().expect("key").to_owned(), update["value"].clone());
            }
            other => panic!("unknown operation {other}"),
        }
    }
    (agents, config)
}

/// Agents and config as a node has them, and the revision of each record.
async fn registry_of(node: &Client) -> (BTreeMap<String, Agent>, BTreeMap<String, Value>, BTreeMap<String, LogIndex>) {
    let (mut agents, mut revisions) = (BTreeMap::new(), BTreeMap::new());
    let mut from = Some(0);
    while let Some(offset) = from {
        let page = node.find(None, None, Page { from: offset, limit: 1000 }).await.expect("a page").answer;
        for record in page.agents {
            revisions.insert(format!("agent/{}", record.agent.agent_id), record.revision);
            agents.insert(record.agent.agent_id.clone(), record.agent);
        }
        from = page.next;
    }
    let mut config = BTreeMap::new();
    for view in node.configs(Page::default()).await.expect("config").answer.configs {
        revisions.insert(format!("config/{}", view.key), view.record.revision);
        config.insert(view.key, view.record.value);
    }
    (agents, config, revisions)
}

/// The history of every record is where its updates were placed, no more and no less, and its revision the last of them.
async fn changed_once_by_each_update(
    node: &Client,
    places: &BTreeMap<String, Vec<LogIndex>>,
    revisions: &BTreeMap<String, LogIndex>,
) {
    for (record, revision) in revisions {
        assert_eq!(Some(revision), places[record].last(), "the revision of {record}");
    }
    let mut histories = futures::stream::iter(places)
        .map(|(record, updates)| async move {
            let (kind, name) = record.split_once('/').expect("a kind and a name");
            let history = match kind {
                "agent" => node.agent_history(name, Page::default()).await,
                _ => node.config_history(name, Page::default()).await,
            };
            let entries = history.expect("a history").answer.entries;
            let indexes: Vec<LogIndex> = entries.iter().map(|e| e.index).collect();
            assert_eq!(&indexes, updates, "the history of {record}");
        })
        .buffer_unordered(16);
    while histories.next().await.is_some() {}
}

#[tokio::test(flavor = "multi_thread")]
async fn every_update_gets_one_outcome_while_leaders_and_followers_are_killed() {
    let mut nodes = Nodes::start(3).await;
    let all = nodes.client();

    // A reader that stays connected over all failovers.
    let mut stream = all.commits(LogIndex(1));
    let seen = Arc::new(Mutex::new(Vec::new()));
    let sees = seen.clone();
    let reader = tokio::spawn(async move {
        loop {
            let event = stream.next().await.expect("the stream does not end").expect("the stream does not fail");
            assert!(event.certificate.is_some());
            sees.lock().expect("no panic").push((event.index, event.outcome));
        }
    });

    // A copy: the importer notes its deadline beside the file.
    let copy = nodes.root().join("updates.jsonl");
    std::fs::copy(UPDATES, &copy).expect("copied");
    let mut command = program();
    command.args(["propose", "--concurrency", "64", "--json", "--patience", "120", "--file"]).arg(&copy);
    for url in nodes.urls() {
        command.args(["--node", &url]);
    }
    let mut import = command.stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn().expect("the importer starts");
    let output = BufReader::new(import.stdout.take().expect("piped"));
    let done = Arc::new(AtomicUsize::new(0));
    let counter = done.clone();
    let outcomes = std::thread::spawn(move || {
        let parse = |line: std::io::Result<String>| -> Value {
            serde_json::from_str(&line.expect("output")).expect("a line of JSON")
        };
        let mut outcomes = Vec::new();
        for outcome in output.lines().map(parse) {
            outcomes.push(outcome);
            counter.fetch_add(1, Ordering::Relaxed);
        }
        outcomes
    });

    // Three leaders and two followers, spread over the run, each after the last victim has rejoined.
    for (at, leader) in [(300, true), (1000, false), (1700, true), (2400, true), (3100, false)] {
        nodes::until("the import has come far enough", async || (done.load(Ordering::Relaxed) >= at).then_some(()))
            .await;
        let victim = nodes.pick(leader).await;
        assert!(done.load(Ordering::Relaxed) < LINES, "the import was over before line {at}'s victim was killed");
        nodes.kill(victim);
        nodes.restart(victim).await;
        nodes.rejoined(victim).await;
    }

    let status = tokio::task::spawn_blocking(move || import.wait()).await.expect("waited").expect("exit status");
    let outcomes = outcomes.join().expect("the outcomes are read");
    assert!(status.success(), "{status}");

    let numbers: BTreeSet<u64> = outcomes.iter().filter_map(|o| o["line"].as_u64()).collect();
    assert_eq!((outcomes.len(), numbers.len()), (LINES, LINES), "every line gets exactly one outcome");
    assert!(outcomes.iter().all(|o| o["state"] == "certified"), "no line is lost");
    let indexes: BTreeSet<u64> = outcomes.iter().filter_map(|o| o["index"].as_u64()).collect();
    assert_eq!(indexes.len(), LINES, "no two lines share an entry");

    nodes.settled().await;
    let proposals = proposals_of(&all).await;
    nodes::until("the reader sees the last commit", async || {
        assert!(!reader.is_finished(), "the reader goes on");
        (seen.lock().expect("no panic").last().map(|s| s.0) >= proposals.last().copied()).then_some(())
    })
    .await;
    let seen = seen.lock().expect("no panic").clone();
    let indexes: Vec<LogIndex> = seen.iter().map(|s| s.0).collect();
    assert_eq!(indexes, proposals, "the stream shows every index once, in order");
    // A line that was sent again after its leader died may stand in the log twice; it is applied once.
    let applied = seen.iter().filter(|s| !matches!(s.1, Outcome::Repeat { .. })).count();
    assert_eq!(applied, LINES, "no line is applied twice");

    let (agents, config) = sequential_replay();
    assert_eq!(agents.len(), 4818);
    let places = places(&outcomes);
    for node in all.each() {
        let (found, found_config, revisions) = registry_of(&node).await;
        assert!(found == agents, "{} agents at a node", found.len());
        assert_eq!(found_config, config);
        changed_once_by_each_update(&node, &places, &revisions).await;
        let status = node.status().await.expect("status");
        assert_eq!(status.certified_index, status.last_index, "every entry has a certificate");
    }
    for url in nodes.urls() {
        let audit = program().args(["audit", "--genesis"]).arg(nodes.genesis()).args(["--node", &url]).output();
        let audit = audit.expect("the auditor runs");
        assert!(
            audit.status.success(),
            "{}{}",
            String::from_utf8_lossy(&audit.stdout),
            String::from_utf8_lossy(&audit.stderr)
        );
    }
    verify_receipts(&nodes, &all, &outcomes).await;
}

/// The indexes of all `Proposal` entries.
async fn proposals_of(node: &Client) -> Vec<LogIndex> {
    let (mut found, mut from) = (Vec::new(), Some(LogIndex(1)));
    while let Some(next) = from {
        let page = node.entries(next, 1000).await.expect("a page of entries");
        found.extend(page.entries.iter().filter(|e| e.kind == Kind::Proposal).map(|e| e.index));
        from = page.next;
    }
    found
}

/// Receipts of the run, good and tampered, against the independent verifier.
async fn verify_receipts(nodes: &Nodes, all: &Client, outcomes: &[Value]) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let verify = concat!(env!("CARGO_MANIFEST_DIR"), "/ops/verify_receipt.py");
    let run = |file: &std::path::Path| {
        let output = std::process::Command::new("python3").arg(verify).arg(nodes.genesis()).arg(file).output();
        output.expect("python3 runs").status.success()
    };
    for outcome in [&outcomes[0], &outcomes[LINES / 2], &outcomes[LINES - 1]] {
        let index = LogIndex(outcome["index"].as_u64().expect("an index"));
        let bytes = all.receipt(index).await.expect("a receipt").to_vec();
        let (good, bad) = (dir.path().join("good.bin"), dir.path().join("bad.bin"));
        let mut tampered = bytes.clone();
        let middle = tampered.len() / 2;
        tampered[middle] ^= 1;
        std::fs::write(&good, &bytes).expect("written");
        std::fs::write(&bad, &tampered).expect("written");
        assert!(
            run(&good),
            "entry {index}: the independent verifier accepts it (it needs `pip install py_ecc==8.0.0`)"
        );
        assert!(!run(&bad), "entry {index}: the independent verifier refuses a changed bit");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_killed_and_restarted_serves_what_it_had_acknowledged() {
    let mut nodes = Nodes::start(3).await;
    let all = Client::new(nodes.urls(), client::Options::default()).expect("a client");
    let mut last = LogIndex::ZERO;
    for n in 0..3 {
        let propose = concordat::api::Propose::new(serde_json::json!({"op": "set_config", "key": "k", "value": n}));
        last = all.propose_with(propose).await.expect("certified").index.expect("placed");
        let victim = nodes.pick(false).await;
        nodes.kill(victim);
        nodes.restart(victim).await;
        nodes.rejoined(victim).await;
    }
    for node in all.each() {
        let record = node.config("k").await.expect("the key");
        assert_eq!((record.answer.record.value, record.answer.record.revision), (serde_json::json!(2), last));
    }
}
