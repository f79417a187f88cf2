//! Images of the applied state, in chunks: staged, filled in any order, complete only when every byte was read back.
//!
//! An image is complete when its record says so, and the record says so only after all chunks are durable and lead to
//! the manifest's `chunks_root`. An image is dropped the other way round: first its record says unfinished, durably, then
//! its chunks go. So after a crash at any instant an image is complete, or goes on being filled or dropped.

use super::Store;
use super::disk::Disk;
use super::error::{ReadError, SnapshotError};
use super::layout::{SNAPSHOTS, number_key, part_key, read_part_key, read_snapshot, seal, unseal, write_snapshot};
use super::read::guard;
use crate::certificate::merkle::{self, Frontier, Nodes, leaf_hash, node_hash};
use crate::certificate::{FormatError, SnapshotManifest};
use crate::ids::{Digest, LogIndex};
use crate::limits::SNAPSHOT_CHUNK;
use std::collections::BTreeMap;
use std::io::{self, Read};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Bytes of chunks written or deleted before that is made durable: well below a segment of the database.
const UNSYNCED: usize = 1024 * 1024;

/// A chunk of an image, and its inclusion path below the manifest's `chunks_root`.
pub type ProvedChunk = (Vec<u8>, Vec<Digest>);

/// The images that there are.
#[derive(Debug, Default)]
pub(super) struct Snapshots {
    known: Mutex<Catalog>,
    /// Held while images are written or dropped: one thread at a time. What it guards: bytes written and not yet durable.
    staging: Mutex<usize>,
    /// The chunk hashes of the image asked for last.
    leaves: Mutex<Option<(SnapshotManifest, Arc<Leaves>)>>,
}

#[derive(Debug, Default)]
struct Catalog {
    images: BTreeMap<LogIndex, (SnapshotManifest, bool)>,
    /// The image that the log is about to rest on: not to be dropped.
    pinned: Option<LogIndex>,
}

impl Snapshots {
    /// Reads the records, not the chunks.
    pub(super) fn load(disk: &Disk) -> Result<Self, ReadError> {
        let wrong = |source| ReadError::Record { tree: SNAPSHOTS, source };
        let tree = &disk.trees.snapshots;
        let mut catalog = Catalog::default();
        let mut row = tree.first()?;
        while let Some((key, value)) = row {
            let (complete, manifest) = read_snapshot(&key, &value).map_err(wrong)?;
            row = tree.get_gt(part_key(manifest.index, u32::MAX))?;
            catalog.images.insert(manifest.index, (manifest, complete));
        }
        Ok(Self { known: Mutex::new(catalog), ..Self::default() })
    }

    fn catalog(&self) -> MutexGuard<'_, Catalog> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn staging(&self) -> MutexGuard<'_, usize> {
        self.staging.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn find(&self, index: LogIndex) -> Option<(SnapshotManifest, bool)> {
        self.catalog().images.get(&index).cloned()
    }

    fn complete_at(&self, index: LogIndex) -> Option<SnapshotManifest> {
        self.find(index).filter(|(_, complete)| *complete).map(|(manifest, _)| manifest)
    }

    /// Complete images with an index from `from` to `to`, newest first.
    pub(super) fn complete(&self, from: LogIndex, to: LogIndex) -> Vec<SnapshotManifest> {
        if from > to {
            return Vec::new();
        }
        let catalog = self.catalog();
        let complete = catalog.images.range(from..=to).rev().filter(|(_, (_, complete))| *complete);
        complete.map(|(_, (manifest, _))| manifest.clone()).collect()
    }

    /// Complete images from `base` on, oldest first.
    pub(super) fn usable(&self, base: LogIndex) -> Vec<SnapshotManifest> {
        let mut all = self.complete(base, LogIndex(u64::MAX));
        all.reverse();
        all
    }

    /// The complete image at `index`, which is not dropped until [`Self::unpin`].
    pub(super) fn pin(&self, index: LogIndex) -> Option<SnapshotManifest> {
        let mut catalog = self.catalog();
        let manifest = catalog.images.get(&index).filter(|(_, complete)| *complete).map(|(m, _)| m.clone())?;
        catalog.pinned = Some(index);
        Some(manifest)
    }

    pub(super) fn unpin(&self) {
        self.catalog().pinned = None;
    }

    /// Puts the record down, not durably yet, and remembers it.
    fn record(&self, disk: &Disk, manifest: &SnapshotManifest, complete: bool) -> Result<(), SnapshotError> {
        let value = write_snapshot(complete, manifest);
        disk.insert(&disk.trees.snapshots, &number_key(manifest.index.0), &value)?;
        self.catalog().images.insert(manifest.index, (manifest.clone(), complete));
        Ok(())
    }

    /// Says durably that an image is not complete.
    pub(super) fn demote(&self, disk: &Disk, manifest: &SnapshotManifest) -> Result<(), SnapshotError> {
        self.leaves.lock().unwrap_or_else(PoisonError::into_inner).take();
        self.record(disk, manifest, false)?;
        Ok(disk.make_durable()?)
    }

    /// Drops an unfinished image.
    fn drop_image(&self, disk: &Disk, index: LogIndex) -> Result<(), SnapshotError> {
        let tree = &disk.trees.snapshots;
        let mut dropped = 0;
        for row in tree.range(part_key(index, 0)..=part_key(index, u32::MAX)) {
            let (key, value) = row?;
            disk.remove(tree, &key)?;
            dropped += value.len();
            if dropped >= UNSYNCED {
                disk.make_durable()?;
                dropped = 0;
            }
        }
        // The record goes last: while there is a chunk, there is a record that says what it is.
        disk.make_durable()?;
        disk.remove(tree, &number_key(index.0))?;
        disk.make_durable()?;
        self.catalog().images.remove(&index);
        Ok(())
    }

    /// Reads every chunk of an image back and judges it against its manifest.
    pub(super) fn check(&self, disk: &Disk, manifest: &SnapshotManifest) -> Result<Vec<Digest>, SnapshotError> {
        let mut leaves = Vec::new();
        let mut tree = Frontier::default();
        let mut bad = Vec::new();
        for number in 0..manifest.chunks() {
            match read_chunk(disk, manifest, number) {
                Ok(chunk) => {
                    let leaf = leaf_hash(&chunk);
                    leaves.push(leaf);
                    tree.push(leaf);
                }
                Err(ReadError::Chunk { .. }) => bad.push(number),
                Err(other) => return Err(other.into()),
            }
        }
        if !bad.is_empty() {
            return Err(SnapshotError::Missing { index: manifest.index, chunks: bad });
        }
        if tree.root() != manifest.chunks_root {
            return Err(SnapshotError::Wrong { index: manifest.index });
        }
        Ok(leaves)
    }
}

/// One chunk, if it is there, undamaged and as long as the manifest says.
fn read_chunk(disk: &Disk, manifest: &SnapshotManifest, number: u32) -> Result<Vec<u8>, ReadError> {
    let damaged = |source| ReadError::Chunk { snapshot: manifest.index, number, source };
    let key = part_key(manifest.index, number);
    let missing = FormatError::Truncated { field: "chunk" };
    let value = disk.trees.snapshots.get(key)?.ok_or_else(|| damaged(missing.clone()))?;
    let chunk = unseal(&key, &value).map_err(damaged)?;
    if chunk.len() == manifest.chunk_len(number) { Ok(chunk.to_vec()) } else { Err(damaged(missing)) }
}

/// The tree over an image's chunks, whole levels in memory.
#[derive(Debug)]
struct Leaves(Vec<Vec<Digest>>);

impl Leaves {
    fn over(leaves: Vec<Digest>) -> Self {
        let mut levels = vec![leaves];
        while let Some(level) = levels.last().filter(|level| level.len() > 1) {
            let above = level.chunks_exact(2).map(|pair| node_hash(&pair[0], &pair[1])).collect();
            levels.push(above);
        }
        Self(levels)
    }
}

impl Nodes for Leaves {
    type Error = ReadError;

    fn node(&self, level: u8, position: u64) -> Result<Digest, ReadError> {
        let found = usize::try_from(position).ok().and_then(|at| self.0.get(usize::from(level))?.get(at));
        found.copied().ok_or(ReadError::Tile { level, position })
    }
}

impl Store {
    /// Begins to take an image, or goes on with it after a restart: the chunks of this very manifest that are there stay.
    /// Any other unfinished image is dropped first, since a node fills one at a time. Returns the chunks that are missing,
    /// as ascending ranges: none of a complete image.
    ///
    /// # Errors
    /// [`SnapshotError::Other`] when a complete image of the same index has another manifest, and failures of the disk.
    pub fn stage(&self, manifest: &SnapshotManifest) -> Result<Vec<Range<u32>>, SnapshotError> {
        guard(|| {
            let (snapshots, disk) = (&self.shared.snapshots, &self.shared.disk);
            let mut unsynced = snapshots.staging();
            match snapshots.find(manifest.index) {
                Some((known, true)) if known == *manifest => return Ok(Vec::new()),
                Some((_, true)) => return Err(SnapshotError::Other { index: manifest.index }),
                _ => {}
            }
            let unfinished: Vec<LogIndex> = {
                let catalog = snapshots.catalog();
                let others = catalog.images.values().filter(|(known, complete)| !complete && known != manifest);
                others.map(|(known, _)| known.index).collect()
            };
            for index in unfinished {
                snapshots.drop_image(disk, index)?;
            }
            if snapshots.find(manifest.index).is_none() {
                snapshots.record(disk, manifest, false)?;
                disk.make_durable()?;
            }
            *unsynced = 0;
            missing(disk, manifest)
        })
    }

    /// Keeps one chunk of the image that is staged. It is durable once [`Store::complete`] says so, and on the way there
    /// about every megabyte; the caller has checked that it belongs to the manifest ([`SnapshotManifest::proves`]).
    ///
    /// # Errors
    /// [`SnapshotError::NotStaged`], [`SnapshotError::Length`], and failures of the disk.
    pub fn put_chunk(&self, manifest: &SnapshotManifest, number: u32, bytes: &[u8]) -> Result<(), SnapshotError> {
        guard(|| {
            let (snapshots, disk) = (&self.shared.snapshots, &self.shared.disk);
            let mut unsynced = snapshots.staging();
            self.demand_staged(manifest)?;
            let length = manifest.chunk_len(number);
            if length == 0 || bytes.len() != length {
                return Err(SnapshotError::Length { number, length: bytes.len(), expected: length });
            }
            let key = part_key(manifest.index, number);
            disk.insert(&disk.trees.snapshots, &key, &seal(&key, bytes))?;
            *unsynced += bytes.len();
            if *unsynced >= UNSYNCED {
                disk.make_durable()?;
                *unsynced = 0;
            }
            Ok(())
        })
    }

    /// Reads the staged image back, checks all of it against the manifest, and says durably that it is complete.
    ///
    /// # Errors
    /// [`SnapshotError::Missing`] names the chunks that are not there or do not read (these are dropped),
    /// [`SnapshotError::Wrong`] says that all read but are others than the manifest says (all are dropped): in both cases
    /// the image is still staged. [`SnapshotError::NotStaged`], and failures of the disk.
    pub fn complete(&self, manifest: &SnapshotManifest) -> Result<(), SnapshotError> {
        guard(|| {
            let (snapshots, disk) = (&self.shared.snapshots, &self.shared.disk);
            let mut unsynced = snapshots.staging();
            if snapshots.complete_at(manifest.index).as_ref() == Some(manifest) {
                return Ok(());
            }
            self.demand_staged(manifest)?;
            disk.make_durable()?;
            *unsynced = 0;
            match snapshots.check(disk, manifest) {
                Ok(_) => {}
                Err(SnapshotError::Missing { index, chunks }) => {
                    for number in &chunks {
                        disk.remove(&disk.trees.snapshots, &part_key(index, *number))?;
                    }
                    disk.make_durable()?;
                    return Err(SnapshotError::Missing { index, chunks });
                }
                Err(SnapshotError::Wrong { index }) => {
                    snapshots.drop_image(disk, index)?;
                    snapshots.record(disk, manifest, false)?;
                    disk.make_durable()?;
                    return Err(SnapshotError::Wrong { index });
                }
                Err(other) => return Err(other),
            }
            // A record that says so after chunks that may not be there: this order is what "complete" means.
            disk.insert(&disk.trees.snapshots, &number_key(manifest.index.0), &write_snapshot(true, manifest))?;
            disk.make_durable()?;
            snapshots.catalog().images.insert(manifest.index, (manifest.clone(), true));
            Ok(())
        })
    }

    fn demand_staged(&self, manifest: &SnapshotManifest) -> Result<(), SnapshotError> {
        let staged = self.shared.snapshots.find(manifest.index);
        if staged.is_some_and(|(known, complete)| !complete && known == *manifest) {
            Ok(())
        } else {
            Err(SnapshotError::NotStaged { index: manifest.index })
        }
    }

    /// The manifests of all complete images, oldest first.
    #[must_use]
    pub fn snapshots(&self) -> Vec<SnapshotManifest> {
        let mut all = self.shared.snapshots.complete(LogIndex::ZERO, LogIndex(u64::MAX));
        all.reverse();
        all
    }

    /// One chunk of a complete image and its inclusion path below the manifest's `chunks_root`; `None` when there is no
    /// such image or chunk. The first question about an image reads all of it once.
    ///
    /// # Errors
    /// [`SnapshotError`].
    pub fn chunk(&self, index: LogIndex, number: u32) -> Result<Option<ProvedChunk>, SnapshotError> {
        guard(|| {
            let snapshots = &self.shared.snapshots;
            let Some(manifest) = snapshots.complete_at(index) else { return Ok(None) };
            if number >= manifest.chunks() {
                return Ok(None);
            }
            let leaves = self.leaves(&manifest)?;
            let chunk = read_chunk(&self.shared.disk, &manifest, number)?;
            let path = merkle::inclusion_path(&*leaves, number.into(), manifest.chunks().into())?;
            Ok(Some((chunk, path)))
        })
    }

    fn leaves(&self, manifest: &SnapshotManifest) -> Result<Arc<Leaves>, SnapshotError> {
        let mut cached = self.shared.snapshots.leaves.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, leaves)) = cached.as_ref().filter(|(of, _)| of == manifest) {
            return Ok(leaves.clone());
        }
        let leaves = Arc::new(Leaves::over(self.shared.snapshots.check(&self.shared.disk, manifest)?));
        *cached = Some((manifest.clone(), leaves.clone()));
        Ok(leaves)
    }

    /// Reads a complete image from its beginning; `None` when there is none at `index`. What was read may be believed once
    /// the end was reached: an image that is not the manifest's ends with an error ([`io::ErrorKind::InvalidData`]).
    #[must_use]
    pub fn snapshot_reader(&self, index: LogIndex) -> Option<SnapshotReader> {
        let manifest = self.shared.snapshots.complete_at(index)?;
        let store = self.clone();
        Some(SnapshotReader { store, manifest, next: 0, tree: Frontier::default(), chunk: Vec::new(), at: 0 })
    }

    /// Drops images with an index below `index`, complete or not, in small durable steps. The newest complete one that
    /// this node could start from stays whatever its index, and so do one that is about to be installed and those that a
    /// [`super::Hold`] names. Returns how
    /// many were dropped.
    ///
    /// # Errors
    /// Failures of the disk.
    pub fn drop_snapshots_below(&self, index: LogIndex) -> Result<u64, SnapshotError> {
        guard(|| {
            let (snapshots, disk) = (&self.shared.snapshots, &self.shared.disk);
            let _turn = snapshots.staging();
            let (base, last) = (self.base(), self.last_index().max(self.base()));
            let below: Vec<SnapshotManifest> = {
                let holds = self.shared.holds.lock();
                let held = |at: &LogIndex| holds.values().any(|(_, images)| images.contains(at));
                let mut catalog = snapshots.catalog();
                let usable = catalog.images.range(base..=last).rev();
                let newest = usable.into_iter().find(|(_, (_, complete))| *complete).map(|(index, _)| *index);
                let pinned = catalog.pinned;
                let doomed = catalog.images.range_mut(..index);
                let doomed = doomed.filter(|(at, _)| Some(**at) != newest && Some(**at) != pinned && !held(at));
                // From here on nobody begins to rely on it.
                doomed
                    .map(|(_, (manifest, complete))| {
                        *complete = false;
                        manifest.clone()
                    })
                    .collect()
            };
            for manifest in &below {
                snapshots.demote(disk, manifest)?;
                snapshots.drop_image(disk, manifest.index)?;
            }
            Ok(below.len() as u64)
        })
    }
}

fn missing(disk: &Disk, manifest: &SnapshotManifest) -> Result<Vec<Range<u32>>, SnapshotError> {
    let wrong = |source| ReadError::Record { tree: SNAPSHOTS, source };
    let mut missing = Vec::new();
    let mut next = 0;
    for row in disk.trees.snapshots.range(part_key(manifest.index, 0)..part_key(manifest.index, manifest.chunks())) {
        let (_, number) = read_part_key(&row?.0).map_err(wrong)?;
        if next < number {
            missing.push(next..number);
        }
        next = number + 1;
    }
    if next < manifest.chunks() {
        missing.push(next..manifest.chunks());
    }
    Ok(missing)
}

/// Reads an image; see [`Store::snapshot_reader`].
#[derive(Debug)]
pub struct SnapshotReader {
    store: Store,
    manifest: SnapshotManifest,
    next: u32,
    /// Over the chunks read.
    tree: Frontier,
    chunk: Vec<u8>,
    at: usize,
}

impl SnapshotReader {
    /// What it reads.
    #[must_use]
    pub fn manifest(&self) -> &SnapshotManifest {
        &self.manifest
    }

    /// The next chunk; `false` at the end of an image that is the manifest's.
    fn advance(&mut self) -> io::Result<bool> {
        if self.next == self.manifest.chunks() {
            if self.tree.root() == self.manifest.chunks_root {
                return Ok(false);
            }
            let wrong = SnapshotError::Wrong { index: self.manifest.index };
            return Err(io::Error::new(io::ErrorKind::InvalidData, wrong));
        }
        let read: Result<Vec<u8>, ReadError> = guard(|| read_chunk(&self.store.shared.disk, &self.manifest, self.next));
        self.chunk = read.map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
        self.tree.push(leaf_hash(&self.chunk));
        (self.next, self.at) = (self.next + 1, 0);
        Ok(true)
    }
}

impl Read for SnapshotReader {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if into.is_empty() || (self.at == self.chunk.len() && !self.advance()?) {
            return Ok(0);
        }
        let rest = &self.chunk[self.at..];
        let count = rest.len().min(into.len());
        into[..count].copy_from_slice(&rest[..count]);
        self.at += count;
        Ok(count)
    }
}

const _: () = assert!(SNAPSHOT_CHUNK <= UNSYNCED);
