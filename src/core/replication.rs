//! Replication: appends, acknowledgements, the commit rule.

use super::progress::{Flow, Progress};
use super::{Alarm, AppendResult, Core, Effect, Halt, Held, Message, State};
use crate::certificate::{Body, ElectionCertificate, Entry, Header, Kind, payload_hash};
use crate::ids::{Digest, LogIndex, NodeId, Term};
use crate::limits::MAX_APPEND_BYTES;
use sha2::{Digest as _, Sha256};
use std::sync::Arc;

/// No clock of an honest leader says so: beyond it there would be no times left to add to.
const LATEST_MS: u64 = u64::MAX / 4;

/// Sixteen bytes that anyone may guess.
pub(super) fn public_salt(genesis_id: &Digest, index: LogIndex, term: Term) -> [u8; 16] {
    let digest = Sha256::new()
        .chain_update(genesis_id.0)
        .chain_update(index.0.to_be_bytes())
        .chain_update(term.0.to_be_bytes())
        .finalize();
    std::array::from_fn(|i| digest[i])
}

/// What an append rests on.
pub(super) struct Previous {
    pub(super) index: LogIndex,
    pub(super) term: Term,
    pub(super) root: Option<Digest>,
}

impl Core {
    // ---- leader ----

    /// Appends an entry that nobody proposed.
    pub(super) fn append_own(&mut self, kind: Kind, payload: Vec<u8>) {
        let salt = self.salt_at(self.log.last().next());
        let header = self.payload_header(kind, &salt, &payload);
        self.append_entry(header, Body { salt, request: None, payload });
    }

    /// The header of a payload that nobody proposed.
    pub(super) fn payload_header(&self, kind: Kind, salt: &[u8; 16], payload: &[u8]) -> Header {
        Header {
            payload_len: u32::try_from(payload.len()).expect("bounded by MAX_PAYLOAD"),
            payload_hash: payload_hash(salt, payload),
            ..self.blank_header(kind)
        }
    }

    /// The fields that every next entry shares.
    pub(super) fn blank_header(&self, kind: Kind) -> Header {
        Header {
            index: self.log.last().next(),
            term: self.hard.term,
            // `EpochFinal` is the first entry under the table that it puts in force.
            epoch: if kind == Kind::EpochFinal { self.tables.newest().epoch } else { self.tables.current().epoch },
            kind,
            proposal_id: None,
            request_digest: Digest::ZERO,
            proposed_at: self.stamp(),
            required_quorum: 0,
            abort_reason: None,
            tally: None,
            payload_len: 0,
            payload_hash: Digest::ZERO,
        }
    }

    /// Never decreases along the log, whatever the leader's clock does; and a clock that is out of bound stamps nothing,
    /// for what is stamped too late once holds for all that follows.
    fn stamp(&self) -> u64 {
        let last = self.log.last_proposed_at();
        if self.clock_suspect { last } else { self.now.wall.max(last) }
    }

    pub(super) fn append_entry(&mut self, header: Header, body: Body) -> LogIndex {
        let entry = Arc::new(Entry::new(header, body).expect("the leader hashes what it appends"));
        let index = entry.index();
        self.push(entry);
        index
    }

    pub(super) fn lead_on_time(&mut self) {
        let State::Leader(lead) = &mut self.state else { return };
        if self.now.mono >= lead.quorum_check_due {
            lead.quorum_check_due = self.now.mono + self.options.election_timeout_ms.1;
            let (id, keys, peers) = (self.id, &self.keys, &lead.peers);
            let in_contact = self.tables.reached(|m| match m.did == id {
                true => keys.contains(&m.bls_key),
                false => peers.get(&m.did).is_some_and(|p| p.active && p.keys.contains(&m.bls_key)),
            });
            lead.peers.retain(|_, p| p.leaves_at.is_none() || p.active);
            for peer in lead.peers.values_mut() {
                peer.active = false;
            }
            // Check-quorum: a leader that hears from no quorum may have been replaced already; it must not go on
            // answering as if it led (RAFT-CASES, C).
            if !in_contact {
                self.become_follower(self.hard.term, None);
                return;
            }
        }
        if self.clock_is_off() {
            self.become_follower(self.hard.term, None);
            return;
        }
        let State::Leader(lead) = &mut self.state else { return };
        let heartbeat = self.now.mono >= lead.heartbeat_due;
        if heartbeat {
            self.heartbeat_all();
        }
        self.transfer_on_time(heartbeat);
        self.ballots_on_time();
    }

    pub(super) fn heartbeat_all(&mut self) {
        let due = self.now.mono + self.options.heartbeat_ms;
        let State::Leader(lead) = &mut self.state else { return };
        lead.heartbeat_due = due;
        for to in lead.peers.keys().copied().collect::<Vec<_>>() {
            self.heartbeat_to(to);
        }
    }

    pub(super) fn heartbeat_to(&mut self, to: NodeId) {
        let State::Leader(lead) = &self.state else { return };
        let Some(peer) = lead.peers.get(&to) else { return };
        let to_keys = peer.keys.clone();
        let message = Message::Heartbeat {
            term: self.hard.term,
            session: peer.session,
            to_keys,
            round: lead.reads.newest,
            // Never beyond what the peer is known to hold: it would take other entries there for committed ones.
            commit: self.committed.min(peer.matched),
            committed: self.committed,
            sign_point: lead.sign_point.as_ref().map_or(LogIndex::ZERO, |s| s.index()),
            wall: self.now.wall,
            election: (!peer.proved).then(|| lead.election.clone()),
        };
        self.send(to, message);
    }

    /// Sends every peer what it lacks, as far as its window allows.
    pub(super) fn replicate_all(&mut self) {
        let State::Leader(lead) = &self.state else { return };
        for to in lead.peers.keys().copied().collect::<Vec<_>>() {
            while self.replicate(to) {}
        }
    }

    /// Sends one append; returns whether another may follow.
    fn replicate(&mut self, to: NodeId) -> bool {
        let last = self.log.last();
        let committed = self.committed;
        let State::Leader(lead) = &mut self.state else { return false };
        let sign_point = lead.sign_point.as_ref().map_or(LogIndex::ZERO, |s| s.index());
        let Some(peer) = lead.peers.get_mut(&to) else { return false };
        let news = last >= peer.next
            || peer.commit_told < committed.min(peer.matched)
            || peer.sign_point_told < sign_point
            || peer.flow == Flow::Probe { waiting: false };
        if !news || !peer.may_send() {
            return false;
        }
        if peer.next <= self.log.compacted() {
            self.offer_snapshot(to);
            return false;
        }
        if peer.next < self.log.first_in_memory() {
            peer.fetching = true;
            let (session, from, to_index) = (peer.session, peer.next, self.log.first_in_memory().prev());
            self.effects.push(Effect::Fetch { peer: to, session, from, to: to_index });
            return false;
        }
        let prev = peer.next.prev();
        let entries = self.log.range(peer.next, MAX_APPEND_BYTES);
        let prev_term = self.log.term_at(prev).expect("a leader knows the terms of its whole log");
        // Roots are only at hand at the ends of batches; a root in the middle costs hashing on both sides.
        let prev_root = self.log.root_at(prev);
        self.send_append(to, prev, prev_term, prev_root, entries);
        true
    }

    fn send_append(
        &mut self,
        to: NodeId,
        prev_index: LogIndex,
        prev_term: Term,
        prev_root: Option<Digest>,
        entries: Vec<Arc<Entry>>,
    ) {
        let State::Leader(lead) = &mut self.state else { return };
        let Some(peer) = lead.peers.get_mut(&to) else { return };
        let upto = entries.last().map_or(prev_index, |e| e.index());
        let bytes = entries.iter().map(|e| super::log::weight(e)).sum();
        let commit = self.committed.min(upto.max(peer.matched));
        let sign_point = lead.sign_point.as_ref().map_or(LogIndex::ZERO, |s| s.index());
        let election: Option<Arc<ElectionCertificate>> = (!peer.proved).then(|| lead.election.clone());
        let session = peer.session;
        let to_keys = peer.keys.clone();
        peer.commit_told = commit;
        peer.sign_point_told = sign_point;
        peer.sent(upto, bytes);
        let term = self.hard.term;
        let message = Message::Append {
            term,
            session,
            to_keys,
            prev_index,
            prev_term,
            prev_root,
            entries,
            commit,
            sign_point,
            election,
        };
        self.send(to, message);
    }

    fn nudge(&mut self, to: NodeId) {
        let Some(prev) = self.peer_mut(to).map(|p| p.next.prev()) else { return };
        if let Some(prev_term) = self.log.term_at(prev) {
            self.send_append(to, prev, prev_term, None, Vec::new());
        }
    }

    pub(super) fn on_fetched(
        &mut self,
        peer: NodeId,
        session: u64,
        prev_term: Term,
        prev_root: Option<Digest>,
        entries: Vec<Arc<Entry>>,
    ) {
        let State::Leader(lead) = &mut self.state else { return };
        let Some(progress) = lead.peers.get_mut(&peer) else { return };
        if progress.session != session || !progress.fetching {
            return;
        }
        progress.fetching = false;
        let Some(first) = entries.first().map(|e| e.index()) else { return };
        if first != progress.next || self.log.term_at(first.prev()) != Some(prev_term) {
            return;
        }
        self.send_append(peer, first.prev(), prev_term, prev_root, entries);
    }

    /// A peer of this leader's own term and session; anything else is stale and never counts.
    pub(super) fn current_peer(&mut self, from: NodeId, term: Term, session: u64) -> Option<&mut Progress> {
        if term > self.hard.term {
            self.become_follower(term, None);
            return None;
        }
        if term < self.hard.term {
            return None;
        }
        let now = self.now.mono;
        let State::Leader(lead) = &mut self.state else { return None };
        let peer = lead.peers.get_mut(&from)?;
        if peer.session != session {
            return None;
        }
        peer.heard = Some(now);
        peer.active = true;
        peer.proved = true;
        Some(peer)
    }

    pub(super) fn on_append_reply(&mut self, from: NodeId, term: Term, session: u64, result: AppendResult) {
        let last = self.log.last();
        let Some(peer) = self.current_peer(from, term, session) else { return };
        match result {
            // An acknowledgement beyond our log cannot be of this term.
            AppendResult::Durable(index) if index <= last => {
                peer.acknowledged(index);
                self.send_certificate_to(from);
            }
            AppendResult::Durable(_) => {}
            AppendResult::Mismatch { refused, hint_index, hint_term } => {
                // A delayed refusal of something acknowledged since never rewinds.
                let stale = match peer.flow {
                    Flow::Probe { .. } => refused != peer.next.prev(),
                    Flow::Replicate => refused <= peer.matched,
                    Flow::Snapshot { .. } => true,
                };
                if !stale {
                    let next = self.log.last_at_or_below(hint_index.min(refused.prev()), hint_term).next();
                    if let Some(peer) = self.peer_mut(from) {
                        peer.probe(next);
                    }
                }
            }
        }
    }

    fn peer_mut(&mut self, id: NodeId) -> Option<&mut Progress> {
        match &mut self.state {
            State::Leader(lead) => lead.peers.get_mut(&id),
            _ => None,
        }
    }

    pub(super) fn on_heartbeat_reply(
        &mut self,
        from: NodeId,
        term: Term,
        (session, round): (u64, u64),
        wall: u64,
        certified: u64,
    ) {
        let last = self.log.last();
        let newest = self.certificate.as_ref().map_or(0, |c| c.head.size);
        let Some(peer) = self.current_peer(from, term, session) else { return };
        peer.round = peer.round.max(round);
        peer.certificate_sent = certified;
        let quiet = !std::mem::take(&mut peer.moving) && peer.matched < last;
        let nudge = match &mut peer.flow {
            Flow::Probe { waiting } => {
                *waiting = false;
                false
            }
            Flow::Snapshot { .. } => false,
            Flow::Replicate => quiet && peer.next > peer.matched.next(),
        };
        if nudge {
            // What was sent may have been lost with a connection, the last message included: an empty append at the
            // end of it is refused when anything before is missing, and a refusal starts over from there.
            self.nudge(from);
        }
        self.offer_again(from);
        if certified < newest {
            self.send_certificate_to(from);
        }
        self.note_clock(from, wall);
    }

    /// Raft's commit rule, unmodified: an index is committed when a quorum (of every table in force) holds it durably
    /// *and* it is of this leader's own term. An entry of an earlier term on a quorum can still be overwritten by a
    /// candidate that lacks it but has a later last term (Raft paper, figure 8); it becomes committed with the first
    /// entry of our own term above it. Our own disk counts like anyone's, by what is fsynced.
    pub(super) fn advance_commit(&mut self) {
        let State::Leader(lead) = &self.state else { return };
        let (id, keys, durable) = (self.id, &self.keys, self.log.durable());
        let index = self.tables.committed(|m| {
            let peer = || lead.peers.get(&m.did).filter(|p| p.keys.contains(&m.bls_key));
            match m.did == id {
                true if keys.contains(&m.bls_key) => durable,
                true => LogIndex::ZERO,
                false => peer().map_or(LogIndex::ZERO, |p| p.matched),
            }
        });
        if index > self.committed && self.log.term_at(index) == Some(self.hard.term) {
            self.committed = index;
        }
    }

    // ---- follower ----

    pub(super) fn on_append(
        &mut self,
        from: NodeId,
        session: u64,
        prev: &Previous,
        entries: Vec<Arc<Entry>>,
        commit: LogIndex,
        sign_point: LogIndex,
    ) {
        let term = self.hard.term;
        if self.log.term_at(prev.index) != Some(prev.term) {
            // Where our log could agree with a log that has `prev.term` there: skips whole conflicting terms at once.
            let hint_index = self.log.last_at_or_below(prev.index.min(self.log.last()), prev.term);
            let hint_term = self.log.term_at(hint_index).unwrap_or_default();
            let result = AppendResult::Mismatch { refused: prev.index, hint_index, hint_term };
            let message = Message::AppendReply { term, session, result };
            self.unsealed.push(Held::Reply { to: from, message: Box::new(message) });
            return;
        }
        if let (Some(theirs), Some(ours)) = (prev.root, self.log.root_at(prev.index))
            && theirs != ours
        {
            // Same (index, term) and another history: log matching is broken, by corruption or by a lie.
            self.halt(Halt::RootMismatch { leader: from, index: prev.index });
            return;
        }
        let upto = LogIndex(prev.index.0 + entries.len() as u64);
        if !self.is_well_formed(prev, &entries) {
            self.effects.push(Effect::Alarm(Alarm::MalformedAppend { from }));
            return;
        }
        for entry in entries {
            let index = entry.index();
            match self.log.term_at(index) {
                Some(t) if t == entry.term() => continue,
                Some(t) => {
                    // A committed entry is never overwritten (state-machine safety), nor one of the leader's own term
                    // (a leader only appends).
                    if index <= self.committed || t == term {
                        self.halt(Halt::CommittedOverwrite { leader: from, index });
                        return;
                    }
                    self.truncate(index);
                }
                None => {}
            }
            self.push(entry);
        }
        self.learn_commit(commit.min(upto));
        self.follow.mark(sign_point);
        self.unsealed.push(Held::Ack { to: from, term, session, upto });
    }

    /// Consecutive, of terms that do not decrease and are not beyond the leader's, of clocks that do not run backwards.
    fn is_well_formed(&self, prev: &Previous, entries: &[Arc<Entry>]) -> bool {
        let mut before = (prev.index, prev.term, self.log.get(prev.index).map_or(0, |e| e.header.proposed_at));
        entries.iter().all(|e| {
            let fine = e.index() == before.0.next()
                && e.term() >= before.1
                && e.term() <= self.hard.term
                && (before.2..=LATEST_MS).contains(&e.header.proposed_at)
                && self.carries_proof(e);
            before = (e.index(), e.term(), e.header.proposed_at);
            fine
        }) && self.keeps_epochs(prev.index, entries)
    }

    /// The first entry of the leader's term holds the very certificate by which it is followed.
    fn carries_proof(&self, entry: &Entry) -> bool {
        entry.header.kind != Kind::Noop
            || entry.term() != self.hard.term
            || self.proof.as_ref().is_some_and(|p| p.encode() == entry.body.payload)
    }

    pub(super) fn on_heartbeat(
        &mut self,
        from: NodeId,
        (session, round): (u64, u64),
        commit: LogIndex,
        sign_point: LogIndex,
        wall: u64,
    ) {
        self.note_clock(from, wall);
        self.learn_commit(commit);
        self.follow.mark(sign_point);
        self.follow.offer_again();
        let message = Message::HeartbeatReply {
            term: self.hard.term,
            session,
            round,
            wall: 0,
            certified: self.certificate.as_ref().map_or(0, |c| c.head.size),
        };
        self.unsealed.push(Held::Reply { to: from, message: Box::new(message) });
    }

    /// Never regresses, never passes the last entry.
    fn learn_commit(&mut self, commit: LogIndex) {
        self.committed = self.committed.max(commit.min(self.log.last()));
    }
}
