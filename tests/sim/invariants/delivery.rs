//! The stream of committed entries is gap-free and free of duplicates within one life of a node, begins after what its
//! certificate covers, and holds exactly the committed entries.

use super::{Verdict, demand};
use crate::chain::Chain;
use concordat::certificate::Entry;
use concordat::ids::LogIndex;
use std::collections::BTreeMap;
use std::sync::Arc;

#[derive(Default)]
pub(crate) struct Delivery {
    next: BTreeMap<usize, LogIndex>,
}

impl Delivery {
    pub(crate) fn restarted(&mut self, node: usize, certified: LogIndex) {
        self.next.insert(node, certified.next());
    }

    pub(crate) fn delivers(
        &mut self,
        node: usize,
        entries: &[Arc<Entry>],
        index: LogIndex,
        committed: &Chain,
    ) -> Verdict {
        let next = self.next.entry(node).or_insert(LogIndex(1));
        for entry in entries {
            demand(entry.index() == *next, "delivered in order, once", || {
                format!("n{node} delivers {} where {next} is due", entry.index())
            })?;
            let same = committed.get(entry.index()).is_some_and(|l| l.entry == *entry);
            demand(same, "only committed entries are delivered", || {
                format!("n{node} delivers another entry {} than was committed", entry.index())
            })?;
            *next = next.next();
        }
        demand(index == next.prev(), "a delivery ends where it says", || {
            format!("n{node} says {index}, ends before {next}")
        })
    }
}

#[test]
fn gaps_duplicates_and_strange_entries_are_caught() {
    use super::planted::{chain, noop};
    let committed = chain([noop(1, 1), noop(2, 1), noop(3, 1)]);
    let mut check = Delivery::default();
    assert!(check.delivers(0, &[noop(1, 1)], LogIndex(1), &committed).is_ok());
    assert!(check.delivers(0, &[noop(3, 1)], LogIndex(3), &committed).is_err(), "gap");
    assert!(check.delivers(0, &[noop(1, 1)], LogIndex(1), &committed).is_err(), "duplicate");
    assert!(check.delivers(0, &[noop(2, 2)], LogIndex(2), &committed).is_err(), "another entry");
    assert!(check.delivers(1, &[noop(1, 1)], LogIndex(2), &committed).is_err(), "says more than it gives");
}
