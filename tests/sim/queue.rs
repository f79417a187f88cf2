//! What is to happen, by time; what is due at one time happens in the order in which it was decided.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

pub(crate) struct Queue<T> {
    /// Times, sequence numbers, and places in `waiting`.
    order: BinaryHeap<Reverse<(u64, u64, usize)>>,
    waiting: Vec<Option<T>>,
    free: Vec<usize>,
    sequence: u64,
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        Self { order: BinaryHeap::new(), waiting: Vec::new(), free: Vec::new(), sequence: 0 }
    }
}

impl<T> Queue<T> {
    pub(crate) fn push(&mut self, at: u64, what: T) {
        let place = self.free.pop().unwrap_or_else(|| {
            self.waiting.push(None);
            self.waiting.len() - 1
        });
        self.waiting[place] = Some(what);
        self.sequence += 1;
        self.order.push(Reverse((at, self.sequence, place)));
    }

    /// When the next thing is due.
    pub(crate) fn next_at(&self) -> Option<u64> {
        self.order.peek().map(|next| next.0.0)
    }

    pub(crate) fn pop(&mut self) -> Option<(u64, T)> {
        let Reverse((at, _, place)) = self.order.pop()?;
        self.free.push(place);
        Some((at, self.waiting[place].take().expect("one place, one thing")))
    }
}
