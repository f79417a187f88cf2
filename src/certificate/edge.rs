//! The right edge of the tree over all headers, as it is kept in tiles: all that a log whose beginning is elsewhere needs
//! to go on with it.

use super::bytes::{FormatError, Reader, Writer};
use super::header::Header;
use super::merkle::{self, Frontier, node_hash};
use crate::ids::{Digest, LogIndex};
use crate::limits::{MAX_HEADER, TILE};

/// Levels of tree hashes in a tile: 2^8 = [`TILE`].
pub const TILE_LEVELS: u8 = 8;
/// Levels of tiles that a log of 2^64 entries has.
const MAX_LEVELS: usize = 8;

const _: () = assert!(1 << TILE_LEVELS == TILE);

/// The unfinished tile of every tile level, and the headers below the lowest of them. It depends on the first `size`
/// headers alone.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Edge {
    size: u64,
    /// Fewer than [`TILE`] hashes each; level 0 first.
    levels: Vec<Vec<Digest>>,
    /// The canonical bytes of the headers of the unfinished tile of level 0.
    headers: Vec<Vec<u8>>,
}

/// A tile that was finished.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FullTile {
    /// Its tile level.
    pub level: u8,
    /// Its place among the tiles of its level.
    pub position: u64,
    /// Its [`TILE`] hashes.
    pub hashes: Vec<Digest>,
}

impl Edge {
    /// Entries so far.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Takes the canonical bytes of the next header; returns the tiles that it finishes, lowest first.
    pub fn push(&mut self, header: Vec<u8>) -> Vec<FullTile> {
        let leaf = merkle::leaf_hash(&header);
        self.headers.push(header);
        let mut finished = Vec::new();
        let (mut level, mut hash) = (0_u8, leaf);
        loop {
            let slot = usize::from(level);
            if self.levels.len() <= slot {
                self.levels.resize(slot + 1, Vec::new());
            }
            self.levels[slot].push(hash);
            if (self.levels[slot].len() as u64) < TILE {
                break;
            }
            let hashes = std::mem::take(&mut self.levels[slot]);
            hash = subtree(&hashes);
            finished.push(FullTile { level, position: full_tiles(self.size, level), hashes });
            level += 1;
        }
        self.size += 1;
        if self.size.is_multiple_of(TILE) {
            self.headers.clear();
        }
        finished
    }

    /// The hashes of the unfinished tile of a tile level.
    #[must_use]
    pub fn unfinished(&self, level: u8) -> &[Digest] {
        self.levels.get(usize::from(level)).map_or(&[], Vec::as_slice)
    }

    /// The canonical bytes of the headers of the unfinished tile of level 0: the last `size % 256`.
    #[must_use]
    pub fn headers(&self) -> &[Vec<u8>] {
        &self.headers
    }

    /// The complete subtrees that make up the tree.
    #[must_use]
    pub fn frontier(&self) -> Frontier {
        let mut peaks = Vec::new();
        for hashes in self.levels.iter().rev() {
            let mut from = 0;
            while from < hashes.len() {
                let count = 1 << (hashes.len() - from).ilog2();
                peaks.push(subtree(&hashes[from..from + count]));
                from += count;
            }
        }
        Frontier::from_peaks(self.size, peaks)
    }

    /// Canonical bytes.
    pub fn write(&self, w: &mut Writer) {
        w.u64(self.size);
        for level in 0..levels_of(self.size) {
            for hash in self.unfinished(level) {
                w.digest(hash);
            }
        }
        for header in &self.headers {
            w.short(header);
        }
    }

    /// Reads [`Edge::write`]. The headers are checked to be those that the hashes stand for.
    ///
    /// # Errors
    /// [`FormatError`].
    pub fn read(r: &mut Reader<'_>) -> Result<Self, FormatError> {
        let size = r.u64("edge.size")?;
        let level = |level| {
            let count = full_hashes(size, level) % TILE;
            (0..count).map(|_| r.digest("edge.hash")).collect::<Result<Vec<_>, _>>()
        };
        let levels = (0..levels_of(size)).map(level).collect::<Result<Vec<_>, _>>()?;
        let first = size - size % TILE + 1;
        let mut headers = Vec::new();
        for index in first..=size {
            let bytes = r.short(MAX_HEADER, "edge.header")?;
            let header = Header::decode(bytes)?;
            let known = levels.first().and_then(|l: &Vec<Digest>| l.get(headers.len()));
            if header.index != LogIndex(index) || known != Some(&merkle::leaf_hash(bytes)) {
                return Err(FormatError::Value { field: "edge.header" });
            }
            headers.push(bytes.to_vec());
        }
        Ok(Self { size, levels, headers })
    }
}

/// How many complete subtrees of 256^level leaves the first `size` leaves make.
fn full_hashes(size: u64, level: u8) -> u64 {
    size.checked_shr(u32::from(TILE_LEVELS) * u32::from(level)).unwrap_or(0)
}

/// How many tiles of a level the first `size` leaves fill.
#[must_use]
pub fn full_tiles(size: u64, level: u8) -> u64 {
    full_hashes(size, level + 1)
}

/// Tile levels that hold anything.
fn levels_of(size: u64) -> u8 {
    (0..MAX_LEVELS as u8).take_while(|level| full_hashes(size, *level) > 0).count() as u8
}

/// The root of a complete subtree with these leaves (a power of two of them).
#[must_use]
pub fn subtree(hashes: &[Digest]) -> Digest {
    let mut level = hashes.to_vec();
    while level.len() > 1 {
        level = level.chunks_exact(2).map(|pair| node_hash(&pair[0], &pair[1])).collect();
    }
    level[0]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::certificate::Kind;
    use crate::ids::{Epoch, Term};

    fn header(index: u64) -> Vec<u8> {
        let header = Header {
            index: LogIndex(index),
            term: Term(1),
            epoch: Epoch::ZERO,
            kind: Kind::SnapshotMark,
            proposal_id: None,
            request_digest: Digest::ZERO,
            proposed_at: index,
            required_quorum: 0,
            abort_reason: None,
            tally: None,
            payload_len: 0,
            payload_hash: Digest::ZERO,
        };
        header.encode()
    }

    fn read(bytes: &[u8]) -> Result<Edge, FormatError> {
        let mut r = Reader::new(bytes);
        let edge = Edge::read(&mut r)?;
        r.finish("edge")?;
        Ok(edge)
    }

    #[test]
    fn an_edge_has_the_frontier_of_its_headers_and_reads_back_at_every_size() {
        let (mut edge, mut frontier) = (Edge::default(), Frontier::default());
        let mut tiles = 0;
        for index in 1..=TILE * 3 + 5 {
            tiles += edge.push(header(index)).len();
            frontier.push(merkle::leaf_hash(&header(index)));
            assert_eq!((edge.size(), &edge.frontier()), (index, &frontier));
            assert_eq!(edge.headers().len() as u64, index % TILE);
            let mut w = Writer::default();
            edge.write(&mut w);
            assert_eq!(read(&w.0).as_ref(), Ok(&edge));
        }
        assert_eq!(tiles, 3);
    }

    #[test]
    fn tiles_of_higher_levels_are_finished_too() {
        // 256 tiles of level 0 make one of level 1; any leaf does for the shape.
        let mut edge = Edge::default();
        let bytes = header(1);
        let finished: Vec<FullTile> = (0..TILE * TILE).flat_map(|_| edge.push(bytes.clone())).collect();
        let (low, high): (Vec<&FullTile>, Vec<_>) = finished.iter().partition(|t| t.level == 0);
        assert_eq!(low.iter().map(|t| t.position).collect::<Vec<_>>(), (0..TILE).collect::<Vec<_>>());
        assert_eq!((high.len(), high[0].level, high[0].position), (1, 1, 0));
        assert_eq!(high[0].hashes, low.iter().map(|t| subtree(&t.hashes)).collect::<Vec<_>>());
        assert!(edge.unfinished(0).is_empty() && edge.unfinished(1).is_empty());
        assert_eq!(edge.unfinished(2), [subtree(&high[0].hashes)]);
    }

    #[test]
    fn headers_that_the_hashes_do_not_stand_for_are_refused() {
        let mut edge = Edge::default();
        for index in 1..=3 {
            edge.push(header(index));
        }
        let mut w = Writer::default();
        edge.write(&mut w);
        for at in 8..w.0.len() {
            let mut bad = w.0.clone();
            bad[at] ^= 1;
            assert!(read(&bad).is_err(), "byte {at}");
        }
        for length in 0..w.0.len() {
            assert!(read(&w.0[..length]).is_err(), "cut to {length}");
        }
    }
}
