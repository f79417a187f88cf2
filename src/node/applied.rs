//! The state machine's thread: applies what is committed, in order, and wakes whoever waits for it.

use super::epochs::Epochs;
use super::image::Image;
use super::mailbox::Mailbox;
use super::shared::Shared;
use super::snapshotter::{Jobs, Moment, read_image};
use crate::certificate::{Edge, Entry, Genesis, Kind, SnapshotManifest};
use crate::ids::{Digest, Epoch, LogIndex, Term};
use crate::registry::{Outcome, State};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

/// Batches of committed entries that may wait for the state machine.
const QUEUE: usize = 1024;
/// Entries applied under one lock, so that queries are never held off for long.
const BATCH: usize = 1024;

/// The replicated state, what applying each entry did, and what an image needs besides.
pub(super) struct Replica {
    pub(super) state: State,
    pub(super) epochs: Epochs,
    /// Of the entries after `forgotten`.
    outcomes: VecDeque<Outcome>,
    forgotten: LogIndex,
    edge: Edge,
    terms: Vec<(LogIndex, Term)>,
    proposed_at: u64,
    /// What the newest `SnapshotManifest` entry says, with that entry.
    manifest: Option<(SnapshotManifest, Arc<Entry>)>,
}

impl Replica {
    pub(super) fn new(genesis: &Genesis) -> Self {
        Self {
            state: State::default(),
            epochs: Epochs::new(genesis),
            outcomes: VecDeque::new(),
            forgotten: LogIndex::ZERO,
            edge: Edge::default(),
            terms: Vec::new(),
            proposed_at: 0,
            manifest: None,
        }
    }

    /// As an image left it.
    pub(super) fn from_image(genesis: &Genesis, image: Image) -> Self {
        let Image { edge, terms, proposed_at, chain, finals, state } = image;
        Self {
            epochs: Epochs::proved_by(genesis, chain, finals),
            forgotten: state.applied(),
            state,
            edge,
            terms,
            proposed_at,
            ..Self::new(genesis)
        }
    }

    /// What an image of this very moment is made of.
    pub(super) fn moment(&self) -> Moment {
        Moment {
            edge: self.edge.clone(),
            terms: self.terms.clone(),
            proposed_at: self.proposed_at,
            changes: self.epochs.chain(Epoch::ZERO, self.epochs.proved(), None),
            finals: self.epochs.finals(),
            state: self.state.clone(),
        }
    }

    /// What the newest `SnapshotManifest` entry says.
    pub(super) fn newest_manifest(&self) -> Option<&SnapshotManifest> {
        self.manifest.as_ref().map(|m| &m.0)
    }

    /// The newest `SnapshotManifest` entry.
    pub(super) fn manifest_entry(&self) -> Option<&Arc<Entry>> {
        self.manifest.as_ref().map(|m| &m.1)
    }

    /// What applying entries up to here did is not asked any more.
    pub(super) fn forget_outcomes(&mut self, upto: LogIndex) {
        while self.forgotten < upto && self.outcomes.pop_front().is_some() {
            self.forgotten = self.forgotten.next();
        }
    }

    pub(super) fn apply(&mut self, entry: &Arc<Entry>) {
        self.epochs.apply(entry);
        let outcome = self.state.apply(entry);
        self.outcomes.push_back(outcome);
        self.edge.push(entry.header.encode());
        if self.terms.last().is_none_or(|t| t.1 < entry.term()) {
            self.terms.push((entry.index(), entry.term()));
        }
        self.proposed_at = entry.header.proposed_at;
        if entry.header.kind == Kind::SnapshotManifest
            && let Ok(manifest) = SnapshotManifest::decode(&entry.body.payload)
        {
            self.manifest = Some((manifest, entry.clone()));
        }
    }

    /// What applying the entry at `index` did.
    pub(super) fn outcome(&self, index: LogIndex) -> Option<&Outcome> {
        self.outcomes.get(usize::try_from(index.0.checked_sub(self.forgotten.0 + 1)?).ok()?)
    }
}

enum Work {
    Apply(Vec<Arc<Entry>>),
    /// The image of this snapshot takes the state's place.
    Restore(LogIndex),
}

pub(super) struct Applier {
    queue: Option<SyncSender<Work>>,
    thread: Option<JoinHandle<()>>,
}

impl Applier {
    pub(super) fn start(shared: Arc<Shared>, mailbox: Arc<Mailbox>, jobs: Jobs) -> std::io::Result<Self> {
        let (queue, work) = sync_channel(QUEUE);
        let thread = std::thread::Builder::new().name("apply".into()).spawn(move || {
            mailbox.guard("the state machine's thread", || run(&work, &shared, &mailbox, &jobs));
        })?;
        Ok(Self { queue: Some(queue), thread: Some(thread) })
    }

    /// Blocks while the queue is full; the thread never waits for the owner loop, so that is safe.
    pub(super) fn apply(&self, entries: Vec<Arc<Entry>>) {
        self.put(Work::Apply(entries));
    }

    /// As [`Applier::apply`].
    pub(super) fn restore(&self, index: LogIndex) {
        self.put(Work::Restore(index));
    }

    fn put(&self, work: Work) {
        if let Some(queue) = &self.queue
            && queue.send(work).is_err()
        {
            tracing::error!("the state machine's thread is gone");
        }
    }

    pub(super) fn close(mut self) {
        self.queue = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the state machine's thread panicked");
        }
    }
}

/// Entries between two looks for ballot answers that need not be kept any longer.
const FORGET_EVERY: u64 = 16_384;

fn run(queue: &Receiver<Work>, shared: &Shared, mailbox: &Mailbox, jobs: &Jobs) {
    let mut forget_at = LogIndex::ZERO;
    let mut next = None;
    while let Some(work) = next.take().or_else(|| queue.recv().ok()) {
        let mut entries = match work {
            Work::Apply(entries) => entries,
            Work::Restore(index) => {
                if let Err(why) = restore(index, shared) {
                    mailbox.fail(why);
                    return;
                }
                mailbox.applied(index);
                // What the log held before goes soon, not when entries are next pruned.
                jobs.sweep();
                continue;
            }
        };
        while entries.len() < BATCH {
            match queue.try_recv() {
                Ok(Work::Apply(more)) => entries.extend(more),
                Ok(other) => {
                    next = Some(other);
                    break;
                }
                Err(_) => break,
            }
        }
        let Some(last) = entries.last().map(|e| e.index()) else { continue };
        if let Err(why) = shared.store.archive(&entries) {
            mailbox.fail(format!("the indexes of committed entries cannot be written: {why}"));
            return;
        }
        if last >= forget_at {
            forget_at = LogIndex(last.0 + FORGET_EVERY);
            // Past by both clocks: the log's, and the one by which this node refuses to answer late.
            let now = entries.last().map_or(0, |e| e.header.proposed_at).min(super::clock::wall_ms());
            if let Err(why) = shared.store.forget_casts(now) {
                mailbox.fail(format!("ballot answers past their deadline cannot be deleted: {why}"));
                return;
            }
        }
        apply(&entries, shared, jobs);
        shared.applied.send_replace(last);
        mailbox.applied(last);
        let requests: Vec<(Digest, LogIndex)> =
            entries.iter().filter_map(|e| Some((e.body.request.as_ref()?.key(), e.index()))).collect();
        shared.wake(&requests);
        debug_assert!(entries.iter().all(|e| e.header.kind != Kind::Proposal || e.body.request.is_some()));
    }
}

fn apply(entries: &[Arc<Entry>], shared: &Shared, jobs: &Jobs) {
    let mut replica = shared.replica_mut();
    for entry in entries {
        replica.apply(entry);
        match entry.header.kind {
            // A copy, for the image is made by another thread; commits do not wait for either.
            Kind::SnapshotMark => jobs.take(replica.moment()),
            Kind::SnapshotManifest => {
                if let Some(manifest) = replica.newest_manifest() {
                    jobs.compare(manifest.clone());
                }
            }
            _ => {}
        }
    }
}

/// The log begins after a snapshot now: so does the state.
fn restore(index: LogIndex, shared: &Shared) -> Result<(), String> {
    let manifest = shared.store.snapshots().into_iter().find(|m| m.index == index);
    let image = manifest.and_then(|manifest| read_image(&shared.store, &manifest));
    let image = image.ok_or_else(|| format!("the snapshot at {index}, after which the log begins, does not read"))?;
    *shared.replica_mut() = Replica::from_image(&shared.genesis, image);
    shared.applied.send_replace(index);
    shared.wake_answered();
    tracing::info!(%index, "the state of a snapshot took the place of the applied one");
    Ok(())
}
