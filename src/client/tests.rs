//! What the client does when nodes fail: against servers that answer as told.

use super::*;
use crate::api::{
    CallError, CommitEvent, FederatedConsensus, ProposalState, ProposalStatus, Propose, ProposeError, StreamError,
    VoteError,
};
use crate::ids::{LogIndex, NodeId, ProposalId, Term};
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse, Response};
use futures::StreamExt;
use serde_json::{Value, json};
use std::sync::Mutex;
use tokio::net::{TcpListener, TcpSocket};

/// What a node was asked.
#[derive(Debug)]
struct Seen {
    method: Method,
    path: String,
    last_event_id: Option<String>,
    body: Value,
}

/// A node that gives the answers it was told, in order, and then no more.
struct Node {
    address: String,
    seen: Arc<Mutex<Vec<Seen>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Node {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Node {
    async fn answering<I>(answers: I) -> Self
    where
        I: IntoIterator<Item = Response>,
        I::IntoIter: Send + 'static,
    {
        Self::at(TcpListener::bind("127.0.0.1:0").await.unwrap(), answers)
    }

    fn at<I>(listener: TcpListener, answers: I) -> Self
    where
        I: IntoIterator<Item = Response>,
        I::IntoIter: Send + 'static,
    {
        let script = Arc::new(Mutex::new(answers.into_iter()));
        let seen = Arc::new(Mutex::new(Vec::new()));
        let record = seen.clone();
        let routes = Router::new().fallback(async move |request: Request| {
            let (parts, body) = request.into_parts();
            let body = axum::body::to_bytes(body, usize::MAX).await.unwrap();
            record.lock().unwrap().push(Seen {
                method: parts.method,
                path: parts.uri.to_string(),
                last_event_id: parts.headers.get("last-event-id").map(|v| v.to_str().unwrap().to_owned()),
                body: serde_json::from_slice(&body).unwrap_or_default(),
            });
            let answer = script.lock().unwrap().next();
            match answer {
                Some(answer) => answer,
                // Out of answers: never answer.
                None => std::future::pending().await,
            }
        });
        let address = listener.local_addr().unwrap().to_string();
        let task = tokio::spawn(async move { axum::serve(listener, routes).await.unwrap() });
        Self { address, seen, task }
    }

    fn seen(&self) -> Vec<Seen> {
        std::mem::take(&mut *self.seen.lock().unwrap())
    }
}

/// A port where nothing listens, and nothing else will as long as this lives.
struct Gone {
    address: String,
    _socket: TcpSocket,
}

fn gone() -> Gone {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    Gone { address: socket.local_addr().unwrap().to_string(), _socket: socket }
}

fn options() -> Options {
    Options { deadline: Duration::from_secs(5), stream_patience: Duration::from_millis(300), ..Options::default() }
}

fn client<S: AsRef<str>>(nodes: impl IntoIterator<Item = S>) -> Client {
    Client::new(nodes, options()).unwrap()
}

fn id(seq: u64) -> ProposalId {
    ProposalId { term: Term(2), seq, origin: NodeId([3; 32]) }
}

fn status(state: ProposalState) -> ProposalStatus {
    ProposalStatus {
        id: Some(id(1)),
        state,
        index: Some(LogIndex(7)),
        abort_reason: None,
        outcome: None,
        repeated: false,
        client: "anonymous".into(),
        request_id: "r".into(),
    }
}

fn ok(answer: &impl serde::Serialize) -> Response {
    axum::Json(answer).into_response()
}

fn error(status: u16, code: &str, retryable: bool, leader: Option<&str>, error: Option<&ProposeError>) -> Response {
    let body = ErrorBody {
        code: code.into(),
        message: "as told".into(),
        retryable,
        leader: leader.map(str::to_owned),
        without_effect: true,
        error: error.map(|e| serde_json::to_value(e).unwrap()),
    };
    (StatusCode::from_u16(status).unwrap(), axum::Json(body)).into_response()
}

fn not_leader(leader: Option<&str>) -> Response {
    error(503, "not_leader", true, leader, Some(&ProposeError::NotLeader { leader: None, address: None }))
}

/// An answer that breaks off in the middle.
fn torn() -> Response {
    let chunks = vec![Ok(Bytes::from_static(b"{\"id\":")), Err(std::io::Error::other("torn"))];
    Body::from_stream(futures::stream::iter(chunks)).into_response()
}

#[tokio::test]
async fn a_lost_answer_is_asked_for_again_under_the_same_request_id() {
    let first = Node::answering([torn()]).await;
    let second = Node::answering([ok(&status(ProposalState::Certified))]).await;
    let client = client([&first.address, &second.address]);
    let got = client.propose_with(Propose::new(json!({"a": 1}))).await.unwrap();
    assert_eq!(got, status(ProposalState::Certified));
    let (one, two) = (first.seen().remove(0), second.seen().remove(0));
    assert_eq!((&one.method, &*one.path), (&Method::POST, "/v1/proposals"));
    assert_eq!(one.body, two.body);
    assert_eq!(one.body["request_id"].as_str().unwrap().len(), 32);
    assert!(one.body["deadline_ms"].is_u64(), "no node chooses a deadline of its own");
}

#[tokio::test]
async fn a_request_that_only_one_call_can_repeat_is_remembered_for_minutes_a_named_one_for_a_day() {
    let node = Node::answering((0..3).map(|_| ok(&status(ProposalState::Certified)))).await;
    let client = client([&node.address]);
    let named = Propose { request_id: Some("mine".into()), ..Propose::new(json!(1)) };
    let own = Propose { deadline_ms: Some(77), ..named.clone() };
    for propose in [Propose::new(json!(1)), named, own] {
        client.propose_with(propose).await.unwrap();
    }
    let deadlines: Vec<u64> = node.seen().iter().map(|seen| seen.body["deadline_ms"].as_u64().unwrap()).collect();
    let hours = (deadlines[1] - deadlines[0]) / 3_600_000;
    assert!((23..=24).contains(&hours) && deadlines[2] == 77, "{deadlines:?}");
}

#[tokio::test]
async fn two_proposals_never_share_a_made_up_id_and_a_given_one_is_kept() {
    let answers = || (0..3).map(|_| ok(&status(ProposalState::Committed)));
    let node = Node::answering(answers()).await;
    let options = Options { client: Some("importer".into()), ..options() };
    let client = Client::new([&node.address], options).unwrap();
    for _ in 0..2 {
        client.propose_with(Propose::new(json!(1))).await.unwrap();
    }
    let given = Propose { request_id: Some("mine".into()), client: Some("me".into()), ..Propose::new(json!(1)) };
    client.propose_with(given).await.unwrap();
    let seen = node.seen();
    assert_ne!(seen[0].body["request_id"], seen[1].body["request_id"]);
    assert_eq!((&seen[0].body["client"], &seen[2].body["client"]), (&json!("importer"), &json!("me")));
    assert_eq!(seen[2].body["request_id"], "mine");
}

#[tokio::test]
async fn a_dead_node_is_passed_over_and_the_one_that_answers_is_asked_first_from_then_on() {
    let alive = Node::answering((0..2).map(|_| ok(&status(ProposalState::Certified)))).await;
    let dead = gone();
    let client = client([&dead.address, &alive.address]);
    client.proposal(id(1)).await.unwrap();
    assert_eq!(client.preferred(), 1);
    client.proposal(id(1)).await.unwrap();
    assert_eq!(alive.seen().len(), 2);
}

#[tokio::test]
async fn the_leader_that_a_node_names_is_asked_next_even_when_it_was_not_given() {
    let leader = Node::answering([ok(&status(ProposalState::Certified))]).await;
    let follower = Node::answering([not_leader(Some(&leader.address))]).await;
    let client = client([&follower.address]);
    client.propose_with(Propose::new(json!(1))).await.unwrap();
    assert_eq!((follower.seen().len(), leader.seen().len()), (1, 1));
}

#[tokio::test]
async fn two_nodes_that_name_each_other_do_not_keep_a_call_busy() {
    let bind = async || TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (one, two) = (bind().await, bind().await);
    let naming = |listener: &TcpListener| {
        let other = listener.local_addr().unwrap().to_string();
        std::iter::repeat_with(move || not_leader(Some(&other)))
    };
    let (for_one, for_two) = (naming(&two), naming(&one));
    let (one, two) = (Node::at(one, for_one), Node::at(two, for_two));
    let options = Options { deadline: Duration::from_millis(500), ..options() };
    let client = Client::new([&one.address, &two.address], options).unwrap();
    let refused = client.propose_with(Propose { wait_ms: Some(0), ..Propose::new(json!(1)) }).await.unwrap_err();
    assert!(matches!(refused, CallError::Refused(ProposeError::NotLeader { .. })), "{refused:?}");
    let asked = one.seen().len() + two.seen().len();
    assert!((3..60).contains(&asked), "{asked} requests in two seconds");
}

#[tokio::test]
async fn backpressure_is_waited_out() {
    let busy = || error(429, "backpressure", true, None, Some(&ProposeError::Backpressure));
    let node = Node::answering([busy(), busy(), ok(&status(ProposalState::Certified))]).await;
    client([&node.address]).propose_with(Propose::new(json!(1))).await.unwrap();
    assert_eq!(node.seen().len(), 3);
}

#[tokio::test]
async fn a_refusal_for_good_is_not_repeated_and_keeps_its_type() {
    let reused = error(409, "request_id_reused", false, None, Some(&ProposeError::RequestIdReused));
    let (first, second) = (Node::answering([reused]).await, Node::answering([]).await);
    let client = client([&first.address, &second.address]);
    let refused = client.propose_with(Propose::new(json!(1))).await.unwrap_err();
    assert_eq!(refused, CallError::Refused(ProposeError::RequestIdReused));
    assert_eq!((first.seen().len(), second.seen().len()), (1, 0));
}

#[tokio::test]
async fn a_receipt_is_waited_for_until_it_is_certified() {
    let early = || error(409, "not_certified", true, None, None);
    let node = Node::answering([early(), early(), Bytes::from_static(b"receipt").into_response()]).await;
    assert_eq!(client([&node.address]).receipt(LogIndex(7)).await.unwrap(), "receipt");
    assert!(node.seen().iter().all(|s| s.path == "/v1/receipts/7"));
}

#[tokio::test]
async fn a_vote_is_never_cast_at_another_members_node() {
    let other = Node::answering([ok(&json!({}))]).await;
    let options = Options { deadline: Duration::from_millis(200), ..options() };
    let own = gone();
    let client = Client::new([&own.address, &other.address], options).unwrap();
    let failed = client.vote(id(1), true).await.unwrap_err();
    assert!(matches!(failed, CallError::<VoteError>::Unreachable { .. }), "{failed:?}");
    assert!(client.ballots().await.is_err());
    assert!(other.seen().is_empty());
}

#[tokio::test]
async fn a_call_ends_at_its_deadline_and_says_what_the_last_node_said() {
    let gone = gone();
    let options = Options { deadline: Duration::from_millis(200), ..options() };
    let failed = Client::new([&gone.address], options).unwrap().status().await.unwrap_err();
    let CallError::Unreachable { detail } = &failed else { panic!("{failed:?}") };
    assert!(detail.contains(&gone.address) && detail.contains("refused"), "{detail}");
}

#[tokio::test]
async fn something_that_is_no_node_is_said_to_be_none() {
    let stranger = Node::answering([(StatusCode::BAD_GATEWAY, "<html>").into_response(), ok(&json!("hello"))]).await;
    let client = client([&stranger.address]);
    for _ in 0..2 {
        let failed = client.status().await.unwrap_err();
        assert!(matches!(failed, CallError::Protocol { .. }), "{failed:?}");
    }
}

#[tokio::test]
async fn an_endless_answer_is_refused() {
    let endless = futures::stream::repeat_with(|| Ok::<_, std::io::Error>(Bytes::from(vec![b' '; 1 << 20])));
    let node = Node::answering([Body::from_stream(endless).into_response()]).await;
    let failed = client([&node.address]).status().await.unwrap_err();
    assert!(matches!(failed, CallError::Protocol { .. }), "{failed:?}");
}

#[tokio::test]
async fn close_ends_calls_and_streams_of_every_clone() {
    let silent = Node::answering([]).await;
    let client = client([&silent.address]);
    let one = client.each().next().unwrap();
    let mut commits = one.commits(LogIndex(1));
    let call = tokio::spawn({
        let client = client.clone();
        async move { client.status().await }
    });
    let (item, ()) = tokio::join!(commits.next(), client.close());
    assert_eq!(item, Some(Err(StreamError::Closed)));
    assert_eq!(commits.next().await, None);
    assert!(matches!(call.await.unwrap(), Err(CallError::Unreachable { .. })));
}

fn commit(index: u64) -> CommitEvent {
    CommitEvent {
        index: LogIndex(index),
        id: id(index),
        client: "c".into(),
        request_id: index.to_string(),
        payload: json!({"line\nfeed": "ü"}),
        outcome: crate::registry::Outcome::Opaque,
        certificate: None,
    }
}

/// The events as a stream, in chunks that cut them anywhere.
fn events(indexes: impl IntoIterator<Item = u64>, end: Option<&'static str>) -> Response {
    let mut text = String::from(": hello\n\n");
    for index in indexes {
        let data = serde_json::to_string(&commit(index)).unwrap();
        text += &format!("id: {index}\nevent: commit\ndata: {data}\n\n");
    }
    text += end.unwrap_or_default();
    let chunks: Vec<_> =
        text.as_bytes().chunks(41).map(|c| Ok::<_, std::io::Error>(Bytes::copy_from_slice(c))).collect();
    Body::from_stream(futures::stream::iter(chunks)).into_response()
}

fn indexes(items: &[Result<CommitEvent, StreamError>]) -> Vec<u64> {
    items.iter().map(|item| item.as_ref().unwrap().index.0).collect()
}

#[tokio::test]
async fn a_stream_goes_on_at_another_node_and_gives_every_index_once() {
    // The first breaks off within an event; the second, ahead of what it was asked, repeats one.
    let first = Node::answering([events([3, 4], Some("id: 5\nevent: commit\ndata: {\"ind"))]).await;
    let second = Node::answering([events([4, 5, 9], None)]).await;
    let client = client([&first.address, &second.address]);
    let got: Vec<_> = client.commits(LogIndex(3)).take(4).collect().await;
    assert_eq!(indexes(&got), [3, 4, 5, 9]);
    assert_eq!(got[0], Ok(commit(3)));
    let (one, two) = (first.seen().remove(0), second.seen().remove(0));
    assert_eq!((&*one.path, one.last_event_id.as_deref()), ("/v1/commits?from=3", Some("2")));
    assert_eq!((&*two.path, two.last_event_id.as_deref()), ("/v1/commits?from=5", Some("4")));
}

#[tokio::test]
async fn a_stream_ends_when_no_node_has_answered_for_long() {
    let options = Options { stream_patience: Duration::from_millis(100), ..options() };
    let gone = gone();
    let mut commits = Client::new([&gone.address], options).unwrap().commits(LogIndex(1));
    assert!(matches!(commits.next().await, Some(Err(StreamError::Unreachable { .. }))));
    assert_eq!(commits.next().await, None);
}

#[tokio::test]
async fn a_stream_says_where_the_log_begins_when_entries_are_pruned() {
    let body = ErrorBody {
        code: "pruned".into(),
        message: "gone".into(),
        retryable: false,
        leader: None,
        without_effect: true,
        error: Some(json!({"first": 40})),
    };
    let event: &str = format!("event: error\ndata: {}\n\n", serde_json::to_string(&body).unwrap()).leak();
    let node = Node::answering([events([], Some(event))]).await;
    let got: Vec<_> = client([&node.address]).commits(LogIndex(1)).collect().await;
    assert_eq!(got, [Err(StreamError::Pruned { first: LogIndex(40) })]);
}

#[tokio::test]
async fn what_a_node_sends_as_events_cannot_break_the_reader() {
    let bad = ["data: x\n\nevent: commit\ndata: {}\n\n", "event: error\ndata: 1\n\n", "\u{0}\u{0}\n\n"];
    let answers = bad.map(|text| events([], Some(text))).into_iter();
    let last = serde_json::to_string(&commit(u64::MAX)).unwrap();
    let last: &str = format!("event: commit\ndata: {last}\n\n").leak();
    let node = Node::answering(answers.chain([events([], Some(last)), events([1], None)])).await;
    let got: Vec<_> = client([&node.address]).commits(LogIndex(1)).take(1).collect().await;
    assert_eq!(indexes(&got), [1]);
}

#[test]
fn a_client_needs_a_node() {
    assert!(matches!(Client::new([""; 0], options()), Err(ClientError::NoNode)));
    assert!(matches!(Client::new(["https://127.0.0.1"], options()), Err(ClientError::Address { .. })));
}
