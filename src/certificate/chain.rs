//! The epoch chain: from the genesis to the table in force, one `Epoch` entry and its joint certificate a step.

use super::head::{CertificateError, HeadCertificate};
use super::header::Entry;
use super::table::{Genesis, TableInForce};
use crate::ids::Digest;

/// One membership change, proved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EpochStep {
    /// The `Epoch` entry (its payload is the next table).
    pub entry: Entry,
    /// The joint certificate that its `EpochFinal` carries.
    pub joint: HeadCertificate,
    /// Inclusion of the `Epoch` entry in the joint head.
    pub path: Vec<Digest>,
}

/// All changes since the genesis, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EpochChain {
    /// The steps; empty while the genesis table is in force.
    pub steps: Vec<EpochStep>,
}

impl EpochChain {
    /// Walks the chain from the genesis and returns every table it proves, epoch 0 first.
    /// # Errors
    /// [`CertificateError`] at the first step that does not follow.
    pub fn verify(&self, _genesis: &Genesis) -> Result<Vec<TableInForce>, CertificateError> {
        todo!()
    }
}
