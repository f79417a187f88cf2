//! What the owner does for membership, reads and leadership: connects to whoever the tables name, keeps keys in step with
//! them, and answers those who asked.

use super::Ended;
use super::executor::{Devices, Executor, Lookup};
use crate::certificate::{Member, MemberTable, TableInForce};
use crate::core::{Change, ChangeRefusal, Effect, Input, MarkRefusal, Tables, Transfer};
use crate::ids::{Epoch, LogIndex, NodeId};
use crate::transport::Peer;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use tokio::sync::oneshot;

/// How long a closing leader waits for another to take over, milliseconds.
const HANDOVER_MS: u64 = 1_000;

/// What handles ask about members, reads and leadership.
pub enum Query {
    /// Whether a change could be made now.
    CheckChange {
        /// The epoch from which the table is made.
        base: Epoch,
        /// The next table.
        table: MemberTable,
        /// Told at once.
        done: oneshot::Sender<Result<(), ChangeRefusal>>,
    },
    /// Make it.
    Change {
        /// How.
        change: Change,
        /// Told once it is in force, or that it is not.
        done: oneshot::Sender<Result<Epoch, ChangeRefusal>>,
    },
    /// Hand leadership over.
    Transfer {
        /// To whom; `None`: to the voter that is furthest.
        to: Option<NodeId>,
        /// Told what became of it.
        done: oneshot::Sender<Transfer>,
    },
    /// Up to which index must a linearizable read see the log?
    Read {
        /// Told the index; `None`: nobody can say now.
        done: oneshot::Sender<Option<LogIndex>>,
    },
    /// Append a snapshot mark.
    Mark {
        /// Told its index, or why there is none.
        done: oneshot::Sender<Result<LogIndex, MarkRefusal>>,
    },
    /// The store holds another set of keys.
    Keys,
    /// Membership changes learned outside the log, verified.
    Epochs(Vec<Arc<TableInForce>>),
}

/// Those who wait for an answer, by the handle under which the core was asked.
#[derive(Default)]
pub(super) struct Waiters {
    changes: HashMap<u64, oneshot::Sender<Result<Epoch, ChangeRefusal>>>,
    transfers: HashMap<u64, oneshot::Sender<Transfer>>,
    reads: HashMap<u64, oneshot::Sender<Option<LogIndex>>>,
    /// Under which a closing node hands leadership over, and until when it waits.
    handover: Option<(u64, u64)>,
}

impl<D: Devices> Executor<D> {
    pub(super) fn next_handle(&mut self) -> u64 {
        let handle = self.next_handle;
        self.next_handle += 1;
        handle
    }

    pub(super) fn on_query(&mut self, query: Query) {
        match query {
            Query::CheckChange { base, table, done } => {
                // A caller that gave up is no news; so below.
                let _gone = done.send(self.core.check_change(base, &table));
            }
            Query::Change { change, done } => {
                let handle = self.next_handle();
                self.waiters.changes.insert(handle, done);
                self.feed(Input::Change { handle, change });
            }
            Query::Transfer { to, done } => {
                let handle = self.next_handle();
                self.waiters.transfers.insert(handle, done);
                self.feed(Input::Transfer { handle, to });
            }
            Query::Read { done } => {
                let handle = self.next_handle();
                self.waiters.reads.insert(handle, done);
                self.feed(Input::Read { handle });
            }
            Query::Mark { done } => self.on_mark(done),
            Query::Keys => self.feed(Input::Keys(self.devices.public_keys())),
            Query::Epochs(tables) => self.feed(Input::EpochsVerified { tables, in_flight: None }),
        }
    }

    /// The effects of reads, transfers and membership.
    pub(super) fn on_membership(&mut self, effect: Effect) {
        match effect {
            Effect::ReadReady { handle, index } => self.answer_read(handle, Some(index)),
            Effect::ReadRefused { handle } => self.answer_read(handle, None),
            Effect::Transferred { handle, outcome } => {
                if self.waiters.handover.is_some_and(|h| h.0 == handle) {
                    self.stop.get_or_insert(Ended::Closed);
                }
                if let Some(done) = self.waiters.transfers.remove(&handle) {
                    let _gone = done.send(outcome);
                }
            }
            Effect::Changed { handle, outcome } => {
                if let Some(done) = self.waiters.changes.remove(&handle) {
                    let _gone = done.send(outcome);
                }
            }
            Effect::FetchEpochs { peer, above } => self.devices.look_up(Lookup::Epochs { peer, above }),
            Effect::Membership { tables, ahead, leaving } => self.connect(&tables, &ahead, leaving),
            Effect::InForce(table) => self.devices.settle_keys(&table),
            _ => {}
        }
    }

    fn answer_read(&mut self, handle: u64, index: Option<LogIndex>) {
        if let Some(done) = self.waiters.reads.remove(&handle) {
            let _gone = done.send(index);
        }
    }

    /// Dials and accepts whoever stands in a table in force, in one that is proved to follow, or was left out by the last
    /// change. Others that were members since this node started are accepted, so that they can be told.
    fn connect(&mut self, tables: &Arc<Tables>, ahead: &[Arc<TableInForce>], leaving: Vec<Member>) {
        let present = tables.all().chain(ahead.iter().map(|t| &**t)).flat_map(|t| t.table.members());
        // The newest row of a member says where it is.
        let rows = leaving.iter().chain(present).map(|m| (m.did, m.address.clone()));
        let rows: BTreeMap<NodeId, String> = rows.collect();
        for (id, address) in &rows {
            self.known.insert(*id, address.clone());
        }
        let peer = |(id, address): (&NodeId, &String)| Peer {
            id: *id,
            address: address.clone(),
            former: !rows.contains_key(id),
        };
        let peers = self.known.iter().map(peer).collect();
        self.devices.connect(tables, peers);
    }

    /// A leader that is asked to close hands leadership over first, so that nobody waits for an election timeout.
    pub(super) fn on_close(&mut self) {
        if self.waiters.handover.is_some() {
            return;
        }
        if self.core.leader() != Some(self.id) {
            self.stop.get_or_insert(Ended::Closed);
            return;
        }
        let handle = self.next_handle();
        self.waiters.handover = Some((handle, self.devices.now().mono + HANDOVER_MS));
        self.feed(Input::Transfer { handle, to: None });
    }
}

impl Waiters {
    /// Until when a closing leader waits, on the monotonic clock; then it closes all the same.
    pub(super) fn handover_due(&self) -> u64 {
        self.handover.map_or(u64::MAX, |(_, until)| until)
    }
}
