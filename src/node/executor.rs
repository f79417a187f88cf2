//! The effect executor: feeds the core, executes its effects, and sees what was asked of a node through. Everything that
//! it does to the world goes through [`Devices`].

use super::Ended;
use super::ballots::Lookups;
pub use super::ballots::{Looked, Records, Subject};
use super::certifying::Certifying;
use super::delivered::Delivered;
pub use super::membership::Query;
use super::membership::Waiters;
use super::pending::{Origin, Pending};
use super::snapshots::Snapshots;
pub use super::snapshots::{SnapshotJob, SnapshotSettings};
use crate::api::{ProposeError, Role, VoteError};
use crate::certificate::{Entry, HeadCertificate, Kind, Policy, PublicKey, TableInForce};
use crate::config::Rules;
use crate::core::{Admission, Alarm, Ballot, Core, Crypto, Effect, Input, Now, Submission, Tables, Write};
use crate::ids::{Digest, Epoch, LogIndex, NodeId, ProposalId, Term};
use crate::registry::Answered;
use crate::telemetry::Outcome;
use crate::transport::Peer;
use crate::wire::Frame;
use crate::{limits, registry};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;

/// Answers to ballots remembered in memory, beyond those on record in the store.
const MAX_RECENT_CASTS: usize = 65_536;

/// What an executor works on: a node's devices, real or simulated. No call waits for a disk, a peer or a pairing; whatever
/// takes time is handed over here and comes back as [`Mail`].
pub trait Devices {
    /// Both clocks.
    fn now(&self) -> Now;
    /// Monotonic time since some start, for measurements.
    fn elapsed(&self) -> Duration;
    /// Sends a frame, or drops it when there is no way to the peer.
    fn send(&mut self, to: NodeId, frame: Frame);
    /// Makes a write durable, in the order of these calls; told by [`Mail::persisted`].
    ///
    /// # Errors
    /// Why this store takes no more writes.
    fn persist(&mut self, seq: u64, write: Write) -> Result<(), String>;
    /// Signs or verifies; told by the input named at the job.
    fn compute(&mut self, job: Crypto);
    /// Reads from the store; told by what is named at the job.
    fn look_up(&mut self, job: Lookup);
    /// Applies committed entries, in the order of these calls; told by [`Mail::applied`].
    fn apply(&mut self, entries: Vec<Arc<Entry>>);
    /// Replaces the applied state by that of a snapshot, in order with [`Devices::apply`]; told by [`Mail::applied`].
    fn restore(&mut self, index: LogIndex);
    /// Works on the images held here, in the order of these calls; told by what is named at the job.
    fn snapshot(&mut self, job: SnapshotJob);
    /// What the applied state knows of a request.
    fn answered(&self, key: &Digest) -> Option<Answered>;
    /// Requests that the applied state remembers.
    fn requests_len(&self) -> usize;
    /// The keys that the store holds.
    fn public_keys(&self) -> Vec<PublicKey>;
    /// This table is in force for good: keys that it replaces can go. Told by [`Input::Keys`] when they are gone.
    fn settle_keys(&mut self, table: &TableInForce);
    /// These tables are in force: connect to these peers and let go of all others.
    fn connect(&mut self, tables: &Arc<Tables>, peers: Vec<Peer>);
    /// The newest certificate: durable, and all it covers applied.
    fn certified(&mut self, certificate: Arc<HeadCertificate>);
    /// What the node looks like now.
    fn publish(&mut self, view: View);
    /// A ballot waits for the application, until this monotonic time.
    fn open_ballot(&mut self, ballot: Arc<Ballot>, until: u64);
    /// It does not any more, if it did.
    fn withdraw(&mut self, id: &ProposalId);
    /// A ballot that waits for the application.
    fn ballot(&self, id: &ProposalId) -> Option<Arc<Ballot>>;
    /// A peer's HTTP address.
    fn http_address(&self, id: &NodeId) -> Option<String>;
    /// A request that a leader had taken, and its caller was told so, has no chance any more: whoever still waits for its
    /// end must hear of it.
    fn give_up(&mut self, key: &Digest, why: ProposeError);
    /// A peer says where it serves HTTP.
    fn note_http(&mut self, id: NodeId, address: Option<String>);
    /// Something to measure.
    fn observe(&mut self, what: Observed<'_>);
    /// The core wants this, and it is about to be carried out. Some effects ask nothing of any device, and others are
    /// carried out later: by this the simulator sees each in its place among the others, and can hold what the devices
    /// are asked against it. No business of real devices.
    fn witness(&mut self, effect: &Effect) {
        let _ = effect;
    }
}

/// Something to read from the store.
pub enum Lookup {
    /// Entries for a lagging peer. → [`Input::Fetched`].
    Entries {
        /// For whom.
        peer: NodeId,
        /// Echoed.
        session: u64,
        /// First index wanted.
        from: LogIndex,
        /// Last index wanted.
        to: LogIndex,
    },
    /// Ballot answers on record, and whether a member table asked about keeps every rule. → [`Mail::records`].
    Records(Vec<(Subject, Option<Arc<Ballot>>)>),
    /// A chunk of a snapshot for a peer. → [`Input::ChunkFetched`], always.
    Chunk {
        /// For whom.
        peer: NodeId,
        /// Echoed.
        session: u64,
        /// Which snapshot.
        index: LogIndex,
        /// Which chunk.
        chunk: u32,
    },
    /// What a certified manifest is offered with. → [`Input::SnapshotOffered`], if that snapshot is here.
    Offer {
        /// The `SnapshotManifest` entry.
        entry: Arc<Entry>,
        /// It covers the entry.
        certificate: Arc<HeadCertificate>,
    },
    /// Proofs of membership changes for a peer. → [`Input::EpochsFetched`], always.
    Epochs {
        /// For whom.
        peer: NodeId,
        /// The epoch above which.
        above: Epoch,
    },
}

/// What devices have finished since they were last asked.
#[derive(Debug, Default)]
pub struct Mail {
    /// For the core, in order.
    pub inputs: Vec<Input>,
    /// The newest durable write.
    pub persisted: u64,
    /// The last entry applied.
    pub applied: LogIndex,
    /// Answers to a [`Lookup::Records`]; one is under way at a time.
    pub records: Option<Records>,
    /// The last entry that retention by bytes and age lets go, when it says anything.
    pub prunable: Option<LogIndex>,
    /// Something failed for good.
    pub failure: Option<String>,
}

/// Something to measure.
#[derive(Clone, Copy, Debug)]
pub enum Observed<'a> {
    /// A proposal of this node's clients came to its end.
    Proposal(Outcome),
    /// From propose to commit.
    Commit(Duration),
    /// A write became durable.
    Persist(Duration),
    /// A change of role.
    Role {
        /// The role before.
        before: Role,
        /// The role now.
        role: Role,
    },
    /// Something an operator should know.
    Alarm(&'a Alarm),
}

/// What the core looks like from outside, refreshed after every drain.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// Its role.
    pub role: Role,
    /// Its term.
    pub term: Term,
    /// Who leads, when known.
    pub leader: Option<NodeId>,
    /// The commit index.
    pub committed: LogIndex,
    /// The highest commit index heard of, here or at the leader.
    pub known_commit: LogIndex,
    /// The last index fsynced here.
    pub durable: LogIndex,
    /// The last index appended here.
    pub last: LogIndex,
    /// Proposals of this node's clients that are not decided.
    pub pending: u64,
    /// On the leader: how far each peer is known to hold the log.
    pub matched: BTreeMap<NodeId, LogIndex>,
    /// It was a member, and is none any more.
    pub retired: bool,
    /// `proposed_at` of the last entry here.
    pub log_time: u64,
    /// The last entry that is in the log no more: a snapshot stands for it and those before.
    pub compacted: LogIndex,
    /// The newest snapshot that this node made or installed.
    pub snapshot: LogIndex,
    /// The snapshot that is being fetched: its index, chunks that are here, chunks in all.
    pub installing: Option<(LogIndex, u32, u32)>,
    /// When everything that was known to be committed was last applied here, on the monotonic clock.
    pub fresh_at: Option<u64>,
}

/// What handles ask of the owner.
pub enum Event {
    /// A proposal that came in here.
    Submit {
        /// What.
        submission: Submission,
        /// Told once a leader has taken it, or that none will.
        taken: oneshot::Sender<Result<ProposalId, ProposeError>>,
    },
    /// The application's answer to a ballot; told once it is durable.
    Vote {
        /// On which ballot.
        id: ProposalId,
        /// The answer.
        granted: bool,
        /// Told what became of it.
        done: oneshot::Sender<Result<(), VoteError>>,
    },
    /// Members, reads, leadership.
    Query(Query),
    /// Stop.
    Close,
    /// As if it had come in from where such inputs come from.
    #[cfg(test)]
    Inject(Input),
}

/// Feeds the core, executes its effects on some devices, and sees proposals, ballots and questions through. One for each
/// node, and one for each simulated node: it reads no clock, waits for nothing and starts no thread.
pub struct Executor<D> {
    pub(super) core: Core,
    pub(super) devices: D,
    pub(super) id: NodeId,
    pub(super) forward: bool,
    pub(super) rules: Rules,
    pub(super) max_pending: usize,
    pub(super) pending: BTreeMap<Digest, Pending>,
    pub(super) delivered: Delivered,
    pub(super) certifying: Certifying,
    pub(super) origins: BTreeMap<u64, Origin>,
    pub(super) next_handle: u64,
    pub(super) retry_at: u64,
    /// Answers to ballots, each with the sequence number of its write.
    pub(super) recent_casts: HashMap<Subject, (bool, u64)>,
    pub(super) lookups: Lookups,
    pub(super) cast_waiters: HashMap<Subject, oneshot::Sender<Result<(), VoteError>>>,
    pub(super) cast_writes: Vec<(u64, oneshot::Sender<Result<(), VoteError>>)>,
    pub(super) persisted: u64,
    /// Writes on their way to the disk, with the time (since the clock's start) at which each was handed over.
    pub(super) writing: VecDeque<(u64, Duration)>,
    pub(super) applied: LogIndex,
    pub(super) role: Role,
    pub(super) waiters: Waiters,
    pub(super) snapshots: Snapshots,
    /// Every member known since this node started, with where it was reached last.
    pub(super) known: BTreeMap<NodeId, String>,
    pub(super) fresh_at: Option<u64>,
    pub(super) stop: Option<Ended>,
}

impl<D> Executor<D> {
    /// An executor over a core and its devices; `applied` is what the devices' state has applied already.
    pub fn new(id: NodeId, core: Core, devices: D, settings: Settings, applied: LogIndex) -> Self {
        let Settings { rules, max_pending, forward, snapshots } = settings;
        Self {
            core,
            devices,
            id,
            forward,
            rules,
            max_pending,
            pending: BTreeMap::new(),
            delivered: Delivered::default(),
            certifying: Certifying::default(),
            origins: BTreeMap::new(),
            next_handle: 1,
            retry_at: 0,
            recent_casts: HashMap::new(),
            lookups: Lookups::default(),
            cast_waiters: HashMap::new(),
            cast_writes: Vec::new(),
            persisted: 0,
            writing: VecDeque::new(),
            applied,
            role: Role::Follower,
            waiters: Waiters::default(),
            snapshots: Snapshots::new(snapshots),
            known: BTreeMap::new(),
            fresh_at: None,
            stop: None,
        }
    }

    /// Members of old, who may ask what changed since; with their addresses.
    pub fn remember(&mut self, members: BTreeMap<NodeId, String>) {
        self.known.extend(members);
    }

    /// The core.
    pub const fn core(&self) -> &Core {
        &self.core
    }

    /// The devices.
    pub const fn devices(&mut self) -> &mut D {
        &mut self.devices
    }

    /// Why the node must stop, once it must.
    pub const fn stop(&self) -> Option<&Ended> {
        self.stop.as_ref()
    }
}

/// What an operator may choose of an executor.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How a member of policy `rules` answers.
    pub rules: Rules,
    /// Proposals of this node's clients that may be undecided.
    pub max_pending: usize,
    /// Whether proposals are forwarded to the leader.
    pub forward: bool,
    /// Marks and retention.
    pub snapshots: SnapshotSettings,
}

impl<D: Devices> Executor<D> {
    /// When [`Executor::turn`] is due at the latest, on the monotonic clock.
    pub fn deadline(&self) -> u64 {
        self.core.deadline().min(self.retry_at).min(self.waiters.handover_due())
    }

    /// How this member decides on ballots.
    pub(super) fn policy(&self) -> Policy {
        self.core.tables().row(&self.id).map_or(Policy::Auto, |m| m.policy)
    }

    /// What threads have finished since the last look.
    pub fn take_mail(&mut self, mail: Mail) {
        if mail.persisted > self.persisted {
            self.persisted = mail.persisted;
            self.observe_writes();
            self.feed(Input::Persisted { seq: mail.persisted });
            let (done, waiting) =
                std::mem::take(&mut self.cast_writes).into_iter().partition(|w| w.0 <= self.persisted);
            self.cast_writes = waiting;
            for (_, waiter) in done {
                // A caller that gave up is no news.
                let _gone = waiter.send(Ok(()));
            }
        }
        if mail.applied > self.applied {
            self.applied = mail.applied;
            self.delivered.apply(mail.applied);
            self.feed(Input::Applied { index: mail.applied });
        }
        if let Some(certificate) = self.certifying.shown(self.persisted, self.applied) {
            self.devices.certified(certificate.clone());
            self.note_certified(certificate);
        }
        self.snapshots.prunable = mail.prunable;
        for input in mail.inputs {
            let seen = matches!(input, Input::SnapshotTaken(_) | Input::SnapshotOffered(_)).then(|| input.clone());
            self.feed(input);
            if let Some(input) = seen {
                self.note_snapshot(&input);
            }
        }
        if let Some(records) = mail.records {
            self.on_records(records);
        }
        if let Some(why) = mail.failure {
            self.stop.get_or_insert(Ended::Halted(why));
        }
    }

    fn observe_writes(&mut self) {
        let now = self.devices.elapsed();
        while let Some((_, since)) = self.writing.pop_front_if(|(seq, _)| *seq <= self.persisted) {
            self.devices.observe(Observed::Persist(now.saturating_sub(since)));
        }
    }

    pub(super) fn feed(&mut self, input: Input) {
        self.core.step(self.devices.now(), input);
    }

    /// Time, then drain, then every effect; again while effects brought new inputs about.
    pub fn turn(&mut self) {
        let now = self.devices.now().mono;
        if now >= self.core.deadline() {
            self.feed(Input::Tick);
        }
        if now >= self.retry_at {
            self.retry_pending(now);
        }
        self.mark_when_due();
        if now >= self.waiters.handover_due() {
            self.stop.get_or_insert(Ended::Closed);
        }
        self.carry_out();
        self.show();
    }

    pub(super) fn carry_out(&mut self) {
        loop {
            let effects = self.core.drain();
            if effects.is_empty() {
                break;
            }
            for effect in effects {
                self.execute(effect);
            }
        }
    }

    fn execute(&mut self, effect: Effect) {
        self.devices.witness(&effect);
        match effect {
            Effect::Send { to, message } => {
                self.devices.send(to, Frame::Core(message));
            }
            Effect::Persist { seq, write } => self.persist(seq, write),
            Effect::Crypto(job) => self.devices.compute(job),
            Effect::Fetch { peer, session, from, to } => {
                self.devices.look_up(Lookup::Entries { peer, session, from, to });
            }
            Effect::Commit { entries, .. } => {
                for entry in &entries {
                    self.note_manifest(entry);
                    self.on_committed(entry);
                }
                self.delivered.deliver(&entries);
                self.devices.apply(entries);
            }
            // Announced when its write, which came before this, is durable.
            Effect::Certified(_) => {}
            Effect::Admitted { handle, admission } => self.on_admitted(handle, admission),
            Effect::Ask { ballot } => self.on_asked(ballot),
            Effect::Withdraw { id } => {
                self.lookups.withdraw(&id);
                self.snapshots.withdraw(&id);
                self.devices.withdraw(&id);
            }
            effect @ (Effect::ReadReady { .. }
            | Effect::ReadRefused { .. }
            | Effect::Transferred { .. }
            | Effect::Changed { .. }
            | Effect::FetchEpochs { .. }
            | Effect::Membership { .. }
            | Effect::InForce(_)) => self.on_membership(effect),
            effect @ (Effect::Marked { .. }
            | Effect::FetchChunk { .. }
            | Effect::StageSnapshot { .. }
            | Effect::StoreChunk { .. }
            | Effect::CompleteSnapshot { .. }
            | Effect::AbandonSnapshot { .. }
            | Effect::Restore { .. }) => self.on_snapshot_effect(effect),
            Effect::Role { role, term, leader } => self.on_role(role, term, leader),
            Effect::Alarm(alarm) => self.on_alarm(&alarm),
            Effect::Halt(why) => {
                tracing::error!(%why, "this node halts");
                self.stop.get_or_insert(Ended::Halted(why.to_string()));
            }
        }
    }

    fn persist(&mut self, seq: u64, write: Write) {
        if let Some(cast) = &write.cast {
            let key = (cast.request_key, cast.content);
            // Until the write is durable, the answer can only be found here.
            if self.recent_casts.len() >= MAX_RECENT_CASTS {
                let persisted = self.persisted;
                self.recent_casts.retain(|_, cast| cast.1 > persisted);
            }
            self.recent_casts.insert(key, (cast.granted, seq));
            if let Some(waiter) = self.cast_waiters.remove(&key) {
                self.cast_writes.push((seq, waiter));
            }
        }
        if let Some(certificate) = &write.certificate {
            self.certifying.written(seq, certificate.clone());
        }
        self.writing.push_back((seq, self.devices.elapsed()));
        if let Err(why) = self.devices.persist(seq, write) {
            self.stop.get_or_insert(Ended::Halted(why));
        }
    }

    /// A frame from a peer.
    pub fn on_frame(&mut self, from: NodeId, frame: Frame) {
        match frame {
            Frame::Core(message) => self.feed(Input::Receive { from, message }),
            Frame::Submit { handle, submission } => self.on_forwarded(from, handle, submission),
            Frame::Submitted { handle, admission } => {
                if matches!(self.origins.get(&handle), Some(Origin::Forwarded { to, .. }) if *to == from) {
                    self.on_admitted(handle, admission);
                }
            }
            Frame::Hello { http, .. } => self.devices.note_http(from, http),
            // Read and written beside the consensus: the owner loop takes them.
            Frame::History(_) => {}
        }
    }

    /// What a handle asks.
    pub fn on_event(&mut self, event: Event) {
        match event {
            Event::Submit { submission, taken } => self.on_submit(submission, taken),
            Event::Vote { id, granted, done } => self.on_own_vote(id, granted, done),
            #[cfg(test)]
            Event::Inject(input) => self.feed(input),
            Event::Query(query) => self.on_query(query),
            Event::Close => self.on_close(),
        }
    }

    // ---- news ----

    fn on_committed(&mut self, entry: &crate::certificate::Entry) {
        let Some(request) = &entry.body.request else { return };
        let key = request.key();
        let Some(pending) = self.pending.remove(&key) else { return };
        self.origins.remove(&pending.handle);
        let since = pending.since;
        // Another payload under the same id came in first, elsewhere.
        let reused = entry.header.kind == Kind::Proposal && !pending.asks_for(&entry.body.payload);
        if let Some(id) = entry.header.proposal_id {
            pending.tell(if reused { Err(ProposeError::RequestIdReused) } else { Ok(id) });
        }
        if reused {
            return;
        }
        let outcome = match (entry.header.kind, entry.header.abort_reason) {
            (Kind::Aborted, Some(crate::certificate::AbortReason::Expired)) => Outcome::Expired,
            (Kind::Aborted, _) => Outcome::Aborted,
            _ => Outcome::Committed,
        };
        self.devices.observe(Observed::Proposal(outcome));
        if entry.header.kind == Kind::Proposal {
            let waited = self.devices.elapsed().saturating_sub(since);
            self.devices.observe(Observed::Commit(waited));
        }
    }

    fn on_role(&mut self, role: Role, term: Term, leader: Option<NodeId>) {
        let before = std::mem::replace(&mut self.role, role);
        if before != role {
            self.devices.observe(Observed::Role { before, role });
        }
        tracing::info!(?role, %term, leader = leader.map(|l| l.to_string()), "leadership");
        // What a former leader had taken may be gone with it; the next one recognises what is not.
        for pending in self.pending.values_mut() {
            pending.send_again();
        }
        if leader.is_some() {
            self.retry_at = 0;
        }
    }

    fn on_alarm(&mut self, alarm: &Alarm) {
        match alarm {
            Alarm::ClockOutOfBound { difference_ms } => {
                tracing::warn!(
                    difference_ms,
                    "this node's clock differs from a quorum's by more than the bound; it does not lead until that is mended: check its time synchronisation"
                );
            }
            Alarm::MalformedAppend { from } => {
                tracing::warn!(%from, "the leader's entries are malformed; they are ignored");
            }
            Alarm::SnapshotDenied { index, denied } => {
                let denied: Vec<String> = denied.iter().map(ToString::to_string).collect();
                tracing::error!(%index, ?denied, "a quorum has another state at the mark than this leader: it does not lead on, and halts once their manifest is committed; compare the nodes with `concordat audit`");
            }
            Alarm::SnapshotFailed { from, index } => {
                tracing::warn!(%from, %index, "an offered snapshot is not what its certificate or its manifest says; it is ignored");
            }
            Alarm::FalseLeader { claimant, term } => {
                tracing::warn!(%claimant, %term, "a claim to lead is not proved; it is ignored");
            }
        }
        self.devices.observe(Observed::Alarm(alarm));
    }

    /// Publishes what the node looks like now.
    pub fn show(&mut self) {
        let core = &self.core;
        // Whoever does not lead knows of nobody.
        let matched = (core.role() == Role::Leader).then(|| core.tables().members()).into_iter().flatten();
        let now = self.devices.now().mono;
        // What a leader in contact has told us is all applied.
        let fresh = self.applied >= core.known_commit();
        self.fresh_at = core.leader_contact().filter(|_| fresh).map(|at| at.min(now)).max(self.fresh_at);
        let view = View {
            role: core.role(),
            term: core.term(),
            leader: core.leader(),
            committed: core.committed(),
            known_commit: core.known_commit(),
            durable: core.durable(),
            last: core.last_index(),
            pending: self.pending.len() as u64,
            matched: matched.filter_map(|m| Some((m, core.matched(&m)?))).collect(),
            retired: core.is_retired(),
            log_time: core.log_time(),
            compacted: core.compacted(),
            snapshot: core.snapshot_taken().map_or(LogIndex::ZERO, |m| m.index).max(core.compacted()),
            installing: core.installing().map(|(m, here)| (m.index, here, m.chunks())),
            fresh_at: self.fresh_at,
        };
        self.devices.publish(view);
    }

    /// Tells everybody who waits that this node closes.
    pub fn dismiss(self) -> (D, Option<Ended>) {
        let Self { devices, pending, cast_waiters, cast_writes, stop, .. } = self;
        for waiting in pending.into_values() {
            waiting.tell(Err(ProposeError::Closed));
        }
        for done in cast_waiters.into_values().chain(cast_writes.into_iter().map(|w| w.1)) {
            let _gone = done.send(Err(VoteError::Closed));
        }
        (devices, stop)
    }
}

/// What every member refuses to grant: bytes that are no JSON, or a malformed operation.
pub(super) fn is_valid(payload: &[u8]) -> bool {
    serde_json::from_slice(payload).is_ok_and(|value| registry::check_payload(&value).is_ok())
}

/// How often a submission that no leader has taken is sent again.
pub(super) const RETRY: Duration = Duration::from_millis(250);

/// An admission that ends a submission with an error, as the caller is told it.
pub(super) fn refusal(admission: &Admission) -> Option<ProposeError> {
    Some(match admission {
        Admission::RequestIdReused => ProposeError::RequestIdReused,
        Admission::Backpressure => ProposeError::Backpressure,
        Admission::RequestExpired => ProposeError::RequestExpired,
        Admission::InvalidQuorum { least, most } => ProposeError::InvalidQuorum { least: *least, most: *most },
        Admission::PayloadTooLarge { size } => {
            ProposeError::PayloadTooLarge { size: *size, limit: limits::MAX_PAYLOAD }
        }
        Admission::InvalidRequestId => ProposeError::InvalidRequestId,
        Admission::Appended { .. }
        | Admission::Balloted { .. }
        | Admission::Duplicate { .. }
        | Admission::NotLeader { .. }
        | Admission::Transferring
        | Admission::ClockOutOfBound => return None,
    })
}
