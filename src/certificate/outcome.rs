//! What a header claims about votes, checked against the table under which they were cast.

use super::bitmap::Bitmap;
use super::head::keys_of;
use super::header::{AbortReason, Header, Kind, Tally, TallySide};
use super::keys::{KeyError, PublicKey};
use super::statement::VoteStatement;
use super::table::{Policy, TableInForce};
use crate::ids::{Digest, Epoch, NodeId};

/// Why the votes that a header records do not support what the header says became of its proposal.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OutcomeError {
    /// Read under another table than its own.
    #[error("the entry is of epoch {found}, the member table of epoch {expected}")]
    Epoch {
        /// In the header.
        found: Epoch,
        /// Of the table.
        expected: Epoch,
    },
    /// A set of voters that is no set over the epoch's voters.
    #[error("the tally does not fit {voters} voters")]
    Members {
        /// Voters in the epoch.
        voters: usize,
    },
    /// Someone who both granted and denied.
    #[error("the tally counts someone as granting and as denying")]
    Overlap,
    /// The aggregate of one side does not verify.
    #[error("aggregate of those who {side}: {source}")]
    Aggregate {
        /// `granted` or `denied`.
        side: &'static str,
        /// Why.
        source: KeyError,
    },
    /// A required quorum below the rule or above the voters.
    #[error("the proposal required {required} grants, the cluster allows {least} to {most}")]
    RequiredQuorum {
        /// In the header.
        required: usize,
        /// The quorum rule.
        least: usize,
        /// All voters.
        most: usize,
    },
    /// Too few grants.
    #[error("{granted} grants where {required} are required")]
    Grants {
        /// Proved.
        granted: usize,
        /// Required.
        required: usize,
    },
    /// An entry that needs a ballot has none.
    #[error("the entry needed a ballot and records none")]
    NoBallot,
    /// An entry without a ballot in an epoch in which this voter does not grant by signing.
    #[error("the entry records no ballot, but {0} does not grant by signing")]
    NotAutomatic(NodeId),
    /// An abort for a reason that its votes contradict.
    #[error("aborted as {reason:?}, which {granted} grants and {denied} denials of {voters} voters contradict")]
    Reason {
        /// In the header.
        reason: AbortReason,
        /// Proved.
        granted: usize,
        /// Proved.
        denied: usize,
        /// Voters in the epoch.
        voters: usize,
    },
}

impl Tally {
    /// Verifies both sides: sets over the epoch's voters, nobody in both, each aggregate by exactly its members on the
    /// statement that `header` names.
    ///
    /// # Errors
    /// [`OutcomeError`].
    pub fn verify(&self, header: &Header, genesis_id: &Digest, table: &TableInForce) -> Result<(), OutcomeError> {
        let voters = table.table.voters().count();
        if !self.grants.members.fits(voters) || !self.denials.members.fits(voters) {
            return Err(OutcomeError::Members { voters });
        }
        if !self.grants.members.is_disjoint(&self.denials.members) {
            return Err(OutcomeError::Overlap);
        }
        let under = table.signed_for(genesis_id);
        let check = |side: &TallySide, granted, name| {
            let statement = VoteStatement {
                request_digest: header.request_digest,
                payload_hash: header.payload_hash,
                required_quorum: header.required_quorum,
                granted,
            };
            let verified = match &side.aggregate {
                None if side.members.count() == 0 => Ok(()),
                None => Err(KeyError::Empty),
                Some(sum) => {
                    PublicKey::verify_aggregate(&keys_of(&side.members, table), &statement.signed_bytes(&under), sum)
                }
            };
            verified.map_err(|source| OutcomeError::Aggregate { side: name, source })
        };
        check(&self.grants, true, "granted")?;
        check(&self.denials, false, "denied")
    }
}

impl Header {
    /// Verifies that the votes which this header records support what it says became of its proposal. `table` is that of
    /// the header's own epoch. What remains to be shown of a `Proposal` without a ballot is a head certificate of that
    /// same epoch: there the head's signers are the granters.
    ///
    /// # Errors
    /// [`OutcomeError`].
    pub fn verify_outcome(&self, genesis_id: &Digest, table: &TableInForce) -> Result<(), OutcomeError> {
        if self.epoch != table.epoch {
            return Err(OutcomeError::Epoch { found: self.epoch, expected: table.epoch });
        }
        self.check_counts(table)?;
        // Pairings last.
        self.tally.as_ref().map_or(Ok(()), |tally| tally.verify(self, genesis_id, table))
    }

    fn check_counts(&self, table: &TableInForce) -> Result<(), OutcomeError> {
        let granted = self.tally.as_ref().map(|t| t.grants.members.count());
        let quorum = table.quorum();
        match self.kind {
            Kind::Proposal => {
                let (required, most) = (usize::from(self.required_quorum), table.table.voters().count());
                if !(quorum..=most).contains(&required) {
                    return Err(OutcomeError::RequiredQuorum { required, least: quorum, most });
                }
                granted.map_or_else(|| unballoted(required, table), |granted| enough(granted, required))
            }
            Kind::Aborted => self.check_abort(table),
            // Every voter compares its own state with a manifest, whatever its policy.
            Kind::SnapshotManifest => enough(granted.ok_or(OutcomeError::NoBallot)?, quorum),
            Kind::Epoch => granted.map_or(Ok(()), |granted| enough(granted, quorum)),
            Kind::Noop | Kind::EpochFinal | Kind::SnapshotMark => Ok(()),
        }
    }

    fn check_abort(&self, table: &TableInForce) -> Result<(), OutcomeError> {
        let voters = table.table.voters().count();
        let (none, required) = (Bitmap::empty(voters), usize::from(self.required_quorum));
        let (grants, denials) = self.tally.as_ref().map_or((&none, &none), |t| (&t.grants.members, &t.denials.members));
        let (granted, denied) = (grants.count(), denials.count());
        let impossible = voters.saturating_sub(denied) < required;
        let supported = match self.abort_reason {
            Some(AbortReason::Rejected) => impossible && self.tally.is_some(),
            Some(AbortReason::Expired) => !impossible && granted < required,
            None => false,
        };
        let reason = self.abort_reason.unwrap_or(AbortReason::Expired);
        if supported { Ok(()) } else { Err(OutcomeError::Reason { reason, granted, denied, voters }) }
    }
}

fn enough(granted: usize, required: usize) -> Result<(), OutcomeError> {
    if granted >= required { Ok(()) } else { Err(OutcomeError::Grants { granted, required }) }
}

/// The head's signature is the grant only where every voter grants by signing and no more than the rule was asked for.
fn unballoted(required: usize, table: &TableInForce) -> Result<(), OutcomeError> {
    if required != table.quorum() {
        return Err(OutcomeError::NoBallot);
    }
    let asked = table.table.voters().find(|m| m.policy != Policy::Auto);
    asked.map_or(Ok(()), |m| Err(OutcomeError::NotAutomatic(m.did)))
}
