//! Proposing and voting over HTTP.

use crate::served::{Served, error, send};
use crate::support::{set_config, until, within};
use concordat::api::{
    CallError, FederatedConsensus, ProposalState, ProposalStatus, Propose, ProposeError, VoteError, Wait,
};
use concordat::certificate::{AbortReason, Policy};
use concordat::client::{Client, Options};
use reqwest::StatusCode;
use serde_json::json;

#[tokio::test(flavor = "multi_thread")]
async fn a_repeat_is_answered_with_the_first_outcome_and_another_payload_is_refused() {
    let served = Served::start(&[Policy::Auto]).await;
    let propose = |value| json!({"payload": set_config("k", value), "client": "c", "request_id": "r"});
    let response = send(served.post("/v1/proposals", &propose("a"))).await;
    assert_eq!(response.status(), StatusCode::OK);
    let first: ProposalStatus = response.json().await.unwrap();
    assert_eq!((first.state, first.repeated), (ProposalState::Certified, false));
    let again: ProposalStatus = send(served.post("/v1/proposals", &propose("a"))).await.json().await.unwrap();
    assert_eq!((again.index, again.repeated), (first.index, true));
    let (status, body) = error(served.post("/v1/proposals", &propose("b"))).await;
    assert_eq!((status, &*body.code), (StatusCode::CONFLICT, "request_id_reused"));
    assert!(!body.without_effect && !body.retryable, "an earlier attempt may come in yet");
    served.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_out_of_bounds_is_refused_by_name_and_leaves_no_entry() {
    let served = Served::start(&[Policy::Auto]).await;
    let before = served.cluster.settled().await;
    let large = "x".repeat(64 * 1024);
    for (body, status, code) in [
        (json!({"payload": large}), 413, "payload_too_large"),
        (json!({"payload": 1, "ttl_ms": 0}), 422, "invalid_ttl"),
        (json!({"payload": 1, "ttl_ms": 31_536_000_000_u64}), 422, "invalid_ttl"),
        (json!({"payload": 1, "required_quorum": 0}), 422, "invalid_quorum"),
        (json!({"payload": 1, "required_quorum": 2}), 422, "invalid_quorum"),
        (json!({"payload": 1, "request_id": ""}), 422, "invalid_request_id"),
        (json!({"payload": 1, "deadline_ms": u64::MAX}), 422, "invalid_deadline"),
        (json!({"payload": 1, "request_id": "late", "deadline_ms": 1}), 410, "request_expired"),
        (json!({"payload": {"op": "set_config", "key": 1, "value": 1}}), 422, "malformed_operation"),
        (json!({"payload": {"op": "set_status", "agent_id": "a", "status": "asleep"}}), 422, "malformed_operation"),
        (json!({"payload": 1, "wait_ms": 31_536_000_000_u64}), 422, "out_of_bounds"),
        (json!({"payload": 1, "quorum": 1}), 422, "invalid_body"),
    ] {
        let (got, error) = error(served.post("/v1/proposals", &body)).await;
        assert_eq!((got.as_u16(), &*error.code), (status, code), "{error:?}");
        assert!(!error.retryable, "{error:?}");
        assert!(error.without_effect || code == "request_expired", "{error:?}");
    }
    assert_eq!(served.cluster.settled().await, before);
    served.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_with_all_the_proposals_it_takes_answers_429_until_one_is_decided() {
    let served = Served::start_with(&[Policy::Manual], |options| options.config.limits.pending = 2).await;
    let post = |n: u64| {
        let name = format!("r{n}");
        served.post("/v1/proposals", &json!({"payload": n, "request_id": name, "ttl_ms": 60_000, "wait": "accepted"}))
    };
    for n in [1, 2] {
        assert_eq!(send(post(n)).await.status(), StatusCode::ACCEPTED);
    }
    assert_eq!(send(post(3)).await.headers()["retry-after"], "1");
    let (status, body) = error(post(3)).await;
    assert_eq!((status, &*body.code), (StatusCode::TOO_MANY_REQUESTS, "backpressure"));
    assert!(body.retryable && body.without_effect, "{body:?}");
    assert_eq!(serde_json::from_value::<ProposeError>(body.error.unwrap()).unwrap(), ProposeError::Backpressure);
    assert_eq!(send(post(1)).await.status(), StatusCode::ACCEPTED, "what is pending already takes no more room");

    let client = served.client();
    let both = || async { Some(client.ballots().await.unwrap()).filter(|open| open.len() == 2) };
    let open = until("both are up for the vote", both).await;
    client.cast_vote(open[0].id, true).await.unwrap();
    let room = || async { Some(send(post(3)).await.status()).filter(|s| *s != StatusCode::TOO_MANY_REQUESTS) };
    assert_eq!(until("there is room again", room).await, StatusCode::ACCEPTED);
    assert_eq!(error(post(4)).await.0, StatusCode::TOO_MANY_REQUESTS, "for one");
    served.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_does_not_wait_gets_202_and_how_to_ask_again() {
    let served = Served::start(&[Policy::Manual]).await;
    let body = json!({"payload": 1, "ttl_ms": 60_000, "wait": "accepted"});
    let accepted = send(served.post("/v1/proposals", &body)).await;
    assert_eq!(accepted.status(), StatusCode::ACCEPTED);
    let accepted: ProposalStatus = accepted.json().await.unwrap();
    assert_eq!((accepted.state, accepted.index), (ProposalState::Pending, None));
    let id = accepted.id.expect("a leader has taken it");

    let body = json!({"payload": 2, "ttl_ms": 60_000, "wait_ms": 1});
    let outlived = send(served.post("/v1/proposals", &body)).await;
    assert_eq!(outlived.status(), StatusCode::ACCEPTED);

    let client = served.client();
    client.cast_vote(id, true).await.unwrap();
    let status = until("the outcome is known under its request id", || async {
        client.request(Some(&accepted.client), &accepted.request_id).await.ok()
    });
    assert_eq!(status.await.id, Some(id));
    served.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vote_is_cast_once_and_an_abort_is_an_outcome() {
    let served = Served::start(&[Policy::Manual]).await;
    let client = served.client();
    let propose = Propose { ttl_ms: Some(60_000), ..Propose::new(set_config("k", "v")) };
    let answer = tokio::spawn({
        let client = client.clone();
        async move { client.propose_with(propose).await }
    });
    let ballot = until("a ballot is open", || async { client.ballots().await.unwrap().pop() }).await;
    assert_eq!(ballot.payload, set_config("k", "v"));
    client.cast_vote(ballot.id, false).await.unwrap();
    let status = within("the outcome", answer).await.unwrap().unwrap();
    assert_eq!((status.state, status.abort_reason), (ProposalState::Aborted, Some(AbortReason::Rejected)));

    let path = format!("/v1/proposals/{}/votes", ballot.id);
    let (late, body) = error(served.post(&path, &json!({"granted": true}))).await;
    assert!(matches!(&*body.code, "no_ballot" | "already_cast"), "{body:?}");
    assert!(matches!(late, StatusCode::NOT_FOUND | StatusCode::CONFLICT));
    let unknown = concordat::ids::ProposalId { seq: 999, ..ballot.id };
    let refused = client.cast_vote(unknown, true).await.unwrap_err();
    assert_eq!(refused, CallError::Refused(VoteError::NoBallot { id: unknown }));
    served.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_automatic_member_takes_no_votes() {
    let served = Served::start(&[Policy::Auto]).await;
    let client = served.client();
    let id = client.propose(json!("anything"), None, None).await.unwrap();
    let refused = client.vote(id, true).await.unwrap_err();
    assert!(
        matches!(refused, CallError::Refused(VoteError::NotManual { .. } | VoteError::NoBallot { .. })),
        "{refused:?}"
    );
    served.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_forwarding_a_follower_names_the_leader_and_the_client_goes_there() {
    let served = Served::start_with(&[Policy::Auto; 3], |options| options.config.http.forward = false).await;
    let leader = served.cluster.leader().await;
    let follower = served.cluster.follower().await;
    let address = served.url(leader, "");
    let hint = until("the follower knows where the leader serves HTTP", || async {
        served.cluster.node(follower).http_address(&served.cluster.ids[leader])
    });
    assert_eq!(hint.await, address);

    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let (status, body) = error(http.post(served.url(follower, "/v1/proposals")).json(&json!({"payload": 1}))).await;
    assert_eq!((status, &*body.code), (StatusCode::SERVICE_UNAVAILABLE, "not_leader"));
    assert_eq!(body.leader.as_deref(), Some(&*address));
    let typed: ProposeError = serde_json::from_value(body.error.unwrap()).unwrap();
    assert!(matches!(typed, ProposeError::NotLeader { leader: Some(l), .. } if l == served.cluster.ids[leader]));

    let one = Client::new([served.url(follower, "")], Options::default()).unwrap();
    let status = one.propose_with(Propose { wait: Wait::Committed, ..Propose::new(json!(1)) }).await.unwrap();
    assert_ne!(status.state, ProposalState::Pending);
    served.close().await;
}
