//! Snapshots of simulated nodes: images taken at marks, fetched from others in chunks and installed, and the entries that
//! go for them. The checkers still see the whole history: what a node no longer has, it is never given to read.

use crate::chain::Chain;
use crate::invariants::demand;
use crate::membership::proofs;
use crate::world::{Event, World};
use concordat::certificate::merkle::{Frontier, inclusion_path};
use concordat::certificate::{Edge, Entry, HeadCertificate, Kind, SnapshotManifest};
use concordat::core::{Base, Input, MarkRefusal, SnapshotOffer};
use concordat::ids::{Epoch, LogIndex, NodeId, Term};
use concordat::node::executor::{self, Mail, Query, SnapshotJob};
use concordat::node::image::{ChunkTree, Image, chunks};
use concordat::registry::State;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use tokio::sync::oneshot;

type Chunks = BTreeMap<u32, Arc<Vec<u8>>>;

/// Images on a simulated disk.
#[derive(Clone, Debug, Default)]
pub(crate) struct Images {
    /// Whole and durable.
    pub(crate) complete: BTreeMap<LogIndex, (Arc<SnapshotManifest>, Arc<Vec<u8>>)>,
    /// On its way here.
    pub(crate) staged: Option<(Arc<SnapshotManifest>, Chunks)>,
    /// Entries up to here are gone.
    pub(crate) compacted: LogIndex,
    /// What stood in the place of a snapshot that is about to be begun with.
    pub(crate) history: BTreeMap<LogIndex, Chain>,
    busy_until: u64,
}

impl Images {
    /// Power loss: of an image that is not complete, chunks may be missing.
    pub(crate) fn crash(&mut self, mut lost: impl FnMut() -> bool) {
        self.busy_until = 0;
        if let Some((_, chunks)) = &mut self.staged {
            chunks.retain(|_, _| !lost());
        }
    }

    /// The newest image at or below an index.
    pub(crate) fn newest(&self, upto: LogIndex) -> Option<&(Arc<SnapshotManifest>, Arc<Vec<u8>>)> {
        self.complete.range(..=upto).next_back().map(|i| i.1)
    }
}

/// What a node that applied everything up to a mark writes down of it.
fn image(log: &Chain, index: LogIndex, state: State) -> Image {
    let (mut edge, mut terms): (Edge, Vec<(LogIndex, Term)>) = (Edge::default(), Vec::new());
    let mut finals = Vec::new();
    let before = log.links().iter().map(|l| &l.entry).take_while(|e| e.index() <= index);
    for entry in before {
        edge.push(entry.header.encode());
        if terms.last().is_none_or(|t| t.1 < entry.term()) {
            terms.push((entry.index(), entry.term()));
        }
        if entry.header.kind == Kind::EpochFinal {
            finals.push(entry.clone());
        }
    }
    let proposed_at = log.get(index).expect("applied").entry.header.proposed_at;
    let chain = proofs(log, Epoch::ZERO, finals.len());
    Image { edge, terms, proposed_at, chain, finals, state }
}

impl World {
    // ---- what the shell does ----

    /// A mark is applied: the image is made beside whatever goes on.
    pub(crate) fn take_image(&mut self, node: usize, index: LogIndex, state: State) {
        let image = image(&self.nodes[node].memory, index, state);
        let bytes = image.encode();
        let mut manifest = image.manifest(&bytes);
        if let Some((_, state)) = self.spoil_images.filter(|s| s.0 == node) {
            manifest.state = state;
        }
        let manifest = Arc::new(manifest);
        let (took, life) = (self.rng.within(self.config.image_us), self.nodes[node].life);
        let took = self.slow_images.get(&node).copied().unwrap_or(took);
        self.at(took, Event::Image { node, life, manifest, bytes: Arc::new(bytes) });
    }

    /// It is whole and durable.
    pub(crate) fn image_taken(&mut self, node: usize, manifest: Arc<SnapshotManifest>, bytes: Arc<Vec<u8>>) {
        self.coverage.count("snapshot", "taken");
        let n = &mut self.nodes[node];
        n.disk.images.complete.insert(manifest.index, (manifest.clone(), bytes));
        self.mail(node, Mail { inputs: vec![Input::SnapshotTaken(manifest)], ..Mail::default() });
    }

    pub(crate) fn snapshot_job(&mut self, node: usize, job: SnapshotJob) {
        let took = self.rng.within(self.config.disk_us);
        let n = &mut self.nodes[node];
        let done = n.disk.images.busy_until.max(self.now) + took;
        n.disk.images.busy_until = done;
        let life = n.life;
        self.at(done - self.now, Event::Snapshot { node, life, job });
    }

    pub(crate) fn snapshot_worked(&mut self, node: usize, job: SnapshotJob) {
        let images = &mut self.nodes[node].disk.images;
        let input = match job {
            SnapshotJob::Stage(manifest) => {
                let (index, all) = (manifest.index, 0..manifest.chunks());
                let here = images.staged.take_if(|s| s.0 == manifest).map(|s| s.1).unwrap_or_default();
                let missing: BTreeSet<u32> = all.filter(|c| !here.contains_key(c)).collect();
                if !here.is_empty() {
                    self.coverage.count("snapshot", "fetching resumed");
                }
                self.nodes[node].disk.images.staged = Some((manifest, here));
                Input::SnapshotStaged { index, missing }
            }
            SnapshotJob::Store { index, chunk, bytes } => {
                let Some((manifest, chunks)) = &mut images.staged else { return };
                if manifest.index != index {
                    return;
                }
                chunks.insert(chunk, bytes);
                Input::ChunkStored { index, chunk }
            }
            SnapshotJob::Complete(manifest) => return self.complete_image(node, &manifest),
            SnapshotJob::Abandon(index) => {
                images.staged.take_if(|s| s.0.index == index);
                self.coverage.count("snapshot", "fetching abandoned");
                return;
            }
            SnapshotJob::Compact(upto) => return self.compact(node, upto),
        };
        self.mail(node, Mail { inputs: vec![input], ..Mail::default() });
    }

    fn complete_image(&mut self, node: usize, manifest: &SnapshotManifest) {
        let index = manifest.index;
        let staged = self.nodes[node].disk.images.staged.take();
        let base = staged.filter(|s| *s.0 == *manifest).map(|(manifest, chunks)| {
            let bytes: Vec<u8> = chunks.into_values().flat_map(|c| c.to_vec()).collect();
            let image = Image::decode(&bytes).expect("every chunk was proved");
            image.check(&manifest).expect("every chunk was proved");
            let complete = &mut self.nodes[node].disk.images.complete;
            complete.insert(index, (manifest, Arc::new(bytes)));
            Arc::new(image.base())
        });
        self.coverage.count("snapshot", "fetched");
        self.mail(node, Mail { inputs: vec![Input::SnapshotReady { index, base }], ..Mail::default() });
    }

    fn compact(&mut self, node: usize, upto: LogIndex) {
        self.coverage.count("snapshot", "entries pruned");
        let images = &mut self.nodes[node].disk.images;
        images.compacted = images.compacted.max(upto);
        let newest = images.newest(LogIndex(u64::MAX)).map(|i| i.0.index);
        let kept = images.newest(upto.max(images.compacted)).map(|i| i.0.index);
        images.complete.retain(|index, _| Some(*index) >= kept.min(newest));
    }

    pub(crate) fn fetch_chunk(&mut self, node: usize, peer: NodeId, session: u64, index: LogIndex, chunk: u32) {
        let stored = self.nodes[node].disk.images.complete.get(&index);
        let found = stored.and_then(|(_, bytes)| {
            let found = chunks(bytes).nth(chunk as usize)?.to_vec();
            Some((found, ChunkTree::of(bytes).path(chunk)))
        });
        if found.is_none() {
            self.coverage.count("snapshot", "asked for one that is gone");
        }
        let delay = self.rng.within(self.config.disk_us);
        self.input_later(node, delay, Input::ChunkFetched { peer, session, index, chunk, found });
    }

    pub(crate) fn offer(&mut self, node: usize, entry: Arc<Entry>, certificate: Arc<HeadCertificate>) {
        let n = &self.nodes[node];
        let manifest = SnapshotManifest::decode(&entry.body.payload).expect("a manifest that a quorum granted");
        let ours = n.disk.images.complete.get(&manifest.index);
        if let Some((ours, _)) = ours {
            let spoilt = self.spoil_images.is_some_and(|s| s.0 == node);
            self.demand(demand(spoilt || **ours == manifest, "every image at a mark is the same", || {
                format!("n{node} has {ours:?}, certified is {manifest:?}")
            }));
            if spoilt {
                return;
            }
            let Ok(path) =
                inclusion_path(&crate::membership::Leaves(&n.memory), entry.index().0 - 1, certificate.head.size);
            let offer = Arc::new(SnapshotOffer { manifest, entry, path, certificate });
            let delay = self.rng.within(self.config.disk_us);
            self.input_later(node, delay, Input::SnapshotOffered(offer));
        }
    }

    /// The log is about to begin after a snapshot: it must be of the history that is committed.
    pub(crate) fn begins_after(&mut self, node: usize, base: &Base) {
        let (index, ledger) = (base.index(), &self.invariants.committed.ledger);
        let mut tree = Frontier::default();
        let mut history = Chain::default();
        for link in ledger.links().iter().take_while(|l| l.entry.index() <= index) {
            tree.push(link.entry.header.leaf_hash());
            history.push(link.entry.clone());
        }
        let same = tree == base.edge.frontier() && history.last() == index;
        self.demand(demand(same, "a snapshot stands for committed entries", || {
            format!("n{node} begins after {index}")
        }));
        self.nodes[node].memory = history.clone();
        self.nodes[node].disk.images.history.insert(index, history);
        self.coverage.count("snapshot", "installed");
    }

    pub(crate) fn restore_later(&mut self, node: usize, index: LogIndex) {
        self.invariants.delivery.restarted(node, index);
        self.nodes[node].delivered = index;
        let (delay, life) = (self.rng.within(self.config.apply_us), self.nodes[node].life);
        self.at(delay, Event::Restore { node, life, index });
    }

    /// The image's state takes the place of the applied one.
    pub(crate) fn restore(&mut self, node: usize, index: LogIndex) {
        // A later delivery may have been applied first, and this with it.
        if self.nodes[node].machine.applied < index {
            self.catch_up_machine(node, index);
        }
        self.mail(node, Mail { applied: index, ..Mail::default() });
    }

    /// Puts the state of the image at `index` in place.
    pub(crate) fn catch_up_machine(&mut self, node: usize, index: LogIndex) {
        let n = &mut self.nodes[node];
        let bytes = &n.disk.images.complete.get(&index).expect("a log begins after a complete image").1;
        let state = Image::decode(bytes).expect("checked before it was installed").state;
        // The checkers' own machine sees everything.
        while n.machine.applied < index {
            let next = n.memory.get(n.machine.applied.next()).expect("before the snapshot").entry.clone();
            n.machine.apply(&next);
        }
        n.executor.as_mut().expect("the node is up").devices().state = state;
    }

    /// The state with which a node starts, and the index up to which it is applied.
    pub(crate) fn state_at_start(&self, node: usize, upto: LogIndex) -> State {
        let disk = &self.nodes[node].disk;
        let newest = disk.images.newest(upto);
        let mut state = newest.map_or_else(State::default, |(_, bytes)| Image::decode(bytes).expect("complete").state);
        assert!(state.applied() >= disk.images.compacted, "what is gone is in a snapshot");
        let from = state.applied();
        for link in disk.log.links().iter().filter(|l| l.entry.index() > from && l.entry.index() <= upto) {
            state.apply(&link.entry);
        }
        state
    }

    /// A node that starts has its images, and makes the one that it lacks.
    pub(crate) fn resume_snapshots(&mut self, node: usize, applied: LogIndex) {
        let disk = &self.nodes[node].disk;
        let newest = disk.images.newest(LogIndex(u64::MAX)).map(|i| i.0.clone());
        let of_kind = |kind| {
            let after = disk.log.links().iter().rev().filter(|l| l.entry.index() > disk.images.compacted);
            after.map(|l| l.entry.clone()).find(|e| e.header.kind == kind && e.index() <= applied)
        };
        let (manifest, mark) = (of_kind(Kind::SnapshotManifest), of_kind(Kind::SnapshotMark));
        let (index, certificate) = (newest.as_ref().map_or(LogIndex::ZERO, |m| m.index), disk.certificate.clone());
        if let Some(mark) = mark.filter(|m| m.index() > index) {
            let state = self.state_at_start(node, mark.index());
            self.take_image(node, mark.index(), state);
        }
        if let Some(newest) = newest {
            self.hand_over(node, |e| {
                e.take_mail(Mail { inputs: vec![Input::SnapshotTaken(newest)], ..Mail::default() })
            });
        }
        self.hand_over(node, |e| e.resume_snapshots(index, manifest, certificate));
    }

    // ---- what an operator asks for ----

    /// Asks a node for a mark.
    pub(crate) fn mark(&mut self, node: usize) -> oneshot::Receiver<Result<LogIndex, MarkRefusal>> {
        let (done, told) = oneshot::channel();
        self.note(node, || "asked for a mark".into());
        self.event(node, executor::Event::Query(Query::Mark { done }));
        told
    }
}
