//! Commands that ask and change a running node, in text and as JSON.

use crate::nodes::Nodes;
use crate::support::{Lines, Ran, program, run};
use serde_json::Value;
use std::io::Write as _;
use std::process::{Child, Command, Stdio};

const AGENT: &str = r#"{"op":"register","agent":{"agent_id":"a","display_name":"A","endpoint":"http://a","capabilities":[{"tag":"search"}]}}"#;
const BUSY: &str = r#"{"op":"set_status","agent_id":"a","status":"busy"}"#;
const CONFIG: &str = r#"{"op":"set_config","key":"k","value":{"x":1}}"#;

/// One member that is a cluster of its own.
async fn alone(policy: &str) -> Nodes {
    let mut nodes = Nodes::prepare(&[policy]);
    nodes.run().await;
    nodes
}

fn command(nodes: &Nodes, arguments: &[&str]) -> Command {
    let mut command = program();
    command.current_dir(nodes.root()).args(["--node", &nodes.url(0)]).args(arguments);
    command
}

fn text(nodes: &Nodes, arguments: &[&str]) -> String {
    Ran::of(&command(nodes, arguments).output().unwrap()).succeeds().stdout
}

/// The lines that a command prints with `--json`.
fn json(nodes: &Nodes, arguments: &[&str]) -> Vec<Value> {
    text(nodes, &[&["--json"], arguments].concat()).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The one line that a command prints with `--json`.
fn object(nodes: &Nodes, arguments: &[&str]) -> Value {
    let mut lines = json(nodes, arguments);
    assert_eq!(lines.len(), 1, "{lines:?}");
    lines.remove(0)
}

fn spawn(mut command: Command) -> Child {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn propose_takes_a_payload_from_its_argument_or_stdin_and_says_what_became_of_it() {
    let nodes = alone("auto").await;
    let told = text(&nodes, &["propose", AGENT]);
    let lines: Vec<&str> = told.lines().collect();
    assert!(lines[0].starts_with("certified as entry ") && lines[0].ends_with(": registered"), "{told}");
    assert!(lines[1].starts_with("proposal ") && lines[2].ends_with(" of cli"), "{told}");

    let mut from_stdin = spawn(command(&nodes, &["--json", "propose", "-", "--request-id", "once"]));
    from_stdin.stdin.take().unwrap().write_all(CONFIG.as_bytes()).unwrap();
    let ran = Ran::of(&from_stdin.wait_with_output().unwrap()).succeeds();
    let told: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!((&told["state"], &told["outcome"]["result"]), (&"certified".into(), &"config_set".into()), "{told}");
    assert_eq!((&told["client"], &told["request_id"]), (&"cli".into(), &"once".into()));

    let again = text(&nodes, &["propose", CONFIG, "--request-id", "once"]);
    let first =
        format!("certified as entry {}: config set (a repeat: this is the outcome of the first)", told["index"]);
    assert_eq!(again.lines().next(), Some(&*first));
    assert_eq!(object(&nodes, &["propose", CONFIG, "--request-id", "once"])["repeated"], true);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_committed_is_found_by_get_find_history_and_status() {
    let nodes = alone("auto").await;
    let [registered, busy, config] = [AGENT, BUSY, CONFIG].map(|payload| object(&nodes, &["propose", payload]));
    let at = |status: &Value| status["index"].as_u64().unwrap();

    let told = text(&nodes, &["get", "agent", "a"]);
    assert!(told.contains(r#""status": "busy""#) && told.contains(&format!("\nrevision {}\n", at(&busy))), "{told}");
    let told = object(&nodes, &["get", "agent", "a"]);
    assert_eq!((&told["agent"]["endpoint"], &told["revision"]), (&"http://a".into(), &busy["index"]), "{told}");

    let told = text(&nodes, &["get", "config", "k"]);
    assert!(told.starts_with(&format!("k = {{\"x\":1}}  (revision {})\nas of entry ", at(&config))), "{told}");
    let told = object(&nodes, &["get", "config", "k"]);
    assert_eq!((&told["value"]["x"], &told["revision"]), (&1.into(), &config["index"]), "{told}");

    let index = at(&config).to_string();
    let told = text(&nodes, &["get", "entry", &index]);
    assert!(told.starts_with(&format!("entry      {index} (proposal), term ")), "{told}");
    assert!(told.contains(r#"payload    {"key":"k","op":"set_config","value":{"x":1}}"#), "{told}");
    let told = object(&nodes, &["get", "entry", &index]);
    assert_eq!((&told["index"], &told["payload"]["key"]), (&config["index"], &"k".into()), "{told}");

    let id = busy["id"].as_str().unwrap();
    let told = text(&nodes, &["get", "proposal", id]);
    assert!(told.starts_with(&format!("certified as entry {}: status set\nproposal {id}\n", at(&busy))), "{told}");
    assert_eq!(object(&nodes, &["get", "proposal", id])["index"], busy["index"]);

    let told = text(&nodes, &["find", "--capability", "search", "--status", "busy"]);
    let lines: Vec<&str> = told.lines().collect();
    assert!(lines[0].starts_with("AGENT  STATUS") && lines[1].starts_with("a      busy"), "{told}");
    assert!(lines[2].starts_with("1 agents, as of entry "), "{told}");
    assert_eq!(object(&nodes, &["find", "--capability", "search"])["agent"]["agent_id"], "a");
    assert!(text(&nodes, &["find", "--status", "offline"]).starts_with("0 agents, as of entry "));
    assert_eq!(json(&nodes, &["find", "--capability", "plan"]), Vec::<Value>::new());

    let told = text(&nodes, &["history", "agent", "a"]);
    let lines: Vec<&str> = told.lines().collect();
    assert_eq!(lines.len(), 2, "{told}");
    assert!(lines[0].starts_with(&format!("{}  2", at(&registered))) && lines[0].contains("register"), "{told}");
    assert!(lines[1].starts_with(&format!("{}  2", at(&busy))) && lines[1].contains("set_status"), "{told}");
    let told = json(&nodes, &["history", "agent", "a"]);
    assert_eq!([&told[0]["index"], &told[1]["index"]], [&registered["index"], &busy["index"]]);
    assert_eq!(object(&nodes, &["history", "config", "k"])["index"], config["index"]);

    let told = text(&nodes, &["status"]);
    let status = object(&nodes, &["status"]);
    let node = format!("node       {} (leader), concordat ", status["id"].as_str().unwrap());
    assert!(told.starts_with(&node) && told.contains("\nleader     this node, term "), "{told}");
    assert!(told.contains("\nproposals  3 committed, 0 aborted, 0 pending here\n"), "{told}");
    assert_eq!((&status["role"], &status["certified_index"]), (&"leader".into(), &config["index"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receipt_is_fetched_by_index_or_proposal_and_verifies_offline() {
    let nodes = alone("auto").await;
    let proposed = object(&nodes, &["propose", CONFIG]);
    let (index, id) = (proposed["index"].to_string(), proposed["id"].as_str().unwrap());
    std::fs::write(nodes.root().join("printed.json"), text(&nodes, &["receipt", &index])).unwrap();
    let ran = Ran::of(&command(&nodes, &["receipt", id, "--out", "saved.json"]).output().unwrap()).succeeds();
    assert!(ran.stdout.is_empty() && ran.stderr.starts_with("wrote the receipt of proposal "), "{}", ran.stderr);

    let verify = ["verify", "--genesis", "genesis.json", "printed.json", "saved.json"];
    let told = run(nodes.root(), &verify).succeeds().stdout;
    assert_eq!(told.matches(&format!("entry {index} (proposal)")).count(), 2, "{told}");
    for line in run(nodes.root(), &[&["--json"], &verify[..]].concat()).succeeds().stdout.lines() {
        let told: Value = serde_json::from_str(line).unwrap();
        assert_eq!((&told["verified"], &told["certificate"]["index"]), (&true.into(), &proposed["index"]), "{told}");
    }
}

/// `watch` in both forms.
fn watch(nodes: &Nodes, stream: &[&str]) -> [Lines; 2] {
    let of = |form: &[&str]| Lines::of(spawn(command(nodes, &[form, &["watch"], stream].concat())));
    [of(&[]), of(&["--json"])]
}

/// The next line of both forms.
fn next([text, json]: &mut [Lines; 2]) -> (String, Value) {
    (text.next(), serde_json::from_str(&json.next()).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn watch_shows_ballots_votes_decide_them_and_watch_shows_what_came_of_it() {
    let nodes = alone("manual").await;
    let mut ballots = watch(&nodes, &["ballots"]);
    let mut commits = watch(&nodes, &["commits", "--from", "1"]);
    let mut aborts = watch(&nodes, &["aborts", "--from", "1"]);

    let proposer = spawn(command(&nodes, &["--json", "propose", CONFIG, "--ttl-ms", "60000"]));
    let (told, ballot) = next(&mut ballots);
    let id = ballot["id"].as_str().unwrap();
    assert!(told.starts_with(&format!("{id}  needs 1 grants, ")) && told.contains("asked by cli: {"), "{told}");
    assert_eq!(ballot["payload"]["key"], "k");
    assert_eq!(text(&nodes, &["vote", id, "--grant"]), format!("granted {id}\n"));
    let ran = Ran::of(&proposer.wait_with_output().unwrap()).succeeds();
    let proposed: Value = serde_json::from_str(&ran.stdout).unwrap();
    let (told, event) = next(&mut commits);
    assert!(told.starts_with(&format!("{}  config set  {{", proposed["index"])) && told.ends_with(']'), "{told}");
    assert_eq!((&event["index"], &event["id"]), (&proposed["index"], &ballot["id"]), "{event}");

    let proposer = spawn(command(&nodes, &["propose", AGENT, "--ttl-ms", "60000"]));
    let (_, ballot) = next(&mut ballots);
    let id = ballot["id"].as_str().unwrap();
    assert_eq!(object(&nodes, &["vote", id, "--deny"]), serde_json::json!({"id": id, "granted": false}));
    let ran = Ran::of(&proposer.wait_with_output().unwrap()).fails_with(&["the proposal was rejected"]);
    assert!(ran.stdout.starts_with("aborted (rejected) as entry "), "{}", ran.stdout);
    let (told, event) = next(&mut aborts);
    assert!(told.contains(&format!("  rejected  {id}  granted by []  denied by [")), "{told}");
    assert_eq!((&event["id"], &event["reason"]), (&ballot["id"], &"rejected".into()), "{event}");
}

#[tokio::test(flavor = "multi_thread")]
async fn bench_measures_and_loses_no_proposal() {
    let nodes = alone("auto").await;
    let told = text(&nodes, &["bench", "--clients", "2", "--secs", "1", "--warm", "0", "--size", "64"]);
    assert!(
        told.contains("concordat-certified") && told.contains(" clients=2 ") && told.contains(" errs=0 "),
        "{told}"
    );
    let runs = json(&nodes, &["bench", "--clients", "1,4", "--secs", "1", "--warm", "0", "--wait", "committed"]);
    assert_eq!(runs.iter().map(|r| r["clients"].as_u64().unwrap()).collect::<Vec<_>>(), [1, 4]);
    for run in runs {
        assert!(run["n"].as_u64() > Some(0) && run["errors"] == 0 && run["wait"] == "committed", "{run}");
    }
}
