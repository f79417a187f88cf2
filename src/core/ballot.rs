//! Ballots: the leader's questions, the members' signed answers, the tally.

use super::{Ballot, CastVote, Core, Crypto, Effect, Held, Message, State};
use crate::certificate::{
    AbortReason, Body, Header, Kind, Member, MemberTable, PublicKey, Role, Signature, SignedFor, TableInForce, Tally,
    VoteStatement, payload_hash,
};
use crate::ids::{Digest, Epoch, LogIndex, NodeId, ProposalId, Term};
use crate::limits::{MAX_BALLOTS, MAX_PAYLOAD, MAX_TTL_MS};
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;
use std::sync::Arc;

/// How often a member that has not answered is asked again, milliseconds.
const ASK_AGAIN_MS: u64 = 250;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Decision {
    Granted,
    Aborted(AbortReason),
}

/// A ballot at the leader.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Open {
    ballot: Arc<Ballot>,
    /// The table whose voters are asked.
    table: Arc<TableInForce>,
    /// What the origin asked for; the quorum rule when absent.
    wanted: Option<u16>,
    /// Whose grant is needed, whatever the others say.
    needed: Vec<NodeId>,
    expires: u64,
    ask_again: u64,
    votes: BTreeMap<NodeId, (bool, Signature)>,
    verifying: BTreeMap<NodeId, ()>,
    decision: Option<Decision>,
}

impl Open {
    pub(super) fn kind(&self) -> Kind {
        self.ballot.kind
    }

    pub(super) fn due(&self) -> u64 {
        if self.decision.is_some() { u64::MAX } else { self.expires.min(self.ask_again) }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Answer {
    Wanted,
    Writing(bool),
    Given(Box<(VoteStatement, SignedFor, Signature)>),
}

/// A ballot at a member that was asked.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Asked {
    ballot: Arc<Ballot>,
    until: u64,
    answer: Answer,
}

impl Asked {
    pub(super) fn is_answered(&self) -> bool {
        self.answer != Answer::Wanted
    }
}

fn statement(ballot: &Ballot, granted: bool) -> VoteStatement {
    // A header that nobody proposed bears neither a request nor a required quorum, and votes are on what it says.
    let proposed = ballot.kind == Kind::Proposal;
    VoteStatement {
        request_digest: if proposed { ballot.request.digest() } else { Digest::ZERO },
        payload_hash: payload_hash(&ballot.salt, &ballot.payload),
        required_quorum: if proposed { ballot.required_quorum } else { 0 },
        granted,
    }
}

/// SHA-256 of a payload alone: tells whether two submissions under one request key ask for the same.
#[must_use]
pub fn content(payload: &[u8]) -> Digest {
    Digest(Sha256::digest(payload).into())
}

impl Core {
    // ---- leader ----

    pub(super) fn open_ballot(&mut self, mut ballot: Ballot, wanted: Option<u16>) {
        let now = self.now.mono;
        // Decided after its request's deadline, a proposal would be in the log for ever and change nothing.
        let left = ballot.request.deadline_ms.saturating_sub(self.now.wall.max(self.log.last_proposed_at()));
        ballot.ttl_ms = ballot.ttl_ms.min(left);
        let ballot = Arc::new(ballot);
        let open = Open {
            table: Arc::new(self.tables.current().clone()),
            wanted,
            needed: self.given_new_keys(&ballot),
            expires: now + ballot.ttl_ms,
            ask_again: now + ASK_AGAIN_MS,
            ballot: ballot.clone(),
            votes: BTreeMap::new(),
            verifying: BTreeMap::new(),
            decision: None,
        };
        if let State::Leader(lead) = &mut self.state {
            lead.ballots.insert(ballot.id, open);
        }
        self.ask_everyone(&ballot);
    }

    /// Voters whose key a change of members replaces. Only they know whether their store holds the new one: by a key that it
    /// lacks, a member would be in the table and sign nothing.
    fn given_new_keys(&self, ballot: &Ballot) -> Vec<NodeId> {
        if ballot.kind != Kind::Epoch {
            return Vec::new();
        }
        let Ok(next) = MemberTable::decode_granted(&ballot.payload) else { return Vec::new() };
        let row = |m: &Member| next.get(&m.did).filter(|n| n.role == Role::Voter).map(|n| n.bls_key);
        let replaced = |m: &&Member| row(m).is_some_and(|key| key != m.bls_key);
        self.tables.current().table.voters().filter(replaced).map(|m| m.did).collect()
    }

    /// Whether this store holds the key by which it is to vote under a table, if it is to.
    #[must_use]
    pub fn holds_its_key_in(&self, table: &MemberTable) -> bool {
        let own = table.get(&self.id).filter(|m| m.role == Role::Voter);
        own.is_none_or(|m| self.keys.contains(&m.bls_key))
    }

    fn ask_everyone(&mut self, ballot: &Arc<Ballot>) {
        let State::Leader(lead) = &self.state else { return };
        let Some(open) = lead.ballots.get(&ballot.id) else { return };
        let voters = open.table.table.voters().map(|m| m.did);
        let missing: Vec<NodeId> = voters.filter(|v| !open.votes.contains_key(v)).collect();
        let term = self.hard.term;
        for voter in missing {
            if voter == self.id {
                self.be_asked(ballot.clone());
            } else {
                self.send(voter, Message::Ballot { term, ballot: ballot.clone() });
            }
        }
    }

    pub(super) fn ballots_on_time(&mut self) {
        let now = self.now.mono;
        let State::Leader(lead) = &mut self.state else { return };
        let mut again = Vec::new();
        let mut expired = Vec::new();
        for (id, open) in lead.ballots.iter_mut().filter(|b| b.1.decision.is_none()) {
            if now >= open.expires {
                expired.push(*id);
            } else if now >= open.ask_again {
                open.ask_again = now + ASK_AGAIN_MS;
                again.push(Arc::new(Ballot { ttl_ms: open.expires - now, ..(*open.ballot).clone() }));
            }
        }
        for ballot in again {
            self.ask_everyone(&ballot);
        }
        for id in expired {
            self.decide_ballot(id, Decision::Aborted(AbortReason::Expired));
        }
    }

    pub(super) fn on_vote(
        &mut self,
        from: NodeId,
        term: Term,
        id: ProposalId,
        given: VoteStatement,
        under: SignedFor,
        signature: Signature,
    ) {
        if term != self.hard.term {
            return;
        }
        let State::Leader(lead) = &mut self.state else { return };
        let Some(open) = lead.ballots.get_mut(&id).filter(|o| o.decision.is_none()) else { return };
        let asked = given == statement(&open.ballot, given.granted) && under == open.ballot.under;
        if asked && !open.votes.contains_key(&from) && open.verifying.insert(from, ()).is_none() {
            let table = open.table.clone();
            let job = Crypto::VerifyVote { from, id, statement: given, under, signature, table };
            self.effects.push(Effect::Crypto(job));
        }
    }

    pub(super) fn count_answer(
        &mut self,
        from: NodeId,
        id: ProposalId,
        (given, under): (&VoteStatement, &SignedFor),
        signature: Signature,
    ) {
        let State::Leader(lead) = &mut self.state else { return };
        let Some(open) = lead.ballots.get_mut(&id).filter(|o| o.decision.is_none()) else { return };
        let voters = open.table.table.voters().count();
        // An answer to the question as it was put under an earlier table counts no more: its signature is another one,
        // though it says the same.
        let asked = *under == open.ballot.under && *given == statement(&open.ballot, given.granted);
        if !asked || open.table.table.voter_position(&from).is_none() {
            return;
        }
        let granted = given.granted;
        open.votes.entry(from).or_insert((granted, signature));
        let required = usize::from(open.ballot.required_quorum);
        let grants = open.votes.values().filter(|v| v.0).count();
        let denials = open.votes.len() - grants;
        let of_needed = || open.needed.iter().map(|id| open.votes.get(id).map(|v| v.0));
        if grants >= required && of_needed().all(|v| v == Some(true)) {
            self.decide_ballot(id, Decision::Granted);
        } else if voters - denials < required || of_needed().any(|v| v == Some(false)) {
            self.decide_ballot(id, Decision::Aborted(AbortReason::Rejected));
        }
    }

    fn decide_ballot(&mut self, id: ProposalId, decision: Decision) {
        let State::Leader(lead) = &mut self.state else { return };
        let Some(open) = lead.ballots.get_mut(&id) else { return };
        open.decision = Some(decision);
        let side = |granted| open.votes.iter().filter(|v| v.1.0 == granted).map(|(id, v)| (*id, v.1)).collect();
        let (grants, denials, table) = (side(true), side(false), open.table.clone());
        self.effects.push(Effect::Crypto(Crypto::Tally { id, grants, denials, table }));
    }

    /// The votes of every open ballot were given under a table that is no longer in force: asks the new one's voters.
    pub(super) fn count_ballots_anew(&mut self) {
        let (least, most) = self.quorum_bounds();
        let (table, under) =
            (Arc::new(self.tables.current().clone()), self.tables.current().signed_for(&self.genesis_id));
        let State::Leader(lead) = &mut self.state else { return };
        let now = self.now.mono;
        for open in lead.ballots.values_mut() {
            let required_quorum = open.wanted.unwrap_or(least).clamp(least, most);
            let ttl_ms = open.expires.saturating_sub(now);
            open.ballot = Arc::new(Ballot { under, required_quorum, ttl_ms, ..(*open.ballot).clone() });
            open.table = table.clone();
            open.ask_again = now;
            open.votes.clear();
            open.verifying.clear();
            open.decision = None;
        }
    }

    pub(super) fn on_tallied(&mut self, id: ProposalId, tally: Tally, epoch: Epoch) {
        let State::Leader(lead) = &mut self.state else { return };
        let current = |o: &&mut Open| o.table.epoch == epoch && o.decision.is_some();
        if lead.ballots.get_mut(&id).filter(current).is_none() {
            return;
        }
        let Some(Open { ballot, decision: Some(decision), votes, .. }) = lead.ballots.remove(&id) else { return };
        let denied = || votes.iter().filter(|v| !v.1.0).map(|v| *v.0).collect();
        match ballot.kind {
            Kind::Proposal => {}
            Kind::SnapshotManifest => return self.on_manifest_decided(&ballot, decision, tally, denied()),
            _ => return self.on_change_decided(&ballot, decision, tally, denied()),
        }
        let (kind, abort_reason) = match decision {
            Decision::Granted => (Kind::Proposal, None),
            Decision::Aborted(reason) => (Kind::Aborted, Some(reason)),
        };
        let header = Header {
            abort_reason,
            tally: Some(tally),
            ..self.proposal_header(kind, id, &ballot.request, &ballot.salt, &ballot.payload, ballot.required_quorum)
        };
        let ballot = Arc::unwrap_or_clone(ballot);
        self.requests.remove(&ballot.request.key());
        let request = Some(ballot.request);
        let body = match kind {
            Kind::Proposal => Body { salt: ballot.salt, request, payload: ballot.payload },
            // A refused payload is not published, nor the salt that would let anyone try guesses at it.
            _ => Body { request, ..Body::default() },
        };
        self.append_entry(header, body);
    }

    /// Leadership is gone: the origins submit again.
    pub(super) fn drop_ballots(&mut self) {
        if matches!(self.state, State::Leader(_)) {
            self.requests.retain(|_, r| r.index != LogIndex::ZERO);
        }
    }

    // ---- member ----

    pub(super) fn on_ballot(&mut self, from: NodeId, term: Term, ballot: Arc<Ballot>) {
        let fine = term == self.hard.term
            && self.leader == Some(from)
            && ballot.request.is_within_bounds()
            && ballot.payload.len() <= MAX_PAYLOAD;
        if fine {
            self.be_asked(ballot);
        }
    }

    fn be_asked(&mut self, ballot: Arc<Ballot>) {
        if self.answering_key(&ballot).is_none() {
            return;
        }
        let id = ballot.id;
        // A leader that misbehaves may say anything, and the shell adds to it as this does.
        let ttl_ms = ballot.ttl_ms.min(MAX_TTL_MS);
        let ballot = if ballot.ttl_ms == ttl_ms { ballot } else { Arc::new(Ballot { ttl_ms, ..(*ballot).clone() }) };
        let until = self.now.mono + ttl_ms;
        if self.asked.get(&id).is_some_and(|a| a.ballot.under != ballot.under) {
            // The same question under a new table is another one to sign.
            self.withdraw(id);
        }
        match self.asked.get(&id).map(|a| a.answer.clone()) {
            Some(Answer::Given(given)) => {
                let (statement, under, signature) = *given;
                self.give(id, statement, under, signature);
            }
            Some(_) => {}
            // Proposals that wait must not keep members from changing.
            None if self.asked.len() < MAX_BALLOTS || ballot.kind != Kind::Proposal => {
                self.asked.insert(id, Asked { ballot: ballot.clone(), until, answer: Answer::Wanted });
                self.effects.push(Effect::Ask { ballot });
            }
            None => {}
        }
    }

    /// The key by which this node answers a ballot: that of its row in the table asked, if it holds it.
    fn answering_key(&self, ballot: &Ballot) -> Option<PublicKey> {
        let current = self.tables.current();
        let voter = current.table.get(&self.id).filter(|_| current.table.voter_position(&self.id).is_some())?;
        let asked = current.signed_for(&self.genesis_id) == ballot.under;
        Some(voter.bls_key).filter(|key| asked && self.keys.contains(key))
    }

    pub(super) fn decide(&mut self, id: ProposalId, granted: bool, on_record: bool) {
        let Some(asked) = self.asked.get_mut(&id).filter(|a| a.answer == Answer::Wanted) else { return };
        asked.answer = Answer::Writing(granted);
        if !on_record {
            self.casts.push(CastVote {
                request_key: asked.ballot.request.key(),
                content: content(&asked.ballot.payload),
                granted,
                keep_until: asked.ballot.request.deadline_ms,
            });
        }
        self.unsealed.push(Held::Cast { id });
    }

    /// The answer is on record, durably: only now is it signed.
    pub(super) fn on_cast_durable(&mut self, id: ProposalId) {
        let Some(asked) = self.asked.get(&id) else { return };
        if let Answer::Writing(granted) = asked.answer {
            let Some(key) = self.answering_key(&asked.ballot) else { return };
            let (statement, under) = (statement(&asked.ballot, granted), asked.ballot.under);
            self.effects.push(Effect::Crypto(Crypto::SignVote { id, statement, under, key }));
        }
    }

    pub(super) fn on_ballot_signed(
        &mut self,
        id: ProposalId,
        statement: VoteStatement,
        under: SignedFor,
        signature: Signature,
    ) {
        let Some(asked) = self.asked.get_mut(&id).filter(|a| a.ballot.under == under) else { return };
        asked.answer = Answer::Given(Box::new((statement, under, signature)));
        self.give(id, statement, under, signature);
    }

    fn give(&mut self, id: ProposalId, statement: VoteStatement, under: SignedFor, signature: Signature) {
        if matches!(self.state, State::Leader(_)) {
            self.count_answer(self.id, id, (&statement, &under), signature);
        } else if let Some(leader) = self.leader.filter(|l| *l != self.id) {
            let term = self.hard.term;
            self.send(leader, Message::Vote { term, id, statement, under, signature });
        }
    }

    pub(super) fn forget_asked(&mut self) {
        let now = self.now.mono;
        let over: Vec<ProposalId> = self.asked.iter().filter(|a| a.1.until <= now).map(|a| *a.0).collect();
        for id in over {
            self.withdraw(id);
        }
    }

    pub(super) fn withdraw(&mut self, id: ProposalId) {
        if self.asked.remove(&id).is_some() {
            self.effects.push(Effect::Withdraw { id });
        }
    }

    pub(super) fn withdraw_asked(&mut self) {
        for id in self.asked.keys().copied().collect::<Vec<_>>() {
            self.withdraw(id);
        }
    }
}
