//! Snapshots: marks, the manifest that members compare, and catching up by an image in place of entries.
//!
//! A leader appends a `SnapshotMark`; every node makes an image of its state there. The leader then asks all voters, as on
//! a ballot, whether theirs is the same, and what a quorum grants becomes a `SnapshotManifest` entry, certified like any
//! other. Below it entries may go (the *compaction frontier*), and whoever lacks them is offered the image:
//!
//! ```text
//! leader                                   follower
//!   SnapshotOffer (certified manifest) ──→   verify; look what is here already
//!                                      ←──   SnapshotWanted, a few at a time
//!   SnapshotChunk                      ──→   verify against the manifest, store
//!                                            … all there: the log begins after the mark, durably
//!                                      ←──   AppendReply: durable up to the mark
//!   Append …                           ──→
//! ```
//!
//! The follower asks, so nothing is sent that it has no room for, and it goes on where it stopped after a restart or
//! under another leader that offers the same. Until it has the whole image, verified and durable, nothing of its log is
//! touched.

use super::ballot::Decision;
use super::progress::Flow;
use super::{
    Alarm, Ballot, Base, Core, Crypto, Effect, Held, Log, MarkRefusal, Message, SnapshotOffer, State, replication,
};
use crate::certificate::{Body, Entry, Header, Kind, Request, SnapshotManifest, Tally};
use crate::ids::{Digest, LogIndex, NodeId, Term};
use crate::limits::{MAX_CHUNKS_ASKED, MAX_TTL_MS};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// After this long without a word about it, milliseconds, a chunk is asked for again, and an offer made again.
const AGAIN_MS: u64 = 1_000;
/// How long a ballot on a manifest is open, milliseconds; then it begins anew. Whoever has no image yet has not answered.
const BALLOT_MS: u64 = 60_000;

const _: () = assert!(BALLOT_MS <= MAX_TTL_MS);

/// What a node knows of snapshots.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Snapshots {
    /// Marks and manifests of the log: those that are not committed, and the last one that is.
    marks: Vec<LogIndex>,
    /// Where a manifest stands, and the mark that it speaks of.
    manifests: Vec<(LogIndex, LogIndex)>,
    /// This node's own image at its newest mark, complete and durable.
    taken: Option<Arc<SnapshotManifest>>,
    /// What can be offered to those who lack entries.
    offer: Option<Arc<SnapshotOffer>>,
    installing: Option<Installing>,
    /// To be made durable: the log begins after it.
    pub(super) base_to_persist: Option<Arc<Base>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Stage {
    /// The offer is being verified.
    Verifying,
    /// The shell looks which chunks are here.
    Staging,
    Fetching,
    /// The shell checks the whole image.
    Completing,
}

/// An image on its way here.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Installing {
    offer: Arc<SnapshotOffer>,
    stage: Stage,
    /// Who offered it last, in which term and session: only there is anything asked for.
    source: (NodeId, Term, u64),
    missing: BTreeSet<u32>,
    /// Chunks asked for, and until when to wait for each, monotonic milliseconds.
    asked: BTreeMap<u32, u64>,
    /// When the next one may be asked for, monotonic milliseconds, to keep within the rate.
    paced: u64,
}

impl Snapshots {
    /// As a log left them.
    pub(super) fn restore<'a>(tail: impl IntoIterator<Item = &'a Arc<Entry>>) -> Self {
        let mut snapshots = Self::default();
        for entry in tail {
            snapshots.append(entry);
        }
        snapshots
    }

    /// Takes notice of an appended entry.
    pub(super) fn append(&mut self, entry: &Entry) {
        match entry.header.kind {
            Kind::SnapshotMark => self.marks.push(entry.index()),
            Kind::SnapshotManifest => {
                let mark = SnapshotManifest::decode(&entry.body.payload).map_or(LogIndex::ZERO, |m| m.index);
                self.manifests.push((entry.index(), mark));
            }
            _ => {}
        }
    }

    pub(super) fn truncate(&mut self, from: LogIndex) {
        self.marks.retain(|m| *m < from);
        self.manifests.retain(|m| m.0 < from);
    }

    /// Forgets all but the newest of what is committed.
    fn prune(&mut self, committed: LogIndex) {
        let marks = self.marks.partition_point(|m| *m <= committed);
        self.marks.drain(..marks.saturating_sub(1));
        let manifests = self.manifests.partition_point(|m| m.0 <= committed);
        self.manifests.drain(..manifests.saturating_sub(1));
    }

    fn newest_described(&self) -> LogIndex {
        self.manifests.iter().map(|m| m.1).max().unwrap_or_default()
    }
}

impl Log {
    /// Begins anew after a snapshot. What was durable before speaks of another log now, but for what was committed: that
    /// is part of both.
    pub(super) fn begin_after(&mut self, base: &Base, committed: LogIndex) {
        let durable = self.durable().min(committed);
        let writes = self.writes_capped_at(durable);
        *self = Self::new(base.index(), base.edge.frontier(), base.terms.clone(), base.proposed_at, Vec::new());
        self.resume(durable, writes);
    }
}

impl Core {
    /// The newest mark of the log, as far as this node remembers.
    #[must_use]
    pub fn newest_mark(&self) -> LogIndex {
        self.snapshots.marks.last().copied().unwrap_or_default()
    }

    /// This node's own image at its newest mark.
    #[must_use]
    pub fn snapshot_taken(&self) -> Option<&Arc<SnapshotManifest>> {
        self.snapshots.taken.as_ref()
    }

    /// The certified snapshot that this node offers to those who lack entries.
    #[must_use]
    pub fn snapshot_offer(&self) -> Option<&Arc<SnapshotOffer>> {
        self.snapshots.offer.as_ref()
    }

    /// Entries up to here are not in the log any more.
    #[must_use]
    pub fn compacted(&self) -> LogIndex {
        self.log.compacted()
    }

    /// The snapshot that is being fetched, and how many of its chunks are here.
    #[must_use]
    pub fn installing(&self) -> Option<(&SnapshotManifest, u32)> {
        let installing = self.snapshots.installing.as_ref()?;
        let manifest = &installing.offer.manifest;
        let missing = u32::try_from(installing.missing.len()).unwrap_or(u32::MAX);
        let here = match installing.stage {
            Stage::Verifying | Stage::Staging => 0,
            Stage::Fetching | Stage::Completing => manifest.chunks().saturating_sub(missing),
        };
        Some((manifest, here))
    }

    // ---- marks and manifests ----

    pub(super) fn mark(&mut self, handle: u64) {
        let outcome = self.check_mark().map(|()| {
            self.append_own(Kind::SnapshotMark, Vec::new());
            self.log.last()
        });
        self.effects.push(Effect::Marked { handle, outcome });
    }

    fn check_mark(&self) -> Result<(), MarkRefusal> {
        let State::Leader(lead) = &self.state else { return Err(MarkRefusal::NotLeader { leader: self.leader }) };
        if lead.transfer.is_some() {
            return Err(MarkRefusal::Transferring);
        }
        // An image knows one table in force, so that whoever begins with it begins with all there is to know.
        if self.tables.is_joint() {
            return Err(MarkRefusal::InFlight);
        }
        if self.log.term_at(self.committed) != Some(self.hard.term) {
            return Err(MarkRefusal::NotSettled);
        }
        Ok(())
    }

    pub(super) fn on_snapshot_taken(&mut self, manifest: Arc<SnapshotManifest>) {
        if self.snapshots.taken.as_ref().is_none_or(|t| t.index < manifest.index) {
            self.snapshots.taken = Some(manifest);
        }
    }

    /// Asks all voters whether they have the same state as this leader at its newest mark, unless the log says so already.
    pub(super) fn propose_manifest(&mut self) {
        self.snapshots.prune(self.committed);
        let State::Leader(lead) = &self.state else { return };
        let Some(taken) = self.snapshots.taken.clone() else { return };
        let asked = lead.ballots.values().any(|b| b.kind() == Kind::SnapshotManifest);
        let settled = self.log.term_at(self.committed) == Some(self.hard.term);
        if asked || !settled || lead.transfer.is_some() || taken.index <= self.snapshots.newest_described() {
            return;
        }
        let id = self.next_proposal_id(self.id);
        let request = Request {
            client: "snapshot".into(),
            // The same question to the same member under any leader: its answer on record holds.
            request_id: taken.index.to_string(),
            deadline_ms: self.now.wall.max(self.log.last_proposed_at()).saturating_add(BALLOT_MS),
        };
        let ballot = Ballot {
            id,
            kind: Kind::SnapshotManifest,
            request,
            salt: self.salt_at(taken.index),
            payload: taken.encode(),
            required_quorum: self.quorum_bounds().0,
            ttl_ms: BALLOT_MS,
            under: self.tables.current().signed_for(&self.genesis_id),
        };
        self.open_ballot(ballot, None);
    }

    pub(super) fn on_manifest_decided(
        &mut self,
        ballot: &Ballot,
        decision: Decision,
        tally: Tally,
        denied: Vec<NodeId>,
    ) {
        match decision {
            Decision::Granted => {
                let kind = Kind::SnapshotManifest;
                let header = Header { tally: Some(tally), ..self.payload_header(kind, &ballot.salt, &ballot.payload) };
                let body = Body { salt: ballot.salt, request: None, payload: ballot.payload.clone() };
                self.append_entry(header, body);
            }
            Decision::Aborted(crate::certificate::AbortReason::Rejected) => {
                // A quorum's state is another than this leader's: nobody shall be led, or caught up, by a diverged state.
                let index = self.snapshots.taken.as_ref().map_or(LogIndex::ZERO, |t| t.index);
                self.snapshots.taken = None;
                self.effects.push(Effect::Alarm(Alarm::SnapshotDenied { index, denied }));
                self.yield_leadership();
            }
            // Asked again at the next drain.
            Decision::Aborted(_) => {}
        }
    }

    // ---- leader ----

    /// The shell holds this snapshot, certified; it may be offered.
    pub(super) fn on_snapshot_offered(&mut self, offer: Arc<SnapshotOffer>) {
        if self.snapshots.offer.as_ref().is_none_or(|o| o.manifest.index < offer.manifest.index) {
            self.snapshots.offer = Some(offer);
        }
    }

    /// The shell is about to let go of entries: they are not to be read back any more.
    pub(super) fn on_compacted(&mut self, upto: LogIndex) {
        self.log.compact(upto.min(self.applied));
    }

    /// Offers a peer the snapshot in place of the entries that it lacks, which are gone here. Its appends pause until
    /// then.
    pub(super) fn offer_snapshot(&mut self, to: NodeId) {
        let Some(offer) = self.snapshots.offer.clone() else { return };
        let (term, now) = (self.hard.term, self.now.mono);
        let State::Leader(lead) = &mut self.state else { return };
        let election = lead.election.clone();
        let Some(peer) = lead.peers.get_mut(&to) else { return };
        peer.pause(now);
        let election = (!peer.proved).then_some(election);
        let (session, to_keys) = (peer.session, peer.keys.clone());
        self.send(to, Message::SnapshotOffer { term, session, to_keys, offer, election });
    }

    /// A peer in contact that says nothing of the snapshot has lost the offer, or what it asked for was lost: the offer
    /// is made again, and it goes on from what it has.
    pub(super) fn offer_again(&mut self, to: NodeId) {
        let now = self.now.mono;
        let quiet = |flow: Flow| matches!(flow, Flow::Snapshot { heard } if heard + AGAIN_MS <= now);
        let State::Leader(lead) = &self.state else { return };
        if lead.peers.get(&to).is_some_and(|p| quiet(p.flow)) {
            self.offer_snapshot(to);
        }
    }

    pub(super) fn on_snapshot_wanted(
        &mut self,
        from: NodeId,
        term: Term,
        session: u64,
        (index, chunk): (LogIndex, u32),
    ) {
        let now = self.now.mono;
        let known = self.snapshots.offer.as_ref().is_some_and(|o| o.manifest.index >= index);
        let Some(peer) = self.current_peer(from, term, session) else { return };
        if let Flow::Snapshot { heard } = &mut peer.flow {
            *heard = now;
        }
        if known && peer.chunks_fetching < MAX_CHUNKS_ASKED {
            peer.chunks_fetching += 1;
            self.effects.push(Effect::FetchChunk { peer: from, session, index, chunk });
        }
    }

    pub(super) fn on_chunk_fetched(
        &mut self,
        to: NodeId,
        session: u64,
        (index, chunk): (LogIndex, u32),
        found: Option<(Vec<u8>, Vec<Digest>)>,
    ) {
        let term = self.hard.term;
        let State::Leader(lead) = &mut self.state else { return };
        let Some(peer) = lead.peers.get_mut(&to).filter(|p| p.session == session) else { return };
        peer.chunks_fetching = peer.chunks_fetching.saturating_sub(1);
        match found {
            Some((bytes, path)) => {
                self.send(to, Message::SnapshotChunk { term, index, chunk, bytes: Arc::new(bytes), path });
            }
            // Replaced by a newer one meanwhile.
            None if matches!(peer.flow, Flow::Snapshot { .. }) => self.offer_snapshot(to),
            None => {}
        }
    }

    // ---- follower ----

    pub(super) fn on_snapshot_offer(&mut self, from: NodeId, session: u64, offer: Arc<SnapshotOffer>) {
        let (term, manifest) = (self.hard.term, &offer.manifest);
        let index = manifest.index;
        if !offer.is_consistent() {
            self.effects.push(Effect::Alarm(Alarm::MalformedAppend { from }));
            return;
        }
        if self.holds(manifest) {
            // Older than the log, or what the log holds too: nothing to fetch. By log matching everything up to there is
            // the leader's, and what the leader offers a snapshot of is committed.
            self.committed = self.committed.max(index);
            self.unsealed.push(Held::Ack { to: from, term, session, upto: index });
            return;
        }
        let source = (from, term, session);
        if let Some(installing) = &mut self.snapshots.installing {
            if installing.offer.manifest == *manifest {
                // The same again, perhaps by another leader: goes on where it stopped.
                installing.source = source;
                installing.asked.clear();
                return;
            }
            // An older one only from another leader: the newer one may have gone with its source.
            let older = index < installing.offer.manifest.index && installing.source == source;
            if installing.stage == Stage::Completing || older {
                return;
            }
        }
        let Some(tables) = self.epochs.named_by(&offer.certificate.halves, crate::ids::Epoch::ZERO) else {
            let above = self.known_epoch();
            self.send(from, Message::EpochsWanted { above });
            return;
        };
        let Some(balloted) = self.epochs.table(offer.entry.header.epoch) else { return };
        self.snapshots.installing = Some(Installing {
            offer: offer.clone(),
            stage: Stage::Verifying,
            source,
            missing: BTreeSet::new(),
            asked: BTreeMap::new(),
            paced: 0,
        });
        self.effects.push(Effect::Crypto(Crypto::VerifySnapshot { offer, tables: Arc::new(tables), balloted }));
    }

    /// Whether this log holds what a snapshot stands for.
    fn holds(&self, manifest: &SnapshotManifest) -> bool {
        manifest.index <= self.committed || self.log.term_at(manifest.index) == Some(manifest.term)
    }

    fn installing_at(&mut self, index: LogIndex, stage: Stage) -> Option<&mut Installing> {
        self.snapshots.installing.as_mut().filter(|i| i.offer.manifest.index == index && i.stage == stage)
    }

    pub(super) fn on_snapshot_verified(&mut self, offer: &SnapshotOffer, valid: bool) {
        let index = offer.manifest.index;
        let Some(installing) = self.installing_at(index, Stage::Verifying).filter(|i| *i.offer == *offer) else {
            return;
        };
        let from = installing.source.0;
        if valid {
            installing.stage = Stage::Staging;
            let manifest = Arc::new(offer.manifest.clone());
            self.effects.push(Effect::StageSnapshot { manifest });
        } else {
            self.snapshots.installing = None;
            self.effects.push(Effect::Alarm(Alarm::SnapshotFailed { from, index }));
        }
    }

    /// These chunks are missing here.
    pub(super) fn on_snapshot_staged(&mut self, index: LogIndex, missing: BTreeSet<u32>) {
        if let Some(installing) = self.installing_at(index, Stage::Staging) {
            installing.stage = Stage::Fetching;
            installing.missing = missing;
        }
    }

    pub(super) fn on_snapshot_chunk(&mut self, (index, chunk): (LogIndex, u32), bytes: Arc<Vec<u8>>, path: &[Digest]) {
        let Some(installing) = self.installing_at(index, Stage::Fetching) else { return };
        // Whoever sent it: the manifest proves it.
        if installing.asked.contains_key(&chunk) && installing.offer.manifest.proves(chunk, &bytes, path) {
            installing.asked.insert(chunk, u64::MAX);
            self.effects.push(Effect::StoreChunk { index, chunk, bytes });
        }
    }

    pub(super) fn on_chunk_stored(&mut self, index: LogIndex, chunk: u32) {
        if let Some(installing) = self.installing_at(index, Stage::Fetching) {
            installing.missing.remove(&chunk);
            installing.asked.remove(&chunk);
        }
    }

    /// Asks for what is missing, completes what is whole, and lets go of what the log has overtaken.
    pub(super) fn drive_install(&mut self) {
        let now = self.now.mono;
        let current = (self.leader, self.hard.term);
        let rate = self.options.snapshot_bytes_per_s.max(1);
        let Some(installing) = &self.snapshots.installing else { return };
        if self.holds(&installing.offer.manifest) {
            let index = installing.offer.manifest.index;
            self.snapshots.installing = None;
            self.effects.push(Effect::AbandonSnapshot { index });
            return;
        }
        let Some(installing) = self.snapshots.installing.as_mut().filter(|i| i.stage == Stage::Fetching) else {
            return;
        };
        let manifest = &installing.offer.manifest;
        let index = manifest.index;
        if installing.missing.is_empty() {
            installing.stage = Stage::Completing;
            self.effects.push(Effect::CompleteSnapshot { manifest: Arc::new(manifest.clone()) });
            return;
        }
        let (from, term, session) = installing.source;
        if current != (Some(from), term) {
            return;
        }
        let mut wanted = Vec::new();
        let due = |asked: &BTreeMap<u32, u64>, chunk: &u32| asked.get(chunk).is_none_or(|until| *until <= now);
        let open = installing.asked.values().filter(|until| **until > now).count();
        for chunk in installing.missing.iter().filter(|c| due(&installing.asked, c)).copied() {
            if installing.paced > now || open + wanted.len() >= MAX_CHUNKS_ASKED {
                break;
            }
            installing.paced = installing.paced.max(now) + manifest.chunk_len(chunk) as u64 * 1000 / rate;
            wanted.push(chunk);
        }
        for chunk in wanted {
            installing.asked.insert(chunk, now + AGAIN_MS);
            self.effects
                .push(Effect::Send { to: from, message: Message::SnapshotWanted { term, session, index, chunk } });
        }
    }

    /// When something more is to be asked for at the latest.
    pub(super) fn install_due(&self) -> u64 {
        let Some(installing) = self.snapshots.installing.as_ref().filter(|i| i.stage == Stage::Fetching) else {
            return u64::MAX;
        };
        if (self.leader, self.hard.term) != (Some(installing.source.0), installing.source.1) {
            return u64::MAX;
        }
        let open = installing.asked.values().filter(|until| **until > self.now.mono).count();
        let again = installing.asked.values().min().copied().unwrap_or(u64::MAX);
        let unasked = installing.missing.len() > installing.asked.len();
        let paced = if unasked && open < MAX_CHUNKS_ASKED { installing.paced } else { u64::MAX };
        again.max(installing.paced).min(paced)
    }

    /// The image is whole, verified and durable (or, without a base, it is not what its manifest says).
    pub(super) fn on_snapshot_ready(&mut self, index: LogIndex, base: Option<Arc<Base>>) {
        let Some(installing) = self.installing_at(index, Stage::Completing) else { return };
        let (manifest, source) = (installing.offer.manifest.clone(), installing.source);
        let from = source.0;
        self.snapshots.installing = None;
        let last_term = |b: &Base| b.terms.last().map(|t| t.1);
        let whole = |b: &Arc<Base>| {
            b.index() == index && b.edge.frontier().root() == manifest.root && last_term(b) == Some(manifest.term)
        };
        match base.filter(whole) {
            None => self.effects.push(Effect::Alarm(Alarm::SnapshotFailed { from, index })),
            Some(_) if self.holds(&manifest) => self.effects.push(Effect::AbandonSnapshot { index }),
            Some(base) => self.begin_after(base, source),
        }
    }

    /// The log begins after a snapshot. What it stands for is certified, so no committed entry is lost by it: those up to
    /// its index are in it, and there were none above, for a log that holds one holds the snapshot's last entry too.
    fn begin_after(&mut self, base: Arc<Base>, (to, term, session): (NodeId, Term, u64)) {
        let index = base.index();
        assert!(self.committed < index, "a snapshot never takes a log back");
        self.log.begin_after(&base, self.committed);
        self.snapshots.truncate(LogIndex::ZERO);
        self.requests.retain(|_, r| r.index == LogIndex::ZERO);
        self.epochs.begin_after(&base.epochs);
        self.committed = index;
        self.snapshots.base_to_persist = Some(base);
        self.tables_changed();
        self.unsealed.push(Held::Ack { to, term, session, upto: index });
    }

    /// A salt that need not be secret, only present: nobody needs to guess these payloads.
    pub(super) fn salt_at(&self, index: LogIndex) -> [u8; 16] {
        replication::public_salt(&self.genesis_id, index, self.hard.term)
    }
}
