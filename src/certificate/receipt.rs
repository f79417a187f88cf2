//! Receipts: self-contained files that prove one entry to whoever holds the genesis.

mod json;

use super::bytes::{FormatError, Reader, Writer};
use super::chain::{EpochChain, leaf_root, read_path, write_path};
use super::head::{CertificateError, HeadCertificate, MAX_CERTIFICATE, members_of};
use super::header::{Body, EntryError, Header, Kind};
use super::keys::Signature;
use super::outcome::OutcomeError;
use super::table::{Genesis, TableInForce};
use crate::ids::{Digest, Epoch, LogIndex, NodeId, ProposalId};
use crate::limits::MAX_HEADER;

const RECEIPT_TAG: &[u8; 16] = b"concordat:rcpt:1";

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
    /// a ballot. For entries that need no grant: the head's signers. Sorted.
    pub signers: Vec<NodeId>,
    /// The head's aggregate on the fast path, the grant aggregate after a ballot.
    pub threshold_sig: Signature,
    /// The head certificate it rides on.
    pub head: HeadCertificate,
    /// Inclusion of the entry in the head.
    pub path: Vec<Digest>,
}

impl CommitCertificate {
    /// Puts together what proves the entry of `header`, read under `own` (the table of the header's epoch) and `current`
    /// (the table under which the first half of `head` was signed). `committed_at` is the `proposed_at` of the last
    /// header that `head` covers. Verifies nothing: that is [`Receipt::verify`]. `None` when `head` has no half.
    #[must_use]
    pub fn assemble(
        header: &Header,
        own: &TableInForce,
        committed_at: u64,
        head: HeadCertificate,
        current: &TableInForce,
        path: Vec<Digest>,
    ) -> Option<Self> {
        let half = head.halves.first()?;
        let ballot = header.tally.as_ref().filter(|_| header.kind != Kind::Aborted).map(|tally| &tally.grants);
        let (signers, threshold_sig) = match ballot.and_then(|grants| Some((grants, grants.aggregate?))) {
            Some((grants, aggregate)) => (members_of(&grants.members, own), aggregate),
            None => (members_of(&half.signers, current), half.aggregate),
        };
        let (proposal_id, index) = (header.proposal_id, header.index);
        Some(Self { proposal_id, index, committed_at, signers, threshold_sig, head, path })
    }
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
    /// The head certificate. A `Proposal` without a ballot needs one whose first half is of the entry's own epoch, for
    /// there the head's signers are those who grant; any other entry may ride on a later one.
    pub certificate: HeadCertificate,
    /// The last header that the head covers: its `proposed_at` is `committed_at`.
    pub last_header: Header,
    /// Inclusion of that header.
    pub last_path: Vec<Digest>,
    /// The changes from genesis to the tables under which the head was signed: exactly as many as that takes. Under a
    /// head of two halves the last step is the change in flight; until its `EpochFinal` is known, the head certificate
    /// itself serves as that step's joint certificate.
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
    /// Its base64 is wrong.
    #[error("not a receipt: {0}")]
    Base64(#[from] base64::DecodeError),
    /// Its JSON is of another version.
    #[error("receipt format {0} is not known to this program; use a newer one")]
    Version(u64),
    /// Its JSON is not the one that its bytes are rendered as.
    #[error("the fields shown do not match the receipt's bytes: the file was altered")]
    Altered,
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
    /// An entry of the cluster that this one succeeds.
    #[error(
        "entry {index} is not of this cluster, which succeeds another at {size} entries: its members took it over and granted nothing; verify it with the predecessor's genesis"
    )]
    Predecessor {
        /// The entry.
        index: LogIndex,
        /// The predecessor's entries.
        size: u64,
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
    /// More or fewer membership changes than the head's epoch takes.
    #[error("{found} membership changes where the head's epoch takes {needed}")]
    ChainLength {
        /// In the receipt.
        found: usize,
        /// From genesis to the head.
        needed: u64,
    },
    /// A proposal without a ballot under a head that its own epoch's members did not sign.
    #[error(
        "granted without a ballot in epoch {entry}, but the head is signed in epoch {head}: its signers granted nothing"
    )]
    LaterHead {
        /// The entry's epoch.
        entry: Epoch,
        /// The head's.
        head: Epoch,
    },
    /// The votes do not support the outcome.
    #[error("votes: {0}")]
    Outcome(#[from] OutcomeError),
}

impl Receipt {
    /// Canonical bytes, beginning with a 16-byte tag that holds the format version.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut w = Writer::tagged(RECEIPT_TAG);
        w.short(&self.header.encode());
        match &self.body {
            None => drop(w.u8(0)),
            Some(body) => body.write(w.u8(1)),
        }
        write_path(&mut w, &self.path);
        w.short(&self.certificate.encode()).short(&self.last_header.encode());
        write_path(&mut w, &self.last_path);
        self.chain.write(&mut w);
        w.0
    }

    /// Reads canonical bytes.
    ///
    /// # Errors
    /// [`ReceiptError::Format`], [`ReceiptError::Entry`].
    pub fn decode(bytes: &[u8]) -> Result<Self, ReceiptError> {
        let mut r = Reader::new(bytes);
        r.tag(RECEIPT_TAG, "receipt")?;
        let header = Header::decode(r.short(MAX_HEADER, "receipt.header")?)?;
        let body = match r.u8("receipt.body")? {
            0 => None,
            1 => Some(Body::read(&mut r)?),
            _ => return Err(FormatError::Value { field: "receipt.body" }.into()),
        };
        if let Some(body) = &body {
            body.check(&header)?;
        }
        let receipt = Self {
            header,
            body,
            path: read_path(&mut r)?,
            certificate: HeadCertificate::decode(r.short(MAX_CERTIFICATE, "receipt.certificate")?)?,
            last_header: Header::decode(r.short(MAX_HEADER, "receipt.last_header")?)?,
            last_path: read_path(&mut r)?,
            chain: EpochChain::read(&mut r)?,
        };
        r.finish("receipt")?;
        if receipt.encode() != bytes {
            return Err(FormatError::NotCanonical { what: "receipt" }.into());
        }
        Ok(receipt)
    }

    /// Reads a receipt file of either form.
    ///
    /// # Errors
    /// As [`Receipt::decode`] and [`Receipt::from_json`].
    pub fn read(file: &[u8]) -> Result<Self, ReceiptError> {
        match std::str::from_utf8(file) {
            Ok(text) if !file.starts_with(RECEIPT_TAG) => Self::from_json(text),
            _ => Self::decode(file),
        }
    }

    /// Proves the entry from the genesis alone.
    ///
    /// # Errors
    /// [`ReceiptError`] naming the first flaw.
    pub fn verify(&self, genesis: &Genesis) -> Result<VerifiedReceipt, ReceiptError> {
        let (index, size) = (self.header.index, genesis.begins_after());
        if index.0 <= size {
            return Err(ReceiptError::Predecessor { index, size });
        }
        self.check_headers()?;
        self.check_inclusion()?;
        self.check_chain_length()?;
        let at = |what| move |source| ReceiptError::Certificate { what, source };
        let tables = self.chain.verify(genesis).map_err(at("epoch chain"))?;
        let (own, current) = (self.table_of(&tables, &self.header)?, self.table_of(&tables, &self.last_header)?);
        let next = tables.get(position(current.epoch.next()));
        let genesis_id = genesis.id();
        self.certificate.verify(&genesis_id, current, next).map_err(at("head certificate"))?;
        self.header.verify_outcome(&genesis_id, own)?;
        let by_signing = self.header.kind == Kind::Proposal && self.header.tally.is_none();
        if by_signing && own.epoch != current.epoch {
            return Err(ReceiptError::LaterHead { entry: own.epoch, head: current.epoch });
        }
        let (head, path) = (self.certificate.clone(), self.path.clone());
        let committed_at = self.last_header.proposed_at;
        let certificate = CommitCertificate::assemble(&self.header, own, committed_at, head, current, path)
            .ok_or(ReceiptError::Inconsistent("a head certificate without halves"))?;
        let tally = self.header.tally.as_ref();
        let granted = match tally {
            Some(tally) => members_of(&tally.grants.members, own),
            None if by_signing => certificate.signers.clone(),
            None => Vec::new(),
        };
        let denied = tally.map_or_else(Vec::new, |tally| members_of(&tally.denials.members, own));
        Ok(VerifiedReceipt { header: self.header.clone(), body: self.body.clone(), certificate, granted, denied })
    }

    /// What headers of one log say of each other.
    fn check_headers(&self) -> Result<(), ReceiptError> {
        let (entry, last, head) = (&self.header, &self.last_header, &self.certificate.head);
        entry.check_shape()?;
        last.check_shape()?;
        if let Some(body) = &self.body {
            body.check(entry)?;
        }
        let rules = [
            (last.index.0 == head.size, "the last header is not the last one that the head covers"),
            (last.term == head.term, "the head is not of the term of its last entry"),
            (entry.index <= last.index, "the entry lies behind the head"),
            (entry.term <= last.term, "the entry is of a later term than the head"),
            (entry.epoch <= last.epoch, "the entry is of a later epoch than the head"),
            (entry.proposed_at <= last.proposed_at, "the clock runs backwards from the entry to the head"),
        ];
        let broken = rules.iter().find(|(kept, _)| !kept);
        broken.map_or(Ok(()), |(_, rule)| Err(ReceiptError::Inconsistent(rule)))
    }

    fn check_inclusion(&self) -> Result<(), ReceiptError> {
        let head = &self.certificate.head;
        let parts = [("entry", &self.header, &self.path), ("last header", &self.last_header, &self.last_path)];
        for (what, header, path) in parts {
            if leaf_root(header.leaf_hash(), header.index.0, head.size, path) != Some(head.root) {
                return Err(ReceiptError::Inclusion { what });
            }
        }
        Ok(())
    }

    /// A receipt has one spelling, so it carries no step that it does not need.
    fn check_chain_length(&self) -> Result<(), ReceiptError> {
        let in_flight = u64::from(self.certificate.halves.len() > 1);
        let needed = self.last_header.epoch.0.saturating_add(in_flight);
        let found = self.chain.steps.len();
        if found as u64 == needed { Ok(()) } else { Err(ReceiptError::ChainLength { found, needed }) }
    }

    /// The table of a header's epoch, provided that the header lies behind the change that set it.
    fn table_of<'a>(&self, tables: &'a [TableInForce], header: &Header) -> Result<&'a TableInForce, ReceiptError> {
        let set_by = header.epoch.0.checked_sub(1).and_then(|before| self.chain.steps.get(position(Epoch(before))));
        if set_by.is_some_and(|step| !step.precedes(header)) {
            return Err(ReceiptError::Inconsistent("a header lies before the change that set its epoch"));
        }
        tables.get(position(header.epoch)).ok_or(ReceiptError::Inconsistent("an epoch that the chain does not reach"))
    }
}

/// Where an epoch's table stands among those of a chain; beyond any chain when it does not fit.
fn position(epoch: Epoch) -> usize {
    usize::try_from(epoch.0).unwrap_or(usize::MAX)
}
