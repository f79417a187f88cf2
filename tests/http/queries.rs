//! Reading the log, the registry and the proofs over HTTP.

use crate::served::{Served, error, send};
use crate::support::{set_config, until};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use concordat::api::{CallError, ProposalState, Propose};
use concordat::certificate::{Entry, Genesis, HeadCertificate, Kind, Policy, Receipt};
use concordat::client::Page;
use concordat::config::Snapshots;
use concordat::ids::LogIndex;
use concordat::registry::AgentStatus;
use reqwest::StatusCode;
use serde_json::{Value, json};

fn register(id: &str, tag: &str) -> Value {
    let agent = json!({"agent_id": id, "display_name": id, "endpoint": "e", "capabilities": [{"tag": tag}]});
    json!({"op": "register", "agent": agent})
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_certified_can_be_read_and_proved_from_the_genesis_alone() {
    let served = Served::start(&[Policy::Auto]).await;
    let client = served.client();
    let status = client.propose_with(Propose::new(register("a", "search"))).await.unwrap();
    assert_eq!(status.state, ProposalState::Certified);
    let (id, index) = (status.id.unwrap(), status.index.unwrap());
    assert_eq!(client.proposal(id).await.unwrap().index, Some(index));
    assert_eq!(client.request(None, &status.request_id).await.unwrap().id, Some(id));

    let entry = client.entry(index).await.unwrap();
    assert_eq!((entry.kind, entry.id, entry.payload), (Kind::Proposal, Some(id), Some(register("a", "search"))));
    let decoded = Entry::decode(&BASE64.decode(entry.entry.unwrap()).unwrap()).unwrap();
    assert_eq!(hex::encode(decoded.header.encode()), entry.header);

    let genesis = Genesis::from_json(&client.genesis().await.unwrap()).unwrap();
    assert_eq!(genesis.id(), served.cluster.genesis.id());
    let bytes = client.receipt(index).await.unwrap();
    assert_eq!(bytes, client.receipt(id).await.unwrap());
    let receipt = Receipt::decode(&bytes).unwrap();
    assert_eq!(receipt.verify(&genesis).unwrap().certificate.proposal_id, Some(id));
    assert_eq!(Receipt::from_json(&client.receipt_json(id).await.unwrap()).unwrap(), receipt);

    let page = client.certificates(0, 10).await.unwrap();
    let certificate = HeadCertificate::decode(&BASE64.decode(&page.certificates[0]).unwrap()).unwrap();
    certificate.verify(&genesis.id(), &genesis.in_force(), None).unwrap();
    served.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_join_without_gap_or_overlap() {
    let served = Served::start(&[Policy::Auto]).await;
    let client = served.client();
    for n in 0..40 {
        client.propose_with(Propose::new(set_config(&format!("k{n:02}"), "v"))).await.unwrap();
    }
    let last = served.cluster.settled().await;
    let (mut from, mut seen) = (LogIndex(1), Vec::new());
    loop {
        let page = client.entries(from, 33).await.unwrap();
        seen.extend(page.entries.iter().map(|e| e.index.0));
        let Some(next) = page.next else { break };
        from = next;
    }
    assert_eq!(seen, (1..=last.0).collect::<Vec<_>>());
    assert!(client.entries(last.next(), 10).await.unwrap().entries.is_empty());

    let (mut offset, mut keys) = (0, Vec::new());
    loop {
        let page = client.configs(Page { from: offset, limit: 7 }).await.unwrap().answer;
        keys.extend(page.configs.into_iter().map(|c| c.key));
        let Some(next) = page.next else { break };
        offset = next;
    }
    assert_eq!(keys, (0..40).map(|n| format!("k{n:02}")).collect::<Vec<_>>());
    served.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_registry_is_found_by_id_by_capability_and_status_and_with_its_history() {
    let served = Served::start(&[Policy::Auto]).await;
    let client = served.client();
    for payload in [
        register("a/1 ü", "search"),
        register("b", "search"),
        register("c", "mail"),
        json!({"op": "set_status", "agent_id": "b", "status": "busy"}),
        set_config("routing/strategy", "one"),
        set_config("routing/strategy", "two"),
        json!({"op": "deregister", "agent_id": "c"}),
    ] {
        client.propose_with(Propose::new(payload)).await.unwrap();
    }
    let last = served.cluster.settled().await;
    let agent = client.agent("a/1 ü").await.unwrap();
    assert_eq!(agent.answer.agent.agent_id, "a/1 ü");
    assert_eq!((agent.applied_index, agent.certified_index), (last, last));

    let find = async |capability, status| {
        let found = client.find(capability, status, Page::default()).await.unwrap().answer;
        found.agents.into_iter().map(|r| r.agent.agent_id).collect::<Vec<_>>()
    };
    assert_eq!(find(Some("search"), None).await, ["a/1 ü", "b"]);
    assert_eq!(find(Some("search"), Some(AgentStatus::Busy)).await, ["b"]);
    assert_eq!(find(None, None).await, ["a/1 ü", "b"]);
    let one = client.find(None, None, Page { from: 0, limit: 1 }).await.unwrap().answer;
    assert_eq!((one.agents.len(), one.next), (1, Some(1)));

    let config = client.config("routing/strategy").await.unwrap().answer;
    assert_eq!((config.key.as_str(), &config.record.value), ("routing/strategy", &json!("two")));
    // A key with slashes may stand in the path as it is, too.
    let plain: Value = send(served.get("/v1/registry/config/routing/strategy")).await.json().await.unwrap();
    assert_eq!((&plain["value"], &plain["revision"]), (&json!("two"), &json!(config.record.revision)));

    let history = client.config_history("routing/strategy", Page::default()).await.unwrap().answer;
    assert_eq!(history.entries.len(), 2);
    assert_eq!(history.entries[1].index, config.record.revision);
    let history = client.agent_history("c", Page { from: LogIndex(0), limit: 1 }).await.unwrap().answer;
    let rest = client.agent_history("c", Page { from: history.next.unwrap(), limit: 9 }).await.unwrap().answer;
    assert_eq!((history.entries.len(), rest.entries.len(), rest.next), (1, 1, None));
    assert_eq!(rest.entries[0].index, last);
    served.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_there_is_404_and_what_is_no_name_400() {
    let served = Served::start(&[Policy::Auto]).await;
    let member = served.cluster.ids[0];
    for (path, status, code) in [
        ("/v1/entries/0", 404, "not_found"),
        ("/v1/entries/999999", 404, "not_found"),
        ("/v1/receipts/18446744073709551615", 404, "not_found"),
        (&*format!("/v1/proposals/9-9-{member}"), 404, "not_found"),
        (&*format!("/v1/proposals/9-9-{member}/receipt"), 404, "not_found"),
        ("/v1/requests?request_id=none", 404, "not_found"),
        ("/v1/registry/agents/none", 404, "not_found"),
        ("/v1/registry/agents/none/history", 404, "not_found"),
        ("/v1/registry/config/none", 404, "not_found"),
        ("/v1/registry/config/none?history=true", 404, "not_found"),
        ("/v1/entries/18446744073709551616", 400, "invalid_path"),
        ("/v1/proposals/9-9", 400, "invalid_path"),
        ("/v1/requests", 400, "invalid_query"),
        ("/v1/entries?limit=many", 400, "invalid_query"),
        ("/v1/entries?limit=0", 422, "out_of_bounds"),
        ("/v1/entries?limit=1001", 422, "out_of_bounds"),
        ("/v1/certificates?from=1", 400, "invalid_query"),
        ("/v1/registry/agents?status=asleep", 400, "invalid_query"),
        ("/v1/registry/config/none?from=1", 400, "invalid_query"),
        ("/v1/status?verbose", 400, "invalid_query"),
        ("/v1", 404, "no_route"),
    ] {
        let (got, body) = error(served.get(path)).await;
        assert_eq!((got.as_u16(), &*body.code), (status, code), "{path}: {body:?}");
        assert!(body.without_effect && !body.retryable, "{path}");
    }
    let CallError::Refused(refusal) = served.client().agent("none").await.unwrap_err() else { panic!("not refused") };
    assert_eq!((refusal.status, &*refusal.body.code), (StatusCode::NOT_FOUND.as_u16(), "not_found"));
    served.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pruned_payload_is_gone_by_name_while_its_header_receipt_and_audit_stay() {
    let served = Served::start_with(&[Policy::Auto], |options| {
        options.config.snapshots = Snapshots { every: None, retain: 0, ..Snapshots::default() };
    })
    .await;
    let client = served.client();
    let mut first = None;
    for n in 0..20 {
        let status = client.propose_with(Propose::new(set_config(&format!("k{n}"), "v"))).await.unwrap();
        first.get_or_insert((status.id.unwrap(), status.index.unwrap()));
    }
    let (id, index) = first.unwrap();
    let marked = client.mark_snapshot().await.unwrap();
    until("the payload is pruned", || async {
        let (status, entry) = (client.status().await.unwrap(), client.entry(index).await.unwrap());
        (status.snapshot_index == Some(marked.index) && entry.entry.is_none()).then_some(())
    })
    .await;
    assert_eq!(client.entry(index).await.unwrap().payload, None);
    let (status, body) = error(served.get(&format!("/v1/proposals/{id}"))).await;
    assert_eq!((status, &*body.code), (StatusCode::GONE, "pruned"));
    let genesis = Genesis::from_json(&client.genesis().await.unwrap()).unwrap();
    let receipt = Receipt::decode(&client.receipt(id).await.unwrap()).unwrap();
    assert!(receipt.body.is_none());
    assert_eq!(receipt.verify(&genesis).unwrap().certificate.proposal_id, Some(id));

    let dir = served.cluster.data(0);
    let file = dir.join("genesis.json");
    std::fs::write(&file, genesis.to_json()).unwrap();
    let audit = |from: [&std::ffi::OsStr; 2]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_concordat"));
        let ran = command.args(["--json", "audit", "--genesis"]).arg(&file).args(from).output().unwrap();
        assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
        serde_json::from_slice::<Value>(&ran.stdout).unwrap()["summary"]["proposals"].clone()
    };
    let url = served.url(0, "");
    assert_eq!(audit(["--node".as_ref(), url.as_ref()]), 20);
    let mut served = served;
    served.stop(0).await;
    assert_eq!(audit(["--data".as_ref(), dir.as_ref()]), 20);
}
