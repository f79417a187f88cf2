//! Streams that survive their node: reconnect, to another node if needed, and go on where they were.

use super::call::{Backoff, Failure, chain, read, refusal};
use super::sse::{Message, Parser};
use super::{Client, Refusal};
use crate::api::{AbortEvent, CommitEvent, ErrorBody, StreamError};
use crate::ids::LogIndex;
use crate::limits::SSE_KEEP_ALIVE_MS;
use futures::StreamExt;
use futures::stream::BoxStream;
use reqwest::header::ACCEPT;
use serde::de::DeserializeOwned;
use std::marker::PhantomData;
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};

/// A node that has not sent a byte for so long, comments included, is gone.
const SILENCE: Duration = Duration::from_millis(3 * SSE_KEEP_ALIVE_MS);

/// What a stream carries.
trait Item: DeserializeOwned + Send + 'static {
    /// The last part of the path.
    const PATH: &'static str;
    /// The name of its events.
    const EVENT: &'static str;
    fn index(&self) -> LogIndex;
}

impl Item for CommitEvent {
    const PATH: &'static str = "commits";
    const EVENT: &'static str = "commit";
    fn index(&self) -> LogIndex {
        self.index
    }
}

impl Item for AbortEvent {
    const PATH: &'static str = "aborts";
    const EVENT: &'static str = "abort";
    fn index(&self) -> LogIndex {
        self.index
    }
}

impl Client {
    /// Certified proposals from an index on: in order, each once, whichever nodes come and go. Ends with an error
    /// when entries are pruned, when no node has been reached for [`stream_patience`](super::Options), or when the
    /// client is closed.
    #[must_use]
    pub fn commits(&self, from: LogIndex) -> BoxStream<'static, Result<CommitEvent, StreamError>> {
        self.follow(from)
    }

    /// Aborted proposals from an index on; as [`Client::commits`].
    #[must_use]
    pub fn aborts(&self, from: LogIndex) -> BoxStream<'static, Result<AbortEvent, StreamError>> {
        self.follow(from)
    }

    fn follow<T: Item>(&self, from: LogIndex) -> BoxStream<'static, Result<T, StreamError>> {
        let reader = Reader::<T> {
            client: self.clone(),
            node: self.preferred(),
            next: from.max(LogIndex(1)),
            source: None,
            backoff: Backoff::new(),
            failing_since: None,
            item: PhantomData,
        };
        futures::stream::unfold(Some(reader), |reader| async move {
            let mut reader = reader?;
            let closed = reader.client.inner.closed.clone();
            let item = tokio::select! {
                item = reader.item() => item,
                () = closed.cancelled() => Err(StreamError::Closed),
            };
            let reader = item.is_ok().then_some(reader);
            Some((item, reader))
        })
        .boxed()
    }
}

/// An open connection.
struct Source {
    bytes: BoxStream<'static, reqwest::Result<bytes::Bytes>>,
    parser: Parser,
}

/// Why a connection gave no item.
enum Lost {
    /// Another may.
    Reconnect(String),
    /// None will.
    End(StreamError),
}

struct Reader<T> {
    client: Client,
    /// Position of the node to connect to.
    node: usize,
    /// The first index not delivered.
    next: LogIndex,
    source: Option<Source>,
    backoff: Backoff,
    failing_since: Option<Instant>,
    item: PhantomData<fn() -> T>,
}

impl<T: Item> Reader<T> {
    /// The next item, however many connections it takes.
    async fn item(&mut self) -> Result<T, StreamError> {
        loop {
            let detail = match self.read().await {
                Ok(item) => return Ok(item),
                Err(Lost::End(error)) => return Err(error),
                Err(Lost::Reconnect(detail)) => detail,
            };
            self.source = None;
            self.node = self.node.wrapping_add(1);
            let since = *self.failing_since.get_or_insert_with(Instant::now);
            if since.elapsed() >= self.client.inner.options.stream_patience {
                return Err(StreamError::Unreachable { detail });
            }
            tracing::debug!(detail, "an event stream reconnects");
            sleep(self.backoff.pause()).await;
        }
    }

    /// The next item of the connection at hand, or of a new one.
    async fn read(&mut self) -> Result<T, Lost> {
        if self.source.is_none() {
            self.source = Some(self.connect().await?);
        }
        let Some(source) = &mut self.source else { return Err(Lost::Reconnect("not connected".into())) };
        loop {
            while let Some(message) = source.parser.next() {
                let Some(item) = decode::<T>(&message)? else { continue };
                if item.index() < self.next {
                    // Delivered before, by another connection.
                    continue;
                }
                let after = item.index().0.checked_add(1).map(LogIndex);
                self.next = after.ok_or_else(|| Lost::Reconnect("an index is out of range".into()))?;
                return Ok(item);
            }
            let bytes = match timeout(SILENCE, source.bytes.next()).await {
                Ok(Some(Ok(bytes))) => bytes,
                Ok(Some(Err(error))) => return Err(Lost::Reconnect(chain(&error))),
                Ok(None) => return Err(Lost::Reconnect("the node ended the stream".into())),
                Err(_) => return Err(Lost::Reconnect("the node has fallen silent".into())),
            };
            source.parser.push(&bytes).map_err(|e| Lost::Reconnect(e.to_string()))?;
            // A sign of life: whatever failed before is over.
            self.failing_since = None;
            self.backoff = Backoff::new();
        }
    }

    async fn connect(&mut self) -> Result<Source, Lost> {
        let inner = &self.client.inner;
        let Some(node) = inner.nodes.get(self.node % inner.nodes.len()) else {
            return Err(Lost::Reconnect("no node is known".into()));
        };
        let from = self.next.to_string();
        let request = inner
            .http
            .get(node.at(&["v1", T::PATH], &[("from", &from)]))
            .header(ACCEPT, "text/event-stream")
            // As a browser would say it; the same as `from`.
            .header("last-event-id", self.next.prev().to_string());
        let response = match timeout(SILENCE, request.send()).await {
            Ok(Ok(response)) => response,
            Ok(Err(error)) => return Err(Lost::Reconnect(format!("{node}: {}", chain(&error)))),
            Err(_) => return Err(Lost::Reconnect(format!("{node} does not answer"))),
        };
        let status = response.status();
        if status.is_success() {
            return Ok(Source { bytes: response.bytes_stream().boxed(), parser: Parser::default() });
        }
        let Ok(Ok(body)) = timeout(SILENCE, read(response)).await else {
            return Err(Lost::Reconnect(format!("{node} answered {status}")));
        };
        Err(match refusal(node, status, &body) {
            Failure::Refused(Refusal { body, .. }) if !body.retryable => {
                Lost::End(StreamError::Unreachable { detail: format!("{node} refused the stream: {}", body.message) })
            }
            Failure::Refused(refusal) => Lost::Reconnect(format!("{node}: {refusal}")),
            Failure::Unreachable(detail) | Failure::Protocol(detail) => Lost::Reconnect(detail),
        })
    }
}

/// Reads an event; `None` for those of a kind that this client does not know.
fn decode<T: Item>(message: &Message) -> Result<Option<T>, Lost> {
    let unreadable = |e| Lost::Reconnect(format!("an event that cannot be read: {e}"));
    if message.event == T::EVENT {
        return serde_json::from_str(&message.data).map(Some).map_err(unreadable);
    }
    if message.event == "error" {
        let body: ErrorBody = serde_json::from_str(&message.data).map_err(unreadable)?;
        return Err(stream_error(&body));
    }
    Ok(None)
}

/// What an `error` event means for the reader.
fn stream_error(body: &ErrorBody) -> Lost {
    let first = body.error.as_ref().and_then(|e| e.get("first")).and_then(serde_json::Value::as_u64);
    match (body.code.as_str(), first) {
        ("pruned", Some(first)) => Lost::End(StreamError::Pruned { first: LogIndex(first) }),
        _ => Lost::Reconnect(body.message.clone()),
    }
}
