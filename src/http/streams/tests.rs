use super::*;
use crate::api::CommitEvent;
use crate::ids::{NodeId, ProposalId, Term};
use crate::registry::Outcome;
use axum::body::Body;
use futures::stream;
use std::sync::atomic::{AtomicU64, Ordering};

fn commit(index: u64, payload: &str) -> CommitEvent {
    CommitEvent {
        index: LogIndex(index),
        id: ProposalId { term: Term(1), seq: index, origin: NodeId([7; 32]) },
        client: "c".into(),
        request_id: index.to_string(),
        payload: payload.into(),
        outcome: Outcome::Opaque,
        certificate: None,
    }
}

fn headers(last: Option<&str>) -> HeaderMap {
    last.map(|last| (header::HeaderName::from_static(LAST_EVENT_ID), HeaderValue::from_str(last).unwrap()))
        .into_iter()
        .collect()
}

async fn text(body: Body) -> String {
    String::from_utf8(axum::body::to_bytes(body, usize::MAX).await.unwrap().into()).unwrap()
}

#[test]
fn a_stream_goes_on_after_the_last_event_and_from_counts_only_without_one() {
    let at = |from, last| start(LogIndex(from), &headers(last)).ok().map(|i| i.0);
    assert_eq!(at(0, None), Some(1));
    assert_eq!(at(9, None), Some(9));
    assert_eq!(at(3, Some("9")), Some(10));
    assert_eq!(at(3, Some("0")), Some(1));
    assert_eq!(at(3, Some("")), Some(3));
    for last in ["x", "-1", "1.5", "18446744073709551615", "18446744073709551616"] {
        assert_eq!(at(3, Some(last)), None, "{last}");
    }
}

#[tokio::test]
async fn events_carry_their_index_and_an_error_is_the_last() {
    let gate = Gate::new(1, CancellationToken::new());
    let items = vec![Ok(commit(4, "a\nb")), Err(StreamError::Pruned { first: LogIndex(9) }), Ok(commit(5, "c"))];
    let response = gate.open(LogIndex(4), &HeaderMap::new(), |_| stream::iter(items).boxed()).unwrap();
    assert_eq!(response.headers()[header::CONTENT_TYPE], "text/event-stream");
    let text = text(response.into_body()).await;
    let lines: Vec<_> = text.lines().collect();
    assert_eq!((lines[0], lines[1]), ("event: commit", "id: 4"), "{text}");
    let event: CommitEvent = serde_json::from_str(lines[2].strip_prefix("data: ").unwrap()).unwrap();
    assert_eq!(event, commit(4, "a\nb"));
    let error = lines.iter().skip_while(|l| **l != "event: error").nth(1).unwrap();
    let error: crate::api::ErrorBody = serde_json::from_str(error.strip_prefix("data: ").unwrap()).unwrap();
    assert_eq!((error.code.as_str(), error.retryable), ("pruned", false));
    assert_eq!(error.error.unwrap()["first"], 9);
    assert!(!text.contains("id: 5"));
}

#[tokio::test]
async fn a_stream_ends_at_shutdown_and_frees_its_place() {
    let shutdown = CancellationToken::new();
    let gate = Gate::new(1, shutdown.clone());
    let open = || gate.open(LogIndex(1), &HeaderMap::new(), |_| stream::pending::<Result<CommitEvent, _>>().boxed());
    let first = open().unwrap();
    assert!(matches!(open(), Err(ApiError::TooManyStreams)));
    drop(first);
    let second = open().unwrap();
    shutdown.cancel();
    assert_eq!(text(second.into_body()).await, "");
}

#[tokio::test]
async fn events_are_made_as_they_are_read() {
    let made = Arc::new(AtomicU64::new(0));
    let count = made.clone();
    let items = move |from: LogIndex| {
        let item = move |index| {
            count.fetch_add(1, Ordering::Relaxed);
            Ok(commit(index, "x"))
        };
        stream::iter(from.0..).map(item).boxed()
    };
    let gate = Gate::new(1, CancellationToken::new());
    let response = gate.open(LogIndex(1), &HeaderMap::new(), items).unwrap();
    let mut chunks = response.into_body().into_data_stream();
    for read in 1..=3 {
        assert!(chunks.next().await.unwrap().is_ok());
        assert_eq!(made.load(Ordering::Relaxed), read);
    }
}
