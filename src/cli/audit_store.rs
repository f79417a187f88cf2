//! `audit --data`: the log of a stopped node, read from its store.

use super::Failure;
use super::audit::{bar, found};
use crate::audit::{Auditor, Summary};
use crate::certificate::{Body, Genesis, HeadCertificate, Header};
use crate::ids::LogIndex;
use crate::limits::{MAX_APPEND_BYTES, MAX_PAGE};
use crate::node::STORE_DIR;
use crate::storage::{ReadError, Store};
use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;

/// Audits every durable entry of a store, those that are not certified (and may yet be replaced) included.
pub(super) fn audit(data: &Path, genesis: &Genesis) -> Result<Summary, Failure> {
    let (store, recovered) = Store::open(&data.join(STORE_DIR)).map_err(|e| Failure::caused(&e))?;
    if let Some(pinned) = &recovered.genesis
        && pinned.id() != genesis.id()
    {
        return Err(Failure::new(format!(
            "the store in {} belongs to the cluster {:?} with genesis {}, the file given is genesis {}",
            data.display(),
            pinned.name,
            pinned.id(),
            genesis.id()
        )));
    }
    let last = store.last_index();
    let bar = bar(last.0);
    let mut auditor = Auditor::new(genesis);
    let mut certificates: VecDeque<Arc<HeadCertificate>> = VecDeque::new();
    while auditor.size() < last.0 {
        let from = LogIndex(auditor.size() + 1);
        let records = read(&store, from, last).map_err(|e| Failure::caused(&e))?;
        if records.is_empty() {
            return Err(Failure::new(format!("the store gives no entry {from}, its last is {last}")));
        }
        for (header, body) in records {
            auditor.entry(&header, body.as_ref()).map_err(found)?;
            if certificates.is_empty() {
                certificates.extend(store.certificates(auditor.size() - 1, MAX_PAGE).map_err(|e| Failure::caused(&e))?);
            }
            while let Some(certificate) = certificates.pop_front_if(|c| c.head.size <= auditor.size()) {
                auditor.certificate(&certificate).map_err(found)?;
            }
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    auditor.finish().map_err(found)
}

/// Entries from `from` on, at least one if there is any: below the log's beginning one by one, with the bodies that are
/// kept.
fn read(store: &Store, from: LogIndex, last: LogIndex) -> Result<Vec<(Header, Option<Body>)>, ReadError> {
    if from <= store.base() {
        return Ok(store.record(from)?.into_iter().collect());
    }
    let entries = store.read(from, last, MAX_APPEND_BYTES)?;
    Ok(entries.iter().map(|e| (e.header.clone(), Some(e.body.clone()))).collect())
}
