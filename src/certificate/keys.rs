//! BLS12-381 keys and signatures (min-pk, proof-of-possession ciphersuite), by `blst`.

/// Domain separation of signatures (draft-irtf-cfrg-bls-signature, section 4.2.3).
pub const SIGNATURE_DST: &[u8] = b"BLS_SIG_BLS12381G2_XMD:SHA-256_SSWU_RO_POP_";
/// Domain separation of proofs of possession.
pub const POP_DST: &[u8] = b"BLS_POP_BLS12381G2_XMD:SHA-256_SSWU_RO_POP_";

/// A compressed public key, 48 bytes. Validated at admission ([`PublicKey::validate`]), not at decoding.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey(pub [u8; 48]);

/// A compressed signature or aggregate, 96 bytes. Whether it is a point of the right group is checked by whoever
/// verifies it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Signature(pub [u8; 96]);

/// A secret key; wiped from memory when dropped, never printed.
pub struct SecretKey();

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
    /// Derives a key from at least 32 bytes of secret randomness (RFC draft KeyGen).
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
    /// `key_validate`: on the curve, in the subgroup, not infinity.
    /// # Errors
    /// [`KeyError::PublicKey`].
    pub fn validate(&self) -> Result<(), KeyError> {
        todo!()
    }
    /// Verifies a proof of possession.
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

/// Adds verified signatures up.
/// # Errors
/// [`KeyError::Empty`] or [`KeyError::Signature`].
pub fn aggregate(_signatures: &[Signature]) -> Result<Signature, KeyError> {
    todo!()
}

/// Which of these shares on one statement verify, each judged as if alone. More than one are first tried together with
/// random 128-bit non-zero coefficients drawn from `random` (never a plain sum), and singly only if that fails.
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
