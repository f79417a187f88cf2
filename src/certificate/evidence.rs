//! Evidence: two signatures that one honest member would never both make, verifiable by anyone with the genesis.

use super::chain::EpochChain;
use super::keys::Signature;
use super::statement::{ElectionClaim, Head, SignedFor, VoteStatement};
use super::table::Genesis;
use crate::ids::NodeId;

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
    #[error("a signature is not by {0} under an epoch of this cluster")]
    NotTheMembers(NodeId),
    /// The chain does not verify.
    #[error("epoch chain: {0}")]
    Chain(super::head::CertificateError),
}

impl Evidence {
    /// Whether the member is proved to have misbehaved.
    /// # Errors
    /// [`EvidenceError`].
    pub fn verify(&self, _genesis: &Genesis, _chain: &EpochChain) -> Result<(), EvidenceError> {
        todo!()
    }
}
