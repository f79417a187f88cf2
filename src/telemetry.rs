//! Metrics: the five `asi_consensus_*` of the specification, and what running a node takes besides.
//!
//! Every series that can be named beforehand exists from the start with the value 0, so that a rate over it is never
//! missing. Each [`Telemetry`] has a registry of its own: several nodes in one process do not mix.

use crate::core::{Alarm, Role};
use crate::ids::NodeId;
use crate::limits::MAX_REQUESTS;
use opentelemetry::KeyValue;
use opentelemetry::metrics::{Counter, Gauge, Histogram, Meter, MeterProvider as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::metrics::SdkMeterProvider;
use prometheus::proto::{Bucket, Metric, MetricFamily, MetricType};
use prometheus::{Registry, TextEncoder};

/// Upper bounds of the buckets of a duration, in seconds: from one fsync of a fast disk to an election gone wrong.
const SECONDS: [f64; 15] =
    [0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// A histogram's name and what it says. Kept here because one without observations is exported by [`Telemetry::render`].
struct Duration {
    name: &'static str,
    help: &'static str,
}

const COMMIT_LATENCY: Duration = Duration {
    name: "asi_consensus_commit_latency_seconds",
    help: "Wall time from propose to commit of proposals that came in at this node.",
};
const PERSIST: Duration = Duration {
    name: "concordat_persist_seconds",
    help: "Time from handing a write to the store until it is durable, waiting for earlier writes included.",
};

/// How a proposal ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Committed.
    Committed,
    /// Rejected by votes.
    Aborted,
    /// Its time to live passed first.
    Expired,
}

impl Outcome {
    const ALL: [Self; 3] = [Self::Committed, Self::Aborted, Self::Expired];

    const fn label(self) -> &'static str {
        match self {
            Self::Committed => "committed",
            Self::Aborted => "aborted",
            Self::Expired => "expired",
        }
    }
}

/// A position in the log, from the furthest to the most certain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Position {
    /// Appended here.
    Last,
    /// Durable here.
    Durable,
    /// Known to be durable on a quorum.
    Committed,
    /// Applied here.
    Applied,
    /// Covered by a head certificate held here.
    Certified,
}

impl Position {
    const ALL: [Self; 5] = [Self::Last, Self::Durable, Self::Committed, Self::Applied, Self::Certified];

    const fn label(self) -> &'static str {
        match self {
            Self::Last => "last",
            Self::Durable => "durable",
            Self::Committed => "committed",
            Self::Applied => "applied",
            Self::Certified => "certified",
        }
    }
}

const ROLES: [Role; 3] = [Role::Follower, Role::Candidate, Role::Leader];

const fn role_label(role: Role) -> &'static str {
    match role {
        Role::Follower => "follower",
        Role::Candidate => "candidate",
        Role::Leader => "leader",
    }
}

const ROTATIONS: [&str; 2] = ["done", "abandoned"];

const ALARM_KINDS: [&str; 5] =
    ["clock_out_of_bound", "malformed_append", "false_leader", "snapshot_denied", "snapshot_failed"];

const fn alarm_kind(alarm: &Alarm) -> &'static str {
    match alarm {
        Alarm::ClockOutOfBound { .. } => ALARM_KINDS[0],
        Alarm::MalformedAppend { .. } => ALARM_KINDS[1],
        Alarm::FalseLeader { .. } => ALARM_KINDS[2],
        Alarm::SnapshotDenied { .. } => ALARM_KINDS[3],
        Alarm::SnapshotFailed { .. } => ALARM_KINDS[4],
    }
}

/// What may be put back from other members.
const MENDED_KINDS: [&str; 5] = ["entries", "headers", "tile", "kept", "chunk"];

/// The metrics of one node.
pub struct Telemetry {
    registry: Registry,
    /// Ends collection when dropped.
    _provider: SdkMeterProvider,
    proposals: Counter<u64>,
    role_transitions: Counter<u64>,
    commit_latency: Histogram<f64>,
    pending: Gauge<u64>,
    term: Gauge<u64>,
    role: Gauge<u64>,
    log_index: Gauge<u64>,
    peer_connected: Gauge<u64>,
    history_from: Gauge<u64>,
    history_complete: Gauge<u64>,
    mended: Counter<u64>,
    persist: Histogram<f64>,
    alarms: Counter<u64>,
    request_entries: Gauge<u64>,
    request_limit: Gauge<u64>,
    database_bytes: Gauge<u64>,
    rotations: Counter<u64>,
    rotation_pause: Gauge<f64>,
}

impl Telemetry {
    /// The metrics of a follower in term 0 that is connected to none of its peers.
    ///
    /// # Panics
    /// Never: building fails only when a name is registered twice in one registry, and this one is new.
    #[must_use]
    pub fn new(peers: impl IntoIterator<Item = NodeId>) -> Self {
        let registry = Registry::new();
        let exporter = opentelemetry_prometheus::exporter()
            .with_registry(registry.clone())
            // Names are given whole below, so that a search for an exposed name finds its line.
            .without_counter_suffixes()
            .without_units()
            .scope_info_enabled(false)
            .without_target_info()
            .build()
            .expect("the registry is new");
        let provider =
            SdkMeterProvider::builder().with_resource(Resource::builder_empty().build()).with_reader(exporter).build();
        let telemetry = Self::with_instruments(registry, &provider.meter("concordat"), provider.clone());
        telemetry.touch(peers);
        telemetry
    }

    fn with_instruments(registry: Registry, meter: &Meter, provider: SdkMeterProvider) -> Self {
        let counter = |name, help| meter.u64_counter(name).with_description(help).build();
        let gauge = |name, help| meter.u64_gauge(name).with_description(help).build();
        let seconds = |duration: &Duration| {
            let builder = meter.f64_histogram(duration.name).with_description(duration.help);
            builder.with_boundaries(SECONDS.to_vec()).build()
        };
        Self {
            registry,
            _provider: provider,
            proposals: counter(
                "asi_consensus_proposals_total",
                "Proposals that came in at this node, by how they ended: committed, aborted (rejected by votes) or expired.",
            ),
            role_transitions: counter(
                "asi_consensus_role_transitions_total",
                "Changes of this node's role; to_role=leader counts elections it won.",
            ),
            commit_latency: seconds(&COMMIT_LATENCY),
            pending: gauge(
                "asi_consensus_pending_proposals",
                "Proposals that came in at this node and are not decided.",
            ),
            term: gauge("asi_consensus_term", "This node's term."),
            role: gauge("concordat_role", "1 for the role this node has, 0 for the others."),
            log_index: gauge(
                "concordat_log_index",
                "Positions in this node's log: last appended, durable here, committed, applied, certified.",
            ),
            peer_connected: gauge("concordat_peer_connected", "1 while a connection to the member stands."),
            history_from: gauge(
                "concordat_history_from",
                "The first entry whose header, certificates and receipt are held here.",
            ),
            history_complete: gauge(
                "concordat_history_complete",
                "1 when nothing is missing from the first entry on; 0 while what lies before an installed snapshot is filled in.",
            ),
            mended: counter(
                "concordat_mended_total",
                "Damaged records of this node's store that were put back from other members when it started.",
            ),
            persist: seconds(&PERSIST),
            alarms: counter("concordat_alarms_total", "Alarms raised by this node; see its log."),
            request_entries: gauge(
                "concordat_request_table_entries",
                "Requests remembered until their deadline, so that a retry is applied once.",
            ),
            request_limit: gauge(
                "concordat_request_table_limit",
                "Most requests that are remembered; at this bound every proposal is refused with backpressure.",
            ),
            database_bytes: gauge("concordat_database_bytes", "Bytes that the files of this node's database take."),
            rotations: counter(
                "concordat_database_rotations_total",
                "Moves of the database to a fresh one, by how they ended: done, or abandoned (see the log).",
            ),
            rotation_pause: meter
                .f64_gauge("concordat_database_rotation_pause_seconds")
                .with_description("How long writers were held up when the database last moved.")
                .build(),
        }
    }

    fn touch(&self, peers: impl IntoIterator<Item = NodeId>) {
        for outcome in Outcome::ALL {
            self.proposals.add(0, &[KeyValue::new("outcome", outcome.label())]);
        }
        for from in ROLES {
            for to in ROLES {
                if from != to {
                    self.count_transition(0, from, to);
                }
            }
            self.set_role(from, from == Role::default());
        }
        self.set_pending(0);
        self.set_request_entries(0);
        self.request_limit.record(MAX_REQUESTS as u64, &[]);
        self.set_database_bytes(0);
        for outcome in ROTATIONS {
            self.rotations.add(0, &[KeyValue::new("outcome", outcome)]);
        }
        self.rotation_pause.record(0.0, &[]);
        self.set_term(0);
        self.set_history(1, true);
        for position in Position::ALL {
            self.set_log_index(position, 0);
        }
        for peer in peers {
            self.set_peer_connected(peer, false);
        }
        for kind in MENDED_KINDS {
            self.mended.add(0, &[KeyValue::new("kind", kind)]);
        }
        for kind in ALARM_KINDS {
            self.alarms.add(0, &[KeyValue::new("kind", kind)]);
        }
    }

    /// A proposal that came in here was decided.
    pub fn proposal(&self, outcome: Outcome) {
        self.proposals.add(1, &[KeyValue::new("outcome", outcome.label())]);
    }

    /// This node's role changed. Nothing happens when it did not.
    pub fn role_transition(&self, from: Role, to: Role) {
        if from != to {
            self.count_transition(1, from, to);
            self.set_role(from, false);
            self.set_role(to, true);
        }
    }

    fn count_transition(&self, count: u64, from: Role, to: Role) {
        let labels = [KeyValue::new("from_role", role_label(from)), KeyValue::new("to_role", role_label(to))];
        self.role_transitions.add(count, &labels);
    }

    fn set_role(&self, role: Role, is_current: bool) {
        self.role.record(is_current.into(), &[KeyValue::new("role", role_label(role))]);
    }

    /// A proposal that came in here was committed this many seconds after it was proposed.
    pub fn commit_latency(&self, seconds: f64) {
        self.commit_latency.record(seconds, &[]);
    }

    /// How many proposals that came in here are not decided.
    pub fn set_pending(&self, count: u64) {
        self.pending.record(count, &[]);
    }

    /// How many requests are remembered here.
    pub fn set_request_entries(&self, count: u64) {
        self.request_entries.record(count, &[]);
    }

    /// What the files of the database take.
    pub fn set_database_bytes(&self, bytes: u64) {
        self.database_bytes.record(bytes, &[]);
    }

    /// A move of the database was done, holding writers up for so many seconds, or was given up.
    pub fn rotation(&self, pause: Option<f64>) {
        let outcome = ROTATIONS[usize::from(pause.is_none())];
        self.rotations.add(1, &[KeyValue::new("outcome", outcome)]);
        if let Some(seconds) = pause {
            self.rotation_pause.record(seconds, &[]);
        }
    }

    /// This node's term.
    pub fn set_term(&self, term: u64) {
        self.term.record(term, &[]);
    }

    /// A damaged record of this kind was put back from another member.
    pub fn mended(&self, kind: &'static str) {
        self.mended.add(1, &[KeyValue::new("kind", kind)]);
    }

    /// From where on this node holds the history, and whether that is all of it.
    pub fn set_history(&self, from: u64, is_complete: bool) {
        self.history_from.record(from, &[]);
        self.history_complete.record(is_complete.into(), &[]);
    }

    /// How far this node's log has come.
    pub fn set_log_index(&self, position: Position, index: u64) {
        self.log_index.record(index, &[KeyValue::new("position", position.label())]);
    }

    /// A connection to a member came or went.
    pub fn set_peer_connected(&self, peer: NodeId, is_connected: bool) {
        self.peer_connected.record(is_connected.into(), &[KeyValue::new("peer", peer.to_string())]);
    }

    /// A write became durable this many seconds after it was handed to the store.
    pub fn persist(&self, seconds: f64) {
        self.persist.record(seconds, &[]);
    }

    /// An alarm was raised.
    pub fn alarm(&self, alarm: &Alarm) {
        self.alarms.add(1, &[KeyValue::new("kind", alarm_kind(alarm))]);
    }

    /// All metrics in the Prometheus text format, version 0.0.4.
    ///
    /// # Panics
    /// Never: encoding fails only for a family without a name or without a metric.
    #[must_use]
    pub fn render(&self) -> String {
        let mut families = self.registry.gather();
        // OpenTelemetry exports a histogram from its first observation on; a dashboard wants it from the start.
        for duration in [&COMMIT_LATENCY, &PERSIST] {
            if let Err(place) = families.binary_search_by(|family| family.name().cmp(duration.name)) {
                families.insert(place, unobserved(duration));
            }
        }
        TextEncoder::new().encode_to_string(&families).expect("every family has a name and a metric")
    }
}

impl std::fmt::Debug for Telemetry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Telemetry").finish_non_exhaustive()
    }
}

fn unobserved(duration: &Duration) -> MetricFamily {
    let mut histogram = prometheus::proto::Histogram::default();
    let bucket = |bound| {
        let mut bucket = Bucket::default();
        bucket.set_upper_bound(bound);
        bucket
    };
    histogram.set_bucket(SECONDS.map(bucket).to_vec());
    let mut metric = Metric::default();
    metric.set_histogram(histogram);
    let mut family = MetricFamily::default();
    family.set_name(duration.name.into());
    family.set_help(duration.help.into());
    family.set_field_type(MetricType::HISTOGRAM);
    family.set_metric(vec![metric]);
    family
}
