//! The owner loop: the one task that owns the executor, and the real devices that it works on.

use super::Ended;
use super::applied::Applier;
use super::asking::Asking;
use super::clock::Clock;
use super::crypto::Pool;
use super::executor::{Devices, Event, Executor, Looked, Lookup, Observed, SnapshotJob, Subject, View};
use super::giving::Giving;
use super::mailbox::Mailbox;
use super::shared::Shared;
use super::snapshotter::{Jobs, Snapshotter};
use crate::api::ProposeError;
use crate::certificate::{Entry, HeadCertificate, MemberTable, PublicKey, SnapshotManifest, TableInForce};
use crate::core::{Ballot, Crypto, Input, Now, SnapshotOffer, Tables, Write};
use crate::ids::{Digest, Epoch, LogIndex, NodeId, ProposalId, Term};
use crate::limits;
use crate::registry::Answered;
use crate::storage::{Committer, Keep, ReadError};
use crate::transport::{Inbox, Incoming, Peer};
use crate::wire::{Frame, History};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_util::sync::DropGuard;
use tokio_util::task::TaskTracker;

/// Inputs taken from one source before the others get their turn.
const BATCH: usize = 512;

/// QUIC, sled, threads and clocks.
pub(super) struct Machine {
    pub(super) shared: Arc<Shared>,
    pub(super) mailbox: Arc<Mailbox>,
    pub(super) committer: Committer,
    pub(super) pool: Pool,
    pub(super) applier: Applier,
    pub(super) snapshotter: Snapshotter,
    pub(super) jobs: Jobs,
    /// What stays of the log beside its newest entries.
    pub(super) keep: Keep,
    pub(super) clock: Clock,
    /// What reads or writes the store beside the committer; the store is closed when all have ended.
    pub(super) tasks: TaskTracker,
}

pub(super) struct Owner {
    pub(super) executor: Executor<Machine>,
    pub(super) mailbox: Arc<Mailbox>,
    pub(super) clock: Clock,
    pub(super) events: mpsc::Receiver<Event>,
    pub(super) incoming: Inbox,
    /// Pieces of the history that this node asked for, and those that others ask for.
    pub(super) asking: Arc<Asking>,
    pub(super) giving: Giving,
    /// Ends what fills in the history when it is dropped.
    pub(super) filling: DropGuard,
}

impl Owner {
    pub(super) async fn run(mut self) {
        let (mut events, mut frames) = (Vec::with_capacity(BATCH), Vec::with_capacity(BATCH));
        let mut broken = None;
        self.executor.turn();
        while self.executor.stop().is_none() && broken.is_none() {
            let wake = self.clock.instant(self.executor.deadline());
            // Every branch is cancel-safe: `recv_many` and the inbox take nothing unless they complete, and the mailbox
            // keeps its wake-up.
            tokio::select! {
                n = self.events.recv_many(&mut events, BATCH) => if n == 0 { events.push(Event::Close) },
                frame = self.incoming.recv() => match frame {
                    Some(frame) => frames.push(frame),
                    // Only this task closes the transport, after the loop.
                    None => broken = Some(Ended::Halted("the socket to the peers failed; see the log".into())),
                },
                () = self.mailbox.ready() => {}
                () = tokio::time::sleep_until(wake.into()) => {}
            }
            // Whatever else is there comes along, so that one drain makes one write and one append of it all.
            while events.len() < BATCH
                && let Ok(event) = self.events.try_recv()
            {
                events.push(event);
            }
            while frames.len() < BATCH
                && let Some(frame) = self.incoming.try_recv()
            {
                frames.push(frame);
            }
            for Incoming { from, frame } in frames.drain(..) {
                match frame {
                    // Beside the consensus, which must not wait for it.
                    Frame::History(History::Ask { id, piece }) => self.giving.asked(from, id, piece),
                    Frame::History(History::Answer { id, found }) => self.asking.answered(from, id, found),
                    frame => self.executor.on_frame(from, frame),
                }
            }
            for event in events.drain(..) {
                self.executor.on_event(event);
            }
            self.executor.take_mail(self.mailbox.take());
            self.executor.turn();
        }
        self.finish(broken).await;
    }

    async fn finish(self, broken: Option<Ended>) {
        let Self { executor, filling, asking, giving, .. } = self;
        // Nobody begins to read the store any more.
        drop((filling, asking, giving));
        let (machine, stop) = executor.dismiss();
        let Machine { shared, committer, pool, applier, snapshotter, jobs, tasks, .. } = machine;
        shared.transport.close().await;
        tasks.close();
        tasks.wait().await;
        let shared_jobs = shared.clone();
        let ended = tokio::task::spawn_blocking(move || {
            pool.close();
            committer.close();
            applier.close();
            drop(jobs);
            shared_jobs.set_jobs(None);
            snapshotter.close();
        });
        if ended.await.is_err() {
            tracing::error!("a thread of this node panicked while it closed");
        }
        shared.ended.send_replace(Some(stop.or(broken).unwrap_or(Ended::Closed)));
    }
}

impl Machine {
    fn fetch(&self, peer: NodeId, session: u64, from: LogIndex, to: LogIndex) {
        let (store, mailbox) = (self.shared.store.clone(), self.mailbox.clone());
        self.tasks.spawn_blocking(move || {
            let prev = from.prev();
            let read = store.read(from, to, limits::MAX_APPEND_BYTES).and_then(|entries| {
                let prev_term = match store.base_term(prev) {
                    Some(term) => term,
                    None => store.header(prev)?.map(|h| h.term).unwrap_or_default(),
                };
                Ok((entries, prev_term))
            });
            match read {
                Ok((entries, prev_term)) => {
                    mailbox.put(Input::Fetched { peer, session, prev_term, prev_root: None, entries });
                }
                // Pruned a moment ago: the core knows, and offers a snapshot.
                Err(ReadError::Compacted { .. } | ReadError::NotHere { .. }) => {
                    let (prev_term, entries) = (Term::ZERO, Vec::new());
                    mailbox.put(Input::Fetched { peer, session, prev_term, prev_root: None, entries });
                }
                Err(why) => mailbox.fail(format!("entries from {from} cannot be read back: {why}")),
            }
        });
    }

    fn read_records(&self, subjects: Vec<(Subject, Option<Arc<Ballot>>)>) {
        let (store, mailbox) = (self.shared.store.clone(), self.mailbox.clone());
        self.tasks.spawn_blocking(move || {
            let read = |(subject, ballot): (Subject, Option<Arc<Ballot>>)| {
                let recorded = store.cast_vote(&subject.0, &subject.1)?.map(|c| c.granted);
                let table = ballot.is_some_and(|ballot| MemberTable::decode(&ballot.payload).is_ok());
                Ok((subject, Looked { recorded, table }))
            };
            match subjects.into_iter().map(read).collect::<Result<_, ReadError>>() {
                Ok(records) => mailbox.looked(records),
                Err(why) => mailbox.fail(format!("votes on record cannot be read: {why}")),
            }
        });
    }

    fn fetch_chunk(&self, peer: NodeId, session: u64, index: LogIndex, chunk: u32) {
        let (store, mailbox) = (self.shared.store.clone(), self.mailbox.clone());
        self.tasks.spawn_blocking(move || {
            let found = store.chunk(index, chunk).unwrap_or_else(|why| {
                tracing::error!(%index, chunk, %why, "a chunk of a snapshot cannot be read");
                None
            });
            mailbox.put(Input::ChunkFetched { peer, session, index, chunk, found });
        });
    }

    /// Offers a certified snapshot, if this node holds that very one.
    fn offer(&self, entry: Arc<Entry>, certificate: Arc<HeadCertificate>) {
        let (store, mailbox, keep) = (self.shared.store.clone(), self.mailbox.clone(), self.keep);
        self.tasks.spawn_blocking(move || {
            let Ok(manifest) = SnapshotManifest::decode(&entry.body.payload) else { return };
            if !store.snapshots().contains(&manifest) {
                return;
            }
            if keep != Keep::default() {
                let prunable = store.prunable(keep).unwrap_or_else(|why| {
                    tracing::error!(%why, "nothing is pruned: what is to stay cannot be read");
                    LogIndex::ZERO
                });
                mailbox.prunable(prunable);
            }
            match store.inclusion_path(entry.index().prev().0, certificate.head.size) {
                Ok(path) => {
                    let offer = SnapshotOffer { manifest, entry, path, certificate };
                    mailbox.put(Input::SnapshotOffered(Arc::new(offer)));
                }
                Err(why) => tracing::warn!(%why, "a snapshot cannot be offered"),
            }
        });
    }

    fn fetch_epochs(&self, peer: NodeId, above: Epoch) {
        let (handle, mailbox) = (super::Handle::new(self.shared.clone()), self.mailbox.clone());
        self.tasks.spawn_blocking(move || {
            let chain = handle.epoch_chain(above).unwrap_or_else(|why| {
                tracing::warn!(%peer, %why, "the proofs of membership changes cannot be read");
                Default::default()
            });
            mailbox.put(Input::EpochsFetched { peer, chain });
        });
    }
}

impl Devices for Machine {
    fn now(&self) -> Now {
        self.clock.now()
    }

    fn elapsed(&self) -> Duration {
        self.clock.elapsed()
    }

    fn send(&mut self, to: NodeId, frame: Frame) {
        self.shared.transport.send(to, frame);
    }

    fn persist(&mut self, seq: u64, write: Write) -> Result<(), String> {
        self.committer.submit(seq, write).map_err(|why| why.to_string())
    }

    fn compute(&mut self, job: Crypto) {
        self.pool.submit(job);
    }

    fn look_up(&mut self, job: Lookup) {
        match job {
            Lookup::Entries { peer, session, from, to } => self.fetch(peer, session, from, to),
            Lookup::Records(subjects) => self.read_records(subjects),
            Lookup::Epochs { peer, above } => self.fetch_epochs(peer, above),
            Lookup::Chunk { peer, session, index, chunk } => self.fetch_chunk(peer, session, index, chunk),
            Lookup::Offer { entry, certificate } => self.offer(entry, certificate),
        }
    }

    fn apply(&mut self, entries: Vec<Arc<Entry>>) {
        self.applier.apply(entries);
    }

    fn restore(&mut self, index: LogIndex) {
        // What lies before the snapshot is elsewhere.
        self.shared.history_whole.store(false, Ordering::Relaxed);
        self.applier.restore(index);
    }

    fn snapshot(&mut self, job: SnapshotJob) {
        self.jobs.work(job);
    }

    fn answered(&self, key: &Digest) -> Option<Answered> {
        self.shared.replica().state.answered(key).cloned()
    }

    fn requests_len(&self) -> usize {
        self.shared.replica().state.requests_len()
    }

    fn public_keys(&self) -> Vec<PublicKey> {
        self.shared.signer.public_keys()
    }

    /// A rotation is over when the table in force for good names the second key: the first one is erased then. It signs
    /// nothing any more, and leaked later it could not be told from a member of its epoch.
    fn settle_keys(&mut self, table: &TableInForce) {
        let Some(row) = table.table.get(&self.shared.id) else { return };
        let Some(next) = self.shared.signer.second_key().filter(|k| k.public() == row.bls_key) else { return };
        let (shared, mailbox) = (self.shared.clone(), self.mailbox.clone());
        self.tasks.spawn_blocking(move || {
            let _turn = shared.rotation();
            match shared.store.replace_key(&next) {
                Ok(()) => {
                    shared.signer.set_keys(vec![next]);
                    mailbox.put(Input::Keys(shared.signer.public_keys()));
                    tracing::info!("the former BLS key is erased");
                }
                Err(why) => mailbox.fail(format!("the former BLS key cannot be replaced: {why}")),
            }
        });
    }

    fn connect(&mut self, tables: &Arc<Tables>, peers: Vec<Peer>) {
        self.shared.set_tables(tables.clone());
        self.shared.transport.set_members(peers);
        let (epoch, next) = (tables.current().epoch, tables.next().map(|t| t.epoch.0));
        tracing::info!(%epoch, next, members = tables.members().len(), "member tables");
    }

    fn certified(&mut self, certificate: Arc<HeadCertificate>) {
        self.shared.certificate.send_replace(Some(certificate));
    }

    fn publish(&mut self, view: View) {
        self.shared.set_view(view);
    }

    fn open_ballot(&mut self, ballot: Arc<Ballot>, until: u64) {
        self.shared.open_ballot(ballot, until);
    }

    fn withdraw(&mut self, id: &ProposalId) {
        self.shared.withdraw(id);
    }

    fn ballot(&self, id: &ProposalId) -> Option<Arc<Ballot>> {
        self.shared.ballot(id)
    }

    fn http_address(&self, id: &NodeId) -> Option<String> {
        self.shared.http_address(id)
    }

    fn give_up(&mut self, key: &Digest, why: ProposeError) {
        self.shared.give_up(key, why);
    }

    fn note_http(&mut self, id: NodeId, address: Option<String>) {
        self.shared.note_http(id, address);
    }

    fn observe(&mut self, what: Observed<'_>) {
        let telemetry = &self.shared.telemetry;
        match what {
            Observed::Proposal(outcome) => telemetry.proposal(outcome),
            Observed::Commit(took) => telemetry.commit_latency(took.as_secs_f64()),
            Observed::Persist(took) => telemetry.persist(took.as_secs_f64()),
            Observed::Role { before, role } => telemetry.role_transition(before, role),
            Observed::Alarm(alarm) => telemetry.alarm(alarm),
        }
    }
}
