//! Entries: the header that is hashed into the tree and kept for ever, and the body that may be pruned.

use super::bitmap::Bitmap;
use super::bytes::{FormatError, Reader, Writer};
use super::keys::Signature;
use crate::ids::{Digest, Epoch, LogIndex, NodeId, ProposalId, Term};
use crate::limits::{MAX_HEADER, MAX_MEMBERS, MAX_PAYLOAD, MAX_REQUEST_ID};
use sha2::{Digest as _, Sha256};

/// The version byte of the header format.
pub const HEADER_VERSION: u8 = 1;

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum Kind {
    /// The first entry of a term; its payload is the election certificate.
    Noop = 0,
    /// A client's payload.
    Proposal = 1,
    /// A proposal that was rejected or expired; no payload.
    Aborted = 2,
    /// The next member table; opens joint consensus when appended.
    Epoch = 3,
    /// The joint certificate of the `Epoch` entry; closes joint consensus when appended.
    EpochFinal = 4,
    /// The index at which every node takes a snapshot.
    SnapshotMark = 5,
    /// The hash of the snapshot at a mark.
    SnapshotManifest = 6,
}

impl Kind {
    fn from_u8(v: u8) -> Result<Self, FormatError> {
        Ok(match v {
            0 => Self::Noop,
            1 => Self::Proposal,
            2 => Self::Aborted,
            3 => Self::Epoch,
            4 => Self::EpochFinal,
            5 => Self::SnapshotMark,
            6 => Self::SnapshotManifest,
            _ => return Err(FormatError::Value { field: "header.kind" }),
        })
    }
}

/// Why a proposal was aborted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum AbortReason {
    /// Denials made the required quorum impossible.
    Rejected = 1,
    /// The time to live passed first.
    Expired = 2,
}

/// One side of a tally: who, and the aggregate of their vote signatures. Empty when nobody voted so.
#[derive(Clone, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct TallySide {
    /// The members, by position among the voters of the entry's epoch.
    pub members: Bitmap,
    /// The aggregate of their signatures; `None` exactly when `members` is empty.
    pub aggregate: Option<Signature>,
}

/// The votes an entry records, read under the entry's own epoch.
#[derive(Clone, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct Tally {
    /// Who granted.
    pub grants: TallySide,
    /// Who denied.
    pub denials: TallySide,
}

/// What the tree commits to for one entry.
#[derive(Clone, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct Header {
    /// Position in the log, from 1; leaf number + 1.
    pub index: LogIndex,
    /// The term in which the entry was appended by its leader.
    pub term: Term,
    /// The member table in force.
    pub epoch: Epoch,
    /// What the entry is.
    pub kind: Kind,
    /// Present for `Proposal` and `Aborted`.
    pub proposal_id: Option<ProposalId>,
    /// [`Request::digest`] for `Proposal` and `Aborted`, zero otherwise.
    pub request_digest: Digest,
    /// The leader's clock, milliseconds since the Unix epoch; never decreases along the log.
    pub proposed_at: u64,
    /// Grants that the proposal needed; 0 for kinds that are not proposed.
    pub required_quorum: u16,
    /// Why a proposal was aborted; present exactly for `Aborted`.
    pub abort_reason: Option<AbortReason>,
    /// The votes, when the proposal was balloted.
    pub tally: Option<Tally>,
    /// Length of the payload, bytes. For `Aborted`: of the payload that was refused, which is not stored.
    pub payload_len: u32,
    /// `H(salt‖payload)`.
    pub payload_hash: Digest,
}

impl Header {
    /// The canonical bytes (see `docs/formats.md`).
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut w = Writer(Vec::with_capacity(if self.tally.is_some() { 512 } else { 192 }));
        w.u8(HEADER_VERSION).u8(self.kind as u8);
        w.u64(self.index.0).u64(self.term.0).u64(self.epoch.0);
        match &self.proposal_id {
            None => w.u8(0),
            Some(id) => w.u8(1).u64(id.term.0).u64(id.seq).node(&id.origin),
        };
        w.digest(&self.request_digest).u64(self.proposed_at).u16(self.required_quorum);
        w.u8(self.abort_reason.map_or(0, |r| r as u8));
        match &self.tally {
            None => {
                w.u8(0);
            }
            Some(tally) => {
                w.u8(1);
                for side in [&tally.grants, &tally.denials] {
                    w.short(side.members.as_bytes());
                    match &side.aggregate {
                        None => w.u8(0),
                        Some(s) => w.u8(1).fixed(&s.0),
                    };
                }
            }
        }
        w.u32(self.payload_len).digest(&self.payload_hash);
        debug_assert!(w.0.len() <= MAX_HEADER);
        w.0
    }

    /// Reads canonical bytes.
    ///
    /// # Errors
    /// [`FormatError`] when the bytes are not exactly one canonical header.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        if bytes.len() > MAX_HEADER {
            return Err(FormatError::TooLong { field: "header", length: bytes.len(), bound: MAX_HEADER });
        }
        let mut r = Reader::new(bytes);
        let version = r.u8("header.version")?;
        if version != HEADER_VERSION {
            return Err(FormatError::Version { what: "header", version });
        }
        let kind = Kind::from_u8(r.u8("header.kind")?)?;
        let index = LogIndex(r.u64("header.index")?);
        let term = Term(r.u64("header.term")?);
        let epoch = Epoch(r.u64("header.epoch")?);
        let proposal_id = match r.u8("header.proposal_id")? {
            0 => None,
            1 => Some(ProposalId {
                term: Term(r.u64("header.proposal_id.term")?),
                seq: r.u64("header.proposal_id.seq")?,
                origin: r.node("header.proposal_id.origin")?,
            }),
            _ => return Err(FormatError::Value { field: "header.proposal_id" }),
        };
        let request_digest = r.digest("header.request_digest")?;
        let proposed_at = r.u64("header.proposed_at")?;
        let required_quorum = r.u16("header.required_quorum")?;
        let abort_reason = match r.u8("header.abort_reason")? {
            0 => None,
            1 => Some(AbortReason::Rejected),
            2 => Some(AbortReason::Expired),
            _ => return Err(FormatError::Value { field: "header.abort_reason" }),
        };
        let tally = match r.u8("header.tally")? {
            0 => None,
            1 => Some(Tally { grants: decode_side(&mut r)?, denials: decode_side(&mut r)? }),
            _ => return Err(FormatError::Value { field: "header.tally" }),
        };
        let payload_len = r.u32("header.payload_len")?;
        let payload_hash = r.digest("header.payload_hash")?;
        r.finish("header")?;
        let header = Self {
            index,
            term,
            epoch,
            kind,
            proposal_id,
            request_digest,
            proposed_at,
            required_quorum,
            abort_reason,
            tally,
            payload_len,
            payload_hash,
        };
        header.check_shape()?;
        if header.encode() != bytes {
            return Err(FormatError::NotCanonical { what: "header" });
        }
        Ok(header)
    }

    /// The fields that a kind must and must not have.
    pub(super) fn check_shape(&self) -> Result<(), FormatError> {
        let wrong = |field| Err(FormatError::Value { field });
        let proposed = matches!(self.kind, Kind::Proposal | Kind::Aborted);
        if self.index == LogIndex::ZERO {
            return wrong("header.index");
        }
        if self.proposal_id.is_some() != proposed {
            return wrong("header.proposal_id");
        }
        if !proposed && self.request_digest != Digest::ZERO {
            return wrong("header.request_digest");
        }
        if proposed == (self.required_quorum == 0) {
            return wrong("header.required_quorum");
        }
        if self.abort_reason.is_some() != (self.kind == Kind::Aborted) {
            return wrong("header.abort_reason");
        }
        if self.tally.is_some() && matches!(self.kind, Kind::Noop | Kind::EpochFinal | Kind::SnapshotMark) {
            return wrong("header.tally");
        }
        if self.payload_len as usize > MAX_PAYLOAD {
            return wrong("header.payload_len");
        }
        Ok(())
    }

    /// The leaf hash of RFC 9162, section 2.1.1: `SHA-256(0x00 ‖ header)`.
    #[must_use]
    pub fn leaf_hash(&self) -> Digest {
        super::merkle::leaf_hash(&self.encode())
    }
}

fn decode_side(r: &mut Reader<'_>) -> Result<TallySide, FormatError> {
    let members = Bitmap::from_bytes(r.short(MAX_MEMBERS.div_ceil(8), "header.tally.members")?.to_vec());
    let aggregate = match r.u8("header.tally.aggregate")? {
        0 => None,
        1 => Some(Signature(r.array("header.tally.aggregate")?)),
        _ => return Err(FormatError::Value { field: "header.tally.aggregate" }),
    };
    if aggregate.is_some() != (members.count() > 0) {
        return Err(FormatError::Value { field: "header.tally.aggregate" });
    }
    Ok(TallySide { members, aggregate })
}

/// Who asked, under which id, and until when the id is remembered.
#[derive(Clone, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct Request {
    /// The client's identity, 1–128 bytes.
    pub client: String,
    /// The client's own id for this request, 1–128 bytes.
    pub request_id: String,
    /// Until when (milliseconds since the Unix epoch) the cluster remembers the id.
    pub deadline_ms: u64,
}

impl Request {
    /// What makes a request the same request: `H(tag ‖ client ‖ request_id)`.
    #[must_use]
    pub fn key(&self) -> Digest {
        let mut w = Writer::tagged(b"concordat:reqkey");
        // 32-bit lengths: this is computed of requests whose bounds nobody has checked yet.
        w.long(self.client.as_bytes()).long(self.request_id.as_bytes());
        Digest(Sha256::digest(&w.0).into())
    }

    /// What the header and the votes name: `H(tag ‖ key ‖ deadline)`.
    #[must_use]
    pub fn digest(&self) -> Digest {
        Self::digest_of(&self.key(), self.deadline_ms)
    }

    /// [`Request::digest`] of a request of which only its key and its deadline are known.
    #[must_use]
    pub fn digest_of(key: &Digest, deadline_ms: u64) -> Digest {
        let mut w = Writer::tagged(b"concordat:reqdig");
        w.digest(key).u64(deadline_ms);
        Digest(Sha256::digest(&w.0).into())
    }

    /// Whether both names are within their bounds.
    #[must_use]
    pub fn is_within_bounds(&self) -> bool {
        [&self.client, &self.request_id].iter().all(|s| !s.is_empty() && s.len() <= MAX_REQUEST_ID)
    }
}

/// The part of an entry that its header only names by hash.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct Body {
    /// Keeps a low-entropy payload secret once it is pruned. Zero for `Aborted`, whose payload is never published.
    pub salt: [u8; 16],
    /// Present for `Proposal` and `Aborted`.
    pub request: Option<Request>,
    /// The payload; empty for `Aborted`.
    #[serde(with = "serde_bytes")]
    pub payload: Vec<u8>,
}

impl Body {
    /// Whether `header` names exactly this body.
    pub(super) fn check(&self, header: &Header) -> Result<(), EntryError> {
        let mismatch = |what| Err(EntryError::Mismatch { index: header.index, what });
        let digest = self.request.as_ref().map_or(Digest::ZERO, Request::digest);
        if digest != header.request_digest || self.request.is_some() != header.proposal_id.is_some() {
            return mismatch("request");
        }
        if self.request.as_ref().is_some_and(|r| !r.is_within_bounds()) {
            return mismatch("request");
        }
        let matches = if header.kind == Kind::Aborted {
            // The payload hash does not bind the salt of a payload that is not there, and the salt would let anyone try
            // guesses at a payload that was refused and never published.
            self.payload.is_empty() && self.salt == [0; 16]
        } else {
            self.payload.len() == header.payload_len as usize
                && payload_hash(&self.salt, &self.payload) == header.payload_hash
        };
        if matches { Ok(()) } else { mismatch("payload") }
    }

    /// Salt, request if any, payload (32-bit length).
    pub(super) fn write(&self, w: &mut Writer) {
        w.fixed(&self.salt);
        match &self.request {
            None => w.u8(0),
            Some(r) => w.u8(1).short(r.client.as_bytes()).short(r.request_id.as_bytes()).u64(r.deadline_ms),
        };
        w.long(&self.payload);
    }

    /// What [`Body::write`] wrote; every field has one spelling.
    pub(super) fn read(r: &mut Reader<'_>) -> Result<Self, FormatError> {
        let salt = r.array("entry.salt")?;
        let request = match r.u8("entry.request")? {
            0 => None,
            1 => Some(Request {
                client: r.text(MAX_REQUEST_ID, "entry.client")?,
                request_id: r.text(MAX_REQUEST_ID, "entry.request_id")?,
                deadline_ms: r.u64("entry.deadline_ms")?,
            }),
            _ => return Err(FormatError::Value { field: "entry.request" }),
        };
        let payload = r.long(MAX_PAYLOAD, "entry.payload")?.to_vec();
        Ok(Self { salt, request, payload })
    }
}

/// `H(salt‖payload)`.
#[must_use]
pub fn payload_hash(salt: &[u8; 16], payload: &[u8]) -> Digest {
    Digest(Sha256::new().chain_update(salt).chain_update(payload).finalize().into())
}

/// An entry of the log. Immutable; shared behind an `Arc`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Entry {
    /// What the tree commits to.
    pub header: Header,
    /// What may be pruned.
    pub body: Body,
}

/// Why a header and a body do not belong together.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EntryError {
    /// A part does not decode.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// The body is not the one that the header names.
    #[error("entry {index}: its {what} does not match its header")]
    Mismatch {
        /// Which entry.
        index: LogIndex,
        /// Which part of it.
        what: &'static str,
    },
}

impl Entry {
    /// Puts a header and its body together.
    ///
    /// # Errors
    /// [`EntryError::Mismatch`] unless the header names exactly this body.
    pub fn new(header: Header, body: Body) -> Result<Self, EntryError> {
        body.check(&header)?;
        Ok(Self { header, body })
    }

    /// Canonical bytes: header (16-bit length), salt, request if any, payload (32-bit length).
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut w = Writer(Vec::with_capacity(512 + self.body.payload.len()));
        w.short(&self.header.encode());
        self.body.write(&mut w);
        w.0
    }

    /// Reads canonical bytes and checks that header and body belong together.
    ///
    /// # Errors
    /// [`EntryError`] when they do not decode or do not match.
    pub fn decode(bytes: &[u8]) -> Result<Self, EntryError> {
        let mut r = Reader::new(bytes);
        let header = Header::decode(r.short(MAX_HEADER, "entry.header")?)?;
        let body = Body::read(&mut r)?;
        r.finish("entry")?;
        Self::new(header, body)
    }

    /// Position in the log.
    #[must_use]
    pub fn index(&self) -> LogIndex {
        self.header.index
    }

    /// The term it was appended in.
    #[must_use]
    pub fn term(&self) -> Term {
        self.header.term
    }

    /// The node where its proposal came in, for kinds that have one.
    #[must_use]
    pub fn origin(&self) -> Option<NodeId> {
        self.header.proposal_id.map(|id| id.origin)
    }
}
