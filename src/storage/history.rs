//! What lies before an installed snapshot, filled in from the newest entry down.
//!
//! A log that was begun with a snapshot rests on the edge of a tree whose leaves are elsewhere. They are put here piece by
//! piece, each proved when it comes: a tile of hashes by the tile above it or by the edge, the headers of a leaf tile by
//! their leaf hashes, a body by its header, a head certificate by the root of the tree at its size (and, by the caller, by
//! the signatures of its members). Once all that a leaf tile stands for is durable, one record says that the history begins
//! there. So after a crash at any instant it begins at one tile or the next, and pieces that came too early are judged
//! again when their turn comes.

use super::below::leaves_of_tile;
use super::climb::{self, Lacking};
use super::disk::Disk;
use super::error::{FillError, ReadError};
use super::ground::Ground;
use super::layout::{HEADER_RUN, HEADERS, number_key, read_whole_run, tile_key, write_header_run, write_tile};
use super::read::guard;
use super::{Shared, Store, kept};
use crate::certificate::merkle::{self, leaf_hash};
use crate::certificate::{Entry, FormatError, HeadCertificate, Header, subtree};
use crate::ids::{Digest, LogIndex};
use crate::limits::TILE;
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard, PoisonError};

/// Bytes of bodies written before they are made durable: well below a segment of the database.
const UNSYNCED: usize = 1024 * 1024;

/// A piece of the history that is not here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Missing {
    /// A full tile of tree hashes. → [`Store::fill_tile`].
    Tile {
        /// Its tile level.
        level: u8,
        /// Its place among the tiles of its level.
        position: u64,
    },
    /// The [`TILE`] headers of a full leaf tile. → [`Store::fill_headers`].
    Headers {
        /// The first of them.
        first: LogIndex,
    },
    /// Head certificates of these sizes, as many as there are. → [`Store::fill_certificates`].
    Certificates {
        /// Of heads larger than this,
        above: u64,
        /// and not larger than this.
        upto: u64,
    },
    /// Entries whose bodies are kept for ever, ascending, at most [`TILE`]. → [`Store::fill_bodies`].
    Bodies {
        /// Which.
        indexes: Vec<LogIndex>,
    },
}

/// What is known of the filling beyond what is durable.
#[derive(Debug, Default)]
pub(super) struct Filling {
    /// All that the history from here on needs is here.
    whole: Option<LogIndex>,
    /// The certificates of heads above this size and up to that have come.
    certified: Option<(u64, u64)>,
}

impl Shared {
    pub(super) fn filling(&self) -> MutexGuard<'_, Filling> {
        self.filling.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn proved(&self, level: u8, position: u64) -> Result<Result<Digest, Lacking>, ReadError> {
        climb::proved(&self.disk, self.archive().edge(), level, position)
    }

    /// The canonical header of an entry of the leaf tile that is being filled, or of one above.
    fn stored_header(&self, index: LogIndex) -> Result<Header, ReadError> {
        let archive = self.archive();
        if index >= archive.from() {
            return archive.header(&self.disk, index);
        }
        drop(archive);
        if index == LogIndex::ZERO {
            return Err(ReadError::Hole { index });
        }
        let first = index.0 - (index.0 - 1) % HEADER_RUN;
        let damaged = |source| ReadError::Record { tree: HEADERS, source };
        let run = self.disk.trees.headers.get(number_key(first))?.ok_or(ReadError::Hole { index })?;
        let headers = read_whole_run(&run).map_err(damaged)?;
        let header = Header::decode(headers[(index.0 - first) as usize]).map_err(damaged)?;
        if header.index == index { Ok(header) } else { Err(ReadError::Hole { index }) }
    }

    /// Entries of these whose bodies must be here and are not.
    fn lacking(&self, first: LogIndex, last: LogIndex) -> Result<Vec<LogIndex>, ReadError> {
        let mut lacking = Vec::new();
        // What the cluster before left to be kept, its backup keeps.
        let first = first.max(LogIndex(self.before.load(Ordering::Acquire)).next());
        for index in (first.0..=last.0).map(LogIndex) {
            let header = self.stored_header(index)?;
            // One that does not read, or is another, is no better than none.
            let is_here = || kept::read(&self.disk, index).is_ok_and(|e| e.is_some_and(|e| e.header == header));
            if kept::is_kept(header.kind) && !is_here() {
                lacking.push(index);
            }
        }
        Ok(lacking)
    }

    /// What is missing of the leaf tile that begins at `first`, whose headers are here up to `last`.
    fn missing_beside_headers(&self, first: LogIndex, last: LogIndex) -> Result<Option<Missing>, ReadError> {
        let indexes = self.lacking(first, last)?;
        let above = first.prev().0.max(self.before.load(Ordering::Acquire));
        let certified = self.filling().certified == Some((above, last.0));
        Ok(match (indexes.is_empty(), certified) {
            (_, false) => Some(Missing::Certificates { above, upto: last.0 }),
            (false, true) => Some(Missing::Bodies { indexes }),
            (true, true) => None,
        })
    }
}

/// Where the leaf tile of which the ground holds a part, or all, ends: below it, every body that is kept must be here too.
fn seam_end(ground: &Ground) -> LogIndex {
    LogIndex(ground.from.prev().0 + TILE).min(ground.index())
}

impl Store {
    /// Where the headers of a whole history begin: at entry 1, or in a cluster that succeeds another at the leaf tile of its
    /// first entry.
    #[must_use]
    pub fn history_begins(&self) -> LogIndex {
        let before = self.shared.before.load(Ordering::Acquire);
        LogIndex(before - before % TILE + 1)
    }

    /// Lets the history begin earlier, durably, as far as all is here that it takes, and says what is wanted next; `None`
    /// when nothing is missing from the first entry of this cluster on.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn missing_history(&self) -> Result<Option<Missing>, ReadError> {
        guard(|| {
            loop {
                let ground = self.shared.ground();
                if let Some(missing) = self.missing_at(&ground)? {
                    return Ok(Some(missing));
                }
                if ground.from <= self.history_begins() {
                    return Ok(None);
                }
                let first = LogIndex(ground.from.0 - TILE);
                if let Some(missing) = self.missing_below(first)? {
                    return Ok(Some(missing));
                }
                self.shared.lower(&ground, first)?;
            }
        })
    }

    /// What came with a snapshot is the edge alone: of the entries of its unfinished leaf tile, bodies and certificates are
    /// missing. Certificates go first, so that who finds all bodies finds them too.
    fn missing_at(&self, ground: &Ground) -> Result<Option<Missing>, ReadError> {
        let (shared, first, last) = (&self.shared, ground.from, seam_end(ground));
        if shared.filling().whole == Some(first) {
            return Ok(None);
        }
        if !shared.lacking(first, last)?.is_empty() {
            return shared.missing_beside_headers(first, last);
        }
        shared.filling().whole = Some(first);
        Ok(None)
    }

    fn missing_below(&self, first: LogIndex) -> Result<Option<Missing>, ReadError> {
        let (shared, position) = (&self.shared, first.prev().0 / TILE);
        let expected = match shared.proved(1, position)? {
            Ok(hash) => hash,
            Err(Lacking { level, position }) => return Ok(Some(Missing::Tile { level, position })),
        };
        // Headers may be here from before the snapshot was installed.
        let leaves = leaves_of_tile(&shared.disk, position).ok().filter(|leaves| subtree(leaves) == expected);
        let Some(leaves) = leaves else { return Ok(Some(Missing::Headers { first })) };
        shared.disk.insert(&shared.disk.trees.tiles, &tile_key(0, position), &write_tile(&leaves))?;
        shared.missing_beside_headers(first, LogIndex(first.0 + TILE - 1))
    }

    /// Takes a tile of hashes.
    ///
    /// # Errors
    /// [`FillError::Unproved`] unless the hash in the tile above it, or in the edge, proves it; [`FillError::Read`].
    pub fn fill_tile(&self, level: u8, position: u64, hashes: &[Digest]) -> Result<(), FillError> {
        guard(|| {
            let unproved = FillError::Unproved { what: "tile of tree hashes" };
            if hashes.len() as u64 != TILE || self.shared.proved(level + 1, position)? != Ok(subtree(hashes)) {
                return Err(unproved);
            }
            self.shared.disk.insert(&self.shared.disk.trees.tiles, &tile_key(level, position), &write_tile(hashes))?;
            Ok(())
        })
    }

    /// Takes the headers of a full leaf tile, which begins at `first`.
    ///
    /// # Errors
    /// [`FillError::Unproved`] unless their leaf hashes lead to the hash in the tile above, or in the edge;
    /// [`FillError::Read`].
    pub fn fill_headers(&self, first: LogIndex, headers: &[Vec<u8>]) -> Result<(), FillError> {
        guard(|| {
            let (disk, position) = (&self.shared.disk, first.prev().0 / TILE);
            if !are_headers_from(first, headers) || self.shared.proved(1, position)? != Ok(subtree(&leaves(headers))) {
                return Err(FillError::Unproved { what: "headers" });
            }
            put_headers(disk, first, headers)?;
            Ok(())
        })
    }

    /// Takes head certificates of sizes above one and up to another, ascending; some of them may be here already. The caller
    /// has verified what is signed, under the tables that were in force.
    ///
    /// # Errors
    /// [`FillError::Unproved`] when one is out of place, of another root than the tree at its size, or of another term than
    /// its last entry; [`FillError::Read`].
    pub fn fill_certificates(
        &self,
        above: u64,
        upto: u64,
        certificates: &[Arc<HeadCertificate>],
    ) -> Result<(), FillError> {
        guard(|| {
            let (shared, unproved) = (&self.shared, FillError::Unproved { what: "head certificate" });
            let ascending = certificates.windows(2).all(|w| w[0].head.size < w[1].head.size);
            let in_place = certificates.iter().all(|c| above < c.head.size && c.head.size <= upto);
            if !ascending || !in_place {
                return Err(unproved);
            }
            for certificate in certificates {
                let size = certificate.head.size;
                let (root, term) = (self.filled_root(size)?, shared.stored_header(LogIndex(size))?.term);
                if (root, term) != (certificate.head.root, certificate.head.term) {
                    return Err(unproved);
                }
            }
            let tree = &shared.disk.trees.certificates;
            for certificate in certificates {
                let key = number_key(certificate.head.size);
                if tree.get(key)?.is_none() {
                    shared.disk.insert(tree, &key, &certificate.encode())?;
                }
            }
            shared.filling().certified = Some((above, upto));
            Ok(())
        })
    }

    fn filled_root(&self, size: u64) -> Result<Digest, ReadError> {
        merkle::root(&self.shared.archive().nodes(&self.shared.disk), size)
    }

    /// The header of an entry of which a piece of history is being filled in: it was proved before, and may lie one leaf tile
    /// before [`Store::headers_from`].
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn filled_header(&self, index: LogIndex) -> Result<Header, ReadError> {
        guard(|| self.shared.stored_header(index))
    }

    /// Takes entries whose bodies are kept for ever.
    ///
    /// # Errors
    /// [`FillError::Unproved`] unless each is the one that its header, which is here, names; [`FillError::Read`].
    pub fn fill_bodies(&self, entries: &[Arc<Entry>]) -> Result<(), FillError> {
        guard(|| {
            let disk = &self.shared.disk;
            let last = seam_end(&self.shared.ground());
            for entry in entries {
                let is_wanted = kept::is_kept(entry.header.kind) && entry.index() <= last;
                if !is_wanted || self.shared.stored_header(entry.index())? != entry.header {
                    return Err(FillError::Unproved { what: "entry" });
                }
            }
            let mut unsynced = 0;
            for entry in entries {
                unsynced += kept::put(disk, entry)?;
                if unsynced >= UNSYNCED {
                    disk.make_durable()?;
                    unsynced = 0;
                }
            }
            disk.make_durable()?;
            Ok(())
        })
    }
}

/// Canonical headers of the entries of one leaf tile.
pub(super) fn are_headers_from(first: LogIndex, headers: &[Vec<u8>]) -> bool {
    let mut numbered = (first.0..).map(LogIndex).zip(headers);
    headers.len() as u64 == TILE
        && numbered.all(|(index, bytes)| Header::decode(bytes).is_ok_and(|header| header.index == index))
}

/// Their leaf hashes.
pub(super) fn leaves(headers: &[Vec<u8>]) -> Vec<Digest> {
    headers.iter().map(|bytes| leaf_hash(bytes)).collect()
}

/// Writes the headers of a leaf tile and their hashes, not durably yet.
pub(super) fn put_headers(disk: &Disk, first: LogIndex, headers: &[Vec<u8>]) -> Result<(), ReadError> {
    for (run, at) in headers.chunks_exact(HEADER_RUN as usize).zip((first.0..).step_by(HEADER_RUN as usize)) {
        disk.insert(&disk.trees.headers, &number_key(at), &write_header_run(run))?;
    }
    let key = tile_key(0, first.prev().0 / TILE);
    Ok(disk.insert(&disk.trees.tiles, &key, &write_tile(&leaves(headers)))?)
}

impl Shared {
    /// Lets the history begin at `first`, one leaf tile before where it begins by `known`. All that it needs is written.
    fn lower(&self, known: &Ground, first: LogIndex) -> Result<(), ReadError> {
        let headers = (first.0..first.0 + TILE).map(|index| self.stored_header(LogIndex(index)));
        let headers = headers.collect::<Result<Vec<_>, _>>()?;
        {
            let mut archive = self.archive();
            archive.find_proposals(&self.disk, &headers)?;
            let bytes = archive.postings.take_old(&self.disk, &headers)?;
            archive.wrote(&self.disk, bytes)?;
        }
        // What is said to be here is durable before it is said.
        self.disk.make_durable()?;
        let _grounding = self.grounding.lock().unwrap_or_else(PoisonError::into_inner);
        let ground = self.ground();
        let was_whole = self.filling().whole == Some(known.from);
        if !was_whole || ground.from != known.from || ground.index() < known.index() {
            // Another snapshot was installed meanwhile: what it needs is judged anew.
            return Ok(());
        }
        let lowered = Ground { from: first, ..(*ground).clone() };
        lowered.put_from(&self.disk)?;
        self.archive().begin_at(first);
        let _cutting = self.cutting.write().unwrap_or_else(PoisonError::into_inner);
        *self.ground.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(lowered);
        // Judged a moment ago, all of it.
        self.filling().whole = Some(first);
        Ok(())
    }
}

/// A piece of the history as others ask for it. Nothing of it is believed by them without proof.
impl Store {
    /// A full tile of tree hashes; `None` when it is not here.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn history_tile(&self, level: u8, position: u64) -> Result<Option<Vec<Digest>>, ReadError> {
        guard(|| {
            let found = self.shared.disk.trees.tiles.get(tile_key(level, position))?;
            let damaged = |source| ReadError::Record { tree: super::layout::TILES, source };
            found.map(|value| super::layout::read_tile(&value)).transpose().map_err(damaged)
        })
    }

    /// The canonical bytes of the headers of a full leaf tile; `None` when not all of them are here, or `first` begins none.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn history_headers(&self, first: LogIndex) -> Result<Option<Vec<Vec<u8>>>, ReadError> {
        guard(|| {
            if first.0 % TILE != 1 || first.0.checked_add(TILE - 1).is_none_or(|last| last > self.archived()) {
                return Ok(None);
            }
            let mut headers = Vec::with_capacity(TILE as usize);
            for run in (first.0..first.0 + TILE).step_by(HEADER_RUN as usize) {
                let Some(value) = self.shared.disk.trees.headers.get(number_key(run))? else { return Ok(None) };
                let damaged = |source: FormatError| ReadError::Record { tree: HEADERS, source };
                headers.extend(read_whole_run(&value).map_err(damaged)?.into_iter().map(<[u8]>::to_vec));
            }
            Ok(Some(headers))
        })
    }

    /// As many of these entries, with their bodies, as are here one after another in the order asked for and fit in
    /// `max_bytes` (but at least the first); `None` when the first is not here.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn history_bodies(&self, indexes: &[LogIndex], max_bytes: usize) -> Result<Option<Vec<Arc<Entry>>>, ReadError> {
        let (mut found, mut room) = (Vec::new(), max_bytes);
        for index in indexes {
            let entry = match self.entry(*index) {
                Ok(Some(entry)) => entry,
                Ok(None) | Err(ReadError::Compacted { .. } | ReadError::NotHere { .. }) => break,
                Err(e) => return Err(e),
            };
            let length = entry.encode().len();
            if length > room && !found.is_empty() {
                break;
            }
            room = room.saturating_sub(length);
            found.push(entry);
        }
        Ok((!found.is_empty()).then_some(found))
    }
}
