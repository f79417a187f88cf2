//! A backup as a stream: read from the store as the reader takes it, one frame ahead at most.

use super::Api;
use super::error::{ApiError, RequestError};
use super::extract::Params;
use crate::backup::{Source, SourceError};
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::future::ready;
use futures::{Stream, StreamExt as _, stream};
use serde::Deserialize;
use std::io;
use std::time::Duration;

/// Slowest rate that may be asked for: a backup holds compaction back for as long as it takes.
const LEAST_RATE: u64 = 64 * 1024;
/// Fastest one; who wants more asks for none.
const MOST_RATE: u64 = 1 << 40;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct BackupParams {
    /// Bytes per second, at most; as fast as they are taken when absent.
    rate: Option<u64>,
}

pub(super) async fn backup(
    State(api): State<Api>,
    Params(BackupParams { rate }): Params<BackupParams>,
) -> Result<Response, ApiError> {
    if rate.is_some_and(|rate| !(LEAST_RATE..=MOST_RATE).contains(&rate)) {
        return Err(RequestError::Bounds { field: "rate", least: LEAST_RATE, most: MOST_RATE }.into());
    }
    let permit = api.backups.clone().try_acquire_owned().map_err(|_| ApiError::TooManyBackups)?;
    let handle = api.handle.clone();
    let opened = blocking(move || Source::open(handle.store(), false)).await?;
    // A node that stops ends it with an error, so that nobody takes what came for the whole.
    let whole = frames(opened?, rate).map(Some).chain(stream::once(ready(None)));
    let cut = stream::once(api.streams.ended()).map(|_| Some(Err(io::Error::other("the node is stopping"))));
    let frames = stream::select(whole, cut).take_while(|frame| ready(frame.is_some())).filter_map(ready);
    let frames = frames.map(move |frame| {
        // The permit lives as long as the stream.
        let _held = &permit;
        frame
    });
    let mut response = Body::from_stream(frames).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

/// An error ends the connection without the end that HTTP itself needs, so that no reader takes what came for a backup.
fn frames(source: Source, rate: Option<u64>) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
    stream::unfold(Some(source), move |source| async move {
        let mut source = source?;
        let read = blocking(move || source.next_frame().map(|frame| (frame, source))).await;
        let failed = |why: &dyn std::error::Error| {
            tracing::warn!(%why, "a backup ended early");
            Some((Err(io::Error::other(why.to_string())), None))
        };
        match read {
            Ok(Ok((None, source))) => {
                if let Some((end, sum)) = source.ended() {
                    tracing::info!(entries = end.entries, certificates = end.certificates, %sum, "backup streamed");
                }
                None
            }
            Ok(Ok((Some(frame), source))) => {
                if let Some(rate) = rate {
                    tokio::time::sleep(Duration::from_micros(frame.len() as u64 * 1_000_000 / rate)).await;
                }
                Some((Ok(frame.into()), Some(source)))
            }
            Ok(Err(why)) => failed(&why),
            Err(why) => failed(&why),
        }
    })
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, SourceError> + Send + 'static,
) -> Result<Result<T, SourceError>, ApiError> {
    tokio::task::spawn_blocking(work).await.map_err(|panic| {
        tracing::error!(%panic, "a backup panicked");
        ApiError::Internal
    })
}
