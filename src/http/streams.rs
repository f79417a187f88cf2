//! Commits and aborts as server-sent events.
//!
//! Each event has the entry's index as its id, so a reader that reconnects with `Last-Event-ID` goes on after the last
//! event it got. A stream ends when the node shuts down (simply, so that the reader reconnects) or with an `error`
//! event whose data is an error body. Events are made as the reader takes them: a slow reader slows its own stream.

use super::Api;
use super::error::{ApiError, RequestError, stream_error_body};
use super::extract::Params;
use crate::api::{AbortEvent, CommitEvent, StreamError};
use crate::ids::LogIndex;
use crate::limits::SSE_KEEP_ALIVE_MS;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures::stream::BoxStream;
use futures::{Stream, StreamExt};
use serde::{Deserialize, Serialize};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

const LAST_EVENT_ID: &str = "last-event-id";

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct StreamParams {
    #[serde(default)]
    from: LogIndex,
}

/// An item of a stream: an event named after its kind, with the index as id.
trait Item: Serialize + Send + 'static {
    const NAME: &'static str;
    fn index(&self) -> LogIndex;
}

impl Item for CommitEvent {
    const NAME: &'static str = "commit";
    fn index(&self) -> LogIndex {
        self.index
    }
}

impl Item for AbortEvent {
    const NAME: &'static str = "abort";
    fn index(&self) -> LogIndex {
        self.index
    }
}

pub(super) async fn commits(
    State(api): State<Api>,
    Params(StreamParams { from }): Params<StreamParams>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    api.streams.open(from, &headers, |from| api.handle.commits(from))
}

pub(super) async fn aborts(
    State(api): State<Api>,
    Params(StreamParams { from }): Params<StreamParams>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    api.streams.open(from, &headers, |from| api.handle.aborts(from))
}

/// What streams pass to be opened, and what ends them.
#[derive(Clone)]
pub(super) struct Gate {
    permits: Arc<Semaphore>,
    shutdown: CancellationToken,
}

impl Gate {
    pub(super) fn new(most: usize, shutdown: CancellationToken) -> Self {
        Self { permits: Arc::new(Semaphore::new(most)), shutdown }
    }

    /// Resolves when streams are to end.
    pub(super) fn ended(&self) -> impl Future<Output = ()> + Send + 'static {
        self.shutdown.clone().cancelled_owned()
    }

    fn open<T: Item>(
        &self,
        from: LogIndex,
        headers: &HeaderMap,
        items: impl FnOnce(LogIndex) -> BoxStream<'static, Result<T, StreamError>>,
    ) -> Result<Response, ApiError> {
        let from = start(from, headers)?;
        let permit = self.permits.clone().try_acquire_owned().map_err(|_| ApiError::TooManyStreams)?;
        let events = events(items(from)).take_until(self.shutdown.clone().cancelled_owned());
        let events = events.map(move |event| {
            // The permit lives as long as the stream.
            let _held = &permit;
            Ok::<_, Infallible>(event)
        });
        let keep_alive = KeepAlive::new().interval(Duration::from_millis(SSE_KEEP_ALIVE_MS));
        let mut response = Sse::new(events).keep_alive(keep_alive).into_response();
        response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        Ok(response)
    }
}

/// Where a stream begins: after `Last-Event-ID` when the reader sends one (a browser repeats the first URL, `from`
/// included, when it reconnects), else at `from`.
fn start(from: LogIndex, headers: &HeaderMap) -> Result<LogIndex, RequestError> {
    let Some(given) = headers.get(LAST_EVENT_ID).filter(|v| !v.is_empty()) else { return Ok(from.max(LogIndex(1))) };
    let last = given.to_str().ok().and_then(|text| text.parse::<u64>().ok());
    last.and_then(|last| last.checked_add(1))
        .map(LogIndex)
        .ok_or_else(|| RequestError::LastEventId { given: String::from_utf8_lossy(given.as_bytes()).into_owned() })
}

/// Turns items into events and ends after an error.
fn events<T: Item>(items: BoxStream<'static, Result<T, StreamError>>) -> impl Stream<Item = Event> + Send + 'static {
    futures::stream::unfold(Some(items), |items| async move {
        let mut items = items?;
        match items.next().await? {
            Ok(item) => Some(match item_event(&item) {
                Ok(event) => (event, Some(items)),
                Err(event) => (event, None),
            }),
            Err(StreamError::Closed) => None,
            Err(error) => {
                tracing::warn!(%error, "an event stream ended");
                Some((error_event(&stream_error_body(&error)), None))
            }
        }
    })
}

fn item_event<T: Item>(item: &T) -> Result<Event, Event> {
    let event = Event::default().event(T::NAME).id(item.index().to_string());
    event.json_data(item).map_err(|error| {
        tracing::error!(%error, index = %item.index(), "an event is no JSON");
        error_event(&ApiError::Internal.body())
    })
}

fn error_event(body: &crate::api::ErrorBody) -> Event {
    let event = Event::default().event("error");
    // An error body is strings and flags; should it ever fail to serialise, the reader still learns that it ended.
    event.clone().json_data(body).unwrap_or(event)
}

#[cfg(test)]
mod tests;
