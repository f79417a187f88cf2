//! The configuration file of a node: TOML in, checked values out.
//!
//! [`RawConfig`] is what the file may say, [`Config`] what the program uses; [`Config::check`] is the only way from one
//! to the other and names the key at fault. Every key has a default: a node runs without a file.

use crate::core::Ballot;
use crate::ids::NodeId;
use crate::limits::{HISTORY_BYTES_PER_S, MAX_PAYLOAD, MAX_PENDING, MAX_UNCOMMITTED_BYTES, SNAPSHOT_BYTES_PER_S};
use crate::registry::{Action, Key, Operation};
use serde::Deserialize;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::time::Duration;

const MIB: usize = 1024 * 1024;
/// Largest configuration file, in bytes.
const MAX_FILE: u64 = 1024 * 1024;

/// What the file may say. Unknown keys are refused.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawConfig {
    /// `[limits]`
    pub limits: RawLimits,
    /// `[snapshots]`
    pub snapshots: RawSnapshots,
    /// `[consensus]`
    pub consensus: RawConsensus,
    /// `[rules]`
    pub rules: RawRules,
    /// `[http]`
    pub http: RawHttp,
    /// `[log]`
    pub log: RawLog,
}

/// `[limits]`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawLimits {
    /// Most proposals pending at this node.
    pub pending: Option<i64>,
    /// Most MiB appended but not committed while this node leads.
    pub uncommitted_mib: Option<i64>,
}

/// `[snapshots]`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawSnapshots {
    /// Entries after which the leader marks a snapshot; 0: only when told to.
    pub every_entries: Option<i64>,
    /// Newest entries that are kept although a snapshot stands for them.
    pub retain_entries: Option<i64>,
    /// MiB of the newest entries that are kept although a snapshot stands for them; 0: no such bound.
    pub retain_mib: Option<i64>,
    /// Hours back from the newest entry whose entries are kept although a snapshot stands for them; 0: no such bound.
    pub retain_hours: Option<i64>,
    /// Most MiB in a second that this node asks for of a snapshot.
    pub fetch_mib_per_s: Option<i64>,
    /// Percent of the database's files that nothing needs any more, above which the database moves to a fresh one after
    /// entries were pruned; 0: only when told to.
    pub rotate_when_dead_percent: Option<i64>,
    /// Most MiB in a second that are copied then.
    pub rotate_mib_per_s: Option<i64>,
    /// Most MiB in a second that this node asks for of the history before a snapshot it installed.
    pub history_mib_per_s: Option<i64>,
}

/// `[consensus]`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawConsensus {
    /// `[shortest, longest]`, milliseconds.
    pub election_timeout_ms: Option<[i64; 2]>,
    /// Milliseconds.
    pub heartbeat_ms: Option<i64>,
    /// Milliseconds.
    pub max_clock_difference_ms: Option<i64>,
}

/// `[rules]`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawRules {
    /// DIDs.
    pub allow_origins: Option<Vec<String>>,
    /// Operation names.
    pub allow_operations: Option<Vec<String>>,
    /// Prefixes of agent ids and configuration keys.
    pub allow_key_prefixes: Option<Vec<String>>,
    /// Bytes.
    pub max_payload_bytes: Option<i64>,
}

/// `[http]`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawHttp {
    /// Whether a follower forwards proposals to the leader.
    pub forward: Option<bool>,
}

/// `[log]`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawLog {
    /// `text` or `json`.
    pub format: Option<String>,
    /// `error`, `warn`, `info`, `debug` or `trace`.
    pub level: Option<String>,
}

/// A checked configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// Bounds of this node.
    pub limits: Limits,
    /// Snapshots and what they let go of.
    pub snapshots: Snapshots,
    /// Timing of the consensus core.
    pub consensus: Consensus,
    /// How a member of policy `rules` decides.
    pub rules: Rules,
    /// The HTTP surface.
    pub http: Http,
    /// Logging.
    pub log: Log,
}

/// Bounds of this node; both only lower those of [`crate::limits`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most proposals pending, 1–4,096.
    pub pending: usize,
    /// Most bytes appended but not committed while this node leads, 1–64 MiB.
    pub uncommitted_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { pending: MAX_PENDING, uncommitted_bytes: MAX_UNCOMMITTED_BYTES }
    }
}

/// Snapshots and what they let go of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Snapshots {
    /// Entries after which the leader marks a snapshot; `None`: only when told to.
    pub every: Option<u64>,
    /// Newest entries that stay in the log although a snapshot stands for them.
    pub retain: u64,
    /// What else stays, in the newest entries' bytes and in age.
    pub keep: Keep,
    /// Most bytes in a second that this node asks for of a snapshot.
    pub fetch_bytes_per_s: u64,
    /// Most bytes in a second that this node asks for of the history before a snapshot it installed.
    pub history_bytes_per_s: u64,
    /// When and how fast the database moves to a fresh one.
    pub rotation: Rotation,
}

/// What of the log's end stays although a snapshot stands for it, besides the newest entries by number. Unset: no such bound.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Keep {
    /// Entries that take so many bytes at the log's end.
    pub bytes: Option<u64>,
    /// Entries proposed no more than so many milliseconds before the newest.
    pub age_ms: Option<u64>,
}

/// When and how fast a node's database moves to a fresh one, so that the disk gets back what pruned entries took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rotation {
    /// Percent of its files that nothing needs any more, above which it moves after entries were pruned, 1–99; `None`:
    /// only when told to.
    pub dead_percent: Option<u64>,
    /// Most bytes of records copied or read back in a second.
    pub bytes_per_s: u64,
}

impl Default for Rotation {
    fn default() -> Self {
        Self { dead_percent: Some(60), bytes_per_s: 32 * MIB as u64 }
    }
}

impl Default for Snapshots {
    fn default() -> Self {
        Self {
            every: Some(100_000),
            retain: 10_000,
            keep: Keep::default(),
            fetch_bytes_per_s: SNAPSHOT_BYTES_PER_S,
            history_bytes_per_s: HISTORY_BYTES_PER_S,
            rotation: Rotation::default(),
        }
    }
}

/// Timing of the consensus core.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Consensus {
    /// Shortest election timeout, at least twice the heartbeat.
    pub election_timeout_min: Duration,
    /// Longest election timeout, above the shortest.
    pub election_timeout_max: Duration,
    /// How often a leader is heard.
    pub heartbeat: Duration,
    /// How far a leader's clock may be from its peers'.
    pub max_clock_difference: Duration,
}

impl Default for Consensus {
    fn default() -> Self {
        Self {
            election_timeout_min: Duration::from_millis(250),
            election_timeout_max: Duration::from_millis(500),
            heartbeat: Duration::from_millis(50),
            max_clock_difference: Duration::from_millis(500),
        }
    }
}

/// How a member of policy `rules` decides. An absent list allows everything, an empty one nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules {
    /// Nodes whose clients may propose.
    pub allow_origins: Option<Vec<NodeId>>,
    /// Operations: `register`, `deregister`, `set_status`, `set_config`, and `opaque` for every other payload.
    pub allow_operations: Option<Vec<OperationKind>>,
    /// Prefixes of the agent id or configuration key that an operation changes. Where this is set, a payload that
    /// changes neither (an opaque one) is denied.
    pub allow_key_prefixes: Option<Vec<String>>,
    /// Largest payload, 1–65,536 bytes.
    pub max_payload_bytes: usize,
}

impl Default for Rules {
    fn default() -> Self {
        Self { allow_origins: None, allow_operations: None, allow_key_prefixes: None, max_payload_bytes: MAX_PAYLOAD }
    }
}

/// The HTTP surface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Http {
    /// Whether a follower forwards proposals to the leader; otherwise it answers `not_leader`.
    pub forward: bool,
}

impl Default for Http {
    fn default() -> Self {
        Self { forward: true }
    }
}

/// Logging.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Log {
    /// How lines look.
    pub format: LogFormat,
    /// The least severe level that is written.
    pub level: tracing::Level,
}

impl Default for Log {
    fn default() -> Self {
        Self { format: LogFormat::Text, level: tracing::Level::INFO }
    }
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// What a payload does, as rules name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OperationKind {
    /// Registers or replaces an agent.
    Register,
    /// Removes an agent.
    Deregister,
    /// Sets an agent's status.
    SetStatus,
    /// Sets a configuration key.
    SetConfig,
    /// Anything else: the log carries it, the registry ignores it.
    Opaque,
}

impl OperationKind {
    const NAMES: [(&'static str, Self); 5] = [
        ("register", Self::Register),
        ("deregister", Self::Deregister),
        ("set_status", Self::SetStatus),
        ("set_config", Self::SetConfig),
        ("opaque", Self::Opaque),
    ];

    fn named(name: &str) -> Option<Self> {
        Self::NAMES.iter().find(|(n, _)| *n == name).map(|&(_, kind)| kind)
    }

    fn of(operation: Option<&Operation>) -> Self {
        match operation.map(|o| &o.action) {
            Some(Action::Register { .. }) => Self::Register,
            Some(Action::Deregister { .. }) => Self::Deregister,
            Some(Action::SetStatus { .. }) => Self::SetStatus,
            Some(Action::SetConfig { .. }) => Self::SetConfig,
            None => Self::Opaque,
        }
    }
}

impl Rules {
    /// Whether this member grants a ballot: a pure function of the rules and the question, so that the member gives the
    /// same answer whenever it is asked.
    #[must_use]
    pub fn grants(&self, ballot: &Ballot) -> bool {
        if ballot.payload.len() > self.max_payload_bytes {
            return false;
        }
        if self.allow_origins.as_ref().is_some_and(|allowed| !allowed.contains(&ballot.id.origin)) {
            return false;
        }
        let Ok(payload) = serde_json::from_slice::<Value>(&ballot.payload) else { return false };
        // Admission refuses malformed operations, so one that is asked about comes from a faulty leader.
        let Ok(operation) = Operation::parse(&payload) else { return false };
        let kind = OperationKind::of(operation.as_ref());
        if self.allow_operations.as_ref().is_some_and(|allowed| !allowed.contains(&kind)) {
            return false;
        }
        self.allow_key_prefixes.as_ref().is_none_or(|prefixes| {
            operation.is_some_and(|operation| {
                let (Key::Agent(key) | Key::Config(key)) = operation.action.key();
                prefixes.iter().any(|prefix| key.starts_with(prefix.as_str()))
            })
        })
    }
}

/// Why a configuration is refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {}: {source}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is larger than any configuration.
    #[error("{} is no configuration: it has more than {MAX_FILE} bytes", path.display())]
    Large {
        /// Which.
        path: PathBuf,
    },
    /// Not TOML, an unknown key, or a value of the wrong type; the message shows the line.
    #[error("{}: {source}", path.display())]
    Parse {
        /// Which.
        path: PathBuf,
        /// Where and why.
        source: Box<toml::de::Error>,
    },
    /// A number outside its range.
    #[error("{key} = {value} is out of range: it must be between {least} and {most}")]
    Range {
        /// The key.
        key: &'static str,
        /// What the file says.
        value: i64,
        /// Smallest allowed.
        least: i64,
        /// Largest allowed.
        most: i64,
    },
    /// A word that is none of those allowed.
    #[error("{key} = {value:?} is not known: it must be one of {allowed}")]
    Word {
        /// The key.
        key: &'static str,
        /// What the file says.
        value: String,
        /// The words allowed.
        allowed: &'static str,
    },
    /// A text in a list of DIDs that is none.
    #[error("{key}: {source}")]
    Did {
        /// The key.
        key: &'static str,
        /// Why.
        source: crate::ids::NodeIdError,
    },
}

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// [`ConfigError`] naming the file and the key at fault.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let read = |source| ConfigError::Read { path: path.to_owned(), source };
        if std::fs::metadata(path).map_err(read)?.len() > MAX_FILE {
            return Err(ConfigError::Large { path: path.to_owned() });
        }
        let text = std::fs::read_to_string(path).map_err(read)?;
        let raw = toml::from_str(&text)
            .map_err(|source| ConfigError::Parse { path: path.to_owned(), source: Box::new(source) })?;
        Self::check(&raw)
    }

    /// Checks every value and fills in the defaults.
    ///
    /// # Errors
    /// [`ConfigError`] naming the first key at fault.
    pub fn check(raw: &RawConfig) -> Result<Self, ConfigError> {
        Ok(Self {
            limits: check_limits(&raw.limits)?,
            snapshots: check_snapshots(&raw.snapshots)?,
            consensus: check_consensus(&raw.consensus)?,
            rules: check_rules(&raw.rules)?,
            http: Http { forward: raw.http.forward.unwrap_or(Http::default().forward) },
            log: check_log(&raw.log)?,
        })
    }
}

fn check_limits(raw: &RawLimits) -> Result<Limits, ConfigError> {
    let default = Limits::default();
    let pending = within("limits.pending", raw.pending, MAX_PENDING)?;
    let mib = within("limits.uncommitted_mib", raw.uncommitted_mib, MAX_UNCOMMITTED_BYTES / MIB)?;
    Ok(Limits {
        pending: pending.unwrap_or(default.pending),
        uncommitted_bytes: mib.map_or(default.uncommitted_bytes, |mib| mib * MIB),
    })
}

fn check_snapshots(raw: &RawSnapshots) -> Result<Snapshots, ConfigError> {
    const MOST: usize = 1_000_000_000;
    let default = Snapshots::default();
    let every = match raw.every_entries {
        Some(0) => None,
        every => within("snapshots.every_entries", every, MOST)?
            .map(|n| n as u64)
            .or(default.every.filter(|_| every.is_none())),
    };
    let or_none = |key, value, most| match value {
        Some(0) => Ok(Some(0)),
        value => within(key, value, most),
    };
    let retain = or_none("snapshots.retain_entries", raw.retain_entries, MOST)?;
    let retain_mib = or_none("snapshots.retain_mib", raw.retain_mib, 100_000_000)?.filter(|mib| *mib > 0);
    let retain_hours = or_none("snapshots.retain_hours", raw.retain_hours, 1_000_000)?.filter(|hours| *hours > 0);
    let dead = or_none("snapshots.rotate_when_dead_percent", raw.rotate_when_dead_percent, 99)?;
    let rotate = within("snapshots.rotate_mib_per_s", raw.rotate_mib_per_s, 10_000)?;
    let fetch = within("snapshots.fetch_mib_per_s", raw.fetch_mib_per_s, 10_000)?;
    let history = within("snapshots.history_mib_per_s", raw.history_mib_per_s, 10_000)?;
    Ok(Snapshots {
        every,
        retain: retain.map_or(default.retain, |n| n as u64),
        keep: Keep {
            bytes: retain_mib.map(|mib| (mib * MIB) as u64),
            age_ms: retain_hours.map(|hours| hours as u64 * 3_600_000),
        },
        fetch_bytes_per_s: fetch.map_or(default.fetch_bytes_per_s, |mib| (mib * MIB) as u64),
        rotation: Rotation {
            dead_percent: dead.map_or(default.rotation.dead_percent, |percent| Some(percent as u64).filter(|p| *p > 0)),
            bytes_per_s: rotate.map_or(default.rotation.bytes_per_s, |mib| (mib * MIB) as u64),
        },
        history_bytes_per_s: history.map_or(default.history_bytes_per_s, |mib| (mib * MIB) as u64),
    })
}

fn check_consensus(raw: &RawConsensus) -> Result<Consensus, ConfigError> {
    let default = Consensus::default();
    let heartbeat = millis("consensus.heartbeat_ms", raw.heartbeat_ms, 5, 10_000, default.heartbeat)?;
    let [shortest, longest] = raw.election_timeout_ms.map_or([None, None], |[a, b]| [Some(a), Some(b)]);
    // Below two heartbeats one late packet is an election. The longest must exceed the shortest, or nothing is random.
    let least = 2 * whole_millis(heartbeat);
    let key = "consensus.election_timeout_ms";
    let minimum = millis(key, shortest, least, 60_000, default.election_timeout_min)?;
    let maximum = millis(key, longest, whole_millis(minimum) + 1, 120_000, default.election_timeout_max)?;
    // The defaults themselves must satisfy a heartbeat that the file changed.
    if whole_millis(minimum) < least {
        let value = whole_millis(heartbeat);
        return Err(ConfigError::Range {
            key: "consensus.heartbeat_ms",
            value,
            least: 5,
            most: whole_millis(minimum) / 2,
        });
    }
    Ok(Consensus {
        election_timeout_min: minimum,
        election_timeout_max: maximum,
        heartbeat,
        max_clock_difference: millis(
            "consensus.max_clock_difference_ms",
            raw.max_clock_difference_ms,
            10,
            60_000,
            default.max_clock_difference,
        )?,
    })
}

fn check_rules(raw: &RawRules) -> Result<Rules, ConfigError> {
    let origin = |text: &String| {
        text.parse::<NodeId>().map_err(|source| ConfigError::Did { key: "rules.allow_origins", source })
    };
    let operation = |name: &String| {
        OperationKind::named(name).ok_or_else(|| ConfigError::Word {
            key: "rules.allow_operations",
            value: name.clone(),
            allowed: "register, deregister, set_status, set_config, opaque",
        })
    };
    Ok(Rules {
        allow_origins: raw.allow_origins.as_ref().map(|list| list.iter().map(origin).collect()).transpose()?,
        allow_operations: raw.allow_operations.as_ref().map(|list| list.iter().map(operation).collect()).transpose()?,
        allow_key_prefixes: raw.allow_key_prefixes.clone(),
        max_payload_bytes: within("rules.max_payload_bytes", raw.max_payload_bytes, MAX_PAYLOAD)?
            .unwrap_or(MAX_PAYLOAD),
    })
}

fn check_log(raw: &RawLog) -> Result<Log, ConfigError> {
    let default = Log::default();
    let word = |key, value: &str, allowed| Err(ConfigError::Word { key, value: value.to_owned(), allowed });
    let format = match raw.format.as_deref() {
        None => default.format,
        Some("text") => LogFormat::Text,
        Some("json") => LogFormat::Json,
        Some(other) => return word("log.format", other, "text, json"),
    };
    let level = match raw.level.as_deref() {
        None => default.level,
        Some("error") => tracing::Level::ERROR,
        Some("warn") => tracing::Level::WARN,
        Some("info") => tracing::Level::INFO,
        Some("debug") => tracing::Level::DEBUG,
        Some("trace") => tracing::Level::TRACE,
        Some(other) => return word("log.level", other, "error, warn, info, debug, trace"),
    };
    Ok(Log { format, level })
}

/// A count between 1 and `most`, when it is given.
fn within(key: &'static str, value: Option<i64>, most: usize) -> Result<Option<usize>, ConfigError> {
    let Some(value) = value else { return Ok(None) };
    match usize::try_from(value) {
        Ok(count) if (1..=most).contains(&count) => Ok(Some(count)),
        _ => Err(ConfigError::Range { key, value, least: 1, most: i64::try_from(most).unwrap_or(i64::MAX) }),
    }
}

/// Milliseconds between `least` and `most`, or the default.
fn millis(
    key: &'static str,
    value: Option<i64>,
    least: i64,
    most: i64,
    default: Duration,
) -> Result<Duration, ConfigError> {
    match value {
        None => Ok(default),
        Some(ms) if (least..=most).contains(&ms) => Ok(Duration::from_millis(ms.unsigned_abs())),
        Some(value) => Err(ConfigError::Range { key, value, least, most }),
    }
}

/// Durations here come from `millis`, far below the range of an `i64`.
fn whole_millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::certificate::{Request, SignedFor};
    use crate::ids::{Digest, Epoch, ProposalId, Term};

    fn parse(text: &str) -> Result<Config, String> {
        let raw: RawConfig = toml::from_str(text).map_err(|e| e.to_string())?;
        Config::check(&raw).map_err(|e| e.to_string())
    }

    #[test]
    fn an_empty_file_gives_the_documented_defaults() {
        let config = parse("").unwrap();
        assert_eq!(config, Config::default());
        assert_eq!(config.limits.pending, 4096);
        assert_eq!(config.limits.uncommitted_bytes, 64 * MIB);
        assert_eq!(config.consensus.heartbeat, Duration::from_millis(50));
        assert!(config.http.forward);
    }

    #[test]
    fn every_key_is_read() {
        let did = NodeId([7; 32]);
        let config = parse(&format!(
            "[limits]\npending = 64\nuncommitted_mib = 8\n\
             [snapshots]\nevery_entries = 0\nretain_entries = 5\nretain_mib = 3\nretain_hours = 2\nfetch_mib_per_s = 1\n\
             history_mib_per_s = 2\nrotate_when_dead_percent = 0\nrotate_mib_per_s = 7\n\
             [consensus]\nelection_timeout_ms = [300, 450]\nheartbeat_ms = 150\nmax_clock_difference_ms = 1000\n\
             [rules]\nallow_origins = [\"{did}\"]\nallow_operations = [\"register\", \"opaque\"]\n\
             allow_key_prefixes = [\"routing/\"]\nmax_payload_bytes = 100\n\
             [http]\nforward = false\n[log]\nformat = \"json\"\nlevel = \"debug\"\n"
        ))
        .unwrap();
        assert_eq!(config.limits, Limits { pending: 64, uncommitted_bytes: 8 * MIB });
        let keep = Keep { bytes: Some(3 * MIB as u64), age_ms: Some(7_200_000) };
        let rotation = Rotation { dead_percent: None, bytes_per_s: 7 * MIB as u64 };
        let (fetch_bytes_per_s, history_bytes_per_s) = (MIB as u64, 2 * MIB as u64);
        assert_eq!(
            config.snapshots,
            Snapshots { every: None, retain: 5, keep, fetch_bytes_per_s, history_bytes_per_s, rotation }
        );
        assert_eq!(config.consensus.election_timeout_min, Duration::from_millis(300));
        assert_eq!(config.consensus.election_timeout_max, Duration::from_millis(450));
        assert_eq!(config.consensus.heartbeat, Duration::from_millis(150));
        assert_eq!(config.consensus.max_clock_difference, Duration::from_secs(1));
        assert_eq!(config.rules.allow_origins, Some(vec![did]));
        assert_eq!(config.rules.allow_operations, Some(vec![OperationKind::Register, OperationKind::Opaque]));
        assert_eq!(config.rules.allow_key_prefixes, Some(vec!["routing/".to_owned()]));
        assert_eq!(config.rules.max_payload_bytes, 100);
        assert!(!config.http.forward);
        assert_eq!(config.log, Log { format: LogFormat::Json, level: tracing::Level::DEBUG });
    }

    #[test]
    fn a_wrong_value_is_refused_by_the_name_of_its_key() {
        for (text, key) in [
            ("[limits]\npending = 0", "limits.pending"),
            ("[snapshots]\nevery_entries = -1", "snapshots.every_entries"),
            ("[snapshots]\nretain_entries = 2000000000", "snapshots.retain_entries"),
            ("[snapshots]\nretain_mib = -1", "snapshots.retain_mib"),
            ("[snapshots]\nretain_hours = 1000001", "snapshots.retain_hours"),
            ("[snapshots]\nrotate_when_dead_percent = 100", "snapshots.rotate_when_dead_percent"),
            ("[snapshots]\nrotate_mib_per_s = 0", "snapshots.rotate_mib_per_s"),
            ("[limits]\npending = 4097", "limits.pending"),
            ("[limits]\nuncommitted_mib = -1", "limits.uncommitted_mib"),
            ("[consensus]\nelection_timeout_ms = [99, 500]", "consensus.election_timeout_ms"),
            ("[consensus]\nelection_timeout_ms = [300, 300]", "consensus.election_timeout_ms"),
            ("[consensus]\nheartbeat_ms = 126", "consensus.heartbeat_ms"),
            ("[consensus]\nheartbeat_ms = 0", "consensus.heartbeat_ms"),
            ("[consensus]\nmax_clock_difference_ms = 0", "consensus.max_clock_difference_ms"),
            ("[rules]\nallow_origins = [\"did:web:x\"]", "rules.allow_origins"),
            ("[rules]\nallow_operations = [\"drop\"]", "rules.allow_operations"),
            ("[rules]\nmax_payload_bytes = 65537", "rules.max_payload_bytes"),
            ("[log]\nformat = \"xml\"", "log.format"),
            ("[log]\nlevel = \"loud\"", "log.level"),
            ("[limits]\npendign = 3", "pendign"),
            ("[limit]\npending = 3", "limit"),
        ] {
            let error = parse(text).expect_err(text);
            assert!(error.contains(key), "{text}: {error}");
        }
    }

    fn ballot(origin: u8, payload: &str) -> Ballot {
        Ballot {
            kind: crate::certificate::Kind::Proposal,
            id: ProposalId { term: Term(1), seq: 1, origin: NodeId([origin; 32]) },
            request: Request { client: "c".into(), request_id: "r".into(), deadline_ms: 1 },
            salt: [0; 16],
            payload: payload.as_bytes().to_vec(),
            required_quorum: 2,
            ttl_ms: 1000,
            under: SignedFor { genesis_id: Digest::ZERO, epoch: Epoch(0), epoch_hash: Digest::ZERO },
        }
    }

    const SET: &str = r#"{"op":"set_config","key":"routing/strategy","value":1}"#;
    const REGISTER: &str =
        r#"{"op":"register","agent":{"agent_id":"a-1","display_name":"A","endpoint":"https://a.example"}}"#;

    #[test]
    fn without_rules_everything_valid_is_granted() {
        let rules = Rules::default();
        assert!(rules.grants(&ballot(1, SET)) && rules.grants(&ballot(1, "[1,2]")));
        assert!(!rules.grants(&ballot(1, "not json")));
    }

    #[test]
    fn each_rule_denies_what_it_does_not_name() {
        let origins = Rules { allow_origins: Some(vec![NodeId([1; 32])]), ..Rules::default() };
        assert!(origins.grants(&ballot(1, SET)) && !origins.grants(&ballot(2, SET)));

        let operations = Rules { allow_operations: Some(vec![OperationKind::SetConfig]), ..Rules::default() };
        assert!(operations.grants(&ballot(1, SET)) && !operations.grants(&ballot(1, REGISTER)));
        assert!(!operations.grants(&ballot(1, r#"{"op":"unknown"}"#)));
        let opaque = Rules { allow_operations: Some(vec![OperationKind::Opaque]), ..Rules::default() };
        assert!(opaque.grants(&ballot(1, r#"{"op":"unknown"}"#)) && !opaque.grants(&ballot(1, SET)));

        let prefixes = Rules { allow_key_prefixes: Some(vec!["routing/".into(), "a-".into()]), ..Rules::default() };
        assert!(prefixes.grants(&ballot(1, SET)) && prefixes.grants(&ballot(1, REGISTER)));
        assert!(!prefixes.grants(&ballot(1, r#"{"op":"set_config","key":"other","value":1}"#)));
        assert!(!prefixes.grants(&ballot(1, "[1]")), "a payload without a key is under no prefix");

        let size = Rules { max_payload_bytes: SET.len(), ..Rules::default() };
        assert!(size.grants(&ballot(1, SET)) && !size.grants(&ballot(1, &format!("{SET} "))));
    }

    #[test]
    fn an_empty_list_allows_nothing() {
        for rules in [
            Rules { allow_origins: Some(vec![]), ..Rules::default() },
            Rules { allow_operations: Some(vec![]), ..Rules::default() },
            Rules { allow_key_prefixes: Some(vec![]), ..Rules::default() },
        ] {
            assert!(!rules.grants(&ballot(1, SET)), "{rules:?}");
        }
    }
}
