//! Head certificates and election certificates: the aggregates of a quorum, with the bitmap of signers.

use super::bitmap::Bitmap;
use super::bytes::{FormatError, Reader, Writer};
use super::keys::{KeyError, PublicKey, Signature};
use super::statement::{ElectionClaim, Head, SignedFor};
use super::table::{Member, TableInForce};
use crate::ids::{Digest, Epoch, NodeId, Term};
use crate::limits::MAX_MEMBERS;
use serde::{Deserialize, Serialize};

/// The signers of one member table. A certificate has one half, or two while a membership change is in flight: the
/// current table's and the next one's, each with a quorum of its own, each signed under its own epoch.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Half {
    /// Under which epoch these members signed.
    pub epoch: Epoch,
    /// Its hash.
    pub epoch_hash: Digest,
    /// Who signed, by position among the epoch's voters.
    pub signers: Bitmap,
    /// The aggregate of their signatures.
    pub aggregate: Signature,
}

/// The proof that a quorum held the first `size` entries durably in `term`: those are committed for ever.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct HeadCertificate {
    /// What was signed.
    pub head: Head,
    /// One half, or two (current table first).
    #[serde(deserialize_with = "one_or_two")]
    pub halves: Vec<Half>,
}

/// The proof that a quorum elected a leader: the payload of the first entry of its term.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ElectionCertificate {
    /// What was signed.
    pub claim: ElectionClaim,
    /// One half, or two (current table first).
    #[serde(deserialize_with = "one_or_two")]
    pub halves: Vec<Half>,
}

/// Why a certificate proves nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    /// Its bytes are wrong.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// It is signed under other tables than those it is checked against.
    #[error("signed under epoch {found} ({found_hash}), expected epoch {expected}")]
    Epoch {
        /// In the certificate.
        found: Epoch,
        /// In the certificate.
        found_hash: Digest,
        /// In force.
        expected: Epoch,
    },
    /// One half where two are needed, or the other way round.
    #[error("{found} halves where {expected} are needed")]
    Halves {
        /// In the certificate.
        found: usize,
        /// Needed.
        expected: usize,
    },
    /// The signer set is no set over the epoch's voters.
    #[error("the signer set does not fit {voters} voters")]
    Signers {
        /// Voters in the epoch.
        voters: usize,
    },
    /// Too few signers.
    #[error("{signers} signers, a quorum is {quorum}")]
    Quorum {
        /// Signers found.
        signers: usize,
        /// Needed.
        quorum: usize,
    },
    /// The aggregate does not verify.
    #[error("aggregate signature: {0}")]
    Signature(#[from] KeyError),
}

const HEAD_TAG: &[u8; 16] = b"concordat:hcert1";
const ELECTION_TAG: &[u8; 16] = b"concordat:ecert1";
/// Longest encoded certificate: an election's, with two halves over the most voters.
pub(super) const MAX_CERTIFICATE: usize = 16 + 88 + 1 + 2 * (8 + 32 + 2 + MAX_MEMBERS.div_ceil(8) + 96);

impl HeadCertificate {
    /// Canonical bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        todo!()
    }
    /// Reads canonical bytes (re-encodes and demands equality).
    ///
    /// # Errors
    /// [`FormatError`].
    pub fn decode(_bytes: &[u8]) -> Result<Self, FormatError> {
        todo!()
    }
    /// Verifies against the tables in force: one (`next` is `None`) or two during a membership change. Every half must
    /// name what [`TableInForce::signed_under`] says of its table, have a signer set that fits, a quorum, and a verifying
    /// aggregate.
    ///
    /// # Errors
    /// [`CertificateError`].
    pub fn verify(
        &self,
        _genesis_id: &Digest,
        _current: &TableInForce,
        _next: Option<&TableInForce>,
    ) -> Result<(), CertificateError> {
        todo!()
    }
    /// The DIDs of the first half's signers.
    #[must_use]
    pub fn signers(&self, _table: &TableInForce) -> Vec<NodeId> {
        todo!()
    }
}

impl ElectionCertificate {
    /// Canonical bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        todo!()
    }
    /// Reads canonical bytes (re-encodes and demands equality).
    ///
    /// # Errors
    /// [`FormatError`].
    pub fn decode(_bytes: &[u8]) -> Result<Self, FormatError> {
        todo!()
    }
    /// As [`HeadCertificate::verify`].
    ///
    /// # Errors
    /// [`CertificateError`].
    pub fn verify(
        &self,
        _genesis_id: &Digest,
        _current: &TableInForce,
        _next: Option<&TableInForce>,
    ) -> Result<(), CertificateError> {
        todo!()
    }
}
