//! A backup restored into a fresh data directory: a new member of the same cluster that has little left to fetch.

use crate::nodes::{Nodes, until};
use crate::running::prune_all;
use crate::support::{done, path, prune, refused, registry, told, write};
use concordat::core::HardState;
use concordat::ids::{LogIndex, Term};
use concordat::storage::Store;
use serde_json::Value;

#[tokio::test(flavor = "multi_thread")]
async fn a_restored_member_joins_with_a_fresh_key_and_fetches_only_the_rest() {
    let mut nodes = Nodes::prepare(&["auto"; 3]);
    prune_all(&mut nodes, 3);
    nodes.run().await;
    let all = nodes.client();
    write(&all, "a", 300).await;
    prune(&nodes, &[0, 1, 2]).await;
    write(&all, "b", 120).await;
    let (file, genesis) = (nodes.root().join("a.backup"), nodes.genesis());
    let url = nodes.url(0);
    let said = tokio::task::block_in_place(|| {
        told(&["backup", "--out", path(&file), "--node", &url, "--genesis", path(&genesis)])
    });
    let held = said["last"].as_u64().expect("an index");
    write(&all, "c", 5).await;

    let joins = nodes.add();
    let data = nodes.data(joins);
    let other = Nodes::prepare(&["auto"]);
    let wrong = ["restore", "--from", path(&file), "--data", path(&data), "--genesis"];
    let said = refused(&[&wrong[..], &[path(&other.genesis())]].concat());
    assert!(said.contains("backup of cluster"), "{said}");
    done(&[&wrong[..], &[path(&genesis)]].concat());
    {
        let (store, recovered) = Store::open(&data.join("store")).expect("the store");
        assert_eq!((store.last_index(), store.headers_from()), (LogIndex(held), LogIndex(1)));
        let HardState { term, vote } = recovered.restored.hard;
        assert!(term > Term::ZERO && vote.is_none(), "its key never voted");
        assert!(
            !recovered.genesis.expect("pinned").table.members().iter().any(|m| m.bls_key == recovered.bls.public())
        );
    }
    // Never twice, and never over a store that was used.
    let said = refused(&["restore", "--from", path(&file), "--data", path(&data)]);
    assert!(said.contains("not fresh"), "{said}");
    // All of the history is there, offline.
    let audited = told(&["audit", "--genesis", path(&genesis), "--data", path(&data)]);
    assert_eq!(audited["summary"]["entries"].as_u64(), Some(held));

    nodes.arguments[joins] = vec!["--join".into(), "--config".into(), nodes.root().join("retain.toml").into()];
    nodes.restart(joins).await;
    let status = nodes.one(joins).status().await.expect("status");
    assert_eq!(status.standing, concordat::api::Standing::Waiting, "it counts for nothing yet");
    let url = nodes.url(nodes.leader_of(&[0, 1, 2]).await);
    let member = data.join("member.json");
    let row: Value = serde_json::from_slice(&std::fs::read(&member).expect("member.json")).expect("JSON");
    tokio::task::block_in_place(|| {
        done(&["member", "add", path(&member), "--node", &url]);
        done(&["member", "promote", row["did"].as_str().expect("a DID"), "--node", &url]);
    });
    nodes.settled().await;
    // It went on with what it had: no snapshot took its place.
    assert_eq!(nodes.one(joins).status().await.expect("status").first_index, {
        let first = until("it answers", async || nodes.one(0).status().await.ok()).await;
        first.first_index
    });
    assert_eq!(registry(&nodes.one(joins)).await, registry(&nodes.one(0)).await);
    for url in [nodes.url(joins), nodes.url(1)] {
        tokio::task::block_in_place(|| done(&["audit", "--genesis", path(&genesis), "--node", &url]));
    }
    // And it counts: with one of four gone, three are a quorum, it among them.
    nodes.kill(0);
    let rest = concordat::client::Client::new([nodes.url(1), nodes.url(2), nodes.url(joins)], Default::default());
    write(&rest.expect("a client"), "d", 5).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_restore_is_started_on_by_no_node() {
    let mut nodes = Nodes::start(1).await;
    write(&nodes.client(), "a", 3).await;
    let (file, genesis, url) = (nodes.root().join("a.backup"), nodes.genesis(), nodes.url(0));
    tokio::task::block_in_place(|| done(&["backup", "--out", path(&file), "--node", &url]));
    let joins = nodes.add();
    let data = nodes.data(joins);
    done(&["restore", "--from", path(&file), "--data", path(&data)]);
    // As it stands until the last step.
    std::fs::write(data.join("restoring"), "").expect("written");
    let serve = ["serve", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--join", "--data", path(&data)];
    let said = refused(&[&serve[..], &["--genesis", path(&genesis)]].concat());
    assert!(said.contains("restore into") && said.contains("interrupted"), "{said}");
    let said = refused(&["restore", "--from", path(&file), "--data", path(&data)]);
    assert!(said.contains("did not finish"), "{said}");
}
