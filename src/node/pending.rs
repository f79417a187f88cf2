//! Proposals that came in here and are not decided: routed to the leader, again when it changes, until their time to
//! live is over.

use super::executor::{Devices, Executor, Observed, RETRY, is_valid, refusal};
use crate::api::ProposeError;
use crate::core::{Admission, Input, Submission, content};
use crate::ids::{Digest, NodeId, ProposalId};
use crate::limits::{MAX_PAYLOAD, MAX_REQUESTS, MAX_TTL_MS};
use crate::wire::Frame;
use std::time::Duration;
use tokio::sync::oneshot;

/// How long after its time to live a proposal that a leader had taken is still looked out for.
const LINGER_MS: u64 = 10_000;

/// A proposal that came in here.
pub(super) struct Pending {
    submission: Submission,
    /// Monotonic; from then on it is not sent (again).
    expires: u64,
    /// When it came in, for the commit latency.
    pub(super) since: Duration,
    id: Option<ProposalId>,
    /// The leader of the moment has it.
    taken: bool,
    /// When it was last sent; `None`: due now.
    routed: Option<u64>,
    pub(super) handle: u64,
    takers: Vec<oneshot::Sender<Result<ProposalId, ProposeError>>>,
}

impl Pending {
    pub(super) fn asks_for(&self, payload: &[u8]) -> bool {
        self.submission.payload == payload
    }

    /// What a former leader had taken may be gone with it; the next one recognises what is not.
    pub(super) fn send_again(&mut self) {
        self.routed = None;
        self.taken = false;
    }

    pub(super) fn tell(mut self, what: Result<ProposalId, ProposeError>) {
        tell(&mut self.takers, &what);
    }
}

fn tell(takers: &mut Vec<oneshot::Sender<Result<ProposalId, ProposeError>>>, what: &Result<ProposalId, ProposeError>) {
    for taker in takers.drain(..) {
        // A caller that gave up is no news.
        let _gone = taker.send(what.clone());
    }
}

/// Who waits for an admission.
pub(super) enum Origin {
    /// A proposal of our own, admitted here.
    Own(Digest),
    /// A proposal of our own, sent to a leader.
    Forwarded { key: Digest, to: NodeId },
    /// Another node's proposal, under its handle.
    Peer { from: NodeId, handle: u64 },
}

impl<D: Devices> Executor<D> {
    pub(super) fn on_submit(
        &mut self,
        submission: Submission,
        taken: oneshot::Sender<Result<ProposalId, ProposeError>>,
    ) {
        let key = submission.request.key();
        let full = self.pending.len() >= self.max_pending;
        if let Some(pending) = self.pending.get_mut(&key) {
            if pending.submission.payload == submission.payload {
                match pending.id {
                    Some(id) => tell(&mut vec![taken], &Ok(id)),
                    None => pending.takers.push(taken),
                }
            } else {
                tell(&mut vec![taken], &Err(ProposeError::RequestIdReused));
            }
            return;
        }
        // Its commit has been: nothing would ever end its waiting here.
        if self.delivered.contains(&key) {
            return;
        }
        if full {
            return tell(&mut vec![taken], &Err(ProposeError::Backpressure));
        }
        if !self.forward && self.core.leader() != Some(self.id) {
            let leader = self.core.leader();
            let address = leader.and_then(|l| self.devices.http_address(&l));
            return tell(&mut vec![taken], &Err(ProposeError::NotLeader { leader, address }));
        }
        let now = self.devices.now().mono;
        let pending = Pending {
            expires: now.saturating_add(submission.ttl_ms),
            since: self.devices.elapsed(),
            submission,
            id: None,
            taken: false,
            routed: None,
            handle: 0,
            takers: vec![taken],
        };
        self.pending.insert(key, pending);
        self.route(key, now);
        self.retry_at = self.retry_at.min(now + millis(RETRY));
    }

    /// Sends what is due (again), and gives up on what is past its time.
    pub(super) fn retry_pending(&mut self, now: u64) {
        let leads_elsewhere = self.core.leader();
        let mut due = Vec::new();
        let mut over = Vec::new();
        for (key, pending) in &self.pending {
            let expired = now >= pending.expires;
            if expired && (pending.id.is_none() || now >= pending.expires.saturating_add(LINGER_MS)) {
                over.push(*key);
            } else if !expired
                && leads_elsewhere.is_some()
                && pending.routed.is_none_or(|at| !pending.taken && now >= at + millis(RETRY))
            {
                due.push(*key);
            }
        }
        for key in over {
            if let Some(pending) = self.pending.remove(&key) {
                self.origins.remove(&pending.handle);
                self.devices.observe(Observed::Proposal(crate::telemetry::Outcome::Expired));
                let had_leader = pending.id.is_some();
                pending.tell(Err(ProposeError::Unavailable));
                if had_leader {
                    self.devices.give_up(&key, ProposeError::Unavailable);
                }
            }
        }
        for key in due {
            self.route(key, now);
        }
        let earliest = self.pending.values().map(|p| p.expires.max(now + 1)).min().unwrap_or(u64::MAX);
        self.retry_at = earliest.min(now + millis(RETRY));
    }

    fn route(&mut self, key: Digest, now: u64) {
        let Some(leader) = self.core.leader() else { return };
        // Applied meanwhile: its waiters are told by the state machine.
        if self.devices.answered(&key).is_some() {
            if let Some(pending) = self.pending.remove(&key) {
                self.origins.remove(&pending.handle);
            }
            return;
        }
        let handle = self.next_handle;
        self.next_handle += 1;
        let Some(pending) = self.pending.get_mut(&key) else { return };
        self.origins.remove(&pending.handle);
        pending.handle = handle;
        pending.routed = Some(now);
        let submission =
            Submission { ttl_ms: pending.expires.saturating_sub(now).max(1), ..pending.submission.clone() };
        if leader == self.id {
            self.origins.insert(handle, Origin::Own(key));
            self.feed(Input::Submit { handle, submission });
        } else {
            self.origins.insert(handle, Origin::Forwarded { key, to: leader });
            self.devices.send(leader, Frame::Submit { handle, submission });
        }
    }

    /// Another node's proposal.
    pub(super) fn on_forwarded(&mut self, from: NodeId, theirs: u64, submission: Submission) {
        let fine = submission.origin == from
            && submission.request.is_within_bounds()
            && submission.payload.len() <= MAX_PAYLOAD
            && submission.ttl_ms <= MAX_TTL_MS
            && is_valid(&submission.payload);
        if !fine {
            tracing::warn!(%from, "a member forwards a proposal that it should have refused; it is ignored");
            return;
        }
        let known = match self.devices.answered(&submission.request.key()) {
            Some(first) if first.may_be(&content(&submission.payload)) => Some(Admission::Duplicate { id: first.id }),
            Some(_) => Some(Admission::RequestIdReused),
            None if self.devices.requests_len() >= MAX_REQUESTS => Some(Admission::Backpressure),
            None => None,
        };
        if let Some(admission) = known {
            self.devices.send(from, Frame::Submitted { handle: theirs, admission });
            return;
        }
        let handle = self.next_handle;
        self.next_handle += 1;
        self.origins.insert(handle, Origin::Peer { from, handle: theirs });
        self.feed(Input::Submit { handle, submission });
    }

    pub(super) fn on_admitted(&mut self, handle: u64, admission: Admission) {
        let key = match self.origins.remove(&handle) {
            None => return,
            Some(Origin::Peer { from, handle }) => {
                self.devices.send(from, Frame::Submitted { handle, admission });
                return;
            }
            Some(Origin::Own(key) | Origin::Forwarded { key, .. }) => key,
        };
        let had_leader = self.pending.get(&key).is_some_and(|p| p.id.is_some());
        if admission == Admission::Backpressure && had_leader {
            // A leader had taken it, and its caller was told so: it goes on asking the new one until its time is over.
            return;
        }
        if let Some(refusal) = refusal(&admission) {
            if let Some(pending) = self.pending.remove(&key) {
                pending.tell(Err(refusal.clone()));
            }
            if had_leader {
                self.devices.give_up(&key, refusal);
            }
            return;
        }
        let Some(pending) = self.pending.get_mut(&key) else { return };
        match admission {
            Admission::Appended { id, .. } | Admission::Balloted { id } | Admission::Duplicate { id } => {
                pending.id = Some(id);
                pending.taken = true;
                tell(&mut pending.takers, &Ok(id));
            }
            _ => pending.taken = false,
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
