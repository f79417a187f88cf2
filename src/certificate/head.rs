//! Head certificates and election certificates: the aggregates of a quorum, with the bitmap of signers.

use super::bitmap::Bitmap;
use super::bytes::{FormatError, Reader, Writer};
use super::chain::StepError;
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
    /// A membership change that does not follow from the one before.
    #[error("the change to epoch {epoch}: {flaw}")]
    Step {
        /// The epoch that it would set.
        epoch: Epoch,
        /// Why.
        #[source]
        flaw: Box<StepError>,
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
        let mut w = Writer::tagged(HEAD_TAG);
        w.u64(self.head.term.0).u64(self.head.size).digest(&self.head.root);
        write_halves(&mut w, &self.halves);
        w.0
    }

    /// Reads canonical bytes (re-encodes and demands equality).
    ///
    /// # Errors
    /// [`FormatError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut r = Reader::new(bytes);
        r.tag(HEAD_TAG, "head certificate")?;
        let head = Head { term: Term(r.u64("head.term")?), size: r.u64("head.size")?, root: r.digest("head.root")? };
        let certificate = Self { head, halves: read_halves(&mut r)? };
        r.finish("head certificate")?;
        canonical(bytes, &certificate.encode(), "head certificate").map(|()| certificate)
    }

    /// Verifies against the tables in force: one (`next` is `None`) or two during a membership change. Every half must
    /// name what [`TableInForce::signed_under`] says of its table, have a signer set that fits, a quorum, and a verifying
    /// aggregate.
    ///
    /// # Errors
    /// [`CertificateError`].
    pub fn verify(
        &self,
        genesis_id: &Digest,
        current: &TableInForce,
        next: Option<&TableInForce>,
    ) -> Result<(), CertificateError> {
        verify_halves(&self.halves, genesis_id, current, next, |under| self.head.signed_bytes(under))
    }

    /// The DIDs of the first half's signers, sorted. `table` is the table in force under which that half was signed.
    #[must_use]
    pub fn signers(&self, table: &TableInForce) -> Vec<NodeId> {
        self.halves.first().map_or_else(Vec::new, |half| members_of(&half.signers, table))
    }
}

impl ElectionCertificate {
    /// Canonical bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut w = Writer::tagged(ELECTION_TAG);
        let ElectionClaim { term, candidate, last_term, last_size, last_root } = &self.claim;
        w.u64(term.0).node(candidate).u64(last_term.0).u64(*last_size).digest(last_root);
        write_halves(&mut w, &self.halves);
        w.0
    }

    /// Reads canonical bytes (re-encodes and demands equality).
    ///
    /// # Errors
    /// [`FormatError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut r = Reader::new(bytes);
        r.tag(ELECTION_TAG, "election certificate")?;
        let claim = ElectionClaim {
            term: Term(r.u64("claim.term")?),
            candidate: r.node("claim.candidate")?,
            last_term: Term(r.u64("claim.last_term")?),
            last_size: r.u64("claim.last_size")?,
            last_root: r.digest("claim.last_root")?,
        };
        let certificate = Self { claim, halves: read_halves(&mut r)? };
        r.finish("election certificate")?;
        canonical(bytes, &certificate.encode(), "election certificate").map(|()| certificate)
    }

    /// As [`HeadCertificate::verify`].
    ///
    /// # Errors
    /// [`CertificateError`].
    pub fn verify(
        &self,
        genesis_id: &Digest,
        current: &TableInForce,
        next: Option<&TableInForce>,
    ) -> Result<(), CertificateError> {
        verify_halves(&self.halves, genesis_id, current, next, |under| self.claim.signed_bytes(under))
    }
}

fn one_or_two<'de, D: serde::Deserializer<'de>>(d: D) -> Result<Vec<Half>, D::Error> {
    let halves = Vec::deserialize(d)?;
    if (1..=2).contains(&halves.len()) {
        return Ok(halves);
    }
    Err(serde::de::Error::invalid_length(halves.len(), &"one or two halves"))
}

fn canonical(bytes: &[u8], again: &[u8], what: &'static str) -> Result<(), FormatError> {
    if bytes == again { Ok(()) } else { Err(FormatError::NotCanonical { what }) }
}

fn write_halves(w: &mut Writer, halves: &[Half]) {
    w.u8(u8::try_from(halves.len()).expect("a certificate has one or two halves"));
    for half in halves {
        w.u64(half.epoch.0).digest(&half.epoch_hash).short(half.signers.as_bytes()).fixed(&half.aggregate.0);
    }
}

fn read_halves(r: &mut Reader<'_>) -> Result<Vec<Half>, FormatError> {
    let count = r.u8("certificate.halves")?;
    if !(1..=2).contains(&count) {
        return Err(FormatError::Value { field: "certificate.halves" });
    }
    let half = |_| {
        Ok(Half {
            epoch: Epoch(r.u64("half.epoch")?),
            epoch_hash: r.digest("half.epoch_hash")?,
            signers: Bitmap::from_bytes(r.short(MAX_MEMBERS.div_ceil(8), "half.signers")?.to_vec()),
            aggregate: Signature(r.array("half.aggregate")?),
        })
    };
    (0..count).map(half).collect()
}

fn verify_halves(
    halves: &[Half],
    genesis_id: &Digest,
    current: &TableInForce,
    next: Option<&TableInForce>,
    signed_bytes: impl Fn(&SignedFor) -> Vec<u8>,
) -> Result<(), CertificateError> {
    let under = current.signed_under(genesis_id, next);
    if halves.len() != under.len() {
        return Err(CertificateError::Halves { found: halves.len(), expected: under.len() });
    }
    let tables = std::iter::once(current).chain(next);
    // What is wrong on its face is found before any pairing is paid for.
    for ((half, table), under) in halves.iter().zip(tables.clone()).zip(&under) {
        half.check(table, under)?;
    }
    for ((half, table), under) in halves.iter().zip(tables).zip(&under) {
        let keys = keys_of(&half.signers, table);
        PublicKey::verify_aggregate(&keys, &signed_bytes(under), &half.aggregate)?;
    }
    Ok(())
}

impl Half {
    /// Everything but the signature.
    fn check(&self, table: &TableInForce, under: &SignedFor) -> Result<(), CertificateError> {
        if (self.epoch, self.epoch_hash) != (under.epoch, under.epoch_hash) {
            let (found, found_hash) = (self.epoch, self.epoch_hash);
            return Err(CertificateError::Epoch { found, found_hash, expected: table.epoch });
        }
        let voters = table.table.voters().count();
        if !self.signers.fits(voters) {
            return Err(CertificateError::Signers { voters });
        }
        let (signers, quorum) = (self.signers.count(), table.quorum());
        if signers < quorum {
            return Err(CertificateError::Quorum { signers, quorum });
        }
        Ok(())
    }
}

fn chosen<'a>(set: &'a Bitmap, table: &'a TableInForce) -> impl Iterator<Item = &'a Member> {
    table.table.voters().enumerate().filter(|(position, _)| set.contains(*position)).map(|(_, m)| m)
}

/// The members of a set over the table's voters, sorted by DID.
pub(super) fn members_of(set: &Bitmap, table: &TableInForce) -> Vec<NodeId> {
    chosen(set, table).map(|m| m.did).collect()
}

/// The keys of a set over the table's voters.
pub(super) fn keys_of(set: &Bitmap, table: &TableInForce) -> Vec<PublicKey> {
    chosen(set, table).map(|m| m.bls_key).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn certificate(halves: usize) -> HeadCertificate {
        let half = |i| Half {
            epoch: Epoch(i as u64),
            epoch_hash: Digest([i as u8; 32]),
            signers: Bitmap::of(5, [0, 2, 4]),
            aggregate: Signature([7; 96]),
        };
        let head = Head { term: Term(3), size: 9, root: Digest([1; 32]) };
        HeadCertificate { head, halves: (0..halves).map(half).collect() }
    }

    #[test]
    fn certificates_read_back_from_their_canonical_bytes_only() {
        for halves in 1..=2 {
            let head = certificate(halves);
            let bytes = head.encode();
            assert!(bytes.len() <= MAX_CERTIFICATE);
            assert_eq!(HeadCertificate::decode(&bytes), Ok(head.clone()));
            assert!(matches!(HeadCertificate::decode(&[&bytes[..], &[0]].concat()), Err(FormatError::Trailing { .. })));
            for cut in 0..bytes.len() {
                assert!(HeadCertificate::decode(&bytes[..cut]).is_err(), "{cut}");
            }
            let claim = ElectionClaim {
                term: Term(4),
                candidate: NodeId([5; 32]),
                last_term: Term(3),
                last_size: 9,
                last_root: Digest([1; 32]),
            };
            let election = ElectionCertificate { claim, halves: head.halves };
            assert_eq!(ElectionCertificate::decode(&election.encode()), Ok(election.clone()));
            assert!(matches!(HeadCertificate::decode(&election.encode()), Err(FormatError::Tag { .. })));
        }
    }

    #[test]
    fn no_and_three_halves_neither_decode_nor_deserialize() {
        let mut bytes = certificate(2).encode();
        for count in [0, 3] {
            bytes[16 + 48] = count;
            assert_eq!(HeadCertificate::decode(&bytes), Err(FormatError::Value { field: "certificate.halves" }));
            let json = serde_json::to_string(&certificate(usize::from(count))).unwrap();
            assert!(serde_json::from_str::<HeadCertificate>(&json).is_err());
        }
        let json = serde_json::to_string(&certificate(2)).unwrap();
        assert_eq!(serde_json::from_str::<HeadCertificate>(&json).unwrap(), certificate(2));
    }
}
