//! Rotation: the records move to a fresh database, and the disk gets back what the old one took and did not need.
//!
//! A database gives no space back that its deleted records took. So everything is copied into a new one beside it, in
//! small durable pieces, while the node goes on: what is written meanwhile is noted by its key, and copied again. When
//! little is left, writers are held up for as long as it takes to copy that, to make the new database durable, and to
//! rename the file that says which one is in force (see [`super::generation`]); from then on reads and writes go to the
//! new one, and the old one is removed as soon as nobody reads from it.
//!
//! # Why a crash at any instant leaves a valid store
//!
//! - Until the rename is durable, the store is the old database, which is written to as ever. What was acknowledged is in
//!   it. Half a new database is no part of the store.
//! - The rename happens while no record is being written, when the new database holds exactly what the old one holds, and
//!   all of it is durable: records, parameters, directory, and the directory's name. So whichever of the two a crash
//!   brings back, it holds everything acknowledged, and nothing was acknowledged since.
//! - Nothing is written to the new one before the rename is durable, and nothing of the old one is removed before.
//!
//! A failure before the rename costs nothing: the new database is removed and the node goes on with the old one. From the
//! rename on, nobody can tell which of the two the next start would find, so a failure there stops the store for good.

use super::create::{restrict, sync_tree};
use super::disk::{Database, Former, Keys, Noted, TREES, Trees, open_database};
use super::error::{DurabilityError, RotateError, fault};
use super::generation::Place;
use super::ground::Ground;
use super::layout::{BASES, LOG, number_key, read_part_key};
use super::read::guard;
use super::{Shared, Store};
use crate::limits::MAX_STORED_VALUE;
use sha2::{Digest as _, Sha256};
use std::io;
use std::ops::Bound;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

/// Bytes of records that one step copies or reads back; what is copied is made durable.
const STEP: usize = 1024 * 1024;
/// Records written meanwhile, after which a step copies them again.
const NOTED: usize = 1024;
/// Most records written meanwhile that may wait: a few dozen megabytes of keys.
const MAX_NOTED: usize = 262_144;
/// Few enough to be copied while writers wait, and how often to try to come to that.
const FEW: usize = 64;
const ROUNDS: usize = 32;
/// Most that is copied while writers wait; when they always write more, the rotation is given up.
const MANY: usize = 512;
/// Bytes that a rotation leaves free on the disk: the log must not run out of room for a copy of it.
const RESERVE: u64 = 256 * 1024 * 1024;

/// A rotation under way. Dropped before it is done, it is as if it had never been.
pub struct Rotation {
    shared: Arc<Shared>,
    ground: Arc<Ground>,
    stage: Stage,
    next: Option<Next>,
    former: Option<Former>,
    /// Bytes of records copied and read back so far.
    moved: u64,
    done: Rotated,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Copy,
    Reopen,
    Check,
    Switch,
    /// The new database is in force.
    Clear,
    /// It is not, and will not be; or nobody knows.
    Over,
}

/// What a step of a rotation did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RotationStep {
    /// It moved this many bytes, and there is more to do.
    Moved(u64),
    /// The new database is in force; somebody still reads from the old one, so its files are still there. Ask again in a
    /// moment.
    Waiting,
    /// All is done.
    Done(Rotated),
}

/// What a rotation brought.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rotated {
    /// Bytes that the database's files took before.
    pub before: u64,
    /// Bytes that they take now.
    pub after: u64,
    /// Records in it.
    pub records: u64,
    /// How long writers were held up.
    pub pause: Duration,
}

impl Store {
    /// Begins to move the records to a fresh database. The caller takes the steps, in its own time, from one thread.
    ///
    /// # Errors
    /// [`RotateError::UnderWay`], and failures of the disk; the store is as it was.
    pub fn rotate(&self) -> Result<Rotation, RotateError> {
        guard(|| {
            let shared = self.shared.clone();
            let space = self.space()?;
            let before = space.file;
            let needed = space.live.unwrap_or(before).saturating_add(RESERVE);
            let available = available(&shared.disk.dir).map_err(next_refuses)?;
            if available < needed {
                return Err(RotateError::NoRoom { available, needed });
            }
            // No ground is being put down while this is held: whatever is not in force now is dead or will be noted.
            let grounding = shared.grounding.lock().unwrap_or_else(PoisonError::into_inner);
            shared.disk.check()?;
            if !shared.disk.note_writes(MAX_NOTED) {
                return Err(RotateError::UnderWay);
            }
            let ground = shared.ground();
            drop(grounding);
            let mut rotation = Rotation {
                ground,
                stage: Stage::Copy,
                next: None,
                former: None,
                moved: 0,
                done: Rotated { before, ..Rotated::default() },
                shared,
            };
            let place = rotation.shared.disk.place().next(&rotation.shared.disk.dir);
            place.make().and_then(|()| restrict(place.dir())).map_err(next_refuses)?;
            rotation.next = Some(Next::open(place)?);
            Ok(rotation)
        })
    }
}

/// Bytes that this process may still write to the file system of a directory.
fn available(dir: &Path) -> io::Result<u64> {
    let system = rustix::fs::statvfs(dir)?;
    Ok(system.f_bavail.saturating_mul(system.f_frsize))
}

impl Rotation {
    /// One bounded step: about a megabyte, and what was written meanwhile. `clock` is any that never runs backwards; it
    /// measures how long writers are held up.
    ///
    /// # Errors
    /// [`RotateError`]. After [`RotateError::Durability`] the store takes no more writes; after any other one the rotation
    /// is over, and the store goes on with the database that it has.
    pub fn step(&mut self, clock: impl Fn() -> Duration) -> Result<RotationStep, RotateError> {
        let moved = self.moved;
        let stepped = guard(|| match self.stage {
            Stage::Copy => self.copy(),
            Stage::Reopen => self.reopen(),
            Stage::Check => self.check(),
            Stage::Switch => self.switch(&clock),
            Stage::Clear => Ok(()),
            Stage::Over => Err(RotateError::Over),
        });
        if let Err(why) = stepped {
            self.give_up();
            return Err(why);
        }
        if self.stage == Stage::Clear { self.clear() } else { Ok(RotationStep::Moved(self.moved - moved)) }
    }

    /// Bytes of records copied and read back so far; each is moved twice.
    #[must_use]
    pub fn moved(&self) -> u64 {
        self.moved
    }

    fn next(&mut self) -> Result<&mut Next, RotateError> {
        self.next.as_mut().ok_or(RotateError::Over)
    }

    /// Copies the next records.
    fn copy(&mut self) -> Result<(), RotateError> {
        let shared = self.shared.clone();
        let ground = self.ground.clone();
        let next = self.next()?;
        let all = shared.disk.trees.all();
        let Some((name, tree)) = all.get(next.tree) else {
            self.stage = Stage::Reopen;
            return Ok(());
        };
        // Each step begins to read anew: rows that were read before another step wrote them again would be stale.
        let mut rows = Vec::new();
        let (mut step, mut more) = (0, false);
        for row in tree.range::<&[u8]>((next.after(), Bound::Unbounded)) {
            let (key, value) = row?;
            step += key.len() + value.len();
            rows.push((key, value));
            if step >= STEP {
                more = true;
                break;
            }
        }
        let last = rows.last().map(|(key, _)| key.to_vec());
        for (key, value) in rows {
            if !is_dead(name, &key, &ground) {
                next.put(next.tree, &key, Some(&value))?;
            }
        }
        next.make_durable()?;
        next.advance(last.filter(|_| more));
        self.moved += step as u64;
        self.catch_up_if_due()
    }

    fn catch_up_if_due(&mut self) -> Result<(), RotateError> {
        let noted = self.shared.disk.noted().as_ref().map_or(0, Noted::len);
        if noted >= NOTED { self.catch_up().map(drop) } else { Ok(()) }
    }

    /// Copies again what was written since it was last done; says how many records that were.
    fn catch_up(&mut self) -> Result<usize, RotateError> {
        let keys = self.shared.disk.noted().as_ref().and_then(Noted::take);
        let keys = keys.ok_or(RotateError::Outrun { bound: MAX_NOTED })?;
        self.copy_again(keys)
    }

    fn copy_again(&mut self, keys: Keys) -> Result<usize, RotateError> {
        let shared = self.shared.clone();
        let trees = shared.disk.trees.all();
        let next = self.next()?;
        let count = keys.len();
        for (number, key) in keys {
            let value = trees[number].1.get(&key)?;
            next.put(number, &key, value.as_deref())?;
        }
        next.make_durable()?;
        Ok(count)
    }

    /// Closes the new database and opens it again, as the next start will: what is read back afterwards went through its
    /// files.
    fn reopen(&mut self) -> Result<(), RotateError> {
        let Next { database, trees, written, .. } = self.next.take().ok_or(RotateError::Over)?;
        let place = database.place.clone();
        drop((trees, database));
        let next = self.next.insert(Next::open(place)?);
        next.written = written;
        next.read = Some(Default::default());
        self.stage = Stage::Check;
        Ok(())
    }

    /// Reads the next records back.
    fn check(&mut self) -> Result<(), RotateError> {
        let next = self.next()?;
        let number = next.tree;
        if number == TREES {
            next.compare()?;
            self.stage = Stage::Switch;
            return Ok(());
        }
        let (mut step, mut last) = (0, None);
        let from = next.after();
        let mut tally = Tally::default();
        for row in next.trees.all()[number].1.range::<&[u8], _>((from, Bound::Unbounded)) {
            let (key, value) = row.map_err(|e| next_refuses(fault(e)))?;
            step += key.len() + value.len();
            tally.add(&key, &value);
            if step >= STEP {
                last = Some(key.to_vec());
                break;
            }
        }
        if let Some(read) = &mut next.read {
            read[number].join(&tally);
        }
        next.advance(last);
        self.moved += step as u64;
        self.catch_up_if_due()
    }

    /// Catches up with the writers, stops them, and puts the new database in force.
    fn switch(&mut self, clock: &impl Fn() -> Duration) -> Result<(), RotateError> {
        let shared = self.shared.clone();
        let disk = &shared.disk;
        let place = self.next()?.database.place.clone();
        if place.has_blobs().map_err(next_refuses)? {
            return Err(RotateError::Blobs);
        }
        // sled syncs neither its parameters nor any directory.
        sync_tree(place.dir()).map_err(next_refuses)?;
        disk.dir_handle.sync_all().map_err(next_refuses)?;
        place.announce(&disk.dir).map_err(next_refuses)?;

        let mut rounds = 0..ROUNDS;
        let (began, exclusive) = loop {
            rounds.next().ok_or(RotateError::Outrun { bound: MANY })?;
            if self.catch_up()? > FEW {
                continue;
            }
            let began = clock();
            let exclusive = disk.halt_writes();
            if exclusive.count() <= MANY {
                break (began, exclusive);
            }
        };
        let keys = exclusive.noted().ok_or(RotateError::Outrun { bound: MAX_NOTED })?;
        self.copy_again(keys)?;
        disk.check()?;
        let next = self.next.take().ok_or(RotateError::Over)?;
        // From here on nobody knows which database a start would find, until the directory is fsynced: so neither is
        // removed, and a failure is one of the store.
        self.stage = Stage::Over;
        Place::put_in_force(&disk.dir, &disk.dir_handle).map_err(|source| {
            disk.break_down();
            DurabilityError::Sync { source }
        })?;
        let (records, bytes) = next.totals();
        disk.set_weight(bytes, disk.grown());
        self.former = Some(exclusive.exchange(next.database, &next.trees));
        self.stage = Stage::Clear;
        (self.done.records, self.done.pause) = (records, clock().saturating_sub(began));
        Ok(())
    }

    /// Removes the old database once nobody reads from it.
    fn clear(&mut self) -> Result<RotationStep, RotateError> {
        let disk = &self.shared.disk;
        if let Some(former) = self.former.take() {
            // Closing writes to a database that nobody needs: whatever comes of it changes nothing.
            let closed = catch_unwind(AssertUnwindSafe(|| former.close()));
            if let Ok(Err(former)) = closed {
                self.former = Some(former);
                return Ok(RotationStep::Waiting);
            }
        }
        let place = disk.place();
        place.clear_others(&disk.dir, &disk.dir_handle).map_err(|source| RotateError::Former { source })?;
        self.done.after = place.bytes().map_err(|source| RotateError::Former { source })?;
        Ok(RotationStep::Done(self.done))
    }

    /// Removes what there is of the new database, unless it is in force or may be.
    fn give_up(&mut self) {
        if matches!(self.stage, Stage::Clear | Stage::Over) {
            return;
        }
        self.stage = Stage::Over;
        let disk = &self.shared.disk;
        disk.stop_noting();
        if let Some(next) = self.next.take() {
            // Closing it writes to it, which may fail as well.
            drop(catch_unwind(AssertUnwindSafe(|| drop(next))));
        }
        let place = disk.place().next(&disk.dir);
        if let Err(why) = place.abandon(&disk.dir) {
            tracing::warn!(dir = %place.dir().display(), %why, "a database that was given up cannot be removed; the next start tries again");
        }
    }
}

impl Drop for Rotation {
    fn drop(&mut self) {
        self.give_up();
    }
}

impl std::fmt::Debug for Rotation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Rotation").field("stage", &self.stage).field("moved", &self.moved).finish_non_exhaustive()
    }
}

fn next_refuses(source: io::Error) -> RotateError {
    RotateError::Next { source }
}

/// Whether a record stands for nothing any more, and only waits to be deleted.
fn is_dead(tree: &str, key: &[u8], ground: &Ground) -> bool {
    match tree {
        LOG => key <= &number_key(ground.index().0)[..],
        BASES => read_part_key(key).is_ok_and(|(index, _)| index != ground.index()),
        _ => false,
    }
}

/// The database that is to be in force.
struct Next {
    // Dropped in this order.
    trees: Trees<sled::Tree>,
    database: Database,
    /// What it must hold, by tree.
    written: [Tally; TREES],
    /// What was read back of it, while that is under way.
    read: Option<[Tally; TREES]>,
    /// How far it was copied, or read back: the tree, and the last key.
    tree: usize,
    key: Option<Vec<u8>>,
    unsynced: usize,
}

impl Next {
    /// Opens what is in a directory, or begins it.
    fn open(place: Place) -> Result<Self, RotateError> {
        let db = open_database(place.dir()).map_err(next_refuses)?;
        let trees = Trees::open(&db).map_err(next_refuses)?;
        let database = Database::new(place, db).map_err(next_refuses)?;
        Ok(Self { trees, database, written: Default::default(), read: None, tree: 0, key: None, unsynced: 0 })
    }

    fn after(&self) -> Bound<&[u8]> {
        self.key.as_deref().map_or(Bound::Unbounded, Bound::Excluded)
    }

    /// What comes next: after a key of the present tree, or another tree.
    fn advance(&mut self, last: Option<Vec<u8>>) {
        self.tree += usize::from(last.is_none());
        self.key = last;
    }

    fn passed(&self, number: usize, key: &[u8]) -> bool {
        number < self.tree || number == self.tree && self.key.as_deref().is_some_and(|last| key <= last)
    }

    /// Has a record be `value`, or not be.
    fn put(&mut self, number: usize, key: &[u8], value: Option<&[u8]>) -> Result<(), RotateError> {
        let tree = self.trees.all()[number].1;
        let before = match value {
            // sled does not make such a one durable.
            Some(value) if value.len() > MAX_STORED_VALUE => return Err(RotateError::Blobs),
            Some(value) => tree.insert(key, value),
            None => tree.remove(key),
        };
        let before = before.map_err(|e| next_refuses(fault(e)))?;
        let passed = self.passed(number, key);
        let read = self.read.as_mut().filter(|_| passed).map(|read| &mut read[number]);
        for tally in std::iter::once(&mut self.written[number]).chain(read) {
            before.iter().for_each(|before| tally.take(key, before));
            value.iter().for_each(|value| tally.add(key, value));
        }
        self.unsynced += value.map_or(0, <[u8]>::len);
        if self.unsynced >= STEP { self.make_durable() } else { Ok(()) }
    }

    fn make_durable(&mut self) -> Result<(), RotateError> {
        self.unsynced = 0;
        self.database.make_durable().map_err(|why| match why {
            DurabilityError::Write { source } | DurabilityError::Sync { source } => next_refuses(source),
            other => next_refuses(io::Error::other(other)),
        })
    }

    /// Whether everything that was written was read back.
    fn compare(&mut self) -> Result<(), RotateError> {
        let read = self.read.take().unwrap_or_default();
        let names = self.trees.all().map(|(name, _)| name);
        match (0..TREES).find(|&number| read[number] != self.written[number]) {
            Some(number) => Err(RotateError::Differs { tree: names[number] }),
            None => Ok(()),
        }
    }

    /// Records, and bytes of their keys and values.
    fn totals(&self) -> (u64, u64) {
        self.written.iter().fold((0, 0), |(records, bytes), t| (records + t.records, bytes + t.bytes))
    }
}

/// What records there are, in any order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Tally {
    records: u64,
    bytes: u64,
    /// The sum of the hashes of all.
    sum: u128,
}

impl Tally {
    fn add(&mut self, key: &[u8], value: &[u8]) {
        self.records += 1;
        self.bytes += (key.len() + value.len()) as u64;
        self.sum = self.sum.wrapping_add(hash(key, value));
    }

    fn take(&mut self, key: &[u8], value: &[u8]) {
        self.records -= 1;
        self.bytes -= (key.len() + value.len()) as u64;
        self.sum = self.sum.wrapping_sub(hash(key, value));
    }

    fn join(&mut self, other: &Self) {
        self.records += other.records;
        self.bytes += other.bytes;
        self.sum = self.sum.wrapping_add(other.sum);
    }
}

fn hash(key: &[u8], value: &[u8]) -> u128 {
    let mut hasher = Sha256::new();
    hasher.update((key.len() as u64).to_be_bytes());
    hasher.update(key);
    hasher.update(value);
    let digest: [u8; 32] = hasher.finalize().into();
    let (first, _) = digest.split_first_chunk().expect("a hash is longer than that");
    u128::from_be_bytes(*first)
}
