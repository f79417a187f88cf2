//! A request stands at most once among the committed entries. (Entries are admitted by a leader that holds the whole log
//! before them and knows every request in it, so within one log a request cannot be repeated.)

use super::{Verdict, demand};
use crate::hash::FastMap;
use concordat::certificate::Entry;
use concordat::ids::{Digest, LogIndex};

#[derive(Default)]
pub(crate) struct ExactlyOnce {
    upto: LogIndex,
    first: FastMap<Digest, LogIndex>,
}

impl ExactlyOnce {
    pub(crate) fn upto(&self) -> LogIndex {
        self.upto
    }

    pub(crate) fn committed(&mut self, entry: &Entry) -> Verdict {
        self.upto = entry.index();
        let Some(request) = &entry.body.request else { return Ok(()) };
        let first = *self.first.entry(request.key()).or_insert(entry.index());
        demand(first == entry.index(), "a request is committed once", || {
            format!("request {} stands at {first} and at {}", request.request_id, entry.index())
        })
    }
}

#[test]
fn a_request_committed_twice_is_caught() {
    use super::planted::{noop, proposal};
    let mut check = ExactlyOnce::default();
    assert!(check.committed(&noop(1, 1)).is_ok());
    assert!(check.committed(&proposal(2, 1, "a")).is_ok());
    assert!(check.committed(&proposal(3, 1, "b")).is_ok());
    assert!(check.committed(&proposal(4, 2, "a")).is_err());
}
