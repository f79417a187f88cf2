//! Every interleaving of small scopes: stateright drives the real core. See README.md beside this file.

mod cluster;
#[path = "../sim/crypto.rs"]
mod crypto;
mod history;
mod log;
mod members;
mod moot;
mod node;
mod properties;
mod scopes;

use cluster::Cluster;
use scopes::Scope;
use stateright::{Checker, HasDiscoveries, Model};
use std::time::Duration;

fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).map_or(otherwise, |v| v.parse().unwrap_or_else(|_| panic!("{name}={v} is no number")))
}

/// Explores one scope to its end, or up to a bound given from outside.
fn explore(scope: Scope) {
    let name = scope.name;
    let cluster = Cluster::new(scope);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let seconds = number("MODEL_SECONDS", u64::MAX >> 20);
    let mut checker = cluster
        .checker()
        .threads(threads)
        .finish_when(HasDiscoveries::AnyFailures)
        .timeout(Duration::from_secs(seconds));
    let depth = number("MODEL_DEPTH", 0);
    let depth_unbounded = depth == 0;
    if !depth_unbounded {
        checker = checker.target_max_depth(usize::try_from(depth).expect("a depth"));
    }
    #[expect(clippy::disallowed_methods, reason = "how long an exploration takes is reported, and decides nothing")]
    let began = std::time::Instant::now();
    let checker = checker.spawn_bfs().join();
    let took = began.elapsed().as_secs();
    let (nodes, steps) = checker.model().seen();
    let failed = |name: &&'static str| checker.model().property(name).expectation == stateright::Expectation::Always;
    let outcome = match checker.discoveries().keys().any(failed) {
        true => "stopped by a broken rule",
        false if took < seconds && depth_unbounded => "exhausted",
        false => "stopped by a bound",
    };
    eprintln!(
        "{name}: {} states ({} transitions) to depth {}, {} after {took} s; {nodes} states of single nodes, {steps} steps of the core",
        checker.unique_state_count(),
        checker.state_count(),
        checker.max_depth(),
        outcome,
    );
    checker.assert_properties();
}

#[test]
fn every_interleaving_of_the_scopes_keeps_every_property() {
    let scopes = match std::env::var("MODEL_SCOPE").as_deref() {
        Ok("large") => scopes::large(),
        _ => scopes::gate(),
    };
    let only = std::env::var("MODEL_ONLY").unwrap_or_default();
    scopes.into_iter().filter(|s| s.name.contains(&only)).for_each(explore);
}
