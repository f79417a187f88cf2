//! Clusters of real nodes for tests.

use crate::ports::free_port;
use concordat::api::{
    ChangeMembers, ChangedMembers, MemberOp, ProposalState, ProposalStatus, Propose, Role, Standing, Status,
};
use concordat::certificate::{Genesis, Member, MemberTable, Policy, QuorumRule, Role as MemberRole, SecretKey};
use concordat::config::Config;
use concordat::ids::{LogIndex, NodeId};
use concordat::node::{self, Handle};
use concordat::storage::{STORE_DIR, Store};
use concordat::transport::{IDENTITY_FILE, Identity};
use serde_json::{Value, json};
use std::future::Future;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long any condition may take before a test fails: far beyond what a loaded machine needs.
const DEADLINE: Duration = Duration::from_secs(60);

/// Real nodes on loopback.
pub(crate) struct Cluster {
    root: tempfile::TempDir,
    pub(crate) genesis: Genesis,
    pub(crate) ids: Vec<NodeId>,
    addresses: Vec<SocketAddr>,
    pub(crate) nodes: Vec<Option<Handle>>,
    pub(crate) config: Config,
}

fn secret(seed: u8, salt: &NodeId) -> SecretKey {
    let mut ikm = salt.0;
    ikm[0] ^= seed;
    SecretKey::generate(&ikm)
}

impl Cluster {
    /// Keys, stores and a genesis for as many members as policies; nothing runs yet.
    pub(crate) fn prepare(policies: &[Policy]) -> Self {
        let root = tempfile::tempdir().expect("a temporary directory");
        let addresses: Vec<SocketAddr> =
            policies.iter().map(|_| SocketAddr::from(([127, 0, 0, 1], free_port()))).collect();
        let mut ids = Vec::new();
        let mut members = Vec::new();
        for (n, (policy, address)) in policies.iter().zip(&addresses).enumerate() {
            let dir = root.path().join(n.to_string());
            std::fs::create_dir(&dir).expect("a new directory");
            let member = Member { policy: *policy, ..make_member(&dir, *address, n as u8) };
            ids.push(member.did);
            members.push(member);
        }
        let table = MemberTable::new(members).expect("a member table");
        let genesis = Genesis::new("test", QuorumRule::Majority, table).expect("a genesis");
        let nodes = policies.iter().map(|_| None).collect();
        Self { root, genesis, ids, addresses, nodes, config: Config::default() }
    }

    /// Keys and a store for one more node, which no table names yet.
    pub(crate) fn prepare_another(&mut self) -> Member {
        let n = self.nodes.len();
        std::fs::create_dir(self.data(n)).expect("a new directory");
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let member = make_member(&self.data(n), address, n as u8);
        self.addresses.push(address);
        self.ids.push(member.did);
        self.nodes.push(None);
        member
    }

    /// The disk of a stopped node is lost: a store with a fresh key takes its place.
    pub(crate) fn lose_disk(&mut self, n: usize) -> Member {
        std::fs::remove_dir_all(self.data(n).join(STORE_DIR)).expect("a store");
        make_member(&self.data(n), self.addresses[n], 100 + n as u8)
    }

    /// Starts a node that waits to be admitted.
    pub(crate) async fn start_joining(&mut self, n: usize) {
        let options = node::Options { join: true, ..self.options(n) };
        self.nodes[n] = Some(node::start(options).await.expect("the node starts"));
    }

    /// Changes the members at whichever node leads, again while a refusal may pass by itself.
    pub(crate) async fn change(&self, op: MemberOp) -> ChangedMembers {
        until("the change is made", || async {
            let node = self.node(self.leader().await);
            let ask = ChangeMembers { changes: vec![op.clone()], base_epoch: None, dry_run: false, ttl_ms: None };
            match node.change_members(ask).await {
                Ok(changed) => Some(changed),
                Err(error) if error.is_retryable() => None,
                Err(error) => panic!("{op:?}: {error}"),
            }
        })
        .await
    }

    /// All members run and agree on a leader.
    pub(crate) async fn start(policies: &[Policy]) -> Self {
        let mut cluster = Self::prepare(policies);
        for n in 0..policies.len() {
            cluster.start_node(n).await;
        }
        cluster.leader().await;
        cluster
    }

    pub(crate) fn data(&self, n: usize) -> PathBuf {
        self.root.path().join(n.to_string())
    }

    pub(crate) fn options(&self, n: usize) -> node::Options {
        node::Options {
            data: self.data(n),
            genesis: self.genesis.clone(),
            listen: self.addresses[n],
            http: None,
            config: self.config.clone(),
            join: false,
            epochs: concordat::certificate::EpochChain::default(),
        }
    }

    pub(crate) async fn start_node(&mut self, n: usize) {
        self.nodes[n] = Some(node::start(self.options(n)).await.expect("the node starts"));
    }

    pub(crate) async fn stop_node(&mut self, n: usize) {
        if let Some(node) = self.nodes[n].take() {
            node.close().await;
        }
    }

    pub(crate) fn node(&self, n: usize) -> &Handle {
        self.nodes[n].as_ref().expect("the node runs")
    }

    pub(crate) fn running(&self) -> impl Iterator<Item = &Handle> {
        self.nodes.iter().flatten()
    }

    /// The leader that all running nodes agree on.
    pub(crate) async fn leader(&self) -> usize {
        let leader = until("all nodes follow one leader", || async {
            let mut views: Vec<Status> = self.running().map(Handle::status).collect();
            // Who was removed, or is not admitted yet, follows nobody.
            views.retain(|v| !matches!(v.standing, Standing::Retired | Standing::Waiting));
            let leader = views.first()?.leader?;
            let agreed = views.iter().all(|v| v.leader == Some(leader) && v.snapshot.term == views[0].snapshot.term);
            let leads = views.iter().any(|v| v.id == leader && v.snapshot.role == Role::Leader);
            (agreed && leads).then_some(leader)
        })
        .await;
        self.ids.iter().position(|id| *id == leader).expect("the leader is a member")
    }

    pub(crate) async fn follower(&self) -> usize {
        let leader = self.leader().await;
        (0..self.nodes.len()).find(|n| *n != leader && self.nodes[*n].is_some()).expect("a follower")
    }

    /// Every running node has certified and applied everything up to the same index.
    pub(crate) async fn settled(&self) -> LogIndex {
        until("all nodes certify and apply the same log", || async {
            let views: Vec<Status> = self.running().map(Handle::status).collect();
            let last = views.iter().map(|v| v.last_index).max()?;
            let settled = |v: &Status| v.last_index == last && v.applied_index == last && v.certified_index == last;
            views.iter().all(settled).then_some(last)
        })
        .await
    }

    pub(crate) async fn close(mut self) {
        for n in 0..self.nodes.len() {
            self.stop_node(n).await;
        }
    }
}

/// Makes a store, and an identity where there is none.
fn make_member(dir: &Path, address: SocketAddr, seed: u8) -> Member {
    let identity = Identity::load(&dir.join(IDENTITY_FILE)).or_else(|_| Identity::create(dir)).expect("an identity");
    let key = secret(seed, &identity.did());
    Store::create(&dir.join(STORE_DIR), identity.did(), &key).expect("a store");
    Member {
        did: identity.did(),
        bls_key: key.public(),
        possession: key.prove_possession(),
        address: address.to_string(),
        role: MemberRole::Voter,
        policy: Policy::Auto,
    }
}

/// Waits for a condition with a deadline.
pub(crate) async fn until<T, F: Future<Output = Option<T>>>(what: &str, mut condition: impl FnMut() -> F) -> T {
    let poll = async {
        let mut tick = tokio::time::interval(Duration::from_millis(5));
        loop {
            if let Some(found) = condition().await {
                return found;
            }
            tick.tick().await;
        }
    };
    tokio::time::timeout(DEADLINE, poll).await.unwrap_or_else(|_| panic!("within {DEADLINE:?}: {what}"))
}

/// Whatever a future gives, within the deadline.
pub(crate) async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future).await.unwrap_or_else(|_| panic!("within {DEADLINE:?}: {what}"))
}

pub(crate) fn set_config(key: &str, value: &str) -> Value {
    json!({"op": "set_config", "key": key, "value": value})
}

/// Proposes and demands that it is certified.
pub(crate) async fn certify(node: &Handle, propose: Propose) -> ProposalStatus {
    let propose = Propose { wait_ms: Some(30_000), ..propose };
    let status = within("the proposal is answered", node.submit(propose)).await.expect("the proposal is taken");
    assert_eq!(status.state, ProposalState::Certified, "{status:?}");
    status
}
