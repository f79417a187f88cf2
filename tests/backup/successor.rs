//! A new cluster that begins with the state of another.

use crate::nodes::{Nodes, until};
use crate::running::prune_all;
use crate::support::{done, path, prune, refused, registry, told, write};
use concordat::api::Propose;
use concordat::storage::Store;
use serde_json::{Value, json};
use std::path::Path;
use std::process::Command;

/// Members of a cluster that succeeds the one in a backup; their state is placed.
pub(crate) fn succeed(file: &Path, more: &[&str]) -> Nodes {
    let arguments = [&["--succeeds", path(file), "--reason", "moved to other machines"][..], more].concat();
    let mut nodes = Nodes::prepare_as(&["auto"; 3], &arguments);
    prune_all(&mut nodes, 3);
    nodes
}

pub(crate) fn place(nodes: &Nodes, file: &Path) {
    for n in 0..3 {
        let genesis = nodes.genesis();
        done(&["restore", "--from", path(file), "--data", path(&nodes.data(n)), "--genesis", path(&genesis)]);
    }
}

fn request(key: &str, value: u64) -> Propose {
    let mut propose = Propose::new(json!({"op": "set_config", "key": key, "value": value}));
    propose.client = Some("writer".into());
    propose.request_id = Some(format!("{key}-{value}"));
    propose.deadline_ms = Some(4_000_000_000_000.min(concordat::node::clock::wall_ms() + 3_600_000));
    propose
}

#[tokio::test(flavor = "multi_thread")]
async fn a_successor_goes_on_where_its_predecessor_ended() {
    let mut old = Nodes::prepare(&["auto"; 3]);
    prune_all(&mut old, 3);
    old.run().await;
    let all = old.client();
    write(&all, "a", 300).await;
    prune(&old, &[0, 1, 2]).await;
    let url = old.url(0);
    let early = old.root().join("early.backup");
    tokio::task::block_in_place(|| done(&["backup", "--out", path(&early), "--node", &url]));
    let asked = request("asked", 1);
    let first = all.propose_with(asked.clone()).await.expect("certified").index.expect("placed");
    write(&all, "b", 40).await;
    old.settled().await;
    let before = registry(&old.one(0)).await;
    let file = old.root().join("last.backup");
    let said = tokio::task::block_in_place(|| told(&["backup", "--out", path(&file), "--node", &url]));
    let size = said["last"].as_u64().expect("an index");
    let old_member = old.data(0).join("member.json");
    (0..3).for_each(|n| old.kill(n));

    // A key of the old cluster is the memory of its store.
    let mut taken = vec!["genesis", "--name", "x", "--quorum", "majority", "--succeeds", path(&file), "--reason", "r"];
    taken.extend(["--out", "/nonexistent/genesis.json", "--member", path(&old_member)]);
    assert!(refused(&taken).contains("brings a BLS key"));

    let mut new = succeed(&file, &[]);
    let (genesis, data) = (new.genesis(), new.data(0));
    let serve = ["serve", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--data", path(&data)];
    let serve = [&serve[..], &["--genesis", path(&genesis)]].concat();
    for join in [&[][..], &["--join"]] {
        let said = refused(&[&serve[..], join].concat());
        assert!(said.contains("concordat restore --from BACKUP"), "a member without the state refuses: {said}");
    }
    let said = refused(&["restore", "--from", path(&early), "--data", path(&data), "--genesis", path(&genesis)]);
    assert!(said.contains("another backup"), "{said}");
    place(&new, &file);
    new.run().await;
    let all = new.client();
    assert_eq!(registry(&new.one(0)).await, before, "values and revisions go on");

    // What was answered before stays answered, and what comes is behind it.
    let again = all.propose_with(asked).await.expect("the first outcome");
    assert_eq!((again.index, again.repeated), (Some(first), true), "{again:?}");
    let next = all.propose_with(request("asked", 2)).await.expect("certified").index.expect("placed");
    assert!(next.0 > size, "{next}");
    let conflict = json!({"op": "set_config", "key": "asked", "value": 3, "if_revision": first});
    let conflict = all.propose_with(Propose::new(conflict)).await.expect("certified");
    assert!(matches!(conflict.outcome, Some(concordat::registry::Outcome::Conflict { .. })), "{conflict:?}");
    let history = all.config_history("asked", concordat::client::Page::default()).await.expect("a history");
    assert_eq!(history.answer.entries.iter().map(|e| e.index).collect::<Vec<_>>(), [next]);
    let gone = all.entry(first).await.expect_err("it is the predecessor's").to_string();
    assert!(gone.contains("the cluster that this one succeeds"), "{gone}");

    let search = |order| concordat::api::Search { order, ..Default::default() };
    for order in [concordat::api::Order::Asc, concordat::api::Order::Desc] {
        let page = all.search(&search(order)).await.expect("found");
        assert!(page.complete_from.0 > size && !page.entries.is_empty(), "{page:?}");
        assert!(page.entries.iter().all(|found| found.entry.index.0 > size), "only this cluster's: {page:?}");
    }

    // Proofs: from the new genesis alone, and back into the old log.
    new.settled().await;
    let url = new.url(1);
    let audit = ["audit", "--genesis", path(&genesis), "--node", &url];
    let audited = tokio::task::block_in_place(|| told(&[&audit[..], &["--predecessor", path(&file)]].concat()));
    assert_eq!(audited["succeeds"]["snapshot"]["index"].as_u64(), Some(size));
    assert_eq!(audited["predecessor"]["entries"].as_u64(), Some(size));
    let text = tokio::task::block_in_place(|| done(&audit));
    assert!(text.contains("succeeds   cluster") && text.contains("moved to other machines"), "{text}");
    let said = tokio::task::block_in_place(|| refused(&[&audit[..], &["--predecessor", path(&early)]].concat()));
    assert!(said.contains("does not bear out"), "{said}");
    let receipt = new.root().join("receipt.json");
    let index = next.to_string();
    tokio::task::block_in_place(|| done(&["receipt", &index, "--out", path(&receipt), "--node", &url]));
    done(&["verify", "--genesis", path(&genesis), path(&receipt)]);
    let independent = concat!(env!("CARGO_MANIFEST_DIR"), "/ops/verify_receipt.py");
    let ran = Command::new("python3").args([independent, path(&genesis), path(&receipt)]).output().expect("python3");
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stdout));

    joins_and_restores(&mut new).await;
}

/// A member that joins later gets the state through a snapshot; and backups of a successor are like any other's.
async fn joins_and_restores(new: &mut Nodes) {
    let genesis = new.genesis();
    let unpruned = new.root().join("unpruned.backup");
    let url = new.url(0);
    tokio::task::block_in_place(|| done(&["backup", "--out", path(&unpruned), "--node", &url]));
    prune(new, &[0, 1, 2]).await;
    write(&new.client(), "c", 20).await;
    let joins = new.add();
    new.arguments[joins] = vec!["--join".into()];
    new.restart(joins).await;
    let member = new.data(joins).join("member.json");
    let row: Value = serde_json::from_slice(&std::fs::read(&member).expect("member.json")).expect("JSON");
    let leads = new.url(new.leader_of(&[0, 1, 2]).await);
    tokio::task::block_in_place(|| {
        done(&["member", "add", path(&member), "--node", &leads]);
        done(&["member", "promote", row["did"].as_str().expect("a DID"), "--node", &leads]);
    });
    new.settled().await;
    assert_eq!(registry(&new.one(joins)).await, registry(&new.one(0)).await);

    let pruned = new.root().join("pruned.backup");
    tokio::task::block_in_place(|| done(&["backup", "--out", path(&pruned), "--node", &url]));
    for file in [&unpruned, &pruned] {
        done(&["backup", "--verify", path(file), "--genesis", path(&genesis)]);
        let fresh = new.add();
        let data = new.data(fresh);
        done(&["restore", "--from", path(file), "--data", path(&data), "--genesis", path(&genesis)]);
        let audited = told(&["audit", "--genesis", path(&genesis), "--data", path(&data)]);
        assert_eq!(audited["verified"], true);
    }
    // All of them restart from what they have.
    for n in 0..3 {
        new.kill(n);
    }
    for n in 0..3 {
        new.restart(n).await;
    }
    until("they lead again", async || new.one(0).status().await.ok()?.leader).await;
    let (store, _) = {
        new.kill(1);
        Store::open(&new.data(1).join("store")).expect("the store")
    };
    assert!(store.genesis().expect("read").expect("pinned").succeeds.is_some());
}
