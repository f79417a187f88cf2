//! Elections: pre-vote, signed votes, the election certificate, and whom a follower follows.

use super::{Alarm, Core, Count, Crypto, Effect, Held, Lead, Message, State};
use crate::certificate::{ElectionCertificate, ElectionClaim, Kind, PublicKey, Signature, SignedFor};
use crate::ids::{Epoch, LogIndex, NodeId, Term};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Messages kept while a new leader's certificate is being verified.
const MAX_UNPROVED: usize = 64;

impl Core {
    pub(super) fn reset_election_timer(&mut self) {
        let (low, high) = self.options.election_timeout_ms;
        self.election_due = self.now.mono + low + self.draw(high - low + 1);
    }

    /// Whether a leader is in contact, so that nobody needs another: leader stickiness (Raft dissertation, 6.4 and 9.6).
    fn in_lease(&self) -> bool {
        match &self.state {
            State::Leader(_) => true,
            _ => self.leader_seen.is_some_and(|at| self.now.mono < at + self.options.election_timeout_ms.0),
        }
    }

    /// No word from a leader for too long.
    pub(super) fn campaign_on_time(&mut self) {
        self.reset_election_timer();
        self.leader = None;
        self.follow_nobody();
        if self.is_retired() {
            return;
        }
        if !self.may_stand() {
            // Perhaps it was left out and nobody told it, or its leader is one that it does not know.
            let above = self.known_epoch();
            for to in self.others() {
                self.send(to, Message::EpochsWanted { above });
            }
            return;
        }
        self.state = State::PreCandidate(BTreeMap::from([(self.id, true)]));
        let (term, last_index, last_term) = (self.hard.term.next(), self.log.last(), self.log.last_term());
        let epoch = self.known_epoch();
        for to in self.others() {
            let keys = self.tables.asked_of(&to).into_iter().map(|(_, key)| key).collect();
            self.send(to, Message::PreVote { term, last_index, last_term, epoch, keys });
        }
        self.stand_if_elected_beforehand();
    }

    /// The leader wants this node to take over: no pre-vote, for the leader itself makes way.
    pub(super) fn on_timeout_now(&mut self, from: NodeId, term: Term) {
        if term == self.hard.term && self.leader == Some(from) && self.may_stand() && !self.clock_suspect {
            self.stand(true);
        }
    }

    fn log_is_current(&self, last_term: Term, last_index: LogIndex) -> bool {
        (last_term, last_index) >= (self.log.last_term(), self.log.last())
    }

    pub(super) fn on_pre_vote(
        &mut self,
        from: NodeId,
        term: Term,
        (last_term, last_index): (Term, LogIndex),
        epoch: Epoch,
        keys: &[PublicKey],
    ) {
        if epoch < self.known_epoch() {
            self.tell_epochs(from, epoch);
        }
        // A pre-vote never changes the term here. A refusal tells ours, so that an asker of a lower term catches up
        // instead of asking for ever.
        let asked = keys.len() <= 2 && keys.iter().any(|key| self.keys.contains(key));
        let current = self.log_is_current(last_term, last_index);
        let granted = asked && term > self.hard.term && !self.in_lease() && current;
        let term = if granted { term } else { self.hard.term };
        self.send(from, Message::PreVoteReply { term, granted, wall: self.now.wall });
    }

    pub(super) fn on_pre_vote_reply(&mut self, from: NodeId, term: Term, granted: bool, wall: u64) {
        self.note_clock(from, wall);
        if !granted && term > self.hard.term {
            self.become_follower(term, None);
            return;
        }
        let next = self.hard.term.next();
        if let State::PreCandidate(answers) = &mut self.state
            && (!granted || term == next)
        {
            answers.insert(from, granted);
            self.stand_if_elected_beforehand();
        }
    }

    fn stand_if_elected_beforehand(&mut self) {
        let State::PreCandidate(answers) = &self.state else { return };
        let won = self.tables.reached(|m| answers.get(&m.did) == Some(&true));
        if won && !self.clock_suspect {
            self.stand(false);
        }
    }

    fn stand(&mut self, transfer: bool) {
        let claim = ElectionClaim {
            term: self.hard.term.next(),
            candidate: self.id,
            last_term: self.log.last_term(),
            last_size: self.log.last().0,
            last_root: self.log.last_root(),
        };
        self.hard.term = claim.term;
        self.hard.vote = Some(claim);
        self.hard_dirty = true;
        self.state = State::Candidate(Count::default());
        self.forget_mandate();
        self.reset_election_timer();
        // The others are asked once our own vote is durable: asked earlier, a crash could bring us back in this term
        // with another log and so another claim.
        self.unsealed.push(Held::Vote { claim, under: self.tables.asked_of(&self.id), transfer });
    }

    /// A vote (ours or for another) is fsynced: only now is it signed.
    pub(super) fn on_vote_durable(&mut self, claim: ElectionClaim, under: Vec<(SignedFor, PublicKey)>, transfer: bool) {
        if self.hard.vote != Some(claim) || self.hard.term != claim.term {
            return;
        }
        self.effects.push(Effect::Crypto(Crypto::SignElection { claim, under }));
        if claim.candidate == self.id {
            let mut voters = self.tables.voters();
            voters.remove(&self.id);
            for to in voters {
                let under = self.tables.asked_of(&to);
                self.send(to, Message::RequestVote { claim, under, transfer });
            }
        }
    }

    pub(super) fn on_request_vote(
        &mut self,
        from: NodeId,
        claim: ElectionClaim,
        under: Vec<(SignedFor, PublicKey)>,
        transfer: bool,
    ) {
        if claim.candidate != from || claim.term < self.hard.term {
            // Stale terms are dropped; the asker learns of ours from the next pre-vote.
            return;
        }
        if claim.term > self.hard.term {
            if self.in_lease() && !transfer {
                return;
            }
            self.become_follower(claim.term, None);
        }
        // A vote counts by a key that stands in the candidate's tables. Whoever lost its store does not hold that key any
        // more, nor any memory of how it voted.
        let asked = under.len() <= 2 && under.iter().any(|(_, key)| self.keys.contains(key));
        // One vote per term. The whole claim is on record: the same candidate asking again for the same claim gets the
        // same answer, and for another claim none, so that no second signature in this term can ever exist.
        let free = match &self.hard.vote {
            None => self.leader.is_none() && matches!(self.state, State::Follower | State::PreCandidate(_)),
            Some(vote) => *vote == claim,
        };
        let granted = free && asked && self.log_is_current(claim.last_term, LogIndex(claim.last_size));
        if !granted {
            let message = Message::RequestVoteReply { term: self.hard.term, granted: false, signatures: Vec::new() };
            self.unsealed.push(Held::Reply { to: from, message: Box::new(message) });
            return;
        }
        if self.hard.vote.is_none() {
            self.hard.vote = Some(claim);
            self.hard_dirty = true;
        }
        self.state = State::Follower;
        self.reset_election_timer();
        self.unsealed.push(Held::Vote { claim, under, transfer: false });
    }

    pub(super) fn on_vote_signed(&mut self, claim: ElectionClaim, signatures: Vec<(SignedFor, Signature)>) {
        if self.hard.vote != Some(claim) || self.hard.term != claim.term {
            return;
        }
        if claim.candidate == self.id {
            self.count_vote(self.id, signatures);
        } else {
            let message = Message::RequestVoteReply { term: claim.term, granted: true, signatures };
            self.send(claim.candidate, message);
        }
    }

    pub(super) fn on_request_vote_reply(
        &mut self,
        from: NodeId,
        term: Term,
        granted: bool,
        signatures: Vec<(SignedFor, Signature)>,
    ) {
        if term > self.hard.term {
            self.become_follower(term, None);
            return;
        }
        let (Some(claim), asked) = (self.hard.vote, self.tables.asked_of(&from)) else { return };
        let State::Candidate(count) = &mut self.state else { return };
        if term != self.hard.term || count.granted.contains_key(&from) {
            return;
        }
        if !granted {
            count.denied.insert(from, ());
            let lost = !self.tables.reached(|m| !count.denied.contains_key(&m.did));
            if lost {
                self.become_follower(term, None);
            }
            return;
        }
        if is_subset(&signatures, &asked) && count.verifying.insert(from, ()).is_none() {
            let tables = self.tables.clone();
            self.effects.push(Effect::Crypto(Crypto::VerifyElection { from, claim, signatures, tables }));
        }
    }

    pub(super) fn on_vote_verified(
        &mut self,
        from: NodeId,
        claim: ElectionClaim,
        signatures: Vec<(SignedFor, Signature)>,
    ) {
        if self.hard.vote == Some(claim) && self.hard.term == claim.term && claim.candidate == self.id {
            self.count_vote(from, signatures);
        }
    }

    fn count_vote(&mut self, from: NodeId, signatures: Vec<(SignedFor, Signature)>) {
        let Some(claim) = self.hard.vote else { return };
        let State::Candidate(count) = &mut self.state else { return };
        count.granted.insert(from, signatures);
        if count.certifying || !self.tables.signed(&count.granted) {
            return;
        }
        count.certifying = true;
        let (signatures, tables) = (self.tables.by_table(&count.granted), self.tables.clone());
        self.effects.push(Effect::Crypto(Crypto::CertifyElection { claim, signatures, tables }));
    }

    pub(super) fn on_election_certified(&mut self, certificate: Arc<ElectionCertificate>) {
        if matches!(self.state, State::Candidate(_)) && self.hard.vote == Some(certificate.claim) {
            self.become_leader(certificate);
        }
    }

    fn become_leader(&mut self, election: Arc<ElectionCertificate>) {
        let peers = self.new_peers();
        let payload = election.encode();
        self.state = State::Leader(Box::new(Lead {
            peers,
            election: election.clone(),
            heartbeat_due: self.now.mono + self.options.heartbeat_ms,
            quorum_check_due: self.now.mono + self.options.election_timeout_ms.1,
            seq: 0,
            sign_point: None,
            ballots: BTreeMap::new(),
            sessions: 1,
            change: None,
            transfer: None,
            reads: super::read::Rounds::default(),
        }));
        self.leader = Some(self.id);
        self.proof = Some(election);
        self.append_own(Kind::Noop, payload);
    }

    /// Adopts a term (equal or higher) and stops leading or standing. The vote is kept within a term and void in a
    /// higher one.
    pub(super) fn become_follower(&mut self, term: Term, leader: Option<NodeId>) {
        assert!(term >= self.hard.term, "terms never regress");
        self.lose_leadership(term > self.hard.term);
        if term > self.hard.term {
            self.hard.term = term;
            self.hard.vote = None;
            self.hard_dirty = true;
            self.forget_mandate();
        }
        self.state = State::Follower;
        self.leader = leader;
        if leader.is_none() {
            self.follow_nobody();
        }
        self.reset_election_timer();
    }

    /// Everything that only a leader can bring to an end.
    fn lose_leadership(&mut self, newer: bool) {
        self.refuse_reads();
        if !matches!(self.state, State::Leader(_)) {
            return;
        }
        self.drop_ballots();
        self.drop_change();
        self.drop_transfer(newer);
    }

    fn forget_mandate(&mut self) {
        self.proof = None;
        self.proving = false;
        self.unproved.clear();
        self.leader = None;
        self.follow_nobody();
    }

    /// Whatever was promised to, or asked by, a leader that is gone.
    fn follow_nobody(&mut self) {
        self.follow.forget_mark();
        self.withdraw_asked();
    }

    /// An append or heartbeat: from whom, of which term, and is the claim to lead proved?
    pub(super) fn on_leader_word(&mut self, from: NodeId, message: Message) {
        let (term, election) = match &message {
            Message::Append { term, election, to_keys, .. }
            | Message::SnapshotOffer { term, election, to_keys, .. }
            | Message::Heartbeat { term, election, to_keys, .. } => {
                // Meant for the store that holds these: see `Message::Append`.
                if !self.holds_all(to_keys) {
                    return;
                }
                (*term, election.clone())
            }
            _ => return,
        };
        if term < self.hard.term {
            // The sender leads no more; our term frees it, and frees us if we are ahead by an election that failed.
            let (term, wall) = (self.hard.term, 0);
            let reply = Message::HeartbeatReply { term, session: 0, round: 0, wall, certified: 0 };
            self.unsealed.push(Held::Reply { to: from, message: Box::new(reply) });
            return;
        }
        if self.leader == Some(self.id) && term == self.hard.term {
            return;
        }
        if self.proof.as_ref().is_some_and(|p| p.claim.term == term) {
            if self.leader == Some(from) || self.proof.as_ref().is_some_and(|p| p.claim.candidate == from) {
                self.follow(from, term, message);
            }
            return;
        }
        let Some(election) = election.filter(|e| e.claim.term == term && e.claim.candidate == from) else {
            self.send(from, Message::ProofWanted { term });
            return;
        };
        // Nobody follows a leader elected by tables that were replaced for good, unless that leader replaced them itself:
        // then its entries stand in this log, and were taken from it when it had proved its claim.
        let replaced_by_it = self.log.last_term() == term;
        let oldest = if replaced_by_it { Epoch::ZERO } else { self.epochs.settled_epoch(self.committed) };
        let Some(tables) = self.epochs.named_by(&election.halves, oldest) else {
            // Elected by members of tables that are not known here: their proofs come first.
            let above = self.known_epoch();
            self.send(from, Message::EpochsWanted { above });
            return;
        };
        if self.unproved.len() < MAX_UNPROVED {
            self.unproved.push_back((from, message));
        }
        if !self.proving {
            self.proving = true;
            let (certificate, tables) = (election, Arc::new(tables));
            self.effects.push(Effect::Crypto(Crypto::VerifyElectionCertificate { certificate, tables }));
        }
    }

    pub(super) fn on_leader_proved(&mut self, certificate: Arc<ElectionCertificate>, valid: bool) {
        let claim = certificate.claim;
        if claim.term < self.hard.term {
            // Of a leader that is gone; whoever is being proved now is another.
            return;
        }
        self.proving = false;
        let mut waiting = std::mem::take(&mut self.unproved);
        if !valid {
            self.effects.push(Effect::Alarm(Alarm::FalseLeader { claimant: claim.candidate, term: claim.term }));
            waiting.retain(|m| m.0 != claim.candidate);
            for (from, message) in waiting {
                self.on_leader_word(from, message);
            }
            return;
        }
        self.become_follower(claim.term, Some(claim.candidate));
        self.proof = Some(certificate);
        for (from, message) in waiting {
            self.on_leader_word(from, message);
        }
    }

    fn follow(&mut self, from: NodeId, term: Term, message: Message) {
        if !matches!(self.state, State::Follower) || self.leader != Some(from) {
            self.become_follower(term, Some(from));
        }
        self.leader_seen = Some(self.now.mono);
        self.reset_election_timer();
        match message {
            Message::Append { session, prev_index, prev_term, prev_root, entries, commit, sign_point, .. } => {
                let prev = super::replication::Previous { index: prev_index, term: prev_term, root: prev_root };
                self.on_append(from, session, &prev, entries, commit, sign_point);
            }
            Message::SnapshotOffer { session, offer, .. } => self.on_snapshot_offer(from, session, offer),
            Message::Heartbeat { session, round, commit, committed, sign_point, wall, .. } => {
                self.told_commit = self.told_commit.max(committed);
                self.on_heartbeat(from, (session, round), commit, sign_point, wall);
            }
            _ => {}
        }
    }

    pub(super) fn on_proof_wanted(&mut self, from: NodeId, term: Term) {
        if term != self.hard.term {
            return;
        }
        if let State::Leader(lead) = &mut self.state
            && let Some(peer) = lead.peers.get_mut(&from)
        {
            peer.proved = false;
            let next = self.log.last().next();
            peer.probe(next);
            self.heartbeat_to(from);
        }
    }
}

/// Whether signatures are some of those asked for, each at most once.
pub(super) fn is_subset(signatures: &[(SignedFor, Signature)], asked: &[(SignedFor, PublicKey)]) -> bool {
    let mut left = asked.iter();
    !signatures.is_empty() && signatures.iter().all(|s| left.any(|a| a.0 == s.0))
}
