//! A fast hasher, the same in every process: fingerprints of runs and logs, and tables that are looked up often. Nobody
//! attacks it here.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hash, Hasher};

pub(crate) type FastMap<K, V> = HashMap<K, V, BuildHasherDefault<Fast>>;

/// Multiplies each word into the state and folds the product's halves.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Fast(u64);

impl Fast {
    fn mix(&mut self, word: u64) {
        let product = u128::from(self.0 ^ word ^ 0x9e37_79b9_7f4a_7c15) * 0xa076_1d64_78bd_642f;
        #[expect(clippy::cast_possible_truncation, reason = "both halves are folded")]
        let folded = product as u64 ^ (product >> 64) as u64;
        self.0 = folded.rotate_left(23) ^ word;
    }
}

impl Hasher for Fast {
    fn write(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks::<8>();
        for word in words {
            self.mix(u64::from_le_bytes(*word));
        }
        let mut last = [0; 8];
        last[..rest.len()].copy_from_slice(rest);
        if !rest.is_empty() {
            self.mix(u64::from_le_bytes(last) ^ (rest.len() as u64) << 56);
        }
    }

    fn write_u8(&mut self, n: u8) {
        self.mix(n.into());
    }
    fn write_u16(&mut self, n: u16) {
        self.mix(n.into());
    }
    fn write_u32(&mut self, n: u32) {
        self.mix(n.into());
    }
    fn write_u64(&mut self, n: u64) {
        self.mix(n);
    }
    fn write_usize(&mut self, n: usize) {
        self.mix(n as u64);
    }

    fn finish(&self) -> u64 {
        let mut end = *self;
        end.mix(0);
        end.mix(0);
        end.0
    }
}

pub(crate) fn of(what: &impl Hash) -> u64 {
    let mut hasher = Fast::default();
    what.hash(&mut hasher);
    hasher.finish()
}

#[test]
fn words_order_and_lengths_tell_in_a_hash() {
    let mut seen = std::collections::BTreeSet::new();
    for a in 0..100_u64 {
        for b in 0..100_u64 {
            assert!(seen.insert(of(&(a, b))), "{a} {b}");
        }
    }
    assert_ne!(of(&[0_u8; 3].as_slice()), of(&[0_u8; 4].as_slice()));
    assert_ne!(of(&"ab"), of(&"ba"));
}
