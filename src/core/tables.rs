//! The member tables in force, and quorums as pure functions of them.

use crate::certificate::{Half, Member, PublicKey, Signature, SignedFor, TableInForce};
use crate::ids::{Digest, LogIndex, NodeId};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// The table in force, and the next one while a membership change is in flight. Every quorum here is one of *each*
/// table, counted on its own, never of their union (Raft dissertation, section 4.3).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Tables {
    genesis_id: Digest,
    current: Arc<TableInForce>,
    next: Option<Arc<TableInForce>>,
}

/// Signatures collected so far, by signer: one for each table in which it is a voter and whose key it holds.
pub(super) type Shares = BTreeMap<NodeId, Vec<(SignedFor, Signature)>>;

impl Tables {
    /// One table, or two while `next` is in flight.
    #[must_use]
    pub fn new(genesis_id: Digest, current: Arc<TableInForce>, next: Option<Arc<TableInForce>>) -> Self {
        Self { genesis_id, current, next }
    }

    /// The cluster.
    #[must_use]
    pub fn genesis_id(&self) -> &Digest {
        &self.genesis_id
    }

    /// The table whose number headers bear.
    #[must_use]
    pub fn current(&self) -> &TableInForce {
        &self.current
    }

    /// The table of the change in flight.
    #[must_use]
    pub fn next(&self) -> Option<&TableInForce> {
        self.next.as_deref()
    }

    /// The table of the change in flight, or else the current one.
    #[must_use]
    pub fn newest(&self) -> &TableInForce {
        self.next.as_deref().unwrap_or(&self.current)
    }

    /// Whether a change is in flight.
    #[must_use]
    pub fn is_joint(&self) -> bool {
        self.next.is_some()
    }

    /// Both tables, or the one; the current first.
    pub fn all(&self) -> impl Iterator<Item = &TableInForce> {
        std::iter::once(&*self.current).chain(self.next.as_deref())
    }

    /// Under which names heads and election claims are signed, one for each table.
    #[must_use]
    pub fn under(&self) -> Vec<SignedFor> {
        self.current.signed_under(&self.genesis_id, self.next.as_deref())
    }

    /// The signatures asked of a member: one for each table in which it is a voter, by the key that stands there.
    #[must_use]
    pub fn asked_of(&self, id: &NodeId) -> Vec<(SignedFor, PublicKey)> {
        let rows = self.all().map(|t| t.table.get(id).filter(|_| t.table.voter_position(id).is_some()));
        self.under().into_iter().zip(rows).filter_map(|(under, row)| Some((under, row?.bls_key))).collect()
    }

    /// The table whose members sign under this name.
    #[must_use]
    pub fn signing(&self, under: &SignedFor) -> Option<&TableInForce> {
        self.under().iter().zip(self.all()).find(|(u, _)| *u == under).map(|(_, table)| table)
    }

    /// Whether those voters for whom `has` holds are a quorum of every table.
    pub fn reached(&self, has: impl Fn(&Member) -> bool) -> bool {
        self.all().all(|t| t.table.voters().filter(|m| has(m)).count() >= t.quorum())
    }

    /// Whether signatures of a quorum of every table are there.
    pub(super) fn signed(&self, shares: &Shares) -> bool {
        self.under().iter().zip(self.all()).all(|(under, t)| {
            let has = |m: &&Member| shares.get(&m.did).is_some_and(|s| s.iter().any(|s| s.0 == *under));
            t.table.voters().filter(has).count() >= t.quorum()
        })
    }

    /// The signatures of every table's voters, by table.
    pub(super) fn by_table(&self, shares: &Shares) -> Vec<(SignedFor, Vec<(NodeId, Signature)>)> {
        let by = |(under, t): (SignedFor, &TableInForce)| {
            let of = |m: &Member| shares.get(&m.did)?.iter().find(|s| s.0 == under).map(|s| (m.did, s.1));
            (under, t.table.voters().filter_map(of).collect())
        };
        self.under().into_iter().zip(self.all()).map(by).collect()
    }

    /// The highest index that a quorum of every table holds durably.
    pub fn committed(&self, matched: impl Fn(&Member) -> LogIndex) -> LogIndex {
        let per_table = self.all().map(|t| {
            let mut indexes: Vec<LogIndex> = t.table.voters().map(&matched).collect();
            indexes.sort_unstable_by(|a, b| b.cmp(a));
            indexes.get(t.quorum() - 1).copied().unwrap_or_default()
        });
        per_table.min().unwrap_or_default()
    }

    /// A member's row, the newest if there are two.
    #[must_use]
    pub fn row(&self, id: &NodeId) -> Option<&Member> {
        self.next.as_ref().and_then(|t| t.table.get(id)).or_else(|| self.current.table.get(id))
    }

    /// All members of the tables in force.
    #[must_use]
    pub fn members(&self) -> BTreeSet<NodeId> {
        self.all().flat_map(|t| t.table.members().iter().map(|m| m.did)).collect()
    }

    /// All voters of the tables in force.
    #[must_use]
    pub fn voters(&self) -> BTreeSet<NodeId> {
        self.all().flat_map(|t| t.table.voters().map(|m| m.did)).collect()
    }

    /// Whether a certificate's halves name these tables.
    pub(super) fn are_named_by(&self, halves: &[Half]) -> bool {
        let under = self.under();
        halves.len() == under.len()
            && halves.iter().zip(under).all(|(h, u)| (h.epoch, h.epoch_hash) == (u.epoch, u.epoch_hash))
    }
}
