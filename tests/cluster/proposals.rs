//! Proposing, certificates, repeats, refusals.

use crate::support::{Cluster, certify, set_config, until, within};
use concordat::api::{FederatedConsensus, ProposalState, Propose, ProposeError, Wait};
use concordat::certificate::{Kind, Policy, Receipt};
use concordat::ids::LogIndex;
use futures::StreamExt;
use serde_json::json;

const AUTO: [Policy; 3] = [Policy::Auto; 3];

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_carries_a_certificate_of_a_quorum_that_verifies_from_the_genesis_alone() {
    let cluster = Cluster::start(&AUTO).await;
    let leader = cluster.node(cluster.leader().await);
    let status = certify(leader, Propose::new(set_config("routing/strategy", "nearest"))).await;
    let index = status.index.expect("certified means placed");
    let receipt = leader.receipt(index).expect("a certified entry has a receipt");

    let decoded = Receipt::decode(&receipt.encode()).expect("canonical bytes read back");
    let proved = decoded.verify(&cluster.genesis).expect("the receipt verifies");
    assert!(proved.certificate.signers.len() >= 2, "{:?}", proved.certificate.signers);
    assert_eq!(proved.certificate.proposal_id, status.id);
    assert!(proved.certificate.committed_at >= proved.header.proposed_at);

    let stranger = Cluster::prepare(&AUTO);
    assert!(decoded.verify(&stranger.genesis).is_err(), "another genesis proves nothing");
    cluster.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_entry_of_every_kind_has_a_receipt_that_verifies_on_every_node() {
    let cluster = Cluster::start(&AUTO).await;
    for n in 0..5 {
        certify(cluster.node(n % 3), Propose::new(set_config("k", &n.to_string()))).await;
    }
    let last = cluster.settled().await;
    for node in cluster.running() {
        for index in 1..=last.0 {
            let receipt = node.receipt(LogIndex(index)).expect("a receipt");
            receipt.verify(&cluster.genesis).unwrap_or_else(|why| panic!("entry {index}: {why}"));
        }
    }
    cluster.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_concurrent_proposals_get_ten_places_in_one_order_on_every_node() {
    let cluster = Cluster::start(&AUTO).await;
    let proposals = (0..10).map(|n| certify(cluster.node(n % 3), Propose::new(json!({"n": n}))));
    let statuses = futures::future::join_all(proposals).await;
    let mut places: Vec<_> = statuses.iter().map(|s| s.index.expect("placed")).collect();
    places.sort_unstable();
    places.dedup();
    assert_eq!(places.len(), 10);

    cluster.settled().await;
    let mut orders = Vec::new();
    for node in cluster.running() {
        let page = node.entries(LogIndex(1), 100).expect("entries");
        let proposals = page.entries.iter().filter(|e| e.kind == Kind::Proposal);
        let order: Vec<_> = proposals.map(|e| e.id.expect("a proposal has an id")).collect();
        assert!(order.is_sorted_by(|a, b| (a.term, a.seq) < (b.term, b.seq)), "{order:?}");
        orders.push(page.entries);
    }
    assert!(orders.windows(2).all(|w| w[0] == w[1]), "the nodes hold one log");
    cluster.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_request_is_applied_once_and_another_payload_under_its_id_is_refused() {
    let cluster = Cluster::start(&AUTO).await;
    let request = |value: &str| Propose {
        client: Some("importer".into()),
        request_id: Some("line-1".into()),
        ..Propose::new(set_config("k", value))
    };
    let first = certify(cluster.node(0), request("a")).await;
    let again = certify(cluster.node(0), request("a")).await;
    assert_eq!((again.index, again.id, again.repeated), (first.index, first.id, true));
    cluster.settled().await;
    for n in 0..3 {
        let reused = cluster.node(n).submit(request("b")).await;
        assert_eq!(reused, Err(ProposeError::RequestIdReused), "node {n}");
    }
    let both = futures::future::join_all((0..6).map(|n| {
        let propose = Propose { request_id: Some("line-2".into()), ..request("c") };
        certify(cluster.node(n % 3), propose)
    }))
    .await;
    assert!(both.iter().all(|s| s.index == both[0].index), "{both:?}");
    cluster.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_forwarding_a_follower_names_the_leader() {
    let mut cluster = Cluster::prepare(&AUTO);
    cluster.config.http.forward = false;
    for n in 0..3 {
        cluster.start_node(n).await;
    }
    let leader = cluster.leader().await;
    let follower = cluster.follower().await;
    let refused = cluster.node(follower).propose(json!({"a": 1}), None, None).await;
    let Err(concordat::api::CallError::Refused(ProposeError::NotLeader { leader: named, .. })) = refused else {
        panic!("{refused:?}");
    };
    assert_eq!(named, Some(cluster.ids[leader]));
    cluster.node(leader).propose(json!({"a": 1}), None, None).await.expect("the leader takes it");
    cluster.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn proposals_out_of_bounds_are_refused_and_change_nothing() {
    let cluster = Cluster::start(&AUTO).await;
    let node = cluster.node(0);
    let before = cluster.settled().await;
    let base = || Propose::new(json!({"a": 1}));
    let year = 365 * 24 * 3600 * 1000;
    let cases = [
        (Propose { ttl_ms: Some(0), ..base() }, ProposeError::InvalidTtl),
        (Propose { ttl_ms: Some(year), ..base() }, ProposeError::InvalidTtl),
        (Propose { required_quorum: Some(1), ..base() }, ProposeError::InvalidQuorum { least: 2, most: 3 }),
        (Propose { required_quorum: Some(4), ..base() }, ProposeError::InvalidQuorum { least: 2, most: 3 }),
        (Propose { request_id: Some(String::new()), ..base() }, ProposeError::InvalidRequestId),
        (Propose { client: Some("x".repeat(129)), ..base() }, ProposeError::InvalidRequestId),
        (Propose { deadline_ms: Some(u64::MAX), ..base() }, ProposeError::InvalidDeadline),
        (Propose { deadline_ms: Some(1), request_id: Some("old".into()), ..base() }, ProposeError::RequestExpired),
        (Propose::new(json!("x".repeat(70_000))), ProposeError::PayloadTooLarge { size: 70_002, limit: 64 * 1024 }),
    ];
    for (propose, error) in cases {
        assert_eq!(node.submit(propose.clone()).await, Err(error), "{propose:?}");
    }
    let malformed = node.submit(Propose::new(json!({"op": "register", "agent": {"agent_id": 7}}))).await;
    assert!(matches!(malformed, Err(ProposeError::MalformedOperation { .. })), "{malformed:?}");
    assert_eq!(cluster.settled().await, before, "nothing was appended");
    cluster.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_raised_quorum_asks_every_member_and_the_signers_are_those_who_granted() {
    let cluster = Cluster::start(&AUTO).await;
    let propose = Propose { required_quorum: Some(3), ..Propose::new(set_config("k", "v")) };
    let status = certify(cluster.node(0), propose).await;
    let receipt = cluster.node(0).receipt(status.index.expect("placed")).expect("a receipt");
    let proved = receipt.verify(&cluster.genesis).expect("verifies");
    let mut all = cluster.ids.clone();
    all.sort_unstable();
    assert_eq!(proved.certificate.signers, all);
    cluster.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_shows_every_commit_once_in_order_from_any_index() {
    let cluster = Cluster::start(&AUTO).await;
    let follower = cluster.follower().await;
    let mut live = cluster.node(follower).commit_stream(LogIndex(1));
    for n in 0..20 {
        certify(cluster.node(0), Propose::new(json!({"n": n}))).await;
    }
    let mut seen = Vec::new();
    for n in 0..20 {
        let event = within("the next commit", live.next()).await.expect("no end").expect("no error");
        assert_eq!(event.payload, json!({"n": n}));
        let certificate = event.certificate.expect("certified");
        assert!(certificate.head.head.size >= event.index.0);
        seen.push(event.index);
    }
    assert!(seen.is_sorted_by(|a, b| a < b));
    let mut later = cluster.node(0).commit_stream(seen[10]);
    let event = within("the first commit", later.next()).await.expect("no end").expect("no error");
    assert_eq!(event.index, seen[10]);
    cluster.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn accepted_answers_before_the_outcome_and_the_id_leads_to_it() {
    let cluster = Cluster::start(&AUTO).await;
    let leader = cluster.node(cluster.leader().await);
    let propose = Propose { wait: Wait::Accepted, ..Propose::new(json!({"x": 1})) };
    let status = leader.submit(propose).await.expect("taken");
    let id = status.id.expect("a leader has taken it");
    let found = until("the proposal is certified", || async {
        leader.proposal(&id).ok().filter(|s| s.state == ProposalState::Certified)
    })
    .await;
    assert_eq!(found.id, Some(id));
    cluster.close().await;
}
