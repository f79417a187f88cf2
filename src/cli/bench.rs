//! `bench`: a closed loop over the HTTP client. Each client proposes, waits for the answer and proposes again.

use super::propose::WaitFor;
use super::{Failure, Global, PATIENT, QUERY, call_failed, client, output};
use crate::api::{Propose, Wait};
use crate::client::Client;
use clap::Args;
use hdrhistogram::Histogram;
use serde_json::json;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::time::Instant;

/// Longest latency that is told apart, in nanoseconds (ten minutes); longer ones count as this.
const LONGEST_NS: u64 = 600_000_000_000;
/// After a failed proposal a client rests, so that a cluster without a leader is not hammered.
const REST: Duration = Duration::from_millis(20);

/// Arguments of `bench`.
#[derive(Debug, Args)]
pub(super) struct Bench {
    /// Clients at a time; several numbers make several runs
    #[arg(long, value_delimiter = ',', default_value = "1,64,256", value_parser = clap::value_parser!(u16).range(1..=4096))]
    clients: Vec<u16>,
    /// Seconds measured in each run
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u64).range(1..=3600))]
    secs: u64,
    /// Seconds of load before each measurement
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(0..=3600))]
    warm: u64,
    /// Bytes of payload
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u64).range(32..=65_536))]
    size: u64,
    /// What each proposal waits for
    #[arg(long, value_enum, default_value_t = WaitFor::Certified)]
    wait: WaitFor,
}

impl Bench {
    pub(super) async fn run(self, global: &Global) -> Result<ExitCode, Failure> {
        let client = leader_first(&global.nodes()).await?;
        let mut failed = 0;
        for &clients in &self.clients {
            let run = self.measure(&client, clients).await?;
            failed += run.errors;
            if global.json {
                output::json(&run.json(&self, clients))?;
            } else {
                output::line(&run.text(&self, clients))?;
            }
        }
        match failed {
            0 => Ok(ExitCode::SUCCESS),
            n => Err(Failure::new(format!("{n} proposals failed; the figures are those of the rest"))),
        }
    }

    async fn measure(&self, client: &Client, clients: u16) -> Result<Run, Failure> {
        let begin = Instant::now() + Duration::from_secs(self.warm);
        let load = Arc::new(Load {
            begin,
            end: begin + Duration::from_secs(self.secs),
            size: usize::try_from(self.size).unwrap_or(usize::MAX),
            wait: self.wait.into(),
            sequence: AtomicU64::new(0),
            told: AtomicU64::new(0),
        });
        let tasks: Vec<_> = (0..clients).map(|_| tokio::spawn(load.clone().closed_loop(client.clone()))).collect();
        let mut run = Run { latencies: histogram()?, errors: 0 };
        for task in tasks {
            let part = task.await.map_err(|e| Failure::new(format!("a client of the benchmark failed: {e}")))??;
            run.latencies.add(&part.latencies).map_err(Failure::new)?;
            run.errors += part.errors;
        }
        Ok(run)
    }
}

/// Nodes ordered so that the leader comes first: what is measured is the cluster, not the extra hop.
async fn leader_first(nodes: &[String]) -> Result<Client, Failure> {
    let mut ordered = nodes.to_vec();
    for (at, node) in nodes.iter().enumerate() {
        let alone = std::slice::from_ref(node);
        match client(alone, QUERY)?.status().await {
            Ok(status) if status.leader == Some(status.id) => {
                ordered.swap(0, at);
                break;
            }
            Ok(_) => {}
            Err(e) if nodes.len() == 1 => return Err(call_failed(nodes, &e)),
            Err(e) => eprintln!("{node}: {e}"),
        }
    }
    client(&ordered, PATIENT)
}

struct Load {
    begin: Instant,
    end: Instant,
    size: usize,
    wait: Wait,
    sequence: AtomicU64,
    told: AtomicU64,
}

impl Load {
    async fn closed_loop(self: Arc<Self>, client: Client) -> Result<Run, Failure> {
        let mut run = Run { latencies: histogram()?, errors: 0 };
        loop {
            let start = Instant::now();
            if start >= self.end {
                return Ok(run);
            }
            let number = self.sequence.fetch_add(1, Ordering::Relaxed);
            let propose = Propose { wait: self.wait, ..Propose::new(payload(number, self.size)) };
            match client.propose_with(propose).await {
                Ok(_) => {
                    let end = Instant::now();
                    if start >= self.begin && end <= self.end {
                        let ns = u64::try_from((end - start).as_nanos()).unwrap_or(LONGEST_NS);
                        run.latencies.saturating_record(ns.clamp(1, LONGEST_NS));
                    }
                }
                Err(error) => {
                    run.errors += 1;
                    if self.told.fetch_add(1, Ordering::Relaxed) == 0 {
                        eprintln!("first error: {error}");
                    }
                    tokio::time::sleep(REST).await;
                }
            }
        }
    }
}

/// JSON of exactly `size` bytes (at least 32), different for every number.
fn payload(number: u64, size: usize) -> serde_json::Value {
    // {"n":"0000000000000000","v":""} has 31 bytes.
    json!({ "n": format!("{number:016x}"), "v": "v".repeat(size.saturating_sub(31)) })
}

struct Run {
    latencies: Histogram<u64>,
    errors: u64,
}

fn histogram() -> Result<Histogram<u64>, Failure> {
    Histogram::new_with_bounds(1, LONGEST_NS, 3).map_err(Failure::new)
}

impl Run {
    fn rate(&self, bench: &Bench) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
        let rate = self.latencies.len() as f64 / bench.secs as f64;
        rate
    }

    fn ms(&self, quantile: f64) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "latencies are below 2^52 ns")]
        let ms = self.latencies.value_at_quantile(quantile) as f64 / 1e6;
        if self.latencies.is_empty() { 0.0 } else { ms }
    }

    fn text(&self, bench: &Bench, clients: u16) -> String {
        format!(
            "{:<22} clients={clients:<4} n={:<7} errs={} ops/s={:<8.0} p50={:.3}ms p90={:.3}ms p99={:.3}ms p99.9={:.3}ms max={:.3}ms",
            format!("concordat-{}", wait_name(bench.wait)),
            self.latencies.len(),
            self.errors,
            self.rate(bench),
            self.ms(0.5),
            self.ms(0.9),
            self.ms(0.99),
            self.ms(0.999),
            self.ms(1.0)
        )
    }

    fn json(&self, bench: &Bench, clients: u16) -> serde_json::Value {
        json!({
            "clients": clients, "secs": bench.secs, "size": bench.size, "wait": wait_name(bench.wait),
            "n": self.latencies.len(), "errors": self.errors, "ops_per_s": self.rate(bench),
            "p50_ms": self.ms(0.5), "p90_ms": self.ms(0.9), "p99_ms": self.ms(0.99), "p99_9_ms": self.ms(0.999),
            "max_ms": self.ms(1.0),
        })
    }
}

fn wait_name(wait: WaitFor) -> &'static str {
    match wait {
        WaitFor::Certified => "certified",
        WaitFor::Committed => "committed",
        WaitFor::Accepted => "accepted",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_has_the_size_asked_for_and_no_two_are_equal() {
        for size in [32, 256, 65_536] {
            assert_eq!(serde_json::to_vec(&payload(7, size)).unwrap().len(), size);
        }
        assert_ne!(payload(1, 256), payload(2, 256));
    }
}
