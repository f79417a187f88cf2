//! Requests whose entries are on their way through the state machine: committed, not yet applied.

use crate::certificate::Entry;
use crate::ids::{Digest, LogIndex};
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

/// By request key. A repeat that comes in while its first is in here must not wait for a commit: that has been. The
/// state machine will tell whoever waits.
#[derive(Debug, Default)]
pub(super) struct Delivered {
    newest: HashMap<Digest, LogIndex>,
    order: VecDeque<(LogIndex, Digest)>,
}

impl Delivered {
    /// These entries were handed to the state machine.
    pub(super) fn deliver(&mut self, entries: &[Arc<Entry>]) {
        for entry in entries {
            if let Some(request) = &entry.body.request {
                let key = request.key();
                self.newest.insert(key, entry.index());
                self.order.push_back((entry.index(), key));
            }
        }
    }

    /// Everything up to here is applied.
    pub(super) fn apply(&mut self, index: LogIndex) {
        while let Some((at, key)) = self.order.pop_front_if(|(at, _)| *at <= index) {
            if self.newest.get(&key) == Some(&at) {
                self.newest.remove(&key);
            }
        }
    }

    pub(super) fn contains(&self, key: &Digest) -> bool {
        self.newest.contains_key(key)
    }
}
