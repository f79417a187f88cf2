//! Receipts: self-contained files that prove one entry to whoever holds the genesis.

use super::bytes::FormatError;
use super::chain::EpochChain;
use super::head::{CertificateError, HeadCertificate};
use super::header::{Body, EntryError, Header};
use super::keys::Signature;
use super::table::Genesis;
use crate::ids::{Digest, LogIndex, NodeId, ProposalId};

/// What proves one entry (the specification's type, for streams and answers).
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct CommitCertificate {
    /// The proposal; absent for entries that nobody proposed.
    pub proposal_id: Option<ProposalId>,
    /// Position in the log.
    pub index: LogIndex,
    /// `proposed_at` of the last header that the head covers, milliseconds since the Unix epoch.
    pub committed_at: u64,
    /// Exactly the members whose grant the signature proves: the head's signers on the fast path, the granters after
    /// a ballot. Sorted.
    pub signers: Vec<NodeId>,
    /// The head's aggregate on the fast path, the grant aggregate after a ballot.
    pub threshold_sig: Signature,
    /// The head certificate it rides on.
    pub head: HeadCertificate,
    /// Inclusion of the entry in the head.
    pub path: Vec<Digest>,
}

/// A receipt. Binary canonical form for machines ([`Receipt::encode`]), JSON with the same fields for people
/// ([`Receipt::to_json`]); both decode to the same value and either verifies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// The entry's header.
    pub header: Header,
    /// Salt, request and payload; absent once pruned.
    pub body: Option<Body>,
    /// Inclusion of the entry in the head.
    pub path: Vec<Digest>,
    /// The head certificate.
    pub certificate: HeadCertificate,
    /// The last header that the head covers: its `proposed_at` is `committed_at`.
    pub last_header: Header,
    /// Inclusion of that header.
    pub last_path: Vec<Digest>,
    /// The changes from genesis to the entry's and the head's epochs.
    pub chain: EpochChain,
}

/// What a verified receipt proves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifiedReceipt {
    /// The entry's header.
    pub header: Header,
    /// Its body, when the receipt carries it.
    pub body: Option<Body>,
    /// The certificate.
    pub certificate: CommitCertificate,
    /// Who granted (the same as `certificate.signers` for a proposal).
    pub granted: Vec<NodeId>,
    /// Who denied.
    pub denied: Vec<NodeId>,
}

/// Why a receipt proves nothing.
#[derive(Debug, thiserror::Error)]
pub enum ReceiptError {
    /// Its bytes are wrong.
    #[error("not a receipt: {0}")]
    Format(#[from] FormatError),
    /// Its JSON is wrong.
    #[error("not a receipt: {0}")]
    Json(#[from] serde_json::Error),
    /// Header and body do not belong together.
    #[error(transparent)]
    Entry(#[from] EntryError),
    /// A certificate in it does not verify.
    #[error("{what}: {source}")]
    Certificate {
        /// Which.
        what: &'static str,
        /// Why.
        source: CertificateError,
    },
    /// The inclusion path does not lead to the certified root.
    #[error("the {what} is not in the certified tree")]
    Inclusion {
        /// Which header.
        what: &'static str,
    },
    /// The head does not belong to the term of its last entry, or the clocks run backwards.
    #[error("inconsistent: {0}")]
    Inconsistent(&'static str),
    /// Too few grants.
    #[error("{granted} grants, the proposal required {required}")]
    Grants {
        /// Proved.
        granted: usize,
        /// Required.
        required: usize,
    },
}

impl Receipt {
    /// Canonical bytes, beginning with a 16-byte tag that holds the format version.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        todo!()
    }
    /// Reads canonical bytes.
    /// # Errors
    /// [`ReceiptError::Format`], [`ReceiptError::Entry`].
    pub fn decode(_bytes: &[u8]) -> Result<Self, ReceiptError> {
        todo!()
    }
    /// A JSON file of version, `receipt` (base64 of the canonical bytes) and, for people, the decoded fields, which a
    /// verifier checks against the bytes (any difference is an error).
    #[must_use]
    pub fn to_json(&self) -> String {
        todo!()
    }
    /// Reads the JSON file.
    /// # Errors
    /// [`ReceiptError`].
    pub fn from_json(_text: &str) -> Result<Self, ReceiptError> {
        todo!()
    }
    /// Proves the entry from the genesis alone.
    /// # Errors
    /// [`ReceiptError`] naming the first flaw.
    pub fn verify(&self, _genesis: &Genesis) -> Result<VerifiedReceipt, ReceiptError> {
        todo!()
    }
}
