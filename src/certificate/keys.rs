//! BLS12-381 keys and signatures (min-pk, proof-of-possession ciphersuite), by `blst`.

use ::blst::min_pk as blst;
use ::blst::{BLST_ERROR, MultiPoint as _};
use std::collections::BTreeSet;

/// Domain separation of signatures (draft-irtf-cfrg-bls-signature, section 4.2.3).
pub const SIGNATURE_DST: &[u8] = b"BLS_SIG_BLS12381G2_XMD:SHA-256_SSWU_RO_POP_";
/// Domain separation of proofs of possession.
pub const POP_DST: &[u8] = b"BLS_POP_BLS12381G2_XMD:SHA-256_SSWU_RO_POP_";

/// The bit of a compressed point's first byte that tells `y` from `−y`.
const SIGN_BIT: u8 = 0x20;
/// The bit of a compressed point's first byte that marks infinity.
const INFINITY_BIT: u8 = 0x40;

/// A compressed public key, 48 bytes. Validated at admission ([`PublicKey::validate`]), not at decoding.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey(pub [u8; 48]);

/// A compressed signature or aggregate, 96 bytes. Whether it is a point of the right group is checked by whoever
/// verifies it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Signature(pub [u8; 96]);

/// A secret key; wiped from memory when dropped (by `blst`), never printed, compared or cloned.
pub struct SecretKey(blst::SecretKey);

/// Why a key or signature is unusable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Not a point of the group, or the point at infinity.
    #[error("not a valid BLS public key")]
    PublicKey,
    /// Not a point of the right subgroup.
    #[error("not a valid BLS signature")]
    Signature,
    /// The signature does not verify.
    #[error("the signature does not verify")]
    Unverified,
    /// The proof of possession does not verify.
    #[error("the proof of possession does not verify")]
    Possession,
    /// Not 32 bytes of a non-zero scalar below the group order.
    #[error("not a BLS secret key")]
    SecretKey,
    /// Nothing to aggregate.
    #[error("nothing to aggregate")]
    Empty,
}

impl SecretKey {
    /// Derives a key from 32 bytes of secret randomness (`KeyGen`, draft-irtf-cfrg-bls-signature-06, section 2.3).
    #[must_use]
    pub fn generate(ikm: &[u8; 32]) -> Self {
        Self(blst::SecretKey::key_gen(ikm, &[]).expect("32 bytes of key material are enough"))
    }

    /// 32 big-endian bytes. The caller wipes them.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; 32] {
        self.0.to_bytes()
    }

    /// Reads 32 big-endian bytes.
    ///
    /// # Errors
    /// [`KeyError::SecretKey`] unless they are a non-zero scalar below the group order.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, KeyError> {
        blst::SecretKey::from_bytes(bytes).map(Self).map_err(|_| KeyError::SecretKey)
    }

    /// The public key.
    #[must_use]
    pub fn public(&self) -> PublicKey {
        PublicKey(self.0.sk_to_pk().to_bytes())
    }

    /// Signs canonical bytes under [`SIGNATURE_DST`]. Deterministic.
    #[must_use]
    pub fn sign(&self, statement: &[u8]) -> Signature {
        Signature(self.0.sign(statement, SIGNATURE_DST, &[]).to_bytes())
    }

    /// Proves possession: signs the compressed public key under [`POP_DST`] (draft-06, section 3.3.2).
    #[must_use]
    pub fn prove_possession(&self) -> Signature {
        Signature(self.0.sign(&self.public().0, POP_DST, &[]).to_bytes())
    }
}

impl PublicKey {
    /// `KeyValidate`: on the curve, in the subgroup, not infinity.
    ///
    /// # Errors
    /// [`KeyError::PublicKey`].
    pub fn validate(&self) -> Result<(), KeyError> {
        self.validated().map(drop)
    }

    /// Verifies a proof of possession.
    ///
    /// # Errors
    /// [`KeyError::Possession`] and what [`PublicKey::validate`] says.
    pub fn verify_possession(&self, pop: &Signature) -> Result<(), KeyError> {
        let key = self.validated()?;
        let proof = pop.point().map_err(|_| KeyError::Possession)?;
        // The proof's subgroup was checked by `point`, the key's by `validated`.
        match proof.verify(false, &self.0, POP_DST, &[], &key, false) {
            BLST_ERROR::BLST_SUCCESS => Ok(()),
            _ => Err(KeyError::Possession),
        }
    }

    /// Whether the two keys are equal or opposite (`pk` and `−pk` share all but the sign bit of the encoding). Two
    /// opposite keys cancel in a sum, so that signers could be claimed who never signed.
    #[must_use]
    pub fn collides_with(&self, other: &Self) -> bool {
        self.x_coordinate() == other.x_coordinate()
    }

    /// The encoding without its sign bit: the same for a key and its opposite, and for no others.
    pub(crate) fn x_coordinate(&self) -> [u8; 48] {
        let mut x = self.0;
        x[0] &= !SIGN_BIT;
        x
    }

    /// Verifies one signature; key and signature are checked to be of their subgroups and not infinity.
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn verify(&self, statement: &[u8], signature: &Signature) -> Result<(), KeyError> {
        let key = self.validated()?;
        outcome(signature.point()?.verify(false, statement, SIGNATURE_DST, &[], &key, false))
    }

    /// Verifies an aggregate by these keys on one statement (`FastAggregateVerify`, draft-06, section 3.3.4). Each key
    /// must have been validated and its possession proved, as [`super::MemberTable::new`] does: without that the
    /// answer means nothing.
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn verify_aggregate(keys: &[Self], statement: &[u8], aggregate: &Signature) -> Result<(), KeyError> {
        if keys.is_empty() {
            return Err(KeyError::Empty);
        }
        let points = keys.iter().map(Self::point).collect::<Result<Vec<_>, _>>()?;
        let points: Vec<_> = points.iter().collect();
        outcome(aggregate.point()?.fast_aggregate_verify(false, statement, SIGNATURE_DST, &points))
    }

    fn validated(&self) -> Result<blst::PublicKey, KeyError> {
        let point = self.point()?;
        point.validate().map_err(|_| KeyError::PublicKey)?;
        Ok(point)
    }

    /// A point of the curve other than infinity, its subgroup unchecked.
    fn point(&self) -> Result<blst::PublicKey, KeyError> {
        if self.0[0] & INFINITY_BIT != 0 {
            return Err(KeyError::PublicKey);
        }
        blst::PublicKey::uncompress(&self.0).map_err(|_| KeyError::PublicKey)
    }
}

impl Signature {
    /// The point, checked to be of the subgroup and not infinity (which no honest signature or aggregate is).
    fn point(&self) -> Result<blst::Signature, KeyError> {
        blst::Signature::sig_validate(&self.0, true).map_err(|_| KeyError::Signature)
    }
}

fn outcome(result: BLST_ERROR) -> Result<(), KeyError> {
    match result {
        BLST_ERROR::BLST_SUCCESS => Ok(()),
        _ => Err(KeyError::Unverified),
    }
}

/// Adds verified signatures up. Each is checked to be of the subgroup (about 60 µs), not to be a signature of anything.
///
/// # Errors
/// [`KeyError::Empty`] or [`KeyError::Signature`].
pub fn aggregate(signatures: &[Signature]) -> Result<Signature, KeyError> {
    let points = signatures.iter().map(Signature::point).collect::<Result<Vec<_>, _>>()?;
    let points: Vec<_> = points.iter().collect();
    let sum = blst::AggregateSignature::aggregate(&points, false).map_err(|_| KeyError::Empty)?;
    Ok(Signature(sum.to_signature().to_bytes()))
}

/// Bytes of a batch coefficient.
const COEFFICIENT: usize = 16;

/// Which of these shares on one statement verify, each judged as if alone. More than one are first tried together with
/// random 128-bit non-zero coefficients drawn from `random` (never a plain sum, in which forged shares can cancel), and
/// singly only if that fails.
#[must_use]
pub fn verify_shares(
    shares: &[(PublicKey, Signature)],
    statement: &[u8],
    random: &mut dyn FnMut(&mut [u8]),
) -> Vec<bool> {
    if shares.len() > 1 && verify_together(shares, statement, random) {
        return vec![true; shares.len()];
    }
    shares.iter().map(|(key, signature)| key.verify(statement, signature).is_ok()).collect()
}

/// Whether `e(Σ rᵢ·pkᵢ, H(m)) = e(g, Σ rᵢ·σᵢ)`: by Schwartz–Zippel, a wrong share passes with probability 2⁻¹²⁸.
fn verify_together(shares: &[(PublicKey, Signature)], statement: &[u8], random: &mut dyn FnMut(&mut [u8])) -> bool {
    let mut coefficients = vec![0; shares.len() * COEFFICIENT];
    random(&mut coefficients);
    let distinct: BTreeSet<&[u8]> = coefficients.chunks(COEFFICIENT).collect();
    // A zero would leave its share unchecked, and a repetition can only come from a source that is not random.
    if distinct.len() != shares.len() || distinct.contains([0; COEFFICIENT].as_slice()) {
        return false;
    }
    let Ok(keys) = shares.iter().map(|(key, _)| key.validated()).collect::<Result<Vec<_>, _>>() else { return false };
    let Ok(points) = shares.iter().map(|(_, s)| s.point()).collect::<Result<Vec<_>, _>>() else { return false };
    let key = keys.mult(&coefficients, 8 * COEFFICIENT).to_public_key();
    let sum = points.mult(&coefficients, 8 * COEFFICIENT).to_signature();
    // The sum may be infinity although no share is, which the pairing refuses by itself.
    sum.fast_aggregate_verify(false, statement, SIGNATURE_DST, &[&key]) == BLST_ERROR::BLST_SUCCESS
}

macro_rules! hex_text {
    ($name:ident, $n:literal) => {
        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(&hex::encode(self.0))
            }
        }
        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                if s.is_human_readable() { s.serialize_str(&hex::encode(self.0)) } else { s.serialize_bytes(&self.0) }
            }
        }
        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                if d.is_human_readable() {
                    let text = String::deserialize(d)?;
                    let mut bytes = [0; $n];
                    hex::decode_to_slice(&text, &mut bytes).map_err(serde::de::Error::custom)?;
                    Ok(Self(bytes))
                } else {
                    Ok(Self(serde_bytes::ByteArray::<$n>::deserialize(d)?.into_array()))
                }
            }
        }
    };
}
hex_text!(PublicKey, 48);
hex_text!(Signature, 96);

#[cfg(test)]
mod tests {
    use super::*;

    const STATEMENT: &[u8] = b"a statement of canonical bytes";

    fn key(seed: u8) -> SecretKey {
        SecretKey::generate(&[seed; 32])
    }

    fn counting() -> impl FnMut(&mut [u8]) {
        let mut next = 0_u8;
        move |bytes: &mut [u8]| {
            for b in bytes {
                next = next.wrapping_mul(29).wrapping_add(41);
                *b = next;
            }
        }
    }

    #[test]
    fn a_key_reads_back_and_signs_the_same_bytes_every_time() {
        let sk = key(1);
        let again = SecretKey::from_bytes(&sk.to_bytes()).unwrap();
        assert_eq!(sk.public(), again.public());
        assert_eq!(sk.sign(STATEMENT), again.sign(STATEMENT));
        assert_eq!(sk.public().verify(STATEMENT, &sk.sign(STATEMENT)), Ok(()));
        assert_eq!(sk.public().verify(b"another", &sk.sign(STATEMENT)), Err(KeyError::Unverified));
        assert_eq!(key(2).public().verify(STATEMENT, &sk.sign(STATEMENT)), Err(KeyError::Unverified));
    }

    #[test]
    fn secret_keys_are_scalars_below_the_group_order_other_than_zero() {
        for bytes in [[0; 32].as_slice(), &[0xff; 32], &[1; 31], &[1; 33], &[]] {
            assert_eq!(SecretKey::from_bytes(bytes).err(), Some(KeyError::SecretKey));
        }
    }

    #[test]
    fn an_aggregate_verifies_for_exactly_its_signers() {
        let keys: Vec<_> = (1..=4).map(key).collect();
        let public: Vec<_> = keys.iter().map(SecretKey::public).collect();
        let signatures: Vec<_> = keys.iter().map(|k| k.sign(STATEMENT)).collect();
        let sum = aggregate(&signatures[..3]).unwrap();
        assert_eq!(PublicKey::verify_aggregate(&public[..3], STATEMENT, &sum), Ok(()));
        assert_eq!(PublicKey::verify_aggregate(&public, STATEMENT, &sum), Err(KeyError::Unverified));
        assert_eq!(PublicKey::verify_aggregate(&public[1..], STATEMENT, &sum), Err(KeyError::Unverified));
        assert_eq!(PublicKey::verify_aggregate(&[], STATEMENT, &sum), Err(KeyError::Empty));
        assert_eq!(aggregate(&[]), Err(KeyError::Empty));
        assert_eq!(aggregate(&[Signature([0; 96])]), Err(KeyError::Signature));
    }

    #[test]
    fn shares_are_judged_one_by_one_when_any_of_them_is_wrong() {
        let mut shares: Vec<_> = (1..=5).map(|i| (key(i).public(), key(i).sign(STATEMENT))).collect();
        assert!(verify_together(&shares, STATEMENT, &mut counting()), "one pairing check for all");
        assert_eq!(verify_shares(&shares, STATEMENT, &mut counting()), [true; 5]);
        assert_eq!(verify_shares(&shares[..1], STATEMENT, &mut counting()), [true]);
        assert!(verify_shares(&[], STATEMENT, &mut counting()).is_empty());
        shares[2].1 = key(3).sign(b"another");
        assert!(!verify_together(&shares, STATEMENT, &mut counting()));
        shares[4].1 = Signature([0xff; 96]);
        assert_eq!(verify_shares(&shares, STATEMENT, &mut counting()), [true, true, false, true, false]);
    }

    #[test]
    fn the_bits_of_a_compressed_point_outside_its_coordinate_have_one_spelling() {
        let (pk, sig) = (key(1).public(), key(1).sign(STATEMENT));
        for bit in [0x80, 0x40] {
            let (mut p, mut s) = (pk, sig);
            p.0[0] ^= bit;
            s.0[0] ^= bit;
            assert_eq!(p.validate(), Err(KeyError::PublicKey));
            assert_eq!(pk.verify(STATEMENT, &s), Err(KeyError::Signature));
        }
        let mut opposite = pk;
        opposite.0[0] ^= SIGN_BIT;
        assert_eq!(opposite.validate(), Ok(()));
        assert!(opposite.collides_with(&pk) && pk.collides_with(&pk) && !pk.collides_with(&key(2).public()));
    }
}
