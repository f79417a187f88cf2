//! What is stored where: one table of all trees, and the codec of every key and value.
//!
//! The table and the codecs describe schema version [`SCHEMA`]; `migrations/` keeps the frozen description of each
//! version.

use crate::certificate::{ElectionClaim, FormatError, Reader, Writer};
use crate::core::{CastVote, HardState};
use crate::ids::{Digest, LogIndex, Term};
use crate::limits::{MAX_HEADER, MAX_STORED_VALUE, TILE};

/// The schema version that this program writes.
pub(super) const SCHEMA: u16 = 1;

/// One kind of record.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Shape {
    /// The sled tree.
    pub(super) tree: &'static str,
    /// Its key.
    pub(super) key: &'static str,
    /// Its value.
    pub(super) value: &'static str,
    /// Whether it can be rebuilt from the log: then it is written off the commit path and repaired at open.
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

/// Every tree, key and value of a store. Numbers are big-endian.
pub(super) const TABLE: &[Shape] = &[
    kept(META, "schema", "u16"),
    kept(META, "did", "Ed25519 public key, 32 bytes"),
    kept(META, "bls", "BLS secret key, 32 bytes"),
    kept(META, "next bls", "the key that is to replace it, 32 bytes; absent unless a rotation is under way"),
    kept(META, "genesis", "the genesis file, JSON"),
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
    derived(TILES, "tile level u8, position u64", "256 hashes of 32 bytes"),
    derived(HEADERS, "first index u64", "64 of (length u16, header)"),
    derived(PROPOSALS, "term u64, seq / 256 u64", "1 to 256 of (seq % 256 u8, index u64), ascending"),
];

/// Keys of [`META`] and [`HARD`].
pub(super) const META_SCHEMA: &str = "schema";
pub(super) const META_DID: &str = "did";
pub(super) const META_BLS: &str = "bls";
pub(super) const META_NEXT_BLS: &str = "next bls";
pub(super) const META_GENESIS: &str = "genesis";
pub(super) const HARD_STATE: &str = "state";
pub(super) const COMMITS: &str = "commits";

/// Headers in one value of [`HEADERS`]: the most that fit at their largest, by powers of two.
pub(super) const HEADER_RUN: u64 = 64;
/// Proposals in one value of [`PROPOSALS`].
pub(super) const BUCKET: u64 = 256;

const _: () = assert!(HEADER_RUN as usize * (MAX_HEADER + 2) <= MAX_STORED_VALUE);
const _: () = assert!(TILE.is_multiple_of(HEADER_RUN));
const _: () = assert!(TILE as usize * 32 <= MAX_STORED_VALUE);
const _: () = assert!(BUCKET as usize * 9 <= MAX_STORED_VALUE);

/// Names of all trees, each once.
pub(super) fn trees() -> impl Iterator<Item = &'static str> {
    TABLE.iter().enumerate().filter(|(i, s)| TABLE[..*i].iter().all(|t| t.tree != s.tree)).map(|(_, s)| s.tree)
}

/// A key that is one number: an index or a size.
pub(super) fn number_key(n: u64) -> [u8; 8] {
    n.to_be_bytes()
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
