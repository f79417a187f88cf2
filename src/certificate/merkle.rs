//! The tree of RFC 9162, section 2.1: leaf `H(0x00‖header)`, node `H(0x01‖left‖right)`, split at the largest power of
//! two below n.

use super::bytes::FormatError;
use crate::ids::Digest;
use sha2::{Digest as _, Sha256};

/// Longest path in a tree whose size is a `u64`, in hashes.
pub const MAX_PATH: usize = 64;

/// `SHA-256(0x00 ‖ data)`.
#[must_use]
pub fn leaf_hash(data: &[u8]) -> Digest {
    Digest(Sha256::new().chain_update([0]).chain_update(data).finalize().into())
}

/// `SHA-256(0x01 ‖ left ‖ right)`.
#[must_use]
pub fn node_hash(left: &Digest, right: &Digest) -> Digest {
    Digest(Sha256::new().chain_update([1]).chain_update(left.0).chain_update(right.0).finalize().into())
}

/// The root of no leaves: `SHA-256("")`.
#[must_use]
pub fn empty_root() -> Digest {
    Digest(Sha256::digest([]).into())
}

/// The roots of the complete subtrees that make up a tree of some size, largest first: enough to append and to tell
/// the root, in O(log n) space.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "RawFrontier")]
pub struct Frontier {
    size: u64,
    peaks: Vec<Digest>,
}

#[derive(serde::Deserialize)]
struct RawFrontier {
    size: u64,
    peaks: Vec<Digest>,
}

impl TryFrom<RawFrontier> for Frontier {
    type Error = FormatError;

    fn try_from(raw: RawFrontier) -> Result<Self, FormatError> {
        if raw.peaks.len() == raw.size.count_ones() as usize {
            Ok(Self { size: raw.size, peaks: raw.peaks })
        } else {
            Err(FormatError::Value { field: "frontier.peaks" })
        }
    }
}

impl Frontier {
    /// The frontier of the first `size` leaves of a stored tree.
    ///
    /// # Errors
    /// Those of `nodes`.
    pub fn of<N: Nodes>(nodes: &N, size: u64) -> Result<Self, N::Error> {
        let levels = (0..64).rev().filter(|level| size >> level & 1 == 1);
        // Before the subtree of each level lie all larger ones, that is the higher bits of the size.
        let peaks = levels.map(|level| nodes.node(level, (size >> level) - 1)).collect::<Result<_, _>>()?;
        Ok(Self { size, peaks })
    }

    /// The tree of `size` leaves with these complete subtrees, largest first.
    ///
    /// # Errors
    /// [`FormatError::Value`] unless there is one for each bit of the size.
    pub fn new(size: u64, peaks: Vec<Digest>) -> Result<Self, FormatError> {
        Self::try_from(RawFrontier { size, peaks })
    }

    /// The roots of its complete subtrees, largest first.
    #[must_use]
    pub fn peaks(&self) -> &[Digest] {
        &self.peaks
    }

    /// `peaks`, largest first, are those of a tree of `size` leaves.
    pub(super) fn from_peaks(size: u64, peaks: Vec<Digest>) -> Self {
        assert_eq!(peaks.len(), size.count_ones() as usize, "one peak per bit set in size");
        Self { size, peaks }
    }

    /// Leaves so far.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Appends a leaf hash.
    pub fn push(&mut self, leaf: Digest) {
        let mut node = leaf;
        for _ in 0..self.size.trailing_ones() {
            let left = self.peaks.pop().expect("one peak per bit set in size");
            node = node_hash(&left, &node);
        }
        self.peaks.push(node);
        self.size += 1;
    }

    /// The root over all leaves so far.
    #[must_use]
    pub fn root(&self) -> Digest {
        fold_peaks(&self.peaks)
    }
}

/// Where the hashes of complete subtrees come from: `level` 0 holds leaf hashes; the node at (`level`, `position`)
/// covers leaves `position·2^level .. (position+1)·2^level`.
pub trait Nodes {
    /// Why a node cannot be had.
    type Error;
    /// The hash of a complete subtree.
    ///
    /// # Errors
    /// Whatever the source says.
    fn node(&self, level: u8, position: u64) -> Result<Digest, Self::Error>;
}

/// The root of the first `size` leaves.
///
/// # Errors
/// Those of `nodes`.
pub fn root<N: Nodes>(nodes: &N, size: u64) -> Result<Digest, N::Error> {
    range_root(nodes, 0, size)
}

/// The root over leaves `start..end`, where `start` is a multiple of the largest power of two in `end - start`: all
/// ranges that RFC 9162's splitting meets are such.
fn range_root<N: Nodes>(nodes: &N, start: u64, end: u64) -> Result<Digest, N::Error> {
    let mut peaks = Vec::with_capacity(MAX_PATH);
    let mut at = start;
    while at < end {
        let level = (end - at).ilog2();
        peaks.push(nodes.node(level as u8, at >> level)?);
        at += 1 << level;
    }
    Ok(fold_peaks(&peaks))
}

fn fold_peaks(peaks: &[Digest]) -> Digest {
    let Some((&last, larger)) = peaks.split_last() else { return empty_root() };
    larger.iter().rev().fold(last, |right, left| node_hash(left, &right))
}

/// The largest power of two below `n`, for `n` ≥ 2.
fn split(n: u64) -> u64 {
    1 << (n - 1).ilog2()
}

/// The inclusion path of leaf number `leaf` (from 0) in the tree of `size` leaves (RFC 9162, 2.1.3.1).
///
/// # Errors
/// Those of `nodes`. Panics when `leaf >= size`.
pub fn inclusion_path<N: Nodes>(nodes: &N, leaf: u64, size: u64) -> Result<Vec<Digest>, N::Error> {
    assert!(leaf < size, "leaf {leaf} of a tree of {size}");
    let (mut start, mut end) = (0, size);
    let mut path = Vec::with_capacity(MAX_PATH);
    while end - start > 1 {
        let middle = start + split(end - start);
        if leaf < middle {
            path.push(range_root(nodes, middle, end)?);
            end = middle;
        } else {
            path.push(range_root(nodes, start, middle)?);
            start = middle;
        }
    }
    path.reverse();
    Ok(path)
}

/// The consistency proof from `old` to `new` leaves (RFC 9162, 2.1.4.1); empty when `old` is 0 or `new`.
///
/// # Errors
/// Those of `nodes`. Panics when `old > new`.
pub fn consistency_path<N: Nodes>(nodes: &N, old: u64, new: u64) -> Result<Vec<Digest>, N::Error> {
    assert!(old <= new, "from {old} leaves back to {new}");
    if old == 0 {
        return Ok(Vec::new());
    }
    let (mut start, mut end) = (0, new);
    let mut path = Vec::with_capacity(MAX_PATH);
    while old != end {
        let middle = start + split(end - start);
        if old <= middle {
            path.push(range_root(nodes, middle, end)?);
            end = middle;
        } else {
            path.push(range_root(nodes, start, middle)?);
            start = middle;
        }
    }
    // The old tree's own root need not be sent: the verifier has it.
    if start > 0 {
        path.push(range_root(nodes, start, end)?);
    }
    path.reverse();
    Ok(path)
}

/// The root that a leaf hash and its path lead to (RFC 9162, 2.1.3.2); `None` when the path has the wrong length or
/// `leaf >= size`.
#[must_use]
pub fn root_from_path(leaf_hash: Digest, leaf: u64, size: u64, path: &[Digest]) -> Option<Digest> {
    if leaf >= size {
        return None;
    }
    let (mut at, mut last) = (leaf, size - 1);
    let mut node = leaf_hash;
    for sibling in path {
        if last == 0 {
            return None;
        }
        if at % 2 == 1 || at == last {
            node = node_hash(sibling, &node);
            skip_missing_levels(&mut at, &mut last);
        } else {
            node = node_hash(&node, sibling);
        }
        (at, last) = (at >> 1, last >> 1);
    }
    (last == 0).then_some(node)
}

/// A right border node without a sibling stands, unhashed, for its parent too.
fn skip_missing_levels(at: &mut u64, last: &mut u64) {
    while at.is_multiple_of(2) && *at != 0 {
        (*at, *last) = (*at >> 1, *last >> 1);
    }
}

/// Whether `path` proves that the tree (`old`, `old_root`) is a prefix of (`new`, `new_root`) (RFC 9162, 2.1.4.2). The
/// empty tree is a prefix of every tree, by the empty path.
#[must_use]
pub fn verify_consistency(old: u64, old_root: Digest, new: u64, new_root: Digest, path: &[Digest]) -> bool {
    if old == 0 || old == new {
        let same = if old == new { old_root == new_root } else { true };
        let empty = if old == 0 { old_root == empty_root() } else { true };
        return same && empty && path.is_empty();
    }
    if old > new {
        return false;
    }
    let skipped = (old - 1).trailing_ones();
    let (mut at, mut last) = ((old - 1) >> skipped, (new - 1) >> skipped);
    let (seed, rest) = match path.split_first() {
        None => return false,
        Some(_) if old.is_power_of_two() => (old_root, path),
        Some((&seed, rest)) => (seed, rest),
    };
    let (mut old_node, mut new_node) = (seed, seed);
    for sibling in rest {
        if last == 0 {
            return false;
        }
        if at % 2 == 1 || at == last {
            old_node = node_hash(sibling, &old_node);
            new_node = node_hash(sibling, &new_node);
            skip_missing_levels(&mut at, &mut last);
        } else {
            new_node = node_hash(&new_node, sibling);
        }
        (at, last) = (at >> 1, last >> 1);
    }
    last == 0 && old_node == old_root && new_node == new_root
}

#[cfg(test)]
mod tests;
