//! The cluster as stateright sees it: nodes, messages on their way, what is left of each bound, and the history.

use crate::history::{History, Witness};
use crate::moot::{is_answer, is_moot, only_tells_clocks};
use crate::node::{Event, Letter, Node, Outcome, World};
use crate::properties;
use crate::scopes::Scope;
use stateright::{Model, Property};
use std::collections::HashMap;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::{Arc, Mutex};

/// A node with its digest, which stands for it in the fingerprints of states.
#[derive(Clone)]
pub(crate) struct Known {
    pub(crate) node: Arc<Node>,
    pub(crate) digest: u64,
}

impl Known {
    pub(crate) fn new(node: Node) -> Self {
        let digest = crate::node::digest_of(&node);
        Self { node: Arc::new(node), digest }
    }
}

/// How often each thing that nobody must do may still happen.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Left {
    /// Election timeouts, by node.
    pub(crate) elections: Vec<u8>,
    /// Heartbeats (and checks for a quorum in contact), by node, while it leads.
    pub(crate) beats: Vec<u8>,
    /// Power losses, by node.
    pub(crate) crashes: Vec<u8>,
    /// Power losses of all nodes together.
    pub(crate) crashes_in_all: u8,
    /// Messages that arrive twice.
    pub(crate) repeats: u8,
    /// Proposals.
    pub(crate) proposals: u8,
    /// Membership changes (to the scope's next table).
    pub(crate) changes: u8,
}

#[derive(Clone)]
pub(crate) struct State {
    pub(crate) nodes: Vec<Known>,
    /// On its way, by digest: a set, for any of them may be lost, overtaken or (within a bound) repeated.
    pub(crate) mail: Vec<Arc<Letter>>,
    pub(crate) left: Left,
    pub(crate) history: Arc<History>,
    /// How often each node came back from a crash.
    pub(crate) lives: Vec<u8>,
}

impl Hash for State {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.nodes.iter().for_each(|n| n.digest.hash(state));
        self.mail.len().hash(state);
        self.mail.iter().for_each(|l| l.digest.hash(state));
        (&self.left, &self.history, &self.lives).hash(state);
    }
}

impl PartialEq for State {
    fn eq(&self, other: &Self) -> bool {
        self.nodes.iter().map(|n| n.digest).eq(other.nodes.iter().map(|n| n.digest))
            && self.mail == other.mail
            && (&self.left, &self.history, &self.lives) == (&other.left, &other.history, &other.lives)
    }
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Known { node, .. } in &self.nodes {
            let core = &node.core;
            let terms: Vec<u64> = node.memory.entries().map(|e| e.term().0).collect();
            writeln!(
                f,
                "n{}: {:?} term {} log {terms:?} durable {} committed {} certified {} joint {} disk (term {}, {} entries) writing {}",
                node.index,
                core.role(),
                core.term(),
                core.durable(),
                core.committed(),
                core.certificate().map_or(0, |c| c.head.size),
                core.tables().is_joint(),
                node.disk.hard.term,
                node.disk.log.last(),
                node.disk.pending.len(),
            )?;
        }
        writeln!(f, "on their way: {:?}", self.mail)?;
        writeln!(f, "{:?}; broken {:?}", self.left, self.history.broken)
    }
}

#[derive(Clone, PartialEq)]
pub(crate) struct Action {
    pub(crate) node: usize,
    pub(crate) event: Event,
    /// The message stays on its way, to arrive once more.
    pub(crate) repeat: bool,
}

impl fmt::Debug for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.event {
            Event::Receive(letter) => write!(f, "{letter:?}{}", if self.repeat { " (and again)" } else { "" }),
            Event::Change(_) => write!(f, "n{} Change", self.node),
            event => write!(f, "n{} {event:?}", self.node),
        }
    }
}

/// An outcome, shared by every state in which the same happens to the same node.
pub(crate) struct Step {
    known: Known,
    letters: Vec<Arc<Letter>>,
    facts: Vec<crate::history::Fact>,
}

const SHARDS: usize = 64;
type Memo<K, V> = Vec<Mutex<HashMap<K, V>>>;

fn memo<K, V>() -> Memo<K, V> {
    (0..SHARDS).map(|_| Mutex::new(HashMap::new())).collect()
}

pub(crate) struct Cluster {
    pub(crate) scope: Scope,
    pub(crate) world: World,
    start: State,
    /// What each event does to each node; both by digest. A node is a pure function of its state and the event, so a
    /// step is taken once however many states it is part of.
    steps: Memo<(u64, u64), Arc<Step>>,
    /// One copy of each node.
    nodes: Memo<u64, Arc<Node>>,
}

fn shard(digest: u64) -> usize {
    usize::try_from(digest % SHARDS as u64).expect("few shards")
}

impl Cluster {
    pub(crate) fn new(scope: Scope) -> Self {
        let world = World::new(&scope);
        let size = world.size();
        let start = State {
            nodes: (0..size).map(|i| Known::new(Node::new(i, &world))).collect(),
            mail: Vec::new(),
            left: Left::default(),
            history: Arc::default(),
            lives: vec![0; size],
        };
        let mut cluster = Self { scope, world, start, steps: memo(), nodes: memo() };
        let mut start = (cluster.scope.opening)(&cluster, cluster.start.clone());
        start.left = cluster.scope.left.clone();
        start.lives = vec![0; size];
        cluster.start = start;
        cluster
    }

    pub(crate) fn start(&self) -> &State {
        &self.start
    }

    /// Distinct states of single nodes, and distinct steps, seen so far.
    pub(crate) fn seen(&self) -> (usize, usize) {
        let nodes = self.nodes.iter().map(|s| s.lock().expect("no panic under the lock").len()).sum();
        let steps = self.steps.iter().map(|s| s.lock().expect("no panic under the lock").len()).sum();
        (nodes, steps)
    }

    fn step(&self, known: &Known, event: &Event) -> Arc<Step> {
        let key = (known.digest, event.digest());
        let shelf = &self.steps[shard(key.0 ^ key.1)];
        if let Some(step) = shelf.lock().expect("no panic under the lock").get(&key) {
            return step.clone();
        }
        let Outcome { node, letters, facts } = known.node.after(event, &self.world);
        let fresh = Known::new(node);
        let mut shelf_of_nodes = self.nodes[shard(fresh.digest)].lock().expect("no panic under the lock");
        let node = shelf_of_nodes.entry(fresh.digest).or_insert_with(|| fresh.node.clone()).clone();
        drop(shelf_of_nodes);
        let known = Known { node, digest: fresh.digest };
        let step = Arc::new(Step { known, letters: letters.into_iter().map(Arc::new).collect(), facts });
        shelf.lock().expect("no panic under the lock").insert(key, step.clone());
        step
    }

    /// The state after an action; `None` when it changes nothing.
    pub(crate) fn after(&self, state: &State, action: &Action) -> Option<State> {
        let Action { node, event, repeat } = action;
        let step = self.step(&state.nodes[*node], event);
        let idle = step.known.digest == state.nodes[*node].digest && step.letters.is_empty() && step.facts.is_empty();
        if idle {
            // A message that does nothing now may do something later, so it stays; that it is lost instead is the same
            // as that it never arrives.
            return None;
        }
        let mut next = state.clone();
        next.nodes[*node] = step.known.clone();
        spend(&mut next, action, state);
        if let (Event::Receive(letter), false) = (event, *repeat) {
            self.take_out(&mut next.mail, letter);
        }
        step.letters.iter().for_each(|l| self.put_in(&mut next.mail, l));
        self.drop_moot(&mut next, *node, &step.letters);
        self.take_down(&mut next, *node, &step);
        Some(next)
    }

    /// A message arrives. On ordered links those that it overtakes are lost.
    fn take_out(&self, mail: &mut Vec<Arc<Letter>>, letter: &Arc<Letter>) {
        let at = mail.iter().position(|l| l.digest == letter.digest).expect("on its way");
        let link = |l: &Letter| (l.from, l.to) == (letter.from, letter.to);
        let first = if self.scope.ordered { mail.iter().position(|l| link(l)).unwrap_or(at) } else { at };
        mail.drain(first..=at);
    }

    /// A message is sent; a copy of one that is on its way adds nothing.
    fn put_in(&self, mail: &mut Vec<Arc<Letter>>, letter: &Arc<Letter>) {
        if mail.iter().any(|l| l.digest == letter.digest) {
            return;
        }
        let place = |l: &Letter| (l.from, l.to, if self.scope.ordered { 0 } else { l.digest });
        let at = mail.partition_point(|l| place(l) <= place(letter));
        mail.insert(at, letter.clone());
    }

    /// Messages that can never do anything again do not tell two states apart.
    fn drop_moot(&self, state: &mut State, changed: usize, fresh: &[Arc<Letter>]) {
        let nodes = &state.nodes;
        state.mail.retain(|letter| {
            if letter.to != changed && !fresh.iter().any(|l| l.digest == letter.digest) {
                return true;
            }
            let receiver = &nodes[letter.to];
            let idle = || {
                let step = self.step(receiver, &Event::Receive(letter.clone()));
                step.letters.is_empty() && (step.known.digest == receiver.digest || only_tells_clocks(&letter.message))
            };
            if is_moot(&letter.message, &receiver.node) {
                assert!(idle(), "{letter:?} is not moot to {:?}", receiver.node.core);
                return false;
            }
            !(is_answer(&letter.message) && idle())
        });
    }

    fn take_down(&self, state: &mut State, node: usize, step: &Step) {
        let committed = step.known.node.core.committed();
        if step.facts.is_empty() && committed <= state.history.known() {
            return;
        }
        let genesis = &self.world.genesis.table;
        let disks: Vec<_> = state.nodes.iter().map(|n| &n.node.disk.log).collect();
        let (memory, term) = (&step.known.node.memory, step.known.node.core.term());
        let witness = Witness { memory, committed, term };
        let mut history = (*state.history).clone();
        step.facts.iter().for_each(|f| history.note(node, f, &witness, &disks, genesis));
        history.commits(&witness, &disks, genesis);
        if history != *state.history {
            state.history = Arc::new(history);
        }
    }

    /// Takes one action of an opening.
    pub(crate) fn force(&self, state: &State, node: usize, event: Event) -> State {
        let action = Action { node, event, repeat: false };
        let mut plenty = state.clone();
        plenty.left = Left::plenty(state.nodes.len());
        self.after(&plenty, &action).unwrap_or(plenty)
    }

    /// Lets everything arrive and complete, in one fixed order, until nothing is left to do or `enough` holds.
    pub(crate) fn settle(&self, mut state: State, enough: impl Fn(&State) -> bool) -> State {
        loop {
            let mut actions = Vec::new();
            work(&state, &mut actions);
            let next = actions.into_iter().find_map(|a| self.after(&state, &a));
            match next {
                Some(next) if !enough(&state) => state = next,
                _ => return state,
            }
        }
    }
}

impl Left {
    fn plenty(size: usize) -> Self {
        let all = vec![9; size];
        let (beats, crashes) = (all.clone(), all.clone());
        Self { elections: all, beats, crashes, crashes_in_all: 9, repeats: 9, proposals: 9, changes: 9 }
    }
}

fn spend(next: &mut State, action: &Action, before: &State) {
    let (left, node) = (&mut next.left, action.node);
    match &action.event {
        Event::Timeout if before.nodes[node].node.leads() => left.beats[node] -= 1,
        Event::Timeout => left.elections[node] -= 1,
        Event::Restart => {
            left.crashes[node] -= 1;
            left.crashes_in_all -= 1;
            next.lives[node] += 1;
        }
        Event::Receive(_) if action.repeat => left.repeats -= 1,
        Event::Submit(_) => left.proposals -= 1,
        Event::Change(_) => left.changes -= 1,
        Event::Receive(_) | Event::Persisted | Event::Done(_) => {}
    }
}

/// What is under way: arrivals, and completions of writes and of crypto jobs.
fn work(state: &State, actions: &mut Vec<Action>) {
    for Known { node, .. } in &state.nodes {
        if !node.disk.pending.is_empty() {
            actions.push(Action { node: node.index, event: Event::Persisted, repeat: false });
        }
        let done = node.jobs.iter().map(|j| Event::Done(j.0));
        actions.extend(done.map(|event| Action { node: node.index, event, repeat: false }));
    }
    let receive = |l: &Arc<Letter>| Action { node: l.to, event: Event::Receive(l.clone()), repeat: false };
    actions.extend(state.mail.iter().map(receive));
}

/// What nobody must do.
fn whims(state: &State, scope: &Scope, actions: &mut Vec<Action>) {
    let left = &state.left;
    for Known { node, .. } in &state.nodes {
        let i = node.index;
        let mut may = |event| actions.push(Action { node: i, event, repeat: false });
        if (if node.leads() { left.beats[i] } else { left.elections[i] }) > 0 {
            may(Event::Timeout);
        }
        if left.crashes[i] > 0 && left.crashes_in_all > 0 {
            may(Event::Restart);
        }
        if node.leads() && left.proposals > 0 {
            may(Event::Submit(left.proposals));
        }
        if node.leads() && left.changes > 0 {
            may(Event::Change(scope.next_table()));
        }
    }
    if left.repeats > 0 {
        let again = |l: &Arc<Letter>| Action { node: l.to, event: Event::Receive(l.clone()), repeat: true };
        actions.extend(state.mail.iter().map(again));
    }
}

impl Model for Cluster {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![self.start.clone()]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        // Behind a broken rule there is nothing more to learn.
        if state.history.broken.is_empty() {
            work(state, actions);
            whims(state, &self.scope, actions);
        }
    }

    fn next_state(&self, state: &State, action: Action) -> Option<State> {
        self.after(state, &action)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        properties::all(&self.scope)
    }
}
