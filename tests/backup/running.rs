//! A backup of a running cluster: consistent under load, verified offline, refused when anything in it is altered.

use crate::nodes::{Nodes, until};
use crate::support::{done, path, prune, refused, registry, run, told, write};
use concordat::certificate::Genesis;
use concordat::storage::Store;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A configuration under which a snapshot lets everything go that it stands for.
pub(crate) fn prune_all(nodes: &mut Nodes, count: usize) {
    let file = nodes.root().join("retain.toml");
    std::fs::write(&file, "[snapshots]\nretain_entries = 0\n").expect("written");
    nodes.arguments = vec![vec!["--config".into(), file.into()]; count];
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_under_load_verifies_offline_and_holds_no_secret() {
    let mut nodes = Nodes::prepare(&["auto"; 3]);
    prune_all(&mut nodes, 3);
    nodes.run().await;
    let all = nodes.client();
    write(&all, "before", 400).await;
    prune(&nodes, &[0, 1, 2]).await;

    // Writers go on, and so do snapshots and pruning, while backups are taken from every node in turn.
    let stop = Arc::new(AtomicBool::new(false));
    let (stopped, writer) = (stop.clone(), all.clone());
    let load = tokio::spawn(async move {
        let mut round = 0;
        while !stopped.load(Ordering::Relaxed) {
            write(&writer, &format!("load-{round}"), 50).await;
            round += 1;
        }
    });
    let genesis = nodes.genesis();
    for n in 0..3 {
        let (out, url) = (nodes.root().join(format!("{n}.backup")), nodes.url(n));
        let backup = tokio::task::spawn_blocking({
            let (out, url, genesis) = (out.clone(), url.clone(), genesis.clone());
            move || {
                told(&["backup", "--out", path(&out), "--node", &url, "--genesis", path(&genesis), "--rate", "2000000"])
            }
        });
        // A backup that takes a while, over a log that is compacted meanwhile.
        prune(&nodes, &[0, 1, 2]).await;
        let said = backup.await.expect("no panic");
        let verified =
            tokio::task::block_in_place(|| told(&["backup", "--verify", path(&out), "--genesis", path(&genesis)]));
        assert_eq!(said["sha256"], verified["sha256"]);
        assert!(verified["snapshot"]["index"].as_u64().is_some_and(|i| i > 400), "{verified}");
        assert_eq!(verified["beyond"], 0);
    }
    stop.store(true, Ordering::Relaxed);
    load.await.expect("no panic");
    // Compaction goes on once nobody reads any more.
    prune(&nodes, &[0, 1, 2]).await;
    nodes.settled().await;

    for n in 0..3 {
        nodes.kill(n);
    }
    for n in 0..3 {
        let bytes = std::fs::read(nodes.root().join(format!("{n}.backup"))).expect("the backup");
        for member in 0..3 {
            let (_, recovered) = Store::open(&nodes.data(member).join("store")).expect("the store");
            let key = recovered.bls.to_bytes();
            assert!(!bytes.windows(32).any(|w| w == key), "a BLS key is in the backup");
            let pem = std::fs::read_to_string(nodes.data(member).join("identity.pem")).expect("the identity");
            for line in pem.lines().filter(|l| !l.starts_with('-')) {
                assert!(!bytes.windows(line.len()).any(|w| w == line.as_bytes()), "an identity is in the backup");
            }
        }
    }
    // Of a stopped node, too, and of all that it holds.
    let out = nodes.root().join("stopped.backup");
    let said = told(&["backup", "--out", path(&out), "--data", path(&nodes.data(0)), "--genesis", path(&genesis)]);
    assert!(said["holds"]["entries"].as_u64() > Some(450), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_with_any_byte_changed_or_missing_is_refused() {
    let mut nodes = Nodes::prepare(&["auto"; 3]);
    prune_all(&mut nodes, 3);
    nodes.run().await;
    write(&nodes.client(), "k", 40).await;
    prune(&nodes, &[0, 1, 2]).await;
    write(&nodes.client(), "l", 10).await;
    let (out, genesis) = (nodes.root().join("a.backup"), nodes.genesis());
    let url = nodes.url(1);
    tokio::task::block_in_place(|| done(&["backup", "--out", path(&out), "--node", &url]));
    // It is never written over.
    let again = tokio::task::block_in_place(|| refused(&["backup", "--out", path(&out), "--node", &url]));
    assert!(again.contains("exists"), "{again}");

    let bytes = std::fs::read(&out).expect("the backup");
    let trusted = Genesis::from_json(&std::fs::read_to_string(&genesis).expect("the genesis")).expect("a genesis");
    let verify = |bytes: &[u8]| {
        concordat::backup::verify(bytes, Some(&trusted), concordat::backup::Nothing, |_, _| {}).map(|v| v.0.sum)
    };
    assert!(verify(&bytes).is_ok());
    // Every byte of what frames are told apart by at both ends, and samples of all between.
    let middle = (64..bytes.len() - 64).step_by(997);
    for at in (0..64).chain(middle).chain(bytes.len() - 64..bytes.len()) {
        let mut bad = bytes.clone();
        bad[at] ^= 1 << (at % 8);
        assert!(verify(&bad).is_err(), "byte {at}");
    }
    for length in (0..bytes.len()).step_by(4_001).chain([bytes.len() - 1]) {
        assert!(verify(&bytes[..length]).is_err(), "cut to {length}");
    }
    assert!(verify(&[&bytes[..], &[0]].concat()).is_err(), "a byte behind its end");

    // The command says so, and another genesis is another cluster.
    let bad = nodes.root().join("bad.backup");
    let mut altered = bytes.clone();
    altered[bytes.len() / 2] ^= 4;
    std::fs::write(&bad, altered).expect("written");
    let said = refused(&["backup", "--verify", path(&bad), "--genesis", path(&genesis)]);
    assert!(said.contains("checksum"), "{said}");
    let other = Nodes::prepare(&["auto"]);
    let said = refused(&["backup", "--verify", path(&out), "--genesis", path(&other.genesis())]);
    assert!(said.contains("backup of cluster"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_download_that_breaks_off_leaves_no_backup() {
    let mut nodes = Nodes::start(3).await;
    write(&nodes.client(), "k", 300).await;
    let (out, url) = (nodes.root().join("a.backup"), nodes.url(0));
    let partial = nodes.root().join("a.backup.partial");
    let download = tokio::task::spawn_blocking({
        let (out, url) = (out.clone(), url);
        move || run(&["backup", "--out", path(&out), "--node", &url, "--rate", "65536"])
    });
    until("the download has begun", async || std::fs::metadata(&partial).ok().filter(|m| m.len() > 0).map(drop)).await;
    nodes.kill(0);
    let ended = download.await.expect("no panic");
    assert!(!ended.status.success());
    assert!(!out.exists(), "what broke off is no backup");
    assert!(registry(&nodes.one(1)).await.len() >= 300, "the others go on");
}
