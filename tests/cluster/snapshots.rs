//! Snapshots, pruning, and members that begin with a snapshot, on real nodes.

use crate::support::{Cluster, certify, set_config, until, within};
use concordat::api::{MarkError, MemberOp, Propose, StreamError};
use concordat::certificate::merkle::leaf_hash;
use concordat::certificate::{Kind, Policy, SnapshotManifest};
use concordat::config::{Keep, Snapshots};
use concordat::ids::{Digest, Epoch, LogIndex, Term};
use concordat::limits::TILE;
use concordat::node::{Ended, Handle, QueryError};
use concordat::registry::State;
use concordat::storage::{STORE_DIR, Store};
use futures::StreamExt as _;
use futures::future::join_all;
use std::panic::catch_unwind;
use std::path::Path;

const AUTO: [Policy; 3] = [Policy::Auto; 3];

/// Nothing that a snapshot stands for stays, and marks come when asked for.
pub(crate) async fn cluster() -> Cluster {
    let mut cluster = Cluster::prepare(&AUTO);
    cluster.config.snapshots = Snapshots { every: None, retain: 0, ..Snapshots::default() };
    for n in 0..3 {
        cluster.start_node(n).await;
    }
    cluster.leader().await;
    cluster
}

pub(crate) async fn fill(node: &Handle, name: &str, count: usize) {
    let numbers: Vec<usize> = (0..count).collect();
    for some in numbers.chunks(50) {
        let value = "x".repeat(3_000);
        join_all(some.iter().map(|i| certify(node, Propose::new(set_config(&format!("{name}-{i}"), &value))))).await;
    }
}

/// Has a mark appended, and waits until every running node has let go of what it stands for.
pub(crate) async fn prune(cluster: &Cluster) -> LogIndex {
    let index = until("a mark is appended", || async {
        let leader = cluster.node(cluster.leader().await);
        match leader.mark_snapshot().await {
            Ok(marked) => Some(marked.index),
            Err(MarkError::NotLeader { .. } | MarkError::Refused { .. }) => None,
            Err(error) => panic!("{error}"),
        }
    })
    .await;
    until("everybody prunes", || async {
        let pruned = |node: &Handle| {
            let status = node.status();
            let page = node.entries(LogIndex(1), 1000).ok();
            let gone = page.is_some_and(|p| p.entries.iter().any(|e| e.kind == Kind::Proposal && e.entry.is_none()));
            status.first_index > index && status.snapshot_index == Some(index) && gone
        };
        cluster.running().all(pruned).then_some(())
    })
    .await;
    index
}

/// The first block of the log of a store that is in use, in a copy as a crash would leave it; `None` when it does not open.
fn first_block(store: &Path) -> Option<LogIndex> {
    let copy = tempfile::tempdir().expect("a directory");
    for file in ["db", "conf"] {
        std::fs::copy(store.join(file), copy.path().join(file)).expect("a copy");
    }
    let db = catch_unwind(|| sled::Config::new().path(copy.path()).segment_size(8 << 20).open().ok()).ok()??;
    let (key, _) = db.open_tree("log").ok()?.first().ok()??;
    Some(LogIndex(u64::from_be_bytes(key.as_ref().try_into().ok()?)))
}

/// Every entry from `from` on is proved by a receipt, with its payload or without.
pub(crate) fn proved(cluster: &Cluster, node: &Handle, from: u64) {
    for index in from..=node.status().certified_index.0 {
        let receipt = node.receipt(LogIndex(index)).unwrap_or_else(|e| panic!("receipt {index}: {e}"));
        receipt.verify(&cluster.genesis).unwrap_or_else(|e| panic!("entry {index}: {e}"));
    }
}

fn same_states(cluster: &Cluster) {
    let hashes: Vec<_> = cluster.running().map(|n| n.registry(State::state_hash)).collect();
    assert!(hashes.windows(2).all(|w| w[0] == w[1]));
}

#[tokio::test(flavor = "multi_thread")]
async fn payloads_are_pruned_below_a_certified_snapshot_and_every_entry_stays_provable() {
    let mut cluster = cluster().await;
    fill(cluster.node(0), "before", 30).await;
    let index = prune(&cluster).await;
    for node in cluster.running() {
        proved(&cluster, node, 1);
        let page = node.entries(LogIndex(1), 1000).expect("a page");
        assert!(page.entries.iter().all(|e| e.entry.is_none() == (e.kind == Kind::Proposal)), "only payloads go");
        let mut commits = node.commits(LogIndex(1));
        let first = node.status().first_index;
        assert_eq!(commits.next().await, Some(Err(StreamError::Pruned { first })));
        let proposal = page.entries.iter().find_map(|e| e.id).expect("a proposal");
        assert!(node.receipt_of(&proposal).expect("a receipt").body.is_none());
        assert!(matches!(node.proposal(&proposal), Err(QueryError::Pruned { .. })));
    }
    same_states(&cluster);
    for n in 0..3 {
        cluster.stop_node(n).await;
    }
    for n in 0..3 {
        cluster.start_node(n).await;
    }
    fill(cluster.node(1), "after", 3).await;
    cluster.settled().await;
    same_states(&cluster);
    for node in cluster.running() {
        assert_eq!(node.status().snapshot_index, Some(index));
        assert_eq!(node.registry(|s| s.config("before-7").map(|c| c.value.clone())), Some("x".repeat(3_000).into()));
        proved(&cluster, node, 1);
    }
    // And again: the second takes the first one's place.
    assert!(prune(&cluster).await > index);
    cluster.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_was_away_while_entries_were_pruned_installs_the_snapshot() {
    let mut cluster = cluster().await;
    fill(cluster.node(0), "before", 5).await;
    let away = cluster.follower().await;
    cluster.stop_node(away).await;
    let other = (0..3).find(|n| *n != away).expect("another");
    fill(cluster.node(other), "meanwhile", 300).await;
    let index = prune(&cluster).await;
    cluster.start_node(away).await;
    cluster.settled().await;
    let node = cluster.node(away);
    until("it begins after the snapshot", || async { (node.status().first_index == index.next()).then_some(()) }).await;
    // What its log held before goes by itself, not when entries are next pruned.
    let store = cluster.data(away).join(STORE_DIR);
    until("the log that was replaced is gone", || async { (first_block(&store)? > index).then_some(()) }).await;
    same_states(&cluster);
    assert!(index.0 > TILE, "enough for a whole tile");
    until("what lies before is filled in", || async { node.status().history_complete.then_some(()) }).await;
    proved(&cluster, node, 1);
    let missing = node.commits(LogIndex(1)).next().await;
    assert!(matches!(missing, Some(Err(StreamError::Pruned { .. }))), "{missing:?}");
    fill(cluster.node(away), "after", 5).await;
    cluster.settled().await;
    cluster.stop_node(away).await;
    cluster.start_node(away).await;
    cluster.settled().await;
    same_states(&cluster);
    proved(&cluster, cluster.node(away), 1);
    // It counts like anyone: with one of the others gone, its disk and its signature are needed.
    cluster.stop_node(other).await;
    fill(cluster.node(away), "counted", 3).await;
    cluster.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newcomer_begins_with_a_snapshot_that_holds_earlier_changes_of_members() {
    let mut cluster = cluster().await;
    let first = cluster.prepare_another();
    cluster.start_joining(3).await;
    cluster.change(MemberOp::Add { member: first.clone() }).await;
    cluster.change(MemberOp::Promote { id: first.did }).await;
    fill(cluster.node(0), "before", 40).await;
    let index = prune(&cluster).await;
    let second = cluster.prepare_another();
    cluster.start_joining(4).await;
    cluster.change(MemberOp::Add { member: second.clone() }).await;
    cluster.change(MemberOp::Promote { id: second.did }).await;
    cluster.settled().await;
    let node = cluster.node(4);
    assert_eq!(node.status().first_index, index.next());
    same_states(&cluster);
    proved(&cluster, node, index.0 + 1);
    let chain = node.epoch_chain(Epoch::ZERO).expect("a chain");
    assert_eq!(chain.verify(&cluster.genesis).expect("verifies").len(), 5, "the genesis table and four more");
    cluster.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_leader_marks_a_snapshot_after_as_many_entries_as_it_is_told() {
    let mut cluster = Cluster::prepare(&AUTO);
    cluster.config.snapshots = Snapshots { every: Some(20), retain: 10, ..Snapshots::default() };
    for n in 0..3 {
        cluster.start_node(n).await;
    }
    fill(cluster.node(0), "entry", 30).await;
    until("a snapshot is taken and pruned below", || async {
        let kept = |node: &Handle| {
            let status = node.status();
            status.first_index > LogIndex(1) && status.last_index.0 - status.first_index.0 >= 9
        };
        cluster.running().all(kept).then_some(())
    })
    .await;
    same_states(&cluster);
    cluster.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_whose_image_at_a_mark_is_another_than_the_quorums_halts_and_the_others_go_on() {
    let mut cluster = cluster().await;
    fill(cluster.node(0), "before", 5).await;
    let diverged = cluster.follower().await;
    let last = cluster.settled().await;
    cluster.stop_node(diverged).await;
    // Its replica went another way: at the next mark it will hold another image than the others.
    let (store, _) = Store::open(&cluster.data(diverged).join(STORE_DIR)).expect("opens");
    let image = b"another state";
    let manifest = SnapshotManifest {
        index: last.next(),
        term: Term(1),
        epoch: Epoch::ZERO,
        proposed_at: 1,
        root: Digest([1; 32]),
        state: Digest([2; 32]),
        bytes: image.len() as u64,
        chunks_root: leaf_hash(image),
    };
    store.stage(&manifest).expect("staged");
    store.put_chunk(&manifest, 0, image).expect("kept");
    store.complete(&manifest).expect("complete");
    drop(store);
    cluster.start_node(diverged).await;
    assert_eq!(cluster.settled().await, last, "nothing but the mark comes next");
    let leader = cluster.node(cluster.leader().await);
    assert_eq!(leader.mark_snapshot().await.expect("marked").index, manifest.index);
    let ended = within("it halts", cluster.node(diverged).ended()).await;
    assert!(matches!(&ended, Ended::Halted(why) if why.contains("another manifest")), "{ended:?}");
    cluster.stop_node(diverged).await;
    until("the others prune", || async {
        cluster.running().all(|n| n.status().first_index > manifest.index).then_some(())
    })
    .await;
    fill(cluster.node((diverged + 1) % 3), "after", 3).await;
    cluster.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_lowest_bound_of_retention_counts() {
    let mut cluster = Cluster::prepare(&[Policy::Auto]);
    let keep = Keep { bytes: Some(200_000), age_ms: None };
    cluster.config.snapshots = Snapshots { every: None, retain: 0, keep, ..Snapshots::default() };
    cluster.start_node(0).await;
    cluster.leader().await;
    let node = cluster.node(0);
    fill(node, "before", 200).await;
    let index = node.mark_snapshot().await.expect("a mark").index;
    let first = until("some go", || async { Some(node.status().first_index).filter(|f| *f > LogIndex(1)) }).await;
    let kept = node.entries(first, 1000).expect("a page").entries;
    let bytes: usize = kept.iter().filter_map(|e| e.payload.as_ref()).map(|p| p.to_string().len()).sum();
    assert!(bytes > 150_000 && first < index, "{bytes} bytes from {first} on, snapshot at {index}");
    cluster.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_mostly_dead_moves_to_a_fresh_one_by_itself() {
    let mut cluster = Cluster::prepare(&[Policy::Auto]);
    cluster.config.snapshots = Snapshots { every: None, retain: 0, ..Snapshots::default() };
    cluster.config.snapshots.rotation.bytes_per_s = u64::MAX;
    cluster.start_node(0).await;
    cluster.leader().await;
    let node = cluster.node(0);
    // The same few keys again and again: the state stays small.
    let value = "x".repeat(60_000);
    for _ in 0..70 {
        join_all((0..20).map(|i| certify(node, Propose::new(set_config(&format!("key-{i}"), &value))))).await;
    }
    let before = node.status().database;
    assert!(before.bytes > 64 << 20 && before.last.is_none(), "{before:?}");
    node.mark_snapshot().await.expect("a mark");
    let last = until("it moves", || async { node.status().database.last }).await;
    assert!(last.bytes_after < last.bytes_before / 2, "{last:?}");
    proved(&cluster, node, 1);
    cluster.stop_node(0).await;
    cluster.start_node(0).await;
    cluster.settled().await;
    proved(&cluster, cluster.node(0), 1);
    cluster.close().await;
}
