//! Durable entries a second, beside a plain append and `fdatasync` of the same bytes: in turns, round by round, so that
//! whatever else the machine does falls on both. A ratio of 1 means that the store costs nothing.
//!
//! `COMMIT_SECS` (default 4): seconds for each group size.

mod support;

use std::fs::File;
use std::io::Write as _;
use std::time::Duration;
use support::{Log, entries, quantile, timed};

const SIZE: usize = 256;

fn main() {
    let secs: u64 =
        std::env::var("COMMIT_SECS").ok().map_or(4, |s| s.parse().expect("COMMIT_SECS is a number of seconds"));
    let place = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("target/ is writable");
    println!(
        "{:>6} {:>7} {:>12} {:>12} {:>10} {:>10} {:>6} {:>8}",
        "group", "rounds", "raw/s", "store/s", "raw p50", "store p50", "ratio", "of p50s"
    );
    for group in [1, 16, 128, 1024] {
        let mut raw_file = File::create(place.path().join(format!("raw-{group}"))).expect("a file");
        let mut log = Log::create(&place.path().join(format!("store-{group}")));
        let (mut raw, mut store) = (Vec::new(), Vec::new());
        let mut next = 1;
        while raw.iter().chain(&store).sum::<Duration>() < Duration::from_secs(secs) {
            // Making and encoding entries is not the disk's work: raw writes bytes that are there, and the store encodes.
            let batch = entries(next, group, SIZE);
            next += group;
            let bytes: Vec<u8> = batch.iter().flat_map(|e| e.encode()).collect();
            raw.push(
                timed(|| {
                    raw_file.write_all(&bytes).expect("the disk works");
                    raw_file.sync_data().expect("the disk works");
                })
                .1,
            );
            store.push(timed(|| log.append(batch)).1);
        }
        let rate = |all: &[Duration]| (all.len() as u64 * group) as f64 / all.iter().sum::<Duration>().as_secs_f64();
        let (raw_rate, store_rate) = (rate(&raw), rate(&store));
        let (raw_p50, store_p50) = (quantile(&mut raw, 0.5), quantile(&mut store, 0.5));
        println!(
            "{group:>6} {:>7} {raw_rate:>12.0} {store_rate:>12.0} {:>8.2}ms {:>8.2}ms {:>6.2} {:>8.2}",
            raw.len(),
            raw_p50.as_secs_f64() * 1e3,
            store_p50.as_secs_f64() * 1e3,
            store_rate / raw_rate,
            raw_p50.as_secs_f64() / store_p50.as_secs_f64(),
        );
    }
}
