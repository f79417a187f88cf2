//! N nodes in virtual time: the queue of events, the clock, faults, and what tests ask for.

use crate::client::Call;
use crate::coverage::Coverage;
use crate::crypto::Pool;
use crate::devices::SimDevices;
use crate::disk::Disk;
use crate::history::History;
use crate::invariants::{Invariants, Verdict, positions::Standing, tables};
use crate::machine::Machine;
use crate::members::{genesis, id_of, index_of};
use crate::membership::{Acquaintance, Changed, Transferred};
use crate::net::{Links, Network};
use crate::queue::Queue;
use crate::reads::Read;
use crate::rng::Rng;
use crate::shell::Waiting;
use crate::trace::{Trace, message_name};
use crate::{chain::Chain, invariants::Violation};
use concordat::api::VoteError;
use concordat::certificate::{Entry, Genesis, HeadCertificate, Policy, QuorumRule, SnapshotManifest, TableInForce};
use concordat::config::{OperationKind, Rules};
use concordat::core::{
    Admission, Alarm, Ballot, ChangeRefusal, Core, Effect, Halt, Message, Now, Options, Role, Transfer,
};
use concordat::ids::{Digest, Epoch, LogIndex, ProposalId};
use concordat::node::Ended;
use concordat::node::executor::{self, Executor, Mail, Query, SnapshotJob, SnapshotSettings, Subject};
use concordat::wire::Frame;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

const EPOCH_MS: u64 = 1_700_000_000_000;

/// Undecided proposals of one node's clients.
pub(crate) const MAX_PENDING: usize = 1_024;

/// The simulator's members grant what sets a config key or is no operation on the registry.
pub(crate) fn rules() -> Rules {
    Rules { allow_operations: Some(vec![OperationKind::Opaque, OperationKind::SetConfig]), ..Rules::default() }
}

#[derive(Clone, Debug)]
pub(crate) struct Config {
    pub(crate) seed: u64,
    /// One per member of the genesis; nodes beyond those are started when they are needed.
    pub(crate) policies: Vec<Policy>,
    pub(crate) spares: usize,
    /// Per mille of a storm's steps that change the members.
    pub(crate) churn: u64,
    pub(crate) rule: QuorumRule,
    pub(crate) network: Network,
    pub(crate) disk_us: (u64, u64),
    pub(crate) crypto_us: (u64, u64),
    pub(crate) apply_us: (u64, u64),
    /// From a mark to its image.
    pub(crate) image_us: (u64, u64),
    pub(crate) snapshots: SnapshotSettings,
    pub(crate) options: Options,
    /// Per mille of inputs after which a node has its turn a little later, together with whatever comes in meanwhile.
    pub(crate) batch: u64,
    /// Members that decide by hand have applications that answer.
    pub(crate) applications: bool,
    /// Nodes forward what their clients propose.
    pub(crate) forward: bool,
    pub(crate) real_crypto: bool,
    /// Keep all effects for the test to read.
    pub(crate) record: bool,
    /// Keep the last inputs and effects for people.
    pub(crate) told: bool,
    /// Wall clock against true time, per node.
    pub(crate) skew_ms: Vec<i64>,
    /// By how many per mille each monotonic clock is fast.
    pub(crate) drift: Vec<i64>,
}

impl Config {
    pub(crate) fn new(nodes: usize, seed: u64) -> Self {
        Self {
            seed,
            policies: vec![Policy::Auto; nodes],
            spares: 0,
            churn: 0,
            rule: QuorumRule::Majority,
            network: Network::FAST,
            disk_us: (100, 1_500),
            crypto_us: (50, 1_000),
            apply_us: (10, 500),
            image_us: (500, 20_000),
            snapshots: SnapshotSettings { every: None, retain: 0 },
            options: Options::default(),
            batch: 0,
            applications: false,
            forward: true,
            real_crypto: false,
            record: false,
            told: true,
            skew_ms: vec![0; nodes],
            drift: Vec::new(),
        }
    }
}

pub(crate) enum Event {
    Deliver {
        from: usize,
        to: usize,
        frame: Box<Frame>,
    },
    Tick {
        node: usize,
        life: u64,
    },
    Turn {
        node: usize,
        life: u64,
    },
    Disk {
        node: usize,
        life: u64,
        seq: u64,
    },
    Mail {
        node: usize,
        life: u64,
        mail: Mail,
    },
    Look {
        node: usize,
        life: u64,
        subjects: Vec<(Subject, bool)>,
    },
    Answer {
        node: usize,
        life: u64,
        id: ProposalId,
        granted: bool,
    },
    Apply {
        node: usize,
        life: u64,
        entries: Vec<Arc<Entry>>,
    },
    Client {
        call: usize,
        attempt: u64,
    },
    Keys {
        node: usize,
        life: u64,
    },
    Serve {
        read: usize,
    },
    Ask {
        node: usize,
        life: u64,
        event: Box<executor::Event>,
    },
    Image {
        node: usize,
        life: u64,
        manifest: Arc<SnapshotManifest>,
        bytes: Arc<Vec<u8>>,
    },
    Snapshot {
        node: usize,
        life: u64,
        job: SnapshotJob,
    },
    Restore {
        node: usize,
        life: u64,
        index: LogIndex,
    },
    /// A link goes down or up again by itself.
    Flap {
        from: usize,
        to: usize,
        left: u32,
    },
}

impl Event {
    /// Whose, if it is a node's: it waits while that node does not run.
    fn node(&self) -> Option<usize> {
        match self {
            Self::Deliver { to, .. } => Some(*to),
            Self::Tick { node, .. }
            | Self::Turn { node, .. }
            | Self::Disk { node, .. }
            | Self::Mail { node, .. }
            | Self::Look { node, .. }
            | Self::Answer { node, .. }
            | Self::Apply { node, .. }
            | Self::Image { node, .. }
            | Self::Snapshot { node, .. }
            | Self::Restore { node, .. }
            | Self::Keys { node, .. }
            | Self::Ask { node, .. } => Some(*node),
            Self::Client { .. } | Self::Serve { .. } | Self::Flap { .. } => None,
        }
    }
}

pub(crate) struct Node {
    /// While it is up.
    pub(crate) executor: Option<Executor<SimDevices>>,
    /// Counts restarts; events of an earlier life are void.
    pub(crate) life: u64,
    pub(crate) disk: Disk,
    pub(crate) machine: Machine,
    /// The core's log, as its writes tell it.
    pub(crate) memory: Chain,
    pub(crate) pool: Pool,
    pub(crate) tick_at: Option<u64>,
    pub(crate) draining: bool,
    /// Questions asked of this node and not withdrawn.
    pub(crate) asks: BTreeMap<ProposalId, Arc<Ballot>>,
    pub(crate) delivered: LogIndex,
    /// What the newest certificate that clients were shown covers.
    pub(crate) shown: LogIndex,
    pub(crate) reads: Waiting<usize, Option<LogIndex>>,
    pub(crate) transfers: Waiting<usize, Transfer>,
    pub(crate) changes: Waiting<usize, Result<Epoch, ChangeRefusal>>,
    /// What became of the answers of its application.
    pub(crate) voted: Vec<Result<(), VoteError>>,
    /// What each answer under way is about, and the answer.
    pub(crate) votes: Waiting<(Option<Subject>, bool), Result<(), VoteError>>,
    pub(crate) alarms: Vec<Alarm>,
    pub(crate) halted: Option<Halt>,
    /// Why its process ended by itself last.
    pub(crate) ended: Option<Ended>,
    /// Effects until power is lost.
    pub(crate) dies_after: Option<u32>,
    /// Until when it does not run, microseconds.
    pub(crate) paused_until: u64,
    pub(crate) skew_ms: i64,
    /// By how many per mille its monotonic clock is fast.
    pub(crate) drift: i64,
    /// The logs of disks that this node lost, by store.
    pub(crate) lost: BTreeMap<usize, Chain>,
    /// When it lost the last one, microseconds.
    pub(crate) lost_at: u64,
    /// In which store the key of each generation was made.
    pub(crate) made: Vec<usize>,
    pub(crate) acquaintance: Acquaintance,
    pub(crate) was: (Role, LogIndex, LogIndex),
}

/// Which messages a test keeps from arriving.
type Filter = Box<dyn Fn(usize, usize, &Message) -> bool>;

pub(crate) struct World {
    pub(crate) config: Config,
    pub(crate) genesis: Genesis,
    pub(crate) genesis_id: Digest,
    pub(crate) genesis_table: Arc<TableInForce>,
    pub(crate) rng: Rng,
    /// Microseconds.
    pub(crate) now: u64,
    queue: Queue<Event>,
    pub(crate) nodes: Vec<Node>,
    pub(crate) links: Links,
    pub(crate) filter: Option<Filter>,
    pub(crate) trace: Trace,
    pub(crate) invariants: Invariants,
    pub(crate) coverage: Coverage,
    pub(crate) calls: Vec<Call>,
    /// Calls without an outcome.
    pub(crate) open: BTreeSet<usize>,
    pub(crate) reads: Vec<Read>,
    pub(crate) changes: Vec<Changed>,
    pub(crate) transfers: Vec<Transferred>,
    /// Certificates that were taken over anywhere, by size; with real signatures only.
    pub(crate) certificates: BTreeMap<u64, Arc<HeadCertificate>>,
    pub(crate) history: History,
    /// Of the read that is being begun.
    pub(crate) reading_config: Option<(usize, u64)>,
    pub(crate) recorded: Vec<(u64, usize, Effect)>,
    /// What a core said last of a submission.
    pub(crate) admitted: Option<Admission>,
    /// Says another state hash of every image that this node makes.
    pub(crate) spoil_images: Option<(usize, Digest)>,
    /// Nodes whose images take so long, microseconds.
    pub(crate) slow_images: BTreeMap<usize, u64>,
}

impl World {
    pub(crate) fn new(config: Config) -> Self {
        let genesis = genesis(&config.policies, config.rule);
        let mut world = Self {
            rng: Rng::new(config.seed),
            now: 0,
            queue: Queue::default(),
            nodes: Vec::new(),
            links: Links::default(),
            filter: None,
            trace: Trace::new(config.told),
            invariants: Invariants::default(),
            coverage: Coverage::default(),
            calls: Vec::new(),
            open: BTreeSet::new(),
            reads: Vec::new(),
            changes: Vec::new(),
            transfers: Vec::new(),
            certificates: BTreeMap::new(),
            history: History::default(),
            reading_config: None,
            recorded: Vec::new(),
            admitted: None,
            spoil_images: None,
            slow_images: BTreeMap::new(),
            genesis_id: genesis.id(),
            genesis_table: Arc::new(genesis.in_force()),
            genesis,
            config,
        };
        for node in 0..world.size() {
            world.nodes.push(Node {
                executor: None,
                life: 0,
                disk: Disk { keys: vec![0], ..Disk::default() },
                machine: Machine::default(),
                memory: Chain::default(),
                pool: Pool::new(node, &[0], world.config.real_crypto),
                tick_at: None,
                draining: false,
                asks: BTreeMap::new(),
                delivered: LogIndex::ZERO,
                shown: LogIndex::ZERO,
                reads: Vec::new(),
                transfers: Vec::new(),
                changes: Vec::new(),
                voted: Vec::new(),
                votes: Vec::new(),
                alarms: Vec::new(),
                halted: None,
                ended: None,
                dies_after: None,
                paused_until: 0,
                skew_ms: world.config.skew_ms.get(node).copied().unwrap_or_default(),
                drift: world.config.drift.get(node).copied().unwrap_or_default(),
                lost: BTreeMap::new(),
                lost_at: 0,
                made: vec![0],
                acquaintance: Acquaintance::default(),
                was: (Role::Follower, LogIndex::ZERO, LogIndex::ZERO),
            });
        }
        for node in 0..world.config.policies.len() {
            world.start(node);
        }
        world
    }

    /// Of all nodes, members or not.
    pub(crate) fn size(&self) -> usize {
        self.config.policies.len() + self.config.spares
    }

    pub(crate) fn core(&self, node: usize) -> &Core {
        self.nodes[node].executor.as_ref().expect("the node is up").core()
    }

    pub(crate) fn is_up(&self, node: usize) -> bool {
        self.nodes[node].executor.is_some()
    }

    pub(crate) fn clock(&self, node: usize) -> Now {
        let ms = self.now / 1000;
        // Monotonic clocks of different machines have nothing in common, and each has a rate of its own.
        let rate = 1_000_u64.saturating_add_signed(self.nodes[node].drift);
        let mono = ms * rate / 1_000 + 1_000 * (node as u64 + 1);
        Now { mono, wall: (EPOCH_MS + ms).saturating_add_signed(self.nodes[node].skew_ms) }
    }

    pub(crate) fn wall(&self) -> u64 {
        EPOCH_MS + self.now / 1000
    }

    pub(crate) fn at(&mut self, delay_us: u64, event: Event) {
        self.queue.push(self.now + delay_us, event);
    }

    pub(crate) fn note(&mut self, node: usize, text: impl FnOnce() -> String) {
        self.trace.note(self.now, node, text);
    }

    /// Fails the run with everything needed to look into it and to run it again.
    pub(crate) fn demand(&self, verdict: Verdict) {
        if let Err(Violation { rule, what }) = verdict {
            panic!("violated: {rule}: {what}");
        }
    }

    // ---- time ----

    /// Runs until nothing is left to do before `until` (microseconds).
    pub(crate) fn run_until(&mut self, until: u64) {
        while self.queue.next_at().is_some_and(|at| at <= until) {
            self.step();
        }
        self.now = self.now.max(until);
    }

    pub(crate) fn run(&mut self, ms: u64) {
        self.run_until(self.now + ms * 1000);
    }

    /// Runs until `done` holds after some event, at most `ms`; tells whether it did.
    pub(crate) fn run_while_not(&mut self, ms: u64, done: impl Fn(&Self) -> bool) -> bool {
        let until = self.now + ms * 1000;
        loop {
            if done(self) {
                return true;
            }
            if self.queue.next_at().is_none_or(|at| at > until) {
                self.now = until;
                return done(self);
            }
            self.step();
        }
    }

    /// As [`World::run_while_not`], looking at `done` now and then only: for questions about all nodes.
    pub(crate) fn run_until_seen(&mut self, ms: u64, done: impl Fn(&Self) -> bool) -> bool {
        let until = self.now + ms * 1000;
        while !done(self) {
            if self.now >= until {
                return false;
            }
            self.run_until((self.now + 5_000).min(until));
        }
        true
    }

    fn step(&mut self) {
        let (at, event) = self.queue.pop().expect("the caller looked");
        self.now = at;
        self.trace.events += 1;
        if let Some(node) = event.node()
            && self.is_paused(node)
        {
            self.coverage.count("fault", "event met a paused node");
            self.queue.push(self.nodes[node].paused_until, event);
            return;
        }
        match event {
            Event::Deliver { from, to, frame } => {
                if !self.is_up(to) {
                    self.coverage.count("fault", "message to a stopped node");
                } else if !self.nodes[to].acquaintance.admits(from, &frame) {
                    self.coverage.count("fault", "stranger turned away");
                } else {
                    if let Frame::Core(message) = &*frame {
                        self.coverage.count("message", message_name(message));
                    }
                    self.frame(from, to, *frame);
                }
            }
            Event::Tick { node, life } if self.lives(node, life) => self.tick(node),
            Event::Turn { node, life } if self.lives(node, life) => self.turn(node),
            Event::Disk { node, life, seq } if self.lives(node, life) => {
                // One fsync may cover writes that were issued after it began.
                let seq = if self.rng.chance(200) { u64::MAX } else { seq };
                match self.nodes[node].disk.complete(seq) {
                    Ok(Some(seq)) => self.mail(node, Mail { persisted: seq, ..Mail::default() }),
                    Ok(None) => {}
                    Err(why) => {
                        self.coverage.count("fault", why);
                        self.mail(node, Mail { failure: Some(why.into()), ..Mail::default() });
                    }
                }
            }
            Event::Mail { node, life, mail } if self.lives(node, life) => self.mail(node, mail),
            Event::Look { node, life, subjects } if self.lives(node, life) => {
                let records = self.records(node, &subjects);
                self.mail(node, Mail { records: Some(records), ..Mail::default() });
            }
            Event::Answer { node, life, id, granted } if self.lives(node, life) => self.answer(node, id, granted),
            Event::Apply { node, life, entries } if self.lives(node, life) => self.apply(node, &entries),
            Event::Image { node, life, manifest, bytes } if self.lives(node, life) => {
                self.image_taken(node, manifest, bytes);
            }
            Event::Snapshot { node, life, job } if self.lives(node, life) => self.snapshot_worked(node, job),
            Event::Restore { node, life, index } if self.lives(node, life) => self.restore(node, index),
            Event::Client { call, attempt } => self.client_looks(call, attempt),
            Event::Keys { node, life } if self.lives(node, life) => {
                self.event(node, executor::Event::Query(Query::Keys));
            }
            Event::Serve { read } => self.serve(read),
            Event::Ask { node, life, event } if self.lives(node, life) => self.event(node, *event),
            Event::Flap { from, to, left } => self.flap(from, to, left),
            _ => {}
        }
    }

    pub(crate) fn lives(&self, node: usize, life: u64) -> bool {
        self.is_up(node) && self.nodes[node].life == life
    }

    fn tick(&mut self, node: usize) {
        let now = self.clock(node);
        if self.nodes[node].tick_at.take_if(|at| *at <= self.now).is_none() {
            return;
        }
        if self.deadline(node) <= now.mono {
            self.turn(node);
        } else {
            self.schedule_tick(node);
        }
    }

    /// When the node wants its next turn, monotonic.
    fn deadline(&self, node: usize) -> u64 {
        self.nodes[node].executor.as_ref().expect("the node is up").deadline()
    }

    pub(crate) fn schedule_tick(&mut self, node: usize) {
        let due = self.deadline(node);
        if due == u64::MAX {
            return;
        }
        let wait_ms = due.saturating_sub(self.clock(node).mono);
        let rate = 1_000_u64.saturating_add_signed(self.nodes[node].drift);
        // The next whole millisecond of the clock, so that a deadline is hardly ever looked at too early.
        let at = (self.now / 1000 + (wait_ms * 1_000).div_ceil(rate)) * 1000;
        let at = if at <= self.now { self.now + 1 } else { at };
        if self.nodes[node].tick_at.is_none_or(|t| t > at) {
            self.nodes[node].tick_at = Some(at);
            let life = self.nodes[node].life;
            self.at(at - self.now, Event::Tick { node, life });
        }
    }

    // ---- checks ----

    /// Checks everything that a node's state alone can break.
    pub(crate) fn observe(&mut self, node: usize) {
        let standing = self.standing(node);
        let verdict = self.invariants.positions.stands(node, standing);
        self.demand(verdict);
        let (n, core) = (&self.nodes[node], self.core(node));
        let (role, committed, last) = (core.role(), core.committed(), core.last_index());
        let was = n.was;
        if committed != was.1 || last != was.2 {
            self.commits(node, committed);
            self.committed_so_far();
        }
        let (core, memory) = (self.core(node), &self.nodes[node].memory);
        if last != was.2
            && let (Some(history), Some(root)) = (memory.at(last), core.root_at(last))
        {
            let verdict = self.invariants.matching.root(node, history, root);
            self.demand(verdict);
        }
        if role == Role::Leader {
            let term = self.core(node).term();
            let verdict = self.invariants.elections.leads(node, term);
            self.demand(verdict);
            if was.0 != Role::Leader {
                self.coverage.count("event", "election won");
                self.demand(self.invariants.committed.leads(node, &self.nodes[node].memory));
                self.elected(node);
            }
        } else if was.0 == Role::Leader {
            self.coverage.count("event", "leader stepped down");
        }
        self.nodes[node].was = (role, committed, last);
    }

    /// A node calls everything up to `upto` committed: looks at the disks of every table in force in its log.
    pub(crate) fn commits(&mut self, node: usize, upto: LogIndex) {
        let (nodes, genesis) = (&self.nodes, &self.genesis_table);
        let log = &nodes[node].memory;
        let disks = |index| crate::membership::disks(nodes, &tables::in_force(genesis, log, index));
        let verdict = self.invariants.committed.commits(node, upto, log, disks);
        self.demand(verdict);
    }

    fn committed_so_far(&mut self) {
        let Invariants { once, committed, .. } = &mut self.invariants;
        let mut verdict = Ok(());
        while let Some(link) = committed.ledger.get(once.upto().next()) {
            self.coverage.count("event", "entry committed");
            let before = tables::in_force(&self.genesis_table, &committed.ledger, link.entry.index().prev());
            verdict =
                verdict.and(once.committed(&link.entry)).and(tables::committed(&link.entry, &self.genesis_id, &before));
        }
        self.demand(verdict);
    }

    pub(crate) fn standing(&self, node: usize) -> Standing {
        let (n, core) = (&self.nodes[node], self.core(node));
        Standing {
            term: core.term(),
            applied: n.machine.applied,
            delivered: n.delivered,
            committed: core.committed(),
            certified: LogIndex(core.certificate().map_or(0, |c| c.head.size)),
            durable: core.durable(),
            last: core.last_index(),
            holds: n.disk.log.at(core.durable()) == n.memory.at(core.durable()),
            on_disk: n.disk.log.last(),
            disk_term: n.disk.hard.term,
        }
    }

    // ---- questions ----

    /// The leader of the highest term among those that lead, if any is up.
    pub(crate) fn leader(&self) -> Option<usize> {
        (0..self.size())
            .filter(|n| self.is_up(*n) && self.core(*n).role() == Role::Leader)
            .max_by_key(|n| self.core(*n).term())
    }

    /// Runs until a leader has committed in its own term and every node that is up follows it.
    pub(crate) fn settle(&mut self) -> usize {
        let settled = self.run_while_not(5_000, |w| {
            w.leader().is_some_and(|l| {
                let core = w.core(l);
                w.nodes[l].memory.term_at(core.committed()) == core.term()
                    && w.members().into_iter().filter(|n| w.is_up(*n)).all(|n| w.core(n).leader() == Some(id_of(l)))
            })
        });
        assert!(settled, "a leader within five seconds");
        self.leader().expect("just seen")
    }

    /// Whether all members are up with one log, all of it committed, certified and applied everywhere.
    pub(crate) fn converged(&self) -> bool {
        self.members().into_iter().all(|n| self.is_up(n)) && self.caught_up()
    }

    /// As [`World::converged`], of those members that are up.
    pub(crate) fn caught_up(&self) -> bool {
        let Some(leader) = self.leader() else { return false };
        let last = self.core(leader).last_index();
        self.members().into_iter().all(|n| {
            !self.is_up(n) || {
                let core = self.core(n);
                core.last_index() == last
                    && core.committed() == last
                    && core.certificate().is_some_and(|c| c.head.size == last.0)
                    && self.nodes[n].machine.applied == last
                    && self.nodes[n].memory.at(last) == self.nodes[leader].memory.at(last)
            }
        })
    }

    pub(crate) fn follower(&self) -> usize {
        let leader = self.leader().expect("a leader");
        self.members().into_iter().find(|n| *n != leader && self.is_up(*n)).expect("a follower")
    }

    pub(crate) fn leader_of(&self, node: usize) -> Option<usize> {
        self.core(node).leader().as_ref().map(index_of)
    }

    /// All messages recorded since the start, as (sender, receiver, message).
    pub(crate) fn sent(&self) -> impl Iterator<Item = (usize, usize, &Message)> {
        self.recorded.iter().filter_map(|(_, node, effect)| match effect {
            Effect::Send { to, message } => Some((*node, index_of(to), message)),
            _ => None,
        })
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!(
                "{}seed {} at {:.3} virtual ms (sweeps: SIM_SEED={} cargo test --release --test sim sweep::replay -- --nocapture)",
                self.trace.tail(),
                self.config.seed,
                self.now as f64 / 1000.0,
                self.config.seed,
            );
        }
    }
}
