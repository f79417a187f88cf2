//! The store of one node: sled inside, none of it outside.
//!
//! - [`Store::create`] makes it with its key, [`Store::open`] checks everything in it and returns what the node needs
//!   to go on ([`Recovered`]).
//! - Everything that must be durable before a message may leave goes through the [`Committer`]: one thread, strict
//!   order, many writes made durable by one fsync.
//! - An image of the applied state is taken in chunks ([`Store::stage`], [`Store::put_chunk`], [`Store::complete`]). A log
//!   may begin after one: because it was installed ([`Write::base`]), or because the log was compacted
//!   ([`Store::compact`]). Headers, tree hashes, certificates and the bodies of all but proposals and aborts outlive it.
//! - What is derived from committed entries goes through [`Store::archive`], off the commit path.
//!
//! The policy for failures is one sentence: **a failed write or fsync stops the committer for good, with a message that
//! says what to do; it is never retried.**
//!
//! All functions here block; none belongs on an async runtime's threads.

mod archive;
mod below;
mod block;
mod committer;
mod compact;
mod create;
mod disk;
mod error;
mod ground;
mod kept;
mod layout;
mod migrate;
mod read;
mod recovery;
mod snapshots;
mod watermark;

#[cfg(test)]
#[path = "../../migrations/v1.rs"]
mod v1;

#[cfg(test)]
#[path = "../../migrations/v2.rs"]
mod v2;

pub use block::BlockError;
pub use committer::Committer;
pub use compact::Compacted;
pub use error::{
    CommitError, CompactError, CreateError, Damage, DurabilityError, Loss, OpenError, PinError, ReadError,
    SnapshotError, Stopped,
};
pub use migrate::Step;
pub use recovery::{Recovered, Report};
pub use snapshots::{ProvedChunk, SnapshotReader};
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
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

/// Where the store lies within a node's data directory.
pub const STORE_DIR: &str = "store";

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

    /// Starts the thread that makes writes durable. `completed` is called on that thread, with the sequence number up to
    /// which everything submitted is durable, or once with the error after which nothing more will be.
    ///
    /// # Panics
    /// When this store has a committer already, or the system has no thread to give.
    #[must_use]
    pub fn start(&self, completed: impl FnMut(Result<u64, CommitError>) + Send + 'static) -> Committer {
        Committer::start(self.clone(), completed)
    }

    /// Takes committed entries, in order, for tree hashes, headers and the index of proposals. Entries taken before are
    /// passed over. Off the commit path: what it writes is derived again at open if it is lost.
    ///
    /// # Errors
    /// [`ReadError::Gap`] when entries are missing before these, and failures of the disk.
    pub fn archive(&self, entries: &[Arc<Entry>]) -> Result<(), ReadError> {
        read::guarded(|| {
            let mut archive = self.shared.archive();
            for entry in entries.iter().skip_while(|e| e.index().0 <= archive.size()).collect::<Vec<_>>() {
                archive.take(&self.shared.disk, &entry.header, entry.header.encode())?;
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
    pub(crate) fn stall_disk(&self) -> Stalled<'_, ()> {
        Stalled(self.shared.disk.take_turn())
    }

    /// While held, nothing is archived, and so nothing applied.
    pub(crate) fn stall_archive(&self) -> Stalled<'_, impl Sized> {
        Stalled(self.shared.archive())
    }
}

/// What a [`Committer`] is given: a step and its number.
type Numbered = (u64, Write);
