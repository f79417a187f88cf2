//! The client as a [`FederatedConsensus`].

use super::Client;
use crate::api::{
    AbortEvent, CallError, CommitEvent, ConsensusSnapshot, FederatedConsensus, Propose, ProposeError, StreamError,
    VoteError, Wait,
};
use crate::ids::{LogIndex, ProposalId};
use futures::stream::BoxStream;
use serde_json::Value;
use std::convert::Infallible;

impl FederatedConsensus for Client {
    async fn propose(
        &self,
        payload: Value,
        required_quorum: Option<u16>,
        ttl_ms: Option<u64>,
    ) -> Result<ProposalId, CallError<ProposeError>> {
        let propose = Propose { required_quorum, ttl_ms, wait: Wait::Accepted, ..Propose::new(payload) };
        let status = self.propose_with(propose).await?;
        // No id: no leader has taken it in all the time that the call waited.
        status.id.ok_or(CallError::Refused(ProposeError::Unavailable))
    }

    async fn vote(&self, id: ProposalId, granted: bool) -> Result<(), CallError<VoteError>> {
        self.cast_vote(id, granted).await
    }

    fn commit_stream(&self, from: LogIndex) -> BoxStream<'static, Result<CommitEvent, StreamError>> {
        self.commits(from)
    }

    fn abort_stream(&self, from: LogIndex) -> BoxStream<'static, Result<AbortEvent, StreamError>> {
        self.aborts(from)
    }

    async fn snapshot(&self) -> Result<ConsensusSnapshot, CallError<Infallible>> {
        match self.status().await {
            Ok(status) => Ok(status.snapshot),
            Err(CallError::Refused(refusal)) => Err(CallError::Protocol { detail: refusal.to_string() }),
            Err(CallError::Unreachable { detail }) => Err(CallError::Unreachable { detail }),
            Err(CallError::Protocol { detail }) => Err(CallError::Protocol { detail }),
        }
    }

    /// Ends every call and stream of this client, its clones and what [`Client::each`] gave. The nodes are not touched.
    async fn close(&self) {
        self.inner.closed.cancel();
    }
}
