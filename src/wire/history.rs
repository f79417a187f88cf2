//! Pieces of the log's history, which nodes ask each other for beside the consensus: to fill in what lies before a snapshot
//! they installed, and to mend what their disk lost. Whoever asks proves what comes; a piece proves nothing by itself.

use super::{at_most, check_halves};
use crate::certificate::merkle::MAX_PATH;
use crate::certificate::{Entry, HeadCertificate};
use crate::ids::{Digest, LogIndex};
use crate::limits::{MAX_HEADER, MAX_MEMBERS, SNAPSHOT_CHUNK, TILE};
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;
use std::sync::Arc;

const PIECES: usize = TILE as usize;

const _: () = assert!(PIECES * (MAX_HEADER + 8) < crate::limits::MAX_FRAME);
const _: () = assert!(PIECES * 2 * (MAX_MEMBERS + 512) < crate::limits::MAX_FRAME);

/// A question about the history, or its answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum History {
    /// Please.
    Ask {
        /// Chosen by the asker; the answer echoes it.
        id: u64,
        /// What is wanted.
        piece: Piece,
    },
    /// What there is.
    Answer {
        /// Echoed.
        id: u64,
        /// The piece; `None` when it is not here.
        found: Option<Found>,
    },
}

/// A piece of the history.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Piece {
    /// A full tile of tree hashes.
    Tile {
        /// Its tile level.
        level: u8,
        /// Its place among the tiles of its level.
        position: u64,
    },
    /// The headers of a full leaf tile.
    Headers {
        /// The first of them.
        first: LogIndex,
    },
    /// Head certificates, all that there are of these sizes, of which there are at most [`TILE`].
    Certificates {
        /// Of heads larger than this,
        above: u64,
        /// and not larger than this.
        upto: u64,
    },
    /// Entries with their bodies: the first of these, and as many of the next ones as a frame takes.
    Bodies {
        /// At most [`TILE`].
        indexes: Vec<LogIndex>,
    },
    /// A chunk of a snapshot.
    Chunk {
        /// The snapshot's index.
        snapshot: LogIndex,
        /// Which chunk.
        number: u32,
    },
}

/// A piece, as the one asked has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Found {
    /// Its hashes.
    Tile(Vec<Digest>),
    /// Canonical bytes of each.
    Headers(Vec<ByteBuf>),
    /// Ascending.
    Certificates(Vec<Arc<HeadCertificate>>),
    /// In the order asked for.
    Bodies(#[serde(with = "crate::core::wire_entries")] Vec<Arc<Entry>>),
    /// A chunk.
    Chunk {
        /// Its bytes.
        bytes: ByteBuf,
        /// Its inclusion path in the tree of chunks.
        path: Vec<Digest>,
    },
}

impl History {
    /// The bounds that the types alone do not hold; the field at fault otherwise.
    pub(super) fn check(&self) -> Result<(), &'static str> {
        match self {
            Self::Ask { piece: Piece::Bodies { indexes }, .. } => at_most(indexes.len(), PIECES, "indexes"),
            Self::Ask { .. } | Self::Answer { found: None, .. } => Ok(()),
            Self::Answer { found: Some(found), .. } => found.check(),
        }
    }
}

impl Found {
    fn check(&self) -> Result<(), &'static str> {
        match self {
            Self::Tile(hashes) => at_most(hashes.len(), PIECES, "hashes"),
            Self::Headers(headers) => {
                at_most(headers.len(), PIECES, "headers")?;
                headers.iter().try_for_each(|h| at_most(h.len(), MAX_HEADER, "header"))
            }
            Self::Certificates(all) => {
                at_most(all.len(), PIECES, "certificates")?;
                all.iter().try_for_each(|c| check_halves(&c.halves))
            }
            Self::Bodies(entries) => at_most(entries.len(), PIECES, "entries"),
            Self::Chunk { bytes, path } => {
                at_most(bytes.len(), SNAPSHOT_CHUNK, "chunk")?;
                at_most(path.len(), MAX_PATH, "path")
            }
        }
    }

    /// About how many bytes it takes on the wire.
    #[must_use]
    pub fn weight(&self) -> usize {
        match self {
            Self::Tile(hashes) => hashes.len() * 34,
            Self::Headers(headers) => headers.iter().map(|h| h.len() + 3).sum(),
            Self::Certificates(all) => all.len() * 512,
            Self::Bodies(entries) => entries.iter().map(|e| e.body.payload.len() + 512).sum(),
            Self::Chunk { bytes, path } => bytes.len() + path.len() * 34,
        }
    }
}
