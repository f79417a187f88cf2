//! What a run really exercised: a fault that never fires is a defect of the simulator.

use crate::hash::FastMap;
use std::collections::BTreeMap;
use std::fmt;

/// Counts by kind and name. Names are literals, found by where they lie in memory (several times a name at most, which
/// reading them sums up): this is counted for every message.
#[derive(Clone, Debug, Default)]
pub(crate) struct Coverage(FastMap<(usize, usize, usize), (&'static str, &'static str, u64)>);

impl Coverage {
    pub(crate) fn count(&mut self, kind: &'static str, what: &'static str) {
        self.counts(kind, what, 1);
    }

    fn counts(&mut self, kind: &'static str, what: &'static str, n: u64) {
        let at = (kind.as_ptr().addr(), what.as_ptr().addr(), kind.len() << 32 | what.len());
        self.0.entry(at).or_insert((kind, what, 0)).2 += n;
    }

    pub(crate) fn of(&self, kind: &'static str, what: &'static str) -> u64 {
        self.0.values().filter(|c| (c.0, c.1) == (kind, what)).map(|c| c.2).sum()
    }

    pub(crate) fn add(&mut self, other: &Self) {
        for (kind, what, n) in other.0.values() {
            self.counts(kind, what, *n);
        }
    }
}

impl fmt::Display for Coverage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut all: BTreeMap<(&str, &str), u64> = BTreeMap::new();
        for (kind, what, n) in self.0.values() {
            *all.entry((kind, what)).or_default() += n;
        }
        all.iter().try_for_each(|((kind, what), n)| writeln!(f, "  {n:>10}  {kind}: {what}"))
    }
}
