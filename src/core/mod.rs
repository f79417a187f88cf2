//! The consensus state machine: Raft with pre-vote and check-quorum, ballots, and certification of what it commits.
//!
//! A pure function of (state, now, input): no clock, no randomness but a seed, no I/O. [`Core::step`] takes one input;
//! [`Core::drain`] seals what the inputs since the last drain amount to (one write, one append per peer) and returns the
//! effects in the order in which they must be executed.
//!
//! Positions in the log, and the order that always holds between them (checked after every drain):
//!
//! ```text
//! applied ≤ delivered ≤ min(committed, durable) ≤ last
//! certified ≤ committed
//! ```
//!
//! *last* is appended here; *durable* is fsynced here; *committed* is known to be durable on a quorum, under Raft's rule;
//! *delivered* was handed to the state machine; *certified* is covered by a verified head certificate.

mod admission;
mod ballot;
mod certify;
mod effect;
mod election;
mod input;
mod log;
mod membership;
mod message;
mod progress;
mod read;
mod replication;
mod snapshot;
mod tables;
#[cfg(test)]
mod tests;
mod transfer;
mod types;

pub use ballot::content;
pub use effect::Effect;
pub use input::Input;
pub(crate) use message::wire_entries;
pub use message::{AppendResult, Message};
pub use tables::Tables;
pub use types::*;

use crate::certificate::{ElectionCertificate, Genesis, HeadCertificate, Policy, PublicKey, SignedFor};
use crate::ids::{Digest, Epoch, LogIndex, NodeId, ProposalId, Term};
use crate::limits;
use log::Log;
use progress::Progress;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

/// A message of a term further ahead than this is nonsense (elections take a quarter of a second at least, so this many
/// take 34 years), and taken seriously a few of them would leave no terms to count in.
const MAX_TERM_AHEAD: u64 = 1 << 32;

/// What a node may choose for itself.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Options {
    /// Election timeouts are drawn from this range, milliseconds; its lower end is also the leader lease.
    pub election_timeout_ms: (u64, u64),
    /// Heartbeats, milliseconds; well below the election timeout.
    pub heartbeat_ms: u64,
    /// Most proposals appended and not committed, plus as many ballots as [`limits::MAX_BALLOTS`].
    pub max_pending: usize,
    /// Most bytes appended and not committed.
    pub max_uncommitted_bytes: usize,
    /// By how much a leader's clock may differ from those of a quorum's worth of peers, milliseconds.
    pub max_clock_difference_ms: u64,
    /// Most bytes of a snapshot asked for in a second.
    pub snapshot_bytes_per_s: u64,
    /// The only randomness.
    pub seed: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            election_timeout_ms: (250, 500),
            heartbeat_ms: 50,
            max_pending: limits::MAX_PENDING,
            max_uncommitted_bytes: limits::MAX_UNCOMMITTED_BYTES,
            max_clock_difference_ms: 500,
            snapshot_bytes_per_s: limits::SNAPSHOT_BYTES_PER_S,
            seed: 0,
        }
    }
}

/// A candidate's count.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Count {
    granted: tables::Shares,
    denied: BTreeMap<NodeId, ()>,
    /// Whose signatures are being verified.
    verifying: BTreeMap<NodeId, ()>,
    certifying: bool,
}

/// A leader's own state.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Lead {
    peers: BTreeMap<NodeId, Progress>,
    election: Arc<ElectionCertificate>,
    heartbeat_due: u64,
    quorum_check_due: u64,
    /// Sequence numbers of proposals given out in this term.
    seq: u64,
    sign_point: Option<certify::SignPoint>,
    ballots: BTreeMap<ProposalId, ballot::Open>,
    /// The newest replication session given out in this term.
    sessions: u64,
    change: Option<membership::Changing>,
    transfer: Option<transfer::Transferring>,
    reads: read::Rounds,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum State {
    Follower,
    /// Asking whether an election could be won; nothing has changed yet.
    PreCandidate(BTreeMap<NodeId, bool>),
    Candidate(Count),
    Leader(Box<Lead>),
}

/// What waits for a write: nothing here leaves this node before `persisted` has reached its sequence number.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Held {
    /// Tell the leader how far its log is durable here.
    Ack { to: NodeId, term: Term, session: u64, upto: LogIndex },
    /// A reply that tells a new term, or a refusal.
    Reply { to: NodeId, message: Box<Message> },
    /// Sign the vote for this claim (and, when it is our own, ask the others).
    Vote { claim: crate::certificate::ElectionClaim, under: Vec<(SignedFor, PublicKey)>, transfer: bool },
    /// Sign the answer to a ballot.
    Cast { id: ProposalId },
}

/// A request whose entry is in the log but not applied, or that is on a ballot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Underway {
    id: ProposalId,
    /// SHA-256 of the payload; zero for an aborted entry, whose payload is gone.
    content: Digest,
    /// Zero while on a ballot.
    index: LogIndex,
}

/// The consensus state machine of one node.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Core {
    id: NodeId,
    genesis_id: Digest,
    /// In force at the end of the log.
    tables: Arc<Tables>,
    epochs: membership::Epochs,
    /// The newest epoch whose `EpochFinal` is known to be committed.
    in_force: Epoch,
    /// The newest epoch that others said is in force for good. Nothing but this node's own retirement rests on it.
    told_in_force: Epoch,
    /// Peers for which proofs of membership changes are being fetched, with the epoch that they know.
    telling: BTreeMap<NodeId, Epoch>,
    /// Proofs that came in are being verified; until then no others are.
    epochs_checked_until: u64,
    /// The keys that this node's store holds.
    keys: Vec<PublicKey>,
    options: Options,
    random: u64,
    now: Now,

    hard: HardState,
    hard_dirty: bool,
    log: Log,
    committed: LogIndex,
    /// The highest commit index that a leader told of. Nothing is committed by it: it only says how far behind this is.
    told_commit: LogIndex,
    delivered: LogIndex,
    applied: LogIndex,
    state: State,
    leader: Option<NodeId>,
    /// The election certificate of the leader followed; nobody is followed without one.
    proof: Option<Arc<ElectionCertificate>>,
    /// Messages of a leader whose certificate is being verified.
    unproved: VecDeque<(NodeId, Message)>,
    proving: bool,
    election_due: u64,
    /// Last word from a proved leader.
    leader_seen: Option<u64>,
    announced: (Role, Term, Option<NodeId>),
    /// Peers' clocks against ours, milliseconds (positive: we are ahead).
    clocks: BTreeMap<NodeId, i64>,
    clock_suspect: bool,

    next_seq: u64,
    persisted: u64,
    /// The newest write of term and vote.
    hard_seq: u64,
    held: VecDeque<(u64, Held)>,
    unsealed: Vec<Held>,
    casts: Vec<CastVote>,
    certificate_to_persist: Option<Arc<HeadCertificate>>,
    snapshots: snapshot::Snapshots,

    certificate: Option<Arc<HeadCertificate>>,
    follow: certify::Follow,
    asked: BTreeMap<ProposalId, ballot::Asked>,
    requests: BTreeMap<Digest, Underway>,
    /// Reads passed on to the leader, by context. Contexts ascend from a random start, so that none is used twice, not
    /// even across a restart.
    reading: BTreeMap<u64, read::Passed>,
    next_context: u64,

    effects: Vec<Effect>,
    halted: bool,
}

impl Core {
    /// A node as it was when it last stopped. The shell has applied everything up to the restored certificate.
    #[must_use]
    pub fn new(id: NodeId, genesis: &Genesis, restored: Restored, options: Options, now: Now) -> Self {
        let Restored { hard, certificate, compacted, frontier, terms, last_proposed_at, tail, epochs, keys } = restored;
        let epochs = membership::Epochs::restore(genesis, epochs.iter().chain(&tail));
        let snapshots = snapshot::Snapshots::restore(&tail);
        let log = Log::new(compacted, frontier, terms, last_proposed_at, tail);
        // What a snapshot stands for was committed when it was made.
        let committed = LogIndex(certificate.as_ref().map_or(0, |c| c.head.size)).max(compacted);
        assert!(committed <= log.last(), "the store checked that its newest certificate lies within its log");
        assert!(committed.next() >= log.first_in_memory(), "everything above the certificate is in memory");
        let mut core = Self {
            id,
            genesis_id: genesis.id(),
            tables: Arc::new(epochs.tables()),
            in_force: epochs.settled_epoch(committed),
            told_in_force: Epoch::ZERO,
            epochs,
            telling: BTreeMap::new(),
            epochs_checked_until: 0,
            keys,
            random: options.seed,
            options,
            now,
            hard,
            hard_dirty: false,
            log,
            committed,
            told_commit: committed,
            delivered: committed,
            applied: committed,
            state: State::Follower,
            leader: None,
            proof: None,
            unproved: VecDeque::new(),
            proving: false,
            election_due: 0,
            leader_seen: None,
            announced: (Role::Follower, Term::ZERO, None),
            clocks: BTreeMap::new(),
            clock_suspect: false,
            next_seq: 1,
            persisted: 0,
            hard_seq: 0,
            held: VecDeque::new(),
            unsealed: Vec::new(),
            casts: Vec::new(),
            certificate_to_persist: None,
            snapshots,
            certificate,
            follow: certify::Follow::default(),
            asked: BTreeMap::new(),
            requests: BTreeMap::new(),
            reading: BTreeMap::new(),
            next_context: 0,
            effects: Vec::new(),
            halted: false,
        };
        core.remember_requests(committed.next());
        core.reset_election_timer();
        // Half the numbers are left to count in.
        core.next_context = core.draw(1 << 63);
        core.announce_membership();
        if core.in_force > Epoch::ZERO {
            core.announce_in_force();
        }
        core
    }

    /// Takes one input. Call [`Core::drain`] after one or several.
    pub fn step(&mut self, now: Now, input: Input) {
        if self.halted {
            return;
        }
        self.observe_clock(now);
        match input {
            Input::Tick => {}
            Input::Receive { from, message } => self.receive(from, message),
            Input::Submit { handle, submission } => self.submit(handle, submission),
            Input::Decide { id, granted, on_record } => self.decide(id, granted, on_record),
            Input::Read { handle } => self.read(handle),
            Input::Transfer { handle, to } => self.transfer(handle, to),
            Input::Change { handle, change } => self.change(handle, change),
            Input::Mark { handle } => self.mark(handle),
            Input::SnapshotTaken(manifest) => self.on_snapshot_taken(manifest),
            Input::SnapshotOffered(offer) => self.on_snapshot_offered(offer),
            Input::Compacted { upto } => self.on_compacted(upto),
            Input::ChunkFetched { peer, session, index, chunk, found } => {
                self.on_chunk_fetched(peer, session, (index, chunk), found);
            }
            Input::SnapshotVerified { offer, valid } => self.on_snapshot_verified(&offer, valid),
            Input::SnapshotStaged { index, missing } => self.on_snapshot_staged(index, missing),
            Input::ChunkStored { index, chunk } => self.on_chunk_stored(index, chunk),
            Input::SnapshotReady { index, base } => self.on_snapshot_ready(index, base),
            Input::Keys(keys) => self.keys = keys,
            Input::EpochsFetched { peer, chain } => self.on_epochs_fetched(peer, chain),
            Input::EpochsVerified { tables, in_flight } => self.on_epochs_verified(tables, in_flight),
            Input::Persisted { seq } => self.on_persisted(seq),
            Input::Fetched { peer, session, prev_term, prev_root, entries } => {
                self.on_fetched(peer, session, prev_term, prev_root, entries);
            }
            Input::Applied { index } => self.on_applied(index),
            Input::VoteSigned { claim, signatures } => self.on_vote_signed(claim, signatures),
            Input::VoteVerified { from, claim, signatures } => self.on_vote_verified(from, claim, signatures),
            Input::ElectionCertified { certificate } => self.on_election_certified(certificate),
            Input::LeaderProved { certificate, valid } => self.on_leader_proved(certificate, valid),
            Input::HeadSigned { head, signatures } => self.on_head_signed(head, signatures),
            Input::ShareVerified { from, head, signatures } => self.on_share_verified(from, head, signatures),
            Input::HeadCertified { certificate } => self.on_head_certified(certificate),
            Input::CertificateVerified { certificate, valid } => self.on_certificate_verified(certificate, valid),
            Input::BallotSigned { id, statement, under, signature } => {
                self.on_ballot_signed(id, statement, under, signature);
            }
            Input::BallotVerified { from, id, statement, under, signature } => {
                self.count_answer(from, id, (&statement, &under), signature);
            }
            Input::Tallied { id, tally, epoch } => self.on_tallied(id, tally, epoch),
        }
        self.on_time();
    }

    /// Seals and returns what the inputs since the last drain amount to.
    pub fn drain(&mut self) -> Vec<Effect> {
        if !self.halted {
            self.advance_commit();
            self.settle_certificate();
            self.finish_change();
            self.settle_epochs();
            self.propose_manifest();
            self.drive_install();
            self.mark_sign_point();
            self.persist();
            self.replicate_all();
            self.dismiss_peers();
            self.confirm_reads();
            self.drive_transfer();
            self.sign_head();
            self.deliver();
            self.announce();
            self.check_positions();
        }
        std::mem::take(&mut self.effects)
    }

    /// When to send [`Input::Tick`] at the latest, on the monotonic clock.
    #[must_use]
    pub fn deadline(&self) -> u64 {
        match &self.state {
            State::Leader(lead) => {
                let ballots = lead.ballots.values().map(ballot::Open::due).min().unwrap_or(u64::MAX);
                let transfer = lead.transfer.as_ref().map_or(u64::MAX, |t| t.due);
                lead.heartbeat_due.min(lead.quorum_check_due).min(ballots).min(transfer)
            }
            _ => self.election_due.min(self.reads_due()).min(self.install_due()),
        }
    }

    /// This node's role.
    #[must_use]
    pub fn role(&self) -> Role {
        match self.state {
            State::Leader(_) => Role::Leader,
            State::Candidate(_) => Role::Candidate,
            // A pre-vote changes nothing, so whoever asks for one still is a follower to the world.
            State::Follower | State::PreCandidate(_) => Role::Follower,
        }
    }

    /// The term.
    #[must_use]
    pub fn term(&self) -> Term {
        self.hard.term
    }
    /// The vote in this term.
    #[must_use]
    pub fn vote(&self) -> Option<&crate::certificate::ElectionClaim> {
        self.hard.vote.as_ref()
    }
    /// Who leads, when known.
    #[must_use]
    pub fn leader(&self) -> Option<NodeId> {
        self.leader
    }
    /// The commit index.
    #[must_use]
    pub fn committed(&self) -> LogIndex {
        self.committed
    }
    /// The highest commit index heard of, here or at a leader.
    #[must_use]
    pub fn known_commit(&self) -> LogIndex {
        self.committed.max(self.told_commit)
    }
    /// The last index appended here.
    #[must_use]
    pub fn last_index(&self) -> LogIndex {
        self.log.last()
    }
    /// The last index fsynced here.
    #[must_use]
    pub fn durable(&self) -> LogIndex {
        self.log.durable()
    }
    /// The newest head certificate held here.
    #[must_use]
    pub fn certificate(&self) -> Option<&Arc<HeadCertificate>> {
        self.certificate.as_ref()
    }
    /// How far a peer is known to hold the log; only a leader knows.
    #[must_use]
    pub fn matched(&self, peer: &NodeId) -> Option<LogIndex> {
        match &self.state {
            State::Leader(lead) => lead.peers.get(peer).map(|p| p.matched),
            _ => None,
        }
    }
    /// Ballots open at this leader.
    #[must_use]
    pub fn open_ballots(&self) -> usize {
        match &self.state {
            State::Leader(lead) => lead.ballots.len(),
            _ => 0,
        }
    }
    /// `proposed_at` of the last entry, milliseconds since the Unix epoch; it never goes back with a clock.
    #[must_use]
    pub fn log_time(&self) -> u64 {
        self.log.last_proposed_at()
    }
    /// Whether a ballot that was put to this node has its answer (being written, signed, or given).
    #[must_use]
    pub fn is_answered(&self, id: &ProposalId) -> bool {
        self.asked.get(id).is_some_and(ballot::Asked::is_answered)
    }
    /// When this node last knew that a leader was in contact (now, when it leads), on the monotonic clock.
    #[must_use]
    pub fn leader_contact(&self) -> Option<u64> {
        if matches!(self.state, State::Leader(_)) { Some(self.now.mono) } else { self.leader_seen }
    }
    /// An entry that is still in memory.
    #[must_use]
    pub fn entry(&self, index: LogIndex) -> Option<&Arc<crate::certificate::Entry>> {
        self.log.get(index)
    }
    /// The tree root over the first entries, while those are in memory.
    #[must_use]
    pub fn root_at(&self, index: LogIndex) -> Option<Digest> {
        self.log.root_at(index)
    }

    fn receive(&mut self, from: NodeId, message: Message) {
        if !self.hears(&from, &message) {
            return;
        }
        if message.term().is_some_and(|t| t.0 > self.hard.term.0.saturating_add(MAX_TERM_AHEAD)) {
            return;
        }
        match message {
            Message::PreVote { term, last_index, last_term, epoch, keys } => {
                self.on_pre_vote(from, term, (last_term, last_index), epoch, &keys);
            }
            Message::PreVoteReply { term, granted, wall } => self.on_pre_vote_reply(from, term, granted, wall),
            Message::RequestVote { claim, under, transfer } => self.on_request_vote(from, claim, under, transfer),
            Message::RequestVoteReply { term, granted, signatures } => {
                self.on_request_vote_reply(from, term, granted, signatures);
            }
            message @ (Message::Append { .. } | Message::Heartbeat { .. } | Message::SnapshotOffer { .. }) => {
                self.on_leader_word(from, message);
            }
            Message::SnapshotWanted { term, session, index, chunk } => {
                self.on_snapshot_wanted(from, term, session, (index, chunk));
            }
            Message::SnapshotChunk { index, chunk, bytes, path, .. } => {
                self.on_snapshot_chunk((index, chunk), bytes, &path);
            }
            Message::AppendReply { term, session, result } => self.on_append_reply(from, term, session, result),
            Message::HeartbeatReply { term, session, round, wall, certified } => {
                self.on_heartbeat_reply(from, term, (session, round), wall, certified);
            }
            Message::EpochsWanted { above } => self.tell_epochs(from, above),
            Message::Epochs { chain, in_flight, in_force } => self.on_epochs(&from, chain, in_flight, in_force),
            Message::ReadIndex { term, context } => self.on_read_index(from, term, context),
            Message::ReadIndexReply { context, index, .. } => self.on_read_index_reply(from, context, index),
            Message::TimeoutNow { term } => self.on_timeout_now(from, term),
            Message::ProofWanted { term } => self.on_proof_wanted(from, term),
            Message::HeadShare { head, signatures } => self.on_head_share(from, head, signatures),
            Message::Certificate(certificate) => self.on_certificate(certificate),
            Message::Ballot { term, ballot } => self.on_ballot(from, term, ballot),
            Message::Vote { term, id, statement, under, signature } => {
                self.on_vote(from, term, id, statement, under, signature);
            }
        }
    }

    /// Everything that the clock alone brings about.
    fn on_time(&mut self) {
        match self.state {
            State::Leader(_) => self.lead_on_time(),
            _ if self.now.mono >= self.election_due => self.campaign_on_time(),
            _ => {}
        }
        self.forget_asked();
        self.reads_on_time();
    }

    /// Hands what is new to the disk, as one write, and seals what waits for it.
    fn persist(&mut self) {
        for cast in std::mem::take(&mut self.casts) {
            self.emit_write(Write { cast: Some(cast), ..Write::default() });
        }
        let base = self.snapshots.base_to_persist.take();
        let entries = self.log.unissued();
        let certificate = self.certificate_to_persist.take();
        if self.hard_dirty || base.is_some() || !entries.is_empty() || certificate.is_some() {
            let hard = std::mem::take(&mut self.hard_dirty).then(|| self.hard.clone());
            let appended = !entries.is_empty() || base.is_some();
            let voted = hard.is_some();
            let seq = self.emit_write(Write { hard, base, entries, cast: None, certificate: certificate.clone() });
            if voted {
                self.hard_seq = seq;
            }
            if appended {
                self.log.issue(seq);
            }
        }
        if let Some(certificate) = certificate {
            self.effects.push(Effect::Certified(certificate));
            if let State::Leader(lead) = &self.state {
                for to in lead.peers.keys().copied().collect::<Vec<_>>() {
                    self.send_certificate_to(to);
                }
            }
        }
        let seq = self.next_seq - 1;
        for held in std::mem::take(&mut self.unsealed) {
            if self.is_durable(&held) {
                self.let_go(held);
            } else if !self.held.iter().rev().take_while(|h| h.0 == seq).any(|h| h.1 == held) {
                // Others ask again and again while a disk hangs; one answer to the same question is enough.
                self.held.push_back((seq, held));
            }
        }
        self.release();
    }

    /// Whether everything that this promise rests on is fsynced already, so that it need not wait for later writes: a
    /// slow disk must not make a follower look dead.
    fn is_durable(&self, held: &Held) -> bool {
        let term_is = self.hard_seq <= self.persisted;
        match held {
            Held::Ack { upto, .. } => term_is && *upto <= self.log.durable(),
            Held::Reply { .. } => term_is,
            Held::Vote { .. } | Held::Cast { .. } => self.next_seq - 1 <= self.persisted,
        }
    }

    fn emit_write(&mut self, write: Write) -> u64 {
        let seq = self.next_seq;
        self.next_seq += 1;
        self.effects.push(Effect::Persist { seq, write });
        seq
    }

    fn on_persisted(&mut self, seq: u64) {
        self.persisted = self.persisted.max(seq);
        self.log.persisted(seq);
        self.release();
    }

    fn release(&mut self) {
        while let Some((_, held)) = self.held.pop_front_if(|h| h.0 <= self.persisted) {
            self.let_go(held);
        }
    }

    /// Lets go of what waited. This is the one place where a promise leaves: everything here rests on writes that
    /// `persisted` says are fsynced.
    fn let_go(&mut self, held: Held) {
        match held {
            // Between the write and now the term may have moved on and the log been rewritten; then the promise is
            // void. Within one term a follower's log only grows, so the term alone tells.
            Held::Ack { to, term, session, upto } => {
                if term == self.hard.term && self.leader == Some(to) {
                    let result = AppendResult::Durable(upto);
                    self.send(to, Message::AppendReply { term, session, result });
                }
            }
            Held::Reply { to, mut message } => {
                // The clock as it is when the answer leaves: waiting for the disk must not look like a clock difference.
                // (Until then there is none in it, so that two answers to one question are equal.)
                if let Message::HeartbeatReply { wall, .. } = &mut *message {
                    *wall = self.now.wall;
                }
                self.send(to, *message);
            }
            Held::Vote { claim, under, transfer } => self.on_vote_durable(claim, under, transfer),
            Held::Cast { id } => self.on_cast_durable(id),
        }
    }

    fn send(&mut self, to: NodeId, message: Message) {
        debug_assert_ne!(to, self.id);
        self.effects.push(Effect::Send { to, message });
    }

    /// Hands committed entries to the state machine, never beyond what is durable here.
    fn deliver(&mut self) {
        let upto = self.committed.min(self.log.durable());
        if self.delivered < self.log.compacted() && upto >= self.log.compacted() {
            let index = self.log.compacted();
            self.delivered = index;
            self.effects.push(Effect::Restore { index });
        }
        if upto > self.delivered {
            let mut entries = self.log.range(self.delivered.next(), usize::MAX);
            entries.truncate(usize::try_from(upto.0 - self.delivered.0).unwrap_or(usize::MAX));
            debug_assert_eq!(entries.last().map(|e| e.index()), Some(upto));
            self.delivered = upto;
            self.effects.push(Effect::Commit { entries, index: upto });
        }
    }

    fn on_applied(&mut self, index: LogIndex) {
        self.applied = self.applied.max(index.min(self.delivered));
        let applied = self.applied;
        self.requests.retain(|_, r| r.index == LogIndex::ZERO || r.index > applied);
        self.log.trim(applied);
    }

    fn announce(&mut self) {
        let now = (self.role(), self.hard.term, self.leader);
        if now != self.announced {
            self.announced = now;
            self.effects.push(Effect::Role { role: now.0, term: now.1, leader: now.2 });
        }
    }

    fn halt(&mut self, why: Halt) {
        self.halted = true;
        self.effects.push(Effect::Halt(why));
    }

    fn check_positions(&self) {
        let certified = LogIndex(self.certificate.as_ref().map_or(0, |c| c.head.size));
        assert!(self.applied <= self.delivered, "applied {} ≤ delivered {}", self.applied, self.delivered);
        assert!(
            self.delivered <= self.committed.min(self.log.durable()),
            "delivered {} is committed and durable",
            self.delivered
        );
        assert!(self.committed <= self.log.last(), "committed {} ≤ last {}", self.committed, self.log.last());
        assert!(certified <= self.committed, "certified {certified} ≤ committed {}", self.committed);
    }

    /// Notices when the wall clock jumps against the monotonic one: a leader must not stamp entries by such a clock.
    fn observe_clock(&mut self, now: Now) {
        let elapsed = now.mono.saturating_sub(self.now.mono);
        let jump = now.wall.abs_diff(self.now.wall.saturating_add(elapsed));
        self.now = now;
        if jump > self.options.max_clock_difference_ms {
            // Differences measured before the jump mean nothing now; until a quorum's are measured anew, this clock
            // stamps nothing.
            self.clocks.clear();
            self.clock_suspect = !self.tables.reached(|m| m.did == self.id);
        }
    }

    fn note_clock(&mut self, peer: NodeId, wall: u64) {
        let difference = i64::try_from(self.now.wall).unwrap_or(i64::MAX) - i64::try_from(wall).unwrap_or(i64::MAX);
        self.clocks.insert(peer, difference);
        let off = self.clock_is_off();
        if off && !self.clock_suspect {
            let mut all: Vec<i64> = self.clocks.values().copied().collect();
            all.sort_unstable();
            let difference_ms = all.get(all.len() / 2).copied().unwrap_or_default();
            self.effects.push(Effect::Alarm(Alarm::ClockOutOfBound { difference_ms }));
        }
        let measured = self.tables.reached(|m| m.did == self.id || self.clocks.contains_key(&m.did));
        if off || measured {
            self.clock_suspect = off;
        }
    }

    /// Whether a quorum's clocks all differ from ours by more than the bound.
    fn clock_is_off(&self) -> bool {
        let bound = self.options.max_clock_difference_ms;
        self.tables.reached(|m| self.clocks.get(&m.did).is_some_and(|d| d.unsigned_abs() > bound))
    }

    /// All other members of the tables in force.
    fn others(&self) -> Vec<NodeId> {
        self.tables.members().into_iter().filter(|d| *d != self.id).collect()
    }

    fn all_auto(&self) -> bool {
        self.tables.current().table.voters().all(|m| m.policy == Policy::Auto)
    }

    /// splitmix64.
    fn draw(&mut self, below: u64) -> u64 {
        // Nothing to choose leaves no trace: with fixed timeouts, states that differ in nothing else stay equal.
        if below <= 1 {
            return 0;
        }
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % below
    }
}
