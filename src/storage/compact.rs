//! Compaction: the log begins later, and what outlives it is put where it stays.
//!
//! One step takes a few megabytes of blocks: bodies that are kept for ever are copied, durably; then the log's new ground
//! comes into force by one durable record; then readers are told; and only then the blocks go, in small durable pieces.
//! So after a crash at any instant the log begins at the old place or at the new one, and blocks below it are deleted when
//! compaction is next asked for. The committer is never waited on and waits for no more than one small fsync.

use super::block::{self, Block};
use super::committer::put_kept;
use super::error::{CompactError, ReadError};
use super::ground::Ground;
use super::layout::{self, TILES, number_key};
use super::read::{guard, guarded};
use super::{Shared, Store, kept};
use crate::certificate::merkle::Frontier;
use crate::certificate::{Entry, FormatError, Kind};
use crate::ids::LogIndex;
use std::sync::{Arc, PoisonError};

/// Bytes of blocks that one step takes.
const STEP: usize = 4 * 1024 * 1024;
/// Bytes of blocks deleted before that is made durable: well below a segment of the database.
const PIECE: usize = 1024 * 1024;

/// Where compaction stands after a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compacted {
    /// The last entry below the log.
    pub base: LogIndex,
    /// Whether there may be more to do: ask again. The log begins at the boundary of a block, so it may come to rest up to
    /// a block's length below what was asked for.
    pub more: bool,
}

/// What is to stay in the log although a snapshot stands for it; all of it is a least.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Keep {
    /// The newest entries that take this many bytes in the log.
    pub bytes: Option<u64>,
    /// Entries proposed no longer than this before the newest one, milliseconds.
    pub age_ms: Option<u64>,
}

/// What a step found in the blocks that it takes.
struct Taken {
    tree: Frontier,
    ground: Ground,
    kept: Vec<Arc<Entry>>,
}

impl Store {
    /// One bounded step towards a log that begins after `upto`: bodies of `Proposal` and `Aborted` entries go, all others,
    /// and all headers, tree hashes and certificates, stay. It may be interrupted at any instant.
    ///
    /// # Errors
    /// [`CompactError::NoSnapshot`] unless there is a complete snapshot at or above `upto`,
    /// [`CompactError::NotCertified`] unless a head certificate covers it, [`ReadError::NotYet`] unless
    /// [`Store::archive`] was given everything up to it.
    pub fn compact(&self, upto: LogIndex) -> Result<Compacted, CompactError> {
        guard(|| {
            let shared = &*self.shared;
            let _grounding = shared.grounding.lock().unwrap_or_else(PoisonError::into_inner);
            let ground = shared.ground();
            let left = shared.sweep(&ground)?;
            // This line is why a backup is never torn: while one reads, no body above the base that it began with goes.
            let upto = shared.holds.lowest().map_or(upto, |held| upto.min(held));
            if left || upto <= ground.index() {
                return Ok(Compacted { base: ground.index(), more: left });
            }
            self.check_compaction(upto)?;
            let Some(taken) = shared.take_blocks(&ground, upto)? else {
                return Ok(Compacted { base: ground.index(), more: false });
            };
            let ground = shared.rise(taken)?;
            shared.sweep(&ground)?;
            Ok(Compacted { base: ground.index(), more: true })
        })
    }

    /// The last entry that may go when this much is to stay.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn prunable(&self, keep: Keep) -> Result<LogIndex, ReadError> {
        guarded(|| {
            let mut upto = self.last_index();
            if let Some(age) = keep.age_ms {
                upto = upto.min(self.older_than(age)?);
            }
            if let Some(bytes) = keep.bytes {
                upto = upto.min(self.before_newest(bytes)?);
            }
            Ok(upto)
        })
    }

    /// The last entry that is older than this against the newest one. Times never run backwards in a log.
    fn older_than(&self, age_ms: u64) -> Result<LogIndex, ReadError> {
        let time = |index: u64| Ok::<_, ReadError>(self.header(LogIndex(index))?.map(|h| h.proposed_at));
        let (mut older, mut last) = (self.base().0, self.last_index().0);
        let Some(since) = time(last)?.map(|newest| newest.saturating_sub(age_ms)) else { return Ok(LogIndex(older)) };
        while older < last {
            let middle = older + (last - older).div_ceil(2);
            // One that was replaced meanwhile is not older than anything.
            if time(middle)?.is_some_and(|at| at < since) {
                older = middle;
            } else {
                last = middle - 1;
            }
        }
        Ok(LogIndex(older))
    }

    /// The last entry before the blocks at the log's end that take so many bytes.
    fn before_newest(&self, bytes: u64) -> Result<LogIndex, ReadError> {
        let base = self.base();
        let mut newest = 0;
        for row in self.shared.disk.trees.log.range(number_key(base.next().0)..).rev() {
            let (key, value) = row?;
            newest += value.len() as u64;
            if newest >= bytes {
                return Ok(LogIndex(layout::read_number_key(&key).unwrap_or_default()).prev().max(base));
            }
        }
        Ok(base)
    }

    fn check_compaction(&self, upto: LogIndex) -> Result<(), CompactError> {
        // Not one beyond the log's end: it would not help a node that starts with this log.
        if self.shared.snapshots.complete(upto, self.last_index()).is_empty() {
            return Err(CompactError::NoSnapshot { upto });
        }
        let certified = LogIndex(self.latest_certificate().map_or(0, |c| c.head.size));
        if certified < upto {
            return Err(CompactError::NotCertified { upto, certified });
        }
        let size = self.archived();
        if size < upto.0 { Err(ReadError::NotYet { asked: upto.0, size }.into()) } else { Ok(()) }
    }
}

impl Shared {
    /// Reads the blocks of one step: whole ones, none of which reaches beyond `upto`.
    fn take_blocks(&self, ground: &Ground, upto: LogIndex) -> Result<Option<Taken>, ReadError> {
        let mut taken = Taken { tree: ground.edge.frontier(), ground: ground.clone(), kept: Vec::new() };
        let mut bytes = 0;
        for row in self.disk.trees.log.range(number_key(ground.index().next().0)..=number_key(upto.0)) {
            let (key, value) = row?;
            let first = LogIndex(layout::read_number_key(&key).unwrap_or_default());
            let wrong = |source| ReadError::Block { first, source };
            let block = Block::read(&key, &value).map_err(wrong)?;
            if block.end().prev() > upto {
                break;
            }
            for (index, entry) in block.raw_from(first) {
                taken.push(block::decode(index, entry).map_err(wrong)?)?;
            }
            bytes += value.len();
            if bytes >= STEP {
                break;
            }
        }
        Ok((bytes > 0).then_some(taken))
    }

    /// Makes the log rest on what was taken.
    fn rise(&self, taken: Taken) -> Result<Arc<Ground>, ReadError> {
        let Taken { tree, mut ground, kept } = taken;
        {
            let mut archive = self.archive();
            ground.edge = archive.edge_at(&self.disk, tree.size())?;
            archive.postings.settle(&self.disk, ground.index())?;
        }
        if ground.edge.frontier() != tree {
            return Err(ReadError::Record { tree: TILES, source: FormatError::Value { field: "tile" } });
        }
        // From now on nothing derives tree hashes and headers again: with the bodies that are kept, they are durable first.
        put_kept(self, &kept)?;
        ground.put(&self.disk, false)?;
        self.archive().postings.durable(&self.disk)?;
        let ground = Arc::new(ground);
        {
            // Whoever reads blocks that are about to go has finished after this.
            let _cutting = self.cutting.write().unwrap_or_else(PoisonError::into_inner);
            *self.ground.write().unwrap_or_else(PoisonError::into_inner) = ground.clone();
        }
        ground.tidy(&self.disk)?;
        Ok(ground)
    }

    /// Deletes blocks below the log, as many as one step takes; says whether some are left.
    fn sweep(&self, ground: &Ground) -> Result<bool, ReadError> {
        let (mut step, mut piece) = (0, 0);
        for row in self.disk.trees.log.range(..number_key(ground.index().next().0)) {
            let (key, value) = row?;
            if step >= STEP {
                self.disk.make_durable()?;
                return Ok(true);
            }
            self.disk.remove(&self.disk.trees.log, &key)?;
            step += value.len();
            piece += value.len();
            if piece >= PIECE {
                self.disk.make_durable()?;
                piece = 0;
            }
        }
        if piece > 0 {
            self.disk.make_durable()?;
        }
        Ok(false)
    }
}

impl Taken {
    fn push(&mut self, entry: Arc<Entry>) -> Result<(), ReadError> {
        let header = &entry.header;
        if header.index.0 != self.tree.size() + 1 {
            return Err(ReadError::Hole { index: LogIndex(self.tree.size() + 1) });
        }
        self.tree.push(header.leaf_hash());
        self.ground.proposed_at = header.proposed_at;
        if self.ground.last_term() != header.term {
            self.ground.terms.push((header.index, header.term));
        }
        if matches!(header.kind, Kind::Epoch | Kind::EpochFinal) {
            self.ground.epochs.push(header.index);
        }
        if kept::is_kept(header.kind) {
            self.kept.push(entry);
        }
        Ok(())
    }
}
