//! One node: the real core, and around it the least shell that is honest. Whatever a node does depends on its own state
//! and on the event alone.

use crate::crypto::Pool;
use crate::history::{Fact, Rule};
use crate::log::Log;
use crate::members::{id_of, index_of, secret_of};
use crate::scopes::Scope;
use concordat::certificate::merkle::Frontier;
use concordat::certificate::{EpochChain, Genesis, HeadCertificate, MemberTable, PublicKey, Request};
use concordat::core::{
    AppendResult, CastVote, Change, Core, Crypto, Effect, HardState, Input, Message, Now, Options, Restored, Role,
    Submission, Write,
};
use concordat::ids::{Digest, LogIndex};
use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

/// The election timeout, and every other interval of the core: see `README.md`, "Time".
const TIMEOUT_MS: u64 = 100;
/// Every wall clock shows this for ever, so that entries do not differ by when they were proposed.
const WALL: u64 = 1_000;

/// What the disk holds, and what is on its way there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Disk {
    pub(crate) hard: HardState,
    pub(crate) log: Log,
    pub(crate) certificate: Option<Arc<HeadCertificate>>,
    casts: BTreeMap<Digest, CastVote>,
    pub(crate) pending: VecDeque<(u64, Write)>,
}

impl Disk {
    /// The oldest write under way becomes durable; tells its number.
    fn complete(&mut self) -> Option<u64> {
        let (seq, write) = self.pending.pop_front()?;
        if let Some(hard) = write.hard {
            self.hard = hard;
        }
        self.log.write(&write.entries);
        if let Some(cast) = write.cast {
            self.casts.insert(cast.request_key, cast);
        }
        if write.certificate.is_some() {
            self.certificate = write.certificate;
        }
        Some(seq)
    }
}

/// A message on its way.
#[derive(PartialEq, Eq)]
pub(crate) struct Letter {
    pub(crate) from: usize,
    pub(crate) to: usize,
    pub(crate) message: Message,
    pub(crate) digest: u64,
}

impl Letter {
    fn new(from: usize, to: usize, message: Message) -> Self {
        let digest = digest_of(&(from, to, &message));
        Self { from, to, message, digest }
    }
}

impl fmt::Debug for Letter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "n{}→n{} ", self.from, self.to)?;
        match &self.message {
            Message::Append { term, session, prev_index, prev_term, entries, commit, sign_point, .. } => {
                let entries: Vec<_> = entries.iter().map(|e| (e.index().0, e.term().0, e.header.kind)).collect();
                write!(f, "Append term {term} session {session} after ({prev_index}, {prev_term}) +{entries:?} ")?;
                write!(f, "commit {commit} sign {sign_point}")
            }
            Message::RequestVote { claim, .. } => {
                write!(f, "RequestVote term {} last ({}, {})", claim.term, claim.last_size, claim.last_term)
            }
            Message::RequestVoteReply { term, granted, .. } => write!(f, "RequestVoteReply term {term} {granted}"),
            Message::Heartbeat { term, commit, sign_point, .. } => {
                write!(f, "Heartbeat term {term} commit {commit} sign {sign_point}")
            }
            Message::HeadShare { head, .. } => write!(f, "HeadShare {} of term {}", head.size, head.term),
            Message::Certificate(c) => write!(f, "Certificate {} of term {}", c.head.size, c.head.term),
            Message::Ballot { term, .. } => write!(f, "Ballot term {term}"),
            Message::Vote { term, .. } => write!(f, "Vote term {term}"),
            Message::Epochs { chain, in_flight, .. } => {
                write!(f, "Epochs {} steps, {} in flight", chain.steps.len(), in_flight.len())
            }
            other => write!(f, "{other:?}"),
        }
    }
}

pub(crate) fn digest_of(what: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    what.hash(&mut hasher);
    hasher.finish()
}

/// What may happen to a node.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Event {
    Receive(Arc<Letter>),
    /// The oldest write is durable.
    Persisted,
    /// The outstanding job of this digest is done.
    Done(u64),
    /// Its own clock reaches its own deadline.
    Timeout,
    /// Power loss: what was on its way to the disk is lost, and the node comes up from what the disk holds.
    Restart,
    /// A client's proposal, by number.
    Submit(u8),
    /// The members are to be these.
    Change(Arc<MemberTable>),
}

impl Event {
    pub(crate) fn digest(&self) -> u64 {
        match self {
            Self::Receive(letter) => letter.digest,
            Self::Persisted => 1,
            Self::Done(job) => *job ^ 2,
            Self::Timeout => 3,
            Self::Restart => 4,
            Self::Submit(number) => 0x100 + u64::from(*number),
            Self::Change(table) => digest_of(&(5, table)),
        }
    }
}

/// What never changes in a scope.
pub(crate) struct World {
    pub(crate) genesis: Genesis,
    executors: Vec<(Pool, PublicKey)>,
    /// Whether a job of the crypto pool takes its time (or else completes within the step that asked for it).
    slow: fn(&Crypto) -> bool,
    /// Messages that the network always loses.
    muted: fn(&Message) -> bool,
    /// Whether a node asks before it stands.
    pre_votes: bool,
}

impl World {
    pub(crate) fn new(scope: &Scope) -> Self {
        let Scope { slow, muted, pre_votes, .. } = *scope;
        let genesis = scope.genesis();
        let count = genesis.table.members().len();
        let executors = (0..count).map(|i| (Pool::new(i, &[0], false), secret_of(i).public())).collect();
        Self { genesis, executors, slow, muted, pre_votes }
    }

    pub(crate) fn size(&self) -> usize {
        self.executors.len()
    }
}

/// What a step leads to.
pub(crate) struct Outcome {
    pub(crate) node: Node,
    pub(crate) letters: Vec<Letter>,
    pub(crate) facts: Vec<Fact>,
}

#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) index: usize,
    pub(crate) core: Core,
    pub(crate) disk: Disk,
    /// The disk's log as it will be once everything under way is durable.
    pub(crate) memory: Log,
    /// The state machine: up to where the log was applied, and the root there.
    pub(crate) applied: (LogIndex, Digest),
    /// Crypto jobs under way.
    pub(crate) jobs: Vec<(u64, Crypto)>,
    /// This node's monotonic clock: it moves by its own timeouts only.
    clock: u64,
}

impl Hash for Node {
    fn hash<H: Hasher>(&self, state: &mut H) {
        // `memory` is the disk's log with what is pending, and the index is in the core.
        (&self.core, &self.disk, self.applied, self.clock).hash(state);
        self.jobs.iter().for_each(|j| j.0.hash(state));
    }
}

impl Node {
    /// A node with an empty disk.
    pub(crate) fn new(index: usize, world: &World) -> Self {
        Self::start(index, Disk::default(), world)
    }

    fn start(index: usize, disk: Disk, world: &World) -> Self {
        let options = Options {
            // A range of one value draws nothing: the core's random state stays out of the state space.
            election_timeout_ms: (TIMEOUT_MS, TIMEOUT_MS),
            heartbeat_ms: TIMEOUT_MS,
            // The wall clocks agree by construction; they stand still while the monotonic ones move.
            max_clock_difference_ms: u64::MAX >> 2,
            ..Options::default()
        };
        let restored = Restored {
            hard: disk.hard.clone(),
            certificate: disk.certificate.clone(),
            compacted: LogIndex::ZERO,
            frontier: Frontier::default(),
            terms: Vec::new(),
            last_proposed_at: 0,
            tail: disk.log.entries().cloned().collect(),
            epochs: Vec::new(),
            keys: vec![world.executors[index].1],
        };
        // A production node comes up with everything certified applied.
        let certified = LogIndex(disk.certificate.as_ref().map_or(0, |c| c.head.size));
        let applied = (certified, disk.log.root_at(certified).unwrap_or(Digest::ZERO));
        let mut core = Core::new(id_of(index), &world.genesis, restored, options, Now { mono: 0, wall: WALL });
        // Only tells the shell whom to connect to.
        core.drain();
        Self { index, core, memory: disk.log.clone(), disk, applied, jobs: Vec::new(), clock: 0 }
    }

    pub(crate) fn leads(&self) -> bool {
        self.core.role() == Role::Leader
    }

    /// What an event does to this node.
    pub(crate) fn after(&self, event: &Event, world: &World) -> Outcome {
        let mut run =
            Run { node: self.clone(), world, inputs: VecDeque::new(), letters: Vec::new(), facts: Vec::new() };
        if catch_unwind(AssertUnwindSafe(|| run.take(event))).is_err() {
            // The core may be half way through; what follows on a broken rule is of no interest.
            run.node = self.clone();
            run.facts.push(Fact::Broken(Rule::Assertion));
        }
        if !matches!(event, Event::Restart) {
            run.facts.extend(regress(self, &run.node));
        }
        if run.node.leads() {
            run.facts.push(Fact::Leads(run.node.core.term()));
        }
        Outcome { node: run.node, letters: run.letters, facts: run.facts }
    }
}

/// Within a life nothing goes back.
fn regress(before: &Node, after: &Node) -> Option<Fact> {
    let at = |n: &Node| {
        let certified = n.core.certificate().map_or(0, |c| c.head.size);
        [n.core.term().0, n.core.committed().0, n.applied.0.0, certified]
    };
    at(before).iter().zip(at(after)).any(|(b, a)| a < *b).then_some(Fact::Broken(Rule::Regress))
}

/// One event, with everything that completes within it.
struct Run<'a> {
    node: Node,
    world: &'a World,
    inputs: VecDeque<Input>,
    letters: Vec<Letter>,
    facts: Vec<Fact>,
}

impl Run<'_> {
    fn take(&mut self, event: &Event) {
        match event {
            Event::Receive(letter) => {
                let (from, message) = (id_of(letter.from), letter.message.clone());
                self.inputs.push_back(Input::Receive { from, message });
            }
            Event::Persisted => {
                let seq = self.node.disk.complete();
                self.inputs.extend(seq.map(|seq| Input::Persisted { seq }));
            }
            Event::Done(job) => {
                let at = self.node.jobs.iter().position(|j| j.0 == *job).expect("under way");
                let (_, job) = self.node.jobs.remove(at);
                self.crypto(job);
            }
            Event::Timeout => {
                self.node.clock = self.node.core.deadline().max(self.node.clock);
                self.inputs.push_back(Input::Tick);
                if !self.world.pre_votes {
                    self.encourage();
                }
            }
            Event::Restart => {
                let disk = Disk { pending: VecDeque::new(), ..self.node.disk.clone() };
                self.node = Node::start(self.node.index, disk, self.world);
            }
            Event::Submit(number) => {
                let submission = self.submission(*number);
                self.inputs.push_back(Input::Submit { handle: 0, submission });
            }
            Event::Change(table) => {
                let (base, table) = (self.node.core.in_force().epoch, (**table).clone());
                let change = Change { base, table, salt: [7; 16], ttl_ms: 10_000 };
                self.inputs.push_back(Input::Change { handle: 0, change });
            }
        }
        while let Some(input) = self.inputs.pop_front() {
            self.node.core.step(Now { mono: self.node.clock, wall: WALL }, input);
            for effect in self.node.core.drain() {
                self.execute(effect);
            }
        }
        let asks = |m: &Message| matches!(m, Message::PreVote { .. });
        self.letters.retain(|l| !(self.world.muted)(&l.message) && (self.world.pre_votes || !asks(&l.message)));
    }

    /// Everybody would vote for it. Whether that is true decides nothing that safety may rest on.
    fn encourage(&mut self) {
        let voters = self.node.core.tables().voters().into_iter().filter(|v| *v != id_of(self.node.index));
        let term = self.node.core.term().next();
        let reply = |from| Input::Receive { from, message: Message::PreVoteReply { term, granted: true, wall: WALL } };
        self.inputs.extend(voters.map(reply));
    }

    fn submission(&self, number: u8) -> Submission {
        let name = format!("p{number}");
        Submission {
            origin: id_of(self.node.index),
            request: Request { client: "model".into(), request_id: name.clone(), deadline_ms: WALL + 60_000 },
            salt: [number; 16],
            payload: name.into_bytes(),
            required_quorum: None,
            ttl_ms: 60_000,
        }
    }

    fn execute(&mut self, effect: Effect) {
        match effect {
            Effect::Send { to, message } => {
                if !keeps_promises(&self.node, index_of(&to), &message) {
                    self.facts.push(Fact::Broken(Rule::Promise));
                }
                self.letters.push(Letter::new(self.node.index, index_of(&to), message));
            }
            Effect::Persist { seq, write } => {
                self.node.memory.write(&write.entries);
                let disk = &mut self.node.disk;
                let alone = write.hard.is_none() && write.entries.is_empty() && write.cast.is_none();
                disk.pending.push_back((seq, write));
                // A certificate that a crash takes is as good as one that did not come in: nothing rests on it.
                if alone && disk.pending.len() == 1 {
                    self.inputs.extend(disk.complete().map(|seq| Input::Persisted { seq }));
                }
            }
            Effect::Crypto(job) if (self.world.slow)(&job) => {
                let digest = digest_of(&job);
                self.node.jobs.push((digest, job));
                self.node.jobs.sort_by_key(|j| j.0);
            }
            Effect::Crypto(job) => self.crypto(job),
            Effect::Commit { entries, index } => self.apply(&entries, index),
            Effect::Ask { ballot } => {
                let on_record = self.node.disk.casts.contains_key(&ballot.request.key());
                self.inputs.push_back(Input::Decide { id: ballot.id, granted: true, on_record });
            }
            // A shell may have nothing to tell at the moment; who asked asks again.
            Effect::FetchEpochs { peer, .. } => {
                self.inputs.push_back(Input::EpochsFetched { peer, chain: EpochChain::default() });
            }
            Effect::Fetch { .. } => unreachable!("logs are far shorter than the window"),
            Effect::Marked { .. }
            | Effect::FetchChunk { .. }
            | Effect::StageSnapshot { .. }
            | Effect::StoreChunk { .. }
            | Effect::CompleteSnapshot { .. }
            | Effect::AbandonSnapshot { .. }
            | Effect::Restore { .. } => unreachable!("no scope marks a snapshot"),
            Effect::Halt(_) | Effect::Alarm(_) => self.facts.push(Fact::Broken(Rule::Assertion)),
            Effect::Certified(_)
            | Effect::Admitted { .. }
            | Effect::Withdraw { .. }
            | Effect::ReadReady { .. }
            | Effect::ReadRefused { .. }
            | Effect::Transferred { .. }
            | Effect::Changed { .. }
            | Effect::Membership { .. }
            | Effect::InForce(_)
            | Effect::Role { .. } => {}
        }
    }

    fn crypto(&mut self, job: Crypto) {
        match &job {
            Crypto::SignElection { claim, .. }
                if self.node.disk.hard.vote != Some(*claim) && self.node.disk.hard.term <= claim.term =>
            {
                self.facts.push(Fact::Broken(Rule::Promise));
            }
            Crypto::CertifyHead { head, .. } => self.facts.push(Fact::Certifies(*head)),
            _ => {}
        }
        let signs = matches!(job, Crypto::SignElection { .. });
        let executor = &self.world.executors[self.node.index].0;
        let Some(input) = executor.execute(job) else { return };
        if let (true, Input::VoteSigned { claim, .. }) = (signs, &input) {
            self.facts.push(Fact::Signs(*claim));
        }
        self.inputs.push_back(input);
    }

    /// The state machine: it takes what it is given, in order, at once.
    fn apply(&mut self, entries: &[Arc<concordat::certificate::Entry>], index: LogIndex) {
        let node = &mut self.node;
        let consecutive = entries.iter().zip(node.applied.0.0 + 1..).all(|(e, i)| e.index().0 == i);
        let root = node.memory.root_at(index);
        let same = entries.iter().all(|e| node.memory.entries().any(|m| m == e));
        if !consecutive || !same || entries.last().map(|e| e.index()) != Some(index) {
            self.facts.push(Fact::Broken(Rule::Regress));
        }
        node.applied = (index, root.unwrap_or(Digest::ZERO));
        self.inputs.push_back(Input::Applied { index });
    }
}

/// Whether what a message promises is on the disk of who sends it.
pub(crate) fn keeps_promises(node: &Node, to: usize, message: &Message) -> bool {
    let disk = &node.disk;
    match message {
        Message::AppendReply { term, result, .. } => {
            let holds = |upto: &LogIndex| {
                disk.log.root_at(*upto).is_some() && disk.log.root_at(*upto) == node.memory.root_at(*upto)
            };
            disk.hard.term >= *term && !matches!(result, AppendResult::Durable(upto) if !holds(upto))
        }
        Message::HeartbeatReply { term, .. } | Message::RequestVoteReply { term, granted: false, .. } => {
            disk.hard.term >= *term
        }
        Message::RequestVote { claim, .. } => disk.hard.vote == Some(*claim),
        Message::RequestVoteReply { term, granted: true, .. } => {
            disk.hard.vote.is_some_and(|v| v.term == *term && v.candidate == id_of(to))
        }
        Message::HeadShare { head, .. } => {
            let index = LogIndex(head.size);
            disk.log.root_at(index) == Some(head.root)
                && disk.log.term_at(index) == Some(head.term)
                && disk.hard.term == head.term
        }
        _ => true,
    }
}

#[test]
fn a_position_that_goes_back_within_a_life_is_caught() {
    let world = World::new(&crate::scopes::gate()[0]);
    let before = Node::new(0, &world);
    assert_eq!(regress(&before, &before), None);
    let ahead = Node { applied: (LogIndex(1), Digest::ZERO), ..before.clone() };
    assert_eq!(regress(&before, &ahead), None);
    assert_eq!(regress(&ahead, &before), Some(Fact::Broken(Rule::Regress)));
}
