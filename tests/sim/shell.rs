//! Around a node's executor: every call that reaches it, and what it asks of its devices, seen to on the simulated disk,
//! network and pool of signers. Each effect is checked in its place, before anything comes of it.

use crate::devices::{Asked, SimDevices};
use crate::disk::Rot;
use crate::invariants::{demand, promises, tables};
use crate::members::{id_of, index_of, secret_of};
use crate::trace::input_name;
use crate::world::{Event, World};
use concordat::certificate::merkle::Frontier;
use concordat::certificate::{ElectionClaim, Entry, HeadCertificate, Kind, MemberTable};
use concordat::core::{Ballot, Crypto, Effect, Input, Message, Write, content};
use concordat::ids::{LogIndex, NodeId, ProposalId};
use concordat::node::executor::{self, Executor, Looked, Lookup, Mail, Records, Subject};
use concordat::wire::Frame;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot::{self, error::TryRecvError};

/// Most bytes read back for a lagging peer at once.
const FETCH_BYTES: usize = 256 * 1024;

/// How a payload that sets a config key begins.
const SETS: &[u8] = b"{\"op\":\"set_config\"";

/// Answers that nodes owe, with what each is about.
pub(crate) type Waiting<K, T> = Vec<(K, oneshot::Receiver<T>)>;

/// Takes what has been answered out of those who wait.
fn answered<K: Clone, T>(waiting: &mut Waiting<K, T>) -> Vec<(K, T)> {
    let mut answers = Vec::new();
    waiting.retain_mut(|(about, answer)| match answer.try_recv() {
        Ok(answer) => {
            answers.push((about.clone(), answer));
            false
        }
        Err(TryRecvError::Empty) => true,
        Err(TryRecvError::Closed) => panic!("a running node forgot somebody who waits for an answer"),
    });
    answers
}

pub(crate) fn subject(ballot: &Ballot) -> Subject {
    (ballot.request.key(), content(&ballot.payload))
}

impl World {
    // ---- what reaches a node ----

    /// Lets the executor do something at this time, and sees to what it asks; power may be lost on the way.
    fn attend(&mut self, node: usize, act: impl FnOnce(&mut Executor<SimDevices>)) {
        let (now, elapsed) = (self.clock(node), Duration::from_micros(self.now));
        let full = self.nodes[node].disk.full;
        let executor = self.nodes[node].executor.as_mut().expect("the node is up");
        let devices = executor.devices();
        (devices.now, devices.elapsed, devices.full) = (now, elapsed, full);
        act(executor);
        for asked in std::mem::take(&mut executor.devices().asked) {
            if self.dies_now(node) {
                return;
            }
            self.see_to(node, asked);
        }
    }

    /// As an owner loop does: what came in, perhaps something more a little later, then a turn.
    pub(crate) fn hand_over(&mut self, node: usize, act: impl FnOnce(&mut Executor<SimDevices>)) {
        self.hand_over_to(node, act);
    }

    fn hand_over_to(&mut self, node: usize, act: impl FnOnce(&mut Executor<SimDevices>)) {
        self.attend(node, act);
        if !self.is_up(node) {
        } else if self.nodes[node].draining {
            self.coverage.count("shell", "several inputs before a turn");
        } else if self.rng.chance(self.config.batch) {
            self.nodes[node].draining = true;
            let (delay, life) = (self.rng.within((0, 300)), self.nodes[node].life);
            self.at(delay, Event::Turn { node, life });
        } else {
            self.turn(node);
        }
    }

    pub(crate) fn turn(&mut self, node: usize) {
        self.nodes[node].draining = false;
        self.attend(node, Executor::turn);
        let Some(executor) = &self.nodes[node].executor else { return };
        let stops = executor.stop().is_some();
        self.observe(node);
        self.hear_answers(node);
        if stops {
            self.ends(node);
        } else {
            self.schedule_tick(node);
        }
    }

    /// A frame arrives.
    pub(crate) fn frame(&mut self, from: usize, node: usize, frame: Frame) {
        match &frame {
            Frame::Core(message) => {
                self.coverage.count("input", "Receive");
                self.trace.received(self.now, node, from, message);
            }
            Frame::Submit { handle, submission } => {
                self.coverage.count("frame", "Submit");
                self.note(node, || format!("Submit {handle} of {}", submission.request.request_id));
            }
            Frame::Submitted { handle, admission } => {
                self.coverage.count("frame", "Submitted");
                self.note(node, || format!("Submitted {handle}: {admission:?}"));
            }
            Frame::Hello { .. } | Frame::History(_) => {}
        }
        self.hand_over_to(node, |e| e.on_frame(id_of(from), frame));
    }

    /// Devices have finished something.
    pub(crate) fn mail(&mut self, node: usize, mail: Mail) {
        for input in &mail.inputs {
            self.tell_input(node, input);
        }
        if mail.persisted > 0 {
            self.tell_input(node, &Input::Persisted { seq: mail.persisted });
        }
        if mail.applied > LogIndex::ZERO {
            self.tell_input(node, &Input::Applied { index: mail.applied });
        }
        if let Some(records) = &mail.records {
            self.note(node, || format!("answers on record: {records:?}"));
        }
        self.hand_over_to(node, |e| e.take_mail(mail));
    }

    /// A handle asks something.
    pub(crate) fn event(&mut self, node: usize, event: executor::Event) {
        if self.is_paused(node) {
            let (life, wait) = (self.nodes[node].life, self.nodes[node].paused_until - self.now);
            self.at(wait, Event::Ask { node, life, event: Box::new(event) });
            return;
        }
        self.hand_over_to(node, |e| e.on_event(event));
    }

    /// One thing finished, for the core.
    pub(crate) fn input_later(&mut self, node: usize, delay: u64, input: Input) {
        self.mail_later(node, delay, Mail { inputs: vec![input], ..Mail::default() });
    }

    fn mail_later(&mut self, node: usize, delay: u64, mail: Mail) {
        let life = self.nodes[node].life;
        self.at(delay, Event::Mail { node, life, mail });
    }

    /// Something failed for good.
    pub(crate) fn failure_later(&mut self, node: usize, delay: u64, why: &str) {
        self.mail_later(node, delay, Mail { failure: Some(why.into()), ..Mail::default() });
    }

    fn tell_input(&mut self, node: usize, input: &Input) {
        self.coverage.count("input", input_name(input));
        self.trace.input(self.now, node, input);
    }

    /// Gives answers that executors owed to those who asked.
    fn hear_answers(&mut self, node: usize) {
        for (read, index) in answered(&mut self.nodes[node].reads) {
            match index {
                Some(index) => self.read_ready(node, read, index),
                None => self.read_refused(read),
            }
        }
        for (transfer, outcome) in answered(&mut self.nodes[node].transfers) {
            self.transferred(transfer, outcome);
        }
        for (change, outcome) in answered(&mut self.nodes[node].changes) {
            self.changed(change, outcome);
        }
        for ((about, granted), outcome) in answered(&mut self.nodes[node].votes) {
            self.coverage.count("vote", if outcome.is_ok() { "durable" } else { "refused" });
            if outcome.is_ok() {
                let on_disk = about.and_then(|about| self.nodes[node].disk.casts.get(&about));
                self.demand(promises::signs_answer(node, on_disk, granted));
            }
            self.nodes[node].voted.push(outcome);
        }
    }

    // ---- what a node asks ----

    fn see_to(&mut self, node: usize, asked: Asked) {
        match asked {
            Asked::Witness(effect) => self.witness(node, effect),
            Asked::Send(to, Frame::Core(message)) => {
                let effect = self.trace(node, Effect::Send { to, message });
                let Effect::Send { to, message } = effect else { unreachable!("just made") };
                self.send(node, &to, message);
            }
            Asked::Send(to, frame) => self.transmit(node, index_of(&to), frame),
            Asked::Persist(seq, write) => {
                let effect = self.trace(node, Effect::Persist { seq, write });
                let Effect::Persist { seq, write } = effect else { unreachable!("just made") };
                self.persist(node, seq, write);
            }
            Asked::Compute(job) => {
                let Effect::Crypto(job) = self.trace(node, Effect::Crypto(job)) else { unreachable!("just made") };
                self.compute(node, job);
            }
            Asked::LookUp(Lookup::Entries { peer, session, from, to }) => self.fetch(node, peer, session, from, to),
            Asked::LookUp(Lookup::Records(subjects)) => self.look_up(node, &subjects),
            Asked::LookUp(Lookup::Epochs { peer, above }) => self.fetch_epochs(node, peer, above),
            Asked::Apply(entries) => self.apply_later(node, entries),
            Asked::LookUp(Lookup::Chunk { peer, session, index, chunk }) => {
                self.fetch_chunk(node, peer, session, index, chunk);
            }
            Asked::LookUp(Lookup::Offer { entry, certificate }) => self.offer(node, entry, certificate),
            Asked::Restore(index) => self.restore_later(node, index),
            Asked::Snapshot(job) => self.snapshot_job(node, job),
            Asked::SettleKeys(table) => self.retire_keys(node, &table),
            Asked::Connect(peers) => self.acquaint(node, &peers),
            Asked::Certified(certificate) => self.shows(node, &certificate),
            Asked::Open(ballot) => self.opened(node, &ballot),
            Asked::Alarm(alarm) => {
                self.coverage.count("event", "alarm");
                self.nodes[node].alarms.push(alarm);
            }
            Asked::Refused(write) => {
                self.coverage.count("fault", "write refused by a full disk");
                // The core's log is as it is, until the node goes down for it.
                if let Some(base) = &write.base {
                    self.begins_after(node, base);
                }
                self.nodes[node].memory.write(&write.entries);
            }
            Asked::Ended(outcome) => self.coverage.count("proposal", outcome_name(outcome)),
        }
    }

    /// What the core wants, before it is carried out.
    fn witness(&mut self, node: usize, effect: Effect) {
        match &effect {
            Effect::Commit { entries, index } => self.committed(node, entries, *index),
            Effect::Certified(certificate) => self.certified(node, certificate),
            Effect::Admitted { admission, .. } => self.admitted(admission),
            Effect::Ask { ballot } => {
                self.nodes[node].asks.insert(ballot.id, ballot.clone());
            }
            Effect::Withdraw { id } => {
                self.nodes[node].asks.remove(id);
            }
            Effect::Role { .. } => self.coverage.count("event", "role or leader changed"),
            Effect::Halt(why) => self.nodes[node].halted = Some(why.clone()),
            _ => {}
        }
        self.trace(node, effect);
    }

    /// Writes an effect down and gives it back.
    fn trace(&mut self, node: usize, effect: Effect) -> Effect {
        if self.config.record {
            self.recorded.push((self.now, node, effect.clone()));
        }
        self.trace.effect(self.now, node, &effect);
        effect
    }

    fn send(&mut self, from: usize, to: &NodeId, message: Message) {
        let n = &self.nodes[from];
        self.demand(promises::sends(from, to, &message, &n.memory, &n.disk));
        let to = index_of(to);
        if self.filter.as_ref().is_none_or(|f| !f(from, to, &message)) {
            self.transmit(from, to, Frame::Core(message));
        }
    }

    /// Puts one frame on the wire.
    fn transmit(&mut self, from: usize, to: usize, frame: Frame) {
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
        if let Some((last, others)) = fate.arrivals.split_last() {
            for delay in others {
                self.at(*delay, Event::Deliver { from, to, frame: Box::new(frame.clone()) });
            }
            self.at(*last, Event::Deliver { from, to, frame: Box::new(frame) });
        }
    }

    fn persist(&mut self, node: usize, seq: u64, write: Write) {
        let committed = self.core(node).committed();
        if let Some(base) = write.base.clone() {
            self.begins_after(node, &base);
        }
        self.nodes[node].memory.write(&write.entries);
        if !write.entries.is_empty() {
            self.rewritten(node, &write.entries, committed);
        }
        let took = self.rng.within(self.config.disk_us);
        let slow = self.nodes[node].disk.slow_until > self.now;
        let n = &mut self.nodes[node];
        n.disk.pending.push_back((seq, write));
        let free = n.disk.busy_until.max(self.now);
        // On a slow disk what has piled up goes in one group.
        let done = if slow { free.max(self.now + 50 * took) } else { free + took };
        n.disk.busy_until = done;
        let life = n.life;
        if !n.disk.stalled {
            self.at(done - self.now, Event::Disk { node, life, seq });
        }
        if slow {
            self.coverage.count("fault", "write to a slow disk");
        }
    }

    fn rewritten(&mut self, node: usize, entries: &[Arc<Entry>], committed: LogIndex) {
        for entry in entries {
            let history = self.nodes[node].memory.at(entry.index()).expect("just written");
            let verdict = self.invariants.matching.appended(node, (entry.index(), entry.term()), history);
            self.demand(verdict);
        }
        // What this turn itself committed is looked at after it; before it, no committed entry may have gone.
        let known = committed.min(self.invariants.committed.ledger.last());
        self.demand(self.invariants.committed.rewritten(node, &self.nodes[node].memory, known));
    }

    fn compute(&mut self, node: usize, job: Crypto) {
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
                let about = n.asks.get(id).map(|b| subject(b)).expect("a vote is signed while it is wanted");
                self.demand(promises::signs_answer(node, n.disk.casts.get(&about), statement.granted));
            }
            _ => {}
        }
        if let Some(input) = n.pool.execute(job) {
            let delay = self.rng.within(self.config.crypto_us);
            self.input_later(node, delay, input);
        }
    }

    fn fetch(&mut self, node: usize, peer: NodeId, session: u64, from: LogIndex, to: LogIndex) {
        self.coverage.count("event", "entries read back for a lagging peer");
        let rotten = matches!(self.nodes[node].disk.rot, Some(Rot::Entry(at)) if (from.prev()..=to).contains(&at));
        if self.reads_rot(node, rotten) {
            return;
        }
        let log = &self.nodes[node].disk.log;
        assert!(from > self.nodes[node].disk.images.compacted, "nothing is read back that is gone");
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
        let delay = self.rng.within(self.config.disk_us);
        self.input_later(node, delay, Input::Fetched { peer, session, prev_term, prev_root, entries });
    }

    /// A thread reads the records some time before its answer comes in: at once or in the end.
    fn look_up(&mut self, node: usize, subjects: &[(Subject, Option<Arc<Ballot>>)]) {
        self.coverage.count("event", "answers on record looked up");
        let rotten = self.nodes[node].disk.rot == Some(Rot::Answers);
        if self.reads_rot(node, rotten) {
            return;
        }
        // A table's proofs cost pairings; those of the simulator's tables were checked row by row.
        let table = |ballot: &Option<Arc<Ballot>>| {
            ballot.as_ref().is_some_and(|b| MemberTable::decode_granted(&b.payload).is_ok())
        };
        let subjects: Vec<(Subject, bool)> = subjects.iter().map(|(about, b)| (*about, table(b))).collect();
        let delay = self.rng.within(self.config.disk_us);
        if self.rng.chance(500) {
            let records = self.records(node, &subjects);
            self.mail_later(node, delay, Mail { records: Some(records), ..Mail::default() });
        } else {
            let life = self.nodes[node].life;
            self.at(delay, Event::Look { node, life, subjects });
        }
    }

    pub(crate) fn records(&self, node: usize, subjects: &[(Subject, bool)]) -> Records {
        let casts = &self.nodes[node].disk.casts;
        let look = |(about, table): &(Subject, bool)| {
            (*about, Looked { recorded: casts.get(about).map(|c| c.granted), table: *table })
        };
        subjects.iter().map(look).collect()
    }

    fn committed(&mut self, node: usize, entries: &[Arc<Entry>], index: LogIndex) {
        // The core calls committed what it delivers, so the ledger must know it before the delivery is compared.
        self.commits(node, self.core(node).committed());
        let ledger = &self.invariants.committed.ledger;
        let verdict = self.invariants.delivery.delivers(node, entries, index, ledger);
        self.demand(verdict);
        self.nodes[node].delivered = index;
    }

    fn apply_later(&mut self, node: usize, entries: Vec<Arc<Entry>>) {
        let last = entries.last().map(|e| e.index());
        assert_eq!(last, Some(self.nodes[node].delivered), "what is applied is what the core delivered");
        let (delay, life) = (self.rng.within(self.config.apply_us), self.nodes[node].life);
        self.at(delay, Event::Apply { node, life, entries });
    }

    pub(crate) fn apply(&mut self, node: usize, entries: &[Arc<Entry>]) {
        let n = &mut self.nodes[node];
        // Deliveries carry their own delays; one that comes early waits for its predecessors by applying them first.
        let Some(last) = entries.last().map(|e| e.index()) else { return };
        let begins = n.disk.images.compacted;
        if n.machine.applied < begins && n.executor.as_mut().is_some_and(|e| e.devices().state.applied() < begins) {
            self.catch_up_machine(node, begins);
        }
        let n = &mut self.nodes[node];
        let state = &mut n.executor.as_mut().expect("the node is up").devices().state;
        let mut marked = Vec::new();
        while n.machine.applied < last {
            let next = n.memory.get(n.machine.applied.next()).expect("delivered entries are in the log").entry.clone();
            n.machine.apply(&next);
            state.apply(&next);
            if next.header.kind == Kind::SnapshotMark {
                marked.push((next.index(), state.clone()));
            }
        }
        for (index, state) in marked {
            self.take_image(node, index, state);
        }
        self.mail(node, Mail { applied: last, ..Mail::default() });
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
        if self.config.real_crypto {
            self.certificates.insert(certificate.head.size, certificate.clone());
        }
    }

    /// Clients are shown a certificate.
    fn shows(&mut self, node: usize, certificate: &HeadCertificate) {
        let (n, size) = (&mut self.nodes[node], LogIndex(certificate.head.size));
        let (stored, applied, before) = (n.disk.certified(), n.machine.applied, n.shown);
        n.shown = size;
        let fine = before < size && size <= stored && size <= applied;
        self.demand(demand(fine, "a certificate is shown once, durable and with all it covers applied", || {
            format!("n{node} shows {size} after {before}, with {stored} on its disk and {applied} applied")
        }));
    }

    // ---- ballots ----

    /// The application of a member that decides by hand, where the test has one: by what the payload says.
    fn opened(&mut self, node: usize, ballot: &Ballot) {
        if !self.config.applications {
            return;
        }
        let granted = match ballot.payload.first_chunk() {
            _ if ballot.kind == Kind::Epoch => true,
            Some(b"\"?") => return,
            Some(start) => start != b"{\"" || ballot.payload.starts_with(SETS),
            None => false,
        };
        let (delay, life) = (self.rng.within(self.config.apply_us), self.nodes[node].life);
        self.at(delay, Event::Answer { node, life, id: ballot.id, granted });
    }

    /// Gives the answer of a member that decides by hand.
    pub(crate) fn answer(&mut self, node: usize, id: ProposalId, granted: bool) {
        let (done, told) = oneshot::channel();
        let about = self.nodes[node].asks.get(&id).map(|b| subject(b));
        self.nodes[node].votes.push(((about, granted), told));
        self.note(node, || format!("the application answers {granted} to {id:?}"));
        self.event(node, executor::Event::Vote { id, granted, done });
    }

    // ---- strange messages ----

    /// The question for a node's vote, as a candidate with the genesis table puts it.
    pub(crate) fn vote_wanted(&self, node: usize, claim: ElectionClaim) -> Message {
        let under = self.genesis.in_force().signed_for(&self.genesis.id());
        Message::RequestVote { claim, under: vec![(under, secret_of(node).public())], transfer: false }
    }

    /// Lets a message arrive that nobody sent (or that was sent long ago).
    pub(crate) fn inject(&mut self, from: usize, to: usize, message: Message) {
        debug_assert_ne!(id_of(from), id_of(to));
        self.frame(from, to, Frame::Core(message));
    }
}

fn outcome_name(outcome: concordat::telemetry::Outcome) -> &'static str {
    use concordat::telemetry::Outcome;
    match outcome {
        Outcome::Committed => "committed",
        Outcome::Aborted => "aborted",
        Outcome::Expired => "expired",
    }
}
