//! The image of a node's applied state at a mark: everything that a node needs to go on from there. It depends on the
//! log up to the mark alone, so all members write the same bytes.

use crate::certificate::{
    Edge, Entry, EntryError, EpochChain, FormatError, Kind, Reader, SnapshotManifest, Writer, merkle, subtree,
};
use crate::core::Base;
use crate::ids::{Digest, Epoch, LogIndex, Term};
use crate::limits::{MAX_ENTRY, MAX_SNAPSHOT_CHUNKS, SNAPSHOT_CHUNK};
use crate::registry::State;
use std::sync::Arc;

const VERSION: u8 = 1;
/// Longest chain of epochs, in bytes: that of the longest history that a receipt may hold.
const MAX_CHAIN: usize = 1 << 30;

/// What a node goes on from.
#[derive(Clone, Debug, PartialEq)]
pub struct Image {
    /// The right edge of the tree; its size is the mark's index.
    pub edge: Edge,
    /// Where terms begin: (first index, term), ascending.
    pub terms: Vec<(LogIndex, Term)>,
    /// `proposed_at` of the mark, milliseconds since the Unix epoch.
    pub proposed_at: u64,
    /// Every membership change since the genesis, proved.
    pub chain: EpochChain,
    /// The `EpochFinal` entry of each.
    pub finals: Vec<Arc<Entry>>,
    /// The replicated state.
    pub state: State,
}

/// Why bytes are no image, or not the one that a manifest speaks of.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// A part does not read.
    #[error("the image does not read: {0}")]
    Format(#[from] FormatError),
    /// An entry or a proof does not read.
    #[error("the image's membership changes do not read: {0}")]
    Entry(#[from] EntryError),
    /// The state does not read.
    #[error("the image's state does not read: {0}")]
    State(#[from] rmp_serde::decode::Error),
    /// It is of another place, tree or state than its manifest says.
    #[error("the image's {what} is not the one that its manifest names")]
    Other {
        /// What differs.
        what: &'static str,
    },
}

impl Image {
    /// Its bytes.
    ///
    /// # Panics
    /// Never: every state can be written.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut w = Writer::default();
        w.u8(VERSION);
        self.edge.write(&mut w);
        w.u32(u32::try_from(self.terms.len()).expect("fewer terms than memory holds"));
        for (first, term) in &self.terms {
            w.u64(first.0).u64(term.0);
        }
        w.u64(self.proposed_at);
        w.long(&self.chain.encode());
        w.u32(u32::try_from(self.finals.len()).expect("fewer changes than memory holds"));
        for entry in &self.finals {
            w.long(&entry.encode());
        }
        rmp_serde::encode::write_named(&mut w.0, &self.state).expect("every state can be written");
        w.0
    }

    /// Reads [`Image::encode`].
    ///
    /// # Errors
    /// [`ImageError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, ImageError> {
        let mut r = Reader::new(bytes);
        let version = r.u8("image.version")?;
        if version != VERSION {
            return Err(FormatError::Version { what: "image", version }.into());
        }
        let edge = Edge::read(&mut r)?;
        let count = r.u32("image.terms")?;
        let mut terms = Vec::new();
        for _ in 0..count {
            terms.push((LogIndex(r.u64("image.term")?), Term(r.u64("image.term")?)));
        }
        let ascend = terms.windows(2).all(|w| w[0].0 < w[1].0 && w[0].1 < w[1].1);
        if !ascend || terms.last().is_some_and(|t| t.0.0 > edge.size()) {
            return Err(FormatError::Value { field: "image.terms" }.into());
        }
        let proposed_at = r.u64("image.proposed_at")?;
        let chain = EpochChain::decode(r.long(MAX_CHAIN, "image.chain")?)?;
        let count = r.u32("image.finals")?;
        let mut finals = Vec::new();
        for _ in 0..count {
            let entry = Entry::decode(r.long(MAX_ENTRY, "image.final")?)?;
            if entry.header.kind != Kind::EpochFinal {
                return Err(FormatError::Value { field: "image.final" }.into());
            }
            finals.push(Arc::new(entry));
        }
        if finals.len() != chain.steps.len() {
            return Err(FormatError::Value { field: "image.finals" }.into());
        }
        let state: State = rmp_serde::from_slice(r.rest())?;
        Ok(Self { edge, terms, proposed_at, chain, finals, state })
    }

    /// What it says of itself, with the bytes that it is written as.
    #[must_use]
    pub fn manifest(&self, bytes: &[u8]) -> SnapshotManifest {
        let (index, term) = (LogIndex(self.edge.size()), self.terms.last().map_or(Term::ZERO, |t| t.1));
        SnapshotManifest {
            index,
            term,
            epoch: Epoch(self.chain.steps.len() as u64),
            proposed_at: self.proposed_at,
            root: self.edge.frontier().root(),
            state: self.state.state_hash(),
            bytes: bytes.len() as u64,
            chunks_root: chunks_root(bytes),
        }
    }

    /// Whether it is the one that a manifest speaks of; its bytes are proved already.
    ///
    /// # Errors
    /// [`ImageError::Other`].
    pub fn check(&self, manifest: &SnapshotManifest) -> Result<(), ImageError> {
        let same = |what, same| if same { Ok(()) } else { Err(ImageError::Other { what }) };
        same("index", self.edge.size() == manifest.index.0 && self.state.applied() == manifest.index)?;
        same("tree", self.edge.frontier().root() == manifest.root)?;
        same("term", self.terms.last().map(|t| t.1) == Some(manifest.term))?;
        same("time", self.proposed_at == manifest.proposed_at)?;
        same("epoch", self.chain.steps.len() as u64 == manifest.epoch.0)?;
        same("state", self.state.state_hash() == manifest.state)
    }

    /// What a log that begins after it rests on.
    #[must_use]
    pub fn base(&self) -> Base {
        let changes = self.chain.steps.iter().map(|s| Arc::new(s.entry.clone()));
        Base {
            edge: self.edge.clone(),
            terms: self.terms.clone(),
            proposed_at: self.proposed_at,
            epochs: changes.zip(self.finals.iter().cloned()).flat_map(|(open, close)| [open, close]).collect(),
        }
    }
}

/// Chunks of an image's bytes, in order.
pub fn chunks(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    bytes.chunks(SNAPSHOT_CHUNK)
}

/// The tree over an image's chunks.
pub struct ChunkTree(Vec<Digest>);

impl ChunkTree {
    /// Of an image's bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        debug_assert!(bytes.len().div_ceil(SNAPSHOT_CHUNK) <= MAX_SNAPSHOT_CHUNKS as usize);
        Self(chunks(bytes).map(merkle::leaf_hash).collect())
    }

    /// The inclusion path of a chunk.
    #[must_use]
    pub fn path(&self, chunk: u32) -> Vec<Digest> {
        let Ok(path) = merkle::inclusion_path(self, chunk.into(), self.0.len() as u64);
        path
    }
}

impl merkle::Nodes for ChunkTree {
    type Error = std::convert::Infallible;

    fn node(&self, level: u8, position: u64) -> Result<Digest, Self::Error> {
        let from = usize::try_from(position << level).expect("within memory");
        Ok(subtree(&self.0[from..from + (1 << level)]))
    }
}

fn chunks_root(bytes: &[u8]) -> Digest {
    let tree = ChunkTree::of(bytes);
    let Ok(root) = merkle::root(&tree, tree.0.len() as u64);
    root
}
