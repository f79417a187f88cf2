//! What a `SnapshotManifest` entry says: which state the members had at a mark, and by which bytes it can be had.

use super::bytes::{FormatError, Reader, Writer};
use super::merkle;
use crate::ids::{Digest, Epoch, LogIndex, Term};
use crate::limits::{MAX_SNAPSHOT_CHUNKS, SNAPSHOT_CHUNK};

const VERSION: u8 = 1;

/// The applied state at a `SnapshotMark` entry, and the image that a node can go on from. The payload of a
/// `SnapshotManifest` entry is its canonical bytes.
///
/// Every voter compares all of it with what it made itself, so a certified manifest proves the tree root, the state and
/// every byte of the image.
#[derive(Clone, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct SnapshotManifest {
    /// The mark's index: the state is the one after it.
    pub index: LogIndex,
    /// The mark's term.
    pub term: Term,
    /// The epoch in force at the mark. No change of members is in flight there.
    pub epoch: Epoch,
    /// The mark's `proposed_at`, milliseconds since the Unix epoch.
    pub proposed_at: u64,
    /// The tree root over the first `index` headers.
    pub root: Digest,
    /// The state's own hash, which does not depend on how the image is written.
    pub state: Digest,
    /// Length of the image, bytes.
    pub bytes: u64,
    /// The root of the tree (as over headers) whose leaves are the image's chunks: each is [`SNAPSHOT_CHUNK`] bytes long,
    /// the last one shorter or as long.
    pub chunks_root: Digest,
}

impl SnapshotManifest {
    /// How many chunks the image has; at least one.
    #[must_use]
    pub fn chunks(&self) -> u32 {
        u32::try_from(self.bytes.div_ceil(SNAPSHOT_CHUNK as u64)).unwrap_or(u32::MAX)
    }

    /// The length of a chunk, bytes; zero beyond the last.
    #[must_use]
    pub fn chunk_len(&self, number: u32) -> usize {
        let before = u64::from(number) * SNAPSHOT_CHUNK as u64;
        usize::try_from(self.bytes.saturating_sub(before)).unwrap_or(usize::MAX).min(SNAPSHOT_CHUNK)
    }

    /// Whether these bytes are the chunk of this number; `path` is their inclusion path below [`Self::chunks_root`].
    #[must_use]
    pub fn proves(&self, number: u32, chunk: &[u8], path: &[Digest]) -> bool {
        let root = merkle::root_from_path(merkle::leaf_hash(chunk), number.into(), self.chunks().into(), path);
        !chunk.is_empty() && chunk.len() == self.chunk_len(number) && root == Some(self.chunks_root)
    }

    /// Canonical bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut w = Writer::default();
        w.u8(VERSION).u64(self.index.0).u64(self.term.0).u64(self.epoch.0).u64(self.proposed_at);
        w.digest(&self.root).digest(&self.state).u64(self.bytes).digest(&self.chunks_root);
        w.0
    }

    /// Reads canonical bytes.
    ///
    /// # Errors
    /// [`FormatError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut r = Reader::new(bytes);
        let version = r.u8("manifest.version")?;
        if version != VERSION {
            return Err(FormatError::Version { what: "snapshot manifest", version });
        }
        let manifest = Self {
            index: LogIndex(r.u64("manifest.index")?),
            term: Term(r.u64("manifest.term")?),
            epoch: Epoch(r.u64("manifest.epoch")?),
            proposed_at: r.u64("manifest.proposed_at")?,
            root: r.digest("manifest.root")?,
            state: r.digest("manifest.state")?,
            bytes: r.u64("manifest.bytes")?,
            chunks_root: r.digest("manifest.chunks_root")?,
        };
        r.finish("snapshot manifest")?;
        if manifest.index == LogIndex::ZERO {
            return Err(FormatError::Value { field: "manifest.index" });
        }
        if manifest.bytes == 0 || manifest.bytes > u64::from(MAX_SNAPSHOT_CHUNKS) * SNAPSHOT_CHUNK as u64 {
            return Err(FormatError::Value { field: "manifest.bytes" });
        }
        Ok(manifest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Leaves<'a>(&'a [Digest]);

    impl merkle::Nodes for Leaves<'_> {
        type Error = std::convert::Infallible;

        fn node(&self, level: u8, position: u64) -> Result<Digest, Self::Error> {
            let (from, count) = ((position << level) as usize, 1_usize << level);
            let mut hashes = self.0[from..from + count].to_vec();
            while hashes.len() > 1 {
                hashes = hashes.chunks(2).map(|pair| merkle::node_hash(&pair[0], &pair[1])).collect();
            }
            Ok(hashes[0])
        }
    }

    fn image(bytes: usize) -> (SnapshotManifest, Vec<Vec<u8>>, Vec<Digest>) {
        let all: Vec<u8> = (0..bytes).map(|i| (i % 251) as u8).collect();
        let chunks: Vec<Vec<u8>> = all.chunks(SNAPSHOT_CHUNK).map(<[u8]>::to_vec).collect();
        let leaves: Vec<Digest> = chunks.iter().map(|c| merkle::leaf_hash(c)).collect();
        let Ok(chunks_root) = merkle::root(&Leaves(&leaves), leaves.len() as u64);
        let manifest = SnapshotManifest {
            index: LogIndex(7),
            term: Term(2),
            epoch: Epoch(1),
            proposed_at: 1_700_000_000_000,
            root: Digest([1; 32]),
            state: Digest([2; 32]),
            bytes: bytes as u64,
            chunks_root,
        };
        (manifest, chunks, leaves)
    }

    #[test]
    fn a_manifest_reads_back_and_every_other_spelling_is_refused() {
        let (manifest, ..) = image(100);
        let bytes = manifest.encode();
        assert_eq!(SnapshotManifest::decode(&bytes), Ok(manifest.clone()));
        for length in 0..bytes.len() {
            assert!(SnapshotManifest::decode(&bytes[..length]).is_err(), "cut to {length}");
        }
        assert!(SnapshotManifest::decode(&[bytes.clone(), vec![0]].concat()).is_err());
        for bad in [
            SnapshotManifest { index: LogIndex::ZERO, ..manifest.clone() },
            SnapshotManifest { bytes: 0, ..manifest.clone() },
            SnapshotManifest { bytes: u64::MAX, ..manifest },
        ] {
            assert!(SnapshotManifest::decode(&bad.encode()).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn each_chunk_is_proved_in_its_place_and_nowhere_else() {
        for bytes in [1, SNAPSHOT_CHUNK, SNAPSHOT_CHUNK + 1, 3 * SNAPSHOT_CHUNK, 5 * SNAPSHOT_CHUNK - 9] {
            let (manifest, chunks, leaves) = image(bytes);
            assert_eq!(manifest.chunks() as usize, chunks.len());
            for (number, chunk) in (0..).zip(&chunks) {
                let Ok(path) = merkle::inclusion_path(&Leaves(&leaves), number, leaves.len() as u64);
                let number = number as u32;
                assert!(manifest.proves(number, chunk, &path), "{bytes}: {number}");
                assert!(!manifest.proves(number + 1, chunk, &path));
                assert!(!manifest.proves(number, &chunk[..chunk.len() - 1], &path));
                let mut other = chunk.clone();
                other[0] ^= 1;
                assert!(!manifest.proves(number, &other, &path));
            }
        }
    }
}
