//! Ballots with `rules` and `manual` members.

use crate::support::{Cluster, certify, set_config, until, within};
use concordat::api::{FederatedConsensus, ProposalState, Propose, ProposeError, VoteError};
use concordat::certificate::{AbortReason, Policy};
use concordat::ids::LogIndex;
use concordat::node::Handle;
use concordat::node::clock::wall_ms;
use futures::StreamExt;

async fn open_ballot(node: &Handle) -> concordat::ids::ProposalId {
    until("a ballot is open", || async { node.ballots().first().map(|b| b.id) }).await
}

#[tokio::test(flavor = "multi_thread")]
async fn one_grant_and_two_withheld_abort_after_the_ttl_on_every_nodes_stream() {
    let cluster = Cluster::start(&[Policy::Auto, Policy::Manual, Policy::Manual]).await;
    let propose = Propose { ttl_ms: Some(300), ..Propose::new(set_config("k", "v")) };
    let status = within("the answer", cluster.node(0).submit(propose)).await.expect("taken");
    assert_eq!((status.state, status.abort_reason), (ProposalState::Aborted, Some(AbortReason::Expired)));
    for node in cluster.running() {
        let mut aborts = node.abort_stream(LogIndex(1));
        let event = within("the abort", aborts.next()).await.expect("no end").expect("no error");
        assert_eq!((Some(event.id), event.reason), (status.id, AbortReason::Expired));
        assert_eq!((event.granted, event.denied), (vec![cluster.ids[0]], vec![]));
    }
    for index in 1..=cluster.settled().await.0 {
        let receipt = cluster.node(1).receipt(LogIndex(index)).expect("a receipt");
        receipt.verify(&cluster.genesis).expect("an abort is proved as well");
    }
    cluster.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ballot_that_meets_its_requests_deadline_gets_a_definite_answer() {
    let cluster = Cluster::start(&[Policy::Manual; 3]).await;
    let node = cluster.node(0);
    let deadline_ms = Some(wall_ms() + 1_500);
    let propose = |n: usize| Propose {
        ttl_ms: Some(300_000),
        wait_ms: Some(50_000),
        request_id: Some(n.to_string()),
        deadline_ms,
        ..Propose::new(set_config("k", "v"))
    };
    let answers = futures::future::join_all((0..8).map(|n| node.submit(propose(n))));
    // One vote each, whose tally takes the decision past the deadline as a rule.
    let votes = async {
        until("all are asked about", || async { (node.ballots().len() == 8).then_some(()) }).await;
        for ballot in node.ballots() {
            node.cast_vote(ballot.id, true).await.expect("the vote is cast");
        }
    };
    let (answers, ()) = tokio::join!(within("the answers", answers), votes);
    for answer in answers {
        let definite = match &answer {
            Ok(status) => status.abort_reason == Some(AbortReason::Expired),
            Err(why) => *why == ProposeError::RequestExpired,
        };
        assert!(definite, "{answer:?}");
    }
    until("nothing is pending", || async {
        cluster.running().all(|n| n.consensus_snapshot().pending_proposals == 0).then_some(())
    })
    .await;
    cluster.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_signers_are_exactly_the_members_whose_grant_is_proved() {
    let cluster = Cluster::start(&[Policy::Manual; 3]).await;
    let propose = Propose { ttl_ms: Some(60_000), ..Propose::new(set_config("k", "v")) };
    let answer = certify(cluster.node(0), propose);
    let votes = async {
        let id = open_ballot(cluster.node(2)).await;
        for (n, granted) in [(2, false), (0, true), (1, true)] {
            open_ballot(cluster.node(n)).await;
            cluster.node(n).vote(id, granted).await.expect("the vote is cast");
        }
    };
    let (status, ()) = tokio::join!(answer, votes);
    cluster.settled().await;
    let receipt = cluster.node(1).receipt(status.index.expect("placed")).expect("a receipt");
    let proved = receipt.verify(&cluster.genesis).expect("verifies");
    let mut granted = vec![cluster.ids[0], cluster.ids[1]];
    granted.sort_unstable();
    assert_eq!(proved.certificate.signers, granted);
    assert_eq!(proved.granted, granted);
    assert!(proved.denied.iter().all(|d| *d == cluster.ids[2]));
    cluster.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn denials_that_make_a_quorum_impossible_reject_at_once_and_are_on_record() {
    let cluster = Cluster::start(&[Policy::Manual; 3]).await;
    let propose = Propose { ttl_ms: Some(60_000), ..Propose::new(set_config("k", "v")) };
    let answer = cluster.node(0).submit(propose);
    let votes = async {
        let id = open_ballot(cluster.node(1)).await;
        for n in [1, 2] {
            open_ballot(cluster.node(n)).await;
            cluster.node(n).vote(id, false).await.expect("the vote is cast");
        }
    };
    let (status, ()) = tokio::join!(within("the answer", answer), votes);
    let status = status.expect("taken");
    assert_eq!((status.state, status.abort_reason), (ProposalState::Aborted, Some(AbortReason::Rejected)));
    cluster.settled().await;
    let receipt = cluster.node(0).receipt(status.index.expect("placed")).expect("a receipt");
    let proved = receipt.verify(&cluster.genesis).expect("verifies");
    assert_eq!(proved.denied.len(), 2);
    cluster.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rules_member_denies_what_its_rules_do_not_allow() {
    let mut cluster = Cluster::prepare(&[Policy::Rules; 3]);
    cluster.config.rules.allow_key_prefixes = Some(vec!["routing/".into()]);
    for n in 0..3 {
        cluster.start_node(n).await;
    }
    cluster.leader().await;
    certify(cluster.node(0), Propose::new(set_config("routing/strategy", "nearest"))).await;
    let other = within("the answer", cluster.node(0).submit(Propose::new(set_config("secret/key", "x")))).await;
    let other = other.expect("taken");
    assert_eq!((other.state, other.abort_reason), (ProposalState::Aborted, Some(AbortReason::Rejected)));
    cluster.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn votes_that_cannot_count_are_refused_with_the_reason() {
    let cluster = Cluster::start(&[Policy::Auto, Policy::Manual, Policy::Manual]).await;
    let id = concordat::ids::ProposalId { term: concordat::ids::Term(9), seq: 9, origin: cluster.ids[0] };
    let unknown = cluster.node(1).cast_vote(id, true).await;
    assert_eq!(unknown, Err(VoteError::NoBallot { id }));
    let auto = cluster.node(0).cast_vote(id, true).await;
    assert_eq!(auto, Err(VoteError::NotManual { policy: Policy::Auto }));

    let propose = Propose { ttl_ms: Some(60_000), ..Propose::new(set_config("k", "v")) };
    let answer = certify(cluster.node(0), propose);
    let votes = async {
        let id = open_ballot(cluster.node(1)).await;
        cluster.node(1).cast_vote(id, true).await.expect("the vote is cast");
        let again = cluster.node(1).cast_vote(id, false).await;
        assert!(matches!(again, Err(VoteError::NoBallot { .. } | VoteError::AlreadyCast { .. })), "{again:?}");
    };
    tokio::join!(answer, votes);
    cluster.close().await;
}
