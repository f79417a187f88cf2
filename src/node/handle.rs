//! What the rest of the program does with a running node.

use super::Ended;
use super::clock::wall_ms;
use super::executor::Event;
use super::shared::Shared;
use crate::api::{OpenBallot, ProposalState, ProposalStatus, Propose, ProposeError, VoteError, Wait};
use crate::certificate::{Genesis, Request};
use crate::core::{Submission, content};
use crate::ids::{Digest, LogIndex, NodeId, ProposalId};
use crate::limits::{
    DEFAULT_REQUEST_HORIZON_MS, DEFAULT_TTL_MS, DEFAULT_WAIT_EXTRA_MS, MAX_PAYLOAD, MAX_REQUEST_HORIZON_MS,
    MAX_REQUESTS, MAX_TTL_MS, MAX_WAIT_MS, MIN_TTL_MS,
};
use crate::registry::{self, Outcome};
use crate::telemetry::Position;
use rand::TryRngCore;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;

/// How long beyond its time to live an unnamed request is remembered: longer than clocks may differ, short enough that
/// ordinary load does not fill the table.
const UNNAMED_HORIZON_MS: u64 = 60_000;

/// How a request came to its end: applied, or given up after a leader had taken it.
pub(super) type Finish = Result<LogIndex, ProposeError>;

/// Waits for a request to be applied, and leaves nothing behind when its caller gives up.
struct Waiter {
    shared: Arc<Shared>,
    key: Digest,
    done: oneshot::Receiver<Finish>,
}

impl Drop for Waiter {
    fn drop(&mut self) {
        self.done.close();
        self.shared.forget_waiters(&self.key);
    }
}

/// A running node; cheap to clone. Queries marked blocking read the store: call them from `spawn_blocking`.
#[derive(Clone)]
pub struct Handle {
    pub(super) shared: Arc<Shared>,
}

impl Handle {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// This node's store, for what reads much of it.
    #[must_use]
    pub fn store(&self) -> &crate::storage::Store {
        &self.shared.store
    }

    /// Proposes and waits as `propose.wait` says, at most `wait_ms`; then answers with the state reached.
    ///
    /// # Errors
    /// [`ProposeError`].
    pub async fn submit(&self, propose: Propose) -> Result<ProposalStatus, ProposeError> {
        let (wait, wait_ms) = (propose.wait, propose.wait_ms);
        let submission = self.check(propose)?;
        let request = submission.request.clone();
        let patience = wait_ms.unwrap_or(submission.ttl_ms + DEFAULT_WAIT_EXTRA_MS).min(MAX_WAIT_MS);
        let mut status = ProposalStatus {
            id: None,
            state: ProposalState::Pending,
            index: None,
            abort_reason: None,
            outcome: None,
            repeated: false,
            client: request.client.clone(),
            request_id: request.request_id.clone(),
        };
        let (key, asked) = (request.key(), content(&submission.payload));
        let mut waiter = Waiter { done: self.shared.wait_for(key), shared: self.shared.clone(), key };
        let mut entry = None;
        if self.known(&key, &submission.payload)? {
            status.repeated = true;
        } else {
            let outcome = tokio::time::timeout(
                Duration::from_millis(patience),
                self.see_through(submission, wait, &mut waiter.done, &mut status),
            );
            let outcome = outcome.await;
            match outcome {
                Ok(Ok(Some(index))) => entry = Some(index),
                Ok(Ok(None)) | Err(_) => return Ok(status),
                Ok(Err(why)) => return Err(why),
            }
        }
        if entry.is_some_and(|index| self.is_expired(index, &key)) {
            return Err(ProposeError::RequestExpired);
        }
        self.settle((&key, &asked, entry), wait, patience, status).await
    }

    /// Whether an entry was applied without effect because it came after its request's deadline. The table knows
    /// nothing of it, so the entry itself must say so.
    fn is_expired(&self, index: LogIndex, key: &Digest) -> bool {
        let replica = self.shared.replica();
        replica.state.answered(key).is_none() && replica.outcome(index) == Some(&Outcome::RequestExpired)
    }

    /// Hands a submission over and waits until it is applied (then tells its index) or, if that is all that is asked,
    /// taken.
    async fn see_through(
        &self,
        submission: Submission,
        wait: Wait,
        done: &mut oneshot::Receiver<Finish>,
        status: &mut ProposalStatus,
    ) -> Result<Option<LogIndex>, ProposeError> {
        let (tell, mut taken) = oneshot::channel();
        self.shared.events.try_send(Event::Submit { submission, taken: tell }).map_err(|e| match e {
            tokio::sync::mpsc::error::TrySendError::Full(_) => ProposeError::Backpressure,
            tokio::sync::mpsc::error::TrySendError::Closed(_) => ProposeError::Closed,
        })?;
        tokio::select! {
            biased;
            finish = &mut *done => return finish.map_err(|_| ProposeError::Closed)?.map(Some),
            // Told nothing: it was routed to nobody because it is committed already, and `done` will say so.
            answer = &mut taken => if let Ok(answer) = answer {
                status.id = Some(answer?);
                if wait == Wait::Accepted {
                    return Ok(None);
                }
            },
        }
        let mut ended = self.shared.ended.subscribe();
        tokio::select! {
            finish = &mut *done => finish.map_err(|_| ProposeError::Closed)?.map(Some),
            _ = ended.wait_for(Option::is_some) => Err(ProposeError::Closed),
        }
    }

    /// The request is applied here: reads what came of it, and waits for its certificate if that is asked.
    async fn settle(
        &self,
        (key, asked, entry): (&Digest, &Digest, Option<LogIndex>),
        wait: Wait,
        patience: u64,
        mut status: ProposalStatus,
    ) -> Result<ProposalStatus, ProposeError> {
        // What was applied under this id may be another's payload, taken by another node meanwhile.
        if self.shared.replica().state.answered(key).is_some_and(|first| !first.may_be(asked)) {
            return Err(ProposeError::RequestIdReused);
        }
        // Close to its deadline a request may be forgotten a moment after it was applied; its entry still says what came
        // of it.
        let entry = |status: &mut ProposalStatus| entry.filter(|index| self.fill_from(*index, status));
        let Some(index) = self.fill(key, &mut status).or_else(|| entry(&mut status)) else { return Ok(status) };
        if wait == Wait::Certified && status.state != ProposalState::Aborted {
            let mut certificate = self.shared.certificate.subscribe();
            let covered = certificate.wait_for(|c| c.as_ref().is_some_and(|c| c.head.size >= index.0));
            // A wait that outlives the caller's patience ends with the state reached.
            if let Ok(Ok(_)) = tokio::time::timeout(Duration::from_millis(patience), covered).await {
                status.state = ProposalState::Certified;
            }
        }
        Ok(status)
    }

    /// Fills in what the state machine knows of a request; `None` when it knows nothing (any more).
    pub(super) fn fill(&self, key: &Digest, status: &mut ProposalStatus) -> Option<LogIndex> {
        let replica = self.shared.replica();
        let first = replica.state.answered(key)?;
        status.id = Some(first.id);
        self.tell(first.index, &first.outcome, status);
        Some(first.index)
    }

    /// Fills in what applying an entry did, if it is applied.
    fn fill_from(&self, index: LogIndex, status: &mut ProposalStatus) -> bool {
        let replica = self.shared.replica();
        let outcome = replica.outcome(index);
        if let Some(outcome) = outcome {
            self.tell(index, outcome, status);
        }
        outcome.is_some()
    }

    fn tell(&self, index: LogIndex, outcome: &Outcome, status: &mut ProposalStatus) {
        status.index = Some(index);
        status.outcome = Some(outcome.clone());
        status.abort_reason = outcome.abort_reason();
        status.state = match status.abort_reason {
            Some(_) => ProposalState::Aborted,
            None if self.shared.certified_size() >= index.0 => ProposalState::Certified,
            None => ProposalState::Committed,
        };
    }

    /// Whether the request is applied already; an error when it is with another payload.
    fn known(&self, key: &Digest, payload: &[u8]) -> Result<bool, ProposeError> {
        let replica = self.shared.replica();
        match replica.state.answered(key) {
            None if replica.state.requests_len() >= MAX_REQUESTS => Err(ProposeError::Backpressure),
            None => Ok(false),
            Some(first) if first.may_be(&content(payload)) => Ok(true),
            Some(_) => Err(ProposeError::RequestIdReused),
        }
    }

    /// Everything about a proposal that can be judged without the cluster.
    fn check(&self, propose: Propose) -> Result<Submission, ProposeError> {
        let Propose { payload, client, request_id, deadline_ms, required_quorum, ttl_ms, .. } = propose;
        let ttl_ms = ttl_ms.unwrap_or(DEFAULT_TTL_MS);
        if !(MIN_TTL_MS..=MAX_TTL_MS).contains(&ttl_ms) {
            return Err(ProposeError::InvalidTtl);
        }
        // Requests are judged by the log's clock, which stays when this node's is set back.
        let now = wall_ms().max(self.shared.view().log_time);
        // An unnamed request can only be repeated by this node, and only while it lives.
        let horizon = if request_id.is_some() { DEFAULT_REQUEST_HORIZON_MS } else { ttl_ms + UNNAMED_HORIZON_MS };
        let deadline_ms = deadline_ms.unwrap_or(now.saturating_add(horizon));
        if deadline_ms > now.saturating_add(MAX_REQUEST_HORIZON_MS) {
            return Err(ProposeError::InvalidDeadline);
        }
        let request = Request {
            client: client.unwrap_or_else(|| "anonymous".into()),
            request_id: request_id.unwrap_or_else(|| hex::encode(random::<16>())),
            deadline_ms,
        };
        if !request.is_within_bounds() {
            return Err(ProposeError::InvalidRequestId);
        }
        if deadline_ms < now && self.shared.replica().state.answered(&request.key()).is_none() {
            return Err(ProposeError::RequestExpired);
        }
        if let Some(required) = required_quorum {
            let tables = self.shared.tables();
            let current = tables.current();
            let least = u16::try_from(current.quorum()).unwrap_or(u16::MAX);
            let most = u16::try_from(current.table.voters().count()).unwrap_or(u16::MAX);
            if !(least..=most).contains(&required) {
                return Err(ProposeError::InvalidQuorum { least, most });
            }
        }
        registry::check_payload(&payload)
            .map_err(|why| ProposeError::MalformedOperation { operation: why.operation, detail: why.detail })?;
        let payload = serde_json::to_vec(&payload)
            .map_err(|why| ProposeError::MalformedOperation { operation: "payload".into(), detail: why.to_string() })?;
        if payload.len() > MAX_PAYLOAD {
            return Err(ProposeError::PayloadTooLarge { size: payload.len(), limit: MAX_PAYLOAD });
        }
        Ok(Submission { origin: self.shared.id, request, salt: random(), payload, required_quorum, ttl_ms })
    }

    /// This member's answer on an open ballot; returns once it is durable.
    ///
    /// # Errors
    /// [`VoteError`].
    pub async fn cast_vote(&self, id: ProposalId, granted: bool) -> Result<(), VoteError> {
        let (done, answer) = oneshot::channel();
        self.shared.events.send(Event::Vote { id, granted, done }).await.map_err(|_| VoteError::Closed)?;
        answer.await.unwrap_or(Err(VoteError::Closed))
    }

    /// Ballots that wait for this member's application.
    #[must_use]
    pub fn ballots(&self) -> Vec<OpenBallot> {
        self.shared.ballots()
    }

    /// Looks at the replicated state as applied here.
    pub fn registry<R>(&self, look: impl FnOnce(&registry::State) -> R) -> R {
        look(&self.shared.replica().state)
    }

    /// The genesis that this store pins.
    #[must_use]
    pub fn genesis(&self) -> &Genesis {
        &self.shared.genesis
    }

    /// The metrics in Prometheus text format.
    #[must_use]
    pub fn metrics(&self) -> String {
        let (shared, view) = (&self.shared, self.shared.view());
        let telemetry = &shared.telemetry;
        telemetry.set_pending(view.pending);
        telemetry.set_request_entries(shared.replica().state.requests_len() as u64);
        telemetry.set_term(view.term.0);
        telemetry.set_database_bytes(self.database_bytes());
        let (from, is_complete) = shared.history();
        telemetry.set_history(from.0, is_complete);
        telemetry.set_log_index(Position::Last, view.last.0);
        telemetry.set_log_index(Position::Durable, view.durable.0);
        telemetry.set_log_index(Position::Committed, view.committed.0);
        telemetry.set_log_index(Position::Applied, shared.applied.borrow().0);
        telemetry.set_log_index(Position::Certified, shared.certified_size());
        for member in shared.tables().members().into_iter().filter(|m| *m != shared.id) {
            telemetry.set_peer_connected(member, shared.transport.connected(&member));
        }
        self.shared.telemetry.render()
    }

    /// The HTTP address of a member, when it announced one.
    #[must_use]
    pub fn http_address(&self, did: &NodeId) -> Option<String> {
        self.shared.http_address(did)
    }

    /// The address where peers reach this node.
    #[must_use]
    pub fn peer_address(&self) -> std::net::SocketAddr {
        self.shared.transport.local_addr()
    }

    /// Resolves when the node has ended, by [`Handle::close`] or by itself.
    pub async fn ended(&self) -> Ended {
        let mut ended = self.shared.ended.subscribe();
        match ended.wait_for(Option::is_some).await {
            Ok(how) => how.clone().unwrap_or(Ended::Closed),
            Err(_) => Ended::Closed,
        }
    }

    /// Ends every task and closes the store; returns when all have ended.
    pub async fn close(&self) {
        // The owner may be gone already.
        let _gone = self.shared.events.send(Event::Close).await;
        self.ended().await;
    }
}

pub(super) fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    rand::rngs::OsRng.try_fill_bytes(&mut bytes).expect("the operating system has randomness");
    bytes
}
