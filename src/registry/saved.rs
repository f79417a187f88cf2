//! The state as snapshots hold it: without the indexes that are derived from it.

use super::requests::{Answered, Requests};
use super::{AgentRecord, ConfigRecord, Key, State};
use crate::ids::{Digest, LogIndex};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Why a saved state is no state that applying entries can reach.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InconsistentState {
    /// Two records have one id.
    #[error("the saved state holds two agents with the id {agent_id:?}")]
    TwoAgents {
        /// The id, cut to 80 characters.
        agent_id: String,
    },
    /// A request whose deadline has passed.
    #[error("the saved state remembers a request whose deadline {deadline_ms} has passed")]
    PastRequest {
        /// Its deadline, milliseconds since the Unix epoch.
        deadline_ms: u64,
    },
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Saved {
    applied: LogIndex,
    committed: u64,
    aborted: u64,
    agents: BTreeMap<LogIndex, AgentRecord>,
    configs: BTreeMap<String, ConfigRecord>,
    agent_history: BTreeMap<String, Vec<LogIndex>>,
    config_history: BTreeMap<String, Vec<LogIndex>>,
    clock: u64,
    requests: BTreeMap<Digest, Answered>,
}

impl From<State> for Saved {
    fn from(state: State) -> Self {
        let (mut agent_history, mut config_history) = (BTreeMap::new(), BTreeMap::new());
        for (key, indices) in state.history {
            match key {
                Key::Agent(id) => agent_history.insert(id, indices),
                Key::Config(key) => config_history.insert(key, indices),
            };
        }
        Self {
            applied: state.applied,
            committed: state.committed,
            aborted: state.aborted,
            agents: state.agents,
            configs: state.configs,
            agent_history,
            config_history,
            clock: state.requests.clock(),
            requests: state.requests.iter().map(|(key, answered)| (*key, answered.clone())).collect(),
        }
    }
}

impl TryFrom<Saved> for State {
    type Error = InconsistentState;

    fn try_from(saved: Saved) -> Result<Self, InconsistentState> {
        let mut requests = Requests::default();
        requests.advance_clock(saved.clock);
        for (key, answered) in saved.requests {
            if requests.is_past(answered.deadline_ms) {
                return Err(InconsistentState::PastRequest { deadline_ms: answered.deadline_ms });
            }
            requests.insert(key, answered);
        }
        let agents = saved.agent_history.into_iter().map(|(id, indices)| (Key::Agent(id), indices));
        let configs = saved.config_history.into_iter().map(|(key, indices)| (Key::Config(key), indices));
        let mut state = Self {
            applied: saved.applied,
            committed: saved.committed,
            aborted: saved.aborted,
            configs: saved.configs,
            history: agents.chain(configs).collect(),
            requests,
            ..Self::default()
        };
        for (place, record) in saved.agents {
            if state.places.contains_key(&record.agent.agent_id) {
                let agent_id = record.agent.agent_id.chars().take(80).collect();
                return Err(InconsistentState::TwoAgents { agent_id });
            }
            state.insert(place, record);
        }
        Ok(state)
    }
}
