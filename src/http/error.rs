//! The one place that turns failures into HTTP answers: for every error its status, its body and its headers.

use crate::api::{ChangeError, ErrorBody, MarkError, ProposeError, ReadError, StreamError, TransferError, VoteError};
use crate::backup::SourceError;
use crate::limits::{MAX_BACKUPS, MAX_HTTP_BODY, MAX_HTTP_QUERIES, MAX_HTTP_STREAMS};
use crate::node::{QueryError, SearchError};
use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::Value;

/// Whatever is answered instead of what was asked.
#[derive(Debug, thiserror::Error)]
pub(super) enum ApiError {
    /// The node refused the proposal.
    #[error("{error}")]
    Propose {
        error: ProposeError,
        /// The leader's HTTP address, when known.
        leader: Option<String>,
    },
    /// The node refused the vote.
    #[error(transparent)]
    Vote(#[from] VoteError),
    /// The node has no answer.
    #[error(transparent)]
    Query(#[from] QueryError),
    /// The node cannot answer as freshly as asked.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The members were not changed.
    #[error("{error}")]
    Change {
        error: ChangeError,
        /// The leader's HTTP address, when known.
        leader: Option<String>,
    },
    /// Leadership was not handed over.
    #[error("{error}")]
    Transfer {
        error: TransferError,
        /// The leader's HTTP address, when known.
        leader: Option<String>,
    },
    /// No snapshot mark was appended.
    #[error("{error}")]
    Mark {
        error: MarkError,
        /// The leader's HTTP address, when known.
        leader: Option<String>,
    },
    /// The request itself is wrong.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// The node is not ready to serve.
    #[error("not ready: {reason}")]
    NotReady { reason: String },
    /// Too many queries wait for the store.
    #[error("{MAX_HTTP_QUERIES} queries are reading the store and none has ended in time; try again in a moment")]
    Overloaded,
    /// Too many streams are open.
    #[error("{MAX_HTTP_STREAMS} streams are open at this node, no more are allowed; close one or ask another node")]
    TooManyStreams,
    /// Too many backups are read.
    #[error("{MAX_BACKUPS} backups are being read from this node, no more are allowed at once; ask another node")]
    TooManyBackups,
    /// The store gives no backup.
    #[error(transparent)]
    Backup(#[from] SourceError),
    /// A bug: the task that should have answered panicked, or its answer is no JSON.
    #[error("the node failed to answer; its log says why")]
    Internal,
}

/// What can be wrong with a request before it reaches the node.
#[derive(Debug, thiserror::Error)]
pub(super) enum RequestError {
    #[error("there is nothing at {path}; GET /v1/openapi.json lists what there is")]
    NoRoute { path: String },
    #[error("{method} is not allowed here; the Allow header lists what is")]
    Method { method: String },
    #[error(
        "requests must name a loopback host (localhost, 127.0.0.0/8, [::1]), not {}: this interface has no access \
         control yet, so names that a web page could point here are refused",
        host.as_deref().map_or_else(|| "none or several".into(), |h| format!("{h:?}"))
    )]
    Host { host: Option<String> },
    #[error(
        "the content type must be application/json: this interface has no access control yet, and other types could be \
         sent by any web page open on this machine"
    )]
    ContentType,
    #[error("the body is larger than {MAX_HTTP_BODY} bytes")]
    BodyTooLarge,
    #[error("the body did not arrive in time")]
    BodyTimeout,
    #[error("the body could not be read: {0}")]
    Body(#[source] axum::Error),
    #[error("{}", .0.body_text())]
    Json(JsonRejection),
    #[error("{}", .0.body_text())]
    Query(QueryRejection),
    #[error("{what} {given:?} in the path: {reason}")]
    Path {
        what: &'static str,
        given: String,
        #[source]
        reason: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("{field} must be between {least} and {most}")]
    Bounds { field: &'static str, least: u64, most: u64 },
    #[error("{field} is only allowed together with {other}")]
    OnlyWith { field: &'static str, other: &'static str },
    #[error("Last-Event-ID must be the index of an event of this stream, not {given:?}")]
    LastEventId { given: String },
}

/// What the wire says about an error, besides its message.
struct Verdict {
    status: StatusCode,
    code: String,
    retryable: bool,
    without_effect: bool,
    /// Seconds.
    retry_after: Option<u32>,
    error: Option<Value>,
}

impl Verdict {
    /// A refusal that will be the same next time and changed nothing.
    fn refused(status: StatusCode, code: impl Into<String>) -> Self {
        Self { status, code: code.into(), retryable: false, without_effect: true, retry_after: None, error: None }
    }

    /// A refusal that changed nothing and may be another one in a moment.
    fn later(status: StatusCode, code: impl Into<String>) -> Self {
        Self { retryable: true, retry_after: Some(1), ..Self::refused(status, code) }
    }
}

impl ApiError {
    fn verdict(&self) -> Verdict {
        match self {
            Self::Propose { error, .. } => propose_verdict(error),
            Self::Vote(error) => vote_verdict(error),
            Self::Query(error) => query_verdict(error),
            Self::Read(error) => {
                let (code, value) = typed(error);
                Verdict { error: value, ..Verdict::later(StatusCode::SERVICE_UNAVAILABLE, code) }
            }
            Self::Change { error, .. } => change_verdict(error),
            Self::Transfer { error, .. } => transfer_verdict(error),
            Self::Mark { error, .. } => mark_verdict(error),
            Self::Request(error) => request_verdict(error),
            Self::NotReady { .. } => Verdict::later(StatusCode::SERVICE_UNAVAILABLE, "not_ready"),
            Self::Overloaded => Verdict::later(StatusCode::SERVICE_UNAVAILABLE, "overloaded"),
            Self::TooManyStreams => Verdict::later(StatusCode::SERVICE_UNAVAILABLE, "too_many_streams"),
            Self::TooManyBackups => Verdict::later(StatusCode::SERVICE_UNAVAILABLE, "too_many_backups"),
            Self::Backup(error) => match error {
                SourceError::Partial { .. } => Verdict::later(StatusCode::SERVICE_UNAVAILABLE, "not_here"),
                SourceError::Empty
                | SourceError::NoGenesis
                | SourceError::NoSnapshot { .. }
                | SourceError::Replaced { .. } => Verdict::later(StatusCode::SERVICE_UNAVAILABLE, "not_certified"),
                _ => Verdict::refused(StatusCode::INTERNAL_SERVER_ERROR, "store"),
            },
            Self::Internal => {
                Verdict { without_effect: false, ..Verdict::refused(StatusCode::INTERNAL_SERVER_ERROR, "internal") }
            }
        }
    }

    /// The body alone, for streams that have begun.
    pub(super) fn body(&self) -> ErrorBody {
        let verdict = self.verdict();
        ErrorBody {
            code: verdict.code,
            message: self.to_string(),
            retryable: verdict.retryable,
            leader: match self {
                Self::Propose { leader, .. }
                | Self::Change { leader, .. }
                | Self::Transfer { leader, .. }
                | Self::Mark { leader, .. } => leader.clone(),
                _ => None,
            },
            without_effect: verdict.without_effect,
            error: verdict.error,
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let Verdict { status, retry_after, .. } = self.verdict();
        if status.is_server_error() && !matches!(status, StatusCode::SERVICE_UNAVAILABLE) {
            tracing::error!(error = &self as &dyn std::error::Error, "an HTTP request failed");
        }
        let mut response = (status, axum::Json(self.body())).into_response();
        if let Some(seconds) = retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

impl From<JsonRejection> for ApiError {
    fn from(e: JsonRejection) -> Self {
        Self::Request(RequestError::Json(e))
    }
}

impl From<QueryRejection> for ApiError {
    fn from(e: QueryRejection) -> Self {
        Self::Request(RequestError::Query(e))
    }
}

/// The event with which a stream ends that did not end by itself, as the body of an error.
pub(super) fn stream_error_body(error: &StreamError) -> ErrorBody {
    let (code, retryable, typed) = match error {
        StreamError::Closed => ("closed", true, None),
        // The index is what a reader needs to go on: it must not have to read it out of the message.
        StreamError::Pruned { first } => ("pruned", false, Some(serde_json::json!({ "first": first }))),
        StreamError::Store { .. } => ("store", true, None),
        StreamError::Unreachable { .. } => ("unreachable", true, None),
    };
    ErrorBody {
        code: code.into(),
        message: error.to_string(),
        retryable,
        leader: None,
        without_effect: true,
        error: typed,
    }
}

/// The error as a value, and its `code`.
fn typed(error: &impl Serialize) -> (String, Option<Value>) {
    // Plain enums with string keys always serialise; were that ever to change, the error is still answered.
    let Ok(value) = serde_json::to_value(error) else { return ("refused".into(), None) };
    let code = value.get("code").and_then(Value::as_str).unwrap_or("refused").to_owned();
    (code, Some(value))
}

fn propose_verdict(error: &ProposeError) -> Verdict {
    let (status, retry_after) = match error {
        ProposeError::NotLeader { .. } | ProposeError::Unavailable | ProposeError::Closed => {
            (StatusCode::SERVICE_UNAVAILABLE, Some(1))
        }
        ProposeError::Backpressure => (StatusCode::TOO_MANY_REQUESTS, Some(1)),
        ProposeError::InvalidQuorum { .. }
        | ProposeError::InvalidTtl
        | ProposeError::InvalidDeadline
        | ProposeError::InvalidRequestId
        | ProposeError::MalformedOperation { .. } => (StatusCode::UNPROCESSABLE_ENTITY, None),
        ProposeError::PayloadTooLarge { .. } => (StatusCode::PAYLOAD_TOO_LARGE, None),
        ProposeError::RequestIdReused => (StatusCode::CONFLICT, None),
        ProposeError::RequestExpired => (StatusCode::GONE, None),
    };
    let (code, value) = typed(error);
    Verdict {
        status,
        code,
        retryable: error.is_retryable(),
        without_effect: error.is_without_effect(),
        retry_after,
        error: value,
    }
}

fn vote_verdict(error: &VoteError) -> Verdict {
    let (code, value) = typed(error);
    let verdict = match error {
        VoteError::NoBallot { .. } => Verdict::refused(StatusCode::NOT_FOUND, code),
        VoteError::AlreadyCast { .. } | VoteError::NotManual { .. } => Verdict::refused(StatusCode::CONFLICT, code),
        // The vote may have been made durable before the node began to close; repeating it is harmless.
        VoteError::Closed => Verdict { without_effect: false, ..Verdict::later(StatusCode::SERVICE_UNAVAILABLE, code) },
    };
    Verdict { error: value, ..verdict }
}

fn change_verdict(error: &ChangeError) -> Verdict {
    let status = match error {
        ChangeError::NotLeader { .. } | ChangeError::Closed => StatusCode::SERVICE_UNAVAILABLE,
        ChangeError::Refused { .. } => StatusCode::CONFLICT,
        ChangeError::DoesNotApply { .. } | ChangeError::InvalidTable { .. } | ChangeError::InvalidTtl => {
            StatusCode::UNPROCESSABLE_ENTITY
        }
    };
    let (code, value) = typed(error);
    let retryable = error.is_retryable();
    let retry_after = retryable.then_some(1);
    Verdict { status, code, retryable, without_effect: error.is_without_effect(), retry_after, error: value }
}

fn transfer_verdict(error: &TransferError) -> Verdict {
    let (code, value) = typed(error);
    let verdict = match error {
        TransferError::NotLeader { .. } | TransferError::Closed => {
            Verdict::later(StatusCode::SERVICE_UNAVAILABLE, code)
        }
        TransferError::TimedOut => Verdict::later(StatusCode::CONFLICT, code),
        TransferError::NoTarget | TransferError::Replaced => Verdict::refused(StatusCode::CONFLICT, code),
    };
    Verdict { error: value, ..verdict }
}

fn mark_verdict(error: &MarkError) -> Verdict {
    let (code, value) = typed(error);
    let status = match error {
        MarkError::NotLeader { .. } | MarkError::Closed => StatusCode::SERVICE_UNAVAILABLE,
        MarkError::Refused { .. } => StatusCode::CONFLICT,
    };
    // A mark more than was wanted does no harm, but it may have been appended before the node closed.
    let without_effect = !matches!(error, MarkError::Closed);
    Verdict { error: value, without_effect, ..Verdict::later(status, code) }
}

fn query_verdict(error: &QueryError) -> Verdict {
    match error {
        QueryError::NotFound { .. } => Verdict::refused(StatusCode::NOT_FOUND, "not_found"),
        QueryError::NotCertified { .. } => Verdict::later(StatusCode::CONFLICT, "not_certified"),
        QueryError::Pruned { .. } => Verdict::refused(StatusCode::GONE, "pruned"),
        QueryError::Predecessor { .. } => Verdict::refused(StatusCode::GONE, "predecessor"),
        // Another node can answer.
        QueryError::NotHere { .. } => Verdict::later(StatusCode::SERVICE_UNAVAILABLE, "not_here"),
        QueryError::Search(SearchError::Ahead { .. }) => Verdict::later(StatusCode::SERVICE_UNAVAILABLE, "not_here"),
        QueryError::Search(SearchError::Cursor | SearchError::OtherCursor) => {
            Verdict::refused(StatusCode::UNPROCESSABLE_ENTITY, "invalid_cursor")
        }
        QueryError::Search(_) => Verdict::refused(StatusCode::UNPROCESSABLE_ENTITY, "invalid_search"),
        // A failed store stops its node; another node can answer.
        // It may be done, or go on, although nobody could be told.
        QueryError::NotCompacted { .. } => {
            Verdict { without_effect: false, ..Verdict::later(StatusCode::SERVICE_UNAVAILABLE, "not_compacted") }
        }
        QueryError::Store(_) => {
            Verdict { retry_after: None, ..Verdict::later(StatusCode::INTERNAL_SERVER_ERROR, "store") }
        }
    }
}

fn request_verdict(error: &RequestError) -> Verdict {
    use RequestError as E;
    match error {
        E::NoRoute { .. } => Verdict::refused(StatusCode::NOT_FOUND, "no_route"),
        E::Method { .. } => Verdict::refused(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed"),
        E::Host { .. } => Verdict::refused(StatusCode::MISDIRECTED_REQUEST, "host_not_allowed"),
        E::ContentType => Verdict::refused(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type"),
        E::BodyTooLarge => Verdict::refused(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large"),
        E::BodyTimeout => Verdict { retry_after: None, ..Verdict::later(StatusCode::REQUEST_TIMEOUT, "body_timeout") },
        E::Body(_) => Verdict::refused(StatusCode::BAD_REQUEST, "unreadable_body"),
        E::Json(JsonRejection::JsonDataError(_)) => Verdict::refused(StatusCode::UNPROCESSABLE_ENTITY, "invalid_body"),
        E::Json(_) => Verdict::refused(StatusCode::BAD_REQUEST, "malformed_json"),
        E::Query(_) | E::OnlyWith { .. } => Verdict::refused(StatusCode::BAD_REQUEST, "invalid_query"),
        E::Path { .. } => Verdict::refused(StatusCode::BAD_REQUEST, "invalid_path"),
        E::Bounds { .. } => Verdict::refused(StatusCode::UNPROCESSABLE_ENTITY, "out_of_bounds"),
        E::LastEventId { .. } => Verdict::refused(StatusCode::BAD_REQUEST, "invalid_last_event_id"),
    }
}
