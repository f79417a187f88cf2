//! A member signs at most one claim per term, across restarts. (With a fresh store, and so with another key, it is
//! another signer.)

use super::{Verdict, demand};
use concordat::certificate::ElectionClaim;
use concordat::ids::Term;
use std::collections::BTreeMap;

#[derive(Default)]
pub(crate) struct OneVote {
    signed: BTreeMap<(usize, usize, Term), ElectionClaim>,
}

impl OneVote {
    pub(crate) fn signs(&mut self, (node, store): (usize, usize), claim: ElectionClaim) -> Verdict {
        let first = *self.signed.entry((node, store, claim.term)).or_insert(claim);
        demand(first == claim, "one vote per term", || format!("n{node} signed {first:?} and {claim:?}"))
    }
}

#[test]
fn a_second_claim_in_a_term_is_caught() {
    use concordat::ids::{Digest, NodeId};
    let claim = |candidate, last_size| ElectionClaim {
        term: Term(2),
        candidate: NodeId([candidate; 32]),
        last_term: Term(1),
        last_size,
        last_root: Digest::ZERO,
    };
    let mut check = OneVote::default();
    assert!(check.signs((0, 0), claim(1, 5)).is_ok());
    assert!(check.signs((0, 0), claim(1, 5)).is_ok());
    assert!(check.signs((1, 0), claim(2, 5)).is_ok());
    assert!(check.signs((0, 0), claim(2, 5)).is_err(), "another candidate");
    assert!(check.signs((0, 0), claim(1, 6)).is_err(), "the same candidate with another log");
    assert!(check.signs((0, 1), claim(2, 5)).is_ok(), "another store");
}
