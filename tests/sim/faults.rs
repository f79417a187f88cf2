//! Everything that can happen to a node, its clock, its disk and its links, one at a time.

use crate::devices::SimDevices;
use crate::disk::{Loss, Rot};
use crate::members::{id_of, public};
use crate::membership::Acquaintance;
use crate::world::{Event, MAX_PENDING, World, rules};
use concordat::certificate::PublicKey;
use concordat::core::{Core, Message, Options, Role};
use concordat::ids::LogIndex;
use concordat::node::executor::{Executor, Settings};

impl World {
    // ---- a node ----

    /// Power loss.
    pub(crate) fn crash(&mut self, node: usize) {
        self.coverage.count("fault", "crash");
        self.goes_down(node, "crash");
    }

    /// Power is lost between two of its next effects, whichever comes then.
    pub(crate) fn crash_within(&mut self, node: usize, effects: u32) {
        self.nodes[node].dies_after = Some(effects);
    }

    /// Whether this is the effect before which it happens.
    pub(crate) fn dies_now(&mut self, node: usize) -> bool {
        let Some(left) = &mut self.nodes[node].dies_after else { return false };
        match left.checked_sub(1) {
            Some(fewer) => {
                *left = fewer;
                false
            }
            None => {
                self.coverage.count("fault", "crash between two effects");
                self.crash(node);
                true
            }
        }
    }

    /// The executor says that it must stop: the process ends by itself.
    pub(crate) fn ends(&mut self, node: usize) {
        let executor = self.nodes[node].executor.take().expect("it just said so");
        let (_, why) = executor.dismiss();
        self.nodes[node].ended = why;
        self.coverage.count("event", "node stopped by itself");
        self.goes_down(node, "end");
    }

    fn goes_down(&mut self, node: usize, how: &str) {
        let Loss { lost, kept, torn } = self.nodes[node].disk.crash(&mut self.rng);
        for (_, what) in [
            (lost > 0, "crash that lost writes"),
            (kept > 0, "crash after untold writes"),
            (torn, "crash that tore a write"),
        ]
        .iter()
        .filter(|c| c.0)
        {
            self.coverage.count("fault", what);
        }
        self.note(node, || format!("{how}: {lost} writes lost (torn: {torn}), {kept} kept untold"));
        let n = &mut self.nodes[node];
        n.executor = None;
        n.reads.clear();
        n.transfers.clear();
        n.changes.clear();
        n.votes.clear();
        n.life += 1;
        n.draining = false;
        n.tick_at = None;
        n.dies_after = None;
        n.paused_until = 0;
    }

    /// Starts a node from its disk. A store that is not what it was is refused: then it is a lost disk, and the node stays
    /// down.
    pub(crate) fn start(&mut self, node: usize) {
        match self.nodes[node].disk.open() {
            Err(why) => {
                self.note(node, || format!("the store is refused: {why}"));
                self.coverage.count("fault", why);
                self.lose_disk(node);
                return;
            }
            Ok(true) => self.coverage.count("fault", "torn write dropped by its checksum"),
            Ok(false) => {}
        }
        let disk = &self.nodes[node].disk;
        let (compacted, certified) = (disk.images.compacted, disk.certified().max(disk.images.compacted));
        // Long logs take long to read.
        let from_start = self.rng.chance(if certified < LogIndex(300) { 500 } else { 50 });
        let keys = self.public_keys(node);
        let restored = self.nodes[node].disk.restore(from_start, keys.clone());
        let seed = self.rng.next();
        let options = Options { seed, ..self.config.options.clone() };
        let core = Core::new(id_of(node), &self.genesis, restored, options, self.clock(node));
        let now = self.clock(node);
        let (forward, snapshots) = (self.config.forward, self.config.snapshots);
        let settings = Settings { rules: rules(), max_pending: MAX_PENDING, forward, snapshots };
        let state = match compacted {
            LogIndex::ZERO => self.nodes[node].disk.covered.state.clone(),
            _ => self.state_at_start(node, certified),
        };
        let n = &mut self.nodes[node];
        n.life += 1;
        n.memory = n.disk.log.clone();
        n.machine = n.disk.covered.machine.clone();
        let devices = SimDevices::new(now, state, keys);
        n.executor = Some(Executor::new(id_of(node), core, devices, settings, certified));
        n.shown = certified;
        n.asks.clear();
        n.acquaintance = Acquaintance::default();
        n.delivered = certified;
        n.was = (Role::Follower, LogIndex::ZERO, LogIndex::ZERO);
        let entries = self.nodes[node].memory.last();
        self.note(node, || format!("start with {entries} entries, certified {certified}"));
        self.invariants.delivery.restarted(node, certified);
        let standing = self.standing(node);
        let verdict = self.invariants.positions.restarted(node, standing);
        self.demand(verdict);
        self.resume_snapshots(node, certified);
        self.turn(node);
    }

    /// Nothing that reaches a node is looked at for so long; then all of it at once. Its clocks go on.
    pub(crate) fn pause(&mut self, node: usize, ms: u64) {
        self.nodes[node].paused_until = self.now + ms * 1000;
        self.note(node, || format!("paused for {ms} ms"));
    }

    pub(crate) fn is_paused(&self, node: usize) -> bool {
        self.nodes[node].paused_until > self.now
    }

    // ---- links ----

    /// Of the keys in a node's store.
    pub(crate) fn public_keys(&self, node: usize) -> Vec<PublicKey> {
        self.nodes[node].disk.keys.iter().map(|g| public(node, *g)).collect()
    }

    /// Cuts every link between the two sides.
    pub(crate) fn partition(&mut self, one: &[usize], other: &[usize]) {
        for &a in one {
            for &b in other {
                self.links.down.extend([(a, b), (b, a)]);
            }
        }
        self.note(one[0], || format!("partition {one:?} | {other:?}"));
    }

    /// Cuts one node off.
    pub(crate) fn isolate(&mut self, node: usize) {
        let others: Vec<usize> = (0..self.size()).filter(|n| *n != node).collect();
        self.partition(&[node], &others);
    }

    /// Cuts one direction.
    pub(crate) fn mute(&mut self, from: usize, to: usize) {
        self.links.down.insert((from, to));
        self.note(from, || format!("mute {from} -> {to}"));
    }

    /// Cuts every link from one side to the other, and none the other way.
    pub(crate) fn partition_one_way(&mut self, from: &[usize], to: &[usize]) {
        for &a in from {
            self.links.down.extend(to.iter().map(|b| (a, *b)));
        }
        self.note(from[0], || format!("partition one way {from:?} -> {to:?}"));
    }

    /// Cuts single links, both ways, and leaves the others: some can talk to both ends that cannot talk to each other.
    pub(crate) fn partition_partially(&mut self, links: &[(usize, usize)]) {
        for &(a, b) in links {
            self.links.down.extend([(a, b), (b, a)]);
        }
        self.note(0, || format!("partial partition: cut {links:?}"));
    }

    /// A link goes down and up by itself, so many times.
    pub(crate) fn flap_link(&mut self, from: usize, to: usize, times: u32) {
        self.links.flapping.insert((from, to), false);
        self.note(from, || format!("the link to n{to} flaps"));
        self.flap(from, to, 2 * times);
    }

    pub(crate) fn flap(&mut self, from: usize, to: usize, left: u32) {
        let Some(down) = self.links.flapping.get_mut(&(from, to)) else { return };
        *down = left > 0 && !*down;
        if left == 0 {
            self.links.flapping.remove(&(from, to));
            return;
        }
        self.coverage.count("fault", "link flapped");
        let delay = self.rng.within((5_000, 400_000));
        self.at(delay, Event::Flap { from, to, left: left - 1 });
    }

    pub(crate) fn heal(&mut self) {
        self.links.down.clear();
        self.links.flapping.clear();
        self.note(0, || "heal".into());
    }

    /// Drops every message for which this holds, until replaced.
    pub(crate) fn drop_if(&mut self, filter: impl Fn(usize, usize, &Message) -> bool + 'static) {
        self.filter = Some(Box::new(filter));
    }

    /// While stalled, no write completes.
    pub(crate) fn stall(&mut self, node: usize) {
        self.nodes[node].disk.stalled = true;
        self.note(node, || "the disk stalls".into());
    }

    pub(crate) fn unstall(&mut self, node: usize) {
        if !self.nodes[node].disk.stalled {
            return;
        }
        self.note(node, || "the disk goes on".into());
        let n = &mut self.nodes[node];
        n.disk.stalled = false;
        if let (Some(&(seq, _)), life) = (n.disk.pending.back(), n.life) {
            self.at(1, Event::Disk { node, life, seq });
        }
    }

    // ---- the disk ----

    /// Every write takes fifty times as long, for so long.
    pub(crate) fn slow_down(&mut self, node: usize, ms: u64) {
        self.nodes[node].disk.slow_until = self.now + ms * 1000;
        self.note(node, || "the disk is slow".into());
    }

    /// The next fsync fails.
    pub(crate) fn fail_fsync(&mut self, node: usize) {
        self.nodes[node].disk.fails = true;
        self.note(node, || "the next fsync fails".into());
    }

    pub(crate) fn fill(&mut self, node: usize, full: bool) {
        if self.nodes[node].disk.full != full {
            self.nodes[node].disk.full = full;
            self.note(node, || format!("the disk is full: {full}"));
        }
    }

    /// Something on the medium rots, found when it is read or when the store is opened.
    pub(crate) fn rot(&mut self, node: usize, what: Rot) {
        self.nodes[node].disk.rot = Some(what);
        self.note(node, || format!("{what:?} rots"));
    }

    /// Whether what is read now is rotten: then the node is told, and stops.
    pub(crate) fn reads_rot(&mut self, node: usize, rotten: bool) -> bool {
        if rotten {
            self.coverage.count("fault", "rot found when it was read");
            let delay = self.rng.within(self.config.disk_us);
            self.failure_later(node, delay, "a record's checksum does not match");
        }
        rotten
    }

    /// Of a node that is down, a disk that had lied lost what had been acknowledged. Tells whether there was anything.
    pub(crate) fn forget_acknowledged(&mut self, node: usize) -> bool {
        assert!(!self.is_up(node), "seen at power loss");
        let lost = self.nodes[node].disk.forget_acknowledged(&mut self.rng);
        if lost {
            self.note(node, || "acknowledged writes are gone".into());
        }
        lost
    }

    /// Everything that is wrong with a disk and can be mended is.
    pub(crate) fn mend(&mut self, node: usize) {
        self.unstall(node);
        self.fill(node, false);
        let disk = &mut self.nodes[node].disk;
        disk.slow_until = 0;
        disk.fails = false;
    }
}
