//! The embedded node as [`FederatedConsensus`].

use super::handle::Handle;
use crate::api::{
    AbortEvent, CallError, CommitEvent, ConsensusSnapshot, FederatedConsensus, Propose, ProposeError, StreamError,
    VoteError, Wait,
};
use crate::ids::{LogIndex, ProposalId};
use futures::stream::BoxStream;
use serde_json::Value;

impl FederatedConsensus for Handle {
    async fn propose(
        &self,
        payload: Value,
        required_quorum: Option<u16>,
        ttl_ms: Option<u64>,
    ) -> Result<ProposalId, CallError<ProposeError>> {
        let propose = Propose { required_quorum, ttl_ms, wait: Wait::Accepted, ..Propose::new(payload) };
        let status = self.submit(propose).await.map_err(CallError::Refused)?;
        status.id.ok_or(CallError::Refused(ProposeError::Unavailable))
    }

    async fn vote(&self, id: ProposalId, granted: bool) -> Result<(), CallError<VoteError>> {
        self.cast_vote(id, granted).await.map_err(CallError::Refused)
    }

    fn commit_stream(&self, from: LogIndex) -> BoxStream<'static, Result<CommitEvent, StreamError>> {
        self.commits(from)
    }

    fn abort_stream(&self, from: LogIndex) -> BoxStream<'static, Result<AbortEvent, StreamError>> {
        self.aborts(from)
    }

    async fn snapshot(&self) -> Result<ConsensusSnapshot, CallError<std::convert::Infallible>> {
        Ok(self.consensus_snapshot())
    }

    async fn close(&self) {
        Handle::close(self).await;
    }
}
