//! Members with real BLS keys (a member table admits no others), made once per process.

use concordat::certificate::{Genesis, Member, MemberTable, Policy, PublicKey, QuorumRule, Role, SecretKey};
use concordat::ids::NodeId;
use std::sync::OnceLock;

/// Most members of any scope.
const MOST: usize = 4;

pub(crate) fn id_of(index: usize) -> NodeId {
    NodeId([u8::try_from(index + 1).expect("few nodes"); 32])
}

pub(crate) fn index_of(id: &NodeId) -> usize {
    usize::from(id.0[0]) - 1
}

pub(crate) fn secret_of(index: usize) -> SecretKey {
    SecretKey::generate(&[u8::try_from(index + 101).expect("few nodes"); 32])
}

/// For the signer shared with the simulator: here every node has one key.
pub(crate) fn secret(index: usize, _generation: u8) -> SecretKey {
    secret_of(index)
}

/// As [`secret`].
pub(crate) fn public(index: usize, _generation: u8) -> PublicKey {
    row(index, Role::Voter).bls_key
}

fn row(index: usize, role: Role) -> Member {
    static ROWS: OnceLock<Vec<Member>> = OnceLock::new();
    let make = |i| Member {
        did: id_of(i),
        bls_key: secret_of(i).public(),
        possession: secret_of(i).prove_possession(),
        address: format!("node-{i}:7000"),
        role: Role::Voter,
        policy: Policy::Auto,
    };
    Member { role, ..ROWS.get_or_init(|| (0..MOST).map(make).collect())[index].clone() }
}

/// The table of these voters and learners.
pub(crate) fn table(voters: &[usize], learners: &[usize]) -> MemberTable {
    let voters = voters.iter().map(|i| row(*i, Role::Voter));
    let rows = voters.chain(learners.iter().map(|i| row(*i, Role::Learner))).collect();
    MemberTable::new(rows).expect("real keys")
}

/// The genesis of these voters and learners, under the majority rule.
pub(crate) fn genesis(voters: &[usize], learners: &[usize]) -> Genesis {
    Genesis { name: "modelled".into(), rule: QuorumRule::Majority, table: table(voters, learners), succeeds: None }
}
