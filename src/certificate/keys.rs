//! BLS12-381 keys and signatures (min-pk, proof-of-possession ciphersuite), by `blst`.

/// Domain separation of signatures (draft-irtf-cfrg-bls-signature, section 4.2.3).
pub(super) const SIGNATURE_DST: &[u8] = b"BLS_SIG_BLS12381G2_XMD:SHA-256_SSWU_RO_POP_";
/// Domain separation of proofs of possession.
pub(super) const POP_DST: &[u8] = b"BLS_POP_BLS12381G2_XMD:SHA-256_SSWU_RO_POP_";

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
    pub fn generate(_ikm: &[u8; 32]) -> Self {
        todo!()
    }
    /// 32 big-endian bytes.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; 32] {
        todo!()
    }
    /// Reads 32 bytes.
    /// # Errors
    /// [`KeyError::SecretKey`].
    pub fn from_bytes(_bytes: &[u8]) -> Result<Self, KeyError> {
        todo!()
    }
    /// The public key.
    #[must_use]
    pub fn public(&self) -> PublicKey {
        todo!()
    }
    /// Signs canonical bytes under [`SIGNATURE_DST`]. Deterministic.
    #[must_use]
    pub fn sign(&self, _statement: &[u8]) -> Signature {
        todo!()
    }
    /// Proves possession: signs the compressed public key under [`POP_DST`].
    #[must_use]
    pub fn prove_possession(&self) -> Signature {
        todo!()
    }
}

impl PublicKey {
    /// `KeyValidate`: on the curve, in the subgroup, not infinity.
    ///
    /// # Errors
    /// [`KeyError::PublicKey`].
    pub fn validate(&self) -> Result<(), KeyError> {
        todo!()
    }
    /// Verifies a proof of possession.
    ///
    /// # Errors
    /// [`KeyError::Possession`] and what [`PublicKey::validate`] says.
    pub fn verify_possession(&self, _pop: &Signature) -> Result<(), KeyError> {
        todo!()
    }
    /// Whether the two keys are equal or opposite (`pk` and `−pk` share all but the sign bit of the encoding).
    #[must_use]
    pub fn collides_with(&self, _other: &Self) -> bool {
        todo!()
    }
    /// Verifies one signature, subgroup check included.
    /// # Errors
    /// [`KeyError`].
    pub fn verify(&self, _statement: &[u8], _signature: &Signature) -> Result<(), KeyError> {
        todo!()
    }
    /// Verifies an aggregate by these keys (each already validated) on one statement (`FastAggregateVerify`).
    /// # Errors
    /// [`KeyError`].
    pub fn verify_aggregate(_keys: &[Self], _statement: &[u8], _aggregate: &Signature) -> Result<(), KeyError> {
        todo!()
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
pub fn aggregate(_signatures: &[Signature]) -> Result<Signature, KeyError> {
    todo!()
}

/// Which of these shares on one statement verify, each judged as if alone. More than one are first tried together with
/// random 128-bit non-zero coefficients drawn from `random` (never a plain sum, in which forged shares can cancel), and
/// singly only if that fails.
#[must_use]
pub fn verify_shares(
    _shares: &[(PublicKey, Signature)],
    _statement: &[u8],
    _random: &mut dyn FnMut(&mut [u8]),
) -> Vec<bool> {
    todo!()
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
        assert_eq!(verify_shares(&shares, STATEMENT, &mut counting()), [true; 5]);
        assert_eq!(verify_shares(&shares[..1], STATEMENT, &mut counting()), [true]);
        assert!(verify_shares(&[], STATEMENT, &mut counting()).is_empty());
        shares[2].1 = key(3).sign(b"another");
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
