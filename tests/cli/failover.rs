//! Several nodes named, of which one does not answer.

use crate::nodes::Nodes;
use crate::support::{Lines, Ran, program, run};
use serde_json::Value;
use std::process::{Command, Stdio};

fn command(urls: &[String], arguments: &[&str]) -> Command {
    let mut command = program();
    for url in urls {
        command.args(["--node", url]);
    }
    command.args(arguments);
    command
}

fn ask(urls: &[String], arguments: &[&str]) -> Ran {
    Ran::of(&command(urls, arguments).output().unwrap())
}

fn set(value: u32) -> String {
    format!(r#"{{"op":"set_config","key":"k","value":{value}}}"#)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_node_named_first_costs_no_answer() {
    let nodes = Nodes::start(1).await;
    let dead = format!("http://127.0.0.1:{}", crate::ports::free_port());
    let urls = [dead.clone(), nodes.url(0)];
    let told = ask(&urls, &["--json", "propose", &set(1)]).succeeds().stdout;
    let proposed: Value = serde_json::from_str(&told).unwrap();
    let index = proposed["index"].to_string();
    assert!(ask(&urls, &["get", "config", "k"]).succeeds().stdout.starts_with("k = 1 "));
    assert_eq!(ask(&urls, &["history", "config", "k"]).succeeds().stdout.lines().count(), 1);
    ask(&urls, &["find"]).succeeds();
    let receipt = nodes.root().join("r.json");
    ask(&urls, &["receipt", &index, "--out", receipt.to_str().unwrap()]).succeeds();
    run(nodes.root(), &["verify", "--genesis", "genesis.json", "r.json"]).succeeds();
    let mut watch = command(&urls, &["watch", "commits", "--from", "1"]);
    let mut watch = Lines::of(watch.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap());
    assert!(watch.next().starts_with(&format!("{index}  config set")));

    // Asked about each node, it shows the one that lives and names the one that does not.
    let ran = ask(&urls, &["status"]).fails_with(&["no node answered", &dead]);
    assert!(ran.stdout.contains("(leader)"), "{}", ran.stdout);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_dies_between_two_calls_is_passed_over() {
    let mut nodes = Nodes::start(3).await;
    let leader = nodes.leader().await;
    let urls = [leader, (leader + 1) % 3, (leader + 2) % 3].map(|n| nodes.url(n));
    ask(&urls, &["propose", &set(1), "--request-id", "first"]).succeeds();
    nodes.kill(leader);
    let again = ask(&urls, &["--json", "propose", &set(1), "--request-id", "first"]).succeeds().stdout;
    let again: Value = serde_json::from_str(&again).unwrap();
    assert_eq!((&again["state"], &again["repeated"]), (&"certified".into(), &true.into()), "{again}");
    ask(&urls, &["propose", &set(2)]).succeeds();
    assert!(ask(&urls[..2], &["get", "config", "k"]).succeeds().stdout.starts_with("k = 2 "));
    let history = ask(&urls, &["--json", "history", "config", "k"]).succeeds().stdout;
    assert!(history.starts_with(&format!("{{\"index\":{}", again["index"])), "{history}");
}
