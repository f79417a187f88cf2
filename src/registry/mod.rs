//! The replicated state: the capability registry, its history, and the table of requests already answered. Pure.
//!
//! [`State::apply`] is called with every committed entry, in order, on every member; whatever it does must depend on
//! the state and the entry alone. Its rules:
//!
//! - An entry whose request is in the table is a [`Outcome::Repeat`] and changes nothing. An entry appended after its
//!   own request's deadline is [`Outcome::RequestExpired`] and changes nothing. Between them, a request changes the
//!   registry at most once, however often and under however many leaders it was appended.
//! - A payload that is a known operation ([`Operation`]) changes one record; its revision becomes the entry's index.
//!   If `if_revision` does not hold, the entry is a recorded [`Outcome::Conflict`] and changes nothing.
//! - Any other payload is [`Outcome::Opaque`]. So is a known operation with malformed fields: admission refuses it
//!   ([`check_payload`]), so only a faulty member can have it appended, and then all members ignore it alike.
//! - An agent keeps its place in registration order while it is registered: `register` on a registered id replaces the
//!   record in place, while `deregister` gives the place up.

mod hash;
mod operation;
mod record;
mod requests;
mod saved;

pub use operation::{Action, MalformedOperation, Operation, check_payload};
pub use record::{Agent, AgentRecord, AgentStatus, Capability, ConfigRecord, Key, Outcome};
pub use requests::Answered;
pub use saved::InconsistentState;

use crate::certificate::{Entry, Kind, Request};
use crate::ids::{Digest, LogIndex, ProposalId};
use requests::Requests;
use sha2::{Digest as _, Sha256};
use std::collections::{BTreeMap, BTreeSet};

/// The replicated state at an index: a pure function of the entries up to there.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(into = "saved::Saved", try_from = "saved::Saved")]
pub struct State {
    applied: LogIndex,
    committed: u64,
    aborted: u64,
    /// By the index of the entry that first registered the agent: registration order.
    agents: BTreeMap<LogIndex, AgentRecord>,
    configs: BTreeMap<String, ConfigRecord>,
    history: BTreeMap<Key, Vec<LogIndex>>,
    requests: Requests,
    /// Derived from `agents`: the place of each id.
    places: BTreeMap<String, LogIndex>,
    /// Derived from `agents`: the places of the agents that have a tag.
    tagged: BTreeMap<String, BTreeSet<LogIndex>>,
}

impl State {
    /// Applies the next committed entry, of whatever kind.
    ///
    /// # Panics
    /// When the entry does not follow [`State::applied`]: applying out of order would make this replica another one.
    pub fn apply(&mut self, entry: &Entry) -> Outcome {
        let header = &entry.header;
        assert_eq!(header.index, self.applied.next(), "entries are applied in order, each once");
        self.applied = header.index;
        self.requests.advance_clock(header.proposed_at);
        match header.kind {
            Kind::Proposal => self.committed += 1,
            Kind::Aborted => self.aborted += 1,
            Kind::Noop | Kind::Epoch | Kind::EpochFinal | Kind::SnapshotMark | Kind::SnapshotManifest => {
                return Outcome::Opaque;
            }
        }
        // Every decoded entry of these two kinds has both; one without them has nothing to be exactly-once about.
        let (Some(request), Some(id)) = (&entry.body.request, header.proposal_id) else { return Outcome::Opaque };
        self.apply_request(entry, request, id)
    }

    fn apply_request(&mut self, entry: &Entry, request: &Request, id: ProposalId) -> Outcome {
        let key = request.key();
        if let Some(first) = self.requests.get(&key) {
            return Outcome::Repeat { first: first.index };
        }
        // A request is forgotten once its deadline has passed, so from then on the table cannot tell a first from a
        // repeat: nothing of it may change the state any more.
        if self.requests.is_past(request.deadline_ms) {
            return Outcome::RequestExpired;
        }
        let (content, outcome) = if let Some(reason) = entry.header.abort_reason {
            (Digest::ZERO, Outcome::Aborted { reason })
        } else {
            (Digest(Sha256::digest(&entry.body.payload).into()), self.apply_payload(&entry.body.payload))
        };
        let answered =
            Answered { id, index: self.applied, content, deadline_ms: request.deadline_ms, outcome: outcome.clone() };
        self.requests.insert(key, answered);
        outcome
    }

    fn apply_payload(&mut self, payload: &[u8]) -> Outcome {
        let Ok(value) = serde_json::from_slice(payload) else { return Outcome::Opaque };
        let Ok(Some(operation)) = Operation::parse(&value) else { return Outcome::Opaque };
        let key = operation.action.key();
        let actual = self.revision(&key);
        if operation.if_revision.is_some_and(|expected| expected != actual.unwrap_or(LogIndex::ZERO)) {
            return Outcome::Conflict { actual };
        }
        let outcome = self.act(operation.action);
        if outcome != Outcome::NotFound {
            self.history.entry(key).or_default().push(self.applied);
        }
        outcome
    }

    fn act(&mut self, action: Action) -> Outcome {
        let revision = self.applied;
        match action {
            Action::Register { agent } => {
                let place = self.remove(&agent.agent_id).map_or(revision, |(place, _)| place);
                self.insert(place, AgentRecord { agent, revision });
                Outcome::Registered { revision }
            }
            Action::Deregister { agent_id } => match self.remove(&agent_id) {
                Some(_) => Outcome::Deregistered { revision },
                None => Outcome::NotFound,
            },
            Action::SetStatus { agent_id, status } => {
                let place = self.places.get(&agent_id);
                let Some(record) = place.and_then(|place| self.agents.get_mut(place)) else { return Outcome::NotFound };
                record.agent.status = status;
                record.revision = revision;
                Outcome::StatusSet { revision }
            }
            Action::SetConfig { key, value } => {
                self.configs.insert(key, ConfigRecord { value, revision });
                Outcome::ConfigSet { revision }
            }
        }
    }

    fn insert(&mut self, place: LogIndex, record: AgentRecord) {
        for capability in &record.agent.capabilities {
            self.tagged.entry(capability.tag.clone()).or_default().insert(place);
        }
        self.places.insert(record.agent.agent_id.clone(), place);
        self.agents.insert(place, record);
    }

    fn remove(&mut self, agent_id: &str) -> Option<(LogIndex, AgentRecord)> {
        let place = self.places.remove(agent_id)?;
        let record = self.agents.remove(&place)?;
        for capability in &record.agent.capabilities {
            if let Some(places) = self.tagged.get_mut(&capability.tag) {
                places.remove(&place);
                if places.is_empty() {
                    self.tagged.remove(&capability.tag);
                }
            }
        }
        Some((place, record))
    }

    fn revision(&self, key: &Key) -> Option<LogIndex> {
        match key {
            Key::Agent(id) => self.agent(id).map(|record| record.revision),
            Key::Config(key) => self.config(key).map(|record| record.revision),
        }
    }

    /// The index of the last entry applied; zero before the first.
    #[must_use]
    pub fn applied(&self) -> LogIndex {
        self.applied
    }

    /// `Proposal` entries applied. A repeat, a conflict or an opaque payload is a committed entry like any other.
    #[must_use]
    pub fn committed_count(&self) -> u64 {
        self.committed
    }

    /// `Aborted` entries applied.
    #[must_use]
    pub fn aborted_count(&self) -> u64 {
        self.aborted
    }

    /// A registered agent.
    #[must_use]
    pub fn agent(&self, agent_id: &str) -> Option<&AgentRecord> {
        self.agents.get(self.places.get(agent_id)?)
    }

    /// How many agents are registered.
    #[must_use]
    pub fn agents_len(&self) -> usize {
        self.agents.len()
    }

    /// Registered agents that have a capability with this tag and are in this status, in registration order. A tag
    /// costs what its agents cost; without one, every agent is looked at.
    pub fn agents(
        &self,
        capability: Option<&str>,
        status: Option<AgentStatus>,
    ) -> impl Iterator<Item = &AgentRecord> + use<'_> {
        let tagged =
            capability.map(|tag| self.tagged.get(tag).into_iter().flatten().filter_map(|p| self.agents.get(p)));
        let every = capability.is_none().then(|| self.agents.values());
        let found = tagged.into_iter().flatten().chain(every.into_iter().flatten());
        found.filter(move |record| status.is_none_or(|status| record.agent.status == status))
    }

    /// A config key.
    #[must_use]
    pub fn config(&self, key: &str) -> Option<&ConfigRecord> {
        self.configs.get(key)
    }

    /// Every config key, ascending.
    pub fn configs(&self) -> impl Iterator<Item = (&str, &ConfigRecord)> {
        self.configs.iter().map(|(key, record)| (key.as_str(), record))
    }

    /// The indices of all entries that changed a key, ascending; an agent's are kept after it has left.
    #[must_use]
    pub fn history(&self, key: &Key) -> &[LogIndex] {
        self.history.get(key).map_or(&[], Vec::as_slice)
    }

    /// What is remembered of a request, by [`Request::key`].
    #[must_use]
    pub fn answered(&self, key: &Digest) -> Option<&Answered> {
        self.requests.get(key)
    }

    /// How many requests are remembered; admission keeps it within [`crate::limits::MAX_REQUESTS`].
    #[must_use]
    pub fn requests_len(&self) -> usize {
        self.requests.len()
    }
}
