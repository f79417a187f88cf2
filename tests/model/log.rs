//! A log as the properties see it, with its own Merkle roots: equal roots stand for equal logs.

use concordat::certificate::merkle::Frontier;
use concordat::certificate::{Entry, Kind, MemberTable, Role};
use concordat::ids::{Digest, LogIndex, NodeId, Term};
use std::hash::{Hash, Hasher};
use std::sync::Arc;

#[derive(Clone, Debug, PartialEq, Eq)]
struct Link {
    entry: Arc<Entry>,
    tree: Frontier,
    root: Digest,
}

impl Hash for Link {
    fn hash<H: Hasher>(&self, state: &mut H) {
        // Stands for the entry and for all before it.
        self.root.hash(state);
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Log(Vec<Link>);

impl Log {
    pub(crate) fn last(&self) -> LogIndex {
        LogIndex(self.0.len() as u64)
    }

    fn link(&self, index: LogIndex) -> Option<&Link> {
        self.0.get(usize::try_from(index.0.checked_sub(1)?).ok()?)
    }

    pub(crate) fn entries(&self) -> impl Iterator<Item = &Arc<Entry>> {
        self.0.iter().map(|l| &l.entry)
    }

    /// Zero before the first entry; `None` beyond the last.
    pub(crate) fn term_at(&self, index: LogIndex) -> Option<Term> {
        if index == LogIndex::ZERO { Some(Term::ZERO) } else { self.link(index).map(|l| l.entry.term()) }
    }

    /// The tree root over the first `index` entries; `None` beyond the last.
    pub(crate) fn root_at(&self, index: LogIndex) -> Option<Digest> {
        if index == LogIndex::ZERO { Some(Frontier::default().root()) } else { self.link(index).map(|l| l.root) }
    }

    /// The first entry's index says where: whatever was there is replaced.
    pub(crate) fn write(&mut self, entries: &[Arc<Entry>]) {
        let Some(first) = entries.first() else { return };
        let keep = usize::try_from(first.index().0 - 1).expect("small logs");
        assert!(keep <= self.0.len(), "entry {} leaves a gap after {}", first.index(), self.0.len());
        self.0.truncate(keep);
        for entry in entries {
            let mut tree = self.0.last().map_or_else(Frontier::default, |l| l.tree.clone());
            tree.push(entry.header.leaf_hash());
            let root = tree.root();
            self.0.push(Link { entry: entry.clone(), tree, root });
        }
    }

    /// The voters whose quorums are asked for behind the entry at `index`: one table, or two while a change is in
    /// flight. Worked out from the entries alone, so that it stands against what the core thinks.
    pub(crate) fn voters_at(&self, genesis: &MemberTable, index: LogIndex) -> Vec<Vec<NodeId>> {
        let voters =
            |t: &MemberTable| t.members().iter().filter(|m| m.role == Role::Voter).map(|m| m.did).collect::<Vec<_>>();
        let mut in_force = vec![voters(genesis)];
        for entry in self.entries().take_while(|e| e.index() <= index) {
            match entry.header.kind {
                Kind::Epoch => {
                    let next = MemberTable::decode_granted(&entry.body.payload).expect("appended by a leader");
                    in_force.push(voters(&next));
                }
                Kind::EpochFinal => drop(in_force.remove(0)),
                _ => {}
            }
        }
        in_force
    }
}
