//! The HTTP/JSON interface of a node: plaintext HTTP/1.1, on loopback only until access control exists.
//!
//! A request passes `guard` (who may ask), then one handler, which reads it (`extract`), asks the node's
//! [`Handle`] and answers; whatever goes wrong becomes an answer in `error`, and nowhere else. `routes` lists what
//! there is; `docs/openapi.json`, served at `/v1/openapi.json`, describes it.
//!
//! Everything is bounded: connections, streams, store queries at once, request heads and bodies, their time, pages,
//! and the time a reader may leave an answer unread. A stream pulls from the log only what its reader takes.
//!
//! Answers to `POST /v1/proposals`: 200 when what was waited for is reached, or the proposal was aborted (that is an
//! outcome, in the log like any other: `"state":"aborted"` with the reason); 202 with the state reached when the wait
//! was for less or has outlived its time; otherwise an error.

mod backup;
mod error;
mod extract;
mod guard;
mod log;
mod members;
mod operations;
mod proposals;
mod registry;
mod routes;
mod server;
mod stall;
mod streams;

pub use server::{ServeError, Server, serve};

use crate::limits::{HTTP_QUEUE_MS, MAX_BACKUPS, MAX_HTTP_QUERIES, MAX_HTTP_STREAMS};
use crate::node::{Handle, QueryError};
use axum::response::{IntoResponse, Response};
use error::ApiError;
use serde::Serialize;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

/// What the handlers share.
#[derive(Clone)]
struct Api {
    handle: Handle,
    /// Permits to read the store.
    queries: Arc<Semaphore>,
    streams: streams::Gate,
    /// Permits to stream a backup.
    backups: Arc<Semaphore>,
}

impl Api {
    fn new(handle: Handle, shutdown: CancellationToken) -> Self {
        Self {
            handle,
            queries: Arc::new(Semaphore::new(MAX_HTTP_QUERIES)),
            streams: streams::Gate::new(MAX_HTTP_STREAMS, shutdown),
            backups: Arc::new(Semaphore::new(MAX_BACKUPS)),
        }
    }

    /// Asks the node off the async threads, where it may read the store; writes the answer there too, since a page can
    /// be megabytes long.
    async fn ask<T: Serialize>(
        &self,
        query: impl FnOnce(&Handle) -> Result<T, QueryError> + Send + 'static,
    ) -> Result<Response, ApiError> {
        self.answer(|handle| query(handle).map_err(ApiError::from).and_then(|answer| json(&answer))).await
    }

    /// As [`Api::ask`], for answers that are not JSON.
    async fn answer(
        &self,
        query: impl FnOnce(&Handle) -> Result<Response, ApiError> + Send + 'static,
    ) -> Result<Response, ApiError> {
        let turn = tokio::time::timeout(Duration::from_millis(HTTP_QUEUE_MS), self.queries.clone().acquire_owned());
        let permit = turn.await.map_err(|_| ApiError::Overloaded)?.map_err(|_| ApiError::Internal)?;
        let handle = self.handle.clone();
        // The permit moves along: a caller who hangs up frees it only when the store has been read.
        let task = tokio::task::spawn_blocking(move || {
            let answer = query(&handle);
            drop(permit);
            answer
        });
        task.await.unwrap_or_else(|panic| {
            tracing::error!(%panic, "an HTTP query panicked");
            Err(ApiError::Internal)
        })
    }
}

/// A 200 with a JSON body.
fn json(answer: &impl Serialize) -> Result<Response, ApiError> {
    let body = serde_json::to_vec(answer).map_err(|error| {
        tracing::error!(%error, "an answer is no JSON");
        ApiError::Internal
    })?;
    Ok(typed("application/json", body))
}

/// A 200 with a body of some type.
fn typed(content_type: &'static str, body: impl IntoResponse) -> Response {
    ([(axum::http::header::CONTENT_TYPE, content_type)], body).into_response()
}
