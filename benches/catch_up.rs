//! How fast a new member catches up by a snapshot while the cluster goes on committing, and what that costs the cluster.
//! Four real `serve` processes on one machine, mutual TLS between them.
//!
//! `CATCH_UP_ENTRIES` (default 20,000): config keys with values of about 200 bytes, all in the image.

#[path = "../tests/support/ports.rs"]
mod ports;

use concordat::api::{ChangeMembers, MemberOp, Propose, Wait};
use concordat::client::{Client, Options};
use ports::free_port;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

const LOADERS: u64 = 64;
const WRITERS: u64 = 32;

struct Member {
    peers: String,
    http: String,
    child: Option<Child>,
}

impl Drop for Member {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            // It is gone already or goes now.
            let _gone = child.kill();
            let _reaped = child.wait();
        }
    }
}

fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_concordat"));
    command.env("RUST_LOG", "error");
    command
}

fn init(root: &Path, n: usize) -> Member {
    let address = || format!("127.0.0.1:{}", free_port());
    let member = Member { peers: address(), http: address(), child: None };
    let made = program().args(["init", "--address", &member.peers, "--data"]).arg(root.join(n.to_string())).output();
    assert!(made.expect("init runs").status.success());
    member
}

impl Member {
    fn serve(&mut self, root: &Path, n: usize, join: bool) {
        let mut command = program();
        command.args(["serve", "--listen", &self.peers, "--http", &self.http, "--data"]).arg(root.join(n.to_string()));
        command.arg("--genesis").arg(root.join("genesis.json")).arg("--config").arg(root.join("config.toml"));
        if join {
            command.arg("--join");
        }
        let mut child = command.stdout(Stdio::piped()).spawn().expect("serve runs");
        let first = BufReader::new(child.stdout.take().expect("piped")).lines().next();
        assert!(matches!(first, Some(Ok(line)) if line.starts_with("ready ")), "it is ready");
        self.child = Some(child);
    }

    fn client(&self) -> Client {
        Client::new([format!("http://{}", self.http)], Options::default()).expect("a client")
    }
}

/// Config keys from `from` on, set by several clients at a time until `go` says no.
async fn load(
    client: &Client,
    clients: u64,
    from: u64,
    go: impl Fn(u64) -> bool + Send + Sync + 'static,
) -> Arc<AtomicU64> {
    let (next, go, done) = (Arc::new(AtomicU64::new(from)), Arc::new(go), Arc::new(AtomicU64::new(0)));
    let tasks = (0..clients).map(|_| {
        let (client, next, go, done) = (client.clone(), next.clone(), go.clone(), done.clone());
        tokio::spawn(async move {
            loop {
                let n = next.fetch_add(1, Ordering::Relaxed);
                if !go(n) {
                    return;
                }
                let payload =
                    serde_json::json!({"op": "set_config", "key": format!("bench/{n}"), "value": "x".repeat(200)});
                let propose = Propose { wait: Wait::Committed, ..Propose::new(payload) };
                client.propose_with(propose).await.expect("it commits");
                done.fetch_add(1, Ordering::Relaxed);
            }
        })
    });
    let tasks: Vec<_> = tasks.collect();
    let counted = done.clone();
    let all = async move {
        for task in tasks {
            task.await.expect("no panic");
        }
    };
    if clients == LOADERS {
        all.await
    } else {
        drop(tokio::spawn(all))
    }
    counted
}

#[expect(clippy::disallowed_methods, reason = "a bench measures time")]
fn now() -> Instant {
    Instant::now()
}

async fn until(mut condition: impl AsyncFnMut() -> bool) -> Duration {
    let start = now();
    let mut tick = tokio::time::interval(Duration::from_millis(5));
    while !condition().await {
        assert!(start.elapsed() < Duration::from_secs(600), "ten minutes are over");
        tick.tick().await;
    }
    start.elapsed()
}

#[tokio::main]
async fn main() {
    let count: u64 = std::env::var("CATCH_UP_ENTRIES").ok().map_or(20_000, |s| s.parse().expect("a number"));
    let place = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("target/ is writable");
    let root = place.path();
    std::fs::write(
        root.join("config.toml"),
        "[snapshots]\nevery_entries = 0\nretain_entries = 0\nfetch_mib_per_s = 1000\n",
    )
    .expect("written");
    let mut members: Vec<Member> = (0..3).map(|n| init(root, n)).collect();
    let mut genesis = program();
    genesis.args(["genesis", "--name", "bench", "--quorum", "majority", "--out"]).arg(root.join("genesis.json"));
    for n in 0..3 {
        genesis.arg("--member").arg(root.join(n.to_string()).join("member.json"));
    }
    assert!(genesis.output().expect("genesis runs").status.success());
    members.iter_mut().enumerate().for_each(|(n, m)| m.serve(root, n, false));
    let client =
        Client::new(members.iter().map(|m| format!("http://{}", m.http)), Options::default()).expect("a client");
    let start = now();
    load(&client, LOADERS, 0, move |n| n < count).await;
    println!("{count} keys set in {:.1} s", start.elapsed().as_secs_f64());
    let marked = client.mark_snapshot().await.expect("a mark").index;
    let first = &members[0];
    let pruned = until(async || first.client().status().await.is_ok_and(|s| s.first_index > marked)).await;
    println!("image taken, compared, certified and its payloads pruned in {:.2} s", pruned.as_secs_f64());

    let over = Arc::new(AtomicBool::new(false));
    let stop = over.clone();
    let committed = load(&client, WRITERS, count, move |_| !stop.load(Ordering::Acquire)).await;
    let rate = async |last: Duration| {
        let (before, start) = (committed.load(Ordering::Relaxed), now());
        let _passed = tokio::time::timeout(last, std::future::pending::<()>()).await;
        (committed.load(Ordering::Relaxed) - before) as f64 / start.elapsed().as_secs_f64()
    };
    rate(Duration::from_secs(2)).await;
    let alone = rate(Duration::from_secs(5)).await;

    let mut joining = init(root, 3);
    joining.serve(root, 3, true);
    let member = std::fs::read(root.join("3/member.json")).expect("it is there");
    let member = serde_json::from_slice(&member).expect("a member");
    let add = ChangeMembers { changes: vec![MemberOp::Add { member }], base_epoch: None, dry_run: false, ttl_ms: None };
    let (before, start) = (committed.load(Ordering::Relaxed), now());
    client.change_members(&add).await.expect("admitted");
    let admitted = start.elapsed();
    let newcomer = joining.client();
    let mut chunks = 0;
    until(async || {
        let Ok(status) = newcomer.status().await else { return false };
        chunks = chunks.max(status.installing.map_or(0, |i| i.chunks));
        status.first_index > marked
    })
    .await;
    let installed = start.elapsed();
    until(async || {
        let (Ok(here), Ok(there)) = (newcomer.status().await, members[0].client().status().await) else { return false };
        here.applied_index.0 + 64 >= there.applied_index.0
    })
    .await;
    let caught_up = start.elapsed();
    let during = (committed.load(Ordering::Relaxed) - before) as f64 / caught_up.as_secs_f64();
    over.store(true, Ordering::Release);
    let mib = f64::from(chunks) / 16.0;
    println!(
        "a new member: admitted after {:.2} s, image of about {mib:.0} MiB in force after {:.2} s, level with the others after {:.2} s",
        admitted.as_secs_f64(),
        installed.as_secs_f64(),
        caught_up.as_secs_f64()
    );
    println!("committed meanwhile: {during:.0} entries/s; before: {alone:.0} entries/s ({WRITERS} clients)");
}
