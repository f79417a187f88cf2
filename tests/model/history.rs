//! What no node remembers and no rule may forget: who led, what was signed, what was committed. Part of the state, so
//! that two states are one only when nothing in their pasts could tell them apart.

use crate::log::Log;
use crate::members::index_of;
use concordat::certificate::{ElectionClaim, Head, MemberTable};
use concordat::ids::{Digest, LogIndex, NodeId, Term};
use std::collections::{BTreeMap, BTreeSet};

/// A committed entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Committed {
    /// The tree root up to it.
    pub(crate) root: Digest,
    /// The term in which it was committed: leaders of later terms hold it.
    pub(crate) in_term: Term,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct History {
    /// Who ever led in a term.
    pub(crate) leaders: BTreeMap<Term, BTreeSet<usize>>,
    /// What a member ever signed for a term.
    pub(crate) claims: BTreeMap<(usize, Term), BTreeSet<ElectionClaim>>,
    /// What was ever committed, as whoever was first said it.
    pub(crate) ledger: Vec<Committed>,
    /// Rules that were broken in passing, where the state afterwards may not show it.
    pub(crate) broken: BTreeSet<Rule>,
}

/// Rules that are judged while a step is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Rule {
    /// What is committed is durable on a quorum of every table in force.
    QuorumDurable,
    /// A leader commits by an entry of its own term only.
    OwnTerm,
    /// A head is certified only when its entries are committed by that very signing.
    Certificate,
    /// Nothing is promised before it is durable.
    Promise,
    /// Within a life, terms and positions never regress, and what is delivered is consecutive.
    Regress,
    /// Neither an assertion of the core nor a halt nor an alarm, in a world where nobody lies.
    Assertion,
}

/// What a step brought about that others must be asked about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fact {
    Leads(Term),
    Signs(ElectionClaim),
    Certifies(Head),
    Broken(Rule),
}

/// A node as the history sees it.
pub(crate) struct Witness<'a> {
    pub(crate) memory: &'a Log,
    pub(crate) committed: LogIndex,
    /// Its term.
    pub(crate) term: Term,
}

impl History {
    pub(crate) fn known(&self) -> LogIndex {
        LogIndex(self.ledger.len() as u64)
    }

    pub(crate) fn root_at(&self, index: LogIndex) -> Option<Digest> {
        if index == LogIndex::ZERO {
            return Log::default().root_at(index);
        }
        self.ledger.get(usize::try_from(index.0).ok()? - 1).map(|c| c.root)
    }

    /// Takes a fact down, told by one node about itself.
    pub(crate) fn note(
        &mut self,
        node: usize,
        fact: &Fact,
        witness: &Witness<'_>,
        disks: &[&Log],
        genesis: &MemberTable,
    ) {
        match fact {
            Fact::Leads(term) => self.leaders.entry(*term).or_default().extend([node]),
            Fact::Signs(claim) => self.claims.entry((node, claim.term)).or_default().extend([*claim]),
            Fact::Certifies(head) => self.certified(head, witness.memory, disks, genesis),
            Fact::Broken(rule) => self.broken.extend([*rule]),
        }
    }

    /// A node says up to where the log is committed. Whoever says so first is held to the rule; what the others say is
    /// compared in every state.
    pub(crate) fn commits(&mut self, witness: &Witness<'_>, disks: &[&Log], genesis: &MemberTable) {
        let index = witness.committed;
        if index <= self.known() {
            return;
        }
        // A leader goes by the tables at the end of its log. A follower is told by a leader, or else by a certificate,
        // which was taken down when it was made.
        let voters = witness.memory.voters_at(genesis, witness.memory.last());
        if !on_quorums(witness.memory, index, disks, &voters) {
            self.broken.insert(Rule::QuorumDurable);
        }
        if witness.memory.term_at(index) != Some(witness.term) {
            self.broken.insert(Rule::OwnTerm);
        }
        self.extend(witness.memory, index);
    }

    /// A quorum of every table in force signed this head, each after its fsync: by that alone it is committed, though
    /// no node may know it yet.
    fn certified(&mut self, head: &Head, memory: &Log, disks: &[&Log], genesis: &MemberTable) {
        let index = LogIndex(head.size);
        let voters = memory.voters_at(genesis, index);
        let sound = memory.root_at(index) == Some(head.root)
            && memory.term_at(index) == Some(head.term)
            && on_quorums(memory, index, disks, &voters);
        if !sound {
            self.broken.insert(Rule::Certificate);
        } else if index > self.known() {
            self.extend(memory, index);
        } else if self.root_at(index) != Some(head.root) {
            self.broken.insert(Rule::Certificate);
        }
    }

    fn extend(&mut self, memory: &Log, index: LogIndex) {
        let Some(in_term) = memory.term_at(index) else { return };
        for i in self.known().0 + 1..=index.0 {
            let root = memory.root_at(LogIndex(i)).expect("before `index`");
            self.ledger.push(Committed { root, in_term });
        }
    }
}

/// Whether a majority of every set of voters holds this very log durably up to `index`.
fn on_quorums(memory: &Log, index: LogIndex, disks: &[&Log], tables: &[Vec<NodeId>]) -> bool {
    let root = memory.root_at(index);
    let holds = |id: &NodeId| disks.get(index_of(id)).is_some_and(|d| d.root_at(index) == root);
    root.is_some() && tables.iter().all(|voters| voters.iter().filter(|v| holds(v)).count() > voters.len() / 2)
}
