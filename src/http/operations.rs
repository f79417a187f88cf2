//! What operators and their tools read.

use super::error::ApiError;
use super::extract::{NoParams, Params};
use super::{Api, json, typed};
use axum::extract::State;
use axum::response::Response;

/// The description of this interface.
pub(super) const OPENAPI: &str = include_str!("../docs/openapi.json");

pub(super) async fn status(
    State(api): State<Api>,
    Params(NoParams {}): Params<NoParams>,
) -> Result<Response, ApiError> {
    json(&api.handle.status())
}

/// Answers when it is done, which takes as long as copying the database does.
pub(super) async fn compact(
    State(api): State<Api>,
    Params(NoParams {}): Params<NoParams>,
) -> Result<Response, ApiError> {
    json(&api.handle.compact_database().await?)
}

/// The process answers. Nothing more: a node without a leader is healthy and not ready.
pub(super) async fn healthy() -> Response {
    typed("application/json", r#"{"status":"ok"}"#)
}

pub(super) async fn ready(State(api): State<Api>) -> Result<Response, ApiError> {
    match api.handle.unready() {
        None => Ok(typed("application/json", r#"{"status":"ready"}"#)),
        Some(reason) => Err(ApiError::NotReady { reason }),
    }
}

pub(super) async fn metrics(State(api): State<Api>) -> Response {
    typed("text/plain; version=0.0.4; charset=utf-8", api.handle.metrics())
}

pub(super) async fn openapi() -> Response {
    typed("application/json", OPENAPI)
}
