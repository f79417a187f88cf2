//! What a client was told is true for ever: the entry stands in the committed log where and as it was told.

use super::{Verdict, demand};
use crate::chain::Chain;
use crate::hash::FastMap;
use crate::machine::Outcome;
use concordat::ids::Digest;

#[derive(Default)]
pub(crate) struct Outcomes {
    told: FastMap<Digest, Outcome>,
    newest: Option<Digest>,
}

impl Outcomes {
    pub(crate) fn told(&mut self, key: Digest, outcome: Outcome, committed: &Chain) -> Verdict {
        let first = *self.told.entry(key).or_insert(outcome);
        self.newest = Some(key);
        demand(first == outcome, "one outcome per request", || format!("told {first:?}, then {outcome:?}"))?;
        check(&key, &outcome, committed)
    }

    /// The request whose outcome was told last.
    pub(crate) fn newest(&self) -> Option<Digest> {
        self.newest
    }

    /// Everything told so far, against the log at the end.
    pub(crate) fn all_true(&self, committed: &Chain) -> Verdict {
        self.told.iter().try_for_each(|(key, outcome)| check(key, outcome, committed))
    }
}

fn check(key: &Digest, outcome: &Outcome, committed: &Chain) -> Verdict {
    let stands = committed.get(outcome.index).is_some_and(|link| {
        let header = &link.entry.header;
        link.entry.body.request.as_ref().is_some_and(|r| r.key() == *key)
            && header.kind == outcome.kind
            && header.proposal_id == Some(outcome.id)
            && header.payload_hash == outcome.content
    });
    demand(stands, "outcomes are true", || format!("a client was told {outcome:?}, which the log does not say"))
}

#[test]
fn untrue_and_changing_outcomes_are_caught() {
    use super::planted::{chain, noop, proposal};
    let entry = proposal(2, 1, "a");
    let committed = chain([noop(1, 1), entry.clone()]);
    let key = entry.body.request.as_ref().unwrap().key();
    let outcome = Outcome {
        index: entry.index(),
        id: entry.header.proposal_id.unwrap(),
        kind: entry.header.kind,
        content: entry.header.payload_hash,
    };
    let mut check = Outcomes::default();
    assert!(check.told(key, outcome, &committed).is_ok());
    assert!(check.all_true(&committed).is_ok());
    assert!(check.all_true(&chain([noop(1, 1)])).is_err(), "lost");
    assert!(check.all_true(&chain([noop(1, 1), proposal(2, 1, "b")])).is_err(), "replaced");
    let other = Outcome { index: concordat::ids::LogIndex(1), ..outcome };
    assert!(check.told(key, other, &committed).is_err(), "another outcome");
}
