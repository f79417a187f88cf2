//! Runs the program beside the nodes.

use crate::nodes::{Nodes, program, until};
use concordat::api::Propose;
use concordat::client::Client;
use futures::StreamExt as _;
use serde_json::{Value, json};
use std::path::Path;
use std::process::Output;

/// Runs a command to its end.
pub(crate) fn run(arguments: &[&str]) -> Output {
    program().args(arguments).output().expect("the program runs")
}

/// Runs a command that is to succeed; gives what it printed.
#[track_caller]
pub(crate) fn done(arguments: &[&str]) -> String {
    let output = run(arguments);
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{arguments:?}\n{out}{err}");
    out.into_owned()
}

/// As [`done`], as JSON.
#[track_caller]
pub(crate) fn told(arguments: &[&str]) -> Value {
    serde_json::from_str(&done(&[arguments, &["--json"]].concat())).expect("JSON")
}

/// Runs a command that is to fail; gives its error line.
#[track_caller]
pub(crate) fn refused(arguments: &[&str]) -> String {
    let output = run(arguments);
    assert!(!output.status.success(), "{arguments:?} succeeded");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

pub(crate) fn path(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

/// Sets keys, each certified when this returns.
pub(crate) async fn write(client: &Client, name: &str, count: usize) {
    let value = "x".repeat(2_000);
    let writes = (0..count).map(|n| {
        let payload = json!({"op": "set_config", "key": format!("{name}-{n}"), "value": value});
        async move { client.propose_with(Propose::new(payload)).await.expect("certified") }
    });
    futures::stream::iter(writes).buffer_unordered(32).for_each(|_| async {}).await;
}

/// Every config key with its value and revision.
pub(crate) async fn registry(client: &Client) -> Vec<Value> {
    let mut all = Vec::new();
    let mut from = Some(0);
    while let Some(offset) = from {
        let page = client.configs(concordat::client::Page { from: offset, limit: 1000 }).await.expect("a page").answer;
        all.extend(page.configs.iter().map(|c| json!([c.key, c.record.value, c.record.revision])));
        from = page.next;
    }
    all
}

/// Has a snapshot certified and everything below it pruned, at every running node.
pub(crate) async fn prune(nodes: &Nodes, running: &[usize]) -> u64 {
    let all: Vec<String> = running.iter().map(|n| nodes.url(*n)).collect();
    let index = until("a mark is appended", async || {
        let mut arguments = vec!["snapshot", "--json"];
        all.iter().for_each(|url| arguments.extend(["--node", url]));
        let output = run(&arguments);
        let told: Option<Value> = serde_json::from_slice(&output.stdout).ok();
        told.and_then(|t| t["index"].as_u64())
    })
    .await;
    until("everybody prunes", async || {
        for n in running {
            let status = nodes.one(*n).status().await.ok()?;
            if status.snapshot_index.map(|i| i.0) != Some(index) || status.first_index.0 <= 1 {
                return None;
            }
        }
        Some(())
    })
    .await;
    index
}
