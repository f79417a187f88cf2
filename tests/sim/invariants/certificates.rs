//! A certificate covers only what is committed, under the root of exactly those entries; no two heads of one
//! (term, size) have different roots, and nobody signs two.

use super::{Verdict, demand};
use crate::chain::Chain;
use crate::hash::FastMap;
use concordat::certificate::Head;
use concordat::ids::{Digest, LogIndex, Term};

#[derive(Default)]
pub(crate) struct Certificates {
    roots: FastMap<(Term, u64), Digest>,
    pub(crate) seen: u64,
}

impl Certificates {
    pub(crate) fn signs(&mut self, node: usize, head: Head) -> Verdict {
        let first = *self.roots.entry((head.term, head.size)).or_insert(head.root);
        demand(first == head.root, "one root per term and size", || {
            format!("n{node} signs {head:?}, another signed {first}")
        })
    }

    /// `committed` is everything that was ever committed, `log` the log of the node that takes the certificate over;
    /// `root` is that log's root at the head's size, when known.
    pub(crate) fn certified(
        &mut self,
        node: usize,
        head: Head,
        root: Option<Digest>,
        log: &Chain,
        committed: &Chain,
    ) -> Verdict {
        self.seen += 1;
        self.signs(node, head)?;
        let index = LogIndex(head.size);
        demand(committed.last() >= index, "a certificate covers only committed entries", || {
            format!("n{node} holds a certificate of size {index}; {} entries are committed", committed.last())
        })?;
        demand(
            log.at(index) == committed.at(index) && log.term_at(index) == head.term,
            "a certificate covers this log",
            || format!("n{node} takes over {head:?}, which is not its log"),
        )?;
        demand(root.is_none_or(|r| r == head.root), "a certificate names the log's root", || {
            format!("n{node} takes over {head:?}; its log's root is {root:?}")
        })
    }
}

#[test]
fn two_roots_and_uncommitted_coverage_are_caught() {
    use super::planted::{chain, noop};
    let log = chain([noop(1, 1), noop(2, 1)]);
    let head = |size, root| Head { term: Term(1), size, root: Digest([root; 32]) };
    let mut check = Certificates::default();
    assert!(check.certified(0, head(2, 7), Some(Digest([7; 32])), &log, &log).is_ok());
    assert!(check.signs(1, head(2, 8)).is_err(), "two roots");
    assert!(check.certified(0, head(1, 3), Some(Digest([4; 32])), &log, &log).is_err(), "another root than the log's");
    assert!(check.certified(0, head(2, 7), None, &log, &chain([noop(1, 1)])).is_err(), "not committed");
    let other = chain([noop(1, 1), noop(2, 2)]);
    assert!(check.certified(0, head(2, 7), None, &other, &log).is_err(), "not this log");
}
