//! The effect executor: what a node's shell does, on the simulated disk, network and pool of signers.

use crate::invariants::{promises, tables};
use crate::members::{id_of, index_of, secret_of};
use crate::world::{Event, World};
use concordat::certificate::merkle::Frontier;
use concordat::certificate::{ElectionClaim, Entry, HeadCertificate, Policy};
use concordat::core::{Ballot, Crypto, Effect, Input, Message, Write};
use concordat::ids::{LogIndex, NodeId, ProposalId};
use std::sync::Arc;

/// Most bytes read back for a lagging peer at once.
const FETCH_BYTES: usize = 256 * 1024;

impl World {
    pub(crate) fn execute(&mut self, node: usize, effect: Effect) {
        match effect {
            Effect::Send { to, message } => self.send(node, &to, message),
            Effect::Persist { seq, write } => self.persist(node, seq, write),
            Effect::Crypto(job) => self.crypto(node, job),
            Effect::Fetch { peer, session, from, to } => self.fetch(node, peer, session, from, to),
            Effect::Commit { entries, index } => self.commit(node, entries, index),
            Effect::Certified(certificate) => self.certified(node, &certificate),
            Effect::Admitted { handle, admission } => self.admitted(node, handle, admission),
            Effect::Ask { ballot } => self.ask(node, ballot),
            Effect::Withdraw { id } => {
                self.nodes[node].asks.remove(&id);
            }
            Effect::Role { .. } => self.coverage.count("event", "role or leader changed"),
            Effect::Alarm(alarm) => {
                self.coverage.count("event", "alarm");
                self.nodes[node].alarms.push(alarm);
            }
            Effect::ReadReady { handle, index } => self.read_ready(node, handle, index),
            Effect::ReadRefused { handle } => self.read_refused(handle),
            Effect::Transferred { handle, outcome } => self.transferred(handle, outcome),
            Effect::Changed { handle, outcome } => self.changed(handle, outcome),
            Effect::FetchEpochs { peer, above } => self.fetch_epochs(node, peer, above),
            Effect::Membership { tables, ahead, leaving } => self.acquaint(node, &tables, &ahead, &leaving),
            Effect::InForce(table) => self.retire_keys(node, &table),
            Effect::Halt(why) => self.nodes[node].halted = Some(why),
        }
    }

    fn send(&mut self, from: usize, to: &NodeId, message: Message) {
        let n = &self.nodes[from];
        self.demand(promises::sends(from, to, &message, &n.memory, &n.disk));
        let to = index_of(to);
        if self.filter.as_ref().is_some_and(|f| f(from, to, &message)) {
            return;
        }
        self.transmit(from, to, |message| Event::Deliver { from, to, message }, message);
    }

    /// Puts one message on the wire.
    pub(crate) fn transmit<T: Clone>(&mut self, from: usize, to: usize, event: impl Fn(T) -> Event, message: T) {
        let fate = self.links.fate(&self.config.network, from, to, &mut self.rng);
        let seen = [
            (fate.cut, "message cut off by a partition"),
            (fate.lost, "message lost"),
            (fate.duplicated, "message duplicated"),
            (fate.straggled, "message delayed past others"),
        ];
        for (_, what) in seen.iter().filter(|s| s.0) {
            self.coverage.count("fault", what);
        }
        for delay in fate.arrivals {
            self.at(delay, event(message.clone()));
        }
    }

    fn persist(&mut self, node: usize, seq: u64, write: Write) {
        let committed = self.core(node).committed();
        self.nodes[node].memory.write(&write.entries);
        if !write.entries.is_empty() {
            self.rewritten(node, &write.entries, committed);
        }
        let took = self.rng.within(self.config.disk_us);
        let n = &mut self.nodes[node];
        if let Some(cast) = &write.cast {
            n.answered.insert(cast.request_key, cast.clone());
        }
        n.disk.pending.push_back((seq, write));
        let done = n.disk.busy_until.max(self.now) + took;
        n.disk.busy_until = done;
        let life = n.life;
        if !n.disk.stalled {
            self.at(done - self.now, Event::Disk { node, life, seq });
        }
    }

    fn rewritten(&mut self, node: usize, entries: &[Arc<Entry>], committed: LogIndex) {
        for entry in entries {
            let history = self.nodes[node].memory.at(entry.index()).expect("just written");
            let verdict = self.invariants.matching.appended(node, (entry.index(), entry.term()), history);
            self.demand(verdict);
        }
        // What this drain itself committed is looked at after it; before it, no committed entry may have gone.
        let known = committed.min(self.invariants.committed.ledger.last());
        self.demand(self.invariants.committed.rewritten(node, &self.nodes[node].memory, known));
    }

    fn crypto(&mut self, node: usize, job: Crypto) {
        let n = &self.nodes[node];
        match &job {
            Crypto::SignElection { claim, .. } => {
                self.demand(promises::signs_claim(node, claim, &n.disk));
                let verdict = self.invariants.votes.signs((node, n.disk.store), *claim);
                self.demand(verdict);
            }
            Crypto::SignHead { head, .. } => {
                self.demand(promises::signs_head(node, head, &n.memory, &n.disk));
                let verdict = self.invariants.certificates.signs(node, *head);
                self.demand(verdict);
            }
            Crypto::SignVote { id, statement, .. } => {
                let key = n.asks.get(id).map(|b| b.request.key()).expect("a vote is signed while it is wanted");
                self.demand(promises::signs_answer(node, n.disk.casts.get(&key), statement.granted));
            }
            _ => {}
        }
        if let Some(input) = n.executor.execute(job) {
            let (delay, life) = (self.rng.within(self.config.crypto_us), self.nodes[node].life);
            self.at(delay, Event::Input { node, life, input });
        }
    }

    fn fetch(&mut self, node: usize, peer: NodeId, session: u64, from: LogIndex, to: LogIndex) {
        self.coverage.count("event", "entries read back for a lagging peer");
        let log = &self.nodes[node].disk.log;
        let mut bytes = 0;
        let entries: Vec<Arc<Entry>> = log
            .links()
            .iter()
            .map(|l| &l.entry)
            .skip_while(|e| e.index() < from)
            .take_while(|e| {
                let first = bytes == 0;
                bytes += e.body.payload.len() + 1;
                e.index() <= to && (first || bytes <= FETCH_BYTES)
            })
            .cloned()
            .collect();
        assert!(!entries.is_empty(), "what is no longer in memory is on the disk");
        let prev_term = log.term_at(from.prev());
        let mut tree = Frontier::default();
        log.links().iter().take_while(|l| l.entry.index() < from).for_each(|l| tree.push(l.entry.header.leaf_hash()));
        let prev_root = self.rng.chance(500).then(|| tree.root());
        let (delay, life) = (self.rng.within(self.config.disk_us), self.nodes[node].life);
        let input = Input::Fetched { peer, session, prev_term, prev_root, entries };
        self.at(delay, Event::Input { node, life, input });
    }

    fn commit(&mut self, node: usize, entries: Vec<Arc<Entry>>, index: LogIndex) {
        // The core calls committed what it delivers, so the ledger must know it before the delivery is compared.
        self.commits(node, self.core(node).committed());
        let ledger = &self.invariants.committed.ledger;
        let verdict = self.invariants.delivery.delivers(node, &entries, index, ledger);
        self.demand(verdict);
        self.nodes[node].delivered = index;
        let (delay, life) = (self.rng.within(self.config.apply_us), self.nodes[node].life);
        self.at(delay, Event::Apply { node, life, entries });
    }

    pub(crate) fn apply(&mut self, node: usize, entries: &[Arc<Entry>]) {
        let n = &mut self.nodes[node];
        // Deliveries carry their own delays; one that comes early waits for its predecessors by applying them first.
        let Some(last) = entries.last().map(|e| e.index()) else { return };
        while n.machine.applied < last {
            let next = n.memory.get(n.machine.applied.next()).expect("delivered entries are in the log").entry.clone();
            n.machine.apply(&next);
        }
        let index = n.machine.applied;
        self.input(node, Input::Applied { index });
    }

    fn certified(&mut self, node: usize, certificate: &Arc<HeadCertificate>) {
        let index = LogIndex(certificate.head.size);
        self.commits(node, self.core(node).committed());
        let tables = tables::in_force(&self.genesis_table, &self.invariants.committed.ledger, index);
        self.demand(tables::quorate("head", &certificate.halves, &self.genesis_id, &tables));
        let (n, root) = (&self.nodes[node], self.core(node).root_at(index));
        let ledger = &self.invariants.committed.ledger;
        let verdict = self.invariants.certificates.certified(node, certificate.head, root, &n.memory, ledger);
        self.demand(verdict);
        self.coverage.count("event", "certificate taken over");
    }

    fn ask(&mut self, node: usize, ballot: Arc<Ballot>) {
        let id = ballot.id;
        let granted = match self.policy(node) {
            Policy::Auto => Some(true),
            // The simulator's rule: by what the payload begins with.
            Policy::Rules => match ballot.payload.first() {
                Some(b'-') => Some(false),
                Some(b'?') => None,
                _ => Some(true),
            },
            Policy::Manual => None,
        };
        self.nodes[node].asks.insert(id, ballot);
        if let Some(granted) = granted {
            self.answer_later(node, id, granted);
        } else if let Some(on_record) = self.on_record(node, id) {
            self.answer_later(node, id, on_record);
        }
    }

    fn on_record(&self, node: usize, id: ProposalId) -> Option<bool> {
        let n = &self.nodes[node];
        let key = n.asks.get(&id)?.request.key();
        n.answered.get(&key).or_else(|| n.disk.casts.get(&key)).map(|c| c.granted)
    }

    /// Gives a member's answer; an earlier one on record stands.
    pub(crate) fn answer(&mut self, node: usize, id: ProposalId, granted: bool) {
        let earlier = self.on_record(node, id);
        self.input(node, Input::Decide { id, granted: earlier.unwrap_or(granted), on_record: earlier.is_some() });
    }

    fn answer_later(&mut self, node: usize, id: ProposalId, granted: bool) {
        let (delay, life) = (self.rng.within(self.config.apply_us), self.nodes[node].life);
        self.at(delay, Event::Answer { node, life, id, granted });
    }

    /// The question for a node's vote, as a candidate with the genesis table puts it.
    pub(crate) fn vote_wanted(&self, node: usize, claim: ElectionClaim) -> Message {
        let under = self.genesis.in_force().signed_for(&self.genesis.id());
        Message::RequestVote { claim, under: vec![(under, secret_of(node).public())], transfer: false }
    }

    /// Lets a message arrive that nobody sent (or that was sent long ago).
    pub(crate) fn inject(&mut self, from: usize, to: usize, message: Message) {
        debug_assert_ne!(id_of(from), id_of(to));
        self.input(to, Input::Receive { from: id_of(from), message });
    }
}
