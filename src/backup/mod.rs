//! Backups: everything that a node holds for auditors and for the state, in one file that verifies by itself.
//!
//! A [`Source`] reads one from a store, frame by frame, with bounded memory; a [`Verifier`] takes the bytes as they come
//! and audits them with nothing but the genesis; what it has verified it hands to a [`Sink`]: nothing for
//! `backup --verify`, [`Rebuilt`] for a successor's state, a fresh store for [`restore`]. The format is in
//! [`crate::docs::formats`]. No secret key is ever in a backup: a store's memory is its key, so whatever is restored gets
//! a fresh one.

mod frame;
mod rebuild;
mod restore;
mod source;
mod verify;

pub use frame::{Begin, End, FrameError};
pub use rebuild::{RebuildError, Rebuilt, succession};
pub use restore::{MARKER, PREDECESSOR, RestoreFailure, restore, restore_successor};
pub use source::{Source, SourceError};
pub use verify::{Nothing, Sink, SinkError, Verified, Verifier, VerifyError, peek, verify};
