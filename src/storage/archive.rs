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
use crate::certificate::merkle::Nodes;
use crate::certificate::{Edge, FullTile, Header, Reader, TILE_LEVELS, Writer, full_tiles, subtree};
use crate::ids::{Digest, LogIndex, ProposalId, Term};
use crate::limits::TILE;
use std::collections::BTreeMap;

/// Derived bytes written before they are made durable, so that what waits for the disk stays well below a segment.
const UNSYNCED: usize = 1024 * 1024;

/// The derived state up to some entry.
#[derive(Debug)]
pub(super) struct Archive {
    edge: Edge,
    /// The first entry whose header and hashes are here.
    from: LogIndex,
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
    /// What goes on from an edge: the headers of its unfinished tile are written as far as they fill runs.
    pub(super) fn over(disk: &Disk, edge: Edge, from: LogIndex) -> Result<Self, ReadError> {
        let headers = edge.headers().to_vec();
        let mut archive = Self { edge, from, proposals: BTreeMap::new(), unsynced: 0, written: 0 };
        for bytes in &headers {
            let header = Header::decode(bytes).map_err(|source| ReadError::Record { tree: HEADERS, source })?;
            archive.note_proposal(&header);
        }
        let first = archive.size() - headers.len() as u64 + 1;
        for (run, at) in headers.chunks_exact(HEADER_RUN as usize).zip((first..).step_by(HEADER_RUN as usize)) {
            archive.put(disk, &disk.trees.headers, &number_key(at), &layout::write_header_run(run))?;
        }
        Ok(archive)
    }

    /// How many entries it covers.
    pub(super) fn size(&self) -> u64 {
        self.edge.size()
    }

    fn note_proposal(&mut self, header: &Header) {
        if let Some(id) = &header.proposal_id {
            let (bucket, low) = place(id);
            self.proposals.entry(bucket).or_default().push((low, header.index));
        }
    }

    /// Takes the next entry: its header and the header's canonical bytes.
    pub(super) fn take(&mut self, disk: &Disk, header: &Header, bytes: Vec<u8>) -> Result<(), ReadError> {
        let expected = LogIndex(self.size() + 1);
        if header.index != expected {
            return Err(ReadError::Gap { expected, found: header.index });
        }
        self.note_proposal(header);
        let run = header.index.0.is_multiple_of(HEADER_RUN).then(|| {
            let before = self.edge.headers();
            let mut run = before[before.len() + 1 - HEADER_RUN as usize..].to_vec();
            run.push(bytes.clone());
            layout::write_header_run(&run)
        });
        for FullTile { level, position, hashes } in self.edge.push(bytes) {
            self.put(disk, &disk.trees.tiles, &tile_key(level, position), &layout::write_tile(&hashes))?;
        }
        if let Some(run) = run {
            let first = self.size() + 1 - HEADER_RUN;
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
        let decoded = |bytes: &[u8]| match Header::decode(bytes) {
            Ok(header) if header.index == index => Ok(header),
            Ok(_) => Err(ReadError::Hole { index }),
            Err(source) => Err(ReadError::Record { tree: HEADERS, source }),
        };
        decoded(&self.header_bytes(disk, index)?)
    }

    /// Its canonical bytes.
    fn header_bytes(&self, disk: &Disk, index: LogIndex) -> Result<Vec<u8>, ReadError> {
        if index < self.from {
            return Err(ReadError::NotHere { index, from: self.from });
        }
        let leaf = index.prev().0;
        let unfinished = self.size() - self.size() % TILE;
        if leaf >= unfinished {
            let bytes = self.edge.headers().get((leaf - unfinished) as usize);
            return bytes.cloned().ok_or(ReadError::Hole { index });
        }
        let (run, position) = (leaf / HEADER_RUN, leaf % HEADER_RUN);
        let value = disk.trees.headers.get(number_key(run * HEADER_RUN + 1))?.ok_or(ReadError::Hole { index })?;
        let bytes = layout::read_header_run(&value, position);
        bytes.map(<[u8]>::to_vec).map_err(|source| ReadError::Record { tree: HEADERS, source })
    }

    /// The edge as it was when it covered `size` entries.
    pub(super) fn edge_at(&self, disk: &Disk, size: u64) -> Result<Edge, ReadError> {
        let mut w = Writer::default();
        w.u64(size);
        let mut level = 0;
        while size >> (u32::from(level) * u32::from(TILE_LEVELS)) > 0 {
            let hashes = size >> (u32::from(level) * u32::from(TILE_LEVELS));
            for position in hashes - hashes % TILE..hashes {
                w.digest(&self.nodes(disk).node(level * TILE_LEVELS, position)?);
            }
            level += 1;
            if u32::from(level) * u32::from(TILE_LEVELS) >= u64::BITS {
                break;
            }
        }
        for index in size - size % TILE + 1..=size {
            w.short(&self.header_bytes(disk, LogIndex(index))?);
        }
        Edge::read(&mut Reader::new(&w.0)).map_err(|source| ReadError::Record { tree: TILES, source })
    }

    /// Says that all that was written so far is durable.
    pub(super) fn make_durable(&mut self, disk: &Disk) -> Result<(), ReadError> {
        self.unsynced = 0;
        Ok(disk.make_durable()?)
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

    /// Why a tile is not there.
    fn missing(&self, level: u8, position: u64) -> ReadError {
        let leaves = u32::from(TILE_LEVELS) * (u32::from(level) + 1);
        let last = (position + 1).checked_shl(leaves).filter(|last| last >> leaves == position + 1);
        match last.map(LogIndex) {
            Some(last) if last < self.from => {
                ReadError::NotHere { index: LogIndex((position << leaves) + 1), from: self.from }
            }
            _ => ReadError::Tile { level, position },
        }
    }

    /// The hashes of the tree, for roots and proofs.
    pub(super) fn nodes<'a>(&'a self, disk: &'a Disk) -> Hashes<'a> {
        Hashes { archive: self, disk }
    }
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
        let stored;
        let hashes = if tile == full_tiles(self.archive.size(), tile_level) {
            self.archive.edge.unfinished(tile_level)
        } else {
            stored = match self.disk.trees.tiles.get(tile_key(tile_level, tile))? {
                None => return Err(self.archive.missing(tile_level, tile)),
                Some(value) => read_tile(&value).map_err(|source| ReadError::Record { tree: TILES, source })?,
            };
            &stored
        };
        let found = hashes.get(offset..offset + count).map(subtree);
        found.ok_or(ReadError::Tile { level: tile_level, position: tile })
    }
}
