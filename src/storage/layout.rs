//! What is stored where: one table of all trees, and the codec of every key and value.
//!
//! The table and the codecs describe schema version [`SCHEMA`]; `migrations/` keeps the frozen description of each
//! version.

use crate::certificate::{ElectionClaim, FormatError, Reader, SnapshotManifest, Writer};
use crate::core::{CastVote, HardState};
use crate::ids::{Digest, LogIndex, Term};
use crate::limits::{MAX_ENTRY, MAX_HEADER, MAX_STORED_VALUE, SNAPSHOT_CHUNK, TILE};

/// The schema version that this program writes.
pub(super) const SCHEMA: u16 = 3;

/// One kind of record.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Shape {
    /// The sled tree.
    pub(super) tree: &'static str,
    /// Its key.
    pub(super) key: &'static str,
    /// Its value.
    pub(super) value: &'static str,
    /// Whether it can be rebuilt from the log, as far as the log reaches back: then it is written off the commit path and
    /// repaired at open. What stands for entries below the log's base is kept for ever and checked at open; of postings that
    /// are damaged there, the words of headers are rebuilt from headers, while those of pruned bodies (requests, keys of the
    /// registry) are gone, and whoever searches is told from which entry on they are known.
    pub(super) derived: bool,
}

const fn kept(tree: &'static str, key: &'static str, value: &'static str) -> Shape {
    Shape { tree, key, value, derived: false }
}

const fn derived(tree: &'static str, key: &'static str, value: &'static str) -> Shape {
    Shape { tree, key, value, derived: true }
}

/// Identity and schema.
pub(super) const META: &str = "meta";
/// Term and vote.
pub(super) const HARD: &str = "hard";
/// Blocks of entries.
pub(super) const LOG: &str = "log";
/// Head certificates.
pub(super) const CERTIFICATES: &str = "certificates";
/// This member's answers to ballots.
pub(super) const CASTS: &str = "casts";
/// Full tiles of tree hashes.
pub(super) const TILES: &str = "tiles";
/// Runs of headers.
pub(super) const HEADERS: &str = "headers";
/// Which entry a proposal became.
pub(super) const PROPOSALS: &str = "proposals";
/// Images of the applied state.
pub(super) const SNAPSHOTS: &str = "snapshots";
/// Entries below the log's base whose bodies are kept for ever.
pub(super) const KEPT: &str = "kept";
/// Which entries bear a word that auditors ask for.
pub(super) const POSTINGS: &str = "postings";
/// What the log rests on.
pub(super) const BASES: &str = "bases";

/// Every tree, key and value of a store. Numbers are big-endian.
pub(super) const TABLE: &[Shape] = &[
    kept(META, "schema", "u16"),
    kept(META, "did", "Ed25519 public key, 32 bytes"),
    kept(META, "bls", "BLS secret key, 32 bytes"),
    kept(META, "next bls", "the key that is to replace it, 32 bytes; absent unless a rotation is under way"),
    kept(META, "genesis", "the genesis file, JSON"),
    kept(META, "retired", "u8 = 1: its member signed that it ended; absent from all others"),
    kept(
        META,
        "base",
        "version u8 = 1, index u64, headers from u64, wipe u8, length u32 and SHA-256 32 of its parts, crc32 u32 of all before",
    ),
    kept(
        HARD,
        "state",
        "term u64, vote u8; when 1: term u64, candidate 32, last term u64, last size u64, last root 32",
    ),
    kept(HARD, "commits", "groups made durable so far u64"),
    kept(
        LOG,
        "first index u64",
        "version u8 = 1, count u16, root before the first entry 32, count of (length u32, entry), crc32 u32 of the key and all before",
    ),
    kept(CERTIFICATES, "size u64", "head certificate, canonical bytes"),
    kept(CASTS, "request key 32, content 32", "granted u8, keep until u64 (ms)"),
    kept(SNAPSHOTS, "index u64", "crc32 u32 of the key and all behind, version u8 = 1, complete u8, manifest"),
    kept(SNAPSHOTS, "index u64, chunk u32", "crc32 u32 of the key and all behind, up to 65,536 bytes of the image"),
    kept(KEPT, "index u64", "crc32 u32 of the key and all behind, entry"),
    kept(
        BASES,
        "index u64, part u32",
        "up to 65,536 bytes of: version u8 = 1, edge, terms u32 times (first index u64, term u64), proposed at u64, changes of members u32 times index u64",
    ),
    derived(TILES, "tile level u8, position u64", "256 hashes of 32 bytes"),
    derived(HEADERS, "first index u64", "64 of (length u16, header)"),
    derived(
        POSTINGS,
        "0 u8, level u8, first index u64",
        "crc32 u32 of the key and all behind, version u8 = 1, run u64, last index u64, first index with the words of bodies u64, rows u64, crc32 u32 of the rows' checksums",
    ),
    derived(
        POSTINGS,
        "1 u8, run u64, word 16, first index u64",
        "crc32 u32 of the key and all behind, up to 8,192 bytes of postings by word and index, packed",
    ),
    derived(PROPOSALS, "term u64, seq / 256 u64", "1 to 256 of (seq % 256 u8, index u64), ascending"),
];

/// Keys of [`META`] and [`HARD`].
pub(super) const META_SCHEMA: &str = "schema";
pub(super) const META_DID: &str = "did";
pub(super) const META_BLS: &str = "bls";
pub(super) const META_NEXT_BLS: &str = "next bls";
pub(super) const META_GENESIS: &str = "genesis";
pub(super) const META_RETIRED: &str = "retired";
pub(super) const META_BASE: &str = "base";
pub(super) const HARD_STATE: &str = "state";
pub(super) const COMMITS: &str = "commits";

/// Headers in one value of [`HEADERS`]: the most that fit at their largest, by powers of two.
pub(super) const HEADER_RUN: u64 = 64;
/// Proposals in one value of [`PROPOSALS`].
pub(super) const BUCKET: u64 = 256;

const _: () = assert!(HEADER_RUN as usize * (MAX_HEADER + 2) <= MAX_STORED_VALUE);
const _: () = assert!(TILE.is_multiple_of(HEADER_RUN));
const _: () = assert!(TILE as usize * 32 <= MAX_STORED_VALUE);
const _: () = assert!(SNAPSHOT_CHUNK + 4 <= MAX_STORED_VALUE && MAX_ENTRY + 4 <= MAX_STORED_VALUE);
const _: () = assert!(BUCKET as usize * 9 <= MAX_STORED_VALUE);

/// Names of all trees, each once.
pub(super) fn trees() -> impl Iterator<Item = &'static str> {
    TABLE.iter().enumerate().filter(|(i, s)| TABLE[..*i].iter().all(|t| t.tree != s.tree)).map(|(_, s)| s.tree)
}

/// A key that is one number: an index or a size.
pub(super) fn number_key(n: u64) -> [u8; 8] {
    n.to_be_bytes()
}

/// A key that is an index and a number below it: a chunk of a snapshot, a part of a base.
pub(super) fn part_key(index: LogIndex, part: u32) -> [u8; 12] {
    let mut key = [0; 12];
    key[..8].copy_from_slice(&index.0.to_be_bytes());
    key[8..].copy_from_slice(&part.to_be_bytes());
    key
}

/// Reads [`part_key`].
pub(super) fn read_part_key(bytes: &[u8]) -> Result<(LogIndex, u32), FormatError> {
    let mut r = Reader::new(bytes);
    let key = (LogIndex(r.u64("key")?), r.u32("key")?);
    r.finish("key")?;
    Ok(key)
}

/// A value that begins with a checksum of its key and itself.
pub(super) fn seal(key: &[u8], body: &[u8]) -> Vec<u8> {
    [&checksum(key, body).to_be_bytes(), body].concat()
}

/// What was sealed.
pub(super) fn unseal<'a>(key: &[u8], value: &'a [u8]) -> Result<&'a [u8], FormatError> {
    let (sum, body) = value.split_first_chunk().ok_or(FormatError::Truncated { field: "checksum" })?;
    if checksum(key, body) == u32::from_be_bytes(*sum) {
        Ok(body)
    } else {
        Err(FormatError::Value { field: "checksum" })
    }
}

/// CRC-32 of a key and what follows it.
pub(super) fn checksum(key: &[u8], body: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(key);
    hasher.update(body);
    hasher.finalize()
}

/// A snapshot's record: whether it is complete, and what it is.
pub(super) fn write_snapshot(complete: bool, manifest: &SnapshotManifest) -> Vec<u8> {
    let mut w = Writer::default();
    w.u8(1).u8(u8::from(complete)).fixed(&manifest.encode());
    seal(&number_key(manifest.index.0), &w.0)
}

pub(super) fn read_snapshot(key: &[u8], value: &[u8]) -> Result<(bool, SnapshotManifest), FormatError> {
    let index = read_number_key(key)?;
    let Some(([version, complete], manifest)) = unseal(key, value)?.split_first_chunk() else {
        return Err(FormatError::Truncated { field: "snapshot" });
    };
    if *version != 1 {
        return Err(FormatError::Version { what: "snapshot", version: *version });
    }
    let complete = read_flag(&mut Reader::new(&[*complete]), "snapshot.complete")?;
    let manifest = SnapshotManifest::decode(manifest)?;
    if manifest.index.0 == index {
        Ok((complete, manifest))
    } else {
        Err(FormatError::Value { field: "snapshot.index" })
    }
}

fn read_flag(r: &mut Reader<'_>, field: &'static str) -> Result<bool, FormatError> {
    match r.u8(field)? {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(FormatError::Value { field }),
    }
}

/// The value of `meta/base`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BaseRecord {
    /// The last entry below the log.
    pub(super) index: LogIndex,
    /// The first entry whose header is here.
    pub(super) from: LogIndex,
    /// Whether blocks above `index` belong to a log that was replaced, and are to be deleted before anything is appended.
    pub(super) wipe: bool,
    /// Length of all parts together, bytes.
    pub(super) length: u32,
    /// Their hash.
    pub(super) sum: [u8; 32],
}

impl BaseRecord {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut w = Writer::default();
        w.u8(1).u64(self.index.0).u64(self.from.0).u8(u8::from(self.wipe)).u32(self.length).fixed(&self.sum);
        let sum = checksum(META_BASE.as_bytes(), &w.0);
        w.u32(sum);
        w.0
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let (body, sum) = bytes.split_last_chunk().ok_or(FormatError::Truncated { field: "base" })?;
        if checksum(META_BASE.as_bytes(), body) != u32::from_be_bytes(*sum) {
            return Err(FormatError::Value { field: "checksum" });
        }
        let mut r = Reader::new(body);
        match r.u8("base.version")? {
            1 => {}
            version => return Err(FormatError::Version { what: "base", version }),
        }
        let record = Self {
            index: LogIndex(r.u64("base.index")?),
            from: LogIndex(r.u64("base.from")?),
            wipe: read_flag(&mut r, "base.wipe")?,
            length: r.u32("base.length")?,
            sum: r.array("base.sum")?,
        };
        r.finish("base")?;
        // Headers are held from a tile's first one on.
        let aligned = record.from.0 % TILE == 1 && record.from.prev() <= record.index;
        if aligned { Ok(record) } else { Err(FormatError::Value { field: "base.from" }) }
    }
}

/// Reads [`number_key`].
pub(super) fn read_number_key(bytes: &[u8]) -> Result<u64, FormatError> {
    let mut r = Reader::new(bytes);
    let n = r.u64("key")?;
    r.finish("key")?;
    Ok(n)
}

/// The value of `meta/schema`.
pub(super) fn read_schema(bytes: &[u8]) -> Result<u16, FormatError> {
    let mut r = Reader::new(bytes);
    let version = r.u16("schema")?;
    r.finish("schema")?;
    Ok(version)
}

/// The value of `meta/did`, and any other value that is exactly 32 bytes.
pub(super) fn read_32(bytes: &[u8], what: &'static str) -> Result<[u8; 32], FormatError> {
    let mut r = Reader::new(bytes);
    let value = r.array(what)?;
    r.finish(what)?;
    Ok(value)
}

pub(super) fn write_hard_state(hard: &HardState) -> Vec<u8> {
    let mut w = Writer::default();
    w.u64(hard.term.0);
    match &hard.vote {
        None => w.u8(0),
        Some(c) => w.u8(1).u64(c.term.0).node(&c.candidate).u64(c.last_term.0).u64(c.last_size).digest(&c.last_root),
    };
    w.0
}

pub(super) fn read_hard_state(bytes: &[u8]) -> Result<HardState, FormatError> {
    let mut r = Reader::new(bytes);
    let hard = read_hard_fields(&mut r)?;
    r.finish("hard state")?;
    Ok(hard)
}

pub(super) fn read_hard_fields(r: &mut Reader<'_>) -> Result<HardState, FormatError> {
    let term = Term(r.u64("hard.term")?);
    let vote = match r.u8("hard.vote")? {
        0 => None,
        1 => Some(ElectionClaim {
            term: Term(r.u64("hard.vote.term")?),
            candidate: r.node("hard.vote.candidate")?,
            last_term: Term(r.u64("hard.vote.last_term")?),
            last_size: r.u64("hard.vote.last_size")?,
            last_root: r.digest("hard.vote.last_root")?,
        }),
        _ => return Err(FormatError::Value { field: "hard.vote" }),
    };
    Ok(HardState { term, vote })
}

pub(super) fn cast_key(request_key: &Digest, content: &Digest) -> [u8; 64] {
    let mut key = [0; 64];
    key[..32].copy_from_slice(&request_key.0);
    key[32..].copy_from_slice(&content.0);
    key
}

pub(super) fn write_cast(cast: &CastVote) -> Vec<u8> {
    let mut w = Writer::default();
    w.u8(u8::from(cast.granted)).u64(cast.keep_until);
    w.0
}

pub(super) fn read_cast(key: &[u8], value: &[u8]) -> Result<CastVote, FormatError> {
    let mut k = Reader::new(key);
    let (request_key, content) = (k.digest("cast.request_key")?, k.digest("cast.content")?);
    k.finish("cast key")?;
    let mut v = Reader::new(value);
    let granted = match v.u8("cast.granted")? {
        0 => false,
        1 => true,
        _ => return Err(FormatError::Value { field: "cast.granted" }),
    };
    let keep_until = v.u64("cast.keep_until")?;
    v.finish("cast")?;
    Ok(CastVote { request_key, content, granted, keep_until })
}

pub(super) fn tile_key(level: u8, position: u64) -> [u8; 9] {
    let mut key = [level; 9];
    key[1..].copy_from_slice(&position.to_be_bytes());
    key
}

/// `hashes` are exactly [`TILE`].
pub(super) fn write_tile(hashes: &[Digest]) -> Vec<u8> {
    debug_assert_eq!(hashes.len() as u64, TILE);
    hashes.iter().flat_map(|h| h.0).collect()
}

pub(super) fn read_tile(bytes: &[u8]) -> Result<Vec<Digest>, FormatError> {
    let mut r = Reader::new(bytes);
    let hashes = (0..TILE).map(|_| r.digest("tile")).collect::<Result<_, _>>()?;
    r.finish("tile")?;
    Ok(hashes)
}

/// `headers` are exactly [`HEADER_RUN`] canonical headers.
pub(super) fn write_header_run(headers: &[Vec<u8>]) -> Vec<u8> {
    debug_assert_eq!(headers.len() as u64, HEADER_RUN);
    let mut w = Writer::default();
    for header in headers {
        w.short(header);
    }
    w.0
}

/// The canonical bytes of all headers of a run.
pub(super) fn read_whole_run(bytes: &[u8]) -> Result<Vec<&[u8]>, FormatError> {
    let mut r = Reader::new(bytes);
    let headers = (0..HEADER_RUN).map(|_| r.short(MAX_HEADER, "header run")).collect::<Result<_, _>>()?;
    r.finish("header run")?;
    Ok(headers)
}

/// The canonical bytes of header `position` (below [`HEADER_RUN`]) of a run.
pub(super) fn read_header_run(bytes: &[u8], position: u64) -> Result<&[u8], FormatError> {
    let mut r = Reader::new(bytes);
    let mut wanted = None;
    for i in 0..HEADER_RUN {
        let header = r.short(MAX_HEADER, "header run")?;
        if i == position {
            wanted = Some(header);
        }
    }
    r.finish("header run")?;
    wanted.ok_or(FormatError::Truncated { field: "header run" })
}

pub(super) fn bucket_key(term: Term, bucket: u64) -> [u8; 16] {
    let mut key = [0; 16];
    key[..8].copy_from_slice(&term.0.to_be_bytes());
    key[8..].copy_from_slice(&bucket.to_be_bytes());
    key
}

pub(super) fn write_bucket(rows: &[(u8, LogIndex)]) -> Vec<u8> {
    let mut w = Writer::default();
    for (low, index) in rows {
        w.u8(*low).u64(index.0);
    }
    w.0
}

pub(super) fn read_bucket(bytes: &[u8]) -> Result<Vec<(u8, LogIndex)>, FormatError> {
    let mut r = Reader::new(bytes);
    let mut rows: Vec<(u8, LogIndex)> = Vec::new();
    while !r.is_empty() {
        let row = (r.u8("bucket.low")?, LogIndex(r.u64("bucket.index")?));
        if rows.last().is_some_and(|last| last.0 >= row.0) {
            return Err(FormatError::NotCanonical { what: "bucket" });
        }
        rows.push(row);
    }
    if rows.is_empty() {
        return Err(FormatError::Truncated { field: "bucket" });
    }
    Ok(rows)
}

#[cfg(test)]
mod tests;
