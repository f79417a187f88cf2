//! Evidence: two signatures that one honest member would never both make, verifiable by anyone with the genesis.

use super::bytes::{FormatError, Reader, Writer};
use super::chain::EpochChain;
use super::head::CertificateError;
use super::keys::{PublicKey, Signature};
use super::statement::{ElectionClaim, Head, SignedFor, VoteStatement};
use super::table::Genesis;
use crate::ids::{Epoch, NodeId, Term};
use std::collections::BTreeSet;

const EVIDENCE_TAG: &[u8; 16] = b"concordat:evid:1";

/// Misconduct of one member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Evidence {
    /// Two roots signed at one (term, size).
    TwoRoots {
        /// Who.
        member: NodeId,
        /// First.
        a: (SignedFor, Head, Signature),
        /// Second.
        b: (SignedFor, Head, Signature),
    },
    /// Votes for two different candidates in one term.
    TwoCandidates {
        /// Who.
        member: NodeId,
        /// First.
        a: (SignedFor, ElectionClaim, Signature),
        /// Second.
        b: (SignedFor, ElectionClaim, Signature),
    },
    /// A grant and a denial of one request and payload.
    TwoVotes {
        /// Who.
        member: NodeId,
        /// First.
        a: (SignedFor, VoteStatement, Signature),
        /// Second.
        b: (SignedFor, VoteStatement, Signature),
    },
}

/// Why evidence shows nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EvidenceError {
    /// The two statements do not contradict each other.
    #[error("the two statements do not contradict each other")]
    NoContradiction,
    /// A signature is not the member's.
    #[error("the two signatures are not by one key of {0} in this cluster")]
    NotTheMembers(NodeId),
    /// The chain does not verify.
    #[error("epoch chain: {0}")]
    Chain(#[from] CertificateError),
}

impl Evidence {
    /// Whether the member is proved to have misbehaved: the statements contradict each other, both are of this cluster,
    /// and one BLS key that `chain` proves to be the member's signed both. One key, because a key is a store's memory:
    /// a member that lost its disk and came back with a fresh key cannot know what it signed before.
    ///
    /// The epochs that the statements name play no part: a member keeps one log, one vote a term and one answer a
    /// request whatever tables are in force.
    ///
    /// # Errors
    /// [`EvidenceError`].
    pub fn verify(&self, genesis: &Genesis, chain: &EpochChain) -> Result<(), EvidenceError> {
        if !self.is_contradiction() {
            return Err(EvidenceError::NoContradiction);
        }
        let member = self.member();
        let [a, b] = self.signed();
        let genesis_id = genesis.id();
        if a.0.genesis_id != genesis_id || b.0.genesis_id != genesis_id {
            return Err(EvidenceError::NotTheMembers(member));
        }
        let tables = chain.verify(genesis)?;
        let keys: BTreeSet<PublicKey> = tables.iter().filter_map(|t| t.table.get(&member)).map(|m| m.bls_key).collect();
        let by = |key: &PublicKey| [&a, &b].iter().all(|(_, bytes, signature)| key.verify(bytes, signature).is_ok());
        if keys.iter().any(by) { Ok(()) } else { Err(EvidenceError::NotTheMembers(member)) }
    }

    /// Whose misconduct.
    #[must_use]
    pub fn member(&self) -> NodeId {
        let (Self::TwoRoots { member, .. } | Self::TwoCandidates { member, .. } | Self::TwoVotes { member, .. }) = self;
        *member
    }

    fn is_contradiction(&self) -> bool {
        match self {
            Self::TwoRoots { a: (_, a, _), b: (_, b, _), .. } => {
                (a.term, a.size) == (b.term, b.size) && a.root != b.root
            }
            Self::TwoCandidates { a: (_, a, _), b: (_, b, _), .. } => a.term == b.term && a.candidate != b.candidate,
            // The same question may be asked again with another quorum; the answer stays.
            Self::TwoVotes { a: (_, a, _), b: (_, b, _), .. } => {
                (a.request_digest, a.payload_hash) == (b.request_digest, b.payload_hash) && a.granted != b.granted
            }
        }
    }

    /// Both statements as they were signed.
    fn signed(&self) -> [(SignedFor, Vec<u8>, Signature); 2] {
        match self {
            Self::TwoRoots { a, b, .. } => [a, b].map(|(under, what, s)| (*under, what.signed_bytes(under), *s)),
            Self::TwoCandidates { a, b, .. } => [a, b].map(|(under, what, s)| (*under, what.signed_bytes(under), *s)),
            Self::TwoVotes { a, b, .. } => [a, b].map(|(under, what, s)| (*under, what.signed_bytes(under), *s)),
        }
    }

    /// Canonical bytes: tag, kind, member, and twice the signed bytes of the statement with the signature on them.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut w = Writer::tagged(EVIDENCE_TAG);
        w.u8(match self {
            Self::TwoRoots { .. } => 1,
            Self::TwoCandidates { .. } => 2,
            Self::TwoVotes { .. } => 3,
        });
        w.node(&self.member());
        for (_, bytes, signature) in self.signed() {
            w.fixed(&bytes).fixed(&signature.0);
        }
        w.0
    }

    /// Reads canonical bytes (re-encodes and demands equality).
    ///
    /// # Errors
    /// [`FormatError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut r = Reader::new(bytes);
        r.tag(EVIDENCE_TAG, "evidence")?;
        let kind = r.u8("evidence.kind")?;
        let member = r.node("evidence.member")?;
        let evidence = match kind {
            1 => Self::TwoRoots { member, a: read_signed(&mut r, read_head)?, b: read_signed(&mut r, read_head)? },
            2 => {
                Self::TwoCandidates { member, a: read_signed(&mut r, read_claim)?, b: read_signed(&mut r, read_claim)? }
            }
            3 => Self::TwoVotes { member, a: read_signed(&mut r, read_vote)?, b: read_signed(&mut r, read_vote)? },
            _ => return Err(FormatError::Value { field: "evidence.kind" }),
        };
        r.finish("evidence")?;
        // The tags of the statements are compared here.
        if evidence.encode() == bytes { Ok(evidence) } else { Err(FormatError::NotCanonical { what: "evidence" }) }
    }
}

type Read<T> = fn(&mut Reader<'_>) -> Result<T, FormatError>;

fn read_signed<T>(r: &mut Reader<'_>, read: Read<T>) -> Result<(SignedFor, T, Signature), FormatError> {
    r.fixed(16, "statement.tag")?;
    let under = SignedFor {
        genesis_id: r.digest("statement.genesis_id")?,
        epoch: Epoch(r.u64("statement.epoch")?),
        epoch_hash: r.digest("statement.epoch_hash")?,
    };
    Ok((under, read(r)?, Signature(r.array("evidence.signature")?)))
}

fn read_head(r: &mut Reader<'_>) -> Result<Head, FormatError> {
    Ok(Head { term: Term(r.u64("head.term")?), size: r.u64("head.size")?, root: r.digest("head.root")? })
}

fn read_claim(r: &mut Reader<'_>) -> Result<ElectionClaim, FormatError> {
    Ok(ElectionClaim {
        term: Term(r.u64("claim.term")?),
        candidate: r.node("claim.candidate")?,
        last_term: Term(r.u64("claim.last_term")?),
        last_size: r.u64("claim.last_size")?,
        last_root: r.digest("claim.last_root")?,
    })
}

fn read_vote(r: &mut Reader<'_>) -> Result<VoteStatement, FormatError> {
    Ok(VoteStatement {
        request_digest: r.digest("vote.request_digest")?,
        payload_hash: r.digest("vote.payload_hash")?,
        required_quorum: r.u16("vote.required_quorum")?,
        granted: r.u8("vote.granted")? == 1,
    })
}
