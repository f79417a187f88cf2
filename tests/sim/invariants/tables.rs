//! Member tables follow from the log alone, and whatever claims a quorum has one of every table in force there, counted
//! table by table. Told by this checker's own walk along the log.

use super::{Verdict, demand};
use crate::chain::{Chain, Step};
use crate::hash::FastMap;
use concordat::certificate::{Entry, Half, HeadCertificate, Kind, MemberTable, QuorumRule, TableInForce};
use concordat::ids::{Digest, Epoch, LogIndex};
use std::cell::RefCell;
use std::sync::Arc;

/// The tables in force behind entry `index` of a log: one, or two while a change is in flight.
pub(crate) fn in_force(genesis: &Arc<TableInForce>, log: &Chain, index: LogIndex) -> Vec<Arc<TableInForce>> {
    let steps = log.steps().iter().take_while(|s| s.0 <= index);
    let closed = steps.clone().filter(|s| matches!(s.1, Step::Closes)).count();
    // Each change that is closed takes the oldest table out of force.
    let opened = steps.filter_map(|(_, step)| match step {
        Step::Opens(table, hash) => Some((table, hash)),
        Step::Closes => None,
    });
    let mut tables: Vec<Arc<TableInForce>> = (closed == 0).then(|| genesis.clone()).into_iter().collect();
    for (n, (table, hash)) in opened.enumerate().skip(closed.saturating_sub(1)) {
        tables.push(opened_by(table, *hash, Epoch(genesis.epoch.0 + n as u64 + 1), genesis.rule));
    }
    tables
}

/// Asked for at every commit of every node.
fn opened_by(table: &Arc<MemberTable>, hash: Digest, epoch: Epoch, rule: QuorumRule) -> Arc<TableInForce> {
    type Known = FastMap<(Digest, Epoch, u8), Arc<TableInForce>>;
    thread_local!(static KNOWN: RefCell<Known> = RefCell::default());
    let make = || Arc::new(TableInForce { epoch, epoch_hash: hash, table: (**table).clone(), rule });
    KNOWN.with_borrow_mut(|known| {
        if known.len() > 1_000 {
            known.clear();
        }
        known.entry((hash, epoch, rule as u8)).or_insert_with(make).clone()
    })
}

/// Whether a certificate's halves are one for each table, with a quorum's signatures each.
pub(crate) fn quorate(what: &str, halves: &[Half], genesis_id: &Digest, tables: &[Arc<TableInForce>]) -> Verdict {
    let named = tables[0].signed_under(genesis_id, tables.get(1).map(|t| &**t));
    let fine = halves.len() == tables.len()
        && halves.iter().zip(tables).zip(&named).all(|((half, table), name)| {
            (half.epoch, half.epoch_hash) == (name.epoch, name.epoch_hash)
                && half.signers.positions().count() >= table.quorum()
        });
    demand(fine, "a certificate has a quorum of every table in force", || {
        format!("{what}: {halves:?} under {:?}", tables.iter().map(|t| t.epoch).collect::<Vec<_>>())
    })
}

/// The next committed entry against the tables in force before it.
pub(crate) fn committed(entry: &Entry, genesis_id: &Digest, before: &[Arc<TableInForce>]) -> Verdict {
    let header = &entry.header;
    let current = if header.kind == Kind::EpochFinal { before.last() } else { before.first() };
    let epoch = current.expect("one at least").epoch;
    demand(header.epoch == epoch, "a header bears the epoch in force", || format!("{header:?} in epoch {epoch}"))?;
    match header.kind {
        Kind::Epoch => demand(before.len() == 1, "one change at a time", || format!("{header:?}")),
        Kind::EpochFinal => {
            demand(before.len() == 2, "only a change in flight is closed", || format!("{header:?}"))?;
            let joint = HeadCertificate::decode(&entry.body.payload);
            let joint = joint.ok().filter(|c| c.head.size < header.index.0);
            demand(joint.is_some(), "a change is closed by a certificate", || format!("{header:?}"))?;
            quorate("EpochFinal", &joint.expect("just seen").halves, genesis_id, before)
        }
        _ => Ok(()),
    }
}

#[test]
fn halves_missing_swapped_or_short_of_a_quorum_are_caught() {
    use crate::members::{Row, table};
    use concordat::certificate::{Bitmap, Signature};
    let of = |epoch, rows: &[Row]| {
        let (epoch, epoch_hash) = (Epoch(epoch), Digest([u8::try_from(epoch).unwrap(); 32]));
        Arc::new(TableInForce { epoch, epoch_hash, table: table(rows), rule: QuorumRule::Majority })
    };
    let three = [Row::voter(0), Row::voter(1), Row::voter(2)];
    let tables = vec![of(0, &three), of(1, &[Row::voter(0), Row::voter(3), Row::voter(4)])];
    let id = Digest([9; 32]);
    let named = tables[0].signed_under(&id, Some(&tables[1]));
    let half = |i: usize, signers: &[usize]| Half {
        epoch: named[i].epoch,
        epoch_hash: named[i].epoch_hash,
        signers: Bitmap::of(3, signers.iter().copied()),
        aggregate: Signature([0; 96]),
    };
    assert!(quorate("", &[half(0, &[0, 1]), half(1, &[1, 2])], &id, &tables).is_ok());
    assert!(quorate("", &[half(0, &[0, 1, 2]), half(1, &[0])], &id, &tables).is_err(), "of the union only");
    assert!(quorate("", &[half(0, &[0, 1])], &id, &tables).is_err(), "one half");
    assert!(quorate("", &[half(1, &[0, 1]), half(0, &[1, 2])], &id, &tables).is_err(), "swapped");
    let single = tables[0].signed_for(&id);
    let plain = Half { epoch_hash: single.epoch_hash, ..half(0, &[0, 1]) };
    assert!(quorate("", std::slice::from_ref(&plain), &id, &tables[..1]).is_ok());
    assert!(quorate("", &[plain, half(1, &[1, 2])], &id, &tables).is_err(), "signed for the current table alone");
}

#[test]
fn entries_out_of_the_order_of_changes_are_caught() {
    use super::planted::noop;
    use crate::members::{Row, table};
    let table = table(&[Row::voter(0)]);
    let of = |epoch| {
        let table = table.clone();
        Arc::new(TableInForce { epoch: Epoch(epoch), epoch_hash: Digest::ZERO, table, rule: QuorumRule::Majority })
    };
    let entry = |kind, epoch| {
        let mut entry = (*noop(1, 1)).clone();
        entry.header.kind = kind;
        entry.header.epoch = Epoch(epoch);
        entry
    };
    let id = Digest::ZERO;
    assert!(committed(&entry(Kind::Noop, 0), &id, &[of(0)]).is_ok());
    assert!(committed(&entry(Kind::Noop, 1), &id, &[of(0)]).is_err(), "another epoch");
    assert!(committed(&entry(Kind::Noop, 1), &id, &[of(0), of(1)]).is_err(), "the next epoch, too early");
    assert!(committed(&entry(Kind::Epoch, 0), &id, &[of(0)]).is_ok());
    assert!(committed(&entry(Kind::Epoch, 0), &id, &[of(0), of(1)]).is_err(), "a second change");
    assert!(committed(&entry(Kind::EpochFinal, 0), &id, &[of(0)]).is_err(), "none in flight");
    assert!(committed(&entry(Kind::EpochFinal, 1), &id, &[of(0), of(1)]).is_err(), "without its certificate");
}
