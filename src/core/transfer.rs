//! Leadership transfer: the leader takes no more proposals, brings the target up to date, and tells it to stand at once.

use super::progress::Progress;
use super::{ChangeRefusal, Core, Effect, Message, State, Transfer};
use crate::ids::NodeId;

/// A transfer under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Transferring {
    handle: u64,
    to: NodeId,
    pub(super) due: u64,
    /// Told since the last heartbeat.
    told: bool,
}

impl Core {
    pub(super) fn transfer(&mut self, handle: u64, to: Option<NodeId>) {
        let target = to.or_else(|| self.furthest_voter()).filter(|t| self.can_take_over(t));
        let due = self.now.mono + self.options.election_timeout_ms.1;
        let State::Leader(lead) = &mut self.state else {
            return self.effects.push(Effect::Transferred { handle, outcome: Transfer::NotLeader });
        };
        let Some(to) = target else {
            return self.effects.push(Effect::Transferred { handle, outcome: Transfer::NoTarget });
        };
        if let Some(earlier) = lead.transfer.replace(Transferring { handle, to, due, told: false }) {
            self.effects.push(Effect::Transferred { handle: earlier.handle, outcome: Transfer::Replaced });
        }
    }

    fn can_take_over(&self, id: &NodeId) -> bool {
        *id != self.id && self.tables.newest().table.voter_position(id).is_some()
    }

    /// The voter that holds most of the log, of those that are in contact.
    fn furthest_voter(&self) -> Option<NodeId> {
        let State::Leader(lead) = &self.state else { return None };
        let since = self.now.mono.saturating_sub(self.options.election_timeout_ms.1);
        let recent = |p: &Progress| p.heard_since(since);
        let able = lead.peers.iter().filter(|(id, p)| self.can_take_over(id) && recent(p));
        able.max_by_key(|(_, p)| p.matched).map(|(id, _)| *id)
    }

    /// Tells the target once it holds everything.
    pub(super) fn drive_transfer(&mut self) {
        let (last, term) = (self.log.last(), self.hard.term);
        let State::Leader(lead) = &mut self.state else { return };
        let Some(transfer) = lead.transfer.as_mut().filter(|t| !t.told) else { return };
        if lead.peers.get(&transfer.to).is_some_and(|p| p.matched == last) {
            transfer.told = true;
            let to = transfer.to;
            self.send(to, Message::TimeoutNow { term });
        }
    }

    /// With every heartbeat the target is told again, for the message may have been lost; after an election timeout the
    /// leader goes on as before.
    pub(super) fn transfer_on_time(&mut self, heartbeat: bool) {
        let now = self.now.mono;
        let State::Leader(lead) = &mut self.state else { return };
        if let Some(transfer) = &mut lead.transfer {
            transfer.told &= !heartbeat;
        }
        if let Some(transfer) = lead.transfer.take_if(|t| now >= t.due) {
            self.effects.push(Effect::Transferred { handle: transfer.handle, outcome: Transfer::TimedOut });
        }
    }

    pub(super) fn drop_transfer(&mut self, newer: bool) {
        let State::Leader(lead) = &mut self.state else { return };
        if let Some(transfer) = lead.transfer.take() {
            let outcome = if newer { Transfer::Done } else { Transfer::NotLeader };
            self.effects.push(Effect::Transferred { handle: transfer.handle, outcome });
        }
    }

    /// Whoever asked for a membership change cannot be told how it ends.
    pub(super) fn drop_change(&mut self) {
        let State::Leader(lead) = &mut self.state else { return };
        if let Some(changing) = lead.change.take() {
            let outcome = Err(ChangeRefusal::Interrupted);
            self.effects.push(Effect::Changed { handle: changing.handle, outcome });
        }
    }

    /// Leads no more, and asks the furthest voter to take over so that nobody waits for an election timeout.
    pub(super) fn yield_leadership(&mut self) {
        let term = self.hard.term;
        if let Some(to) = self.furthest_voter() {
            self.send(to, Message::TimeoutNow { term });
        }
        self.become_follower(term, None);
    }
}
