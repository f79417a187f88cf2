//! Mending: single records that went bad are put back from what other members hold, when what is here proves them.
//!
//! What may be mended is what certificates cover: blocks of the log that end at or below the newest head certificate stored
//! here, headers and tiles below the log (its edge proves them), bodies that are kept (their headers prove them), chunks of
//! the snapshot that the log rests on (its manifest proves them). Nothing else is: what is not certified, terms, votes and
//! the watermark are this member's own word, and nobody can give it back.
//!
//! What the database itself refuses to read, by checksums of its own, is not a record that went bad but a database that did:
//! nothing can be written over it either, and the store is refused as before.
//!
//! A record is written over the bad one by one insert. So after a crash in between it is bad or mended, and found again.
//! Nothing is removed, and the store is opened, checked whole, only afterwards: mending promises nothing.

use super::block::{self, Block, Builder};
use super::climb::{self, Lacking};
use super::disk::{Database, Disk, Trees, open_database};
use super::error::{Damage, MendError, OpenError, ReadError};
use super::failure::{database, explained};
use super::generation::Place;
use super::ground::Ground;
use super::history::{are_headers_from, leaves, put_headers};
use super::layout::{self, CERTIFICATES, number_key, part_key, seal, tile_key, write_tile};
use super::read::{certificate, guard};
use super::recovery;
use super::snapshots::Snapshots;
use super::{below, kept};
use crate::certificate::{Edge, Entry, HeadCertificate, Header, Kind, Member, MemberTable, full_tiles, subtree};
use crate::ids::{Digest, LogIndex};
use crate::limits::{MAX_ENTRY, MAX_MENDED_ENTRIES, MAX_WOUNDS, TILE};
use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Something in a store that is not what was written, and that what is whole proves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wound {
    /// Entries of the log. → [`Mending::give_entries`].
    Entries {
        /// The first of them,
        first: LogIndex,
        /// and the last.
        last: LogIndex,
    },
    /// The headers of the leaf tile that begins here, below the log. → [`Mending::give_headers`].
    Headers {
        /// The first of [`TILE`].
        first: LogIndex,
    },
    /// A full tile of tree hashes, below the log. → [`Mending::give_tile`].
    Tile {
        /// Its tile level.
        level: u8,
        /// Its place among the tiles of its level.
        position: u64,
    },
    /// An entry below the log whose body is kept for ever. → [`Mending::give_kept`].
    Kept {
        /// Which.
        index: LogIndex,
    },
    /// A chunk of the snapshot that the log rests on. → [`Mending::give_chunk`].
    Chunk {
        /// The snapshot's index.
        snapshot: LogIndex,
        /// Which chunk.
        number: u32,
    },
}

impl Wound {
    /// What was hurt, as a metric's label.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Entries { .. } => "entries",
            Self::Headers { .. } => "headers",
            Self::Tile { .. } => "tile",
            Self::Kept { .. } => "kept",
            Self::Chunk { .. } => "chunk",
        }
    }
}

impl fmt::Display for Wound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Entries { first, last } => write!(f, "entries {first} to {last}"),
            Self::Headers { first } => write!(f, "headers {first} to {}", first.0 + TILE - 1),
            Self::Tile { level, position } => write!(f, "tile {position} of level {level}"),
            Self::Kept { index } => write!(f, "kept entry {index}"),
            Self::Chunk { snapshot, number } => write!(f, "chunk {number} of the snapshot at {snapshot}"),
        }
    }
}

/// What a store that does not open says when it can be mended; the same error otherwise.
pub(super) fn judge(path: &Path, error: OpenError) -> OpenError {
    let OpenError::Damaged { dir, damage } = error else { return error };
    let may_be = matches!(
        damage,
        Damage::Block { .. }
            | Damage::NotContiguous { .. }
            | Damage::Headers { .. }
            | Damage::Kept { .. }
            | Damage::NoSnapshot { .. }
    );
    match may_be.then(|| Mending::begin(path)) {
        Some(Ok(mending)) if !mending.wounds.is_empty() => {
            OpenError::Mendable { dir, damage: Box::new(damage), wounds: mending.wounds }
        }
        _ => OpenError::Damaged { dir, damage },
    }
}

/// Entries that are missing from the log, between blocks that are whole.
#[derive(Debug)]
struct Gap {
    first: LogIndex,
    last: LogIndex,
    /// Where blocks began that do not read: what takes their place begins there too.
    starts: Vec<LogIndex>,
    given: Vec<Arc<Entry>>,
}

/// A store that is being mended: open, but for nobody else.
pub struct Mending {
    dir: PathBuf,
    disk: Disk,
    ground: Ground,
    certificate: Option<Arc<HeadCertificate>>,
    gaps: Vec<Gap>,
    wounds: Vec<Wound>,
    newest_table: Option<(LogIndex, MemberTable)>,
}

impl fmt::Debug for Mending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mending").field("dir", &self.dir).field("wounds", &self.wounds).finish_non_exhaustive()
    }
}

impl Mending {
    /// Looks what can be mended of the store in `dir`, and keeps it locked. None at all when something is wrong that cannot.
    /// There may be more to mend once that is done: open the store again.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn begin(dir: &Path) -> Result<Self, OpenError> {
        explained(dir, || {
            let lock = recovery::lock(dir)?;
            let place = Place::current(dir)?;
            let db = open_database(place.dir()).map_err(database)?;
            let trees = Trees::open(&db).map_err(database)?;
            let disk = Disk::new(dir, Database::new(place, db)?, trees, lock)?;
            let missing = Damage::MissingRecord { tree: layout::META, record: layout::META_BASE };
            let (ground, wiping) = Ground::load(&disk)?.ok_or(missing)?;
            let damaged = |source| ReadError::Record { tree: CERTIFICATES, source };
            let newest = disk.trees.certificates.last()?;
            let newest = newest.map(|(key, value)| certificate(&key, &value)).transpose().map_err(damaged)?;
            let mut mending = Self {
                dir: dir.to_owned(),
                disk,
                ground,
                certificate: newest,
                gaps: Vec::new(),
                wounds: Vec::new(),
                newest_table: None,
            };
            if !wiping {
                mending.wounds = mending.survey()?.unwrap_or_default();
            }
            Ok(mending)
        })
    }

    /// What is to be given, in any order; then [`Mending::finish`].
    #[must_use]
    pub fn wounds(&self) -> &[Wound] {
        &self.wounds
    }

    /// The members of the newest table that the whole part of this store names, for whom to ask.
    #[must_use]
    pub fn members(&self) -> &[Member] {
        self.newest_table.as_ref().map_or(&[], |(_, table)| table.members())
    }

    fn certified(&self) -> LogIndex {
        LogIndex(self.certificate.as_ref().map_or(0, |c| c.head.size)).max(self.ground.index())
    }

    fn survey(&mut self) -> Result<Option<Vec<Wound>>, ReadError> {
        let tiles = self.survey_tree()?;
        if tiles.iter().any(|w| matches!(w, Wound::Tile { .. })) {
            // They prove the rest.
            return Ok(Some(tiles).filter(|all| all.len() <= MAX_WOUNDS));
        }
        let Some(kept) = self.survey_kept(&tiles)? else { return Ok(None) };
        let Some(gaps) = self.survey_log()? else { return Ok(None) };
        let Some(chunks) = self.survey_snapshot()? else { return Ok(None) };
        let entries = gaps.iter().map(|gap| Wound::Entries { first: gap.first, last: gap.last });
        let wounds: Vec<Wound> = tiles.into_iter().chain(kept).chain(entries).chain(chunks).collect();
        let is_little = wounds.len() <= MAX_WOUNDS
            && gaps.iter().map(|gap| gap.last.0 - gap.first.0 + 1).sum::<u64>() <= MAX_MENDED_ENTRIES;
        self.gaps = gaps;
        Ok(is_little.then_some(wounds))
    }

    fn proved(&self, level: u8, position: u64) -> Result<Result<Digest, Lacking>, ReadError> {
        climb::proved(&self.disk, &self.ground.edge, level, position)
    }

    /// Leaf tiles whose headers are wrong. Tiles above them are made again from headers, unless those are wrong or elsewhere.
    fn survey_tree(&self) -> Result<Vec<Wound>, ReadError> {
        let (mut tiles, mut headers) = (Vec::new(), Vec::new());
        let size = self.ground.edge.size();
        for position in self.ground.from.prev().0 / TILE..full_tiles(size, 0) {
            let found = below::leaves_of_tile(&self.disk, position).ok().map(|leaves| subtree(&leaves));
            match self.proved(1, position)? {
                Ok(expected) if found == Some(expected) => {}
                Ok(_) => headers.push(Wound::Headers { first: LogIndex(position * TILE + 1) }),
                Err(Lacking { level, position }) => {
                    let tile = Wound::Tile { level, position };
                    if !tiles.contains(&tile) && tiles.len() <= MAX_WOUNDS {
                        tiles.push(tile);
                    }
                }
            }
        }
        Ok(if tiles.is_empty() { headers } else { tiles })
    }

    /// The header of an entry below the log, unless that is wrong too.
    fn header(&self, index: LogIndex) -> Result<Option<Header>, ReadError> {
        let leaf = index.prev().0;
        let unfinished = self.ground.edge.size() - self.ground.edge.size() % TILE;
        let headers = |edge: &Edge| edge.headers().get((leaf - unfinished) as usize).cloned();
        let bytes = if leaf >= unfinished { headers(&self.ground.edge) } else { self.stored_header(index)? };
        Ok(bytes.and_then(|bytes| Header::decode(&bytes).ok()).filter(|header| header.index == index))
    }

    fn stored_header(&self, index: LogIndex) -> Result<Option<Vec<u8>>, ReadError> {
        let position = index.prev().0 / TILE;
        let Ok(expected) = self.proved(1, position)? else { return Ok(None) };
        let whole = below::leaves_of_tile(&self.disk, position).ok().filter(|found| subtree(found) == expected);
        if whole.is_none() {
            return Ok(None);
        }
        let (run, at) = (index.prev().0 / layout::HEADER_RUN, index.prev().0 % layout::HEADER_RUN);
        let value = self.disk.trees.headers.get(number_key(run * layout::HEADER_RUN + 1))?;
        Ok(value.and_then(|value| layout::read_header_run(&value, at).ok().map(<[u8]>::to_vec)))
    }

    /// Kept entries that are wrong, and changes of members that are missing; `None` when nothing proves one of them.
    fn survey_kept(&mut self, headers: &[Wound]) -> Result<Option<Vec<Wound>>, ReadError> {
        let mut wrong = Vec::new();
        let mut changes = self.ground.epochs.clone();
        for row in self.disk.trees.kept.iter() {
            let (key, value) = row?;
            let index = LogIndex(layout::read_number_key(&key).unwrap_or_default());
            if index > self.ground.index() {
                continue;
            }
            let entry = kept::decode(&key, &value).ok();
            let is_hidden = headers.iter().any(|w| matches!(w, Wound::Headers { first } if covers(*first, index)));
            let is_right = match &entry {
                // Judged once its header is back.
                Some(_) if is_hidden || index < self.ground.from => true,
                Some(entry) => self.header(index)?.as_ref() == Some(&entry.header),
                None => false,
            };
            match entry.filter(|_| is_right) {
                Some(entry) => {
                    changes.retain(|change| *change != index);
                    note_table(&mut self.newest_table, &entry);
                }
                None => wrong.push(index),
            }
        }
        wrong.extend(changes);
        wrong.sort_unstable();
        wrong.dedup();
        let is_proved = wrong.iter().all(|index| *index >= self.ground.from);
        Ok(is_proved.then(|| wrong.into_iter().map(|index| Wound::Kept { index }).collect()))
    }

    /// Gaps between whole blocks; `None` when one of them reaches beyond what is certified, or no block follows it.
    fn survey_log(&mut self) -> Result<Option<Vec<Gap>>, ReadError> {
        let mut gaps: Vec<Gap> = Vec::new();
        let (mut expected, mut starts) = (self.ground.index().next(), Vec::new());
        for row in self.disk.trees.log.range(number_key(expected.0)..) {
            let (key, value) = row?;
            let Ok(first) = layout::read_number_key(&key).map(LogIndex) else { return Ok(None) };
            if first < expected {
                return Ok(None);
            }
            let Some((end, entries)) = read_block(&key, &value) else {
                starts.push(first);
                continue;
            };
            if first > expected {
                gaps.push(Gap {
                    first: expected,
                    last: first.prev(),
                    starts: std::mem::take(&mut starts),
                    given: vec![],
                });
            }
            entries.iter().for_each(|entry| note_table(&mut self.newest_table, entry));
            expected = end;
        }
        // What the log ended with is this member's own word, unless a certificate covers it and more.
        let certified = LogIndex(self.certificate.as_ref().map_or(0, |c| c.head.size));
        let is_proved = starts.is_empty() && gaps.iter().all(|gap| gap.last <= certified);
        Ok(is_proved.then_some(gaps))
    }

    /// Chunks of the newest image to start from, when none is whole; `None` when there is no such image.
    fn survey_snapshot(&self) -> Result<Option<Vec<Wound>>, ReadError> {
        let base = self.ground.index();
        if base == LogIndex::ZERO {
            return Ok(Some(Vec::new()));
        }
        let mut newest = None;
        let snapshots = Snapshots::load(&self.disk)?;
        for manifest in snapshots.complete(base, self.certified()) {
            match snapshots.check(&self.disk, &manifest) {
                Ok(_) => return Ok(Some(Vec::new())),
                Err(super::SnapshotError::Missing { index, chunks }) if newest.is_none() => {
                    newest = Some(chunks.into_iter().map(|number| Wound::Chunk { snapshot: index, number }).collect());
                }
                Err(super::SnapshotError::Read(why)) => return Err(why),
                Err(_) => {}
            }
        }
        Ok(newest)
    }
}

fn covers(first: LogIndex, index: LogIndex) -> bool {
    first <= index && index.0 < first.0 + TILE
}

fn note_table(newest: &mut Option<(LogIndex, MemberTable)>, entry: &Entry) {
    if entry.header.kind == Kind::Epoch
        && newest.as_ref().is_none_or(|(index, _)| *index < entry.index())
        && let Ok(table) = MemberTable::decode_granted(&entry.body.payload)
    {
        *newest = Some((entry.index(), table));
    }
}

/// The index after a whole block, and those of its entries that change the members.
fn read_block(key: &[u8], value: &[u8]) -> Option<(LogIndex, Vec<Arc<Entry>>)> {
    let block = Block::read(key, value).ok()?;
    let entries = block.raw_from(block.first).map(|(index, bytes)| block::decode(index, bytes));
    let mut changes = Vec::new();
    for entry in entries {
        let entry = entry.ok()?;
        if entry.header.kind == Kind::Epoch {
            changes.push(entry);
        }
    }
    Some((block.end(), changes))
}

/// What is given takes its place once it is proved.
impl Mending {
    /// A tile of hashes.
    ///
    /// # Errors
    /// [`MendError::Unproved`] unless the tile above it, or the edge, proves it.
    pub fn give_tile(&self, level: u8, position: u64, hashes: &[Digest]) -> Result<(), MendError> {
        guard(|| {
            if hashes.len() as u64 != TILE || self.proved(level + 1, position)? != Ok(subtree(hashes)) {
                return Err(MendError::Unproved { wound: Wound::Tile { level, position } });
            }
            Ok(self.disk.insert(&self.disk.trees.tiles, &tile_key(level, position), &write_tile(hashes))?)
        })
    }

    /// The headers of a leaf tile.
    ///
    /// # Errors
    /// As [`Mending::give_tile`].
    pub fn give_headers(&self, first: LogIndex, headers: &[Vec<u8>]) -> Result<(), MendError> {
        guard(|| {
            let is_right = are_headers_from(first, headers)
                && self.proved(1, first.prev().0 / TILE)? == Ok(subtree(&leaves(headers)));
            if !is_right {
                return Err(MendError::Unproved { wound: Wound::Headers { first } });
            }
            Ok(put_headers(&self.disk, first, headers)?)
        })
    }

    /// An entry below the log.
    ///
    /// # Errors
    /// [`MendError::Unproved`] unless it is the one that its header, which is here, names.
    pub fn give_kept(&self, entry: &Entry) -> Result<(), MendError> {
        guard(|| {
            let index = entry.index();
            let is_below = (self.ground.from..=self.ground.index()).contains(&index);
            if !is_below || !kept::is_kept(entry.header.kind) || self.header(index)?.as_ref() != Some(&entry.header) {
                return Err(MendError::Unproved { wound: Wound::Kept { index } });
            }
            kept::put(&self.disk, entry)?;
            Ok(())
        })
    }

    /// A chunk of a snapshot, with its path.
    ///
    /// # Errors
    /// [`MendError::Unproved`] unless the snapshot's manifest, which is here, proves it.
    pub fn give_chunk(&self, snapshot: LogIndex, number: u32, chunk: &[u8], path: &[Digest]) -> Result<(), MendError> {
        guard(|| {
            let manifest = Snapshots::load(&self.disk)?.complete(snapshot, snapshot).pop();
            if !manifest.is_some_and(|manifest| manifest.proves(number, chunk, path)) {
                return Err(MendError::Unproved { wound: Wound::Chunk { snapshot, number } });
            }
            let key = part_key(snapshot, number);
            Ok(self.disk.insert(&self.disk.trees.snapshots, &key, &seal(&key, chunk))?)
        })
    }

    /// The entries of a gap, all of them in order; they are proved, together, by [`Mending::finish`].
    ///
    /// # Errors
    /// [`MendError::Unproved`] when they are others by their indexes.
    pub fn give_entries(&mut self, first: LogIndex, entries: Vec<Arc<Entry>>) -> Result<(), MendError> {
        let gap = self.gaps.iter_mut().find(|gap| gap.first == first);
        let unproved = |last| MendError::Unproved { wound: Wound::Entries { first, last } };
        let gap = gap.ok_or_else(|| unproved(first))?;
        let expected = (gap.first.0..=gap.last.0).map(LogIndex);
        if !expected.eq(entries.iter().map(|e| e.index())) || entries.iter().any(|e| e.encode().len() > MAX_ENTRY) {
            return Err(unproved(gap.last));
        }
        gap.given = entries;
        Ok(())
    }

    /// Proves the entries given by the tree: each block that follows carries the root before it, and the newest head
    /// certificate the root over all. Then writes them, each block durably before the next.
    ///
    /// # Errors
    /// [`MendError::Unproved`] names a gap whose entries are not those that belong there: give others, and finish again.
    /// [`MendError::Other`] when it is the rest of the log that the certificate does not prove: nothing was written.
    pub fn finish(&mut self) -> Result<(), MendError> {
        guard(|| {
            self.disk.make_durable()?;
            if self.gaps.is_empty() {
                return Ok(());
            }
            let blocks = self.prove_log()?;
            for (key, value) in blocks {
                self.disk.insert(&self.disk.trees.log, &key, &value)?;
                self.disk.make_durable()?;
            }
            Ok(())
        })
    }

    /// Walks the log with what was given in its place, up to the newest certificate, and returns the blocks that are missing.
    fn prove_log(&self) -> Result<Vec<block::Row>, MendError> {
        let Some(certificate) = &self.certificate else { return Err(MendError::Other) };
        let given: BTreeMap<LogIndex, &Gap> = self.gaps.iter().map(|gap| (gap.first, gap)).collect();
        let mut tree = self.ground.edge.frontier();
        let mut blocks = Vec::new();
        let mut before: Option<&Gap> = None;
        let size = certificate.head.size;
        let mut certified = None;
        for row in self.disk.trees.log.range(number_key(self.ground.index().next().0)..) {
            let (key, value) = row?;
            let Some((_, _)) = read_block(&key, &value) else { continue };
            if let Some(gap) = given.get(&LogIndex(tree.size() + 1)) {
                blocks.extend(gap.fill(&mut tree, size, &mut certified));
                before = Some(gap);
            }
            let Ok(block) = Block::read(&key, &value) else { continue };
            if block.root_before != tree.root() || block.first.0 != tree.size() + 1 {
                return Err(before.map_or(MendError::Other, |gap| MendError::Unproved {
                    wound: Wound::Entries { first: gap.first, last: gap.last },
                }));
            }
            before = None;
            for (index, bytes) in block.raw_from(block.first) {
                let entry = block::decode(index, bytes).map_err(|_| MendError::Other)?;
                tree.push(entry.header.leaf_hash());
                if tree.size() == size {
                    certified = Some(tree.root());
                }
            }
            if tree.size() >= size {
                break;
            }
        }
        if certified == Some(certificate.head.root) { Ok(blocks) } else { Err(MendError::Other) }
    }
}

impl Gap {
    /// Grows the tree by what was given, and makes blocks of it: one for each that does not read, more if something else
    /// was lost with it.
    fn fill(
        &self,
        tree: &mut crate::certificate::merkle::Frontier,
        size: u64,
        certified: &mut Option<Digest>,
    ) -> Vec<block::Row> {
        let mut blocks = Vec::new();
        let mut open: Option<Builder> = None;
        for entry in &self.given {
            let bytes = entry.encode();
            let begins = self.starts.contains(&entry.index());
            if let Some(full) = open.take_if(|block| begins || !block.has_room_for(bytes.len())) {
                blocks.push(full.finish());
            }
            open.get_or_insert_with(|| Builder::new(entry.index(), tree.root())).push(&bytes);
            tree.push(entry.header.leaf_hash());
            if tree.size() == size {
                *certified = Some(tree.root());
            }
        }
        blocks.extend(open.map(Builder::finish));
        blocks
    }
}
