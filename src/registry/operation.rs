//! The operations that a payload can be, read strictly: a misspelt field must be an error for the client, not a
//! default for the federation.

use super::record::{Agent, AgentStatus, Capability, Key, default_concurrency, default_version};
use crate::ids::LogIndex;
use crate::limits::{MAX_AGENT_TEXT, MAX_CAPABILITIES, MAX_CAPABILITY_TAG, MAX_REGISTRY_KEY};
use serde_json::{Map, Value};

/// A payload that changes the registry.
#[derive(Clone, Debug, PartialEq)]
pub struct Operation {
    /// What to do.
    pub action: Action,
    /// Do it only if the record's revision is this one; zero: only if there is no such record.
    pub if_revision: Option<LogIndex>,
}

/// What to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// `{"op":"register","agent":{…}}`: add an agent, or replace its record in place.
    Register {
        /// The agent.
        agent: Agent,
    },
    /// `{"op":"deregister","agent_id":…}`: remove an agent.
    Deregister {
        /// Which.
        agent_id: String,
    },
    /// `{"op":"set_status","agent_id":…,"status":…}`: set an agent's status.
    SetStatus {
        /// Which.
        agent_id: String,
        /// To what.
        status: AgentStatus,
    },
    /// `{"op":"set_config","key":…,"value":…}`: set a config key; `null` is a value like any other.
    SetConfig {
        /// Which.
        key: String,
        /// To what.
        value: Value,
    },
}

impl Action {
    /// The record it changes.
    #[must_use]
    pub fn key(&self) -> Key {
        match self {
            Self::Register { agent } => Key::Agent(agent.agent_id.clone()),
            Self::Deregister { agent_id } | Self::SetStatus { agent_id, .. } => Key::Agent(agent_id.clone()),
            Self::SetConfig { key, .. } => Key::Config(key.clone()),
        }
    }

    /// Its `op`.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Register { .. } => "register",
            Self::Deregister { .. } => "deregister",
            Self::SetStatus { .. } => "set_status",
            Self::SetConfig { .. } => "set_config",
        }
    }
}

/// A known operation with a field that is missing, unknown, of the wrong type or out of bounds.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the payload is a malformed {operation}: {detail}")]
pub struct MalformedOperation {
    /// Its `op`.
    pub operation: String,
    /// Which field, what is expected there, and what was found.
    pub detail: String,
}

/// Refuses what [`State::apply`](super::State::apply) would ignore although its author meant to change the registry.
/// For admission; any payload that is no known operation passes.
///
/// # Errors
/// [`MalformedOperation`].
pub fn check_payload(payload: &Value) -> Result<(), MalformedOperation> {
    Operation::parse(payload).map(drop)
}

impl Operation {
    /// Reads a payload; `None` when it is no known operation: not an object, or its `op` is none of ours.
    ///
    /// # Errors
    /// [`MalformedOperation`] when `op` is known and the rest is not what it takes.
    pub fn parse(payload: &Value) -> Result<Option<Self>, MalformedOperation> {
        let Value::Object(map) = payload else { return Ok(None) };
        let Some(op) = map.get("op").and_then(Value::as_str) else { return Ok(None) };
        let read = match op {
            "register" => register,
            "deregister" => deregister,
            "set_status" => set_status,
            "set_config" => set_config,
            _ => return Ok(None),
        };
        let fields = Fields { path: "", map };
        let malformed = |Flaw(detail)| MalformedOperation { operation: op.to_owned(), detail };
        let action = read(&fields).map_err(malformed)?;
        let if_revision = fields.if_revision().map_err(malformed)?;
        Ok(Some(Self { action, if_revision }))
    }
}

fn register(fields: &Fields<'_>) -> Result<Action, Flaw> {
    fields.only(&["op", "agent", "if_revision"])?;
    Ok(Action::Register { agent: agent(&Fields::new("agent", fields.required("agent")?)?)? })
}

fn deregister(fields: &Fields<'_>) -> Result<Action, Flaw> {
    fields.only(&["op", "agent_id", "if_revision"])?;
    Ok(Action::Deregister { agent_id: fields.text("agent_id", 1, MAX_REGISTRY_KEY)? })
}

fn set_status(fields: &Fields<'_>) -> Result<Action, Flaw> {
    fields.only(&["op", "agent_id", "status", "if_revision"])?;
    let agent_id = fields.text("agent_id", 1, MAX_REGISTRY_KEY)?;
    Ok(Action::SetStatus { agent_id, status: fields.status(fields.required("status")?)? })
}

fn set_config(fields: &Fields<'_>) -> Result<Action, Flaw> {
    fields.only(&["op", "key", "value", "if_revision"])?;
    let key = fields.text("key", 1, MAX_REGISTRY_KEY)?;
    Ok(Action::SetConfig { key, value: fields.required("value")?.clone() })
}

fn agent(fields: &Fields<'_>) -> Result<Agent, Flaw> {
    fields.only(&["agent_id", "display_name", "endpoint", "did", "capabilities", "status", "metadata"])?;
    let capabilities = match fields.map.get("capabilities") {
        None => Vec::new(),
        Some(Value::Array(items)) if items.len() <= MAX_CAPABILITIES => {
            items.iter().enumerate().map(|(i, item)| capability(i, item)).collect::<Result<_, _>>()?
        }
        Some(other) => {
            return Err(fields.flaw("capabilities", &format!("an array of at most {MAX_CAPABILITIES}"), other));
        }
    };
    let metadata = match fields.map.get("metadata") {
        None => Map::new(),
        Some(Value::Object(map)) => map.clone(),
        Some(other) => return Err(fields.flaw("metadata", "an object", other)),
    };
    Ok(Agent {
        agent_id: fields.text("agent_id", 1, MAX_REGISTRY_KEY)?,
        display_name: fields.text("display_name", 0, MAX_AGENT_TEXT)?,
        endpoint: fields.text("endpoint", 1, MAX_AGENT_TEXT)?,
        did: fields.did()?,
        capabilities,
        status: fields.map.get("status").map_or(Ok(AgentStatus::default()), |status| fields.status(status))?,
        metadata: metadata.into_iter().collect(),
    })
}

fn capability(position: usize, value: &Value) -> Result<Capability, Flaw> {
    let path = format!("agent.capabilities[{position}]");
    let fields = Fields::new(&path, value)?;
    fields.only(&["tag", "version", "max_concurrency"])?;
    let max_concurrency = match fields.map.get("max_concurrency") {
        None => default_concurrency(),
        Some(value) => value
            .as_u64()
            .and_then(|number| u32::try_from(number).ok())
            .filter(|number| *number > 0)
            .ok_or_else(|| fields.flaw("max_concurrency", "an integer from 1 to 4294967295", value))?,
    };
    Ok(Capability {
        tag: fields.text("tag", 1, MAX_CAPABILITY_TAG)?,
        version: if fields.map.contains_key("version") {
            fields.text("version", 1, MAX_AGENT_TEXT)?
        } else {
            default_version()
        },
        max_concurrency,
    })
}

/// One sentence on one field.
struct Flaw(String);

/// The fields of one object, with the path that leads to it.
struct Fields<'a> {
    path: &'a str,
    map: &'a Map<String, Value>,
}

impl<'a> Fields<'a> {
    fn new(path: &'a str, value: &'a Value) -> Result<Self, Flaw> {
        match value {
            Value::Object(map) => Ok(Self { path, map }),
            other => Err(Flaw(format!("{path}: expected an object, found {}", found(other)))),
        }
    }

    fn name(&self, field: &str) -> String {
        let field: String = field.chars().take(80).collect();
        if self.path.is_empty() { field } else { format!("{}.{field}", self.path) }
    }

    fn flaw(&self, field: &str, expected: &str, value: &Value) -> Flaw {
        Flaw(format!("{}: expected {expected}, found {}", self.name(field), found(value)))
    }

    fn only(&self, known: &[&str]) -> Result<(), Flaw> {
        match self.map.keys().find(|field| !known.contains(&field.as_str())) {
            None => Ok(()),
            Some(field) => {
                Err(Flaw(format!("{}: unknown field, expected only {}", self.name(field), known.join(", "))))
            }
        }
    }

    fn required(&self, field: &str) -> Result<&'a Value, Flaw> {
        self.map.get(field).ok_or_else(|| Flaw(format!("{}: missing", self.name(field))))
    }

    fn text(&self, field: &str, least: usize, most: usize) -> Result<String, Flaw> {
        match self.required(field)? {
            Value::String(text) if (least..=most).contains(&text.len()) => Ok(text.clone()),
            other => Err(self.flaw(field, &format!("a string of {least} to {most} bytes"), other)),
        }
    }

    /// Null is "none" here, as JSON writers without optional fields spell it.
    fn did(&self) -> Result<Option<String>, Flaw> {
        match self.map.get("did") {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) if text.starts_with("did:") && text.len() <= MAX_AGENT_TEXT => {
                Ok(Some(text.clone()))
            }
            Some(other) => Err(self.flaw("did", &format!("a DID (did:…) of at most {MAX_AGENT_TEXT} bytes"), other)),
        }
    }

    fn status(&self, value: &Value) -> Result<AgentStatus, Flaw> {
        let status = AgentStatus::ALL.into_iter().find(|status| value.as_str() == Some(status.as_str()));
        status.ok_or_else(|| self.flaw("status", "available, busy, draining or offline", value))
    }

    /// Null is refused: a client that lost the revision it meant to name must not write unconditionally.
    fn if_revision(&self) -> Result<Option<LogIndex>, Flaw> {
        let Some(value) = self.map.get("if_revision") else { return Ok(None) };
        let number = value.as_u64().ok_or_else(|| {
            self.flaw("if_revision", "a revision (an integer; 0 for \"there is no such record\")", value)
        })?;
        Ok(Some(LogIndex(number)))
    }
}

fn found(value: &Value) -> String {
    match value {
        Value::Null => "null".into(),
        Value::Bool(v) => v.to_string(),
        Value::Number(v) => v.to_string(),
        Value::String(v) if v.len() <= 40 => format!("{v:?}"),
        Value::String(v) => format!("a string of {} bytes", v.len()),
        Value::Array(v) => format!("an array of {}", v.len()),
        Value::Object(_) => "an object".into(),
    }
}
