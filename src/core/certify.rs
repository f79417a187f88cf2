//! Certification: sign points, head shares, head certificates.
//!
//! The leader marks one sign point at a time, at the end of its log; when that is certified it marks the next. So under
//! load one certificate covers all that was appended while the last one was made, and signatures never limit
//! throughput.

use super::tables::{Shares, Tables};
use super::{Core, Crypto, Effect, Halt, Message, State, election};
use crate::certificate::{Head, HeadCertificate, Signature, SignedFor};
use crate::ids::{LogIndex, NodeId};
use std::collections::BTreeMap;
use std::sync::Arc;

/// A leader's outstanding sign point.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct SignPoint {
    head: Head,
    /// In force at this place in the log, whatever was appended since.
    tables: Arc<Tables>,
    shares: Shares,
    verifying: BTreeMap<NodeId, ()>,
    certifying: bool,
}

impl SignPoint {
    pub(super) fn index(&self) -> LogIndex {
        LogIndex(self.head.size)
    }
}

/// What a member keeps of sign points and of certificates on their way.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Follow {
    /// The leader's newest sign point.
    mark: LogIndex,
    signing: Option<Head>,
    /// Our newest share.
    offered: Option<(Head, Vec<(SignedFor, Signature)>)>,
    /// The leader asked again, so the share may have been lost.
    again: bool,
    /// Being verified.
    verifying: Option<u64>,
    /// The newest that came in meanwhile.
    queued: Option<Arc<HeadCertificate>>,
    /// Verified, and waiting for the entries it covers to be durable here.
    verified: Option<Arc<HeadCertificate>>,
}

impl Follow {
    pub(super) fn mark(&mut self, index: LogIndex) {
        self.mark = self.mark.max(index);
    }
    pub(super) fn offer_again(&mut self) {
        self.again = true;
    }
    pub(super) fn forget_mark(&mut self) {
        self.mark = LogIndex::ZERO;
        self.offered = None;
        // What is being signed is of no use any more, and the next leader's head need not wait for it.
        self.signing = None;
    }
}

impl Core {
    fn certified_size(&self) -> u64 {
        self.certificate.as_ref().map_or(0, |c| c.head.size)
    }

    pub(super) fn mark_sign_point(&mut self) {
        let (term, size) = (self.hard.term, self.log.last().0);
        // A certificate that only waits for our own disk is not made again.
        let certified = self.follow.verified.as_ref().map_or(0, |c| c.head.size).max(self.certified_size());
        let State::Leader(lead) = &mut self.state else { return };
        // Once a change is closed nobody waits for signatures by the table before it: its members may be gone.
        let epoch = self.tables.current().epoch;
        let in_force = |s: &SignPoint| s.tables.current().epoch == epoch;
        let outstanding = lead.sign_point.as_ref().is_some_and(|s| s.head.size > certified && in_force(s));
        if !outstanding && size > certified && self.log.last_term() == term {
            let head = Head { term, size, root: self.log.last_root() };
            let (shares, verifying, tables) = (Shares::new(), BTreeMap::new(), self.tables.clone());
            lead.sign_point = Some(SignPoint { head, tables, shares, verifying, certifying: false });
        }
    }

    /// Signs the head at the sign point once every entry below it is durable here and the last of them is of the current
    /// term. Signed earlier, a power loss could take entries back that a certificate says a quorum holds; signed for an
    /// older term's entry, the head could be certified and yet overwritten (the commit rule's figure 8).
    pub(super) fn sign_head(&mut self) {
        let mark = match &self.state {
            State::Leader(lead) => lead.sign_point.as_ref().map_or(LogIndex::ZERO, SignPoint::index),
            State::Follower if self.leader.is_some() && self.proof.is_some() => self.follow.mark,
            _ => return,
        };
        let term = self.hard.term;
        if mark == LogIndex::ZERO
            || mark.0 <= self.certified_size()
            || mark > self.log.durable()
            || self.log.term_at(mark) != Some(term)
        {
            return;
        }
        let under = self.epochs.tables_at(mark).asked_of(&self.id);
        if !under.iter().any(|(_, key)| self.keys.contains(key)) {
            return;
        }
        if let Some((head, signatures)) =
            self.follow.offered.as_ref().filter(|o| o.0.size == mark.0 && o.0.term == term)
        {
            if std::mem::take(&mut self.follow.again)
                && let Some(leader) = self.leader.filter(|l| *l != self.id)
            {
                let message = Message::HeadShare { head: *head, signatures: signatures.clone() };
                self.send(leader, message);
            }
            return;
        }
        if self.follow.signing.is_some() {
            return;
        }
        let Some(root) = self.log.root_at(mark) else { return };
        let head = Head { term, size: mark.0, root };
        self.follow.signing = Some(head);
        self.effects.push(Effect::Crypto(Crypto::SignHead { head, under }));
    }

    pub(super) fn on_head_signed(&mut self, head: Head, signatures: Vec<(SignedFor, Signature)>) {
        self.follow.signing = None;
        // A share of an older term must not be released: since then this node may have promised a newer leader
        // something that contradicts "a quorum held this in that term".
        if head.term != self.hard.term {
            return;
        }
        self.follow.offered = Some((head, signatures.clone()));
        if matches!(self.state, State::Leader(_)) {
            self.add_share(self.id, head, signatures);
        } else if let Some(leader) = self.leader.filter(|l| *l != self.id) {
            self.send(leader, Message::HeadShare { head, signatures });
        }
    }

    pub(super) fn on_head_share(&mut self, from: NodeId, head: Head, signatures: Vec<(SignedFor, Signature)>) {
        let State::Leader(lead) = &mut self.state else { return };
        let Some(point) = lead.sign_point.as_mut().filter(|p| p.head == head && !p.certifying) else { return };
        let asked = election::is_subset(&signatures, &point.tables.asked_of(&from));
        if asked && !point.shares.contains_key(&from) && point.verifying.insert(from, ()).is_none() {
            let tables = point.tables.clone();
            self.effects.push(Effect::Crypto(Crypto::VerifyShare { from, head, signatures, tables }));
        }
    }

    pub(super) fn on_share_verified(&mut self, from: NodeId, head: Head, signatures: Vec<(SignedFor, Signature)>) {
        self.add_share(from, head, signatures);
    }

    fn add_share(&mut self, from: NodeId, head: Head, signatures: Vec<(SignedFor, Signature)>) {
        let State::Leader(lead) = &mut self.state else { return };
        let Some(point) = lead.sign_point.as_mut().filter(|p| p.head == head && !p.certifying) else { return };
        point.shares.insert(from, signatures);
        if point.tables.signed(&point.shares) {
            point.certifying = true;
            let (signatures, tables) = (point.tables.by_table(&point.shares), point.tables.clone());
            self.effects.push(Effect::Crypto(Crypto::CertifyHead { head, signatures, tables }));
        }
    }

    pub(super) fn on_head_certified(&mut self, certificate: Arc<HeadCertificate>) {
        let State::Leader(lead) = &mut self.state else { return };
        if lead.sign_point.as_ref().is_some_and(|p| p.head == certificate.head) {
            lead.sign_point = None;
            self.follow.verified = Some(certificate);
        }
    }

    pub(super) fn on_certificate(&mut self, certificate: Arc<HeadCertificate>) {
        let size = certificate.head.size;
        let held = self.follow.verified.as_ref().map_or(0, |c| c.head.size).max(self.certified_size());
        // Which tables sign a head is known once the log reaches it; the leader sends the certificate again.
        if size <= held || size > self.log.last().0 {
            return;
        }
        match self.follow.verifying {
            Some(verifying) if verifying >= size => {}
            Some(_) => {
                if self.follow.queued.as_ref().is_none_or(|q| q.head.size < size) {
                    self.follow.queued = Some(certificate);
                }
            }
            None => {
                self.follow.verifying = Some(size);
                let tables = Arc::new(self.epochs.tables_at(LogIndex(size)));
                self.effects.push(Effect::Crypto(Crypto::VerifyCertificate { certificate, tables }));
            }
        }
    }

    pub(super) fn on_certificate_verified(&mut self, certificate: Arc<HeadCertificate>, valid: bool) {
        self.follow.verifying = None;
        if valid && self.follow.verified.as_ref().is_none_or(|c| c.head.size < certificate.head.size) {
            self.follow.verified = Some(certificate);
        }
        if let Some(next) = self.follow.queued.take() {
            self.on_certificate(next);
        }
    }

    /// Takes a verified certificate over once what it covers is durable here. What a head certificate covers is
    /// committed for ever: a quorum signed after its fsync, in the term of the head's last entry, which is Raft's commit
    /// rule word for word; so it also tells the commit index.
    pub(super) fn settle_certificate(&mut self) {
        let Some(certificate) = &self.follow.verified else { return };
        let (head, index) = (certificate.head, LogIndex(certificate.head.size));
        if head.size <= self.certified_size() {
            self.follow.verified = None;
            return;
        }
        if index > self.log.durable() || self.log.term_at(index) != Some(head.term) {
            return;
        }
        if let Some(root) = self.log.root_at(index)
            && root != head.root
        {
            let leader = self.leader.unwrap_or(self.id);
            self.halt(Halt::RootMismatch { leader, index });
            return;
        }
        let certificate = self.follow.verified.take().expect("just seen");
        self.committed = self.committed.max(index);
        self.certificate = Some(certificate.clone());
        self.certificate_to_persist = Some(certificate);
    }

    /// Sends the newest certificate to a peer that holds what it covers and has not been sent it.
    pub(super) fn send_certificate_to(&mut self, to: NodeId) {
        let Some(certificate) = self.certificate.clone() else { return };
        let State::Leader(lead) = &mut self.state else { return };
        let Some(peer) = lead.peers.get_mut(&to) else { return };
        if peer.matched.0 >= certificate.head.size && peer.certificate_sent < certificate.head.size {
            peer.certificate_sent = certificate.head.size;
            self.send(to, Message::Certificate(certificate));
        }
    }
}
