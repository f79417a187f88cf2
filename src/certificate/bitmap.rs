//! Signer sets.

/// A set of voters by their position in an epoch's voters sorted by DID: bit `i` is bit `i % 8` (least significant
/// first) of byte `i / 8`. Exactly `⌈n/8⌉` bytes for `n` voters, padding zero.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub struct Bitmap(#[serde(with = "serde_bytes")] Vec<u8>);

impl Bitmap {
    /// The empty set over `voters` voters.
    #[must_use]
    pub fn empty(voters: usize) -> Self {
        Self(vec![0; voters.div_ceil(8)])
    }

    /// The set of these positions over `voters` voters; positions beyond are a caller's bug and panic.
    #[must_use]
    pub fn of(voters: usize, positions: impl IntoIterator<Item = usize>) -> Self {
        let mut set = Self::empty(voters);
        for p in positions {
            assert!(p < voters, "signer {p} of {voters} voters");
            set.0[p / 8] |= 1 << (p % 8);
        }
        set
    }

    /// Bytes as they came; [`Bitmap::fits`] says whether they are a set over `n` voters.
    #[must_use]
    pub fn from_bytes(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }

    /// The bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Whether this is a set over exactly `voters` voters: exact length and zero padding.
    #[must_use]
    pub fn fits(&self, voters: usize) -> bool {
        self.0.len() == voters.div_ceil(8) && self.positions().all(|p| p < voters)
    }

    /// How many are in the set.
    #[must_use]
    pub fn count(&self) -> usize {
        self.0.iter().map(|b| b.count_ones() as usize).sum()
    }

    /// Whether `position` is in the set.
    #[must_use]
    pub fn contains(&self, position: usize) -> bool {
        self.0.get(position / 8).is_some_and(|b| b >> (position % 8) & 1 == 1)
    }

    /// The positions in the set, ascending.
    pub fn positions(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.0.len() * 8).filter(|&p| self.contains(p))
    }
}
