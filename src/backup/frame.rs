//! Frames: what a backup is made of, each bound to all before it.

use crate::certificate::{Edge, FormatError, Genesis, GenesisError, Reader, SnapshotManifest, Writer};
use crate::ids::{Digest, LogIndex, Term};
use crate::limits::MAX_BACKUP_FRAME;
use sha2::{Digest as _, Sha256};

/// The first bytes of the file.
pub(super) const TAG: &[u8; 16] = b"concordat:bkup:1";
/// Kind and length before a frame's body.
const HEAD: usize = 5;
/// The sum behind it.
const SUM: usize = 32;

/// What a frame holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    Begin = 1,
    Chunk = 2,
    Items = 3,
    End = 4,
}

/// Why bytes are no frame of a backup.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Not a backup, or one of another version.
    #[error("not a backup of a format that this program knows")]
    Tag,
    /// A kind that there is not.
    #[error("at byte {at}: a frame of unknown kind {kind}")]
    Kind {
        /// Where the frame begins.
        at: u64,
        /// What it says.
        kind: u8,
    },
    /// Longer than any.
    #[error("at byte {at}: a frame of {length} bytes, at most {MAX_BACKUP_FRAME} are allowed")]
    Long {
        /// Where the frame begins.
        at: u64,
        /// What it says.
        length: u32,
    },
    /// Not what was written.
    #[error("at byte {at}: the checksum is wrong: the file is damaged, or is not in its order")]
    Sum {
        /// Where the frame begins.
        at: u64,
    },
}

/// The hash of everything so far, frame by frame: `sum = H(sum before ‖ kind ‖ length ‖ body)`, at first `H(tag)`. So the
/// last one is a hash of the whole.
#[derive(Clone, Debug)]
pub(super) struct Chain(pub(super) [u8; SUM]);

impl Chain {
    pub(super) fn new() -> Self {
        Self(Sha256::digest(TAG).into())
    }

    fn next(&self, frame: &[u8]) -> [u8; SUM] {
        Sha256::new().chain_update(self.0).chain_update(frame).finalize().into()
    }

    /// Makes the next frame.
    pub(super) fn frame(&mut self, kind: Kind, body: &[u8]) -> Vec<u8> {
        debug_assert!(body.len() <= MAX_BACKUP_FRAME);
        let mut w = Writer::default();
        w.u8(kind as u8).long(body);
        self.0 = self.next(&w.0);
        w.fixed(&self.0);
        w.0
    }
}

/// Cuts a stream of bytes into frames.
#[derive(Debug)]
pub(super) struct Frames {
    buffer: Vec<u8>,
    /// Bytes of the buffer that were taken.
    taken: usize,
    /// Where `buffer[taken]` stands in the file.
    at: u64,
    begun: bool,
    pub(super) chain: Chain,
}

impl Frames {
    pub(super) fn new() -> Self {
        Self { buffer: Vec::new(), taken: 0, at: 0, begun: false, chain: Chain::new() }
    }

    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.buffer.drain(..self.taken);
        self.taken = 0;
        self.buffer.extend_from_slice(bytes);
    }

    /// Whether bytes are left that are no whole frame.
    pub(super) fn is_empty(&self) -> bool {
        self.taken == self.buffer.len()
    }

    /// The next whole frame, if it is there.
    pub(super) fn next(&mut self) -> Result<Option<(Kind, Vec<u8>)>, FrameError> {
        let mut rest = &self.buffer[self.taken..];
        if !self.begun {
            let Some((tag, behind)) = rest.split_first_chunk::<16>() else {
                // Told from what is there, so that a file of another kind is named that however short it is.
                return if TAG.starts_with(rest) { Ok(None) } else { Err(FrameError::Tag) };
            };
            if tag != TAG {
                return Err(FrameError::Tag);
            }
            rest = behind;
            (self.begun, self.taken, self.at) = (true, self.taken + TAG.len(), self.at + TAG.len() as u64);
        }
        let Some(([kind, length @ ..], behind)) = rest.split_first_chunk::<HEAD>() else { return Ok(None) };
        let (at, length) = (self.at, u32::from_be_bytes(*length));
        let kind = match *kind {
            1 => Kind::Begin,
            2 => Kind::Chunk,
            3 => Kind::Items,
            4 => Kind::End,
            kind => return Err(FrameError::Kind { at, kind }),
        };
        if length as usize > MAX_BACKUP_FRAME {
            return Err(FrameError::Long { at, length });
        }
        let Some((body, sum)) = behind.split_at_checked(length as usize) else { return Ok(None) };
        let Some((sum, _)) = sum.split_first_chunk::<SUM>() else { return Ok(None) };
        let whole = HEAD + body.len();
        let next = self.chain.next(&rest[..whole]);
        if next != *sum {
            return Err(FrameError::Sum { at });
        }
        let body = body.to_vec();
        self.chain.0 = next;
        self.taken += whole + SUM;
        self.at += (whole + SUM) as u64;
        Ok(Some((kind, body)))
    }
}

/// The first frame: what the backup is of.
#[derive(Clone, Debug, PartialEq)]
pub struct Begin {
    /// The cluster.
    pub genesis: Genesis,
    /// Entries before the first: those of the cluster that this one succeeds; with the right edge of their tree, and
    /// where their terms begin. Zero and empty otherwise.
    pub edge: Edge,
    /// See `edge`.
    pub terms: Vec<(LogIndex, Term)>,
    /// Entries that the newest head certificate covers.
    pub certified: u64,
    /// The last entry: `certified`, or beyond it when the uncertified tail was asked for.
    pub last: LogIndex,
    /// Entries above this have their bodies.
    pub base: LogIndex,
    /// The snapshot whose image follows.
    pub snapshot: Option<SnapshotManifest>,
}

impl Begin {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut w = Writer::default();
        w.long(self.genesis.to_json().as_bytes());
        self.edge.write(&mut w);
        w.u32(u32::try_from(self.terms.len()).expect("fewer terms than memory holds"));
        for (first, term) in &self.terms {
            w.u64(first.0).u64(term.0);
        }
        w.u64(self.certified).u64(self.last.0).u64(self.base.0);
        match &self.snapshot {
            None => drop(w.u8(0)),
            Some(manifest) => drop(w.u8(1).short(&manifest.encode())),
        }
        w.0
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, BeginError> {
        let mut r = Reader::new(bytes);
        let json = r.long(MAX_BACKUP_FRAME, "backup.genesis")?;
        let text = std::str::from_utf8(json).map_err(|_| FormatError::Value { field: "backup.genesis" })?;
        let genesis = Genesis::from_json(text)?;
        let edge = Edge::read(&mut r)?;
        let count = r.u32("backup.terms")?;
        let mut terms = Vec::new();
        for _ in 0..count {
            terms.push((LogIndex(r.u64("backup.terms")?), Term(r.u64("backup.terms")?)));
        }
        let (certified, last, base) = (r.u64("backup.certified")?, r.u64("backup.last")?, r.u64("backup.base")?);
        let snapshot = match r.u8("backup.snapshot")? {
            0 => None,
            1 => Some(SnapshotManifest::decode(r.short(u16::MAX.into(), "backup.snapshot")?)?),
            _ => return Err(FormatError::Value { field: "backup.snapshot" }.into()),
        };
        r.finish("backup.begin")?;
        let begin = Self { genesis, edge, terms, certified, last: LogIndex(last), base: LogIndex(base), snapshot };
        if begin.encode() != bytes {
            return Err(FormatError::NotCanonical { what: "beginning of a backup" }.into());
        }
        Ok(begin)
    }
}

/// Why a first frame does not read.
#[derive(Debug, thiserror::Error)]
pub(super) enum BeginError {
    #[error(transparent)]
    Format(#[from] FormatError),
    #[error(transparent)]
    Genesis(#[from] GenesisError),
}

/// The last frame: how much there was. Its sum is the hash of the whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct End {
    /// Entries.
    pub entries: u64,
    /// Those among them that have their bodies.
    pub bodies: u64,
    /// Head certificates.
    pub certificates: u64,
    /// Chunks of the snapshot's image.
    pub chunks: u32,
}

impl End {
    pub(super) fn encode(self) -> Vec<u8> {
        let mut w = Writer::default();
        w.u64(self.entries).u64(self.bodies).u64(self.certificates).u32(self.chunks);
        w.0
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut r = Reader::new(bytes);
        let end = Self {
            entries: r.u64("end.entries")?,
            bodies: r.u64("end.bodies")?,
            certificates: r.u64("end.certificates")?,
            chunks: r.u32("end.chunks")?,
        };
        r.finish("end of a backup")?;
        Ok(end)
    }
}

/// What begins an item.
pub(super) const HEADER: u8 = 0;
pub(super) const ENTRY: u8 = 1;
pub(super) const CERTIFICATE: u8 = 2;

/// The hash of the whole, as it is shown.
pub(super) fn digest(chain: &Chain) -> Digest {
    Digest(chain.0)
}
