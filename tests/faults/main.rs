//! `serve` processes whose disk or clock fails under them.

mod inject;
#[path = "../support/nodes.rs"]
mod nodes;
#[path = "../support/ports.rs"]
mod ports;

use concordat::api::Propose;
use concordat::certificate::{Genesis, Receipt};
use concordat::client::{Client, Options};
use concordat::ids::LogIndex;
use inject::{Fault, inject};
use nodes::{Nodes, until};
use serde_json::json;
use std::time::Duration;

const HOUR_MS: i64 = 3_600_000;

fn key(n: u64) -> String {
    format!("key/{n}")
}

fn set_config(n: u64) -> Propose {
    Propose::new(json!({"op": "set_config", "key": key(n), "value": n}))
}

/// Commits a key for each number and says where.
async fn commit(client: &Client, numbers: std::ops::Range<u64>) -> Vec<(u64, LogIndex)> {
    let mut acknowledged = Vec::new();
    for n in numbers {
        let status = client.propose_with(set_config(n)).await.expect("it is certified");
        acknowledged.push((n, status.index.expect("placed")));
    }
    acknowledged
}

/// What was acknowledged is there, where it was, and proved.
async fn holds(client: &Client, genesis: &Genesis, acknowledged: &[(u64, LogIndex)]) {
    for (n, index) in acknowledged {
        let record = client.config(&key(*n)).await.expect("the key is there").answer.record;
        assert_eq!((record.value, record.revision), (json!(n), *index));
        let receipt = Receipt::decode(&client.receipt(*index).await.expect("a receipt")).expect("it decodes");
        assert_eq!(receipt.verify(genesis).expect("it verifies").header.index, *index);
    }
}

fn genesis(nodes: &Nodes) -> Genesis {
    let text = std::fs::read_to_string(nodes.genesis()).expect("the genesis file");
    Genesis::from_json(&text).expect("a genesis")
}

/// A cluster of one, so that whatever is lost here is lost.
async fn ends_with_code_3_and_loses_nothing(fault: Fault, says: &[&str]) {
    let mut nodes = Nodes::prepare(&["auto"]);
    let switches = inject(&mut nodes);
    nodes.run().await;
    let mut acknowledged = commit(&nodes.client(), 0..20).await;

    switches[0].set(fault, 1);
    let brief = Options { deadline: Duration::from_secs(1), ..Options::default() };
    let unlucky = Client::new(nodes.urls(), brief).expect("a client").propose_with(set_config(99)).await;
    assert!(unlucky.is_err(), "a failing disk acknowledges nothing: {unlucky:?}");
    let code = nodes.ended(0).await;
    let log = nodes.log(0);
    assert_eq!(code, Some(3), "{log}");
    let last = log.lines().last().unwrap_or_default();
    assert!(last.starts_with("error: halted: "), "{log}");
    assert!(says.iter().all(|part| last.contains(part)), "{says:?} are not in {last}");

    switches[0].set(fault, 0);
    nodes.run().await;
    holds(&nodes.client(), &genesis(&nodes), &acknowledged).await;
    acknowledged.extend(commit(&nodes.client(), 20..25).await);
    holds(&nodes.client(), &genesis(&nodes), &acknowledged).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_fsync_ends_the_process_with_code_3_and_what_to_do_and_loses_nothing_acknowledged() {
    ends_with_code_3_and_loses_nothing(Fault::Sync, &["fsync failed", "remount"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_ends_the_process_with_code_3_and_what_to_do_and_loses_nothing_acknowledged() {
    ends_with_code_3_and_loses_nothing(Fault::Full, &["free disk space"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_whose_clock_is_set_back_an_hour_alarms_gives_way_and_loses_nothing() {
    let mut nodes = Nodes::prepare(&["auto"; 3]);
    let switches = inject(&mut nodes);
    nodes.run().await;
    let all = nodes.client();
    let mut acknowledged = commit(&all, 0..5).await;

    let wrong = nodes.leader().await;
    switches[wrong].set(Fault::Clock, -HOUR_MS);
    let next = until("another leads", async || Some(nodes.leader().await).filter(|n| *n != wrong)).await;
    let metrics = nodes.one(wrong).metrics().await.expect("metrics");
    let alarms = metrics.lines().find_map(|l| l.strip_prefix("concordat_alarms_total{kind=\"clock_out_of_bound\"} "));
    assert!(alarms.is_some_and(|n| n != "0"), "{metrics}");
    assert!(nodes.log(wrong).contains("check its time synchronisation"), "{}", nodes.log(wrong));
    acknowledged.extend(commit(&all, 5..10).await);

    // It is still one of a quorum: with the leader gone the third leads, and it follows.
    nodes.kill(next);
    assert_eq!(nodes.leader().await, 3 - wrong - next);
    acknowledged.extend(commit(&all, 10..15).await);
    nodes.restart(next).await;
    switches[wrong].set(Fault::Clock, 0);
    nodes.settled().await;
    for n in 0..3 {
        holds(&nodes.one(n), &genesis(&nodes), &acknowledged).await;
    }
    time_never_runs_backwards(&all).await;
}

/// Along the log.
async fn time_never_runs_backwards(node: &Client) {
    let entries = node.entries(LogIndex(1), 1000).await.expect("the log").entries;
    assert!(entries.is_sorted_by_key(|e| e.proposed_at));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_is_alone_goes_on_when_its_clock_is_set_back_and_after_a_restart() {
    let mut nodes = Nodes::prepare(&["auto"]);
    let switches = inject(&mut nodes);
    nodes.run().await;
    let mut acknowledged = commit(&nodes.client(), 0..5).await;
    switches[0].set(Fault::Clock, -HOUR_MS);
    acknowledged.extend(commit(&nodes.client(), 5..10).await);
    nodes.kill(0);
    nodes.run().await;
    acknowledged.extend(commit(&nodes.client(), 10..15).await);
    holds(&nodes.client(), &genesis(&nodes), &acknowledged).await;
    time_never_runs_backwards(&nodes.client()).await;
}
