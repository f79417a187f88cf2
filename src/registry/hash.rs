//! The state hash, by which members compare their replicas.

use super::{Agent, AgentStatus, Answered, Key, Outcome, State};
use crate::certificate::AbortReason;
use crate::ids::{Digest, LogIndex};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

/// The version of the layout below; part of what is hashed.
const TAG: &[u8; 16] = b"concordat:state1";

impl State {
    /// SHA-256 over the whole replicated state, request table included: equal on two members exactly when their states
    /// are equal, whether reached by applying entries or from a snapshot. Costs a pass over the state.
    ///
    /// The layout is fixed-width big-endian numbers, length-prefixed texts and counted collections in key order, so no
    /// two states have the same bytes; JSON objects are hashed in key order.
    #[must_use]
    pub fn state_hash(&self) -> Digest {
        let mut h = Hasher(Sha256::new_with_prefix(TAG));
        h.u64(self.applied.0).u64(self.committed).u64(self.aborted).u64(self.requests.clock());
        h.count(self.agents.len());
        for (place, record) in &self.agents {
            h.u64(place.0).u64(record.revision.0).agent(&record.agent);
        }
        h.count(self.configs.len());
        for (key, record) in &self.configs {
            h.text(key).u64(record.revision.0).json(&record.value);
        }
        h.count(self.history.len());
        for (key, indices) in &self.history {
            match key {
                Key::Agent(id) => h.u8(0).text(id),
                Key::Config(key) => h.u8(1).text(key),
            };
            h.count(indices.len());
            for index in indices {
                h.u64(index.0);
            }
        }
        h.count(self.requests.len());
        for (key, answered) in self.requests.iter() {
            h.bytes(&key.0).answered(answered);
        }
        Digest(h.0.finalize().into())
    }
}

struct Hasher(Sha256);

impl Hasher {
    fn bytes(&mut self, v: &[u8]) -> &mut Self {
        self.0.update(v);
        self
    }

    fn u8(&mut self, v: u8) -> &mut Self {
        self.bytes(&[v])
    }

    fn u64(&mut self, v: u64) -> &mut Self {
        self.bytes(&v.to_be_bytes())
    }

    fn count(&mut self, v: usize) -> &mut Self {
        self.u64(v as u64)
    }

    fn text(&mut self, v: &str) -> &mut Self {
        self.count(v.len()).bytes(v.as_bytes())
    }

    fn agent(&mut self, agent: &Agent) -> &mut Self {
        self.text(&agent.agent_id).text(&agent.display_name).text(&agent.endpoint);
        match &agent.did {
            None => self.u8(0),
            Some(did) => self.u8(1).text(did),
        };
        self.count(agent.capabilities.len());
        for capability in &agent.capabilities {
            self.text(&capability.tag).text(&capability.version).u64(capability.max_concurrency.into());
        }
        self.u8(match agent.status {
            AgentStatus::Available => 0,
            AgentStatus::Busy => 1,
            AgentStatus::Draining => 2,
            AgentStatus::Offline => 3,
        });
        self.count(agent.metadata.len());
        for (name, value) in &agent.metadata {
            self.text(name).json(value);
        }
        self
    }

    fn json(&mut self, value: &Value) -> &mut Self {
        match value {
            Value::Null => self.u8(0),
            Value::Bool(v) => self.u8(1).u8((*v).into()),
            Value::Number(v) => {
                if let Some(v) = v.as_u64() {
                    self.u8(2).u64(v)
                } else if let Some(v) = v.as_i64() {
                    self.u8(3).bytes(&v.to_be_bytes())
                } else {
                    // Every JSON number that is no integer of 64 bits is a finite double here.
                    self.u8(4).u64(v.as_f64().unwrap_or(f64::NAN).to_bits())
                }
            }
            Value::String(v) => self.u8(5).text(v),
            Value::Array(items) => {
                self.u8(6).count(items.len());
                for item in items {
                    self.json(item);
                }
                self
            }
            Value::Object(map) => {
                let mut fields: Vec<_> = map.iter().collect();
                fields.sort_unstable_by_key(|(name, _)| *name);
                self.u8(7).count(fields.len());
                for (name, value) in fields {
                    self.text(name).json(value);
                }
                self
            }
        }
    }

    fn answered(&mut self, answered: &Answered) -> &mut Self {
        let id = &answered.id;
        self.u64(id.term.0).u64(id.seq).bytes(&id.origin.0).u64(answered.index.0);
        self.bytes(&answered.content.0).u64(answered.deadline_ms);
        let (tag, index) = match &answered.outcome {
            Outcome::Registered { revision } => (0, Some(*revision)),
            Outcome::StatusSet { revision } => (1, Some(*revision)),
            Outcome::Deregistered { revision } => (2, Some(*revision)),
            Outcome::ConfigSet { revision } => (3, Some(*revision)),
            Outcome::Conflict { actual } => (4, *actual),
            Outcome::NotFound => (5, None),
            Outcome::Opaque => (6, None),
            Outcome::Repeat { first } => (7, Some(*first)),
            Outcome::RequestExpired => (8, None),
            Outcome::Aborted { reason: AbortReason::Rejected } => (9, None),
            Outcome::Aborted { reason: AbortReason::Expired } => (10, None),
        };
        // No entry has index zero, so it can stand for "none".
        self.u8(tag).u64(index.unwrap_or(LogIndex::ZERO).0)
    }
}
