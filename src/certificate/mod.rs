//! Keys, canonical bytes, signatures, the Merkle tree, certificates, receipts and evidence.
//!
//! Everything here is a pure function of its arguments. This module is the offline verifier: `concordat verify` and
//! `concordat audit` add only file and network reading to it. The byte formats are written down in
//! [`crate::docs::formats`].

mod bitmap;
mod bytes;
mod chain;
mod edge;
mod evidence;
mod head;
mod header;
mod keys;
mod manifest;
pub mod merkle;
mod outcome;
mod receipt;
mod statement;
mod succession;
mod table;

pub use bitmap::Bitmap;
pub use bytes::{FormatError, Reader, Writer};
pub use chain::{EpochChain, EpochStep, StepError};
pub use edge::{Edge, FullTile, TILE_LEVELS, full_tiles, subtree};
pub use evidence::{Evidence, EvidenceError};
pub use head::{CertificateError, ElectionCertificate, Half, HeadCertificate};
pub use header::{
    AbortReason, Body, Entry, EntryError, HEADER_VERSION, Header, Kind, Request, Tally, TallySide, payload_hash,
};
pub use keys::{KeyError, POP_DST, PublicKey, SIGNATURE_DST, SecretKey, Signature, aggregate, verify_shares};
pub use manifest::SnapshotManifest;
pub use outcome::OutcomeError;
pub use receipt::{CommitCertificate, Receipt, ReceiptError, VerifiedReceipt};
pub use statement::{ElectionClaim, Head, SignedFor, VoteStatement};
pub use succession::{Succession, SuccessionError, Survey};
pub use table::{Genesis, GenesisError, Member, MemberTable, Policy, QuorumRule, Role, TableError, TableInForce};
