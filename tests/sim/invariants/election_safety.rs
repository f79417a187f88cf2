//! At most one leader per term.

use super::{Verdict, demand};
use concordat::ids::Term;
use std::collections::BTreeMap;

#[derive(Default)]
pub(crate) struct ElectionSafety {
    leaders: BTreeMap<Term, usize>,
}

impl ElectionSafety {
    pub(crate) fn leads(&mut self, node: usize, term: Term) -> Verdict {
        let first = *self.leaders.entry(term).or_insert(node);
        demand(first == node, "one leader per term", || format!("n{first} and n{node} both lead term {term}"))
    }

    pub(crate) fn elections(&self) -> u64 {
        self.leaders.len() as u64
    }
}

#[test]
fn two_leaders_in_a_term_are_caught() {
    let mut check = ElectionSafety::default();
    assert!(check.leads(0, Term(3)).is_ok());
    assert!(check.leads(0, Term(3)).is_ok());
    assert!(check.leads(1, Term(4)).is_ok());
    assert!(check.leads(1, Term(3)).is_err());
}
