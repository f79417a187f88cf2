//! A log as the checkers see it: every entry chained to all before it, so that two prefixes compare in one step.

use concordat::certificate::Entry;
use concordat::ids::{LogIndex, Term};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

#[derive(Clone, Debug)]
pub(crate) struct Link {
    pub(crate) entry: Arc<Entry>,
    /// Stands for this entry and all before it.
    pub(crate) chain: u64,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Chain(Vec<Link>);

impl Chain {
    pub(crate) fn last(&self) -> LogIndex {
        LogIndex(self.0.len() as u64)
    }

    pub(crate) fn last_term(&self) -> Term {
        self.0.last().map_or(Term::ZERO, |l| l.entry.term())
    }

    pub(crate) fn get(&self, index: LogIndex) -> Option<&Link> {
        self.0.get(usize::try_from(index.0.checked_sub(1)?).ok()?)
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
        assert!(keep <= self.0.len(), "entry {} leaves a gap after {}", first.index(), self.0.len());
        self.0.truncate(keep);
        for entry in entries {
            self.push(entry.clone());
        }
    }

    pub(crate) fn push(&mut self, entry: Arc<Entry>) {
        assert_eq!(entry.index(), self.last().next());
        let mut hasher = DefaultHasher::new();
        (self.0.last().map_or(0, |l| l.chain), &entry.header).hash(&mut hasher);
        self.0.push(Link { entry, chain: hasher.finish() });
    }

    pub(crate) fn links(&self) -> &[Link] {
        &self.0
    }
}
