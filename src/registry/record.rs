//! What the registry holds, and what applying an entry can do to it.

use crate::certificate::AbortReason;
use crate::ids::LogIndex;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

/// Something an agent can do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Capability {
    /// What it is looked up by, 1–128 bytes.
    pub tag: String,
    /// Its version; `1.0.0` when not given.
    #[serde(default = "default_version")]
    pub version: String,
    /// How many tasks of this kind at once, from 1; 1 when not given.
    #[serde(default = "default_concurrency")]
    pub max_concurrency: u32,
}

pub(super) fn default_version() -> String {
    "1.0.0".into()
}

pub(super) const fn default_concurrency() -> u32 {
    1
}

/// Whether an agent takes work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AgentStatus {
    /// Takes work.
    #[default]
    Available,
    /// At its limit.
    Busy,
    /// Finishes what it has, takes no more.
    Draining,
    /// Away.
    Offline,
}

impl AgentStatus {
    /// Every status, in the order of the declaration.
    pub const ALL: [Self; 4] = [Self::Available, Self::Busy, Self::Draining, Self::Offline];

    /// Its name in JSON.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Available => "available",
            Self::Busy => "busy",
            Self::Draining => "draining",
            Self::Offline => "offline",
        }
    }
}

/// An agent, as it registers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Agent {
    /// Its id, 1–256 bytes.
    pub agent_id: String,
    /// For people, at most 2,048 bytes.
    pub display_name: String,
    /// Where it answers, 1–2,048 bytes.
    pub endpoint: String,
    /// Its own DID, when it has one.
    #[serde(default)]
    pub did: Option<String>,
    /// What it can do, at most 256.
    #[serde(default)]
    pub capabilities: Vec<Capability>,
    /// Whether it takes work.
    #[serde(default)]
    pub status: AgentStatus,
    /// Anything else.
    #[serde(default)]
    pub metadata: BTreeMap<String, Value>,
}

/// An agent as the registry holds it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AgentRecord {
    /// The agent.
    pub agent: Agent,
    /// The index of the entry that last changed it.
    pub revision: LogIndex,
}

/// A config key as the registry holds it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ConfigRecord {
    /// Any JSON.
    pub value: Value,
    /// The index of the entry that last set it.
    pub revision: LogIndex,
}

/// What a history is kept of.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    /// An agent, by id.
    Agent(String),
    /// A config key.
    Config(String),
}

/// What applying an entry did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "result", rename_all = "snake_case")]
pub enum Outcome {
    /// The agent is registered, or its record replaced.
    Registered {
        /// Its revision: the entry's index.
        revision: LogIndex,
    },
    /// The agent's status is set.
    StatusSet {
        /// Its revision: the entry's index.
        revision: LogIndex,
    },
    /// The agent is gone.
    Deregistered {
        /// The entry's index, the last of its history until it registers again.
        revision: LogIndex,
    },
    /// The config key is set.
    ConfigSet {
        /// Its revision: the entry's index.
        revision: LogIndex,
    },
    /// `if_revision` did not hold; nothing changed.
    Conflict {
        /// The revision found; absent when there is no such record.
        actual: Option<LogIndex>,
    },
    /// The operation named no registered agent; nothing changed.
    NotFound,
    /// Not an operation of the registry; nothing changed.
    Opaque,
    /// The request was applied before; nothing changed.
    Repeat {
        /// The index of the first, which has its outcome.
        first: LogIndex,
    },
    /// The request's deadline had passed when the entry was appended; nothing changed.
    RequestExpired,
    /// The proposal was rejected or expired.
    Aborted {
        /// Which of the two.
        reason: AbortReason,
    },
}

impl Outcome {
    /// Why the proposal was aborted; `None` when it was not.
    #[must_use]
    pub const fn abort_reason(&self) -> Option<AbortReason> {
        match self {
            Self::Aborted { reason } => Some(*reason),
            _ => None,
        }
    }
}
