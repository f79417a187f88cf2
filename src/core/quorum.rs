//! Quorums as pure functions of the tables in force.

use crate::certificate::TableInForce;
use crate::ids::{LogIndex, NodeId};

/// Whether those for whom `has` holds are a quorum of *every* table, each counted on its own: during a membership
/// change the old and the new table must each agree, never their union (Raft dissertation, section 4.3).
pub(super) fn reached(tables: &[TableInForce], has: impl Fn(&NodeId) -> bool) -> bool {
    tables.iter().all(|t| t.table.voters().filter(|m| has(&m.did)).count() >= t.quorum())
}

/// Whether a quorum can still be reached when those for whom `refused` holds never agree.
pub(super) fn possible(tables: &[TableInForce], refused: impl Fn(&NodeId) -> bool) -> bool {
    reached(tables, |id| !refused(id))
}

/// The highest index that a quorum of every table holds durably.
pub(super) fn committed(tables: &[TableInForce], matched: impl Fn(&NodeId) -> LogIndex) -> LogIndex {
    let per_table = tables.iter().map(|t| {
        let mut indexes: Vec<LogIndex> = t.table.voters().map(|m| matched(&m.did)).collect();
        indexes.sort_unstable_by(|a, b| b.cmp(a));
        indexes.get(t.quorum() - 1).copied().unwrap_or_default()
    });
    per_table.min().unwrap_or_default()
}

/// Whether `id` is a voter of any table in force.
pub(super) fn is_voter(tables: &[TableInForce], id: &NodeId) -> bool {
    tables.iter().any(|t| t.table.voter_position(id).is_some())
}
