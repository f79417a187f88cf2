//! Members with real BLS keys (a member table admits no others), made once per process.

use concordat::certificate::{Genesis, Member, MemberTable, Policy, QuorumRule, Role, SecretKey};
use concordat::ids::NodeId;
use std::collections::BTreeMap;
use std::sync::{Mutex, OnceLock};

const MOST: usize = 7;

pub(crate) fn id_of(index: usize) -> NodeId {
    NodeId([u8::try_from(index + 1).expect("few nodes"); 32])
}

pub(crate) fn index_of(id: &NodeId) -> usize {
    usize::from(id.0[0]) - 1
}

pub(crate) fn secret_of(index: usize) -> SecretKey {
    SecretKey::generate(&[u8::try_from(index + 101).expect("few nodes"); 32])
}

fn row(index: usize, policy: Policy) -> Member {
    static ROWS: OnceLock<Vec<Member>> = OnceLock::new();
    let rows = ROWS.get_or_init(|| {
        (0..MOST)
            .map(|i| Member {
                did: id_of(i),
                bls_key: secret_of(i).public(),
                possession: secret_of(i).prove_possession(),
                address: format!("node-{i}:7000"),
                role: Role::Voter,
                policy: Policy::Auto,
            })
            .collect()
    });
    Member { policy, ..rows[index].clone() }
}

/// The genesis of members with these policies; cached, because checking proofs of possession costs pairings.
pub(crate) fn genesis(policies: &[Policy], rule: QuorumRule) -> Genesis {
    type Cache = Mutex<BTreeMap<(Vec<Policy>, bool), Genesis>>;
    static CACHE: OnceLock<Cache> = OnceLock::new();
    let key = (policies.to_vec(), rule == QuorumRule::Supermajority);
    let mut cache = CACHE.get_or_init(Mutex::default).lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    cache
        .entry(key)
        .or_insert_with(|| {
            let rows = policies.iter().enumerate().map(|(i, p)| row(i, *p)).collect();
            Genesis { name: "simulated".into(), rule, table: MemberTable::new(rows).expect("real keys") }
        })
        .clone()
}
