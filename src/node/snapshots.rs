//! What the executor does for snapshots: compares manifests with this node's own image, offers what is certified, lets
//! entries go that a certified snapshot stands for, and has marks appended when they are due.

use super::executor::{Devices, Executor, Lookup};
use crate::certificate::{Entry, HeadCertificate, Kind, SnapshotManifest};
use crate::core::{Ballot, Effect, Input, MarkRefusal, Role};
use crate::ids::{LogIndex, ProposalId};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use tokio::sync::oneshot;

/// Pause before a mark is tried again that could not be appended, milliseconds.
const MARK_AGAIN_MS: u64 = 1_000;

/// Work on the images that a node holds, carried out in order and off the owner's thread.
pub enum SnapshotJob {
    /// Make room, look what is here. → [`Input::SnapshotStaged`].
    Stage(Arc<SnapshotManifest>),
    /// Keep a chunk. → [`Input::ChunkStored`].
    Store {
        /// Of which snapshot.
        index: LogIndex,
        /// Which chunk.
        chunk: u32,
        /// Its bytes, proved by the manifest.
        bytes: Arc<Vec<u8>>,
    },
    /// Check the whole image and make it durable. → [`Input::SnapshotReady`].
    Complete(Arc<SnapshotManifest>),
    /// Let go of what was fetched.
    Abandon(LogIndex),
    /// Let go of entries up to here, and of older snapshots: a certified one stands for them, and the core knows.
    Compact(LogIndex),
}

/// How marks and retention are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnapshotSettings {
    /// The leader appends a mark after this many entries; `None`: only when it is told to.
    pub every: Option<u64>,
    /// Newest entries that stay in the log although a snapshot stands for them.
    pub retain: u64,
}

/// What an executor knows of snapshots.
pub(super) struct Snapshots {
    pub(super) settings: SnapshotSettings,
    /// The last entry that retention by bytes and age lets go, when it says anything.
    pub(super) prunable: Option<LogIndex>,
    /// Questions that wait for this node's own image.
    comparing: BTreeMap<ProposalId, Arc<Ballot>>,
    /// The newest manifest entry applied; offered once a certificate covers it.
    manifest: Option<Arc<Entry>>,
    /// The newest certificate shown.
    certificate: Option<Arc<HeadCertificate>>,
    /// The last mark known of before this start.
    last_mark: LogIndex,
    mark_again: u64,
    marks: HashMap<u64, oneshot::Sender<Result<LogIndex, MarkRefusal>>>,
}

impl Snapshots {
    pub(super) fn new(settings: SnapshotSettings) -> Self {
        Self {
            settings,
            prunable: None,
            comparing: BTreeMap::new(),
            manifest: None,
            certificate: None,
            last_mark: LogIndex::ZERO,
            mark_again: 0,
            marks: HashMap::new(),
        }
    }

    pub(super) fn withdraw(&mut self, id: &ProposalId) {
        self.comparing.remove(id);
    }
}

impl<D: Devices> Executor<D> {
    /// What was found at the start: the index of the newest snapshot held, the newest manifest entry applied and the newest
    /// certificate.
    pub fn resume_snapshots(
        &mut self,
        newest: LogIndex,
        manifest: Option<Arc<Entry>>,
        certificate: Option<Arc<HeadCertificate>>,
    ) {
        self.snapshots.last_mark = newest;
        self.snapshots.manifest = manifest;
        self.snapshots.certificate = certificate;
        self.offer_certified();
    }

    pub(super) fn on_snapshot_effect(&mut self, effect: Effect) {
        let job = match effect {
            Effect::Marked { handle, outcome } => return self.on_marked(handle, outcome),
            Effect::FetchChunk { peer, session, index, chunk } => {
                return self.devices.look_up(Lookup::Chunk { peer, session, index, chunk });
            }
            Effect::Restore { index } => return self.devices.restore(index),
            Effect::StageSnapshot { manifest } => SnapshotJob::Stage(manifest),
            Effect::StoreChunk { index, chunk, bytes } => SnapshotJob::Store { index, chunk, bytes },
            Effect::CompleteSnapshot { manifest } => SnapshotJob::Complete(manifest),
            Effect::AbandonSnapshot { index } => SnapshotJob::Abandon(index),
            _ => return,
        };
        self.devices.snapshot(job);
    }

    /// Each voter compares a manifest with what it has itself: no image yet, no answer yet.
    pub(super) fn compare(&mut self, ballot: Arc<Ballot>) {
        let Ok(asked) = SnapshotManifest::decode(&ballot.payload) else {
            return self.feed(Input::Decide { id: ballot.id, granted: false, on_record: false });
        };
        match self.core.snapshot_taken().filter(|own| own.index >= asked.index) {
            None => {
                self.snapshots.comparing.insert(ballot.id, ballot);
            }
            Some(own) if own.index == asked.index => {
                let granted = **own == asked;
                if !granted {
                    tracing::error!(index = %asked.index, ours = %own.state, theirs = %asked.state, "the leader has another state at the mark than this node");
                }
                self.feed(Input::Decide { id: ballot.id, granted, on_record: false });
            }
            // What it asks about is gone here: the leader will ask about its newer mark.
            Some(_) => {}
        }
    }

    /// An input about snapshots that the executor has a part in.
    pub(super) fn note_snapshot(&mut self, input: &Input) {
        match input {
            Input::SnapshotTaken(_) => {
                for ballot in std::mem::take(&mut self.snapshots.comparing).into_values() {
                    self.look_up_answer(ballot);
                }
            }
            Input::SnapshotOffered(offer) => self.compact_below(offer.manifest.index),
            _ => {}
        }
    }

    /// A committed entry.
    pub(super) fn note_manifest(&mut self, entry: &Arc<Entry>) {
        if entry.header.kind == Kind::SnapshotManifest {
            self.snapshots.manifest = Some(entry.clone());
        }
    }

    /// A certificate is durable, and all that it covers applied.
    pub(super) fn note_certified(&mut self, certificate: Arc<HeadCertificate>) {
        self.snapshots.certificate = Some(certificate);
        self.offer_certified();
    }

    fn offer_certified(&mut self) {
        let covered = |e: &mut Arc<Entry>| {
            let size = self.snapshots.certificate.as_ref().map_or(0, |c| c.head.size);
            e.index().0 <= size
        };
        if let Some(entry) = self.snapshots.manifest.take_if(covered)
            && let Some(certificate) = self.snapshots.certificate.clone()
        {
            self.devices.look_up(Lookup::Offer { entry, certificate });
        }
    }

    /// The compaction frontier: never above a certified snapshot that this node holds, nor above what is applied, and
    /// never above what any bound of retention lets go. The core
    /// is told first, so that it asks for none of these entries when they are gone.
    fn compact_below(&mut self, snapshot: LogIndex) {
        let keep = LogIndex(self.core.last_index().0.saturating_sub(self.snapshots.settings.retain));
        let prunable = self.snapshots.prunable.unwrap_or(keep);
        let upto = snapshot.min(keep).min(prunable).min(self.applied);
        if upto > self.core.compacted() {
            self.feed(Input::Compacted { upto });
            self.devices.snapshot(SnapshotJob::Compact(upto));
        }
    }

    pub(super) fn on_mark(&mut self, done: oneshot::Sender<Result<LogIndex, MarkRefusal>>) {
        let handle = self.next_handle();
        self.snapshots.marks.insert(handle, done);
        self.feed(Input::Mark { handle });
    }

    fn on_marked(&mut self, handle: u64, outcome: Result<LogIndex, MarkRefusal>) {
        match outcome {
            Ok(index) => tracing::info!(%index, "snapshot mark"),
            Err(_) => self.snapshots.mark_again = self.devices.now().mono + MARK_AGAIN_MS,
        }
        if let Some(done) = self.snapshots.marks.remove(&handle) {
            // A caller that gave up is no news.
            let _gone = done.send(outcome);
        }
    }

    /// Has a mark appended when one is due.
    pub(super) fn mark_when_due(&mut self) {
        let Some(every) = self.snapshots.settings.every else { return };
        let last = self.core.newest_mark().max(self.snapshots.last_mark);
        let due = self.core.last_index().0 >= last.0.saturating_add(every);
        if due && self.core.role() == Role::Leader && self.devices.now().mono >= self.snapshots.mark_again {
            let handle = self.next_handle();
            self.feed(Input::Mark { handle });
        }
    }
}
