//! Reading requests: bodies, query strings and path segments, each with its bounds.

use super::error::{ApiError, RequestError};
use crate::ids::{LogIndex, ProposalId};
use crate::limits::{HTTP_BODY_MS, MAX_HTTP_BODY, MAX_HTTP_DISCARD};
use axum::Json;
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::request::Parts;
use bytes::Bytes;
use futures::StreamExt;
use serde::de::DeserializeOwned;
use std::time::Duration;

/// A JSON body of at most [`MAX_HTTP_BODY`] bytes.
pub(super) struct Body<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &S) -> Result<Self, ApiError> {
        let reading = tokio::time::timeout(Duration::from_millis(HTTP_BODY_MS), read(request.into_body()));
        let bytes = reading.await.map_err(|_| RequestError::BodyTimeout)??;
        let Json(value) = Json::from_bytes(&bytes)?;
        Ok(Self(value))
    }
}

async fn read(body: axum::body::Body) -> Result<Bytes, RequestError> {
    let mut chunks = body.into_data_stream();
    let mut bytes = Vec::new();
    let mut total = 0_usize;
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(RequestError::Body)?;
        total = total.saturating_add(chunk.len());
        if total > MAX_HTTP_DISCARD {
            break;
        }
        if total <= MAX_HTTP_BODY {
            bytes.extend_from_slice(&chunk);
        }
    }
    if total > MAX_HTTP_BODY { Err(RequestError::BodyTooLarge) } else { Ok(bytes.into()) }
}

/// The query string; unknown, repeated and malformed parameters are refused by `T`.
pub(super) struct Params<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Params<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        let Query(value) = Query::try_from_uri(&parts.uri)?;
        Ok(Self(value))
    }
}

/// No query string; any parameter is refused.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NoParams {}

/// What can stand as the one variable part of a path.
pub(super) trait Segment: Sized {
    /// Its name in messages.
    const WHAT: &'static str;
    fn parse(text: &str) -> Result<Self, Box<dyn std::error::Error + Send + Sync>>;
}

impl Segment for LogIndex {
    const WHAT: &'static str = "index";
    fn parse(text: &str) -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        Ok(Self(text.parse()?))
    }
}

impl Segment for ProposalId {
    const WHAT: &'static str = "proposal id";
    fn parse(text: &str) -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        Ok(text.parse()?)
    }
}

impl Segment for String {
    const WHAT: &'static str = "name";
    fn parse(text: &str) -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        Ok(text.to_owned())
    }
}

/// The one variable part of the path.
pub(super) struct At<T>(pub(super) T);

impl<S: Send + Sync, T: Segment> FromRequestParts<S> for At<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let wrong = |given: &str, reason| {
            let given = given.chars().take(200).collect();
            ApiError::from(RequestError::Path { what: T::WHAT, given, reason })
        };
        let text = Path::<String>::from_request_parts(parts, state)
            .await
            .map_err(|e| wrong(parts.uri.path(), e.body_text().into()))?;
        T::parse(&text).map(Self).map_err(|reason| wrong(&text, reason))
    }
}
