//! Members whose disks lost a few records get them back from the others when they start, and only what certificates prove.

use crate::snapshots::{cluster, fill, proved, prune};
use crate::support::{Cluster, within};
use concordat::api::EntryView;
use concordat::ids::LogIndex;
use concordat::node::{self, Handle, StartError};
use concordat::storage::{OpenError, STORE_DIR};
use std::path::Path;

/// The rows of a tree of a stopped member.
fn rows(data: &Path, tree: &str) -> Vec<(Vec<u8>, Vec<u8>)> {
    let db = raw(&data.join(STORE_DIR));
    let rows = db.open_tree(tree).expect("a tree").iter();
    rows.map(|row| row.map(|(key, value)| (key.to_vec(), value.to_vec())).expect("a row")).collect()
}

fn flip(data: &Path, tree: &str, key: &[u8]) {
    let db = raw(&data.join(STORE_DIR));
    let tree = db.open_tree(tree).expect("a tree");
    let mut value = tree.get(key).expect("read").expect("a record").to_vec();
    let middle = value.len() / 2;
    value[middle] ^= 4;
    tree.insert(key, value).expect("written");
    db.flush().expect("flushed");
}

fn everything(node: &Handle) -> Vec<EntryView> {
    let mut all = Vec::new();
    let mut from = Some(LogIndex(1));
    while let Some(next) = from {
        let page = node.entries(next, 1000).expect("entries");
        all.extend(page.entries);
        from = page.next;
    }
    all
}

async fn refused(cluster: &Cluster, n: usize) -> String {
    match within("it is refused", node::start(cluster.options(n))).await {
        Err(StartError::Open(why)) if matches!(*why, OpenError::Damaged { .. }) => why.to_string(),
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("it started"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_block_below_the_certified_head_is_fetched_from_a_member_before_the_node_takes_part() {
    let mut cluster = cluster().await;
    for round in 0..12 {
        fill(cluster.node(0), &format!("round-{round}"), 5).await;
    }
    cluster.settled().await;
    let hurt = cluster.follower().await;
    let data = cluster.data(hurt);
    cluster.stop_node(hurt).await;
    let blocks = rows(&data, "log");
    assert!(blocks.len() > 8, "only {} blocks", blocks.len());
    for at in [2, 3, 5] {
        flip(&data, "log", &blocks[at].0);
    }
    cluster.start_node(hurt).await;
    let node = cluster.node(hurt);
    assert_eq!(node.status().mended, 2, "two gaps");
    assert!(node.metrics().contains("concordat_mended_total{kind=\"entries\"} 2\n"));
    cluster.settled().await;
    let other = (0..3).find(|n| *n != hurt).expect("another");
    assert_eq!(everything(cluster.node(hurt)), everything(cluster.node(other)));
    proved(&cluster, cluster.node(hurt), 1);
    cluster.stop_node(hurt).await;
    let now = rows(&data, "log");
    assert_eq!(now[..blocks.len() - 1], blocks[..blocks.len() - 1], "the same blocks");
    cluster.start_node(hurt).await;
    assert_eq!(cluster.node(hurt).status().mended, 0, "nothing is left to mend");
    cluster.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_block_that_no_certificate_covers_is_refused() {
    let mut cluster = cluster().await;
    for round in 0..4 {
        fill(cluster.node(0), &format!("round-{round}"), 10).await;
    }
    cluster.settled().await;
    let hurt = cluster.follower().await;
    let data = cluster.data(hurt);
    cluster.stop_node(hurt).await;
    let (last, _) = rows(&data, "log").pop().expect("a block");
    flip(&data, "log", &last);
    let why = refused(&cluster, hurt).await;
    assert!(why.contains("fresh key"), "{why}");
    cluster.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_kept_entries_and_chunks_below_the_log_are_fetched_too() {
    let mut cluster = cluster().await;
    fill(cluster.node(0), "before", 300).await;
    let index = prune(&cluster).await;
    cluster.settled().await;
    let hurt = cluster.follower().await;
    let data = cluster.data(hurt);
    cluster.stop_node(hurt).await;
    flip(&data, "kept", &1_u64.to_be_bytes());
    flip(&data, "headers", &65_u64.to_be_bytes());
    let chunk = rows(&data, "snapshots").into_iter().find(|(key, _)| key.len() == 12).expect("a chunk").0;
    assert_eq!(chunk[..8], index.0.to_be_bytes());
    flip(&data, "snapshots", &chunk);
    cluster.start_node(hurt).await;
    assert_eq!(cluster.node(hurt).status().mended, 3);
    cluster.settled().await;
    proved(&cluster, cluster.node(hurt), 1);
    let other = (0..3).find(|n| *n != hurt).expect("another");
    assert_eq!(everything(cluster.node(hurt)), everything(cluster.node(other)));
    cluster.close().await;
}

/// The database of a store that is closed. The threads of one that was dropped hold its lock for a moment.
fn raw(dir: &Path) -> sled::Db {
    let open = || sled::Config::new().path(dir).segment_size(8 << 20).open();
    let opened = (0..10_000_000).find_map(|_| open().inspect_err(|_| std::thread::yield_now()).ok());
    opened.expect("its lock is let go")
}
