//! Membership: which tables are in force where in the log, how they change, and how a node that missed changes learns of
//! them. Classical joint consensus; the last `Epoch` entry of the log governs from the moment it is appended, committed
//! or not, so everything there is to know about a change is in the log and nothing of it is lost in a restart.

use super::progress::Progress;
use super::tables::Tables;
use super::{Ballot, Change, ChangeRefusal, Core, Crypto, Effect, Message, State, ballot::Decision, progress::Flow};
use crate::certificate::{
    Entry, EpochChain, Genesis, Half, HeadCertificate, Header, Kind, Member, MemberTable, PublicKey, Request, Role,
    TableInForce, Tally,
};
use crate::ids::{Digest, Epoch, LogIndex, NodeId};
use crate::limits::{MAX_PROMOTION_LAG, MAX_TTL_MS};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

/// Tables kept in memory of those that are no longer in force: whoever last heard of one of them is told what followed.
const KEEP: usize = 16;

/// How long proofs are being verified at most, milliseconds; until then no others are looked at.
const CHECK_MS: u64 = 5_000;

/// What equal and opposite keys share.
type KeyName = [u8; 48];

/// A member table and the entries that set it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct EpochMark {
    table: Arc<TableInForce>,
    /// The `Epoch` entry; zero for the genesis.
    set_at: LogIndex,
    /// The `EpochFinal` entry, once there is one; zero for the genesis.
    final_at: Option<LogIndex>,
    /// The `Epoch` entry itself, for those who must be told of the change in flight.
    entry: Option<Arc<Entry>>,
}

/// Every member table that this node knows, and where each came into force.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Epochs {
    genesis_id: Digest,
    genesis: Arc<TableInForce>,
    /// Those of the log, ascending; never empty.
    marks: VecDeque<EpochMark>,
    /// Keys of tables that are forgotten.
    retired: BTreeSet<KeyName>,
    /// Members of tables that are forgotten.
    former: BTreeSet<NodeId>,
    /// Proved to be in force one after another behind those of the log, which does not reach them yet.
    ahead: Vec<Arc<TableInForce>>,
    /// Said to be in flight behind all of these. An election certificate under it proves it: the quorum of the table
    /// before signs its hash along.
    in_flight: Option<Arc<TableInForce>>,
}

fn key_names(table: &TableInForce) -> impl Iterator<Item = KeyName> {
    table.table.members().iter().map(|m| m.bls_key.x_coordinate())
}

impl Epochs {
    fn new(genesis: &Genesis) -> Self {
        let zero = LogIndex::ZERO;
        let genesis_table = Arc::new(genesis.in_force());
        let first = EpochMark { table: genesis_table.clone(), set_at: zero, final_at: Some(zero), entry: None };
        let marks = VecDeque::from([first]);
        Self {
            genesis_id: genesis.id(),
            genesis: genesis_table,
            marks,
            retired: BTreeSet::new(),
            former: BTreeSet::new(),
            ahead: Vec::new(),
            in_flight: None,
        }
    }

    /// As a log left them.
    pub(super) fn restore<'a>(genesis: &Genesis, entries: impl IntoIterator<Item = &'a Arc<Entry>>) -> Self {
        let mut epochs = Self::new(genesis);
        for entry in entries {
            epochs.append(entry);
        }
        epochs
    }

    /// The log begins after a snapshot; these are the changes before it. What was proved of later ones stays.
    pub(super) fn begin_after(&mut self, entries: &[Arc<Entry>]) {
        let zero = LogIndex::ZERO;
        let first = EpochMark { table: self.genesis.clone(), set_at: zero, final_at: Some(zero), entry: None };
        self.marks = VecDeque::from([first]);
        for entry in entries {
            self.append(entry);
        }
    }

    /// A table that this node knows.
    pub(super) fn table(&self, epoch: Epoch) -> Option<Arc<TableInForce>> {
        self.known().find(|t| t.epoch == epoch).cloned()
    }

    pub(super) fn settled_epoch(&self, committed: LogIndex) -> Epoch {
        self.settled(committed).table.epoch
    }

    /// In force behind the entry at `index`, as this log says.
    pub(super) fn tables_at(&self, index: LogIndex) -> Tables {
        let after = self.marks.partition_point(|m| m.set_at <= index).max(1);
        let mark = &self.marks[after - 1];
        let joint = after > 1 && mark.final_at.is_none_or(|f| f > index);
        match joint {
            true => Tables::new(self.genesis_id, self.marks[after - 2].table.clone(), Some(mark.table.clone())),
            false => Tables::new(self.genesis_id, mark.table.clone(), None),
        }
    }

    pub(super) fn tables(&self) -> Tables {
        self.tables_at(LogIndex(u64::MAX))
    }

    fn last(&self) -> &EpochMark {
        self.marks.back().expect("begins with the genesis table")
    }

    /// The last table for which a joint certificate is known: whatever happens to the log, it is or was in force.
    fn newest_proved(&self) -> &Arc<TableInForce> {
        let of_log = self.marks.iter().rfind(|m| m.final_at.is_some()).expect("the genesis table is final");
        self.ahead.last().unwrap_or(&of_log.table)
    }

    /// The last table whose `EpochFinal` is committed.
    fn settled(&self, committed: LogIndex) -> &EpochMark {
        self.marks.iter().rfind(|m| m.final_at.is_some_and(|f| f <= committed)).unwrap_or(&self.marks[0])
    }

    /// As [`Epochs::settled`], or said to be so by others.
    fn settled_or_told(&self, committed: LogIndex, told: Epoch) -> &EpochMark {
        let settled = |m: &&EpochMark| m.final_at.is_some_and(|f| f <= committed || m.table.epoch <= told);
        self.marks.iter().rfind(settled).unwrap_or(&self.marks[0])
    }

    /// The table before the last one, while the `EpochFinal` that replaced it is not known to be committed.
    fn replaced_lately(&self, committed: LogIndex, told: Epoch) -> Option<&TableInForce> {
        let settled = self.settled_or_told(committed, told).table.epoch;
        let before = self.marks.len().checked_sub(2).and_then(|i| self.marks.get(i))?;
        (self.last().final_at.is_some() && self.last().table.epoch > settled).then_some(&*before.table)
    }

    /// Takes notice of an appended entry; returns whether the tables in force changed.
    fn append(&mut self, entry: &Arc<Entry>) -> bool {
        match entry.header.kind {
            Kind::Epoch => {
                let table = MemberTable::decode_granted(&entry.body.payload).expect("checked before it was appended");
                let before = &self.last().table;
                let (epoch, rule) = (before.epoch.next(), before.rule);
                let table = TableInForce { epoch, epoch_hash: entry.header.leaf_hash(), table, rule };
                let (table, set_at) = (Arc::new(table), entry.index());
                self.marks.push_back(EpochMark { table, set_at, final_at: None, entry: Some(entry.clone()) });
            }
            Kind::EpochFinal => self.marks.back_mut().expect("never empty").final_at = Some(entry.index()),
            _ => return false,
        }
        let proved = self.marks.iter().rfind(|m| m.final_at.is_some()).map(|m| m.table.epoch);
        self.ahead.retain(|t| Some(t.epoch) > proved);
        true
    }

    /// Takes notice of a cut; returns whether the tables in force changed.
    fn truncate(&mut self, from: LogIndex) -> bool {
        let before = (self.marks.len(), self.last().final_at);
        while self.marks.len() > 1 && self.last().set_at >= from {
            self.marks.pop_back();
        }
        let last = self.marks.back_mut().expect("never empty");
        if last.set_at > LogIndex::ZERO && last.final_at.is_some_and(|f| f >= from) {
            last.final_at = None;
        }
        before != (self.marks.len(), self.last().final_at)
    }

    /// Forgets tables that were replaced long ago, but not their keys.
    fn prune(&mut self, committed: LogIndex) {
        let settled = self.settled(committed).table.epoch;
        while self.marks.len() > KEEP && self.marks[1].table.epoch < settled {
            let gone = self.marks.pop_front().expect("just seen");
            self.retired.extend(key_names(&gone.table));
            self.former.extend(gone.table.table.members().iter().map(|m| m.did));
        }
    }

    fn known(&self) -> impl Iterator<Item = &Arc<TableInForce>> {
        self.marks.iter().map(|m| &m.table).chain(&self.ahead)
    }

    /// The tables that a certificate names, of the epoch `oldest` or a later one.
    pub(super) fn named_by(&self, halves: &[Half], oldest: Epoch) -> Option<Tables> {
        let currents = || self.known().filter(|t| t.epoch >= oldest);
        let single = currents().map(|t| Tables::new(self.genesis_id, t.clone(), None));
        let nexts = || self.known().chain(&self.in_flight);
        let joint = currents().flat_map(|t| {
            let next = nexts().filter(move |n| n.epoch == t.epoch.next());
            next.map(move |n| Tables::new(self.genesis_id, t.clone(), Some(n.clone())))
        });
        single.chain(joint).find(|t| t.are_named_by(halves))
    }

    /// Takes over what was proved. Returns whether it is news.
    fn learn(&mut self, tables: Vec<Arc<TableInForce>>, in_flight: Option<Arc<TableInForce>>) -> bool {
        let mut news = false;
        for table in tables {
            if table.epoch == self.newest_proved().epoch.next() {
                self.ahead.push(table);
                news = true;
            }
        }
        if in_flight.as_ref().is_some_and(|t| t.epoch == self.newest_proved().epoch.next())
            && in_flight != self.in_flight
        {
            self.in_flight = in_flight;
            news = true;
        }
        news
    }

    /// Members of the table that the last change replaced, and of none in force.
    fn left_out(&self) -> Vec<Member> {
        let before = self.marks.len().checked_sub(2).and_then(|i| self.marks.get(i));
        let tables = self.tables();
        let all = before.iter().flat_map(|m| m.table.table.members());
        all.filter(|m| tables.row(&m.did).is_none()).cloned().collect()
    }

    /// Tables that are not in this log.
    fn beyond(&self) -> Vec<Arc<TableInForce>> {
        let end = self.newest_proved().epoch;
        let in_flight = self.in_flight.iter().filter(|t| t.epoch > end);
        self.ahead.iter().chain(in_flight).cloned().collect()
    }

    /// Whether a member stands in a table in force, or in one that is proved to follow.
    fn is_current(&self, id: &NodeId) -> bool {
        let beyond = || self.ahead.iter().chain(&self.in_flight).any(|t| t.table.get(id).is_some());
        self.tables().row(id).is_some() || beyond()
    }

    fn is_former(&self, id: &NodeId) -> bool {
        self.former.contains(id) || self.marks.iter().any(|m| m.table.table.get(id).is_some())
    }
}

/// A change that this leader is making.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Changing {
    pub(super) handle: u64,
    base: Epoch,
}

impl Core {
    /// Appends an entry, whoever made it; every way into the log goes through here.
    pub(super) fn push(&mut self, entry: Arc<Entry>) {
        self.remember_request(&entry);
        let changed = self.epochs.append(&entry);
        self.snapshots.append(&entry);
        self.log.append(entry);
        if changed {
            self.tables_changed();
        }
    }

    pub(super) fn truncate(&mut self, from: LogIndex) {
        self.log.truncate(from);
        self.requests.retain(|_, r| r.index < from);
        self.snapshots.truncate(from);
        if self.epochs.truncate(from) {
            self.tables_changed();
        }
    }

    pub(super) fn tables_changed(&mut self) {
        let before = std::mem::replace(&mut self.tables, Arc::new(self.epochs.tables()));
        self.announce_membership();
        self.renew_peers();
        if before.current().epoch != self.tables.current().epoch {
            self.count_ballots_anew();
        }
    }

    /// Of a restart too: the store may have stopped between the commit and the erasure of its old keys.
    pub(super) fn announce_in_force(&mut self) {
        let settled = self.epochs.settled(self.committed).table.clone();
        self.in_force = settled.epoch;
        self.effects.push(Effect::InForce(settled));
    }

    pub(super) fn announce_membership(&mut self) {
        let (ahead, leaving) = (self.epochs.beyond(), self.epochs.left_out());
        self.effects.push(Effect::Membership { tables: self.tables.clone(), ahead, leaving });
    }

    /// Whether this node is a voter of a table in force, by a key that it holds.
    pub(super) fn is_voter(&self) -> bool {
        self.tables.asked_of(&self.id).iter().any(|(_, key)| self.keys.contains(key))
    }

    /// Whether this store holds the keys by which a leader takes it for a member: one, or two while they are rotated.
    pub(super) fn holds_all(&self, keys: &[PublicKey]) -> bool {
        (1..=2).contains(&keys.len()) && keys.iter().all(|key| self.keys.contains(key))
    }

    /// Whether this node was a member and is none any more, for good: nothing rests on it.
    #[must_use]
    pub fn is_retired(&self) -> bool {
        let ahead = self.epochs.ahead.last();
        let newest = ahead.unwrap_or(&self.epochs.settled_or_told(self.committed, self.told_in_force).table);
        let gone = newest.table.get(&self.id).is_none() && (ahead.is_some() || self.tables.row(&self.id).is_none());
        gone && self.epochs.is_former(&self.id)
    }

    /// The newest table whose `EpochFinal` is known to be committed.
    #[must_use]
    pub fn in_force(&self) -> &Arc<TableInForce> {
        &self.epochs.settled(self.committed).table
    }

    /// The tables in force at the end of this node's log.
    #[must_use]
    pub fn tables(&self) -> &Arc<Tables> {
        &self.tables
    }

    /// Whether this node may stand for election: a voter, and not known to be left out since. Whoever is left out by an
    /// `EpochFinal` that may not be committed stands too, without counting itself: those who lack that entry need its
    /// vote, which it must deny them for their shorter log, so that nobody could ever be elected (Raft dissertation,
    /// section 4.2.2).
    pub(super) fn may_stand(&self) -> bool {
        let held = |m: &Member| m.role == Role::Voter && self.keys.contains(&m.bls_key);
        let replaced = self.epochs.replaced_lately(self.committed, self.told_in_force);
        let on_its_way_out = replaced.and_then(|t| t.table.get(&self.id)).is_some_and(held);
        (self.is_voter() || on_its_way_out) && self.epochs.ahead.last().is_none_or(|t| t.table.get(&self.id).is_some())
    }

    // ---- who may speak ----

    /// Whether a message is to be looked at. A former member is only told what changed since. (A leader that is left out
    /// leads until its removal is committed, and those left out with it are served until they know; but no term of theirs
    /// frees anybody.)
    pub(super) fn hears(&mut self, from: &NodeId, message: &Message) -> bool {
        let served = matches!(&self.state, State::Leader(lead) if lead.peers.contains_key(from))
            && message.term().is_none_or(|t| t <= self.hard.term);
        if self.epochs.is_current(from) || self.leader == Some(*from) || served {
            return true;
        }
        match message {
            Message::PreVote { epoch: above, .. } | Message::EpochsWanted { above } if self.epochs.is_former(from) => {
                self.tell_epochs(*from, *above);
            }
            // It may lead by tables that are not known here, even when none of the members known here is left: its
            // proofs tell, whoever brings them.
            Message::Append { to_keys, .. } | Message::Heartbeat { to_keys, .. } if self.holds_all(to_keys) => {
                let above = self.known_epoch();
                self.send(*from, Message::EpochsWanted { above });
            }
            Message::Epochs { .. } => return true,
            _ => {}
        }
        false
    }

    /// Sends a peer the changes above an epoch, once they are fetched.
    pub(super) fn tell_epochs(&mut self, peer: NodeId, above: Epoch) {
        let left_out = !self.epochs.is_current(&peer) && above <= self.in_force;
        let something = above < self.epochs.newest_proved().epoch || self.tables.is_joint() || left_out;
        if something && self.telling.insert(peer, above).is_none() {
            self.effects.push(Effect::FetchEpochs { peer, above });
        }
    }

    pub(super) fn on_epochs_fetched(&mut self, peer: NodeId, chain: EpochChain) {
        let Some(above) = self.telling.remove(&peer) else { return };
        let reached = above.0 + chain.steps.len() as u64;
        let last = self.epochs.last();
        let in_flight: Vec<_> = (self.tables.is_joint() && reached == self.tables.current().epoch.0)
            .then(|| last.entry.clone())
            .flatten()
            .into_iter()
            .collect();
        let in_force = self.in_force;
        let left_out = !self.epochs.is_current(&peer) && above <= in_force;
        if !chain.steps.is_empty() || !in_flight.is_empty() || left_out {
            self.send(peer, Message::Epochs { chain, in_flight, in_force });
        }
    }

    pub(super) fn on_epochs(&mut self, from: &NodeId, chain: EpochChain, in_flight: Vec<Arc<Entry>>, in_force: Epoch) {
        let base = self.epochs.newest_proved().clone();
        if base.table.get(from).is_some() {
            self.told_in_force = self.told_in_force.max(in_force);
        }
        let first = chain.steps.first().map(|s| &s.entry).or(in_flight.first().map(|e| &**e));
        let follows = first.is_some_and(|e| e.header.epoch == base.epoch);
        if !follows || self.now.mono < self.epochs_checked_until {
            return;
        }
        // Nobody answers when they do not verify.
        self.epochs_checked_until = self.now.mono + CHECK_MS;
        let in_flight = in_flight.into_iter().next();
        let genesis_id = self.genesis_id;
        self.effects.push(Effect::Crypto(Crypto::VerifyEpochs { genesis_id, base, chain, in_flight }));
    }

    pub(super) fn on_epochs_verified(&mut self, tables: Vec<Arc<TableInForce>>, in_flight: Option<Arc<TableInForce>>) {
        self.epochs_checked_until = 0;
        if self.epochs.learn(tables, in_flight) {
            self.announce_membership();
        }
    }

    /// The newest epoch known to be in force.
    pub(super) fn known_epoch(&self) -> Epoch {
        self.epochs.newest_proved().epoch
    }

    // ---- the leader's peers ----

    /// The keys of a member's rows, when its rows are those of one store: a rotated key stands beside the old one; a
    /// member that comes back with a fresh store comes back as a learner, and only its new row counts.
    fn keys_of(&self, id: &NodeId) -> Vec<PublicKey> {
        let row = |t: &TableInForce| t.table.get(id).map(|m| (m.bls_key, m.role));
        let (current, next) = (row(self.tables.current()), self.tables.next().and_then(row));
        match (current, next) {
            (Some((old, Role::Voter)), Some((new, Role::Voter))) if old != new => vec![old, new],
            (_, Some((key, _))) | (Some((key, _)), None) => vec![key],
            (None, None) => Vec::new(),
        }
    }

    /// Everyone else in the tables in force.
    pub(super) fn new_peers(&self) -> BTreeMap<NodeId, Progress> {
        let next = self.log.last().next();
        let others = self.others().into_iter();
        others.map(|id| (id, Progress::new(next, 1, self.keys_of(&id)))).collect()
    }

    /// After a change of tables: new members and new lives of old ones start from nothing, in sessions of their own;
    /// members left out are served until they know that they are.
    fn renew_peers(&mut self) {
        if !matches!(self.state, State::Leader(_)) {
            return;
        }
        let keys: Vec<(NodeId, Vec<PublicKey>)> = self.others().into_iter().map(|id| (id, self.keys_of(&id))).collect();
        let next = self.log.last().next();
        let final_at = self.epochs.last().final_at;
        let State::Leader(lead) = &mut self.state else { return };
        for (id, keys) in &keys {
            let same = lead.peers.get_mut(id).filter(|p| p.keys.iter().any(|k| keys.contains(k)));
            if let Some(peer) = same {
                peer.keys.clone_from(keys);
                peer.leaves_at = None;
            } else {
                // Acknowledgements of an earlier life bear an earlier session and never count (etcd and others lost data
                // when a member was removed and added again within one term).
                lead.sessions += 1;
                lead.peers.insert(*id, Progress::new(next, lead.sessions, keys.clone()));
            }
        }
        for (id, peer) in &mut lead.peers {
            if !keys.iter().any(|k| k.0 == *id) {
                peer.leaves_at = peer.leaves_at.or(final_at);
            }
        }
    }

    /// Lets go of members that were told that they are left out. (If the message is lost, they are told when they ask.)
    pub(super) fn dismiss_peers(&mut self) {
        let State::Leader(lead) = &mut self.state else { return };
        lead.peers.retain(|_, p| p.leaves_at.is_none_or(|at| p.commit_told < at));
    }

    // ---- changes ----

    /// Whether a change could be made now, and if not, why.
    ///
    /// # Errors
    /// [`ChangeRefusal`].
    pub fn check_change(&self, base: Epoch, table: &MemberTable) -> Result<(), ChangeRefusal> {
        let State::Leader(lead) = &self.state else { return Err(ChangeRefusal::NotLeader { leader: self.leader }) };
        if self.tables.is_joint() || lead.change.is_some() {
            return Err(ChangeRefusal::InFlight);
        }
        if lead.transfer.is_some() {
            return Err(ChangeRefusal::Transferring);
        }
        // Without an entry of its own term committed, a leader does not know which change of earlier terms is committed,
        // and two leaders could each make one on the same base with quorums that do not meet (the Raft single-server bug
        // of 2015 and its like).
        if self.log.term_at(self.committed) != Some(self.hard.term) || self.committed < self.epochs.last().set_at {
            return Err(ChangeRefusal::NotSettled);
        }
        self.check_table(base, table)
    }

    fn check_table(&self, base: Epoch, table: &MemberTable) -> Result<(), ChangeRefusal> {
        let current = self.tables.current();
        if base != current.epoch {
            return Err(ChangeRefusal::Stale { current: current.epoch });
        }
        if *table == current.table {
            return Err(ChangeRefusal::Unchanged);
        }
        if let Some(member) = table.members().iter().find(|m| self.is_old_key(m)) {
            return Err(ChangeRefusal::OldKey(member.did));
        }
        let behind: Vec<NodeId> = table.voters().filter(|m| !self.may_vote_next(m)).map(|m| m.did).collect();
        if !behind.is_empty() {
            return Err(ChangeRefusal::NotCaughtUp { behind });
        }
        let quorum = current.rule.quorum(table.voters().count());
        let silent: Vec<NodeId> = table.voters().filter(|m| !self.has_answered(&m.did)).map(|m| m.did).collect();
        if table.voters().count() - silent.len() < quorum {
            return Err(ChangeRefusal::NoQuorum { quorum, silent });
        }
        Ok(())
    }

    /// A key that comes back after it was retired, or moves to another member.
    fn is_old_key(&self, member: &Member) -> bool {
        let same = self.tables.current().table.get(&member.did).is_some_and(|m| m.bls_key == member.bls_key);
        let name = member.bls_key.x_coordinate();
        !same && (self.epochs.retired.contains(&name) || self.epochs.known().any(|t| key_names(t).any(|k| k == name)))
    }

    fn has_answered(&self, id: &NodeId) -> bool {
        let State::Leader(lead) = &self.state else { return false };
        let since = self.now.mono.saturating_sub(self.options.election_timeout_ms.1);
        let recent = |p: &Progress| p.heard_since(since);
        *id == self.id || lead.peers.get(id).is_some_and(recent)
    }

    /// A voter stays one (also with a rotated key: its store is the same); a learner becomes one when it holds the log.
    fn may_vote_next(&self, member: &Member) -> bool {
        let State::Leader(lead) = &self.state else { return false };
        let Some(row) = self.tables.current().table.get(&member.did) else { return false };
        if row.role == Role::Voter {
            return row.bls_key == member.bls_key || self.has_answered(&member.did);
        }
        let near = |p: &Progress| p.flow == Flow::Replicate && p.matched.0 + MAX_PROMOTION_LAG >= self.log.last().0;
        row.bls_key == member.bls_key && lead.peers.get(&member.did).is_some_and(near)
    }

    pub(super) fn change(&mut self, handle: u64, change: Change) {
        let Change { base, table, salt, ttl_ms } = change;
        if let Err(refusal) = self.check_change(base, &table) {
            self.effects.push(Effect::Changed { handle, outcome: Err(refusal) });
            return;
        }
        let id = self.next_proposal_id(self.id);
        let ttl_ms = ttl_ms.min(MAX_TTL_MS);
        let required_quorum = self.quorum_bounds().0;
        // Names the attempt: an answer on record holds for this table under this salt and no other.
        let request = Request {
            client: "membership".into(),
            request_id: hex::encode(salt),
            deadline_ms: self.now.wall.max(self.log.last_proposed_at()).saturating_add(ttl_ms),
        };
        let under = self.tables.current().signed_for(&self.genesis_id);
        let payload = table.encode();
        if let State::Leader(lead) = &mut self.state {
            lead.change = Some(Changing { handle, base });
        }
        let kind = Kind::Epoch;
        self.open_ballot(Ballot { id, kind, request, salt, payload, required_quorum, ttl_ms, under }, None);
    }

    /// The ballot on a change is decided.
    pub(super) fn on_change_decided(&mut self, ballot: &Ballot, decision: Decision, tally: Tally, denied: Vec<NodeId>) {
        let State::Leader(lead) = &mut self.state else { return };
        let Some(changing) = lead.change.take() else { return };
        let refusal = match decision {
            Decision::Aborted(crate::certificate::AbortReason::Rejected) => Some(ChangeRefusal::Rejected { denied }),
            Decision::Aborted(_) => Some(ChangeRefusal::Expired),
            Decision::Granted => {
                let table = MemberTable::decode_granted(&ballot.payload).expect("encoded by this leader");
                self.check_change(changing.base, &table).err()
            }
        };
        if let Some(refusal) = refusal {
            self.effects.push(Effect::Changed { handle: changing.handle, outcome: Err(refusal) });
            return;
        }
        let header = Header { tally: Some(tally), ..self.payload_header(Kind::Epoch, &ballot.salt, &ballot.payload) };
        let body = crate::certificate::Body { salt: ballot.salt, request: None, payload: ballot.payload.clone() };
        if let State::Leader(lead) = &mut self.state {
            lead.change = Some(changing);
        }
        self.append_entry(header, body);
    }

    /// Closes the change in flight once it is committed and certified by both tables: `EpochFinal` carries that
    /// certificate, so that whoever holds the log can prove the change. Whichever leader comes to this point does it; a
    /// change is never stuck with the leader that began it.
    pub(super) fn finish_change(&mut self) {
        if !matches!(self.state, State::Leader(_)) || !self.tables.is_joint() {
            return;
        }
        let set_at = self.epochs.last().set_at;
        let covers = |c: &&Arc<HeadCertificate>| c.halves.len() == 2 && c.head.size >= set_at.0;
        let Some(certificate) = self.certificate.as_ref().filter(covers) else { return };
        // Certified means committed; see `settle_certificate`.
        assert!(self.committed >= set_at, "what is certified is committed");
        let payload = certificate.encode();
        self.append_own(Kind::EpochFinal, payload);
    }

    /// Tells when a table is in force for good, and steps down when this leader is not in it.
    pub(super) fn settle_epochs(&mut self) {
        // Durable here, too: the keys that it replaces are erased then, and the log must not fall back behind that.
        let settled = self.epochs.settled(self.committed.min(self.log.durable())).table.clone();
        if settled.epoch > self.in_force {
            self.epochs.prune(self.committed);
            self.announce_in_force();
            if let State::Leader(lead) = &mut self.state
                && let Some(changing) = lead.change.take_if(|c| c.base < settled.epoch)
            {
                self.effects.push(Effect::Changed { handle: changing.handle, outcome: Ok(settled.epoch) });
            }
        }
        let left_out = !self.tables.is_joint() && settled.epoch == self.tables.current().epoch && !self.is_voter();
        if left_out && matches!(self.state, State::Leader(_)) {
            self.yield_leadership();
        }
    }

    /// Checks a batch of a leader's entries against the order of changes: `Epoch` opens one, `EpochFinal` closes it, and
    /// every header bears the epoch in force.
    pub(super) fn keeps_epochs(&self, prev: LogIndex, entries: &[Arc<Entry>]) -> bool {
        let tables = self.epochs.tables_at(prev);
        let mut epoch = tables.current().epoch;
        let mut open = tables.is_joint().then(|| self.opened_at(prev));
        entries.iter().all(|e| {
            let header = &e.header;
            match header.kind {
                Kind::Epoch => {
                    let fine = open.is_none() && MemberTable::decode_granted(&e.body.payload).is_ok();
                    open = Some(header.index);
                    fine && header.epoch == epoch
                }
                Kind::EpochFinal => {
                    let joint = HeadCertificate::decode(&e.body.payload).ok();
                    let covers = |c: HeadCertificate| {
                        let range = open.is_some_and(|at| at.0 <= c.head.size && c.head.size < header.index.0);
                        range && c.halves.len() == 2
                    };
                    let fine = joint.is_some_and(covers);
                    open = None;
                    epoch = epoch.next();
                    fine && header.epoch == epoch
                }
                Kind::SnapshotMark => open.is_none() && header.epoch == epoch,
                _ => header.epoch == epoch,
            }
        })
    }

    fn opened_at(&self, index: LogIndex) -> LogIndex {
        self.epochs.marks.iter().rfind(|m| m.set_at <= index).map(|m| m.set_at).unwrap_or_default()
    }
}
