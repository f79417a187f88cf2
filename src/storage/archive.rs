//! What is derived from committed entries: tree hashes, headers by themselves, and which entry a proposal became.
//!
//! Only full tiles, runs and buckets' worth of entries are written; the rest (fewer than 256 entries) stays in memory
//! and is derived again at open. So an entry costs one write in 256, off the commit path, and losing any of these
//! records costs nothing but the time to derive it again.

use super::disk::Disk;
use super::error::ReadError;
use super::layout::{
    self, BUCKET, HEADER_RUN, HEADERS, PROPOSALS, TILES, bucket_key, number_key, read_bucket, read_tile, tile_key,
};
use crate::certificate::Header;
use crate::certificate::merkle::{self, Frontier, Nodes, node_hash};
use crate::ids::{Digest, LogIndex, ProposalId, Term};
use crate::limits::TILE;
use std::collections::BTreeMap;

/// Levels of tree hashes in a tile: 2^8 = [`TILE`].
const TILE_LEVELS: u8 = 8;
/// Derived bytes written before they are made durable, so that what waits for the disk stays well below a segment.
const UNSYNCED: usize = 1024 * 1024;

const _: () = assert!(1 << TILE_LEVELS == TILE);

/// The derived state up to some entry.
#[derive(Debug, Default)]
pub(super) struct Archive {
    frontier: Frontier,
    /// The hashes of the unfinished tile of each tile level (each fewer than [`TILE`]).
    partial: Vec<Vec<Digest>>,
    /// The headers of the unfinished run (fewer than [`HEADER_RUN`]).
    headers: Vec<Vec<u8>>,
    /// The proposals of the unfinished leaf tile (fewer than [`TILE`]).
    proposals: BTreeMap<(Term, u64), Vec<(u8, LogIndex)>>,
    unsynced: usize,
    /// Records that were missing or wrong and have been written.
    pub(super) written: u64,
}

fn place(id: &ProposalId) -> ((Term, u64), u8) {
    ((id.term, id.seq / BUCKET), (id.seq % BUCKET) as u8)
}

impl Archive {
    /// How many entries it covers.
    pub(super) fn size(&self) -> u64 {
        self.frontier.size()
    }

    /// Takes the next entry: its header and the header's canonical bytes.
    pub(super) fn take(&mut self, disk: &Disk, header: &Header, bytes: Vec<u8>) -> Result<(), ReadError> {
        let expected = LogIndex(self.size() + 1);
        if header.index != expected {
            return Err(ReadError::Gap { expected, found: header.index });
        }
        let leaf = merkle::leaf_hash(&bytes);
        self.headers.push(bytes);
        if let Some(id) = &header.proposal_id {
            let (bucket, low) = place(id);
            self.proposals.entry(bucket).or_default().push((low, header.index));
        }
        self.push_hash(disk, 0, leaf)?;
        self.frontier.push(leaf);
        if self.size().is_multiple_of(HEADER_RUN) {
            let first = self.size() + 1 - HEADER_RUN;
            let run = layout::write_header_run(&std::mem::take(&mut self.headers));
            self.put(disk, &disk.trees.headers, &number_key(first), &run)?;
        }
        if self.size().is_multiple_of(TILE) {
            self.put_proposals(disk)?;
        }
        if self.unsynced >= UNSYNCED {
            disk.make_durable()?;
            self.unsynced = 0;
        }
        Ok(())
    }

    fn push_hash(&mut self, disk: &Disk, level: u8, hash: Digest) -> Result<(), ReadError> {
        let slot = usize::from(level);
        if self.partial.len() <= slot {
            self.partial.resize(slot + 1, Vec::new());
        }
        let tile = &mut self.partial[slot];
        tile.push(hash);
        if (tile.len() as u64) < TILE {
            return Ok(());
        }
        let full = std::mem::take(tile);
        // The tile's place: how many hashes of this level came before it. `frontier` counts the leaf only afterwards.
        let position = tiles(self.size(), level);
        self.put(disk, &disk.trees.tiles, &tile_key(level, position), &layout::write_tile(&full))?;
        self.push_hash(disk, level + 1, subtree(&full))
    }

    fn put_proposals(&mut self, disk: &Disk) -> Result<(), ReadError> {
        for ((term, bucket), rows) in std::mem::take(&mut self.proposals) {
            let key = bucket_key(term, bucket);
            let mut all: BTreeMap<u8, LogIndex> = match disk.trees.proposals.get(key)? {
                None => BTreeMap::new(),
                // A bucket that does not read is derived data gone bad: what this span knows of it is written anew,
                // and earlier spans were written again when they were taken at open.
                Some(old) => read_bucket(&old).unwrap_or_default().into_iter().collect(),
            };
            all.extend(rows);
            let rows: Vec<_> = all.into_iter().collect();
            self.put(disk, &disk.trees.proposals, &key, &layout::write_bucket(&rows))?;
        }
        Ok(())
    }

    /// Writes a derived record unless it is there already.
    fn put(&mut self, disk: &Disk, tree: &sled::Tree, key: &[u8], value: &[u8]) -> Result<(), ReadError> {
        if tree.get(key)?.is_some_and(|old| old == value) {
            return Ok(());
        }
        disk.insert(tree, key, value)?;
        self.unsynced += value.len();
        self.written += 1;
        Ok(())
    }

    /// The header of an entry that it covers.
    pub(super) fn header(&self, disk: &Disk, index: LogIndex) -> Result<Header, ReadError> {
        let leaf = index.prev().0;
        let record = |source| ReadError::Record { tree: HEADERS, source };
        let (run, position) = (leaf / HEADER_RUN, leaf % HEADER_RUN);
        if run == self.size() / HEADER_RUN {
            let bytes = self.headers.get(position as usize).ok_or(ReadError::Hole { index })?;
            return Header::decode(bytes).map_err(record);
        }
        let value = disk.trees.headers.get(number_key(run * HEADER_RUN + 1))?.ok_or(ReadError::Hole { index })?;
        let header = layout::read_header_run(&value, position).and_then(Header::decode).map_err(record)?;
        if header.index == index { Ok(header) } else { Err(ReadError::Hole { index }) }
    }

    /// Which entry may be the one that a proposal became. The bucket knows term and number only: whoever asks compares
    /// the whole id with the entry's.
    pub(super) fn index_of(&self, disk: &Disk, id: &ProposalId) -> Result<Option<LogIndex>, ReadError> {
        let (bucket, low) = place(id);
        let find = |rows: &[(u8, LogIndex)]| rows.iter().find(|row| row.0 == low).map(|row| row.1);
        if let Some(index) = self.proposals.get(&bucket).and_then(|rows| find(rows)) {
            return Ok(Some(index));
        }
        let Some(value) = disk.trees.proposals.get(bucket_key(bucket.0, bucket.1))? else { return Ok(None) };
        let rows = read_bucket(&value).map_err(|source| ReadError::Record { tree: PROPOSALS, source })?;
        Ok(find(&rows))
    }

    /// The hashes of the tree, for roots and proofs.
    pub(super) fn nodes<'a>(&'a self, disk: &'a Disk) -> Hashes<'a> {
        Hashes { archive: self, disk }
    }
}

/// How many tiles of a level the first `size` leaves fill.
fn tiles(size: u64, level: u8) -> u64 {
    size.checked_shr(u32::from(TILE_LEVELS) * (u32::from(level) + 1)).unwrap_or(0)
}

/// The root of a complete subtree with these leaves (a power of two of them).
fn subtree(hashes: &[Digest]) -> Digest {
    let mut level = hashes.to_vec();
    while level.len() > 1 {
        level = level.chunks_exact(2).map(|pair| node_hash(&pair[0], &pair[1])).collect();
    }
    level[0]
}

/// Tree hashes out of tiles and the unfinished tiles in memory.
#[derive(Debug)]
pub(super) struct Hashes<'a> {
    archive: &'a Archive,
    disk: &'a Disk,
}

impl Nodes for Hashes<'_> {
    type Error = ReadError;

    fn node(&self, level: u8, position: u64) -> Result<Digest, ReadError> {
        let (tile_level, height) = (level / TILE_LEVELS, level % TILE_LEVELS);
        // Below 2^64 leaves, a node's first hash in its tile level is a number of at most 64 bits.
        let first = position << height;
        let (tile, offset, count) = (first / TILE, (first % TILE) as usize, 1 << height);
        let missing = ReadError::Tile { level: tile_level, position: tile };
        let unfinished = tiles(self.archive.size(), tile_level);
        let stored;
        let hashes = if tile == unfinished {
            self.archive.partial.get(usize::from(tile_level))
        } else {
            stored = match self.disk.trees.tiles.get(tile_key(tile_level, tile))? {
                None => return Err(missing),
                Some(value) => read_tile(&value).map_err(|source| ReadError::Record { tree: TILES, source })?,
            };
            Some(&stored)
        };
        hashes.and_then(|h| h.get(offset..offset + count)).map(subtree).ok_or(missing)
    }
}
