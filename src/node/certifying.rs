//! Head certificates on their way to readers.

use crate::certificate::HeadCertificate;
use crate::ids::LogIndex;
use std::collections::VecDeque;
use std::sync::Arc;

/// Ascending in both the number of the write and the size. A certificate is shown once its write is durable, so that
/// nobody is told "certified" of what a power loss takes back, and once all it covers is applied, so that whoever is
/// told finds the entry, its outcome and its path. Bounded by the core, which has one at a time on its way to the disk,
/// and by the queue of the state machine.
#[derive(Debug, Default)]
pub(super) struct Certifying {
    waiting: VecDeque<(u64, Arc<HeadCertificate>)>,
}

impl Certifying {
    /// The write with this number holds this certificate.
    pub(super) fn written(&mut self, seq: u64, certificate: Arc<HeadCertificate>) {
        self.waiting.push_back((seq, certificate));
    }

    /// The newest that may be shown now, if any is that was not before.
    pub(super) fn shown(&mut self, persisted: u64, applied: LogIndex) -> Option<Arc<HeadCertificate>> {
        let mut newest = None;
        while let Some((_, certificate)) =
            self.waiting.pop_front_if(|(seq, c)| *seq <= persisted && c.head.size <= applied.0)
        {
            newest = Some(certificate);
        }
        newest
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::certificate::Head;
    use crate::ids::{Digest, Term};

    fn certificate(size: u64) -> Arc<HeadCertificate> {
        let head = Head { term: Term(1), size, root: Digest::ZERO };
        Arc::new(HeadCertificate { head, halves: Vec::new() })
    }

    #[test]
    fn a_certificate_is_shown_once_it_is_durable_and_what_it_covers_applied() {
        let mut certifying = Certifying::default();
        for (seq, size) in [(3, 10), (5, 20), (9, 30)] {
            certifying.written(seq, certificate(size));
        }
        let mut shown = |persisted, applied| certifying.shown(persisted, LogIndex(applied)).map(|c| c.head.size);
        assert_eq!(shown(2, 99), None, "not durable");
        assert_eq!(shown(4, 9), None, "not applied");
        assert_eq!(shown(4, 10), Some(10));
        assert_eq!(shown(4, 10), None, "shown before");
        assert_eq!(shown(9, 29), Some(20));
        assert_eq!(shown(9, 30), Some(30));
    }
}
