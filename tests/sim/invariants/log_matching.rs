//! Same index and term: same entry, and the same history before it. Equal tree roots: equal logs, and the other way
//! round.

use super::{Verdict, demand};
use crate::hash::FastMap;
use concordat::ids::{Digest, LogIndex, Term};

#[derive(Default)]
pub(crate) struct LogMatching {
    histories: FastMap<(LogIndex, Term), u64>,
    roots: FastMap<u64, Digest>,
    logs: FastMap<Digest, u64>,
}

impl LogMatching {
    pub(crate) fn appended(&mut self, node: usize, at: (LogIndex, Term), history: u64) -> Verdict {
        let first = *self.histories.entry(at).or_insert(history);
        demand(first == history, "log matching", || {
            format!("n{node} holds at index {} of term {} another entry or another history than others", at.0, at.1)
        })
    }

    pub(crate) fn root(&mut self, node: usize, history: u64, root: Digest) -> Verdict {
        let same_root = *self.roots.entry(history).or_insert(root) == root;
        let same_log = *self.logs.entry(root).or_insert(history) == history;
        demand(same_root, "equal logs have equal roots", || format!("n{node} computes {root} where others do not"))?;
        demand(same_log, "equal roots mean equal logs", || format!("n{node} has {root} over another log"))
    }
}

#[test]
fn unequal_histories_and_roots_are_caught() {
    let mut check = LogMatching::default();
    let at = (LogIndex(4), Term(2));
    assert!(check.appended(0, at, 11).is_ok());
    assert!(check.appended(1, at, 11).is_ok());
    assert!(check.appended(1, (LogIndex(4), Term(3)), 12).is_ok());
    assert!(check.appended(2, at, 12).is_err());
    assert!(check.root(0, 11, Digest([1; 32])).is_ok());
    assert!(check.root(1, 11, Digest([2; 32])).is_err());
    assert!(check.root(1, 12, Digest([1; 32])).is_err());
}
