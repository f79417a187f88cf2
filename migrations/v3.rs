//! Schema version 3 of a node's store, frozen.

/// This version.
pub(super) const SCHEMA: u16 = 3;

/// (tree, key, value, derived): every tree of a version 3 store. Numbers are big-endian.
pub(super) const TREES: &[(&str, &str, &str, bool)] = &[
    ("meta", "schema", "u16", false),
    ("meta", "did", "Ed25519 public key, 32 bytes", false),
    ("meta", "bls", "BLS secret key, 32 bytes", false),
    ("meta", "next bls", "the key that is to replace it, 32 bytes; absent unless a rotation is under way", false),
    ("meta", "genesis", "the genesis file, JSON", false),
    ("meta", "retired", "u8 = 1: its member signed that it ended; absent from all others", false),
    (
        "meta",
        "base",
        "version u8 = 1, index u64, headers from u64, wipe u8, length u32 and SHA-256 32 of its parts, crc32 u32 of all before",
        false,
    ),
    (
        "hard",
        "state",
        "term u64, vote u8; when 1: term u64, candidate 32, last term u64, last size u64, last root 32",
        false,
    ),
    ("hard", "commits", "groups made durable so far u64", false),
    (
        "log",
        "first index u64",
        "version u8 = 1, count u16, root before the first entry 32, count of (length u32, entry), crc32 u32 of the key and all before",
        false,
    ),
    ("certificates", "size u64", "head certificate, canonical bytes", false),
    ("casts", "request key 32, content 32", "granted u8, keep until u64 (ms)", false),
    ("snapshots", "index u64", "crc32 u32 of the key and all behind, version u8 = 1, complete u8, manifest", false),
    (
        "snapshots",
        "index u64, chunk u32",
        "crc32 u32 of the key and all behind, up to 65,536 bytes of the image",
        false,
    ),
    ("kept", "index u64", "crc32 u32 of the key and all behind, entry", false),
    (
        "bases",
        "index u64, part u32",
        "up to 65,536 bytes of: version u8 = 1, edge, terms u32 times (first index u64, term u64), proposed at u64, changes of members u32 times index u64",
        false,
    ),
    ("tiles", "tile level u8, position u64", "256 hashes of 32 bytes", true),
    ("headers", "first index u64", "64 of (length u16, header)", true),
    (
        "postings",
        "0 u8, level u8, first index u64",
        "crc32 u32 of the key and all behind, version u8 = 1, run u64, last index u64, first index with the words of bodies u64, rows u64, crc32 u32 of the rows' checksums",
        true,
    ),
    (
        "postings",
        "1 u8, run u64, word 16, first index u64",
        "crc32 u32 of the key and all behind, up to 8,192 bytes of postings by word and index, packed",
        true,
    ),
    ("proposals", "term u64, seq / 256 u64", "1 to 256 of (seq % 256 u8, index u64), ascending", true),
];

/// The record of term and vote without and with a vote, bytes.
pub(super) const HARD_STATE: [usize; 2] = [9, 97];
/// The value of a cast vote, bytes.
pub(super) const CAST_VOTE: usize = 9;
/// The watermark file, bytes: magic 8, schema u16, DID 32, hard state padded to 97, last index u64, root 32, commits
/// u64, SHA-256 of all before.
pub(super) const WATERMARK: usize = 8 + 2 + 32 + 97 + 8 + 32 + 8 + 32;
/// The record of the base, bytes.
pub(super) const BASE: usize = 1 + 8 + 8 + 1 + 4 + 32 + 4;
/// The file `current`, bytes: magic 8, number u64, SHA-256 of all before. Absent while the database lies in the store's
/// directory itself; otherwise it lies in `database-NUMBER`, in decimal.
pub(super) const CURRENT: usize = 8 + 8 + 32;
