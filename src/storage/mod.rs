//! The store of one node: sled inside, none of it outside.
//!
//! - [`Store::create`] makes it with its key, [`Store::open`] checks everything in it and returns what the node needs
//!   to go on ([`Recovered`]).
//! - Everything that must be durable before a message may leave goes through the [`Committer`]: one thread, strict
//!   order, many writes made durable by one fsync.
//! - An image of the applied state is taken in chunks ([`Store::stage`], [`Store::put_chunk`], [`Store::complete`]). A log
//!   may begin after one: because it was installed ([`Write::base`]), or because the log was compacted
//!   ([`Store::compact`]). Headers, tree hashes, certificates and the bodies of all but proposals and aborts outlive it.
//! - What the database takes of the disk beyond what it needs is given back by moving to a fresh one ([`Store::rotate`]).
//! - What lies before an installed snapshot is filled in from the newest entry down, each piece proved when it comes
//!   ([`Store::missing_history`]).
//! - Single records that went bad are mended with what other members hold, when what is whole proves it ([`Mending`]).
//! - What is derived from committed entries goes through [`Store::archive`], off the commit path.
//!
//! The policy for failures is one sentence: **a failed write or fsync stops the committer for good, with a message that
//! says what to do; it is never retried.**
//!
//! All functions here block; none belongs on an async runtime's threads.

mod archive;
mod below;
mod block;
mod climb;
mod committer;
mod compact;
mod create;
mod disk;
mod doctor;
mod error;
mod failure;
mod generation;
mod ground;
mod history;
mod hold;
mod kept;
mod layout;
mod mend;
mod migrate;
mod postings;
mod read;
mod recovery;
mod restore;
mod rotate;
mod snapshots;
mod space;
mod watermark;

#[cfg(test)]
#[path = "../../migrations/v1.rs"]
mod v1;

#[cfg(test)]
#[path = "../../migrations/v2.rs"]
mod v2;

#[cfg(test)]
#[path = "../../migrations/v3.rs"]
mod v3;

pub use block::BlockError;
pub use committer::Committer;
pub use compact::{Compacted, Keep};
pub use doctor::{
    CopyError, Examination, Examine, ExamineError, FileSize, Finding, Progress, Promised, Repaired, TreeSize, Weight,
};
pub use error::{
    CommitError, CompactError, CreateError, Damage, DurabilityError, FillError, Loss, MendError, OpenError, PinError,
    ReadError, RotateError, SnapshotError, Stopped,
};
pub use history::Missing;
pub use hold::Hold;
pub use mend::{Mending, Wound};
pub use migrate::Step;
pub use postings::{Found, Lookup, Word, deadline_of, key_of};
pub use recovery::{Recovered, Report};
pub use restore::{Filling, RestoreError};
pub use rotate::{Rotated, Rotation, RotationStep};
pub use snapshots::{ProvedChunk, SnapshotReader};
pub use space::{Space, Weighing};
pub use watermark::WatermarkError;

use crate::certificate::{Entry, Genesis, HeadCertificate, SecretKey};
use crate::core::Write;
use crate::ids::NodeId;
use crate::limits::MAX_STORED_VALUE;
use archive::Archive;
use committer::{Shown, Tail};
use disk::Disk;
use ground::Ground;
use snapshots::Snapshots;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

/// Where the store lies within a node's data directory.
pub const STORE_DIR: &str = "store";
/// The file in a node's data directory that is there while its store is being filled from a backup.
pub const RESTORING: &str = "restoring";

/// The open store of one node; cheap to clone. It is closed, and its directory unlocked, when the last clone and the
/// committer are gone.
#[derive(Clone, Debug)]
pub struct Store {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    disk: Disk,
    /// The last index that is durable and not about to be replaced: nothing beyond it is shown. Changed only under
    /// `shown`.
    last: AtomicU64,
    shown: Mutex<Shown>,
    /// The newest durable head certificate.
    certificate: RwLock<Option<Arc<HeadCertificate>>>,
    /// Held for writing while entries are dropped, so that a reader never meets a log being cut.
    cutting: RwLock<()>,
    /// Held for writing from before a ballot answer is written until it is durable, so that a reader never meets one
    /// that could still be lost.
    casting: RwLock<()>,
    archive: Mutex<Archive>,
    /// What the log rests on. Changed while `cutting` is held for writing.
    ground: RwLock<Arc<Ground>>,
    /// Held while the ground is changed: by the committer, or by a step of compaction.
    grounding: Mutex<()>,
    snapshots: Snapshots,
    filling: Mutex<history::Filling>,
    /// How many entries of the log are those of the cluster that this one succeeds.
    before: AtomicU64,
    /// What readers that take long rely on.
    holds: hold::Holds,
    /// Where the log ends, for the committer; `None` while there is one.
    tail: Mutex<Option<Tail>>,
}

impl Shared {
    fn archive(&self) -> MutexGuard<'_, Archive> {
        self.archive.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Store {
    /// Makes the store of a new member in `dir`, which must not exist or be empty, with its identity and BLS key. Either
    /// the whole store is there afterwards, durably, or `dir` is as before.
    ///
    /// # Errors
    /// [`CreateError`].
    pub fn create(dir: &Path, did: NodeId, bls: &SecretKey) -> Result<(), CreateError> {
        create::create(dir, did, bls)
    }

    /// Moves the store in `dir` to `to`, beside it: durably, whole or not at all, and only while no node has it open.
    ///
    /// # Errors
    /// [`OpenError::InUse`], and what the file system refuses.
    pub fn set_aside(dir: &Path, to: &Path) -> Result<(), OpenError> {
        create::set_aside(dir, to)
    }

    /// Opens a store, checks all of it and makes durable what it found.
    ///
    /// # Errors
    /// [`OpenError`]; a store that is damaged or behind its watermark is never opened, and never opened shorter.
    pub fn open(dir: &Path) -> Result<(Self, Recovered), OpenError> {
        recovery::open(dir)
    }

    /// Brings the store in `dir` to the schema version of this program, as [`Store::open`] does by itself, and returns the
    /// steps that this takes; with `dry_run` it only tells them and changes nothing. Each step begins with a verified copy
    /// of what it overwrites, and goes on where it was when it was interrupted.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn migrate(dir: &Path, dry_run: bool) -> Result<Vec<Step>, OpenError> {
        recovery::migrate(dir, dry_run)
    }

    /// Looks at everything in the store in `dir`, which no node may have open, and tells all that is wrong with it. The
    /// store is only read: the database is opened in a private copy, which is removed afterwards.
    ///
    /// # Errors
    /// [`ExamineError`] when it is in use or not there, or the copy cannot be made.
    pub fn examine(dir: &Path, how: &Examine, progress: &mut dyn FnMut(Progress)) -> Result<Examination, ExamineError> {
        doctor::examine(dir, how, progress)
    }

    /// Opens the store in `dir`, as a start does, writes derived records anew where they are missing or wrong, those too
    /// that a start leaves alone, and closes it.
    ///
    /// # Errors
    /// [`OpenError`]: what derived records follow from must be sound.
    pub fn repair(dir: &Path) -> Result<Repaired, OpenError> {
        doctor::repair(dir)
    }

    /// Binds this store to a cluster, durably, for ever. Doing so again with the same genesis changes nothing.
    ///
    /// # Errors
    /// [`PinError`]; `Other` when the store belongs to another cluster.
    pub fn pin_genesis(&self, genesis: &Genesis) -> Result<(), PinError> {
        if let Some(pinned) = self.genesis()? {
            let (pinned, given) = (pinned.id(), genesis.id());
            return if pinned == given { Ok(()) } else { Err(PinError::Other { pinned, given }) };
        }
        let json = genesis.to_json();
        if json.len() > MAX_STORED_VALUE {
            return Err(PinError::TooLarge { length: json.len(), bound: MAX_STORED_VALUE });
        }
        // The watermark need not know: until a first group is written this member has promised nothing under this
        // genesis, so a store that rot took back to before the pin may be bound again; and every promise after it is
        // in a group that the watermark counts.
        let disk = &self.shared.disk;
        disk.insert(&disk.trees.meta, layout::META_GENESIS.as_bytes(), json.as_bytes())?;
        disk.make_durable()?;
        self.shared.before.store(genesis.begins_after(), Ordering::Release);
        Ok(())
    }

    /// Keeps a second BLS key, durably, which is to replace the present one once the member table names it. An earlier
    /// second key is forgotten.
    ///
    /// # Errors
    /// [`DurabilityError`].
    pub fn add_key(&self, next: &SecretKey) -> Result<(), DurabilityError> {
        let disk = &self.shared.disk;
        disk.insert(&disk.trees.meta, layout::META_NEXT_BLS.as_bytes(), &next.to_bytes())?;
        // A key is shown to others, and so may come into force, only after this.
        disk.make_durable()
    }

    /// Ends a rotation: `next`, the second key, takes the place of the first, which is overwritten.
    ///
    /// # Errors
    /// [`DurabilityError`].
    pub fn replace_key(&self, next: &SecretKey) -> Result<(), DurabilityError> {
        let disk = &self.shared.disk;
        // In this order: whatever prefix of it survives, the store holds `next`.
        disk.insert(&disk.trees.meta, layout::META_BLS.as_bytes(), &next.to_bytes())?;
        disk.remove(&disk.trees.meta, layout::META_NEXT_BLS.as_bytes())?;
        disk.make_durable()
    }

    /// Says durably that this store has ended: no node is to start on it again, because its member signed what it holds
    /// and another cluster goes on from there. Reading it stays possible.
    ///
    /// # Errors
    /// [`DurabilityError`].
    pub fn retire(&self) -> Result<(), DurabilityError> {
        let disk = &self.shared.disk;
        disk.insert(&disk.trees.meta, layout::META_RETIRED.as_bytes(), &[1])?;
        disk.make_durable()
    }

    /// Starts the thread that makes writes durable. `completed` is called on that thread, with the sequence number up to
    /// which everything submitted is durable, or once with the error after which nothing more will be.
    ///
    /// # Panics
    /// When this store has a committer already, or the system has no thread to give.
    #[must_use]
    pub fn start(&self, completed: impl FnMut(Result<u64, CommitError>) + Send + 'static) -> Committer {
        Committer::start(self.clone(), completed)
    }

    /// Takes committed entries, in order, for tree hashes, headers, the index of proposals and that of auditors ([`Store::lookup`]).
    /// Entries taken before are passed over. Off the commit path: what it writes is derived again at open if it is lost.
    ///
    /// # Errors
    /// [`ReadError::Gap`] when entries are missing before these, and failures of the disk.
    pub fn archive(&self, entries: &[Arc<Entry>]) -> Result<(), ReadError> {
        read::guarded(|| {
            let mut archive = self.shared.archive();
            for entry in entries.iter().skip_while(|e| e.index().0 <= archive.size()).collect::<Vec<_>>() {
                archive.take(&self.shared.disk, &entry.header, entry.header.encode(), Some(&entry.body))?;
            }
            Ok(())
        })
    }
}

/// Devices that stand still, for tests of those who must not wait for them.
#[cfg(test)]
pub(crate) struct Stalled<'a, T>(#[expect(dead_code, reason = "holds")] MutexGuard<'a, T>);

#[cfg(test)]
impl Store {
    /// While held, nothing becomes durable.
    pub(crate) fn stall_disk(&self) -> Stalled<'_, impl Sized> {
        Stalled(self.shared.disk.take_turn())
    }

    /// While held, nothing is archived, and so nothing applied.
    pub(crate) fn stall_archive(&self) -> Stalled<'_, impl Sized> {
        Stalled(self.shared.archive())
    }
}

/// What a [`Committer`] is given: a step and its number.
type Numbered = (u64, Write);
