//! applied ≤ delivered ≤ min(committed, durable) ≤ last; certified ≤ committed; the disk really holds what the core
//! calls durable; terms and commit indexes never regress (after a restart: not below what the disk held).

use super::{Verdict, demand};
use concordat::ids::{LogIndex, Term};
use std::collections::BTreeMap;

#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Standing {
    pub(crate) term: Term,
    pub(crate) applied: LogIndex,
    pub(crate) delivered: LogIndex,
    pub(crate) committed: LogIndex,
    pub(crate) certified: LogIndex,
    pub(crate) durable: LogIndex,
    pub(crate) last: LogIndex,
    /// Whether the disk holds exactly this log up to `durable`.
    pub(crate) holds: bool,
    /// Entries on the disk.
    pub(crate) on_disk: LogIndex,
    /// The term on the disk.
    pub(crate) disk_term: Term,
}

#[derive(Default)]
pub(crate) struct Positions {
    before: BTreeMap<usize, Standing>,
}

impl Positions {
    /// A node came (back) up: positions may have fallen to what its disk holds.
    pub(crate) fn restarted(&mut self, node: usize, now: Standing) -> Verdict {
        demand(now.term == now.disk_term, "the term survives a restart", || format!("n{node} restarts with {now:?}"))?;
        demand(now.last == now.on_disk, "the log survives a restart", || format!("n{node} restarts with {now:?}"))?;
        self.before.remove(&node);
        self.stands(node, now)
    }

    pub(crate) fn stands(&mut self, node: usize, now: Standing) -> Verdict {
        let s = now;
        let ordered = s.applied <= s.delivered
            && s.delivered <= s.committed.min(s.durable)
            && s.committed <= s.last
            && s.durable <= s.last
            && s.certified <= s.committed;
        demand(ordered, "positions are ordered", || format!("n{node}: {s:?}"))?;
        demand(s.holds, "durable is on the disk", || format!("n{node}: {s:?}"))?;
        if let Some(b) = self.before.insert(node, now) {
            let forward = s.term >= b.term
                && s.committed >= b.committed
                && s.delivered >= b.delivered
                && s.applied >= b.applied
                && s.certified >= b.certified;
            demand(forward, "terms and commits never regress", || format!("n{node}: {b:?}, then {s:?}"))?;
        }
        Ok(())
    }
}

#[test]
fn disorder_and_regress_are_caught() {
    let fine = Standing {
        term: Term(2),
        applied: LogIndex(3),
        delivered: LogIndex(4),
        committed: LogIndex(5),
        certified: LogIndex(5),
        durable: LogIndex(6),
        last: LogIndex(7),
        holds: true,
        on_disk: LogIndex(7),
        disk_term: Term(2),
    };
    let wrong = [
        Standing { applied: LogIndex(5), ..fine },
        Standing { delivered: LogIndex(6), applied: LogIndex(3), ..fine },
        Standing { committed: LogIndex(8), ..fine },
        Standing { certified: LogIndex(6), ..fine },
        Standing { durable: LogIndex(8), ..fine },
        Standing { holds: false, ..fine },
        Standing { term: Term(1), ..fine },
        Standing { committed: LogIndex(4), certified: LogIndex(4), ..fine },
    ];
    for standing in wrong {
        let mut check = Positions::default();
        assert!(check.stands(0, fine).is_ok());
        assert!(check.stands(0, standing).is_err(), "{standing:?}");
    }
    let mut check = Positions::default();
    assert!(check.restarted(0, Standing { term: Term(1), ..fine }).is_err());
    assert!(check.restarted(0, Standing { on_disk: LogIndex(6), ..fine }).is_err());
    assert!(check.restarted(0, fine).is_ok());
}
