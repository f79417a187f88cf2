//! What the rest of the program does with a running node.

use crate::api::{
    AbortEvent, CertificatePage, CommitEvent, EntryPage, EntryView, OpenBallot, ProposalStatus, Propose, ProposeError,
    Status, StreamError, VoteError,
};
use crate::certificate::{Genesis, Receipt};
use crate::ids::{LogIndex, ProposalId};
use crate::registry;
use futures::stream::BoxStream;
use std::sync::Arc;

/// Why a query has no answer.
#[derive(Debug, thiserror::Error)]
pub enum QueryError {
    /// No such thing in this log (yet).
    #[error("{what} is not in this node's log")]
    NotFound {
        /// What.
        what: String,
    },
    /// Committed, but no head certificate covers it yet.
    #[error("entry {index} is not certified yet (certified up to {certified}); ask again in a moment")]
    NotCertified {
        /// Which.
        index: LogIndex,
        /// How far certificates reach.
        certified: LogIndex,
    },
    /// The store failed.
    #[error("the store failed: {0}")]
    Store(String),
}

/// A running node; cheap to clone. Queries marked blocking read the store: call them from `spawn_blocking`.
#[derive(Clone)]
pub struct Handle {
    inner: Arc<()>,
}

impl Handle {
    /// Proposes and waits as `propose.wait` says, at most `wait_ms`; then answers with the state reached.
    ///
    /// # Errors
    /// [`ProposeError`].
    pub async fn submit(&self, _propose: Propose) -> Result<ProposalStatus, ProposeError> {
        todo!()
    }
    /// Where a proposal stands. Blocking.
    ///
    /// # Errors
    /// [`QueryError`].
    pub fn proposal(&self, _id: &ProposalId) -> Result<ProposalStatus, QueryError> {
        todo!()
    }
    /// Where the proposal of a request stands. Blocking.
    ///
    /// # Errors
    /// [`QueryError`].
    pub fn request(&self, _client: &str, _request_id: &str) -> Result<ProposalStatus, QueryError> {
        todo!()
    }
    /// This member's answer on an open ballot; returns once it is durable.
    ///
    /// # Errors
    /// [`VoteError`].
    pub async fn cast_vote(&self, _id: ProposalId, _granted: bool) -> Result<(), VoteError> {
        todo!()
    }
    /// Ballots that wait for this member's application.
    #[must_use]
    pub fn ballots(&self) -> Vec<OpenBallot> {
        todo!()
    }
    /// Committed entries. Blocking.
    ///
    /// # Errors
    /// [`QueryError`].
    pub fn entries(&self, _from: LogIndex, _limit: usize) -> Result<EntryPage, QueryError> {
        todo!()
    }
    /// One committed entry. Blocking.
    ///
    /// # Errors
    /// [`QueryError`].
    pub fn entry(&self, _index: LogIndex) -> Result<EntryView, QueryError> {
        todo!()
    }
    /// The receipt of one entry. Blocking.
    ///
    /// # Errors
    /// [`QueryError`].
    pub fn receipt(&self, _index: LogIndex) -> Result<Receipt, QueryError> {
        todo!()
    }
    /// The receipt of a proposal. Blocking.
    ///
    /// # Errors
    /// [`QueryError`].
    pub fn receipt_of(&self, _id: &ProposalId) -> Result<Receipt, QueryError> {
        todo!()
    }
    /// Head certificates of sizes above `above`, ascending. Blocking.
    ///
    /// # Errors
    /// [`QueryError`].
    pub fn certificates(&self, _above: u64, _limit: usize) -> Result<CertificatePage, QueryError> {
        todo!()
    }
    /// Looks at the replicated state as applied here.
    pub fn registry<R>(&self, _look: impl FnOnce(&registry::State) -> R) -> R {
        todo!()
    }
    /// The node and its members.
    #[must_use]
    pub fn status(&self) -> Status {
        todo!()
    }
    /// Why this node is not ready to serve, or `None` when it is: a leader is known and what was committed is applied.
    #[must_use]
    pub fn unready(&self) -> Option<String> {
        todo!()
    }
    /// The genesis that this store pins.
    #[must_use]
    pub fn genesis(&self) -> &Genesis {
        todo!()
    }
    /// Certified `Proposal` entries from an index on, in order, each once; ends only with an error.
    #[must_use]
    pub fn commits(&self, _from: LogIndex) -> BoxStream<'static, Result<CommitEvent, StreamError>> {
        todo!()
    }
    /// Certified `Aborted` entries from an index on, in order, each once; ends only with an error.
    #[must_use]
    pub fn aborts(&self, _from: LogIndex) -> BoxStream<'static, Result<AbortEvent, StreamError>> {
        todo!()
    }
    /// The metrics in Prometheus text format.
    #[must_use]
    pub fn metrics(&self) -> String {
        todo!()
    }
    /// The HTTP address of a member, when it announced one.
    #[must_use]
    pub fn http_address(&self, _did: &crate::ids::NodeId) -> Option<String> {
        todo!()
    }
    /// Ends every task and closes the store; returns when all have ended.
    pub async fn close(&self) {
        todo!()
    }
}
