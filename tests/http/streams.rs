//! Commits and aborts as they happen.

use crate::served::Served;
use crate::support::{set_config, within};
use concordat::api::{ProposalState, Propose};
use concordat::certificate::Policy;
use concordat::ids::LogIndex;
use futures::StreamExt;
use serde_json::json;

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_sees_every_commit_once_while_nodes_come_and_go() {
    let mut served = Served::start(&[Policy::Auto; 3]).await;
    let client = served.client();
    let mut commits = client.commits(LogIndex(1));
    let mut expected = Vec::new();
    for n in 0..30 {
        if n == 10 {
            // The node that the reader is connected to.
            served.stop(0).await;
        }
        let status = client.propose_with(Propose::new(set_config("k", &n.to_string()))).await.unwrap();
        assert_eq!(status.state, ProposalState::Certified);
        expected.push(status.index.unwrap());
    }
    for (n, index) in expected.into_iter().enumerate() {
        let event = within("the next commit", commits.next()).await.unwrap().unwrap();
        assert_eq!((event.index, event.payload), (index, set_config("k", &n.to_string())));
        assert_eq!(event.certificate.unwrap().index, index);
    }
    served.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn commits_and_aborts_do_not_mix() {
    let served = Served::start(&[Policy::Manual]).await;
    let client = served.client();
    let mut outcomes = Vec::new();
    for granted in [true, false, true] {
        let propose =
            Propose { ttl_ms: Some(60_000), wait: concordat::api::Wait::Accepted, ..Propose::new(json!(granted)) };
        let id = client.propose_with(propose).await.unwrap().id.unwrap();
        client.cast_vote(id, granted).await.unwrap();
        outcomes.push(id);
    }
    let commits: Vec<_> = within("commits", client.commits(LogIndex(1)).take(2).collect()).await;
    assert_eq!(commits.into_iter().map(|c| c.unwrap().id).collect::<Vec<_>>(), [outcomes[0], outcomes[2]]);
    let abort = within("the abort", client.aborts(LogIndex(1)).next()).await.unwrap().unwrap();
    assert_eq!((abort.id, abort.denied), (outcomes[1], vec![served.cluster.ids[0]]));
    served.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_stream_does_not_hold_up_shutdown() {
    let mut served = Served::start(&[Policy::Auto]).await;
    let response = served.get("/v1/commits").send().await.unwrap();
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let rest = tokio::spawn(response.text());
    served.stop(0).await;
    // To its end: not torn.
    assert_eq!(rest.await.unwrap().unwrap(), "");
}
