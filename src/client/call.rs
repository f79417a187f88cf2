//! One call: over the nodes in turn, again and again, until one answers or the deadline passes.

use super::address::Address;
use super::{Client, Refusal};
use crate::api::{CallError, ErrorBody};
use crate::limits::MAX_HTTP_ANSWER;
use bytes::Bytes;
use rand::TryRngCore;
use rand::rngs::OsRng;
use reqwest::header::{ACCEPT, CONTENT_TYPE};
use reqwest::{Method, StatusCode};
use serde::de::DeserializeOwned;
use std::time::Duration;
use tokio::time::{Instant, sleep_until};

/// First pause after a round in which no node answered, and after being told to come back later.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
/// Longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// To whom a call goes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Whom {
    /// Any node can answer.
    Any,
    /// Only the first node given: what is asked is its own business, such as its member's vote.
    First,
}

/// What is asked.
pub(super) struct Call<'a> {
    pub(super) whom: Whom,
    pub(super) method: Method,
    pub(super) segments: &'a [&'a str],
    pub(super) query: &'a [(&'a str, &'a str)],
    pub(super) accept: &'static str,
    pub(super) body: Option<Bytes>,
    /// How long one node may take.
    pub(super) attempt: Duration,
    /// How long all of them may take, pauses included.
    pub(super) total: Duration,
}

/// A successful answer.
pub(super) struct Answer {
    pub(super) body: Bytes,
}

/// Why there is none.
#[derive(Clone, Debug)]
pub(super) enum Failure {
    Refused(Refusal),
    Unreachable(String),
    Protocol(String),
}

/// What a failure means for the call.
enum Next {
    /// The next node would say the same.
    GiveUp,
    /// Another node may do better, this one perhaps.
    Elsewhere(Option<Address>),
    /// The same node, in a moment.
    Later,
}

impl Failure {
    fn next(&self) -> Next {
        match self {
            Self::Unreachable(_) | Self::Protocol(_) => Next::Elsewhere(None),
            Self::Refused(Refusal { body, .. }) if !body.retryable => Next::GiveUp,
            // The whole cluster is busy, or the answer is on its way: other nodes would say the same.
            Self::Refused(Refusal { status: 409 | 429, .. }) => Next::Later,
            Self::Refused(Refusal { body, .. }) => {
                Next::Elsewhere(body.leader.as_deref().and_then(|leader| leader.parse().ok()))
            }
        }
    }

    /// The failure of a query.
    pub(super) fn refused(self) -> CallError<Refusal> {
        match self {
            Self::Refused(refusal) => CallError::Refused(refusal),
            Self::Unreachable(detail) => CallError::Unreachable { detail },
            Self::Protocol(detail) => CallError::Protocol { detail },
        }
    }

    /// The failure of an operation that has an error type of its own.
    pub(super) fn typed<E: DeserializeOwned>(self) -> CallError<E> {
        match self {
            Self::Refused(refusal) => match refusal.body.error.clone().map(serde_json::from_value) {
                Some(Ok(error)) => CallError::Refused(error),
                _ if refusal.body.retryable => CallError::Unreachable { detail: refusal.to_string() },
                _ => CallError::Protocol { detail: refusal.to_string() },
            },
            Self::Unreachable(detail) => CallError::Unreachable { detail },
            Self::Protocol(detail) => CallError::Protocol { detail },
        }
    }
}

impl Answer {
    pub(super) fn json<T: DeserializeOwned>(&self) -> Result<T, Failure> {
        serde_json::from_slice(&self.body).map_err(|e| Failure::Protocol(format!("not the expected JSON: {e}")))
    }

    pub(super) fn text(self) -> Result<String, Failure> {
        String::from_utf8(self.body.into()).map_err(|_| Failure::Protocol("not UTF-8".into()))
    }
}

/// Pauses that grow, with jitter, so that callers turned away together do not come back together.
pub(super) struct Backoff {
    next: Duration,
}

impl Backoff {
    pub(super) fn new() -> Self {
        Self { next: FIRST_PAUSE }
    }

    /// How long to pause now.
    pub(super) fn pause(&mut self) -> Duration {
        // Without randomness from the system the pauses are merely alike.
        let random = OsRng.try_next_u32().unwrap_or_default();
        let pause = self.next.mul_f64(0.5 + f64::from(random) / f64::from(u32::MAX) / 2.0);
        self.next = (self.next * 2).min(LONGEST_PAUSE);
        pause
    }
}

impl Client {
    /// Calls until a node answers, the failure is final or the call's time is up; then returns the last failure.
    pub(super) async fn call(&self, call: &Call<'_>) -> Result<Answer, Failure> {
        tokio::select! {
            result = self.call_nodes(call) => result,
            () = self.inner.closed.cancelled() => Err(Failure::Unreachable("this client is closed".into())),
        }
    }

    async fn call_nodes(&self, call: &Call<'_>) -> Result<Answer, Failure> {
        let (first, round) = match call.whom {
            Whom::Any => (self.preferred(), self.inner.nodes.len()),
            Whom::First => (0, 1),
        };
        let deadline = Instant::now() + call.total;
        let mut backoff = Backoff::new();
        let (mut tried, mut hint) = (0, None);
        // At most one hint a round is followed, so that two nodes that name each other cannot keep a call busy.
        let mut hinted = false;
        loop {
            let at = (first + tried % round) % self.inner.nodes.len();
            let Some(node) = hint.as_ref().or_else(|| self.inner.nodes.get(at)) else {
                return Err(Failure::Unreachable("no node is known".into()));
            };
            let failure = match self.attempt(node, call, deadline).await {
                Ok(answer) => {
                    if let Some(node) = self.inner.nodes.iter().position(|n| n == node)
                        && call.whom == Whom::Any
                    {
                        self.prefer(node);
                    }
                    return Ok(answer);
                }
                Err(failure) => failure,
            };
            let pause = match failure.next() {
                Next::GiveUp => return Err(failure),
                Next::Later => true,
                Next::Elsewhere(Some(leader)) if !hinted && call.whom == Whom::Any => {
                    (hint, hinted) = (Some(leader), true);
                    false
                }
                Next::Elsewhere(_) => {
                    // A hint that led nowhere counts for the node that gave it.
                    hint = None;
                    tried += 1;
                    let all = tried % round == 0;
                    // What is no node does not become one by waiting.
                    if all && matches!(failure, Failure::Protocol(_)) {
                        return Err(failure);
                    }
                    all
                }
            };
            if pause {
                let resume = Instant::now() + backoff.pause();
                if resume >= deadline {
                    return Err(failure);
                }
                sleep_until(resume).await;
                (hint, hinted) = (None, false);
            } else if Instant::now() >= deadline {
                return Err(failure);
            }
        }
    }

    async fn attempt(&self, node: &Address, call: &Call<'_>, deadline: Instant) -> Result<Answer, Failure> {
        let unreachable = |e: &reqwest::Error| Failure::Unreachable(format!("{node}: {}", chain(e)));
        let mut request = self
            .inner
            .http
            .request(call.method.clone(), node.at(call.segments, call.query))
            .header(ACCEPT, call.accept)
            .timeout(call.attempt.min(deadline.saturating_duration_since(Instant::now())));
        if let Some(body) = &call.body {
            request = request.header(CONTENT_TYPE, "application/json").body(body.clone());
        }
        let response = request.send().await.map_err(|e| unreachable(&e))?;
        let status = response.status();
        let body = read(response).await.map_err(|e| match e {
            ReadError::Http(e) => unreachable(&e),
            ReadError::TooLong => Failure::Protocol(format!("{node} answered more than {MAX_HTTP_ANSWER} bytes")),
        })?;
        if status.is_success() { Ok(Answer { body }) } else { Err(refusal(node, status, &body)) }
    }
}

/// Reads an error answer. What is no error of ours comes from something else that listens there.
pub(super) fn refusal(node: &Address, status: StatusCode, body: &[u8]) -> Failure {
    match serde_json::from_slice::<ErrorBody>(body) {
        Ok(body) => Failure::Refused(Refusal { status: status.as_u16(), body }),
        Err(_) => Failure::Protocol(format!("{node} answered {status} without an error body; is it a node?")),
    }
}

pub(super) enum ReadError {
    Http(reqwest::Error),
    TooLong,
}

/// Reads a body of at most [`MAX_HTTP_ANSWER`] bytes.
pub(super) async fn read(mut response: reqwest::Response) -> Result<Bytes, ReadError> {
    let Some(first) = response.chunk().await.map_err(ReadError::Http)? else { return Ok(Bytes::new()) };
    let Some(second) = response.chunk().await.map_err(ReadError::Http)? else { return Ok(first) };
    let mut body = [first, second].concat();
    while let Some(chunk) = response.chunk().await.map_err(ReadError::Http)? {
        if body.len() + chunk.len() > MAX_HTTP_ANSWER {
            return Err(ReadError::TooLong);
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body.into())
}

/// An error with its causes: reqwest's own text leaves out why.
pub(super) fn chain(error: &reqwest::Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
