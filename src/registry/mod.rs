//! The replicated state: the capability registry, its history, and the table of requests already answered. Pure.

use crate::certificate::Entry;
use crate::ids::{Digest, LogIndex, ProposalId};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

/// What a tag promises.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Capability {
    /** Tag. */
    pub tag: String,
    /** Version. */
    #[serde(default = "default_version")]
    pub version: String,
    /** At once. */
    #[serde(default = "default_concurrency")]
    pub max_concurrency: u32,
}
fn default_version() -> String {
    "1.0.0".into()
}
fn default_concurrency() -> u32 {
    1
}

/// An agent's own state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AgentStatus {
    /** Takes work. */
    #[default]
    Available,
    /** At its limit. */
    Busy,
    /** Finishes, takes none. */
    Draining,
    /** Away. */
    Offline,
}

/// A registered agent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Agent {
    /** Its id. */
    pub agent_id: String,
    /** For people. */
    pub display_name: String,
    /** Where it answers. */
    pub endpoint: String,
    /** Its DID. */
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub did: Option<String>,
    /** What it can do. */
    #[serde(default)]
    pub capabilities: Vec<Capability>,
    /** Its state. */
    #[serde(default)]
    pub status: AgentStatus,
    /** Anything. */
    #[serde(default)]
    pub metadata: BTreeMap<String, Value>,
}

/// What applying an entry did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "result", rename_all = "snake_case")]
pub enum Outcome {
    /// An agent is registered or replaced; the revision is the entry's index.
    Registered {
        /** Revision of the record. */
        revision: LogIndex,
    },
    /// Status set.
    StatusSet {
        /** Revision of the record. */
        revision: LogIndex,
    },
    /// Agent gone.
    Deregistered {
        /** Revision of the removal. */
        revision: LogIndex,
    },
    /// Config key set.
    ConfigSet {
        /** Revision of the key. */
        revision: LogIndex,
    },
    /// `if_revision` did not match; nothing changed.
    Conflict {
        /** Revision found (absent: no such record). */
        actual: Option<LogIndex>,
    },
    /// The operation named no such agent; nothing changed.
    NotFound,
    /// Not an operation of the registry.
    Opaque,
    /// The request was applied before.
    Repeat {
        /** Index of the first. */
        first: LogIndex,
    },
    /// Rejected or expired.
    Aborted,
}

/// What is remembered of a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answered {
    /** Its proposal. */
    pub id: ProposalId,
    /** Its entry. */
    pub index: LogIndex,
    /** SHA-256 of the payload alone. */
    pub content: Digest,
    /** Until when. */
    pub deadline_ms: u64,
    /** What came of it. */
    pub outcome: Outcome,
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct State {}

impl State {
    /// Applies the next entry.
    pub fn apply(&mut self, _entry: &Entry) -> Outcome {
        todo!()
    }
    /// A request that is remembered.
    #[must_use]
    pub fn answered(&self, _key: &Digest) -> Option<&Answered> {
        todo!()
    }
}
