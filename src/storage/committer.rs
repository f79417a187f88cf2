//! The one thread that makes writes durable.
//!
//! It drains its queue, writes what it found in the order in which it was submitted, makes all of it durable by one
//! flush and one fdatasync, replaces the watermark if term or vote changed, and only then answers.
//!
//! # Why a crash at any instant leaves a valid store
//!
//! sled recovers a prefix of the operations of this thread. So the order of operations is the argument:
//!
//! - Writes go down in the order submitted; entries gathered so far go down before a newer term or vote. Whatever
//!   prefix survives is a state that the core was in, or one step of cutting between two.
//! - A head certificate goes down after all entries of its group: no prefix holds one without what it covers.
//! - The count of groups goes down last: who finds it finds everything before it.
//! - Cutting the log at `from` deletes whole blocks from the last one down, and then rewrites the block in which `from`
//!   lies by one insert. Every prefix of that is the old log cut somewhere at or after `from`: contiguous, and with
//!   everything below `from`. What is lost in between are entries that a newer leader replaces, which Raft allows to
//!   lose.
//! - A log that begins after a snapshot: the entries that go with it, then what the log rests on, and last the one record
//!   that brings it into force and says that what lies above is to be wiped; durable. Then those blocks go, and only then
//!   the record says that nothing is left. Nothing is appended in between, and opening goes on with the wiping.
//! - Should sled ever bring back a block that was deleted, the root that each block carries tells it from the history
//!   it does not belong to; see [`super::block`].
//! - The watermark is lowered before a cut and raised only after what it promises is durable.

use super::archive::Archive;
use super::block::{Block, Builder};
use super::disk::Disk;
use super::error::{CommitError, DurabilityError, ReadError, Stopped};
use super::ground::Ground;
use super::layout::{self, number_key};
use super::read::{End, panic_message};
use super::watermark::Watermark;
use super::{Numbered, Shared, Store, kept};
use crate::certificate::merkle::{self, Frontier};
use crate::certificate::{Entry, HeadCertificate, Header, SnapshotManifest};
use crate::core::{Base, CastVote, HardState, Write};
use crate::ids::{LogIndex, Term};
use crate::limits::MAX_ENTRY;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// Writes that may wait for the thread; beyond it [`Committer::submit`] waits.
const QUEUE: usize = 4096;
/// Writes made durable by one fsync, at most.
const GROUP_WRITES: usize = 1024;
/// Bytes of entries made durable by one fsync, at most (one write may exceed it): well below a segment of the database,
/// so that a segment is never written anew before what replaces it is durable.
const GROUP_BYTES: usize = 2 * 1024 * 1024;
/// Bytes of blocks that a cut deletes before it makes the deletes durable; as above.
const CUT_BYTES: usize = 1024 * 1024;
/// Entries written since the watermark was, after which it is replaced.
const MARK_ENTRIES: u64 = 4096;
/// Entries between two trees kept for cuts, and how many of those at most.
const CHECKPOINT_EVERY: u64 = 256;
const CHECKPOINTS: usize = 4096;
/// How long the thread waits for more before it replaces a watermark that is behind.
const IDLE: Duration = Duration::from_millis(200);

/// Takes writes and answers when they are durable. Closing it, or dropping it, makes durable what was submitted and
/// ends the thread.
#[derive(Debug)]
pub struct Committer {
    queue: Option<SyncSender<Numbered>>,
    thread: Option<JoinHandle<()>>,
    store: Store,
}

/// Which entries readers may see: durable ones that no submitted write replaces. Without the second half a reader that
/// knows from the core that index 80 is committed could be given the entry that the committed one is about to replace.
#[derive(Debug, Default)]
pub(super) struct Shown {
    /// The last index of the log once everything submitted is written.
    top: LogIndex,
    /// Cuts submitted and not yet durable: the write's number, and the index up to which it leaves the log alone.
    cuts: VecDeque<(u64, LogIndex)>,
}

impl Shared {
    fn shown(&self) -> MutexGuard<'_, Shown> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A write of entries was submitted.
    fn announce(&self, seq: u64, first: LogIndex, last: LogIndex) {
        let mut shown = self.shown();
        if first <= shown.top {
            shown.cuts.push_back((seq, first.prev()));
            self.last.fetch_min(first.prev().0, Ordering::AcqRel);
        }
        shown.top = last;
    }

    /// A write of a base was submitted: of what the log holds, only what is certified is surely the history that the
    /// snapshot stands for.
    fn announce_base(&self, seq: u64, base: LogIndex) {
        let certificate = self.certificate.read().unwrap_or_else(PoisonError::into_inner);
        let keep = LogIndex(certificate.as_ref().map_or(0, |c| c.head.size));
        drop(certificate);
        let mut shown = self.shown();
        shown.cuts.push_back((seq, keep));
        self.last.fetch_min(keep.0, Ordering::AcqRel);
        shown.top = base;
    }

    /// Everything up to write `seq` is durable, and the log ends at `last`.
    fn show(&self, seq: u64, last: LogIndex) {
        let mut shown = self.shown();
        while shown.cuts.front().is_some_and(|(cut, _)| *cut <= seq) {
            shown.cuts.pop_front();
        }
        let last = shown.cuts.iter().fold(last, |last, (_, keep)| last.min(*keep));
        self.last.store(last.0, Ordering::Release);
    }
}

impl Committer {
    pub(super) fn start(store: Store, mut completed: impl FnMut(Result<u64, CommitError>) + Send + 'static) -> Self {
        let taken = store.shared.tail.lock().unwrap_or_else(PoisonError::into_inner).take();
        let tail = taken.expect("a store has one committer at a time");
        let (queue, writes) = sync_channel(QUEUE);
        let shown = store.clone();
        shown.shared.shown().top = tail.last();
        let thread = std::thread::Builder::new()
            .name("committer".into())
            .spawn(move || Worker { store, tail, block: None }.run(&writes, &mut completed))
            .expect("the system has a thread for the committer");
        Self { queue: Some(queue), thread: Some(thread), store: shown }
    }

    /// Hands one step over; `seq` ascends. Waits while the queue is full.
    ///
    /// # Errors
    /// [`Stopped`] once a write has failed; the failure itself was reported to `completed`.
    pub fn submit(&self, seq: u64, write: Write) -> Result<(), Stopped> {
        let queue = self.queue.as_ref().ok_or(Stopped)?;
        if let Some(base) = &write.base {
            self.store.shared.announce_base(seq, base.index());
        }
        if let (Some(first), Some(last)) = (write.entries.first(), write.entries.last()) {
            self.store.shared.announce(seq, first.index(), last.index());
        }
        queue.send((seq, write)).map_err(|_| Stopped)
    }

    /// Makes durable what was submitted, then ends the thread.
    pub fn close(mut self) {
        self.join();
    }

    fn join(&mut self) {
        drop(self.queue.take());
        if let Some(thread) = self.thread.take() {
            // The thread catches its own panics and reports them; what is left is a panic of `completed`.
            if let Err(panic) = thread.join() {
                tracing::error!(message = panic_message(panic.as_ref()), "the committer's callback panicked");
            }
        }
    }
}

impl Drop for Committer {
    fn drop(&mut self) {
        self.join();
    }
}

/// Where the log ends and what the watermark says.
#[derive(Debug)]
pub(super) struct Tail {
    /// The tree over the whole log, durable or being written.
    pub(super) frontier: Frontier,
    /// The tree at some earlier sizes, ascending, the first at most `certified`: where a cut begins to read.
    pub(super) checkpoints: VecDeque<Frontier>,
    pub(super) last_term: Term,
    pub(super) last_time: u64,
    pub(super) hard: HardState,
    /// The size of the newest certified head, or what a snapshot stands for if that is more.
    pub(super) certified: u64,
    /// Groups ever made durable: the last record of each, so that any loss at the end of what was written shows.
    pub(super) commits: u64,
    /// The watermark file's contents.
    pub(super) mark: Watermark,
}

impl Tail {
    fn last(&self) -> LogIndex {
        LogIndex(self.frontier.size())
    }

    /// The watermark that says all that is known here.
    fn full_mark(&self) -> Watermark {
        Watermark {
            did: self.mark.did,
            hard: self.hard.clone(),
            last: self.last(),
            root: self.frontier.root(),
            commits: self.commits,
            schema: layout::SCHEMA,
        }
    }

    /// Takes the next leaf.
    fn push(&mut self, header: &Header) {
        if self.frontier.size().is_multiple_of(CHECKPOINT_EVERY) {
            self.checkpoints.push_back(self.frontier.clone());
        }
        if self.checkpoints.len() > CHECKPOINTS {
            // Nothing was certified for long: every second one does.
            let mut keep = false;
            self.checkpoints.retain(|_| {
                keep = !keep;
                keep
            });
        }
        self.frontier.push(header.leaf_hash());
        self.last_term = header.term;
        self.last_time = header.proposed_at;
    }

    /// The log is empty after this.
    fn rest_on(&mut self, ground: &Ground) {
        self.frontier = ground.edge.frontier();
        self.checkpoints = VecDeque::from([self.frontier.clone()]);
        self.last_term = ground.last_term();
        self.last_time = ground.proposed_at;
        self.certified = self.certified.max(self.frontier.size());
    }

    fn certify(&mut self, size: u64) {
        self.certified = self.certified.max(size);
        while self.checkpoints.get(1).is_some_and(|c| c.size() <= self.certified) {
            self.checkpoints.pop_front();
        }
    }

    /// The newest tree kept of at most `size` entries.
    fn checkpoint(&mut self, size: LogIndex) -> Frontier {
        while self.checkpoints.len() > 1 && self.checkpoints.back().is_some_and(|c| c.size() > size.0) {
            self.checkpoints.pop_back();
        }
        self.checkpoints.back().cloned().unwrap_or_default()
    }
}

struct Worker {
    store: Store,
    tail: Tail,
    /// Entries gathered for the next block.
    block: Option<Builder>,
}

impl Worker {
    fn run(mut self, writes: &Receiver<Numbered>, completed: &mut dyn FnMut(Result<u64, CommitError>)) {
        while let Some(group) = self.next_group(writes, completed) {
            let Some(&(seq, _)) = group.last() else { return };
            match self.guarded(|worker| worker.commit(group)) {
                Ok(()) => completed(Ok(seq)),
                Err(e) => {
                    completed(Err(e));
                    return;
                }
            }
        }
        if let Err(e) = self.guarded(Self::catch_up_mark) {
            completed(Err(e));
            return;
        }
        *self.store.shared.tail.lock().unwrap_or_else(PoisonError::into_inner) = Some(self.tail);
    }

    /// Runs one step; after a failure of any kind the store takes no more writes.
    fn guarded(&mut self, step: impl FnOnce(&mut Self) -> Result<(), CommitError>) -> Result<(), CommitError> {
        let result = catch_unwind(AssertUnwindSafe(|| step(self)))
            .unwrap_or_else(|p| Err(CommitError::Panicked { message: panic_message(p.as_ref()) }));
        if result.is_err() {
            self.store.shared.disk.break_down();
        }
        result
    }

    /// The writes to make durable together; `None` when there will be none, empty after a reported failure.
    fn next_group(
        &mut self,
        writes: &Receiver<Numbered>,
        completed: &mut dyn FnMut(Result<u64, CommitError>),
    ) -> Option<Vec<Numbered>> {
        let first = match writes.recv_timeout(IDLE) {
            Ok(first) => first,
            Err(RecvTimeoutError::Disconnected) => return None,
            Err(RecvTimeoutError::Timeout) => {
                if let Err(e) = self.guarded(Self::catch_up_mark) {
                    completed(Err(e));
                    return Some(Vec::new());
                }
                writes.recv().ok()?
            }
        };
        let mut bytes = size(&first.1);
        let mut group = vec![first];
        while group.len() < GROUP_WRITES && bytes < GROUP_BYTES {
            let Ok(next) = writes.try_recv() else { break };
            bytes += size(&next.1);
            group.push(next);
        }
        Some(group)
    }

    fn commit(&mut self, group: Vec<Numbered>) -> Result<(), CommitError> {
        let shared = self.store.shared.clone();
        // Held until the answers in this group are durable: see `Shared::casting`.
        let casts = group.iter().any(|(_, w)| w.cast.is_some());
        let _casting = casts.then(|| shared.casting.write().unwrap_or_else(PoisonError::into_inner));
        let mut certificates = Vec::new();
        let mut stored = 0;
        // Whether the watermark is to say more at once.
        let mut hard_changed = false;
        let mut newest = 0;
        for (seq, write) in group {
            newest = seq;
            let Write { hard, base, entries, cast, certificate } = write;
            if let Some(hard) = hard {
                self.put_hard_state(hard)?;
                hard_changed = true;
            }
            if let Some(base) = base {
                self.put_certificates(&certificates[stored..])?;
                stored = certificates.len();
                self.install(&base)?;
                hard_changed = true;
            }
            self.append(&entries)?;
            if let Some(cast) = cast {
                self.put_cast(&cast)?;
            }
            if let Some(certificate) = certificate {
                self.check_certificate(&certificate)?;
                certificates.push(certificate);
            }
        }
        self.put_certificates(&certificates[stored..])?;
        self.put_count()?;
        // Nothing is acknowledged before fsync: this line keeps it. Everything above only wrote; everything below, and
        // the answer to the core that lets messages leave, comes after it.
        shared.disk.make_durable()?;
        if hard_changed || self.tail.last().0 >= self.tail.mark.last.0 + MARK_ENTRIES {
            self.raise_mark()?;
        }
        self.publish(newest, certificates);
        Ok(())
    }

    /// Shows readers what is durable.
    fn publish(&self, seq: u64, certificates: Vec<Arc<HeadCertificate>>) {
        let shared = &self.store.shared;
        shared.show(seq, self.tail.last());
        if let Some(newest) = certificates.into_iter().max_by_key(|c| c.head.size) {
            let mut shown = shared.certificate.write().unwrap_or_else(PoisonError::into_inner);
            if shown.as_ref().is_none_or(|c| c.head.size < newest.head.size) {
                *shown = Some(newest);
            }
        }
    }

    fn put_hard_state(&mut self, hard: HardState) -> Result<(), CommitError> {
        // What came before a new term or vote goes down before it.
        self.put_block()?;
        let disk = &self.store.shared.disk;
        disk.insert(&disk.trees.hard, layout::HARD_STATE.as_bytes(), &layout::write_hard_state(&hard))?;
        self.tail.hard = hard;
        Ok(())
    }

    fn put_count(&mut self) -> Result<(), DurabilityError> {
        self.tail.commits += 1;
        let disk = &self.store.shared.disk;
        disk.insert(&disk.trees.hard, layout::COMMITS.as_bytes(), &number_key(self.tail.commits))
    }

    fn put_cast(&self, cast: &CastVote) -> Result<(), DurabilityError> {
        let disk = &self.store.shared.disk;
        let key = layout::cast_key(&cast.request_key, &cast.content);
        disk.insert(&disk.trees.casts, &key, &layout::write_cast(cast))
    }

    fn check_certificate(&mut self, certificate: &HeadCertificate) -> Result<(), CommitError> {
        let (size, last) = (certificate.head.size, self.tail.last());
        if size > last.0 {
            return Err(CommitError::CertificateAhead { size, last });
        }
        // Roots of earlier sizes are not at hand; all are compared at open.
        if size == last.0 && certificate.head.root != self.tail.frontier.root() {
            return Err(CommitError::CertificateMismatch { size });
        }
        self.tail.certify(size);
        Ok(())
    }

    /// Certificates go down after all entries gathered so far, and so after what they cover.
    fn put_certificates(&mut self, certificates: &[Arc<HeadCertificate>]) -> Result<(), DurabilityError> {
        self.put_block()?;
        let disk = &self.store.shared.disk;
        certificates
            .iter()
            .try_for_each(|c| disk.insert(&disk.trees.certificates, &number_key(c.head.size), &c.encode()))
    }

    /// Begins the log anew after a complete snapshot; see the head of this file for the order.
    fn install(&mut self, base: &Base) -> Result<(), CommitError> {
        let shared = self.store.shared.clone();
        let _grounding = shared.grounding.lock().unwrap_or_else(PoisonError::into_inner);
        let index = base.index();
        let committed = LogIndex(self.tail.certified).max(shared.ground().index());
        if index < committed || index == shared.ground().index() {
            return Err(CommitError::Committed { index: index.next(), committed });
        }
        let manifest = shared.snapshots.pin(index).ok_or(CommitError::NoSnapshot { index })?;
        let ground = Ground::installed(base);
        check_base(&ground, &manifest)?;
        if self.tail.mark.last.0 > self.tail.certified {
            // Beyond what is certified it may speak of another history than the snapshot's.
            let lowered = Watermark { last: LogIndex::ZERO, root: merkle::empty_root(), ..self.tail.mark.clone() };
            self.store_mark(lowered)?;
        }
        put_kept(&shared, &base.epochs)?;
        ground.put(&shared.disk, true)?;
        let archive = Archive::over(&shared.disk, ground.edge.clone(), ground.from)?;
        {
            let _cutting = shared.cutting.write().unwrap_or_else(PoisonError::into_inner);
            let mut held = shared.archive();
            let replaced = std::mem::replace(&mut *held, archive);
            held.postings.inherit(replaced.postings);
            drop(held);
            // What was here of the tile in which the log begins now, even if it is the same one, says nothing of this log.
            *shared.filling() = Default::default();
            *shared.ground.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(ground.clone());
        }
        shared.snapshots.unpin();
        wipe(&shared.disk, &ground)?;
        self.tail.rest_on(&ground);
        Ok(())
    }

    fn append(&mut self, entries: &[Arc<Entry>]) -> Result<(), CommitError> {
        let Some(first) = entries.first() else { return Ok(()) };
        if first.index() <= self.tail.last() {
            self.cut(first.index())?;
        }
        entries.iter().try_for_each(|entry| self.append_one(entry))
    }

    fn append_one(&mut self, entry: &Entry) -> Result<(), CommitError> {
        let Header { index, term, proposed_at, .. } = entry.header;
        let expected = self.tail.last().next();
        if index != expected {
            return Err(CommitError::Gap { expected, found: index });
        }
        if term < self.tail.last_term || proposed_at < self.tail.last_time {
            return Err(CommitError::Backwards { index });
        }
        let bytes = entry.encode();
        if bytes.len() > MAX_ENTRY {
            return Err(CommitError::TooLarge { index, length: bytes.len(), bound: MAX_ENTRY });
        }
        if self.block.as_ref().is_some_and(|b| !b.has_room_for(bytes.len())) {
            self.put_block()?;
        }
        let root_before = || self.tail.frontier.root();
        self.block.get_or_insert_with(|| Builder::new(index, root_before())).push(&bytes);
        self.tail.push(&entry.header);
        Ok(())
    }

    fn put_block(&mut self) -> Result<(), DurabilityError> {
        let Some(block) = self.block.take() else { return Ok(()) };
        let (key, value) = block.finish();
        let disk = &self.store.shared.disk;
        disk.insert(&disk.trees.log, &key, &value)
    }

    /// Drops everything from `from` on; see the head of this file for the order.
    fn cut(&mut self, from: LogIndex) -> Result<(), CommitError> {
        self.put_block()?;
        let shared = self.store.shared.clone();
        let committed = LogIndex(self.tail.certified);
        if from <= committed || from == LogIndex::ZERO {
            return Err(CommitError::Committed { index: from, committed });
        }
        let keep = from.prev();
        let End { tree: frontier, last_term, last_time } = {
            // Compaction takes what lies below the log's base only once nobody reads here.
            let _uncut = shared.cutting.read().unwrap_or_else(PoisonError::into_inner);
            shared.end_at(self.tail.checkpoint(keep), keep)?
        };
        if self.tail.mark.last > keep {
            let lowered = Watermark { last: keep, root: frontier.root(), ..self.tail.mark.clone() };
            self.store_mark(lowered)?;
        }
        let _cutting = shared.cutting.write().unwrap_or_else(PoisonError::into_inner);
        self.drop_blocks(from)?;
        self.tail.frontier = frontier;
        self.tail.last_term = last_term;
        self.tail.last_time = last_time;
        Ok(())
    }

    fn drop_blocks(&self, from: LogIndex) -> Result<(), CommitError> {
        let disk = &self.store.shared.disk;
        let log = &disk.trees.log;
        let mut dropped = 0;
        for row in log.range(number_key(from.0)..).rev() {
            let (key, value) = row.map_err(super::error::ReadError::from)?;
            disk.remove(log, &key)?;
            dropped += value.len();
            if dropped >= CUT_BYTES {
                disk.make_durable()?;
                dropped = 0;
            }
        }
        let Some((first, kept)) = self.store.shared.part_of_block(from)? else { return Ok(()) };
        disk.insert(log, &first, &kept)?;
        Ok(())
    }

    fn raise_mark(&mut self) -> Result<(), DurabilityError> {
        self.store_mark(self.tail.full_mark())
    }

    /// Raises a watermark that is behind; everything written so far is durable.
    fn catch_up_mark(&mut self) -> Result<(), CommitError> {
        if self.tail.mark.commits != self.tail.commits {
            self.raise_mark()?;
        }
        Ok(())
    }

    fn store_mark(&mut self, mark: Watermark) -> Result<(), DurabilityError> {
        let disk = &self.store.shared.disk;
        mark.store(&disk.dir, &disk.dir_handle).map_err(|source| DurabilityError::Watermark { source })?;
        self.tail.mark = mark;
        Ok(())
    }
}

/// Whether the log may rest on this: the snapshot's state is the one after exactly these entries.
fn check_base(ground: &Ground, manifest: &SnapshotManifest) -> Result<(), CommitError> {
    let differs = [
        ("tree root", ground.edge.frontier().root() != manifest.root),
        ("last term", ground.last_term() != manifest.term),
        ("last time", ground.proposed_at != manifest.proposed_at),
    ];
    match differs.iter().find(|(_, differs)| *differs) {
        Some((what, _)) => Err(CommitError::OtherSnapshot { index: ground.index(), what }),
        None => Ok(()),
    }
}

/// Keeps entries for ever, durably, and with them everything that was written before.
pub(super) fn put_kept(shared: &Shared, entries: &[Arc<Entry>]) -> Result<(), DurabilityError> {
    let mut unsynced = 0;
    for entry in entries {
        unsynced += kept::put(&shared.disk, entry)?;
        if unsynced >= CUT_BYTES {
            shared.disk.make_durable()?;
            unsynced = 0;
        }
    }
    shared.disk.make_durable()
}

/// Deletes every block that holds an entry above the ground, from the last one down, and then says that none is left.
pub(super) fn wipe(disk: &Disk, ground: &Ground) -> Result<(), ReadError> {
    let mut dropped = 0;
    let base = ground.index();
    for row in disk.trees.log.iter().rev() {
        let (key, value) = row?;
        // One that does not read is deleted too: none of it is wanted.
        if Block::read(&key, &value).is_ok_and(|block| block.end() <= base.next()) {
            break;
        }
        disk.remove(&disk.trees.log, &key)?;
        dropped += value.len();
        if dropped >= CUT_BYTES {
            disk.make_durable()?;
            dropped = 0;
        }
    }
    disk.make_durable()?;
    Ok(ground.wiped(disk)?)
}

/// About how many bytes a write brings.
fn size(write: &Write) -> usize {
    write.entries.iter().map(|e| e.body.payload.len() + 512).sum()
}
