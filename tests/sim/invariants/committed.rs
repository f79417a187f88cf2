//! What is committed stays: every node's committed prefix is the same (state-machine safety), nobody drops or changes
//! any of it, every later leader holds it (leader completeness), and at the moment it is first called committed a
//! quorum of disks of each table in force holds it.

use super::{Verdict, demand};
use crate::chain::Chain;
use concordat::ids::LogIndex;

/// The disks of a table's voters (those that hold the keys it names), and how many of them are a quorum.
pub(crate) struct Disks<'a> {
    pub(crate) logs: Vec<&'a Chain>,
    pub(crate) quorum: usize,
}

#[derive(Default)]
pub(crate) struct Committed {
    /// Everything that any node ever called committed.
    pub(crate) ledger: Chain,
}

impl Committed {
    /// `log` is the node's log; `tables` tells the disks of each table in force behind an index of it: at its end, by
    /// which a leader counts, or at `upto`, by which a head of that size is certified. (The latter is enough: as long as
    /// the change behind it is not committed, every election needs a quorum of the table before it.)
    pub(crate) fn commits<'a>(
        &mut self,
        node: usize,
        upto: LogIndex,
        log: &Chain,
        tables: impl Fn(LogIndex) -> Vec<Disks<'a>>,
    ) -> Verdict {
        let known = upto.min(self.ledger.last());
        demand(log.at(known) == self.ledger.at(known), "state-machine safety", || {
            format!("n{node} commits up to {upto}, but its log differs from what was committed up to {known}")
        })?;
        if upto <= self.ledger.last() {
            return Ok(());
        }
        demand(log.last() >= upto, "commit within the log", || format!("n{node} commits {upto} of {}", log.last()))?;
        for link in
            log.links().iter().skip(usize::try_from(known.0).expect("small")).take_while(|l| l.entry.index() <= upto)
        {
            self.ledger.push(link.entry.clone());
        }
        let holders = |d: &Disks<'_>| d.logs.iter().filter(|l| l.at(upto) == log.at(upto)).count();
        let counts = |index| tables(index).iter().map(|d| (holders(d), d.quorum)).collect::<Vec<_>>();
        let quorate = |counts: &[(usize, usize)]| counts.iter().all(|c| c.0 >= c.1);
        let held = quorate(&counts(log.last())) || quorate(&counts(upto));
        demand(held, "committed means durable on a quorum of every table", || {
            format!("n{node} commits {upto}, on disks (of a quorum): {:?} or {:?}", counts(log.last()), counts(upto))
        })
    }

    pub(crate) fn leads(&self, node: usize, log: &Chain) -> Verdict {
        let upto = self.ledger.last();
        demand(log.at(upto) == self.ledger.at(upto), "leader completeness", || {
            format!("n{node} leads without (all of) the {upto} committed entries")
        })
    }

    /// A node's log after a rewrite, with the committed prefix that this node knew of before.
    pub(crate) fn rewritten(&self, node: usize, log: &Chain, committed: LogIndex) -> Verdict {
        demand(log.at(committed) == self.ledger.at(committed), "committed entries are never overwritten", || {
            format!("n{node} rewrote its log below its commit index {committed}")
        })
    }
}

#[test]
fn lost_changed_and_rashly_committed_entries_are_caught() {
    use super::planted::{chain, noop};
    let ours = chain([noop(1, 1), noop(2, 1)]);
    let theirs = chain([noop(1, 1), noop(2, 2)]);
    let short = chain([noop(1, 1)]);
    fn on<'a>(logs: &[&'a Chain], quorum: usize) -> Disks<'a> {
        Disks { logs: logs.to_vec(), quorum }
    }
    let mut check = Committed::default();
    let table = |_| vec![on(&[&ours, &theirs, &short], 2)];
    assert!(check.commits(0, LogIndex(1), &ours, table).is_ok());
    assert!(check.commits(0, LogIndex(2), &ours, table).is_err(), "one disk of three");
    let mut check = Committed::default();
    let joint = |_| vec![on(&[&ours, &ours, &short], 2), on(&[&short, &ours, &short], 2)];
    assert!(check.commits(0, LogIndex(2), &ours, joint).is_err(), "a quorum of one table of two");
    let mut check = Committed::default();
    assert!(check.commits(0, LogIndex(2), &ours, |_| vec![on(&[&ours, &ours, &short], 2)]).is_ok());
    assert!(check.commits(1, LogIndex(2), &theirs, |_| vec![on(&[&theirs], 1)]).is_err(), "another entry");
    assert!(check.leads(1, &ours).is_ok());
    assert!(check.leads(1, &theirs).is_err(), "a leader with another entry");
    assert!(check.leads(2, &short).is_err(), "a leader that lacks one");
    assert!(check.rewritten(0, &short, LogIndex(2)).is_err(), "dropped");
    assert!(check.rewritten(0, &short, LogIndex(1)).is_ok());
}
