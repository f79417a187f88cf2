//! Newtypes for everything that is counted, numbered or named.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

macro_rules! number {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub u64);

        impl $name {
            /// Zero: "none yet".
            pub const ZERO: Self = Self(0);

            /// The next number. Panics on overflow, which 2^64 increments cannot reach.
            #[must_use]
            pub const fn next(self) -> Self {
                Self(self.0 + 1)
            }

            /// The number before, or zero.
            #[must_use]
            pub const fn prev(self) -> Self {
                Self(self.0.saturating_sub(1))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number!(
    /// A Raft term. Zero precedes the first election.
    Term
);
number!(
    /// A position in the log, from 1. Zero is "before the first entry".
    LogIndex
);
number!(
    /// The number of a member table, from 0 (genesis).
    Epoch
);

/// A SHA-256 digest; hexadecimal in text and JSON, 32 raw bytes in binary formats.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// All zero: "no digest".
    pub const ZERO: Self = Self([0; 32]);
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why a text is no digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a digest is 64 hexadecimal digits")]
pub struct DigestError;

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        let mut bytes = [0; 32];
        hex::decode_to_slice(text, &mut bytes).map_err(|_| DigestError)?;
        Ok(Self(bytes))
    }
}

impl Serialize for Digest {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        if s.is_human_readable() { s.collect_str(self) } else { s.serialize_bytes(&self.0) }
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        if d.is_human_readable() {
            String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
        } else {
            Ok(Self(serde_bytes::ByteArray::<32>::deserialize(d)?.into_array()))
        }
    }
}

/// A member's identity: its Ed25519 public key. Its text form is the DID `did:key:z6Mk…` (W3C `did:key`, multicodec
/// `0xed01`, base58btc), which is what people and JSON see. All DIDs of this kind have one length and base58's alphabet
/// ascends in ASCII, so the order of the key bytes is the order of the DIDs' text.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub [u8; 32]);

const DID_PREFIX: &str = "did:key:z";
const MULTICODEC_ED25519: [u8; 2] = [0xed, 0x01];

/// Why a text is no Ed25519 `did:key`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not an Ed25519 did:key (expected did:key:z6Mk…, 56 characters)")]
pub struct NodeIdError {
    /// What was given, cut to 80 characters.
    pub text: String,
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = [0; 34];
        bytes[..2].copy_from_slice(&MULTICODEC_ED25519);
        bytes[2..].copy_from_slice(&self.0);
        write!(f, "{DID_PREFIX}{}", bs58::encode(bytes).into_string())
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for NodeId {
    type Err = NodeIdError;

    fn from_str(text: &str) -> Result<Self, NodeIdError> {
        let wrong = || NodeIdError { text: text.chars().take(80).collect() };
        let encoded = text.strip_prefix(DID_PREFIX).ok_or_else(wrong)?;
        let mut bytes = [0; 34];
        let length = bs58::decode(encoded).onto(&mut bytes).map_err(|_| wrong())?;
        let [a, b, key @ ..] = bytes;
        // Base58 has several spellings of nothing; only the canonical text names a member.
        let id = Self(key);
        if length == 34 && [a, b] == MULTICODEC_ED25519 && id.to_string() == text { Ok(id) } else { Err(wrong()) }
    }
}

impl Serialize for NodeId {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        if s.is_human_readable() { s.collect_str(self) } else { s.serialize_bytes(&self.0) }
    }
}

impl<'de> Deserialize<'de> for NodeId {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        if d.is_human_readable() {
            String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
        } else {
            Ok(Self(serde_bytes::ByteArray::<32>::deserialize(d)?.into_array()))
        }
    }
}

/// Names one proposal for the life of a cluster. Text form `term-seq-did`, which is also its JSON form.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProposalId {
    /// The leader's term at admission.
    pub term: Term,
    /// The leader's counter in that term, from 1.
    pub seq: u64,
    /// The node where the proposal came in.
    pub origin: NodeId,
}

/// Why a text is no proposal id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a proposal id is TERM-SEQ-DID, for example 3-17-did:key:z6Mk…")]
pub struct ProposalIdError;

impl fmt::Display for ProposalId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}-{}", self.term, self.seq, self.origin)
    }
}

impl fmt::Debug for ProposalId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for ProposalId {
    type Err = ProposalIdError;

    fn from_str(text: &str) -> Result<Self, ProposalIdError> {
        let mut parts = text.splitn(3, '-');
        let mut part = || parts.next().ok_or(ProposalIdError);
        let id = Self {
            term: Term(part()?.parse().map_err(|_| ProposalIdError)?),
            seq: part()?.parse().map_err(|_| ProposalIdError)?,
            origin: part()?.parse().map_err(|_| ProposalIdError)?,
        };
        if id.to_string() == text { Ok(id) } else { Err(ProposalIdError) }
    }
}

impl Serialize for ProposalId {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        if s.is_human_readable() { s.collect_str(self) } else { (self.term, self.seq, self.origin).serialize(s) }
    }
}

impl<'de> Deserialize<'de> for ProposalId {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        if d.is_human_readable() {
            String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
        } else {
            let (term, seq, origin) = Deserialize::deserialize(d)?;
            Ok(Self { term, seq, origin })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_did_reads_back_and_sorts_like_its_key(a: [u8; 32], b: [u8; 32]) {
            let (a, b) = (NodeId(a), NodeId(b));
            prop_assert_eq!(a.to_string().parse::<NodeId>().unwrap(), a);
            prop_assert_eq!(a.to_string().len(), 56);
            prop_assert_eq!(a.cmp(&b), a.to_string().cmp(&b.to_string()));
        }

        #[test]
        fn a_proposal_id_reads_back(term: u64, seq: u64, origin: [u8; 32]) {
            let id = ProposalId { term: Term(term), seq, origin: NodeId(origin) };
            prop_assert_eq!(id.to_string().parse::<ProposalId>().unwrap(), id);
        }
    }

    #[test]
    fn other_spellings_are_refused() {
        let did = NodeId([7; 32]).to_string();
        for text in [
            "",
            "did:key:z",
            "did:web:example.org",
            &did[..55],
            &format!("{did}1"),
            &did.replace("did:key:z", "did:key:z1"),
        ] {
            assert!(text.parse::<NodeId>().is_err(), "{text}");
        }
        let id = ProposalId { term: Term(1), seq: 2, origin: NodeId([7; 32]) }.to_string();
        for text in ["1-2", &id.replacen('1', "01", 1), &id.replacen('1', "+1", 1)] {
            assert!(text.parse::<ProposalId>().is_err(), "{text}");
        }
    }
}
