//! Where frames from all peers arrive, the most urgent lane first.

use super::Incoming;
use crate::wire::Lane;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Control frames delivered in a row before another lane gets a turn, so that a chatty member cannot starve the rest.
const TURN: u32 = 32;

/// Frames from peers. Within one peer and lane they come in the order in which they were sent; between lanes the more
/// urgent come first.
#[derive(Debug)]
pub struct Inbox {
    control: mpsc::Receiver<Incoming>,
    append: mpsc::Receiver<Incoming>,
    bulk: mpsc::Receiver<Incoming>,
    in_a_row: u32,
    shutdown: CancellationToken,
}

/// The other ends.
#[derive(Debug)]
pub(super) struct Inlets {
    control: mpsc::Sender<Incoming>,
    append: mpsc::Sender<Incoming>,
    bulk: mpsc::Sender<Incoming>,
}

impl Inlets {
    pub(super) const fn lane(&self, lane: Lane) -> &mpsc::Sender<Incoming> {
        match lane {
            Lane::Control => &self.control,
            Lane::Append => &self.append,
            Lane::Bulk => &self.bulk,
        }
    }
}

/// An inbox whose lanes hold as many frames as `queue` says; a full lane stops its streams from being read.
pub(super) fn inbox(queue: impl Fn(Lane) -> usize, shutdown: CancellationToken) -> (Inlets, Inbox) {
    let [(c, control), (a, append), (b, bulk)] = Lane::ALL.map(|lane| mpsc::channel(queue(lane)));
    (Inlets { control: c, append: a, bulk: b }, Inbox { control, append, bulk, in_a_row: 0, shutdown })
}

impl Inbox {
    /// The next frame; `None` once the transport is closed. Cancel-safe.
    pub async fn recv(&mut self) -> Option<Incoming> {
        if let Some(incoming) = self.try_recv() {
            return Some(incoming);
        }
        tokio::select! {
            biased;
            () = self.shutdown.cancelled() => None,
            Some(incoming) = self.control.recv() => {
                self.in_a_row += 1;
                Some(incoming)
            }
            Some(incoming) = self.append.recv() => Some(incoming),
            Some(incoming) = self.bulk.recv() => Some(incoming),
        }
    }

    /// The next frame if one is here.
    pub fn try_recv(&mut self) -> Option<Incoming> {
        if self.in_a_row < TURN
            && let Ok(incoming) = self.control.try_recv()
        {
            self.in_a_row += 1;
            return Some(incoming);
        }
        self.in_a_row = 0;
        let next = self.append.try_recv().or_else(|_| self.bulk.try_recv()).or_else(|_| self.control.try_recv());
        next.ok()
    }
}
