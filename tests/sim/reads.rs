//! Linearizable reads: whoever begins one sees everything that was committed anywhere before it began.

use crate::history::{Held, Op, What};
use crate::invariants::{Verdict, demand};
use crate::world::{Event, World};
use concordat::ids::{Digest, LogIndex};
use concordat::node::executor::{self, Query};
use tokio::sync::oneshot;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ReadState {
    Pending,
    /// May be served once this index is applied.
    Ready(LogIndex),
    Served,
    Refused,
}

#[derive(Clone, Debug)]
pub(crate) struct Read {
    pub(crate) node: usize,
    life: u64,
    /// What was committed when it began.
    must_see: LogIndex,
    /// The newest request whose outcome a client had been told.
    told: Option<Digest>,
    /// The config key that is read, and when it was asked for.
    config: Option<(usize, u64)>,
    pub(crate) state: ReadState,
}

fn sees(node: usize, index: LogIndex, must_see: LogIndex) -> Verdict {
    demand(index >= must_see, "a linearizable read sees what was committed before it began", || {
        format!("n{node} reads at {index}; {must_see} entries were committed before")
    })
}

impl World {
    /// Begins a linearizable read at a node that is up; tells its number.
    pub(crate) fn read(&mut self, node: usize) -> usize {
        let (must_see, told) = (self.invariants.committed.ledger.last(), self.invariants.outcomes.newest());
        let life = self.nodes[node].life;
        self.reads.push(Read {
            node,
            life,
            must_see,
            told,
            config: self.reading_config.take(),
            state: ReadState::Pending,
        });
        let read = self.reads.len() - 1;
        self.coverage.count("read", "begun");
        let (done, told) = oneshot::channel();
        self.nodes[node].reads.push((read, told));
        self.event(node, executor::Event::Query(Query::Read { done }));
        read
    }

    /// Begins a linearizable read of a config key.
    pub(crate) fn read_config(&mut self, node: usize, key: usize) {
        let (number, now) = (self.reads.len(), self.now);
        // It may be answered at once.
        self.reading_config = Some((key, now));
        let read = self.read(node);
        debug_assert_eq!(read, number);
    }

    pub(crate) fn read_ready(&mut self, node: usize, number: usize, index: LogIndex) {
        let read = &mut self.reads[number];
        assert_eq!((read.node, read.state), (node, ReadState::Pending), "a read is answered once, where it was asked");
        read.state = ReadState::Ready(index);
        let verdict = sees(node, index, read.must_see);
        self.demand(verdict);
        self.coverage.count("read", "confirmed");
        self.serve(number);
    }

    pub(crate) fn read_refused(&mut self, number: usize) {
        let read = &mut self.reads[number];
        assert_eq!(read.state, ReadState::Pending, "a read is answered once");
        read.state = ReadState::Refused;
        self.coverage.count("read", "refused");
    }

    /// Serves a read that is confirmed once the state machine is there.
    pub(crate) fn serve(&mut self, number: usize) {
        let Read { node, life, must_see, told, config, state } = self.reads[number].clone();
        let ReadState::Ready(index) = state else { return };
        if !self.lives(node, life) {
            return;
        }
        if self.is_paused(node) {
            self.at(self.nodes[node].paused_until - self.now, Event::Serve { read: number });
            return;
        }
        let machine = &self.nodes[node].machine;
        if machine.applied < index {
            self.at(1_000, Event::Serve { read: number });
            return;
        }
        let holds = told.is_none_or(|key| machine.requests.contains_key(&key));
        let verdict =
            sees(node, machine.applied, must_see).and(demand(holds, "a read sees what was acknowledged", || {
                format!("n{node} has applied {} and lacks an outcome that a client was told", machine.applied)
            }));
        self.demand(verdict);
        self.reads[number].state = ReadState::Served;
        self.coverage.count("read", "served");
        if let Some((key, called)) = config {
            self.config_read(node, key, called);
        }
    }

    fn config_read(&mut self, node: usize, key: usize, called: u64) {
        let state = &self.nodes[node].executor.as_mut().expect("it lives").devices().state;
        let held = state.config(&format!("k{key}")).map(|record| Held {
            value: record.value.as_u64().expect("clients set numbers"),
            revision: record.revision.0,
        });
        let what = What::Read(held.unwrap_or_default());
        self.history.answered(key, Op { called, answered: self.now, what });
        self.coverage.count("registry", "read");
    }
}

#[test]
fn a_stale_read_is_caught() {
    assert!(sees(0, LogIndex(4), LogIndex(4)).is_ok());
    assert!(sees(0, LogIndex(3), LogIndex(4)).is_err());
}
