//! Random logs through the state and through a model that is too simple to be wrong: lists, scanned from the start.

use super::log::{Log, START, request};
use concordat::certificate::AbortReason;
use concordat::ids::LogIndex;
use concordat::registry::{AgentStatus, Key, Outcome, State};
use proptest::prelude::*;
use serde_json::{Value, json};

#[derive(Clone, Debug)]
enum Op {
    Register { id: u8, tags: Vec<u8> },
    Deregister { id: u8 },
    SetStatus { id: u8, status: usize },
    SetConfig { key: u8, value: u8 },
    Malformed,
    Abort,
    Noop,
}

#[derive(Clone, Debug)]
struct Step {
    op: Op,
    /// Relative to the record's actual revision, so that conditions often hold.
    condition: Option<i64>,
    request: u8,
    deadline_in: u64,
    pass: u64,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let op = prop_oneof![
        4 => (0..4_u8, prop::collection::vec(0..3_u8, 0..3)).prop_map(|(id, tags)| Op::Register { id, tags }),
        2 => (0..4_u8).prop_map(|id| Op::Deregister { id }),
        2 => (0..4_u8, 0..4_usize).prop_map(|(id, status)| Op::SetStatus { id, status }),
        2 => (0..3_u8, any::<u8>()).prop_map(|(key, value)| Op::SetConfig { key, value }),
        1 => Just(Op::Malformed),
        1 => Just(Op::Abort),
        1 => Just(Op::Noop),
    ];
    let condition = prop::option::of(prop_oneof![3 => Just(0_i64), 1 => -2..3_i64]);
    let step = (op, condition, 0..24_u8, 0..40_u64, 0..6_u64)
        .prop_map(|(op, condition, request, deadline_in, pass)| Step { op, condition, request, deadline_in, pass });
    prop::collection::vec(step, 1..120)
}

#[derive(Default)]
struct Model {
    /// Id, tags, status, revision; in registration order.
    agents: Vec<(u8, Vec<u8>, usize, u64)>,
    configs: Vec<(u8, u8, u64)>,
    /// Key and index, for agents and config keys.
    changes: Vec<(Key, u64)>,
    /// Request, deadline, index.
    requests: Vec<(u8, u64, u64)>,
    index: u64,
}

fn agent_key(id: u8) -> Key {
    Key::Agent(format!("agent-{id}"))
}

fn config_key(key: u8) -> Key {
    Key::Config(format!("key-{key}"))
}

impl Model {
    fn revision(&self, op: &Op) -> Option<u64> {
        match op {
            Op::Register { id, .. } | Op::Deregister { id } | Op::SetStatus { id, .. } => {
                self.agents.iter().find(|agent| agent.0 == *id).map(|agent| agent.3)
            }
            Op::SetConfig { key, .. } => self.configs.iter().find(|config| config.0 == *key).map(|config| config.2),
            Op::Malformed | Op::Abort | Op::Noop => None,
        }
    }

    fn apply(&mut self, step: &Step, condition: Option<u64>, now: u64, deadline: u64) -> Outcome {
        self.index += 1;
        self.requests.retain(|request| request.1 >= now);
        if matches!(step.op, Op::Noop) {
            return Outcome::Opaque;
        }
        if let Some(first) = self.requests.iter().find(|request| request.0 == step.request) {
            return Outcome::Repeat { first: LogIndex(first.2) };
        }
        if deadline < now {
            return Outcome::RequestExpired;
        }
        self.requests.push((step.request, deadline, self.index));
        let actual = self.revision(&step.op);
        let is_update = !matches!(step.op, Op::Malformed | Op::Abort);
        if is_update && condition.is_some_and(|expected| expected != actual.unwrap_or(0)) {
            return Outcome::Conflict { actual: actual.map(LogIndex) };
        }
        self.update(&step.op)
    }

    fn update(&mut self, op: &Op) -> Outcome {
        let (index, revision) = (self.index, LogIndex(self.index));
        let place = |agents: &[(u8, Vec<u8>, usize, u64)], id| agents.iter().position(|agent| agent.0 == id);
        match op {
            Op::Register { id, tags } => {
                let record = (*id, tags.clone(), 0, index);
                match place(&self.agents, *id) {
                    Some(place) => self.agents[place] = record,
                    None => self.agents.push(record),
                }
                self.changes.push((agent_key(*id), index));
                Outcome::Registered { revision }
            }
            Op::Deregister { id } => {
                let Some(place) = place(&self.agents, *id) else { return Outcome::NotFound };
                self.agents.remove(place);
                self.changes.push((agent_key(*id), index));
                Outcome::Deregistered { revision }
            }
            Op::SetStatus { id, status } => {
                let Some(place) = place(&self.agents, *id) else { return Outcome::NotFound };
                self.agents[place].2 = *status;
                self.agents[place].3 = index;
                self.changes.push((agent_key(*id), index));
                Outcome::StatusSet { revision }
            }
            Op::SetConfig { key, value } => {
                self.configs.retain(|config| config.0 != *key);
                self.configs.push((*key, *value, index));
                self.changes.push((config_key(*key), index));
                Outcome::ConfigSet { revision }
            }
            Op::Malformed | Op::Noop => Outcome::Opaque,
            Op::Abort => Outcome::Aborted { reason: AbortReason::Expired },
        }
    }

    fn agents(&self, tag: Option<u8>, status: Option<usize>) -> Vec<(String, u64)> {
        let wanted = self.agents.iter().filter(|agent| {
            tag.is_none_or(|tag| agent.1.contains(&tag)) && status.is_none_or(|status| agent.2 == status)
        });
        wanted.map(|agent| (format!("agent-{}", agent.0), agent.3)).collect()
    }
}

fn payload(op: &Op, condition: Option<u64>) -> Value {
    let mut payload = match op {
        Op::Register { id, tags } => {
            let capabilities: Vec<_> = tags.iter().map(|tag| json!({"tag": format!("tag-{tag}")})).collect();
            json!({"op": "register", "agent": {"agent_id": format!("agent-{id}"), "display_name": "", "endpoint": "e",
                "capabilities": capabilities}})
        }
        Op::Deregister { id } => json!({"op": "deregister", "agent_id": format!("agent-{id}")}),
        Op::SetStatus { id, status } => {
            json!({"op": "set_status", "agent_id": format!("agent-{id}"), "status": AgentStatus::ALL[*status]})
        }
        Op::SetConfig { key, value } => json!({"op": "set_config", "key": format!("key-{key}"), "value": value}),
        Op::Malformed | Op::Abort | Op::Noop => json!({"op": "deregister", "agent_id": 7}),
    };
    if let Some(revision) = condition {
        payload["if_revision"] = revision.into();
    }
    payload
}

fn compare(model: &Model, state: &State) -> Result<(), TestCaseError> {
    for tag in [None, Some(0), Some(1), Some(2)] {
        for status in [None, Some(0), Some(1), Some(2), Some(3)] {
            let tag_text = tag.map(|tag: u8| format!("tag-{tag}"));
            let found: Vec<_> = state
                .agents(tag_text.as_deref(), status.map(|status: usize| AgentStatus::ALL[status]))
                .map(|record| (record.agent.agent_id.clone(), record.revision.0))
                .collect();
            prop_assert_eq!(found, model.agents(tag, status));
        }
    }
    for key in 0..4 {
        let config = model.configs.iter().find(|config| config.0 == key);
        let record = state.config(&format!("key-{key}"));
        prop_assert_eq!(record.map(|r| (r.value.clone(), r.revision.0)), config.map(|c| (json!(c.1), c.2)));
        for key in [agent_key(key), config_key(key)] {
            let history: Vec<_> =
                model.changes.iter().filter(|change| change.0 == key).map(|change| LogIndex(change.1)).collect();
            prop_assert_eq!(state.history(&key), history.as_slice());
        }
    }
    prop_assert_eq!(state.requests_len(), model.requests.len());
    for (name, deadline, index) in &model.requests {
        let answered = state.answered(&request(&name.to_string(), 0).key()).expect("remembered");
        prop_assert_eq!((answered.deadline_ms, answered.index.0), (START + deadline, *index));
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn random_logs_end_as_in_the_model(steps in steps(), cut in any::<prop::sample::Index>()) {
        let (mut log, mut model) = (Log::default(), Model::default());
        for step in &steps {
            log.now += step.pass;
            // Now and then a deadline that has already passed.
            let deadline = (log.now + step.deadline_in).saturating_sub(3);
            let condition = step.condition.map(|offset| {
                model.revision(&step.op).unwrap_or(0).saturating_add_signed(offset)
            });
            let request = request(&step.request.to_string(), START + deadline);
            let outcome = match step.op {
                Op::Noop => log.noop(),
                Op::Abort => log.abort(request),
                _ => log.propose_as(request, &payload(&step.op, condition)),
            };
            prop_assert_eq!(outcome, model.apply(step, condition, log.now, deadline), "{:?}", step);
        }
        compare(&model, &log.state)?;

        // However a state is reached, it is the same: entry by entry, or from a snapshot on the way.
        let cut = cut.index(log.entries.len());
        let mut other = State::default();
        for (number, entry) in log.entries.iter().enumerate() {
            if number == cut {
                other = rmp_serde::from_slice(&rmp_serde::to_vec(&other).unwrap()).unwrap();
            }
            other.apply(entry);
        }
        prop_assert_eq!(&other, &log.state);
        prop_assert_eq!(other.state_hash(), log.state.state_hash());
    }
}
