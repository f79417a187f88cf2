//! The remote client: a cluster's HTTP interface as typed calls and streams.
//!
//! One [`Client`] stands for the cluster, not for a node. A call goes to the node that answered last; when that one
//! cannot be reached, or says that another might do better, the call moves on, pausing after each round, until its
//! deadline. Retrying is safe because every proposal carries a request id (made up when the caller has none), by which
//! the cluster recognises a repeat. Streams reconnect by themselves and deliver every index once.
//!
//! Clones share connections; a clone per task is cheap.

mod address;
mod backup;
mod call;
mod consensus;
mod requests;
mod sse;
mod streams;

pub use requests::{Page, ReceiptOf};

use crate::api::{Consistency, ErrorBody};
use crate::ids::LogIndex;
use crate::limits::HTTP_HEAD_MS;
use address::Address;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// How a client behaves.
#[derive(Clone, Debug)]
pub struct Options {
    /// How long a call tries, over all nodes. A proposal that says to wait longer is waited for.
    pub deadline: Duration,
    /// How long one attempt to connect may take.
    pub connect_timeout: Duration,
    /// How long a stream tries without a sign of life from any node before it ends.
    pub stream_patience: Duration,
    /// The client identity of proposals that name none; the node's default (`anonymous`) when absent.
    pub client: Option<String>,
    /// How fresh answers from the registry must be.
    pub consistency: Consistency,
    /// Answers from the registry show at least what was applied up to this entry: whoever wrote it reads what it wrote.
    pub min_index: LogIndex,
}

impl Default for Options {
    /// 30 s a call, 2 s a connection, 60 s of patience, linearizable reads.
    fn default() -> Self {
        Self {
            deadline: Duration::from_secs(30),
            connect_timeout: Duration::from_secs(2),
            stream_patience: Duration::from_secs(60),
            client: None,
            consistency: Consistency::default(),
            min_index: LogIndex::ZERO,
        }
    }
}

/// Why a client could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// An empty list.
    #[error("no node is given; name at least one, for example http://127.0.0.1:8001")]
    NoNode,
    /// Not the address of a node.
    #[error("{given:?} is no node address like http://127.0.0.1:8001: {why}")]
    Address {
        /// What was given.
        given: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The HTTP machinery could not be set up.
    #[error("cannot set up HTTP: {0}")]
    Http(#[from] reqwest::Error),
}

/// An error that a node answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The HTTP status.
    pub status: u16,
    /// What the node said.
    pub body: ErrorBody,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.body.message, self.body.code)
    }
}

impl std::error::Error for Refusal {}

/// A cluster, reached over HTTP.
#[derive(Clone, Debug)]
pub struct Client {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    http: reqwest::Client,
    nodes: Vec<Address>,
    /// Position of the node that answered last.
    preferred: AtomicUsize,
    options: Options,
    closed: CancellationToken,
}

impl Client {
    /// A client of the cluster whose nodes answer at these addresses: `http://HOST:PORT` or `HOST:PORT`. Connects only
    /// when it is used.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn new<S: AsRef<str>>(nodes: impl IntoIterator<Item = S>, options: Options) -> Result<Self, ClientError> {
        let nodes = nodes.into_iter().map(|n| n.as_ref().parse()).collect::<Result<Vec<Address>, _>>()?;
        if nodes.is_empty() {
            return Err(ClientError::NoNode);
        }
        let http = reqwest::Client::builder()
            // Nodes are on loopback: a proxy of the environment cannot reach them, and must not see what they say.
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(options.connect_timeout)
            // Below the time after which a node closes an idle connection, so that none is used as it closes.
            .pool_idle_timeout(Duration::from_millis(HTTP_HEAD_MS / 2))
            .build()?;
        Ok(Self {
            inner: Arc::new(Inner {
                http,
                nodes,
                preferred: AtomicUsize::new(0),
                options,
                closed: CancellationToken::new(),
            }),
        })
    }

    /// A client for each node alone, in the order given, sharing this one's connections: for what is asked of one
    /// node, such as its status or its ballots.
    pub fn each(&self) -> impl Iterator<Item = Self> {
        self.inner.nodes.iter().map(|node| Self {
            inner: Arc::new(Inner {
                http: self.inner.http.clone(),
                nodes: vec![node.clone()],
                preferred: AtomicUsize::new(0),
                options: self.inner.options.clone(),
                closed: self.inner.closed.child_token(),
            }),
        })
    }

    /// The addresses of the nodes, in the order given.
    pub fn addresses(&self) -> impl Iterator<Item = &str> {
        self.inner.nodes.iter().map(Address::as_str)
    }

    fn preferred(&self) -> usize {
        self.inner.preferred.load(Ordering::Relaxed)
    }

    fn prefer(&self, node: usize) {
        // Without contention this is a read: callers in step all prefer the same node.
        if self.preferred() != node {
            self.inner.preferred.store(node, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests;
