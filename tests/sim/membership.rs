//! Dynamic members: what a transport, a store and an operator do about them.

use crate::chain::{Chain, Step};
use crate::crypto::{Pool, verify_epochs};
use crate::disk::Disk;
use crate::invariants::committed::Disks;
use crate::invariants::tables;
use crate::members::{Row, id_of, index_of, public, rows_of, table};
use crate::world::{Event, Node, World};
use concordat::certificate::merkle::{Nodes, inclusion_path, node_hash};
use concordat::certificate::{
    ElectionCertificate, EpochChain, EpochStep, HeadCertificate, MemberTable, Role, TableInForce,
};
use concordat::core::{Change, ChangeRefusal, Input, Message, Transfer};
use concordat::ids::{Digest, Epoch, LogIndex, NodeId};
use concordat::node::executor::{self, Query};
use concordat::transport::Peer;
use concordat::wire::Frame;
use std::collections::BTreeSet;
use std::convert::Infallible;
use std::sync::Arc;
use tokio::sync::oneshot;

/// Membership changes proved by one message, so that whoever missed more has to ask again.
const STEPS_PER_MESSAGE: usize = 3;

/// Whom a node's transport lets in.
#[derive(Clone, Debug, Default)]
pub(crate) struct Acquaintance {
    /// Members of the tables in force, of those that are proved to follow, and those that the last change left out.
    current: BTreeSet<usize>,
    /// Those that were at some time.
    former: BTreeSet<usize>,
}

impl Acquaintance {
    /// A former member may ask what became of it; a stranger may claim to lead, or prove how it became a member.
    pub(crate) fn admits(&self, from: usize, frame: &Frame) -> bool {
        let Frame::Core(message) = frame else { return self.current.contains(&from) };
        let asks = matches!(message, Message::PreVote { .. } | Message::EpochsWanted { .. });
        let claims = matches!(message, Message::Heartbeat { .. } | Message::Append { .. } | Message::Epochs { .. });
        self.current.contains(&from) || claims || (asks && self.former.contains(&from))
    }
}

/// A membership change that somebody asked for.
#[derive(Clone, Debug)]
pub(crate) struct Changed {
    table: MemberTable,
    asked_at: u64,
    pub(crate) outcome: Option<Result<Epoch, ChangeRefusal>>,
}

/// A leadership transfer that somebody asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Transferred {
    pub(crate) outcome: Option<Transfer>,
}

/// The complete subtrees over a log, computed when asked for.
pub(crate) struct Leaves<'a>(pub(crate) &'a Chain);

impl Nodes for Leaves<'_> {
    type Error = Infallible;

    fn node(&self, level: u8, position: u64) -> Result<Digest, Infallible> {
        if level == 0 {
            let link = self.0.get(LogIndex(position + 1)).expect("within the log");
            return Ok(link.entry.header.leaf_hash());
        }
        Ok(node_hash(&self.node(level - 1, 2 * position)?, &self.node(level - 1, 2 * position + 1)?))
    }
}

/// The disks of each table's voters: for each row the store in which its key was made, lost or not.
pub(crate) fn disks<'a>(nodes: &'a [Node], tables: &[Arc<TableInForce>]) -> Vec<Disks<'a>> {
    let log = |row: Row| {
        let n = &nodes[row.node];
        let store = n.made[usize::from(row.generation)];
        if n.disk.store == store { n.disk.vouched() } else { &n.lost[&store] }
    };
    let of =
        |t: &Arc<TableInForce>| Disks { logs: t.table.voters().map(|m| log(Row::of(m))).collect(), quorum: t.quorum() };
    tables.iter().map(of).collect()
}

/// The proofs of the changes above an epoch, as a log has them.
pub(crate) fn proofs(log: &Chain, above: Epoch, most: usize) -> EpochChain {
    let mut steps = Vec::new();
    let closed = log.steps().chunks(2).filter(|pair| pair.len() == 2);
    for pair in closed.skip(usize::try_from(above.0).expect("few epochs")).take(most) {
        let [(opened, Step::Opens(..)), (closed, Step::Closes)] = pair else {
            panic!("changes open and close in turn")
        };
        let at = |index| log.get(index).expect("in the log").entry.clone();
        let joint = HeadCertificate::decode(&at(*closed).body.payload).expect("an EpochFinal carries a certificate");
        let Ok(path) = inclusion_path(&Leaves(log), opened.0 - 1, joint.head.size);
        steps.push(EpochStep { entry: (*at(*opened)).clone(), joint, path });
    }
    EpochChain { steps }
}

impl World {
    // ---- what the shell does ----

    pub(crate) fn acquaint(&mut self, node: usize, peers: &[Peer]) {
        let numbers = |former| peers.iter().filter(move |p| p.former == former).map(|p| index_of(&p.id));
        let current: BTreeSet<usize> = numbers(false).collect();
        let mut former: BTreeSet<usize> = numbers(true).chain(current.iter().copied()).collect();
        for (_, step) in self.nodes[node].memory.steps() {
            if let Step::Opens(table, _) = step {
                former.extend(table.members().iter().map(|m| index_of(&m.did)));
            }
        }
        former.extend(self.genesis.table.members().iter().map(|m| index_of(&m.did)));
        let known = &mut self.nodes[node].acquaintance;
        known.current = current;
        known.former.extend(former);
    }

    pub(crate) fn fetch_epochs(&mut self, node: usize, peer: NodeId, above: Epoch) {
        self.coverage.count("event", "proofs of membership changes fetched");
        let chain = proofs(&self.nodes[node].disk.log, above, STEPS_PER_MESSAGE);
        let delay = self.rng.within(self.config.disk_us);
        self.input_later(node, delay, Input::EpochsFetched { peer, chain });
    }

    /// Keys of tables up to this one that it does not name are erased.
    pub(crate) fn retire_keys(&mut self, node: usize, table: &TableInForce) {
        self.coverage.count("event", "table in force");
        let row = table.table.get(&id_of(node)).map(Row::of);
        let known = tables::in_force;
        let log = &self.nodes[node].memory;
        let mut named: BTreeSet<u8> = BTreeSet::new();
        let ends = std::iter::once(LogIndex::ZERO).chain(log.steps().iter().map(|s| s.0));
        for t in ends.flat_map(|i| known(&self.genesis_table, log, i)).filter(|t| t.epoch <= table.epoch) {
            named.extend(t.table.get(&id_of(node)).map(|m| Row::of(m).generation));
        }
        let before = self.nodes[node].disk.keys.clone();
        let keys = &mut self.nodes[node].disk.keys;
        keys.retain(|g| row.is_some_and(|r| r.generation == *g) || !named.contains(g));
        if *keys != before {
            self.coverage.count("event", "key retired");
            self.keys_changed(node);
        }
    }

    fn keys_changed(&mut self, node: usize) {
        let keys = self.nodes[node].disk.keys.clone();
        self.nodes[node].pool = Pool::new(node, &keys, self.config.real_crypto);
        let public = self.public_keys(node);
        if let Some(executor) = &mut self.nodes[node].executor {
            executor.devices().keys = public;
        }
        let life = self.nodes[node].life;
        self.note(node, || format!("holds keys {keys:?}"));
        self.at(1, Event::Keys { node, life });
    }

    /// The store makes a key for its node.
    pub(crate) fn new_key(&mut self, node: usize) -> u8 {
        let n = &mut self.nodes[node];
        let generation = u8::try_from(n.made.len()).expect("few keys");
        n.made.push(n.disk.store);
        n.disk.keys.push(generation);
        self.keys_changed(node);
        generation
    }

    /// The node's disk is lost; it gets an empty one, on which a new key is made, and stays down.
    pub(crate) fn lose_disk(&mut self, node: usize) -> u8 {
        if self.is_up(node) {
            self.crash(node);
        }
        self.coverage.count("fault", "disk lost");
        let n = &mut self.nodes[node];
        let old = std::mem::take(&mut n.disk);
        n.lost.insert(old.store, old.vouched().clone());
        n.lost_at = self.now;
        n.disk = Disk { store: old.store + 1, ..Disk::default() };
        self.note(node, || "the disk is lost".into());
        self.new_key(node)
    }

    // ---- what an operator asks for ----

    /// The rows of the table in force at a node.
    pub(crate) fn rows(&self, node: usize) -> Vec<Row> {
        rows_of(&self.core(node).tables().current().table)
    }

    /// Asks a node for a change of members; tells its number.
    pub(crate) fn change_from(&mut self, node: usize, base: Epoch, rows: &[Row]) -> usize {
        let table = table(rows);
        let salt = std::array::from_fn(|_| u8::try_from(self.rng.below(256)).expect("a byte"));
        self.changes.push(Changed { table: table.clone(), asked_at: self.now, outcome: None });
        let number = self.changes.len() - 1;
        // In a storm some are given too little time.
        let ttl_ms = if self.config.churn > 0 { self.rng.within((5, 2_000)) } else { 2_000 };
        let change = Change { base, table, salt, ttl_ms };
        self.note(node, || format!("asked for members {rows:?}"));
        let (done, told) = oneshot::channel();
        self.nodes[node].changes.push((number, told));
        self.event(node, executor::Event::Query(Query::Change { change, done }));
        number
    }

    pub(crate) fn change(&mut self, node: usize, rows: &[Row]) -> usize {
        let base = self.core(node).tables().current().epoch;
        self.change_from(node, base, rows)
    }

    pub(crate) fn changed(&mut self, number: usize, outcome: Result<Epoch, ChangeRefusal>) {
        let name = match &outcome {
            Ok(_) => "made",
            Err(ChangeRefusal::NotLeader { .. }) => "not leader",
            Err(ChangeRefusal::InFlight) => "in flight",
            Err(ChangeRefusal::NotSettled) => "not settled",
            Err(ChangeRefusal::Transferring) => "transferring",
            Err(ChangeRefusal::Stale { .. }) => "stale",
            Err(ChangeRefusal::Unchanged) => "unchanged",
            Err(ChangeRefusal::NoQuorum { .. }) => "no quorum",
            Err(ChangeRefusal::NotCaughtUp { .. }) => "not caught up",
            Err(ChangeRefusal::OldKey(_)) => "old key",
            Err(ChangeRefusal::Rejected { .. }) => "rejected",
            Err(ChangeRefusal::Expired) => "expired",
            Err(ChangeRefusal::Interrupted) => "interrupted",
        };
        self.coverage.count("change", name);
        let changed = &mut self.changes[number];
        assert!(changed.outcome.is_none(), "a change is answered once");
        changed.outcome = Some(outcome);
    }

    /// Changes that were reported as made, against the log at the end.
    pub(crate) fn changes_are_true(&self) {
        let log = &self.invariants.committed.ledger;
        for changed in &self.changes {
            let Some(Ok(epoch)) = changed.outcome else { continue };
            let opened = log.steps().get(2 * usize::try_from(epoch.0).expect("few") - 2);
            let closed = log.steps().get(2 * usize::try_from(epoch.0).expect("few") - 1);
            let Some((_, Step::Opens(table, _))) = opened else { panic!("epoch {epoch} was never committed") };
            assert!(closed.is_some(), "epoch {epoch} was reported as in force and its end is not committed");
            assert_eq!(**table, changed.table, "epoch {epoch}");
        }
    }

    /// Hands leadership over; tells its number.
    pub(crate) fn transfer(&mut self, node: usize, to: Option<usize>) -> usize {
        self.transfers.push(Transferred { outcome: None });
        let number = self.transfers.len() - 1;
        self.note(node, || format!("asked to hand over to {to:?}"));
        let (done, told) = oneshot::channel();
        self.nodes[node].transfers.push((number, told));
        self.event(node, executor::Event::Query(Query::Transfer { to: to.map(id_of), done }));
        number
    }

    pub(crate) fn transferred(&mut self, number: usize, outcome: Transfer) {
        let name = match outcome {
            Transfer::Done => "done",
            Transfer::TimedOut => "timed out",
            Transfer::Replaced => "replaced",
            Transfer::NotLeader => "not leader",
            Transfer::NoTarget => "no target",
        };
        self.coverage.count("transfer", name);
        let transferred = &mut self.transfers[number];
        assert!(transferred.outcome.is_none(), "a transfer is answered once");
        transferred.outcome = Some(outcome);
    }

    // ---- what the checkers ask ----

    /// Whether a node's store holds the key of its row.
    pub(crate) fn holds(&self, row: &Row) -> bool {
        self.nodes[row.node].disk.keys.contains(&row.generation)
    }

    /// The members that the newest leader's log names and whose stores hold their keys.
    pub(crate) fn members(&self) -> Vec<usize> {
        let log = match self.leader() {
            Some(leader) => &self.nodes[leader].memory,
            None => &self.invariants.committed.ledger,
        };
        let tables = tables::in_force(&self.genesis_table, log, log.last());
        let newest = rows_of(&tables.last().expect("one at least").table);
        newest.iter().filter(|r| self.holds(r)).map(|r| r.node).collect()
    }

    /// A member at random, as a client picks one.
    pub(crate) fn some_member(&mut self) -> usize {
        let log = &self.invariants.committed.ledger;
        let tables = tables::in_force(&self.genesis_table, log, log.last());
        let rows = tables[0].table.members();
        index_of(&rows[self.rng.below(rows.len())].did)
    }

    /// A node leads: its certificate has a quorum of every table in force at the end of the log that it stood with.
    pub(crate) fn elected(&self, node: usize) {
        let log = &self.nodes[node].memory;
        let term = self.core(node).term();
        let first = log.links().iter().find(|l| l.entry.term() == term).expect("a no-op begins its term");
        let certificate = ElectionCertificate::decode(&first.entry.body.payload).expect("it carries the certificate");
        let tables = tables::in_force(&self.genesis_table, log, first.entry.index().prev());
        self.demand(tables::quorate("election", &certificate.halves, &self.genesis_id, &tables));
    }

    /// The committed log proves every change, from the genesis on.
    pub(crate) fn chain_verifies(&self) {
        let log = &self.invariants.committed.ledger;
        let closed = log.steps().len() / 2;
        let chain = proofs(log, Epoch::ZERO, usize::MAX);
        assert_eq!(chain.steps.len(), closed);
        if self.config.real_crypto {
            chain.verify(&self.genesis).expect("a chain of real signatures");
        } else if closed > 0 {
            assert!(verify_epochs(self.genesis_id, self.genesis_table.clone(), &chain, None).is_some());
        }
    }

    /// Whether every table in force anywhere, or on its way, would still have a quorum with this node's store gone.
    pub(crate) fn can_lose(&self, node: usize) -> bool {
        let logs = self.nodes.iter().flat_map(|n| [&n.memory, &n.disk.log]);
        let tables = logs.flat_map(|log| tables::in_force(&self.genesis_table, log, log.last()));
        let coming = self.changes.iter().filter(|c| c.outcome.is_none() && c.asked_at + 5_000_000 > self.now);
        tables
            .map(|t| t.table.clone())
            .chain(coming.map(|c| c.table.clone()))
            .all(|t| self.has_quorum_without(&t, node))
    }

    fn has_quorum_without(&self, table: &MemberTable, node: usize) -> bool {
        let sound = |r: &Row| r.node != node && self.holds(r) && !self.nodes[r.node].disk.is_damaged();
        let left = table.voters().map(Row::of).filter(sound).count();
        left >= self.config.rule.quorum(table.voters().count())
    }

    /// Whether a table lacks a quorum of stores that hold its keys in a way that whoever is asked for it cannot know: a
    /// disk was lost within the last election timeouts or is damaged and not read yet, or a member answers, but its store
    /// lacks the key that the new row gives it. What came of it would be in flight for ever.
    pub(crate) fn is_doomed(&self, asked: usize, rows: &[Row]) -> bool {
        let before = self.rows(asked);
        let unknown = |r: &Row| {
            let n = &self.nodes[r.node];
            let answers = || self.is_up(r.node) && before.iter().any(|b| b.node == r.node);
            n.disk.is_damaged() || (!self.holds(r) && (n.lost_at + 1_000_000 > self.now || answers()))
        };
        rows.iter().any(unknown) && !self.has_quorum_without(&table(rows), usize::MAX)
    }

    /// Where everybody stands, for people.
    pub(crate) fn standings(&self) -> String {
        let line = |node: usize| {
            let n = &self.nodes[node];
            let keys = &n.disk.keys;
            let Some(core) = n.executor.as_ref().map(|e| e.core()) else {
                return format!("n{node}: down, keys {keys:?}\n");
            };
            let rows = |t: &TableInForce| {
                let row = |r: Row| {
                    let mark = if r.role == Role::Learner { "l" } else { "" };
                    format!("n{}{mark}/{}{}", r.node, r.generation, if self.holds(&r) { "" } else { "!" })
                };
                format!("{}: {}", t.epoch, rows_of(&t.table).into_iter().map(row).collect::<Vec<_>>().join(" "))
            };
            let tables: Vec<String> = core.tables().all().map(rows).collect();
            let (role, term, leader) = (core.role(), core.term(), core.leader().as_ref().map(index_of));
            format!(
                "n{node}: {role:?} in {term} after {leader:?}, last {} of {}, committed {}, keys {keys:?}, {tables:?}\n",
                core.last_index(),
                n.memory.last_term(),
                core.committed()
            )
        };
        (0..self.size()).map(line).collect()
    }

    /// A row for a node that is to become a learner, with a key that stood in no table yet.
    pub(crate) fn fresh_learner(&mut self, node: usize) -> Row {
        let mut named = BTreeSet::new();
        let logs = self.nodes.iter().flat_map(|n| [&n.memory, &n.disk.log]);
        for (_, step) in logs.flat_map(|l| l.steps()) {
            if let Step::Opens(table, _) = step {
                named.extend(table.get(&id_of(node)).map(|m| m.bls_key));
            }
        }
        named.extend(self.genesis.table.get(&id_of(node)).map(|m| m.bls_key));
        let unused = |g: &&u8| !named.contains(&public(node, **g));
        let held = self.nodes[node].disk.keys.iter().rev().find(unused).copied();
        let generation = held.unwrap_or_else(|| self.new_key(node));
        Row { generation, role: Role::Learner, ..Row::voter(node) }
    }
}
