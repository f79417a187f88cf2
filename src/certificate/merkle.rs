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
pub fn root<N: Nodes>(_nodes: &N, _size: u64) -> Result<Digest, N::Error> {
    todo!()
}

/// The inclusion path of leaf number `leaf` (from 0) in the tree of `size` leaves (RFC 9162, 2.1.3.1).
///
/// # Errors
/// Those of `nodes`. Panics when `leaf >= size`.
pub fn inclusion_path<N: Nodes>(_nodes: &N, _leaf: u64, _size: u64) -> Result<Vec<Digest>, N::Error> {
    todo!()
}

/// The consistency proof from `old` to `new` leaves (RFC 9162, 2.1.4.1); empty when `old` is 0 or `new`.
///
/// # Errors
/// Those of `nodes`.
pub fn consistency_path<N: Nodes>(_nodes: &N, _old: u64, _new: u64) -> Result<Vec<Digest>, N::Error> {
    todo!()
}

/// The root that a leaf hash and its path lead to (RFC 9162, 2.1.3.2); `None` when the path has the wrong length or
/// `leaf >= size`.
#[must_use]
pub fn root_from_path(_leaf_hash: Digest, _leaf: u64, _size: u64, _path: &[Digest]) -> Option<Digest> {
    todo!()
}

/// A right border node without a sibling stands, unhashed, for its parent too.
fn skip_missing_levels(at: &mut u64, last: &mut u64) {
    while *at % 2 == 0 && *at != 0 {
        (*at, *last) = (*at >> 1, *last >> 1);
    }
}

/// Whether `path` proves that the tree (`old`, `old_root`) is a prefix of (`new`, `new_root`) (RFC 9162, 2.1.4.2). The
/// empty tree is a prefix of every tree, by the empty path.
#[must_use]
pub fn verify_consistency(_old: u64, _old_root: Digest, _new: u64, _new_root: Digest, _path: &[Digest]) -> bool {
    todo!()
}
