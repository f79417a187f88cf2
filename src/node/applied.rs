//! The state machine's thread: applies what is committed, in order, and wakes whoever waits for it.

use super::epochs::Epochs;
use super::mailbox::Mailbox;
use super::shared::Shared;
use crate::certificate::{Entry, Genesis, Kind};
use crate::ids::{Digest, LogIndex};
use crate::registry::{Outcome, State};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

/// Batches of committed entries that may wait for the state machine.
const QUEUE: usize = 1024;
/// Entries applied under one lock, so that queries are never held off for long.
const BATCH: usize = 1024;

/// The replicated state and what applying each entry did.
pub(super) struct Replica {
    pub(super) state: State,
    pub(super) epochs: Epochs,
    outcomes: Vec<Outcome>,
}

impl Replica {
    pub(super) fn new(genesis: &Genesis) -> Self {
        Self { state: State::default(), epochs: Epochs::new(genesis), outcomes: Vec::new() }
    }

    pub(super) fn apply(&mut self, entry: &Entry) {
        self.epochs.apply(entry);
        let outcome = self.state.apply(entry);
        self.outcomes.push(outcome);
    }

    /// What applying the entry at `index` did.
    pub(super) fn outcome(&self, index: LogIndex) -> Option<&Outcome> {
        self.outcomes.get(usize::try_from(index.0.checked_sub(1)?).ok()?)
    }
}

pub(super) struct Applier {
    queue: Option<SyncSender<Vec<Arc<Entry>>>>,
    thread: Option<JoinHandle<()>>,
}

impl Applier {
    pub(super) fn start(shared: Arc<Shared>, mailbox: Arc<Mailbox>) -> std::io::Result<Self> {
        let (queue, batches) = sync_channel(QUEUE);
        let thread = std::thread::Builder::new().name("apply".into()).spawn(move || {
            mailbox.guard("the state machine's thread", || run(&batches, &shared, &mailbox));
        })?;
        Ok(Self { queue: Some(queue), thread: Some(thread) })
    }

    /// Blocks while the queue is full; the thread never waits for the owner loop, so that is safe.
    pub(super) fn apply(&self, entries: Vec<Arc<Entry>>) {
        if let Some(queue) = &self.queue
            && queue.send(entries).is_err()
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

fn run(batches: &Receiver<Vec<Arc<Entry>>>, shared: &Shared, mailbox: &Mailbox) {
    let mut forget_at = LogIndex::ZERO;
    while let Ok(mut entries) = batches.recv() {
        while entries.len() < BATCH {
            let Ok(more) = batches.try_recv() else { break };
            entries.extend(more);
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
        {
            let mut replica = shared.replica_mut();
            for entry in &entries {
                replica.apply(entry);
            }
        }
        shared.applied.send_replace(last);
        mailbox.applied(last);
        let requests: Vec<(Digest, LogIndex)> =
            entries.iter().filter_map(|e| Some((e.body.request.as_ref()?.key(), e.index()))).collect();
        shared.wake(&requests);
        debug_assert!(entries.iter().all(|e| e.header.kind != Kind::Proposal || e.body.request.is_some()));
    }
}
