//! The disk space that a node takes.

use serde::{Deserialize, Serialize};

/// The disk space of a node's database.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatabaseStatus {
    /// Bytes that its files take.
    pub bytes: u64,
    /// Bytes of records copied and read back so far, while it moves to a fresh one; each is counted twice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moved: Option<u64>,
    /// What its last move since the node's start brought.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<Compaction>,
}

/// What a move of the database to a fresh one brought, as `POST /v1/compaction` answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Compaction {
    /// Bytes that its files took before.
    pub bytes_before: u64,
    /// Bytes that they take now.
    pub bytes_after: u64,
    /// Records in it.
    pub records: u64,
    /// How long writers were held up, microseconds.
    pub pause_us: u64,
}
