//! Proposals whose leader ends before it has appended them, and one request that comes in through two nodes.

use crate::support::{Cluster, certify, set_config, until, within};
use concordat::api::{FederatedConsensus, ProposalState, ProposalStatus, Propose, ProposeError, VoteError, Wait};
use concordat::certificate::{Kind, Policy};
use concordat::ids::{LogIndex, ProposalId};
use concordat::node::Handle;
use concordat::node::clock::wall_ms;
use serde_json::Value;
use tokio::task::JoinHandle;

const MANUAL: [Policy; 3] = [Policy::Manual; 3];

fn named(payload: Value) -> Propose {
    let (client, request_id) = (Some("importer".into()), Some("line-1".into()));
    Propose { client, request_id, ttl_ms: Some(60_000), ..Propose::new(payload) }
}

/// Proposes in the background; the answer is demanded to be a certified one.
fn certified(node: &Handle, propose: Propose) -> JoinHandle<ProposalStatus> {
    let node = node.clone();
    tokio::spawn(async move {
        // A refusal for want of room came before anything was taken: a client tries again.
        let refused = |answer: &Result<ProposalStatus, ProposeError>| matches!(answer, Err(ProposeError::Backpressure));
        while refused(&node.submit(Propose { wait: Wait::Accepted, ..propose.clone() }).await) {
            tokio::task::yield_now().await;
        }
        certify(&node, propose).await
    })
}

/// The ballot that waits for this member, other than one.
async fn ballot_at(node: &Handle, other_than: Option<ProposalId>) -> ProposalId {
    until("a ballot is open", || async { node.ballots().iter().map(|b| b.id).find(|id| Some(*id) != other_than) }).await
}

/// How many proposals, granted or not, a node's log holds.
fn proposals(node: &Handle) -> usize {
    let page = node.entries(LogIndex(1), 1000).expect("entries");
    page.entries.iter().filter(|e| matches!(e.kind, Kind::Proposal | Kind::Aborted)).count()
}

/// A follower proposes, the leader opens the ballot and ends, the next leader opens another; both that are left grant.
async fn outlives_its_leader(mut cluster: Cluster) {
    let leader = cluster.leader().await;
    let origin = cluster.follower().await;
    let answer = certified(cluster.node(origin), named(set_config("k", "v")));
    let first = ballot_at(cluster.node(origin), None).await;
    cluster.stop_node(leader).await;
    for n in [origin, 3 - leader - origin] {
        let second = ballot_at(cluster.node(n), Some(first)).await;
        assert!(second.term > first.term && second.origin == cluster.ids[origin], "{first} {second}");
        cluster.node(n).vote(second, true).await.expect("the vote is cast");
    }
    let status = within("the answer", answer).await.expect("no panic");
    cluster.settled().await;
    assert!(cluster.running().all(|node| proposals(node) == 1), "it stands in the log once");
    let receipt = cluster.node(origin).receipt(status.index.expect("placed")).expect("a receipt");
    assert!(receipt.header.proposal_id.is_some_and(|id| id.term > first.term));
    cluster.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proposal_whose_leader_ends_before_appending_it_is_committed_by_the_next() {
    outlives_its_leader(Cluster::start(&MANUAL).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proposal_that_a_leader_had_taken_is_sent_again_until_the_next_has_room() {
    let mut cluster = Cluster::prepare(&MANUAL);
    // A new leader's first entry fills it until that is committed: the proposal sent again at once meets backpressure.
    cluster.config.limits.uncommitted_bytes = 1;
    for n in 0..3 {
        cluster.start_node(n).await;
    }
    cluster.settled().await;
    outlives_its_leader(cluster).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_request_through_two_nodes_at_once_is_one_ballot_with_one_outcome() {
    let cluster = Cluster::start(&MANUAL).await;
    let leader = cluster.leader().await;
    let (one, other) = ((leader + 1) % 3, (leader + 2) % 3);
    let answers = [one, other].map(|n| certified(cluster.node(n), named(set_config("k", "v"))));
    let id = ballot_at(cluster.node(one), None).await;
    for n in [leader, other] {
        assert_eq!(ballot_at(cluster.node(n), None).await, id);
        assert_eq!(cluster.node(n).ballots().len(), 1);
    }
    cluster.node(one).cast_vote(id, true).await.expect("the vote is cast");
    let contrary = cluster.node(one).cast_vote(id, false).await;
    assert!(matches!(contrary, Err(VoteError::NoBallot { .. } | VoteError::AlreadyCast { .. })), "{contrary:?}");
    cluster.node(other).cast_vote(id, true).await.expect("the vote is cast");
    let mut outcomes = Vec::new();
    for answer in answers {
        let status = within("the answer", answer).await.expect("no panic");
        outcomes.push((status.id, status.index));
    }
    assert_eq!((outcomes[0].0, outcomes[0]), (Some(id), outcomes[1]));
    cluster.settled().await;
    assert_eq!(proposals(cluster.node(leader)), 1);
    cluster.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_answers_a_second_ballot_on_one_request_as_it_answered_the_first() {
    let mut cluster = Cluster::start(&MANUAL).await;
    let leader = cluster.leader().await;
    let (one, other) = ((leader + 1) % 3, (leader + 2) % 3);
    let answers = [one, other].map(|n| certified(cluster.node(n), named(set_config("k", "v"))));
    let first = ballot_at(cluster.node(one), None).await;
    cluster.node(one).cast_vote(first, true).await.expect("the vote is durable");
    cluster.stop_node(leader).await;

    let second = ballot_at(cluster.node(other), Some(first)).await;
    for id in [first, second] {
        let contrary = cluster.node(one).cast_vote(id, false).await;
        assert!(matches!(contrary, Err(VoteError::NoBallot { .. } | VoteError::AlreadyCast { .. })), "{contrary:?}");
    }
    assert_eq!(cluster.node(one).ballots(), vec![], "its application is not asked again");
    // One grant is missing: the other is on record.
    cluster.node(other).cast_vote(second, true).await.expect("the vote is cast");
    let mut index = None;
    for answer in answers {
        let status = within("the answer", answer).await.expect("no panic");
        assert_eq!(index.get_or_insert(status.index), &status.index);
    }
    cluster.settled().await;
    let receipt = cluster.node(one).receipt(index.flatten().expect("placed")).expect("a receipt");
    let proved = receipt.verify(&cluster.genesis).expect("verifies");
    let mut granted = vec![cluster.ids[one], cluster.ids[other]];
    granted.sort_unstable();
    assert_eq!((proved.granted, proved.denied), (granted, vec![]));
    cluster.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_payload_through_another_node_is_refused_while_the_first_is_on_a_ballot() {
    let cluster = Cluster::start(&MANUAL).await;
    let leader = cluster.leader().await;
    let origin = (leader + 1) % 3;
    let propose = Propose { wait: Wait::Accepted, ..named(set_config("k", "first")) };
    let taken = cluster.node(origin).submit(propose).await.expect("a leader has taken it");
    for n in [leader, origin, (leader + 2) % 3] {
        let refused = within("a refusal", cluster.node(n).submit(named(set_config("k", "other")))).await;
        assert_eq!(refused, Err(ProposeError::RequestIdReused), "node {n} ({leader} leads)");
        assert_eq!(Some(ballot_at(cluster.node(n), None).await), taken.id);
        assert_eq!(cluster.node(n).ballots().len(), 1);
    }
    cluster.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_payloads_under_one_request_id_sent_while_nobody_leads_one_is_certified_and_the_other_refused() {
    let mut cluster = Cluster::start(&[Policy::Auto; 3]).await;
    let leader = cluster.leader().await;
    cluster.stop_node(leader).await;
    let submit = |n: usize| cluster.node((leader + n) % 3).submit(named(set_config("k", &n.to_string())));
    let (one, other) = within("both answers", async { tokio::join!(submit(1), submit(2)) }).await;
    let [certified, refused] = if one.is_ok() { [one, other] } else { [other, one] };
    assert_eq!(certified.expect("one is taken").state, ProposalState::Certified);
    assert_eq!(refused, Err(ProposeError::RequestIdReused));
    cluster.settled().await;
    cluster.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proposal_whose_deadline_passes_while_nobody_leads_is_answered_as_expired() {
    let mut cluster = Cluster::start(&MANUAL).await;
    let leader = cluster.leader().await;
    let (origin, other) = ((leader + 1) % 3, (leader + 2) % 3);
    let deadline = wall_ms() + 5_000;
    let propose = Propose { deadline_ms: Some(deadline), wait_ms: Some(120_000), ..named(set_config("k", "v")) };
    let taken = cluster.node(origin).submit(Propose { wait: Wait::Accepted, ..propose.clone() }).await;
    assert!(taken.expect("a leader takes it").id.is_some());
    let node = cluster.node(origin).clone();
    let answer = tokio::spawn(async move { node.submit(propose).await });
    ballot_at(cluster.node(origin), None).await;
    cluster.stop_node(other).await;
    cluster.stop_node(leader).await;
    until("the deadline is past", || async { (wall_ms() > deadline).then_some(()) }).await;
    cluster.start_node(other).await;
    let answer = within("the answer", answer).await.expect("no panic");
    assert_eq!(answer, Err(ProposeError::RequestExpired), "its caller had been told that it was taken");
    cluster.close().await;
}
