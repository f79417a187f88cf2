//! Signer sets.

use crate::limits::MAX_MEMBERS;

/// A set of voters by their position in an epoch's voters sorted by DID: bit `i` is bit `i % 8` (least significant
/// first) of byte `i / 8`. Exactly `⌈n/8⌉` bytes for `n` voters, padding zero.
///
/// Hexadecimal in JSON.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Bitmap(Vec<u8>);

impl serde::Serialize for Bitmap {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        if s.is_human_readable() { s.serialize_str(&hex::encode(&self.0)) } else { s.serialize_bytes(&self.0) }
    }
}

impl<'de> serde::Deserialize<'de> for Bitmap {
    /// Refuses sets over more voters than a table can have.
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let bytes: Vec<u8> =
            if d.is_human_readable() { hex::serde::deserialize(d)? } else { serde_bytes::deserialize(d)? };
        if bytes.len() > MAX_MEMBERS.div_ceil(8) {
            return Err(serde::de::Error::invalid_length(bytes.len(), &"a set over at most 100 voters"));
        }
        Ok(Self(bytes))
    }
}

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

    /// Whether nobody is in both sets.
    #[must_use]
    pub fn is_disjoint(&self, other: &Self) -> bool {
        self.0.iter().zip(&other.0).all(|(a, b)| a & b == 0)
    }

    /// The positions in the set, ascending.
    pub fn positions(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.0.len() * 8).filter(|&p| self.contains(p))
    }
}

#[cfg(test)]
mod tests {
    use super::Bitmap;

    #[test]
    fn bit_i_is_bit_i_mod_8_of_byte_i_div_8() {
        let set = Bitmap::of(10, [0, 3, 9]);
        assert_eq!(set.as_bytes(), [0b0000_1001, 0b0000_0010]);
        assert_eq!(set.positions().collect::<Vec<_>>(), [0, 3, 9]);
        assert_eq!(set.count(), 3);
    }

    #[test]
    fn a_set_fits_only_its_exact_length_with_zero_padding() {
        assert!(Bitmap::from_bytes(vec![0xff, 0x03]).fits(10));
        assert!(!Bitmap::from_bytes(vec![0xff, 0x04]).fits(10));
        assert!(!Bitmap::from_bytes(vec![0xff]).fits(10));
        assert!(!Bitmap::from_bytes(vec![0xff, 0x03, 0x00]).fits(10));
    }

    #[test]
    fn an_oversized_set_does_not_deserialize() {
        let bytes = rmp_serde::to_vec(&Bitmap::from_bytes(vec![1; 13])).unwrap();
        assert!(rmp_serde::from_slice::<Bitmap>(&bytes).is_ok());
        let bytes = rmp_serde::to_vec(&Bitmap::from_bytes(vec![1; 14])).unwrap();
        assert!(rmp_serde::from_slice::<Bitmap>(&bytes).is_err());
    }
}
