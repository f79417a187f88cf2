//! The network: delay, loss, duplication, reordering (each message is delayed on its own), and links that are down in
//! one direction or both.

use crate::rng::Rng;
use std::collections::{BTreeMap, BTreeSet};

#[derive(Clone, Copy, Debug)]
pub(crate) struct Network {
    /// One way, microseconds.
    pub(crate) delay_us: (u64, u64),
    /// Per mille.
    pub(crate) loss: u64,
    /// Per mille.
    pub(crate) duplicate: u64,
    /// Per mille that take up to fifty times as long.
    pub(crate) straggle: u64,
}

impl Network {
    pub(crate) const FAST: Self = Self { delay_us: (200, 2_500), loss: 0, duplicate: 0, straggle: 0 };
}

/// What becomes of one message.
#[derive(Clone, Debug, Default)]
pub(crate) struct Fate {
    /// When each copy arrives, microseconds from now.
    pub(crate) arrivals: Vec<u64>,
    pub(crate) cut: bool,
    pub(crate) lost: bool,
    pub(crate) duplicated: bool,
    pub(crate) straggled: bool,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Links {
    /// (from, to) pairs that carry nothing.
    pub(crate) down: BTreeSet<(usize, usize)>,
    /// Pairs that go down and up by themselves, until they have healed; down now if true.
    pub(crate) flapping: BTreeMap<(usize, usize), bool>,
}

impl Links {
    pub(crate) fn fate(&self, network: &Network, from: usize, to: usize, rng: &mut Rng) -> Fate {
        let mut fate = Fate::default();
        let pair = (from, to);
        if self.down.contains(&pair) || self.flapping.get(&pair) == Some(&true) {
            fate.cut = true;
            return fate;
        }
        if rng.chance(network.loss) {
            fate.lost = true;
            return fate;
        }
        fate.duplicated = rng.chance(network.duplicate);
        for _ in 0..=usize::from(fate.duplicated) {
            let mut delay = rng.within(network.delay_us);
            if rng.chance(network.straggle) {
                fate.straggled = true;
                delay *= rng.within((2, 50));
            }
            fate.arrivals.push(delay);
        }
        fate
    }
}
