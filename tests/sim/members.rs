//! Members with real BLS keys (a member table admits no others), made once per process. A node makes a new key when its
//! keys are rotated and whenever its store is new; its keys are numbered by generation.

use crate::hash::FastMap;
use concordat::certificate::{Genesis, Member, MemberTable, Policy, PublicKey, QuorumRule, Role, SecretKey};
use concordat::ids::NodeId;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

/// What precedes the rows in a table's canonical bytes: a tag and a count.
const TABLE_PREFIX: usize = 16 + 2;

pub(crate) fn id_of(index: usize) -> NodeId {
    NodeId([u8::try_from(index + 1).expect("few nodes"); 32])
}

pub(crate) fn index_of(id: &NodeId) -> usize {
    usize::from(id.0[0]) - 1
}

/// A node's key of some generation.
pub(crate) fn secret(index: usize, generation: u8) -> SecretKey {
    let mut seed = [u8::try_from(index + 101).expect("few nodes"); 32];
    seed[31] ^= generation;
    SecretKey::generate(&seed)
}

/// A node's first key.
pub(crate) fn secret_of(index: usize) -> SecretKey {
    secret(index, 0)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A row with an address and a proof of possession; cached, because making and checking the proof costs pairings.
fn proved(index: usize, generation: u8) -> Member {
    static ROWS: OnceLock<Mutex<BTreeMap<(usize, u8), Member>>> = OnceLock::new();
    let make = || {
        let secret = secret(index, generation);
        let row = Member {
            did: id_of(index),
            bls_key: secret.public(),
            possession: secret.prove_possession(),
            address: format!("node-{index}:7000"),
            role: Role::Voter,
            policy: Policy::Auto,
        };
        MemberTable::new(vec![row.clone()]).expect("a real key");
        row
    };
    lock(ROWS.get_or_init(Mutex::default)).entry((index, generation)).or_insert_with(make).clone()
}

/// Keys by node and generation, and the other way round; asked for all the time, so each thread has its own.
#[derive(Default)]
struct Known {
    keys: FastMap<(usize, u8), PublicKey>,
    generations: FastMap<(usize, PublicKey), u8>,
}

thread_local!(static KNOWN: RefCell<Known> = RefCell::default());

pub(crate) fn public(index: usize, generation: u8) -> PublicKey {
    KNOWN.with_borrow_mut(|known| {
        *known.keys.entry((index, generation)).or_insert_with(|| proved(index, generation).bls_key)
    })
}

/// The generation of a node's key.
fn generation_of(index: usize, key: PublicKey) -> u8 {
    let known = KNOWN.with_borrow(|known| known.generations.get(&(index, key)).copied());
    known.unwrap_or_else(|| {
        let generation = (0..=u8::MAX).find(|g| public(index, *g) == key).expect("made here");
        KNOWN.with_borrow_mut(|known| known.generations.insert((index, key), generation));
        generation
    })
}

/// A row of a table, in the simulator's terms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) node: usize,
    pub(crate) generation: u8,
    pub(crate) role: Role,
    pub(crate) policy: Policy,
}

impl Row {
    pub(crate) fn voter(node: usize) -> Self {
        Self { node, generation: 0, role: Role::Voter, policy: Policy::Auto }
    }

    pub(crate) fn learner(node: usize) -> Self {
        Self { role: Role::Learner, ..Self::voter(node) }
    }

    /// A member's row; generations go up to eight in these tests.
    pub(crate) fn of(member: &Member) -> Self {
        let node = index_of(&member.did);
        Self { node, generation: generation_of(node, member.bls_key), role: member.role, policy: member.policy }
    }
}

/// The table of these rows. Its proofs were checked row by row, so it is put together from its canonical bytes.
pub(crate) fn table(rows: &[Row]) -> MemberTable {
    let mut rows = rows.to_vec();
    rows.sort_by_key(|r| r.node);
    let mut bytes = Vec::new();
    for row in &rows {
        let member = Member { role: Role::Voter, policy: row.policy, ..proved(row.node, row.generation) };
        let mut one = alone(member);
        if bytes.is_empty() {
            bytes.extend_from_slice(&one[..TABLE_PREFIX - 2]);
            bytes.extend(u16::try_from(rows.len()).expect("few rows").to_be_bytes());
        }
        let role = one.len() - 2;
        one[role] = row.role as u8;
        bytes.extend_from_slice(&one[TABLE_PREFIX..]);
    }
    MemberTable::decode_granted(&bytes).expect("real keys")
}

/// The canonical bytes of a table of one row.
fn alone(member: Member) -> Vec<u8> {
    type Cache = Mutex<BTreeMap<(PublicKey, Policy), Vec<u8>>>;
    static CACHE: OnceLock<Cache> = OnceLock::new();
    let make = || MemberTable::new(vec![member.clone()]).expect("a real key").encode();
    lock(CACHE.get_or_init(Mutex::default)).entry((member.bls_key, member.policy)).or_insert_with(make).clone()
}

pub(crate) fn rows_of(table: &MemberTable) -> Vec<Row> {
    table.members().iter().map(Row::of).collect()
}

/// The genesis of voters with these policies.
pub(crate) fn genesis(policies: &[Policy], rule: QuorumRule) -> Genesis {
    let rows: Vec<Row> = policies.iter().enumerate().map(|(i, p)| Row { policy: *p, ..Row::voter(i) }).collect();
    Genesis { name: "simulated".into(), rule, table: table(&rows), succeeds: None }
}
