//! A log as the checkers see it: every entry chained to all before it, so that two prefixes compare in one step.

use concordat::certificate::{Entry, Kind, MemberTable};
use concordat::ids::{Digest, LogIndex, Term};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

#[derive(Clone, Debug)]
pub(crate) struct Link {
    pub(crate) entry: Arc<Entry>,
    /// Stands for this entry and all before it.
    pub(crate) chain: u64,
}

/// What an entry does to the member tables.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    /// An `Epoch` entry: from here on this table counts too, under this hash.
    Opens(Arc<MemberTable>, Digest),
    /// An `EpochFinal` entry: from here on it alone counts.
    Closes,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Chain {
    links: Vec<Link>,
    steps: Vec<(LogIndex, Step)>,
}

impl Chain {
    pub(crate) fn last(&self) -> LogIndex {
        LogIndex(self.links.len() as u64)
    }

    pub(crate) fn last_term(&self) -> Term {
        self.links.last().map_or(Term::ZERO, |l| l.entry.term())
    }

    pub(crate) fn get(&self, index: LogIndex) -> Option<&Link> {
        self.links.get(usize::try_from(index.0.checked_sub(1)?).ok()?)
    }

    pub(crate) fn term_at(&self, index: LogIndex) -> Term {
        self.get(index).map_or(Term::ZERO, |l| l.entry.term())
    }

    /// What stands for the first `index` entries; 0 for none.
    pub(crate) fn at(&self, index: LogIndex) -> Option<u64> {
        if index == LogIndex::ZERO { Some(0) } else { self.get(index).map(|l| l.chain) }
    }

    /// The first entry's index says where: whatever was there is replaced.
    pub(crate) fn write(&mut self, entries: &[Arc<Entry>]) {
        let Some(first) = entries.first() else { return };
        let keep = usize::try_from(first.index().0 - 1).expect("small logs");
        assert!(keep <= self.links.len(), "entry {} leaves a gap after {}", first.index(), self.links.len());
        self.links.truncate(keep);
        self.steps.retain(|s| s.0 < first.index());
        for entry in entries {
            self.push(entry.clone());
        }
    }

    pub(crate) fn push(&mut self, entry: Arc<Entry>) {
        assert_eq!(entry.index(), self.last().next());
        let mut hasher = DefaultHasher::new();
        (self.links.last().map_or(0, |l| l.chain), &entry.header).hash(&mut hasher);
        match entry.header.kind {
            Kind::Epoch => {
                let table = MemberTable::decode_granted(&entry.body.payload).expect("a member table");
                self.steps.push((entry.index(), Step::Opens(Arc::new(table), entry.header.leaf_hash())));
            }
            Kind::EpochFinal => self.steps.push((entry.index(), Step::Closes)),
            _ => {}
        }
        self.links.push(Link { entry, chain: hasher.finish() });
    }

    /// The entries that change members, ascending.
    pub(crate) fn steps(&self) -> &[(LogIndex, Step)] {
        &self.steps
    }

    pub(crate) fn links(&self) -> &[Link] {
        &self.links
    }
}
