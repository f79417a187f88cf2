//! Hashes of the tree that are proved from its right edge down, whatever the disk says.
//!
//! The edge holds the hashes of the unfinished tile of every level. A full tile of the highest of these levels is proved by
//! its hash in the edge, one of a lower level by its hash in the tile above it. So a tile that is missing or wrong is found
//! before anything is proved by it, and what takes its place can be judged.

use super::disk::Disk;
use super::error::ReadError;
use super::layout::{read_tile, tile_key};
use crate::certificate::{Edge, full_tiles, subtree};
use crate::ids::Digest;
use crate::limits::TILE;

/// A full tile that is not here, or not the one that the edge proves. Those above it are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Lacking {
    pub(super) level: u8,
    pub(super) position: u64,
}

/// The hash number `position` of a tile level: of the complete subtree over as many leaves as a tile of the level below
/// stands for. It lies below the edge.
pub(super) fn proved(disk: &Disk, edge: &Edge, level: u8, position: u64) -> Result<Result<Digest, Lacking>, ReadError> {
    let (tile, at) = (position / TILE, (position % TILE) as usize);
    if tile >= full_tiles(edge.size(), level) {
        let missing = ReadError::Tile { level, position: tile };
        let hashes = if tile == full_tiles(edge.size(), level) { edge.unfinished(level) } else { &[] };
        return hashes.get(at).copied().map(Ok).ok_or(missing);
    }
    Ok(tile_proved(disk, edge, level, tile)?.map(|hashes| hashes[at]))
}

/// The hashes of a full tile below the edge.
pub(super) fn tile_proved(
    disk: &Disk,
    edge: &Edge,
    level: u8,
    position: u64,
) -> Result<Result<Vec<Digest>, Lacking>, ReadError> {
    // A level more for each step, and above the eighth there is no full tile: this ends.
    let expected = match proved(disk, edge, level + 1, position)? {
        Ok(hash) => hash,
        Err(lacking) => return Ok(Err(lacking)),
    };
    let stored = disk.trees.tiles.get(tile_key(level, position))?.and_then(|value| read_tile(&value).ok());
    Ok(stored.filter(|hashes| subtree(hashes) == expected).ok_or(Lacking { level, position }))
}
