//! Admission: what a leader takes, under which id, and how repeats are recognised before they are applied.

use super::ballot::content;
use super::{Admission, Ballot, Core, Effect, State, Submission, Underway};
use crate::certificate::{Body, Entry, Header, Kind, Request, payload_hash};
use crate::ids::{Digest, LogIndex, ProposalId};
use crate::limits::{MAX_BALLOTS, MAX_PAYLOAD, MAX_TTL_MS};

impl Core {
    pub(super) fn submit(&mut self, handle: u64, submission: Submission) {
        let admission = self.admit(submission);
        self.effects.push(Effect::Admitted { handle, admission });
    }

    fn admit(&mut self, submission: Submission) -> Admission {
        let pending = self.log.last().0 - self.committed.0;
        let uncommitted = self.log.bytes_above(self.committed);
        let State::Leader(lead) = &self.state else { return Admission::NotLeader { leader: self.leader } };
        let Submission { origin, request, salt, payload, required_quorum, ttl_ms } = submission;
        if self.clock_suspect {
            return Admission::ClockOutOfBound;
        }
        if lead.transfer.is_some() {
            return Admission::Transferring;
        }
        if payload.len() > MAX_PAYLOAD {
            return Admission::PayloadTooLarge { size: payload.len() };
        }
        if !request.is_within_bounds() {
            return Admission::InvalidRequestId;
        }
        let (least, most) = self.quorum_bounds();
        let asked_quorum = required_quorum;
        let required = asked_quorum.unwrap_or(least);
        if required < least || required > most {
            return Admission::InvalidQuorum { least, most };
        }
        if let Some(first) = self.requests.get(&request.key()) {
            // An aborted entry's payload is gone, so nothing can be held against the repeat.
            let same = first.content == Digest::ZERO || first.content == content(&payload);
            return if same { Admission::Duplicate { id: first.id } } else { Admission::RequestIdReused };
        }
        if request.deadline_ms < self.now.wall.max(self.log.last_proposed_at()) {
            return Admission::RequestExpired;
        }
        // While a change is in flight every proposal is balloted: a head of two tables proves no grant of one of them.
        let balloted = !(self.all_auto() && required == least) || self.tables.is_joint();
        let full =
            if balloted { lead.ballots.len() >= MAX_BALLOTS } else { pending >= self.options.max_pending as u64 };
        if full || uncommitted >= self.options.max_uncommitted_bytes {
            return Admission::Backpressure;
        }
        // A forwarded submission comes from a peer: its time to live is bounded here again.
        let ttl_ms = ttl_ms.min(MAX_TTL_MS);
        let id = self.next_proposal_id(origin);
        if balloted {
            self.requests.insert(request.key(), Underway { id, content: content(&payload), index: LogIndex::ZERO });
            let under = self.tables.current().signed_for(&self.genesis_id);
            let (kind, required_quorum) = (Kind::Proposal, required);
            let ballot = Ballot { id, kind, request, salt, payload, required_quorum, ttl_ms, under };
            self.open_ballot(ballot, asked_quorum);
            return Admission::Balloted { id };
        }
        let header = self.proposal_header(Kind::Proposal, id, &request, &salt, &payload, required);
        let index = self.append_entry(header, Body { salt, request: Some(request), payload });
        Admission::Appended { id, index }
    }

    pub(super) fn next_proposal_id(&mut self, origin: crate::ids::NodeId) -> ProposalId {
        let State::Leader(lead) = &mut self.state else { unreachable!("only a leader admits") };
        lead.seq += 1;
        ProposalId { term: self.hard.term, seq: lead.seq, origin }
    }

    /// From the quorum rule up to all voters of the current table: under it a proposal is voted on.
    pub(super) fn quorum_bounds(&self) -> (u16, u16) {
        let current = self.tables.current();
        let (least, most) = (current.quorum(), current.table.voters().count());
        (u16::try_from(least).unwrap_or(u16::MAX), u16::try_from(most).unwrap_or(u16::MAX))
    }

    pub(super) fn proposal_header(
        &self,
        kind: Kind,
        id: ProposalId,
        request: &Request,
        salt: &[u8; 16],
        payload: &[u8],
        required_quorum: u16,
    ) -> Header {
        Header {
            proposal_id: Some(id),
            request_digest: request.digest(),
            required_quorum,
            payload_len: u32::try_from(payload.len()).expect("bounded by MAX_PAYLOAD"),
            payload_hash: payload_hash(salt, payload),
            ..self.blank_header(kind)
        }
    }

    /// Remembers an appended request until it is applied: from then on the state machine's table knows it.
    pub(super) fn remember_request(&mut self, entry: &Entry) {
        let (Some(request), Some(id)) = (&entry.body.request, entry.header.proposal_id) else { return };
        let content = if entry.header.kind == Kind::Proposal { content(&entry.body.payload) } else { Digest::ZERO };
        // The first stands: a later entry under the same key is a repeat, which applying it will say.
        self.requests.entry(request.key()).or_insert(Underway { id, content, index: entry.index() });
        self.withdraw(id);
    }

    pub(super) fn remember_requests(&mut self, from: LogIndex) {
        for entry in self.log.range(from, usize::MAX) {
            self.remember_request(&entry);
        }
    }
}
