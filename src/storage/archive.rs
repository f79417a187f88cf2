//! What is derived from committed entries: tree hashes, headers by themselves, which entry a proposal became, and the
//! auditors' index.
//!
//! Only full tiles, runs and buckets' worth of entries are written; the rest (fewer than 256 entries) stays in memory
//! and is derived again at open. So an entry costs one write in 256, off the commit path, and losing any of these
//! records costs nothing but the time to derive it again.

use super::disk::{Disk, Tree};
use super::error::ReadError;
use super::layout::{
    self, BUCKET, HEADER_RUN, HEADERS, PROPOSALS, TILES, bucket_key, number_key, read_bucket, read_tile, tile_key,
};
use super::postings::{Postings, Word};
use crate::certificate::merkle::Nodes;
use crate::certificate::{Body, Edge, FullTile, Header, Reader, TILE_LEVELS, Writer, full_tiles, subtree};
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
    pub(super) postings: Postings,
    unsynced: usize,
    /// Records that were missing or wrong and have been written, postings aside.
    pub(super) written: u64,
}

fn place(id: &ProposalId) -> ((Term, u64), u8) {
    ((id.term, id.seq / BUCKET), (id.seq % BUCKET) as u8)
}

impl Archive {
    /// What goes on from an edge: the headers of its unfinished tile are written as far as they fill runs.
    pub(super) fn over(disk: &Disk, edge: Edge, from: LogIndex) -> Result<Self, ReadError> {
        let headers = edge.headers().to_vec();
        let first = edge.size() - headers.len() as u64 + 1;
        let decoded = headers.iter().map(|bytes| Header::decode(bytes)).collect::<Result<Vec<_>, _>>();
        let decoded = decoded.map_err(|source| ReadError::Record { tree: HEADERS, source })?;
        let postings = Postings::over(from, first, &decoded);
        let mut archive = Self { edge, from, proposals: BTreeMap::new(), postings, unsynced: 0, written: 0 };
        decoded.iter().for_each(|header| archive.note_proposal(header));
        for (run, at) in headers.chunks_exact(HEADER_RUN as usize).zip((first..).step_by(HEADER_RUN as usize)) {
            archive.put(disk, &disk.trees.headers, &number_key(at), &layout::write_header_run(run))?;
        }
        Ok(archive)
    }

    /// How many entries it covers.
    pub(super) fn size(&self) -> u64 {
        self.edge.size()
    }

    /// The first entry from which on the words of bodies are in the index.
    pub(super) fn searchable_from(&self) -> LogIndex {
        self.postings.complete_from(&Word::Request(Digest::ZERO), self.size())
    }

    fn note_proposal(&mut self, header: &Header) {
        if let Some(id) = &header.proposal_id {
            let (bucket, low) = place(id);
            self.proposals.entry(bucket).or_default().push((low, header.index));
        }
    }

    /// Takes the next entry: its header, the header's canonical bytes, and its body where that is
    /// held.
    pub(super) fn take(
        &mut self,
        disk: &Disk,
        header: &Header,
        bytes: Vec<u8>,
        body: Option<&Body>,
    ) -> Result<(), ReadError> {
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
        let bytes = self.postings.take(disk, header, body)?;
        self.wrote(disk, bytes)
    }

    /// Counts bytes that were written, and makes them durable when they are many.
    pub(super) fn wrote(&mut self, disk: &Disk, bytes: usize) -> Result<(), ReadError> {
        self.unsynced += bytes;
        if self.unsynced >= UNSYNCED { self.make_durable(disk) } else { Ok(()) }
    }

    /// Records that were missing or wrong and have been written.
    pub(super) fn written(&self) -> u64 {
        self.written + self.postings.written
    }

    /// Takes notice of the proposals of entries before those that it covers.
    pub(super) fn find_proposals(&mut self, disk: &Disk, headers: &[Header]) -> Result<(), ReadError> {
        let newest = std::mem::take(&mut self.proposals);
        headers.iter().for_each(|header| self.note_proposal(header));
        let written = self.put_proposals(disk);
        self.proposals = newest;
        written
    }

    /// From here on headers and hashes are here.
    pub(super) fn begin_at(&mut self, from: LogIndex) {
        self.from = from;
    }

    /// See [`Archive::begin_at`].
    pub(super) fn from(&self) -> LogIndex {
        self.from
    }

    /// The right edge of the tree.
    pub(super) fn edge(&self) -> &Edge {
        &self.edge
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
    fn put(&mut self, disk: &Disk, tree: &Tree, key: &[u8], value: &[u8]) -> Result<(), ReadError> {
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

    /// All that was written so far is durable.
    pub(super) fn make_durable(&mut self, disk: &Disk) -> Result<(), ReadError> {
        self.unsynced = 0;
        disk.make_durable()?;
        Ok(self.postings.durable(disk)?)
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

    /// Holds the index of proposals against the headers that are stored, and returns how many proposals are missing or
    /// wrong in it; with `write`, they are no more. Those of the unfinished tile are in memory and need no index.
    pub(super) fn mend_proposals(&self, disk: &Disk, write: bool) -> Result<u64, ReadError> {
        let record = |source| ReadError::Record { tree: HEADERS, source };
        let mut bucket = Bucket::default();
        let mut missing = 0;
        for run in disk.trees.headers.range(number_key(self.from.0)..number_key(self.size() - self.size() % TILE + 1)) {
            for bytes in layout::read_whole_run(&run?.1).map_err(record)? {
                let header = Header::decode(bytes).map_err(record)?;
                let Some((at, low)) = header.proposal_id.as_ref().map(place) else { continue };
                if at != bucket.at {
                    bucket.put(disk, write)?;
                    bucket = Bucket::read(disk, at)?;
                }
                if bucket.rows.insert(low, header.index) != Some(header.index) {
                    missing += 1;
                    bucket.changed = true;
                }
            }
        }
        bucket.put(disk, write)?;
        Ok(missing)
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

/// Which entries up to [`BUCKET`] proposals of a term became.
#[derive(Default)]
struct Bucket {
    at: (Term, u64),
    rows: BTreeMap<u8, LogIndex>,
    changed: bool,
}

impl Bucket {
    fn read(disk: &Disk, at: (Term, u64)) -> Result<Self, ReadError> {
        let stored = disk.trees.proposals.get(bucket_key(at.0, at.1))?;
        // One that does not read is derived data gone bad: it is as good as missing.
        let rows = stored.and_then(|value| read_bucket(&value).ok()).unwrap_or_default();
        Ok(Self { at, rows: rows.into_iter().collect(), changed: false })
    }

    /// Writes it durably, if it changed.
    fn put(&self, disk: &Disk, write: bool) -> Result<(), ReadError> {
        if !self.changed || !write {
            return Ok(());
        }
        let rows: Vec<_> = self.rows.iter().map(|(low, index)| (*low, *index)).collect();
        disk.insert(&disk.trees.proposals, &bucket_key(self.at.0, self.at.1), &layout::write_bucket(&rows))?;
        Ok(disk.make_durable()?)
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
