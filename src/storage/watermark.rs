//! The watermark: what this node remembers about its memory, outside sled.
//!
//! A torn tail or a flipped bit can roll sled back to an earlier prefix without a word. The watermark is a small file of
//! its own that says what was durable at least: term and vote at every vote, the last index and its root now and then.
//! A store behind it has lost its memory and must not vote. The order is: store durable, then watermark durable, then
//! the message leaves; and before entries are dropped it is durably lowered, so that it never claims what may be gone.
//!
//! It also counts the groups ever made durable, so that what is lost at the end of the store shows whatever it was. It
//! is raised at every vote, every few thousand entries, and whenever the committer has been idle for a moment.
//!
//! Not found by it: rot of what was acknowledged after the last watermark, under load or in the moment after it.

use super::layout::{SCHEMA, read_hard_fields, write_hard_state};
use crate::certificate::{FormatError, Reader, Writer};
use crate::core::HardState;
use crate::ids::{Digest, LogIndex, NodeId};
use sha2::{Digest as _, Sha256};
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::path::Path;

/// The file's name in the store's directory.
pub(super) const FILE: &str = "watermark";
/// The name under which the next one is written.
pub(super) const NEXT: &str = "watermark.next";

const MAGIC: &[u8; 8] = b"ccd-mark";
const HARD_LENGTH: usize = 97;
const BODY: usize = 8 + 2 + 32 + HARD_LENGTH + 8 + 32 + 8;

/// What was durable, at least.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Watermark {
    /// Whose store this is.
    pub(super) did: NodeId,
    /// Term and vote.
    pub(super) hard: HardState,
    /// The last index.
    pub(super) last: LogIndex,
    /// The root over everything up to it.
    pub(super) root: Digest,
    /// How many groups were made durable.
    pub(super) commits: u64,
    /// The schema version of the store.
    pub(super) schema: u16,
}

/// Why the watermark file says nothing.
#[derive(Debug, thiserror::Error)]
pub enum WatermarkError {
    /// It cannot be read.
    #[error("it cannot be read: {0}")]
    Io(#[from] io::Error),
    /// Another length, magic or checksum.
    #[error("its contents are damaged: {0}")]
    Format(#[from] FormatError),
    /// The checksum is another.
    #[error("its checksum does not match its contents")]
    Checksum,
    /// Written by a newer program.
    #[error("it is of schema version {found}")]
    Newer {
        /// The version found.
        found: u16,
    },
}

impl Watermark {
    fn encode(&self) -> Vec<u8> {
        let mut w = Writer(MAGIC.to_vec());
        w.u16(self.schema).node(&self.did);
        let mut hard = write_hard_state(&self.hard);
        hard.resize(HARD_LENGTH, 0);
        w.fixed(&hard).u64(self.last.0).digest(&self.root).u64(self.commits);
        debug_assert_eq!(w.0.len(), BODY);
        let sum = Sha256::digest(&w.0);
        w.fixed(&sum);
        w.0
    }

    fn decode(bytes: &[u8]) -> Result<Self, WatermarkError> {
        let mut r = Reader::new(bytes);
        if r.fixed(MAGIC.len(), "watermark.magic")? != MAGIC {
            return Err(FormatError::Value { field: "watermark.magic" }.into());
        }
        // Magic and version stand first in every version; what follows may change, so the version is judged first.
        let version = r.u16("watermark.schema")?;
        if version > SCHEMA {
            return Err(WatermarkError::Newer { found: version });
        }
        if version == 0 {
            return Err(FormatError::Value { field: "watermark.schema" }.into());
        }
        let did = r.node("watermark.did")?;
        let mut hard_bytes = Reader::new(r.fixed(HARD_LENGTH, "watermark.hard")?);
        let last = LogIndex(r.u64("watermark.last")?);
        let root = r.digest("watermark.root")?;
        let commits = r.u64("watermark.commits")?;
        let sum: [u8; 32] = r.array("watermark.checksum")?;
        r.finish("watermark")?;
        let body = bytes.get(..BODY).ok_or(FormatError::Truncated { field: "watermark" })?;
        if Sha256::digest(body).as_slice() != sum {
            return Err(WatermarkError::Checksum);
        }
        let mark = Self { did, hard: read_hard_fields(&mut hard_bytes)?, last, root, commits, schema: version };
        if mark.encode() != bytes {
            return Err(FormatError::NotCanonical { what: "watermark" }.into());
        }
        Ok(mark)
    }

    /// Reads the watermark of the store in `dir`.
    pub(super) fn load(dir: &Path) -> Result<Self, WatermarkError> {
        Self::decode(&std::fs::read(dir.join(FILE))?)
    }

    /// Replaces the watermark durably: at any instant the file is wholly the old one or wholly the new one.
    pub(super) fn store(&self, dir: &Path, dir_handle: &File) -> io::Result<()> {
        let next = dir.join(NEXT);
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).open(&next)?;
        file.write_all(&self.encode())?;
        file.sync_all()?;
        drop(file);
        std::fs::rename(&next, dir.join(FILE))?;
        dir_handle.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::certificate::ElectionClaim;
    use crate::ids::Term;

    fn mark(vote: bool) -> Watermark {
        let claim = ElectionClaim {
            term: Term(3),
            candidate: NodeId([4; 32]),
            last_term: Term(2),
            last_size: 9,
            last_root: Digest([5; 32]),
        };
        let hard = HardState { term: Term(3), vote: vote.then_some(claim) };
        Watermark { did: NodeId([1; 32]), hard, last: LogIndex(12), root: Digest([6; 32]), commits: 77, schema: SCHEMA }
    }

    #[test]
    fn a_watermark_survives_the_disk() {
        let dir = tempfile::tempdir().unwrap();
        for mark in [mark(false), mark(true)] {
            mark.store(dir.path(), &File::open(dir.path()).unwrap()).unwrap();
            assert_eq!(Watermark::load(dir.path()).unwrap(), mark);
            assert!(!dir.path().join(NEXT).exists());
        }
    }

    #[test]
    fn any_changed_bit_and_any_other_length_is_found() {
        for mark in [mark(false), mark(true)] {
            let bytes = mark.encode();
            assert_eq!(bytes.len(), crate::storage::v2::WATERMARK);
            for at in 0..bytes.len() * 8 {
                let mut bad = bytes.clone();
                bad[at / 8] ^= 1 << (at % 8);
                assert!(Watermark::decode(&bad).is_err(), "bit {at}");
            }
            for length in 0..bytes.len() {
                assert!(Watermark::decode(&bytes[..length]).is_err(), "cut to {length}");
            }
            assert!(Watermark::decode(&[&bytes[..], &[0]].concat()).is_err());
        }
    }

    #[test]
    fn a_newer_version_is_named_before_anything_else_is_judged() {
        let bytes = [&MAGIC[..], &(SCHEMA + 1).to_be_bytes(), b"whatever a later version writes"].concat();
        assert!(matches!(Watermark::decode(&bytes), Err(WatermarkError::Newer { found }) if found == SCHEMA + 1));
    }
}
