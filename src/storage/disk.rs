//! The database and the one way to make it durable.

use super::error::{DurabilityError, fault};
use super::layout::{BASES, CASTS, CERTIFICATES, HARD, HEADERS, KEPT, LOG, META, PROPOSALS, SNAPSHOTS, TILES};
use crate::limits::MAX_STORED_VALUE;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Bytes in a sled segment. Fixed when a store is created; a value is durable only up to a small part of it.
const SEGMENT: usize = 8 * 1024 * 1024;
/// Bytes of sled's page cache.
const CACHE: u64 = 64 * 1024 * 1024;
/// How often sled's own thread flushes and collects space, milliseconds. It must stay on: it is the only collector.
const FLUSH_EVERY_MS: u64 = 500;

const _: () = assert!(MAX_STORED_VALUE <= SEGMENT / 80);

/// What sled 0.34.7 says when its data file is locked; it tells by no kind or code.
const LOCKED: &str = "could not acquire lock";

/// sled's data file.
pub(super) const DATA: &str = "db";
/// sled's parameters.
pub(super) const CONF: &str = "conf";
/// Where sled puts values that it does not make durable.
pub(super) const BLOBS: &str = "blobs";
/// Held locked while a store is open.
pub(super) const LOCK: &str = "lock";

/// Every tree of [`super::layout::TABLE`].
#[derive(Debug)]
pub(super) struct Trees {
    pub(super) meta: sled::Tree,
    pub(super) hard: sled::Tree,
    pub(super) log: sled::Tree,
    pub(super) certificates: sled::Tree,
    pub(super) casts: sled::Tree,
    pub(super) tiles: sled::Tree,
    pub(super) headers: sled::Tree,
    pub(super) proposals: sled::Tree,
    pub(super) snapshots: sled::Tree,
    pub(super) kept: sled::Tree,
    pub(super) bases: sled::Tree,
}

/// Looks at a data file that is still locked, and the pause between two: ten seconds in all.
const LOOKS: u32 = 2_000;
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// Opens sled in `dir`. The caller holds [`LOCK`], so if sled's own lock on its data file is still held, it is by what a
/// closed store of this very process left behind: sled's writer threads drop their last handle a moment after the
/// database is dropped, and a child process that is being started holds it until its `exec`. Both end by themselves.
pub(super) fn open_database(dir: &Path) -> io::Result<sled::Db> {
    let config =
        sled::Config::new().path(dir).segment_size(SEGMENT).cache_capacity(CACHE).flush_every_ms(Some(FLUSH_EVERY_MS));
    let mut result = config.open().map_err(fault);
    for _ in 1..LOOKS {
        if !result.as_ref().is_err_and(|e| e.to_string().contains(LOCKED)) {
            break;
        }
        std::thread::sleep(LOOK_EVERY);
        result = config.open().map_err(fault);
    }
    result
}

impl Trees {
    /// Opens all trees, making those that are missing.
    pub(super) fn open(db: &sled::Db) -> io::Result<Self> {
        let tree = |name| db.open_tree(name).map_err(fault);
        Ok(Self {
            meta: tree(META)?,
            hard: tree(HARD)?,
            log: tree(LOG)?,
            certificates: tree(CERTIFICATES)?,
            casts: tree(CASTS)?,
            tiles: tree(TILES)?,
            headers: tree(HEADERS)?,
            proposals: tree(PROPOSALS)?,
            snapshots: tree(SNAPSHOTS)?,
            kept: tree(KEPT)?,
            bases: tree(BASES)?,
        })
    }
}

/// An open database. Fields are dropped in this order: the lock goes last.
#[derive(Debug)]
pub(super) struct Disk {
    pub(super) trees: Trees,
    db: sled::Db,
    /// sled's data file, held open for the life of the store: an fsync failure is reported once per descriptor, so one
    /// opened later could miss it.
    data: File,
    pub(super) dir: PathBuf,
    pub(super) dir_handle: File,
    turn: Mutex<()>,
    broken: AtomicBool,
    _lock: File,
}

impl Disk {
    pub(super) fn new(dir: &Path, db: sled::Db, trees: Trees, lock: File) -> io::Result<Self> {
        Ok(Self {
            trees,
            db,
            data: File::options().read(true).write(true).open(dir.join(DATA))?,
            dir: dir.to_owned(),
            dir_handle: File::open(dir)?,
            turn: Mutex::new(()),
            broken: AtomicBool::new(false),
            _lock: lock,
        })
    }

    /// Everything written to the database before this call is on the disk when it returns `Ok`.
    ///
    /// sled's `flush` alone is no fsync on Linux (`pwrite` and `sync_file_range`: no device flush, no file size), so a
    /// true `fdatasync` follows. Callers take turns and judge `broken` inside their turn: the kernel reports a failure
    /// once per descriptor, and whoever did not see it must not take the next success for an answer.
    pub(super) fn make_durable(&self) -> Result<(), DurabilityError> {
        let _turn = self.take_turn();
        self.check()?;
        if let Err(e) = self.db.flush() {
            self.break_down();
            return Err(DurabilityError::Write { source: fault(e) });
        }
        if let Err(source) = self.data.sync_data() {
            self.break_down();
            return Err(DurabilityError::Sync { source });
        }
        Ok(())
    }

    pub(super) fn take_turn(&self) -> MutexGuard<'_, ()> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes one record.
    pub(super) fn insert(&self, tree: &sled::Tree, key: &[u8], value: &[u8]) -> Result<(), DurabilityError> {
        // Beyond this bound sled puts a value into a file of its own that it never makes durable.
        assert!(value.len() <= MAX_STORED_VALUE, "a value of {} bytes would not be durable", value.len());
        self.write(|| tree.insert(key, value))
    }

    /// Removes one record.
    pub(super) fn remove(&self, tree: &sled::Tree, key: &[u8]) -> Result<(), DurabilityError> {
        self.write(|| tree.remove(key))
    }

    /// Removes one record if it still holds `value`; says whether it did.
    pub(super) fn remove_if(&self, tree: &sled::Tree, key: &[u8], value: &[u8]) -> Result<bool, DurabilityError> {
        let mut removed = false;
        self.write(|| {
            removed = tree.compare_and_swap(key, Some(value), None::<&[u8]>)?.is_ok();
            Ok(())
        })?;
        Ok(removed)
    }

    fn write<T>(&self, write: impl FnOnce() -> sled::Result<T>) -> Result<(), DurabilityError> {
        self.check()?;
        write().map(drop).map_err(|e| {
            self.break_down();
            DurabilityError::Write { source: fault(e) }
        })
    }

    fn check(&self) -> Result<(), DurabilityError> {
        if self.broken.load(Ordering::Acquire) { Err(DurabilityError::Stopped) } else { Ok(()) }
    }

    /// From here on nothing is written and nothing is made durable.
    pub(super) fn break_down(&self) {
        self.broken.store(true, Ordering::Release);
    }
}
