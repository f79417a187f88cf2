//! What the log is searched by, and what is found.

use super::EntryView;
use crate::certificate::Kind;
use crate::ids::{LogIndex, NodeId};
use serde::{Deserialize, Serialize};

/// A page of entries.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EntryPage {
    /// The entries.
    pub entries: Vec<EntryView>,
    /// Where the next page starts; absent at the end.
    pub next: Option<LogIndex>,
    /// The commit index.
    pub commit_index: LogIndex,
}
/// Which entries are searched for: those of which everything given holds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Search {
    /// The node where the proposal came in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<NodeId>,
    /// The client whose request it was; with `request_id` only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<String>,
    /// The request's id; `client` is `anonymous` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
    /// A member who granted it; of entries that were not balloted, who signed the smallest head certificate that covers them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signer: Option<NodeId>,
    /// A member who denied it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub denier: Option<NodeId>,
    /// The config key that its operation names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// The agent that its operation names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<String>,
    /// What it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<Kind>,
    /// Proposed at this time or later, milliseconds since the Unix epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from_time: Option<u64>,
    /// Proposed at this time or earlier.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to_time: Option<u64>,
    /// The first index.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<LogIndex>,
    /// The last index.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<LogIndex>,
    /// Which come first.
    #[serde(default)]
    pub order: Order,
    /// Most entries of a page, 1–1,000; 100 when absent. A page may be shorter: [`SearchPage::next`] says where to go on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
    /// [`SearchPage::next`] of the page before, with everything else as it was then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
}

/// In which order entries are told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// As they stand in the log.
    #[default]
    Asc,
    /// The newest first.
    Desc,
}

/// An entry that was searched for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FoundEntry {
    /// The entry.
    #[serde(flatten)]
    pub entry: EntryView,
    /// Size of the smallest head here whose certificate covers it; absent until it is certified.
    pub certificate_size: Option<u64>,
    /// The deadline of the request that was searched for: with its key it hashes to the header's request digest, which
    /// proves the answer even when the body is pruned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline_ms: Option<u64>,
}

/// A page of entries that were searched for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SearchPage {
    /// The entries; there may be none although there are more to come.
    pub entries: Vec<FoundEntry>,
    /// `cursor` of the next page; absent at the end. It stays good however the log grows or is compacted.
    pub next: Option<String>,
    /// From this entry on nothing that was searched for is missing. It is more than 1 on a node that began with a snapshot,
    /// or whose index of pruned payloads was damaged: ask another node for what lies before.
    pub complete_from: LogIndex,
    /// The last entry that is looked at, by this and all following pages. Later entries: search again from the one after.
    pub upto: LogIndex,
}
