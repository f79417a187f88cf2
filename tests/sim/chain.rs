//! A log as the checkers see it: every entry chained to all before it, so that two prefixes compare in one step.

use crate::hash::{self, FastMap};
use concordat::certificate::{Entry, Kind, MemberTable};
use concordat::ids::{Digest, LogIndex, Term};
use std::cell::RefCell;
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

/// The table that an entry carries; every log of every node is asked for it, and its keys take long to decode.
fn table_of(entry: &Entry, hash: Digest) -> Arc<MemberTable> {
    thread_local!(static DECODED: RefCell<FastMap<Digest, Arc<MemberTable>>> = RefCell::default());
    let decode = || Arc::new(MemberTable::decode_granted(&entry.body.payload).expect("a member table"));
    DECODED.with_borrow_mut(|decoded| {
        if decoded.len() > 1_000 {
            decoded.clear();
        }
        decoded.entry(hash).or_insert_with(decode).clone()
    })
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

    /// Drops everything behind `last`.
    pub(crate) fn cut(&mut self, last: LogIndex) {
        self.links.truncate(usize::try_from(last.0).expect("small logs"));
        self.steps.retain(|s| s.0 <= last);
    }

    pub(crate) fn push(&mut self, entry: Arc<Entry>) {
        assert_eq!(entry.index(), self.last().next());
        let chain = hash::of(&(self.links.last().map_or(0, |l| l.chain), &entry.header));
        match entry.header.kind {
            Kind::Epoch => {
                let hash = entry.header.leaf_hash();
                self.steps.push((entry.index(), Step::Opens(table_of(&entry, hash), hash)));
            }
            Kind::EpochFinal => self.steps.push((entry.index(), Step::Closes)),
            _ => {}
        }
        self.links.push(Link { entry, chain });
    }

    /// The entries that change members, ascending.
    pub(crate) fn steps(&self) -> &[(LogIndex, Step)] {
        &self.steps
    }

    pub(crate) fn links(&self) -> &[Link] {
        &self.links
    }
}
