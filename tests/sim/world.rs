//! N nodes in virtual time: the queue of events, the clock, faults, and what tests ask for.

use crate::client::Call;
use crate::coverage::Coverage;
use crate::crypto::Pool;
use crate::devices::SimDevices;
use crate::disk::Disk;
use crate::invariants::{Invariants, Verdict, positions::Standing, tables};
use crate::machine::Machine;
use crate::members::{genesis, id_of, index_of, public};
use crate::membership::{Acquaintance, Changed, Transferred};
use crate::net::{Links, Network};
use crate::reads::Read;
use crate::rng::Rng;
use crate::shell::Waiting;
use crate::trace::{Trace, What, message_name};
use crate::{chain::Chain, invariants::Violation};
use concordat::api::VoteError;
use concordat::certificate::{Entry, Genesis, Policy, PublicKey, QuorumRule, TableInForce};
use concordat::config::{OperationKind, Rules};
use concordat::core::{
    Admission, Alarm, Ballot, ChangeRefusal, Core, Effect, Halt, Message, Now, Options, Role, Transfer,
};
use concordat::ids::{Digest, Epoch, LogIndex, ProposalId};
use concordat::node::executor::{self, Executor, Mail, Query, Settings, Subject};
use concordat::registry::State;
use concordat::wire::Frame;
use std::collections::BTreeMap;
use std::sync::Arc;

const EPOCH_MS: u64 = 1_700_000_000_000;

/// Undecided proposals of one node's clients.
const MAX_PENDING: usize = 1_024;

/// The simulator's members grant whatever is no operation on the registry.
fn rules() -> Rules {
    Rules { allow_operations: Some(vec![OperationKind::Opaque]), ..Rules::default() }
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
    /// Wall clock against true time, per node.
    pub(crate) skew_ms: Vec<i64>,
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
            options: Options::default(),
            batch: 0,
            applications: false,
            forward: true,
            real_crypto: false,
            record: false,
            skew_ms: vec![0; nodes],
        }
    }
}

pub(crate) enum Event {
    Deliver { from: usize, to: usize, frame: Box<Frame> },
    Tick { node: usize, life: u64 },
    Turn { node: usize, life: u64 },
    Disk { node: usize, life: u64, seq: u64 },
    Mail { node: usize, life: u64, mail: Mail },
    Look { node: usize, life: u64, subjects: Vec<(Subject, bool)> },
    Answer { node: usize, life: u64, id: ProposalId, granted: bool },
    Apply { node: usize, life: u64, entries: Vec<Arc<Entry>> },
    Client { call: usize, attempt: u64 },
    Keys { node: usize, life: u64 },
    Serve { read: usize },
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
    tick_at: Option<u64>,
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
    pub(crate) skew_ms: i64,
    /// The logs of disks that this node lost, by store.
    pub(crate) lost: BTreeMap<usize, Chain>,
    /// When it lost the last one, microseconds.
    pub(crate) lost_at: u64,
    /// In which store the key of each generation was made.
    pub(crate) made: Vec<usize>,
    pub(crate) acquaintance: Acquaintance,
    was: (Role, LogIndex, LogIndex),
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
    sequence: u64,
    queue: BTreeMap<(u64, u64), Event>,
    pub(crate) nodes: Vec<Node>,
    pub(crate) links: Links,
    pub(crate) filter: Option<Filter>,
    pub(crate) trace: Trace,
    pub(crate) invariants: Invariants,
    pub(crate) coverage: Coverage,
    pub(crate) calls: Vec<Call>,
    pub(crate) reads: Vec<Read>,
    pub(crate) changes: Vec<Changed>,
    pub(crate) transfers: Vec<Transferred>,
    pub(crate) recorded: Vec<(u64, usize, Effect)>,
    /// What a core said last of a submission.
    pub(crate) admitted: Option<Admission>,
}

impl World {
    pub(crate) fn new(config: Config) -> Self {
        let genesis = genesis(&config.policies, config.rule);
        let mut world = Self {
            rng: Rng::new(config.seed),
            now: 0,
            sequence: 0,
            queue: BTreeMap::new(),
            nodes: Vec::new(),
            links: Links::default(),
            filter: None,
            trace: Trace::new(),
            invariants: Invariants::default(),
            coverage: Coverage::default(),
            calls: Vec::new(),
            reads: Vec::new(),
            changes: Vec::new(),
            transfers: Vec::new(),
            recorded: Vec::new(),
            admitted: None,
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
                skew_ms: world.config.skew_ms.get(node).copied().unwrap_or_default(),
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
        // Monotonic clocks of different machines have nothing in common.
        let mono = ms + 1_000 * (node as u64 + 1);
        Now { mono, wall: (EPOCH_MS + ms).saturating_add_signed(self.nodes[node].skew_ms) }
    }

    pub(crate) fn wall(&self) -> u64 {
        EPOCH_MS + self.now / 1000
    }

    pub(crate) fn at(&mut self, delay_us: u64, event: Event) {
        self.sequence += 1;
        self.queue.insert((self.now + delay_us, self.sequence), event);
    }

    pub(crate) fn note(&mut self, node: usize, text: String) {
        self.trace.add(self.now, node, What::Note(text));
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
        while self.queue.first_key_value().is_some_and(|e| e.0.0 <= until) {
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
            if self.queue.first_key_value().is_none_or(|e| e.0.0 > until) {
                self.now = until;
                return done(self);
            }
            self.step();
        }
    }

    fn step(&mut self) {
        let ((at, _), event) = self.queue.pop_first().expect("the caller looked");
        self.now = at;
        self.trace.events += 1;
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
                if let Some(seq) = self.nodes[node].disk.complete(seq) {
                    self.mail(node, Mail { persisted: seq, ..Mail::default() });
                }
            }
            Event::Mail { node, life, mail } if self.lives(node, life) => self.mail(node, mail),
            Event::Look { node, life, subjects } if self.lives(node, life) => {
                let records = self.records(node, &subjects);
                self.mail(node, Mail { records: Some(records), ..Mail::default() });
            }
            Event::Answer { node, life, id, granted } if self.lives(node, life) => self.answer(node, id, granted),
            Event::Apply { node, life, entries } if self.lives(node, life) => self.apply(node, &entries),
            Event::Client { call, attempt } => self.client_looks(call, attempt),
            Event::Keys { node, life } if self.lives(node, life) => {
                self.event(node, executor::Event::Query(Query::Keys));
            }
            Event::Serve { read } => self.serve(read),
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
        // The next whole millisecond of the clock, so that a deadline is never looked at too early.
        let at = (self.now / 1000 + wait_ms) * 1000;
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

    fn standing(&self, node: usize) -> Standing {
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

    // ---- faults ----

    pub(crate) fn crash(&mut self, node: usize) {
        let (lost, kept) = self.nodes[node].disk.crash(&mut self.rng);
        self.coverage.count("fault", "crash");
        if lost > 0 {
            self.coverage.count("fault", "crash that lost writes");
        }
        if kept > 0 {
            self.coverage.count("fault", "crash after untold writes");
        }
        self.note(node, format!("crash: {lost} writes lost, {kept} kept untold"));
        let n = &mut self.nodes[node];
        n.executor = None;
        n.reads.clear();
        n.transfers.clear();
        n.changes.clear();
        n.votes.clear();
        n.life += 1;
        n.draining = false;
        n.tick_at = None;
    }

    /// Starts a node from its disk.
    pub(crate) fn start(&mut self, node: usize) {
        let certified = self.nodes[node].disk.certified();
        let base = if self.rng.chance(500) { certified } else { LogIndex::ZERO };
        let keys = self.public_keys(node);
        let restored = self.nodes[node].disk.restore(base, keys.clone());
        let seed = self.rng.next();
        let options = Options { seed, ..self.config.options.clone() };
        let core = Core::new(id_of(node), &self.genesis, restored, options, self.clock(node));
        let now = self.clock(node);
        let settings = Settings { rules: rules(), max_pending: MAX_PENDING, forward: self.config.forward };
        let n = &mut self.nodes[node];
        n.life += 1;
        n.memory = n.disk.log.clone();
        n.machine = Machine::default();
        let mut state = State::default();
        for link in n.disk.log.links().iter().take_while(|l| l.entry.index() <= certified) {
            n.machine.apply(&link.entry);
            state.apply(&link.entry);
        }
        let devices = SimDevices::new(now, state, keys);
        n.executor = Some(Executor::new(id_of(node), core, devices, settings, certified));
        n.shown = certified;
        n.asks.clear();
        n.acquaintance = Acquaintance::default();
        n.delivered = certified;
        n.was = (Role::Follower, LogIndex::ZERO, LogIndex::ZERO);
        self.note(node, format!("start with {} entries, certified {certified}", self.nodes[node].memory.last()));
        self.invariants.delivery.restarted(node, certified);
        let standing = self.standing(node);
        let verdict = self.invariants.positions.restarted(node, standing);
        self.demand(verdict);
        self.turn(node);
    }

    /// Of the keys in a node's store.
    pub(crate) fn public_keys(&self, node: usize) -> Vec<PublicKey> {
        self.nodes[node].disk.keys.iter().map(|g| public(node, *g)).collect()
    }

    /// Cuts every link between the two sides.
    pub(crate) fn partition(&mut self, one: &[usize], other: &[usize]) {
        for &a in one {
            for &b in other {
                self.links.down.extend([(a, b), (b, a)]);
            }
        }
        self.note(one[0], format!("partition {one:?} | {other:?}"));
    }

    /// Cuts one node off.
    pub(crate) fn isolate(&mut self, node: usize) {
        let others: Vec<usize> = (0..self.size()).filter(|n| *n != node).collect();
        self.partition(&[node], &others);
    }

    /// Cuts one direction.
    pub(crate) fn mute(&mut self, from: usize, to: usize) {
        self.links.down.insert((from, to));
        self.note(from, format!("mute {from} -> {to}"));
    }

    pub(crate) fn heal(&mut self) {
        self.links.down.clear();
        self.note(0, "heal".into());
    }

    /// Drops every message for which this holds, until replaced.
    pub(crate) fn drop_if(&mut self, filter: impl Fn(usize, usize, &Message) -> bool + 'static) {
        self.filter = Some(Box::new(filter));
    }

    /// While stalled, no write completes.
    pub(crate) fn stall(&mut self, node: usize) {
        self.nodes[node].disk.stalled = true;
        self.note(node, "the disk stalls".into());
    }

    pub(crate) fn unstall(&mut self, node: usize) {
        if !self.nodes[node].disk.stalled {
            return;
        }
        self.note(node, "the disk goes on".into());
        let n = &mut self.nodes[node];
        n.disk.stalled = false;
        if let (Some(&(seq, _)), life) = (n.disk.pending.back(), n.life) {
            self.at(1, Event::Disk { node, life, seq });
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
