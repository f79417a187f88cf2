//! Members, leadership and reads, as handles ask for them.

use super::executor::Event;
use super::handle::{Handle, random};
use super::membership::Query;
use crate::api::{
    ChangeError, ChangeMembers, ChangedMembers, Consistency, MarkError, Marked, MemberOp, Members, NewKey, ReadError,
    TransferError, Transferred,
};
use crate::certificate::{Member, MemberTable, Role, SecretKey, TableInForce};
use crate::core::{Change, ChangeRefusal, MarkRefusal, Transfer};
use crate::ids::{LogIndex, NodeId};
use crate::limits::{DEFAULT_TTL_MS, MAX_TTL_MS, MIN_TTL_MS, READ_WAIT_MS};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;

/// Pause before a read that nobody could confirm is asked for again.
const READ_AGAIN: Duration = Duration::from_millis(20);

/// How fresh the state was that a read may look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Freshness {
    /// What was asked for, and holds.
    pub consistency: Consistency,
    /// See [`crate::api::AsOf::age_ms`].
    pub age_ms: Option<u64>,
}

impl Handle {
    /// The tables in force at the end of this node's log.
    #[must_use]
    pub fn members(&self) -> Members {
        let tables = self.shared.tables();
        let current = tables.current();
        Members {
            epoch: current.epoch.0,
            epoch_hash: current.epoch_hash,
            rule: current.rule,
            quorum: current.quorum(),
            members: current.table.members().to_vec(),
            next: tables.next().map(|t| t.table.members().to_vec()),
        }
    }

    /// Changes the members, and returns once the new table is in force, committed. Only at the leader.
    ///
    /// # Errors
    /// [`ChangeError`].
    pub async fn change_members(&self, asked: ChangeMembers) -> Result<ChangedMembers, ChangeError> {
        let ChangeMembers { changes, base_epoch, dry_run, ttl_ms } = asked;
        let ttl_ms = ttl_ms.unwrap_or(DEFAULT_TTL_MS);
        if !(MIN_TTL_MS..=MAX_TTL_MS).contains(&ttl_ms) {
            return Err(ChangeError::InvalidTtl);
        }
        // Another node's table may be older, and so its verdict wrong.
        let leader = self.shared.view().leader;
        if leader != Some(self.shared.id) {
            return Err(ChangeError::NotLeader { leader });
        }
        let tables = self.shared.tables();
        let current = tables.current();
        if base_epoch.is_some_and(|base| base != current.epoch.0) {
            return Err(ChangeError::Refused { refusal: ChangeRefusal::Stale { current: current.epoch } });
        }
        let rows = next_rows(current, changes)?;
        // Proofs of possession cost a pairing each.
        let table = tokio::task::spawn_blocking(move || MemberTable::new(rows)).await;
        let table = table
            .map_err(|_| ChangeError::Closed)?
            .map_err(|why| ChangeError::InvalidTable { detail: why.to_string() })?;
        let (base, quorum) = (current.epoch, current.rule.quorum(table.voters().count()));
        let answer =
            |epoch, table: &MemberTable| ChangedMembers { epoch, quorum, members: table.members().to_vec(), dry_run };
        let refused = |refusal| match refusal {
            ChangeRefusal::NotLeader { leader } => ChangeError::NotLeader { leader },
            refusal => ChangeError::Refused { refusal },
        };
        if dry_run {
            let (done, checked) = oneshot::channel();
            self.query(Query::CheckChange { base, table: table.clone(), done }).await.ok_or(ChangeError::Closed)?;
            checked.await.map_err(|_| ChangeError::Closed)?.map_err(refused)?;
            return Ok(answer(base.next().0, &table));
        }
        let (done, changed) = oneshot::channel();
        let change = Change { base, table: table.clone(), salt: random(), ttl_ms };
        self.query(Query::Change { change, done }).await.ok_or(ChangeError::Closed)?;
        let epoch = changed.await.map_err(|_| ChangeError::Closed)?.map_err(refused)?;
        Ok(answer(epoch.0, &table))
    }

    /// Makes a second BLS key in this node's store, durably, to replace the first one by a [`MemberOp::RotateKey`]. As long
    /// as there is one, it is the one that is given.
    ///
    /// # Errors
    /// [`super::QueryError::Store`].
    pub async fn make_key(&self) -> Result<NewKey, super::QueryError> {
        let shared = self.shared.clone();
        let made = tokio::task::spawn_blocking(move || {
            let _turn = shared.rotation();
            // One that was made before may stand in a table by now, or be about to: it must not be lost for another.
            if let Some(key) = shared.signer.second_key() {
                return Ok(NewKey { id: shared.id, bls_key: key.public(), possession: key.prove_possession() });
            }
            let key = Arc::new(SecretKey::generate(&random()));
            shared.store.add_key(&key).map_err(|e| super::QueryError::Store(e.into()))?;
            // Shown, and used, only after it is durable.
            shared.signer.set_second_key(key.clone());
            Ok(NewKey { id: shared.id, bls_key: key.public(), possession: key.prove_possession() })
        });
        let made: Result<NewKey, super::QueryError> =
            made.await.unwrap_or_else(|_| Err(super::queries::not_found("the task that makes keys")));
        let made = made?;
        self.query(Query::Keys).await;
        Ok(made)
    }

    /// Hands leadership over, and returns once another term has begun.
    ///
    /// # Errors
    /// [`TransferError`].
    pub async fn transfer_leadership(&self, to: Option<NodeId>) -> Result<Transferred, TransferError> {
        if to == Some(self.shared.id) && self.shared.view().leader == to {
            // Perhaps by an earlier try whose answer was lost.
            return Ok(Transferred { leader: to });
        }
        let (done, transferred) = oneshot::channel();
        self.query(Query::Transfer { to, done }).await.ok_or(TransferError::Closed)?;
        let outcome = transferred.await.map_err(|_| TransferError::Closed)?;
        let leader = self.shared.view().leader.filter(|l| *l != self.shared.id);
        match outcome {
            Transfer::Done => Ok(Transferred { leader }),
            Transfer::TimedOut => Err(TransferError::TimedOut),
            Transfer::Replaced => Err(TransferError::Replaced),
            Transfer::NotLeader => Err(TransferError::NotLeader { leader }),
            Transfer::NoTarget => Err(TransferError::NoTarget),
        }
    }

    /// Appends a snapshot mark: every node makes an image of its state there, and what a certified one stands for may be
    /// pruned. Only at the leader.
    ///
    /// # Errors
    /// [`MarkError`].
    pub async fn mark_snapshot(&self) -> Result<Marked, MarkError> {
        let (done, marked) = oneshot::channel();
        self.query(Query::Mark { done }).await.ok_or(MarkError::Closed)?;
        match marked.await.map_err(|_| MarkError::Closed)? {
            Ok(index) => Ok(Marked { index }),
            Err(MarkRefusal::NotLeader { leader }) => Err(MarkError::NotLeader { leader }),
            Err(refusal) => Err(MarkError::Refused { refusal }),
        }
    }

    /// Waits until the state applied here is as fresh as asked: linearizable, and (in either case) not before an index
    /// that the caller knows. At most [`READ_WAIT_MS`] for each.
    ///
    /// # Errors
    /// [`ReadError`].
    pub async fn fresh(&self, consistency: Consistency, min: LogIndex) -> Result<Freshness, ReadError> {
        let patience = Duration::from_millis(READ_WAIT_MS);
        let wanted = match consistency {
            Consistency::Stale => min,
            Consistency::Linearizable => {
                let confirmed = tokio::time::timeout(patience, self.read_index()).await;
                confirmed.map_err(|_| ReadError::Unconfirmed)??.max(min)
            }
        };
        let mut applied = self.shared.applied.subscribe();
        let mut ended = self.shared.ended.subscribe();
        tokio::select! {
            biased;
            reached = tokio::time::timeout(patience, applied.wait_for(|a| *a >= wanted)) => match reached {
                Ok(Ok(_)) => {}
                Ok(Err(_)) => return Err(ReadError::Closed),
                Err(_) => return Err(ReadError::NotApplied { wanted, applied: *self.shared.applied.borrow() }),
            },
            _ = ended.wait_for(Option::is_some) => return Err(ReadError::Closed),
        }
        let age_ms = match consistency {
            Consistency::Linearizable => None,
            Consistency::Stale => {
                let now = self.shared.clock.now().mono;
                self.shared.view().fresh_at.map(|at| now.saturating_sub(at))
            }
        };
        Ok(Freshness { consistency, age_ms })
    }

    async fn read_index(&self) -> Result<LogIndex, ReadError> {
        loop {
            let (done, confirmed) = oneshot::channel();
            self.query(Query::Read { done }).await.ok_or(ReadError::Closed)?;
            if let Some(index) = confirmed.await.map_err(|_| ReadError::Closed)? {
                return Ok(index);
            }
            tokio::time::sleep(READ_AGAIN).await;
        }
    }

    /// Tells the core of membership changes that the caller has verified from the genesis on.
    pub(super) async fn learn_epochs(&self, tables: Vec<TableInForce>) {
        self.query(Query::Epochs(tables.into_iter().map(Arc::new).collect())).await;
    }

    async fn query(&self, query: Query) -> Option<()> {
        self.shared.events.send(Event::Query(query)).await.ok()
    }
}

/// Applies changes to a table, step by step.
fn next_rows(current: &TableInForce, changes: Vec<MemberOp>) -> Result<Vec<Member>, ChangeError> {
    let mut rows = current.table.members().to_vec();
    let mut rotated = Vec::new();
    for change in changes {
        if let MemberOp::RotateKey { id, .. } = &change {
            rotated.push(*id);
        }
        step(&mut rows, change)?;
    }
    for row in rows.iter().filter(|r| r.role == Role::Voter && !rotated.contains(&r.did)) {
        if current.table.get(&row.did).is_some_and(|m| m.bls_key != row.bls_key) {
            let detail = "comes back with a fresh store: as a learner first, and a voter once it holds the log".into();
            return Err(ChangeError::DoesNotApply { id: row.did, detail });
        }
    }
    Ok(rows)
}

fn step(rows: &mut Vec<Member>, change: MemberOp) -> Result<(), ChangeError> {
    let unfit = |id, detail: &str| ChangeError::DoesNotApply { id, detail: detail.into() };
    let at = |rows: &[Member], id| {
        rows.iter().position(|m| m.did == id).ok_or_else(|| unfit(id, "is no member; `member list` shows them"))
    };
    match change {
        MemberOp::Add { member } => {
            let row = Member { role: Role::Learner, ..member };
            match rows.iter_mut().find(|m| m.did == row.did) {
                None => rows.push(row),
                Some(known) if known.bls_key == row.bls_key => {
                    return Err(unfit(row.did, "is a member already, with this key"));
                }
                // Its store was lost, and with it its memory: it begins anew, as a learner.
                Some(known) => *known = row,
            }
        }
        MemberOp::Promote { id } => {
            let at = at(rows, id)?;
            if std::mem::replace(&mut rows[at].role, Role::Voter) == Role::Voter {
                return Err(unfit(id, "is a voter already"));
            }
        }
        MemberOp::Demote { id } => {
            let at = at(rows, id)?;
            if std::mem::replace(&mut rows[at].role, Role::Learner) == Role::Learner {
                return Err(unfit(id, "is a learner already"));
            }
        }
        MemberOp::Remove { id } => {
            let at = at(rows, id)?;
            rows.remove(at);
        }
        MemberOp::RotateKey { id, bls_key, possession } => {
            let at = at(rows, id)?;
            let row = &mut rows[at];
            if row.role == Role::Learner {
                return Err(unfit(id, "is a learner; a voter's key is rotated, a learner is added anew"));
            }
            (row.bls_key, row.possession) = (bls_key, possession);
        }
        MemberOp::Set { id, address, policy } => {
            let at = at(rows, id)?;
            let row = &mut rows[at];
            row.address = address.unwrap_or_else(|| row.address.clone());
            row.policy = policy.unwrap_or(row.policy);
        }
    }
    Ok(())
}
