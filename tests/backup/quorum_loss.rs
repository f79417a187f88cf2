//! Two of three members are lost for good: what the survivor holds goes on, and everybody can see how.

use crate::nodes::{Nodes, until};
use crate::successor::{place, succeed};
use crate::support::{done, path, refused, registry, told, write};
use concordat::api::Propose;
use serde_json::json;

#[tokio::test(flavor = "multi_thread")]
async fn a_survivor_of_a_lost_quorum_signs_what_it_holds_and_a_successor_goes_on() {
    let mut old = Nodes::start(3).await;
    write(&old.client(), "a", 60).await;
    old.settled().await;
    let survives = old.leader().await;
    let lost: Vec<usize> = (0..3).filter(|n| *n != survives).collect();
    // Entries are under way when the others go, so that the leader holds some that nobody ever certified.
    let leader = old.one(survives);
    let load: Vec<_> = (0..16)
        .map(|w| {
            let leader = leader.clone();
            tokio::spawn(async move {
                for n in 0.. {
                    let payload = json!({"op": "set_config", "key": format!("tail-{w}-{n}"), "value": n});
                    if leader.propose_with(Propose::new(payload)).await.is_err() {
                        break;
                    }
                }
            })
        })
        .collect();
    until("the load is on", async || (leader.status().await.ok()?.last_index.0 > 150).then_some(())).await;
    lost.iter().for_each(|n| old.kill(*n));
    until("the leader gives up", async || leader.status().await.ok()?.leader.is_none().then_some(())).await;
    load.iter().for_each(tokio::task::JoinHandle::abort);
    old.kill(survives);

    let data = old.data(survives);
    let survey = old.root().join("survey.json");
    let said = told(&["recover", "survey", "--data", path(&data), "--out", path(&survey)]);
    let (size, certified) = (said["size"].as_u64().expect("a size"), said["certified"].as_u64().expect("a size"));
    assert!(size > certified, "the load left a tail: {said}");

    let (whole, short) = (old.root().join("whole.backup"), old.root().join("short.backup"));
    let made = told(&["backup", "--data", path(&data), "--with-tail", "--out", path(&whole)]);
    assert_eq!((made["last"].as_u64(), made["beyond"].as_u64()), (Some(size), Some(size - certified)));
    done(&["backup", "--data", path(&data), "--out", path(&short)]);

    // What contradicts itself, or needs no recovery, is refused and told what to do.
    let fresh = old.add();
    let member = old.data(fresh).join("member.json");
    let out = old.root().join("successor.json");
    let make = |backup, surveys: &[&str]| {
        let mut all = vec!["genesis", "--name", "next", "--quorum", "majority", "--reason", "two lost", "--out"];
        all.extend([path(&out), "--member", path(&member), "--succeeds", path(backup)]);
        if !surveys.is_empty() {
            all.push("--survivors");
            all.extend(surveys);
        }
        refused(&all)
    };
    let said = make(&short, &[path(&survey)]);
    assert!(said.contains("--with-tail"), "{said}");
    let said = make(&whole, &[]);
    assert!(said.contains("not certified: only survivors"), "{said}");
    let second = old.root().join("second.json");
    done(&["recover", "survey", "--data", path(&old.data(lost[0])), "--out", path(&second)]);
    let said = make(&whole, &[path(&survey), path(&second)]);
    assert!(said.contains("a quorum is 2") && said.contains("start them again"), "{said}");
    let forged = old.root().join("forged.json");
    let text = std::fs::read_to_string(&survey).expect("the survey");
    let (from, to) = (format!("\"certified\": {certified}"), format!("\"certified\": {}", certified - 1));
    std::fs::write(&forged, text.replace(&from, &to)).expect("written");
    let said = make(&whole, &[path(&forged)]);
    assert!(said.contains("does not verify"), "{said}");

    // A tail that nothing proves is for a successor alone.
    let joining = old.add();
    let said = refused(&[
        "restore",
        "--from",
        path(&whole),
        "--data",
        path(&old.data(joining)),
        "--genesis",
        path(&old.genesis()),
    ]);
    assert!(said.contains("covered by no certificate"), "{said}");

    let mut new = succeed(&whole, &["--survivors", path(&survey)]);
    done(&["recover", "retire", "--data", path(&data)]);
    let serve = ["serve", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--data", path(&data)];
    let said = refused(&[&serve[..], &["--genesis", path(&old.genesis())]].concat());
    assert!(said.contains("is retired"), "{said}");
    assert_eq!(told(&["doctor", "--data", path(&data)])["sound"], true, "an end is no damage");
    place(&new, &whole);
    new.run().await;
    let held = registry(&new.one(0)).await;
    assert!(held.iter().any(|c| c[0].as_str().is_some_and(|key| key.starts_with("tail-"))), "the tail is taken over");
    write(&new.client(), "b", 5).await;
    new.settled().await;

    let (genesis, url) = (new.genesis(), new.url(2));
    let audit = ["audit", "--genesis", path(&genesis), "--node", &url, "--predecessor", path(&whole)];
    let text = tokio::task::block_in_place(|| done(&audit));
    let taken = format!("entries {}..{size} were not certified", certified + 1);
    for part in [taken.as_str(), "survivor   did:key:", "missing    did:key:", "predecessor, verified"] {
        assert!(text.contains(part), "{part:?} is not in\n{text}");
    }
    // The survivor's store can still be read, and proves the same.
    let audited = told(&["audit", "--genesis", path(&old.genesis()), "--data", path(&data)]);
    assert_eq!(audited["summary"]["certified_size"].as_u64(), Some(certified));
}
