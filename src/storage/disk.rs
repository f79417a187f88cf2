//! The database, the one way to write to it and the one way to make it durable.
//!
//! The database may be exchanged for another with the same contents while it is in use (see [`super::rotate`]). So nobody
//! holds a tree of it: a [`Tree`] stands for whatever is in force, every write goes through [`Disk`], and what is being
//! read stays open until it was read.

use super::error::{DurabilityError, fault};
use super::generation::Place;
use super::layout::{
    BASES, CASTS, CERTIFICATES, HARD, HEADERS, KEPT, LOG, META, POSTINGS, PROPOSALS, SNAPSHOTS, TILES,
};
use crate::limits::MAX_STORED_VALUE;
use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
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
pub(super) struct Trees<T = Tree> {
    pub(super) meta: T,
    pub(super) hard: T,
    pub(super) log: T,
    pub(super) certificates: T,
    pub(super) casts: T,
    pub(super) tiles: T,
    pub(super) headers: T,
    pub(super) proposals: T,
    pub(super) postings: T,
    pub(super) snapshots: T,
    pub(super) kept: T,
    pub(super) bases: T,
}

/// How many trees there are.
pub(super) const TREES: usize = 12;

impl<T> Trees<T> {
    fn make<E>(mut tree: impl FnMut(&'static str) -> Result<T, E>) -> Result<Self, E> {
        Ok(Self {
            meta: tree(META)?,
            hard: tree(HARD)?,
            log: tree(LOG)?,
            certificates: tree(CERTIFICATES)?,
            casts: tree(CASTS)?,
            tiles: tree(TILES)?,
            headers: tree(HEADERS)?,
            proposals: tree(PROPOSALS)?,
            postings: tree(POSTINGS)?,
            snapshots: tree(SNAPSHOTS)?,
            kept: tree(KEPT)?,
            bases: tree(BASES)?,
        })
    }

    /// All of them with their names, in an order that never changes while the program runs.
    pub(super) fn all(&self) -> [(&'static str, &T); TREES] {
        [
            (META, &self.meta),
            (HARD, &self.hard),
            (LOG, &self.log),
            (CERTIFICATES, &self.certificates),
            (CASTS, &self.casts),
            (TILES, &self.tiles),
            (HEADERS, &self.headers),
            (PROPOSALS, &self.proposals),
            (POSTINGS, &self.postings),
            (SNAPSHOTS, &self.snapshots),
            (KEPT, &self.kept),
            (BASES, &self.bases),
        ]
    }
}

impl Trees<sled::Tree> {
    /// Opens all trees, making those that are missing.
    pub(super) fn open(db: &sled::Db) -> io::Result<Self> {
        Self::make(|name| db.open_tree(name).map_err(fault))
    }
}

/// One tree of the database in force.
#[derive(Debug)]
pub(super) struct Tree {
    /// Its place in [`Trees::all`].
    number: usize,
    now: RwLock<Held>,
}

#[derive(Clone, Debug)]
struct Held {
    tree: sled::Tree,
    /// A clone of its database's [`Database::users`].
    user: Arc<()>,
}

impl Tree {
    fn new(number: usize, tree: sled::Tree, user: Arc<()>) -> Self {
        Self { number, now: RwLock::new(Held { tree, user }) }
    }

    fn now(&self) -> Held {
        self.now.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn get(&self, key: impl AsRef<[u8]>) -> sled::Result<Option<sled::IVec>> {
        self.now().tree.get(key)
    }

    pub(super) fn get_lt(&self, key: impl AsRef<[u8]>) -> sled::Result<Option<Row>> {
        self.now().tree.get_lt(key)
    }

    pub(super) fn get_gt(&self, key: impl AsRef<[u8]>) -> sled::Result<Option<Row>> {
        self.now().tree.get_gt(key)
    }

    pub(super) fn first(&self) -> sled::Result<Option<Row>> {
        self.now().tree.first()
    }

    pub(super) fn last(&self) -> sled::Result<Option<Row>> {
        self.now().tree.last()
    }

    pub(super) fn iter(&self) -> Rows {
        let Held { tree, user } = self.now();
        Rows { rows: tree.iter(), _user: user }
    }

    pub(super) fn range<K: AsRef<[u8]>>(&self, range: impl std::ops::RangeBounds<K>) -> Rows {
        let Held { tree, user } = self.now();
        Rows { rows: tree.range(range), _user: user }
    }
}

/// A key and its value.
pub(super) type Row = (sled::IVec, sled::IVec);

/// Rows of a tree, in order. They come from the database that was in force when this began; since then it may have been
/// exchanged for another.
pub(super) struct Rows {
    rows: sled::Iter,
    _user: Arc<()>,
}

impl Iterator for Rows {
    type Item = sled::Result<Row>;

    fn next(&mut self) -> Option<Self::Item> {
        self.rows.next()
    }
}

impl DoubleEndedIterator for Rows {
    fn next_back(&mut self) -> Option<Self::Item> {
        self.rows.next_back()
    }
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

/// A sled database with its trees.
#[derive(Debug)]
pub(super) struct Database {
    db: sled::Db,
    /// sled's data file, held open as long as the database: an fsync failure is reported once per descriptor, so one
    /// opened later could miss it.
    data: File,
    pub(super) place: Place,
    /// Cloned by whoever reads from it.
    pub(super) users: Arc<()>,
}

impl Database {
    pub(super) fn new(place: Place, db: sled::Db) -> io::Result<Self> {
        let data = File::options().read(true).write(true).open(place.dir().join(DATA))?;
        Ok(Self { db, data, place, users: Arc::new(()) })
    }

    /// Everything written to it before this call is on the disk when it returns `Ok`.
    ///
    /// sled's `flush` alone is no fsync on Linux (`pwrite` and `sync_file_range`: no device flush, no file size), so a
    /// true `fdatasync` follows.
    pub(super) fn make_durable(&self) -> Result<(), DurabilityError> {
        self.db.flush().map_err(|e| DurabilityError::Write { source: fault(e) })?;
        self.data.sync_data().map_err(|source| DurabilityError::Sync { source })
    }
}

/// What is written while the database is being copied.
#[derive(Debug)]
pub(super) struct Noted {
    keys: Mutex<Keys>,
    bound: usize,
}

/// Numbers of trees (see [`Trees::all`]) with keys.
pub(super) type Keys = HashSet<(usize, Box<[u8]>)>;

impl Noted {
    fn note(&self, tree: usize, key: &[u8]) {
        let mut keys = self.keys();
        // One beyond the bound tells that there were too many.
        if keys.len() <= self.bound {
            keys.insert((tree, key.into()));
        }
    }

    fn keys(&self) -> MutexGuard<'_, Keys> {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn len(&self) -> usize {
        self.keys().len()
    }

    /// Takes what was noted so far; `None` when it was too much.
    pub(super) fn take(&self) -> Option<Keys> {
        let mut keys = self.keys();
        if keys.len() > self.bound { None } else { Some(std::mem::take(&mut *keys)) }
    }
}

/// An open store's database, directory and lock. Fields are dropped in this order: the lock goes last.
#[derive(Debug)]
pub(super) struct Disk {
    pub(super) trees: Trees,
    /// In force. Held by whoever makes it durable, one at a time.
    turn: Mutex<Database>,
    /// Where that is.
    place: RwLock<Place>,
    /// Held for reading while a record is written, and for writing while the database is exchanged. What it guards: what
    /// is written, while somebody copies the database.
    gate: RwLock<Option<Noted>>,
    /// Bytes of keys and values by which the records have grown since the store was opened.
    grown: AtomicI64,
    /// Bytes of keys and values when it was opened, once somebody knows.
    weighed: Mutex<Option<i64>>,
    /// The store's directory: the watermark's, and that in which the databases lie.
    pub(super) dir: PathBuf,
    pub(super) dir_handle: File,
    broken: AtomicBool,
    _lock: File,
}

impl Disk {
    pub(super) fn new(dir: &Path, database: Database, trees: Trees<sled::Tree>, lock: File) -> io::Result<Self> {
        let all = trees.all().map(|(name, tree)| (name, tree.clone()));
        let number = |name| all.iter().position(|(of, _)| *of == name).expect("every tree is among all");
        let tree = |name| {
            let number = number(name);
            Ok::<_, io::Error>(Tree::new(number, all[number].1.clone(), database.users.clone()))
        };
        Ok(Self {
            trees: Trees::make(tree)?,
            place: RwLock::new(database.place.clone()),
            turn: Mutex::new(database),
            gate: RwLock::new(None),
            grown: AtomicI64::new(0),
            weighed: Mutex::new(None),
            dir: dir.to_owned(),
            dir_handle: File::open(dir)?,
            broken: AtomicBool::new(false),
            _lock: lock,
        })
    }

    /// Everything written to the database before this call is on the disk when it returns `Ok`.
    ///
    /// Callers take turns and judge `broken` inside their turn: the kernel reports a failure once per descriptor, and
    /// whoever did not see it must not take the next success for an answer.
    pub(super) fn make_durable(&self) -> Result<(), DurabilityError> {
        let database = self.take_turn();
        self.check()?;
        database.make_durable().inspect_err(|_| self.break_down())
    }

    pub(super) fn take_turn(&self) -> MutexGuard<'_, Database> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes one record.
    pub(super) fn insert(&self, tree: &Tree, key: &[u8], value: &[u8]) -> Result<(), DurabilityError> {
        // Beyond this bound sled puts a value into a file of its own that it never makes durable.
        assert!(value.len() <= MAX_STORED_VALUE, "a value of {} bytes would not be durable", value.len());
        self.write(tree, key, |now| {
            let before = now.insert(key, value)?;
            Ok((weight(key, Some(value)) - weight(key, before.as_deref()), ()))
        })
    }

    /// Removes one record.
    pub(super) fn remove(&self, tree: &Tree, key: &[u8]) -> Result<(), DurabilityError> {
        self.write(tree, key, |now| Ok((-weight(key, now.remove(key)?.as_deref()), ())))
    }

    /// Removes one record if it still holds `value`; says whether it did.
    pub(super) fn remove_if(&self, tree: &Tree, key: &[u8], value: &[u8]) -> Result<bool, DurabilityError> {
        self.write(tree, key, |now| {
            let removed = now.compare_and_swap(key, Some(value), None::<&[u8]>)?.is_ok();
            Ok((if removed { -weight(key, Some(value)) } else { 0 }, removed))
        })
    }

    fn write<T>(
        &self,
        tree: &Tree,
        key: &[u8],
        write: impl FnOnce(&sled::Tree) -> sled::Result<(i64, T)>,
    ) -> Result<T, DurabilityError> {
        let gate = self.gate.read().unwrap_or_else(PoisonError::into_inner);
        self.check()?;
        let (grown, done) = write(&tree.now().tree).map_err(|e| {
            self.break_down();
            DurabilityError::Write { source: fault(e) }
        })?;
        self.grown.fetch_add(grown, Ordering::Relaxed);
        // After it is written, so that whoever takes the note finds it; and before the gate may close.
        if let Some(noted) = gate.as_ref() {
            noted.note(tree.number, key);
        }
        Ok(done)
    }

    pub(super) fn check(&self) -> Result<(), DurabilityError> {
        if self.broken.load(Ordering::Acquire) { Err(DurabilityError::Stopped) } else { Ok(()) }
    }

    /// From here on nothing is written and nothing is made durable.
    pub(super) fn break_down(&self) {
        self.broken.store(true, Ordering::Release);
    }

    /// From here on the keys of all records that are written are noted, up to one more than `bound`; `false` when somebody
    /// has that done already.
    pub(super) fn note_writes(&self, bound: usize) -> bool {
        let mut gate = self.gate.write().unwrap_or_else(PoisonError::into_inner);
        let free = gate.is_none();
        if free {
            *gate = Some(Noted { keys: Mutex::default(), bound });
        }
        free
    }

    /// Forgets what was noted, and notes no more.
    pub(super) fn stop_noting(&self) {
        *self.gate.write().unwrap_or_else(PoisonError::into_inner) = None;
    }

    pub(super) fn noted(&self) -> RwLockReadGuard<'_, Option<Noted>> {
        self.gate.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nothing is written and nothing made durable while this is held.
    pub(super) fn halt_writes(&self) -> Exclusive<'_> {
        let gate = self.gate.write().unwrap_or_else(PoisonError::into_inner);
        Exclusive { disk: self, gate, turn: self.take_turn() }
    }

    /// Where the database in force lies.
    pub(super) fn place(&self) -> Place {
        self.place.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Bytes of keys and values, about, once they were weighed.
    pub(super) fn live(&self) -> Option<u64> {
        let weighed = *self.weighed.lock().unwrap_or_else(PoisonError::into_inner);
        weighed.map(|before| u64::try_from(before.saturating_add(self.grown())).unwrap_or(0))
    }

    pub(super) fn grown(&self) -> i64 {
        self.grown.load(Ordering::Relaxed)
    }

    /// Says that the records weighed `bytes` when they had grown by `grown`.
    pub(super) fn set_weight(&self, bytes: u64, grown: i64) {
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        *self.weighed.lock().unwrap_or_else(PoisonError::into_inner) = Some(bytes.saturating_sub(grown));
    }
}

fn weight(key: &[u8], value: Option<&[u8]>) -> i64 {
    value.map_or(0, |value| i64::try_from(key.len() + value.len()).unwrap_or(i64::MAX))
}

/// The right to exchange the database.
pub(super) struct Exclusive<'a> {
    disk: &'a Disk,
    gate: RwLockWriteGuard<'a, Option<Noted>>,
    turn: MutexGuard<'a, Database>,
}

impl Exclusive<'_> {
    /// How much was noted since it was last taken.
    pub(super) fn count(&self) -> usize {
        self.gate.as_ref().map_or(0, Noted::len)
    }

    /// What was noted since it was last taken; `None` when it was too much.
    pub(super) fn noted(&self) -> Option<Keys> {
        self.gate.as_ref().and_then(Noted::take)
    }

    /// Puts another database in force, which holds the same records, durably. Returns the former one, which stays open for
    /// those who read from it.
    pub(super) fn exchange(mut self, next: Database, trees: &Trees<sled::Tree>) -> Former {
        let slots = self.disk.trees.all().into_iter().zip(trees.all());
        let held = slots.map(|((_, slot), (_, tree))| {
            let held = Held { tree: tree.clone(), user: next.users.clone() };
            std::mem::replace(&mut *slot.now.write().unwrap_or_else(PoisonError::into_inner), held)
        });
        let held = held.collect();
        *self.gate = None;
        *self.disk.place.write().unwrap_or_else(PoisonError::into_inner) = next.place.clone();
        Former { held, database: std::mem::replace(&mut *self.turn, next) }
    }
}

/// A database that is not in force any more.
pub(super) struct Former {
    held: Vec<Held>,
    database: Database,
}

impl Former {
    /// Closes it if nobody reads from it any more.
    pub(super) fn close(mut self) -> Result<(), Self> {
        self.held.clear();
        if Arc::strong_count(&self.database.users) > 1 { Err(self) } else { Ok(()) }
    }
}
