//! What stands for the entries below the log, checked at open: headers, tree hashes, kept entries.
//!
//! Headers are what is kept; tree hashes follow from them, and are written anew where they are missing or wrong. All of
//! it must lead to the edge that the log rests on. Where headers begin late, because a snapshot was installed, what is
//! there is held against that edge all the same.

use super::archive::Archive;
use super::climb;
use super::disk::Disk;
use super::error::{DurabilityError, ReadError};
use super::failure::{Failure, Findings};
use super::ground::Ground;
use super::kept;
use super::layout::{self, HEADER_RUN, number_key, read_tile, tile_key, write_tile};
use crate::certificate::merkle::{self, Nodes, leaf_hash};
use crate::certificate::{Entry, HeadCertificate, Kind, TILE_LEVELS, full_tiles, subtree};
use crate::ids::{Digest, LogIndex};
use crate::limits::TILE;
use std::sync::Arc;

/// Why what stands for entries below the log does not.
pub(super) enum Fault {
    /// Headers or hashes of these entries.
    Headers(LogIndex, LogIndex),
    /// A kept entry.
    Kept(LogIndex),
    /// It cannot be read.
    Read(ReadError),
}

impl From<ReadError> for Fault {
    fn from(error: ReadError) -> Self {
        Self::Read(error)
    }
}

impl From<sled::Error> for Fault {
    fn from(error: sled::Error) -> Self {
        Self::Read(error.into())
    }
}

impl From<DurabilityError> for Fault {
    fn from(error: DurabilityError) -> Self {
        Self::Read(error.into())
    }
}

/// Checks headers against the hashes, and those against the edge; returns how many tiles were written anew.
pub(super) fn check_tree(disk: &Disk, ground: &Ground, found: &mut Findings) -> Result<u64, Failure> {
    let size = ground.edge.size();
    let mut written = 0;
    let mut level = Level { number: 0, first: ground.from.prev().0 / TILE, hashes: Vec::new() };
    for position in level.first..full_tiles(size, 0) {
        // Where headers are gone, their hashes may still tell what is right above them.
        let Some(leaves) = leaves_or_tile(disk, position, found)? else { return Ok(written) };
        level.hashes.push(subtree(&leaves));
        written += put_tile(disk, 0, position, &leaves)?;
    }
    level.number = 1;
    // Every level: what is known of it lies in tiles, and the rest in the edge.
    while !level.hashes.is_empty() {
        let end = level.first + level.hashes.len() as u64;
        let unfinished = end - end % TILE;
        let known = &level.hashes[usize::try_from(unfinished.max(level.first) - level.first).unwrap_or(usize::MAX)..];
        let edge = ground.edge.unfinished(level.number);
        if !edge.ends_with(known) || end % TILE != edge.len() as u64 {
            found.hear(Fault::Headers(ground.from, ground.index()))?;
            return Ok(written);
        }
        let mut above = Level { number: level.number + 1, first: level.first.div_ceil(TILE), hashes: Vec::new() };
        for position in level.first / TILE..end / TILE {
            let from = (position * TILE).max(level.first) - level.first;
            let until = (position + 1) * TILE - level.first;
            let known = &level.hashes[from as usize..until as usize];
            if position < above.first {
                found.take(check_part(disk, ground, level.number, position, known))?;
            } else {
                above.hashes.push(subtree(known));
                written += put_tile(disk, level.number, position, known)?;
            }
        }
        level = above;
    }
    Ok(written)
}

/// Consecutive hashes of one tile level.
struct Level {
    number: u8,
    /// The place of the first.
    first: u64,
    hashes: Vec<Digest>,
}

/// The leaf hashes of a full tile, out of its headers.
pub(super) fn leaves_of_tile(disk: &Disk, position: u64) -> Result<Vec<Digest>, Fault> {
    let first = position * TILE + 1;
    let runs = (first..first + TILE).step_by(HEADER_RUN as usize);
    runs.map(|run| leaves_of_run(disk, run)).collect::<Result<Vec<_>, _>>().map(|runs| runs.concat())
}

/// The leaf hashes of a full tile, out of its headers; of the tile itself where headers were found to be wrong.
fn leaves_or_tile(disk: &Disk, position: u64, found: &mut Findings) -> Result<Option<Vec<Digest>>, Failure> {
    let first = position * TILE + 1;
    let mut leaves = Vec::with_capacity(TILE as usize);
    for run in (first..first + TILE).step_by(HEADER_RUN as usize) {
        leaves.extend(found.take(leaves_of_run(disk, run))?.unwrap_or_default());
    }
    if leaves.len() as u64 == TILE {
        return Ok(Some(leaves));
    }
    let tile = disk.trees.tiles.get(tile_key(0, position))?;
    Ok(tile.and_then(|value| read_tile(&value).ok()))
}

fn leaves_of_run(disk: &Disk, run: u64) -> Result<Vec<Digest>, Fault> {
    let wrong = || Fault::Headers(LogIndex(run), LogIndex(run + HEADER_RUN - 1));
    let value = disk.trees.headers.get(number_key(run))?.ok_or_else(wrong)?;
    let headers = layout::read_whole_run(&value).map_err(|_| wrong())?;
    Ok(headers.into_iter().map(leaf_hash).collect())
}

fn put_tile(disk: &Disk, level: u8, position: u64, hashes: &[Digest]) -> Result<u64, Fault> {
    let (key, value) = (tile_key(level, position), write_tile(hashes));
    if disk.trees.tiles.get(key)?.is_some_and(|old| old == value) {
        return Ok(0);
    }
    disk.insert(&disk.trees.tiles, &key, &value)?;
    Ok(1)
}

/// A tile of which only the end follows from headers that are here: it came about after a snapshot was installed.
fn check_part(disk: &Disk, ground: &Ground, level: u8, position: u64, known: &[Digest]) -> Result<(), Fault> {
    match climb::tile_proved(disk, &ground.edge, level, position)? {
        Ok(hashes) if hashes.ends_with(known) => Ok(()),
        _ => {
            let leaves = u32::from(TILE_LEVELS) * (u32::from(level) + 1);
            Err(Fault::Headers(ground.from, LogIndex((position + 1) << leaves)))
        }
    }
}

/// Reads every kept entry, compares it with the tree where that is here, and returns the changes of members among them.
pub(super) fn check_kept(
    disk: &Disk,
    ground: &Ground,
    archive: &Archive,
    found: &mut Findings,
) -> Result<Vec<Arc<Entry>>, Failure> {
    let mut epochs = Vec::new();
    for row in disk.trees.kept.iter() {
        let (key, value) = row?;
        let Some(entry) = found.take(check_kept_entry(disk, ground, archive, &key, &value))? else { continue };
        if matches!(entry.header.kind, Kind::Epoch | Kind::EpochFinal) && ground.epochs.contains(&entry.index()) {
            epochs.push(entry);
        }
    }
    for index in &ground.epochs {
        if epochs.binary_search_by_key(index, |e| e.index()).is_err() {
            found.hear(Fault::Kept(*index))?;
        }
    }
    Ok(epochs)
}

fn check_kept_entry(
    disk: &Disk,
    ground: &Ground,
    archive: &Archive,
    key: &[u8],
    value: &[u8],
) -> Result<Arc<Entry>, Fault> {
    let index = LogIndex(layout::read_number_key(key).unwrap_or_default());
    let entry = kept::decode(key, value).map_err(|_| Fault::Kept(index))?;
    // One beyond the ground was copied before that was to rise, which it did not: it is copied again.
    let held = index >= ground.from && index <= ground.index();
    if held && archive.nodes(disk).node(0, index.prev().0)? != entry.header.leaf_hash() {
        return Err(Fault::Kept(index));
    }
    Ok(entry)
}

/// Holds a certificate of a head below the log against the tree, where that is here.
pub(super) fn root_of(
    disk: &Disk,
    archive: &Archive,
    certificate: &HeadCertificate,
) -> Result<Option<Digest>, ReadError> {
    match merkle::root(&archive.nodes(disk), certificate.head.size) {
        Ok(root) => Ok(Some(root)),
        Err(ReadError::NotHere { .. }) => Ok(None),
        Err(e) => Err(e),
    }
}
