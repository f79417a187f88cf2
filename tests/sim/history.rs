//! What clients wrote to the registry and read from it, each from its call to its answer; and whether there is one order
//! of all of it that respects these times and in which every answer is the one of a plain map (linearizability). Keys
//! are independent of each other, so each is looked at on its own, with the search of Wing and Gong that remembers
//! where it has been.

use crate::hash::FastMap;
use crate::invariants::{Verdict, demand};
use std::collections::{BTreeMap, BTreeSet};

/// What a key holds: a value and the revision it was set at; both zero when there is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Held {
    pub(crate) value: u64,
    pub(crate) revision: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum What {
    Read(Held),
    /// Set, provided that the revision before was `only_if`; became `held`.
    Set {
        only_if: Option<u64>,
        held: Held,
    },
    /// Not set, because the revision was another one.
    Conflict {
        only_if: u64,
        actual: u64,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Op {
    /// Virtual microseconds; so below.
    pub(crate) called: u64,
    pub(crate) answered: u64,
    pub(crate) what: What,
}

impl Op {
    /// What the key holds after this, if its answer is right where the key holds `before`.
    fn after(&self, before: Held) -> Option<Held> {
        let (right, after) = match self.what {
            Read(held) => (held == before, before),
            // A revision is the place in the log, so it ascends.
            Set { only_if, held } => {
                (only_if.is_none_or(|r| r == before.revision) && held.revision > before.revision, held)
            }
            Conflict { only_if, actual } => (actual == before.revision && only_if != before.revision, before),
        };
        right.then_some(after)
    }

    fn changes(&self) -> bool {
        matches!(self.what, Set { .. })
    }
}

use What::{Conflict, Read, Set};

/// Everything that was answered, by key.
#[derive(Default)]
pub(crate) struct History {
    /// Writes under way by their call: key, value, condition, and when they were called.
    pub(crate) open: FastMap<usize, (usize, u64, Option<u64>, u64)>,
    ops: BTreeMap<usize, Vec<Op>>,
}

impl History {
    pub(crate) fn answered(&mut self, key: usize, op: Op) {
        self.ops.entry(key).or_default().push(op);
    }

    /// The newest revision of a key that anybody was told.
    pub(crate) fn newest_revision(&self, key: usize) -> u64 {
        let told = self.ops.get(&key).into_iter().flatten().rev().find_map(|op| match op.what {
            Read(held) | Set { held, .. } => Some(held.revision),
            Conflict { .. } => None,
        });
        told.unwrap_or(0)
    }

    pub(crate) fn is_linearizable(&self) -> Verdict {
        self.ops.iter().try_for_each(|(key, ops)| {
            let mut ops = ops.clone();
            ops.sort_by_key(|op| (op.called, op.answered));
            let mut search = Search { ops: &ops, done: vec![false; ops.len()], seen: BTreeSet::new(), furthest: 0 };
            demand(search.holds(0, Held::default()), "the registry is linearizable", || {
                let around = search.furthest.saturating_sub(10)..ops.len().min(search.furthest + 10);
                format!("key k{key}: no order of {} calls explains these: {:#?}", ops.len(), &ops[around])
            })
        })
    }
}

/// Tries one operation after another that could have come first of those left: called before any other was answered.
struct Search<'a> {
    /// By when they were called.
    ops: &'a [Op],
    done: Vec<bool>,
    /// Where this search came to nothing: all before the first are done, these behind it, and the key held this.
    seen: BTreeSet<(usize, Vec<usize>, Held)>,
    furthest: usize,
}

impl Search<'_> {
    fn holds(&mut self, from: usize, held: Held) -> bool {
        let Some(first) = (from..self.ops.len()).find(|i| !self.done[*i]) else { return true };
        self.furthest = self.furthest.max(first);
        let mut candidates = self.candidates(first);
        // Whatever changes nothing and is right now can come now: putting it first constrains none of the others.
        if let Some(at) = candidates.iter().find(|i| !self.ops[**i].changes() && self.ops[**i].after(held).is_some()) {
            self.done[*at] = true;
            let holds = self.holds(first, held);
            self.done[*at] &= holds;
            return holds;
        }
        let behind = (first..self.ops.len()).filter(|i| self.done[*i]).collect();
        if !self.seen.insert((first, behind, held)) {
            return false;
        }
        // The likeliest first.
        candidates.sort_by_key(|i| match self.ops[*i].what {
            Set { held, .. } => held.revision,
            _ => u64::MAX,
        });
        for at in candidates {
            if let Some(next) = self.ops[at].after(held) {
                self.done[at] = true;
                if self.holds(first, next) {
                    return true;
                }
                self.done[at] = false;
            }
        }
        false
    }

    fn candidates(&self, first: usize) -> Vec<usize> {
        let (mut left, mut earliest) = (Vec::new(), u64::MAX);
        for at in first..self.ops.len() {
            if self.ops[at].called > earliest {
                break;
            }
            if !self.done[at] {
                earliest = earliest.min(self.ops[at].answered);
                left.push(at);
            }
        }
        left.retain(|at| self.ops[*at].called <= earliest);
        left
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn op(called: u64, answered: u64, what: What) -> Op {
        Op { called, answered, what }
    }

    fn set(value: u64, revision: u64) -> What {
        Set { only_if: None, held: Held { value, revision } }
    }

    fn read(value: u64, revision: u64) -> What {
        Read(Held { value, revision })
    }

    fn verdict(ops: &[Op]) -> Verdict {
        let mut history = History::default();
        ops.iter().for_each(|op| history.answered(1, *op));
        history.is_linearizable()
    }

    #[test]
    fn what_some_order_explains_passes() {
        let good = [
            op(0, 5, read(0, 0)),
            op(1, 30, set(7, 3)),
            // Under way at the same time: one reads before, the other behind.
            op(10, 12, read(7, 3)),
            op(6, 9, read(0, 0)),
            op(31, 40, Set { only_if: Some(3), held: Held { value: 8, revision: 6 } }),
            op(32, 50, Conflict { only_if: 3, actual: 6 }),
            op(33, 60, set(9, 5)),
            op(61, 70, read(8, 6)),
        ];
        assert!(verdict(&good[..6]).is_ok());
        // 5 came before 6, yet 6 demanded 3.
        assert!(verdict(&good).is_err());
        let concurrent: Vec<Op> =
            (1..200).map(|n| op(n, 1_000 - n, set(n, n))).chain([op(999, 1_001, read(199, 199))]).collect();
        assert!(verdict(&concurrent).is_ok());
    }

    #[test]
    fn a_stale_read_is_caught() {
        let base = [op(0, 5, set(7, 3)), op(6, 9, set(8, 4))];
        assert!(verdict(&[base[0], base[1], op(10, 11, read(8, 4))]).is_ok());
        assert!(verdict(&[base[0], base[1], op(10, 11, read(7, 3))]).is_err());
        assert!(verdict(&[base[0], base[1], op(8, 11, read(7, 3))]).is_ok(), "called before the answer to the second");
        assert!(
            verdict(&[base[0], op(6, 20, set(8, 4)), op(7, 8, read(8, 4)), op(9, 10, read(7, 3))]).is_err(),
            "back in time"
        );
    }

    #[test]
    fn a_lost_or_invented_write_is_caught() {
        assert!(verdict(&[op(0, 5, set(7, 3)), op(6, 9, read(0, 0))]).is_err(), "lost");
        assert!(verdict(&[op(0, 5, set(7, 3)), op(6, 9, read(8, 4))]).is_err(), "nobody wrote this");
        assert!(verdict(&[op(0, 5, set(7, 3)), op(6, 9, read(7, 4))]).is_err(), "another revision");
    }

    #[test]
    fn writes_out_of_their_order_are_caught() {
        assert!(
            verdict(&[op(0, 5, set(7, 4)), op(6, 9, set(8, 3))]).is_err(),
            "the later one has the earlier revision"
        );
        assert!(verdict(&[op(0, 6, set(7, 4)), op(6, 9, set(8, 3))]).is_ok(), "at the same time");
    }

    #[test]
    fn conditions_that_were_judged_wrongly_are_caught() {
        let only_if = |r, value, revision| Set { only_if: Some(r), held: Held { value, revision } };
        assert!(verdict(&[op(0, 5, only_if(0, 7, 3)), op(6, 9, only_if(3, 8, 4))]).is_ok());
        assert!(verdict(&[op(0, 5, only_if(0, 7, 3)), op(6, 9, only_if(0, 8, 4))]).is_err(), "set twice from nothing");
        assert!(verdict(&[op(0, 5, set(7, 3)), op(6, 9, Conflict { only_if: 3, actual: 3 })]).is_err(), "it held");
        assert!(verdict(&[op(0, 5, set(7, 3)), op(6, 9, Conflict { only_if: 1, actual: 2 })]).is_err(), "another one");
    }
}
