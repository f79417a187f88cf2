//! What members sign: three kinds of fixed-width statements, each with a domain tag, all bound to the genesis and to
//! the hash of an epoch.

use super::bytes::Writer;
use crate::ids::{Digest, Epoch, NodeId, Term};
use serde::{Deserialize, Serialize};

/// Under which cluster and member table a statement is signed. Numbers alone are never signed: the hash names the
/// table, so a certificate under a change that never committed chains to nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SignedFor {
    /// The cluster.
    pub genesis_id: Digest,
    /// The epoch's number.
    pub epoch: Epoch,
    /// The epoch's hash.
    pub epoch_hash: Digest,
}

/// The Merkle root over the first `size` headers, seen in `term`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Head {
    /// The term of the last entry and of the leader that marked the sign point.
    pub term: Term,
    /// Leaves, that is: the index of the last entry covered.
    pub size: u64,
    /// The root.
    pub root: Digest,
}

impl Head {
    /// The signed bytes: tag, genesis id, epoch, epoch hash, term, size, root (136 bytes).
    #[must_use]
    pub fn signed_bytes(&self, under: &SignedFor) -> Vec<u8> {
        let mut w = Writer::tagged(b"concordat:head:1");
        w.digest(&under.genesis_id).u64(under.epoch.0).digest(&under.epoch_hash);
        w.u64(self.term.0).u64(self.size).digest(&self.root);
        w.0
    }
}

/// What a candidate claims and its voters sign.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ElectionClaim {
    /// The term stood for.
    pub term: Term,
    /// Who stands.
    pub candidate: NodeId,
    /// The term of its last entry.
    pub last_term: Term,
    /// The number of its entries.
    pub last_size: u64,
    /// The root over them.
    pub last_root: Digest,
}

impl ElectionClaim {
    /// The signed bytes: tag, genesis id, epoch, epoch hash, term, candidate, last term, last size, last root (176 bytes).
    #[must_use]
    pub fn signed_bytes(&self, under: &SignedFor) -> Vec<u8> {
        let mut w = Writer::tagged(b"concordat:elect1");
        w.digest(&under.genesis_id).u64(under.epoch.0).digest(&under.epoch_hash);
        w.u64(self.term.0).node(&self.candidate).u64(self.last_term.0).u64(self.last_size).digest(&self.last_root);
        w.0
    }
}

/// A member's answer to a ballot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct VoteStatement {
    /// The request's digest.
    pub request_digest: Digest,
    /// `H(salt‖payload)`.
    pub payload_hash: Digest,
    /// Grants that the proposal needs.
    pub required_quorum: u16,
    /// Granted or denied.
    pub granted: bool,
}

impl VoteStatement {
    /// The signed bytes: tag, genesis id, epoch, epoch hash, request digest, payload hash, required quorum, 1 or 0
    /// (155 bytes).
    #[must_use]
    pub fn signed_bytes(&self, under: &SignedFor) -> Vec<u8> {
        let mut w = Writer::tagged(b"concordat:vote:1");
        w.digest(&under.genesis_id).u64(under.epoch.0).digest(&under.epoch_hash);
        w.digest(&self.request_digest).digest(&self.payload_hash).u16(self.required_quorum).u8(u8::from(self.granted));
        w.0
    }
}
