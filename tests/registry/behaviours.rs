use super::log::{FAR, Log, START, request};
use concordat::certificate::AbortReason;
use concordat::ids::{Digest, LogIndex};
use concordat::registry::{AgentStatus, Key, Outcome, State};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

fn register(id: &str, tags: &[&str]) -> Value {
    let capabilities: Vec<Value> = tags.iter().map(|tag| json!({ "tag": tag })).collect();
    json!({"op": "register", "agent": {"agent_id": id, "display_name": id, "endpoint": "https://a.example", "capabilities": capabilities}})
}

fn deregister(id: &str) -> Value {
    json!({"op": "deregister", "agent_id": id})
}

fn set_status(id: &str, status: &str) -> Value {
    json!({"op": "set_status", "agent_id": id, "status": status})
}

fn set_config(key: &str, value: Value) -> Value {
    json!({"op": "set_config", "key": key, "value": value})
}

fn if_revision(mut payload: Value, revision: u64) -> Value {
    payload["if_revision"] = revision.into();
    payload
}

fn ids(state: &State, capability: Option<&str>, status: Option<AgentStatus>) -> Vec<String> {
    state.agents(capability, status).map(|record| record.agent.agent_id.clone()).collect()
}

#[test]
fn defaults_are_those_of_the_specification() {
    let mut log = Log::default();
    log.propose(&register("a", &["search"]));
    let agent = &log.state.agent("a").unwrap().agent;
    assert_eq!((agent.status, agent.did.clone(), agent.metadata.len()), (AgentStatus::Available, None, 0));
    let capability = &agent.capabilities[0];
    assert_eq!((capability.version.as_str(), capability.max_concurrency), ("1.0.0", 1));
}

#[test]
fn a_revision_is_the_index_of_the_last_change() {
    let mut log = Log::default();
    log.noop();
    assert_eq!(log.propose(&register("a", &[])), Outcome::Registered { revision: LogIndex(2) });
    log.propose(&json!({"anything": "else"}));
    assert_eq!(log.propose(&set_status("a", "busy")), Outcome::StatusSet { revision: LogIndex(4) });
    assert_eq!(log.state.agent("a").unwrap().revision, LogIndex(4));
    assert_eq!(log.propose(&set_config("k", Value::Null)), Outcome::ConfigSet { revision: LogIndex(5) });
    assert_eq!(log.state.config("k").unwrap().revision, LogIndex(5));
    assert_eq!(log.state.configs().count(), 1);
    assert_eq!(log.propose(&deregister("a")), Outcome::Deregistered { revision: LogIndex(6) });
    assert!(log.state.agent("a").is_none());
}

#[test]
fn a_replaced_agent_keeps_its_place_and_a_returning_one_goes_last() {
    let mut log = Log::default();
    for id in ["b", "a", "c"] {
        log.propose(&register(id, &["x"]));
    }
    log.propose(&register("b", &["y"]));
    assert_eq!(ids(&log.state, None, None), ["b", "a", "c"]);
    assert_eq!(ids(&log.state, Some("x"), None), ["a", "c"], "the tag it gave up no longer finds it");
    log.propose(&deregister("b"));
    log.propose(&register("b", &["x"]));
    assert_eq!(ids(&log.state, Some("x"), None), ["a", "c", "b"]);
}

#[test]
fn agents_are_found_by_capability_and_status() {
    let mut log = Log::default();
    log.propose(&register("a", &["x", "y", "x"]));
    log.propose(&register("b", &["x"]));
    log.propose(&set_status("b", "draining"));
    assert_eq!(ids(&log.state, Some("x"), None), ["a", "b"]);
    assert_eq!(ids(&log.state, Some("x"), Some(AgentStatus::Draining)), ["b"]);
    assert_eq!(ids(&log.state, None, Some(AgentStatus::Available)), ["a"]);
    assert_eq!(ids(&log.state, Some("z"), None), [""; 0]);
}

#[test]
fn a_condition_that_does_not_hold_is_a_conflict_and_changes_nothing() {
    let mut log = Log::default();
    assert_eq!(log.propose(&if_revision(register("a", &[]), 3)), Outcome::Conflict { actual: None });
    assert_eq!(log.propose(&if_revision(register("a", &[]), 0)), Outcome::Registered { revision: LogIndex(2) });
    let conflict = Outcome::Conflict { actual: Some(LogIndex(2)) };
    assert_eq!(log.propose(&if_revision(register("a", &["x"]), 0)), conflict);
    assert_eq!(log.propose(&if_revision(set_status("a", "busy"), 1)), conflict);
    assert_eq!(log.propose(&if_revision(deregister("a"), 9)), conflict);
    let record = log.state.agent("a").unwrap();
    assert_eq!((record.agent.status, record.revision), (AgentStatus::Available, LogIndex(2)));
    assert_eq!(log.state.history(&Key::Agent("a".into())), [LogIndex(2)]);
    assert_eq!(log.propose(&if_revision(deregister("a"), 2)), Outcome::Deregistered { revision: LogIndex(6) });
    assert_eq!(log.propose(&if_revision(set_config("k", json!(1)), 0)), Outcome::ConfigSet { revision: LogIndex(7) });
    assert_eq!(
        log.propose(&if_revision(set_config("k", json!(2)), 0)),
        Outcome::Conflict { actual: Some(LogIndex(7)) }
    );
    assert_eq!(log.state.config("k").unwrap().value, json!(1));
}

#[test]
fn naming_an_agent_that_is_not_there_changes_nothing() {
    let mut log = Log::default();
    for payload in [deregister("a"), set_status("a", "busy"), if_revision(set_status("a", "busy"), 0)] {
        assert_eq!(log.propose(&payload), Outcome::NotFound);
    }
    assert!(log.state.history(&Key::Agent("a".into())).is_empty());
}

#[test]
fn history_survives_the_agent_and_keeps_agents_and_config_keys_apart() {
    let mut log = Log::default();
    log.propose(&register("a", &[]));
    log.propose(&set_config("a", json!(1)));
    log.propose(&deregister("a"));
    log.propose(&register("a", &[]));
    assert_eq!(log.state.history(&Key::Agent("a".into())), [1, 3, 4].map(LogIndex));
    assert_eq!(log.state.history(&Key::Config("a".into())), [LogIndex(2)]);
}

#[test]
fn a_repeated_request_changes_nothing_whatever_it_carries() {
    let mut log = Log::default();
    log.propose_as(request("r", FAR), &set_config("k", json!(1)));
    let first = Outcome::Repeat { first: LogIndex(1) };
    assert_eq!(log.propose_as(request("r", FAR), &set_config("k", json!(1))), first);
    assert_eq!(log.propose_as(request("r", FAR + 1), &set_config("k", json!(2))), first);
    assert_eq!(log.abort(request("r", FAR)), first);
    assert_eq!(log.state.config("k").unwrap().value, json!(1));
    assert_eq!(log.state.history(&Key::Config("k".into())), [LogIndex(1)]);
    let answered = log.state.answered(&request("r", FAR).key()).unwrap();
    assert_eq!((answered.index, answered.deadline_ms), (LogIndex(1), FAR));
    assert_eq!(answered.outcome, Outcome::ConfigSet { revision: LogIndex(1) });
    let content = |payload: &Value| Digest(Sha256::digest(serde_json::to_vec(payload).unwrap()).into());
    assert!(answered.may_be(&content(&set_config("k", json!(1)))));
    assert!(!answered.may_be(&content(&set_config("k", json!(2)))), "the id was reused");
}

#[test]
fn an_aborted_request_stays_aborted() {
    let mut log = Log::default();
    assert_eq!(log.abort(request("r", FAR)), Outcome::Aborted { reason: AbortReason::Expired });
    assert_eq!(log.propose_as(request("r", FAR), &set_config("k", json!(1))), Outcome::Repeat { first: LogIndex(1) });
    assert!(log.state.config("k").is_none());
    assert!(log.state.answered(&request("r", FAR).key()).unwrap().may_be(&Digest([1; 32])), "nothing to compare with");
}

#[test]
fn a_request_is_forgotten_after_its_deadline_and_then_changes_nothing() {
    let mut log = Log::default();
    let deadline = START + 100;
    let payload = set_config("k", json!(1));
    log.propose_as(request("r", deadline), &payload);
    log.now = 100;
    assert_eq!(log.propose_as(request("r", deadline), &payload), Outcome::Repeat { first: LogIndex(1) });
    assert_eq!(log.state.requests_len(), 1, "at the deadline it is still remembered");
    log.now = 101;
    log.noop();
    assert_eq!(log.state.requests_len(), 0, "any entry's clock forgets");
    assert_eq!(log.propose_as(request("r", deadline), &payload), Outcome::RequestExpired);
    log.now = 50;
    assert_eq!(log.propose_as(request("r", deadline), &payload), Outcome::RequestExpired, "a clock that went back");
    assert_eq!(log.state.history(&Key::Config("k".into())), [LogIndex(1)]);
    assert_eq!(log.state.requests_len(), 0);
    log.now = 101;
    assert_eq!(log.propose_as(request("r", deadline + 1), &payload), Outcome::ConfigSet { revision: LogIndex(6) });
}

#[test]
fn counters_count_entries_by_kind() {
    let mut log = Log::default();
    log.noop();
    log.propose(&json!(1));
    log.propose_as(request("r", FAR), &json!("x"));
    log.propose_as(request("r", FAR), &json!("x"));
    log.abort(request("s", FAR));
    assert_eq!((log.state.committed_count(), log.state.aborted_count(), log.state.applied()), (3, 1, LogIndex(5)));
}

#[test]
#[should_panic(expected = "entries are applied in order, each once")]
fn an_entry_out_of_order_stops_the_replica() {
    let mut log = Log::default();
    log.noop();
    log.noop();
    let entry = log.entries[0].clone();
    log.state.apply(&entry);
}

#[test]
fn the_hash_tells_states_apart() {
    let base = |log: &mut Log| {
        log.propose(&register("a", &["x"]));
        log.propose(&set_config("k", json!({"b": [1, -1, 0.5, null, true], "a": "t"})));
    };
    let hash_after = |last: &dyn Fn(&mut Log) -> Outcome| {
        let mut log = Log::default();
        base(&mut log);
        last(&mut log);
        log.state.state_hash()
    };
    let hashes = [
        hash_after(&|log| log.propose(&set_status("a", "busy"))),
        hash_after(&|log| log.propose(&set_status("a", "offline"))),
        hash_after(&|log| log.propose(&register("a", &["y"]))),
        hash_after(&|log| log.propose(&register("b", &[]))),
        hash_after(&|log| log.propose(&deregister("a"))),
        hash_after(&|log| log.propose(&set_config("k", json!(1)))),
        hash_after(&|log| log.propose(&set_config("k", json!(-1)))),
        hash_after(&|log| log.propose(&set_config("k", json!(1.0)))),
        hash_after(&|log| log.propose(&set_config("k", json!("1")))),
        hash_after(&|log| log.propose(&set_config("k", json!([1])))),
        hash_after(&|log| log.propose(&set_config("k", json!([[], 1])))),
        hash_after(&|log| log.propose(&set_config("k", json!([[1]])))),
        hash_after(&|log| log.propose(&set_config("k2", json!(1)))),
        hash_after(&|log| log.propose(&json!("opaque"))),
        hash_after(&|log| log.propose_as(request("other", FAR), &json!("opaque"))),
        hash_after(&|log| log.propose_as(request("3", FAR + 1), &json!("opaque"))),
        hash_after(&|log| log.abort(request("3", FAR))),
        hash_after(&Log::noop),
        hash_after(&|log| {
            log.now = 1;
            log.noop()
        }),
    ];
    for (i, a) in hashes.iter().enumerate() {
        assert!(!hashes[..i].contains(a), "number {i} has the hash of an earlier one");
    }
}

#[test]
fn the_hash_of_a_state_is_frozen() {
    let mut log = Log::default();
    log.propose(&register("a", &["x"]));
    log.propose(&set_config("k", json!({"b": [1, -1, 0.5, null, true], "a": "t"})));
    log.abort(request("r", FAR));
    // A change here is a change of what members compare: it needs a new tag, and members of both versions to know both.
    assert_eq!(log.state.state_hash().to_string(), "d19e9300f8a47e6144a116349c07eef74a485037f160444f20bf7349e02452ec");
}

#[test]
fn a_saved_state_reads_back_and_goes_on_alike() {
    let mut log = Log::default();
    log.propose(&register("a", &["x"]));
    log.propose(&register("b", &["x", "y"]));
    log.propose(&json!({"op": "set_config", "key": "k", "value": {"f": 0.1, "n": -3}}));
    log.abort(request("r", START + 10));
    let saved = rmp_serde::to_vec_named(&log.state).unwrap();
    let mut restored: State = rmp_serde::from_slice(&saved).unwrap();
    assert_eq!(restored, log.state);
    assert_eq!(restored.state_hash(), log.state.state_hash());
    log.now = 11;
    log.propose(&deregister("a"));
    assert_eq!(restored.apply(log.entries.last().unwrap()), Outcome::Deregistered { revision: LogIndex(5) });
    assert_eq!(restored, log.state);
    assert_eq!(restored.state_hash(), log.state.state_hash());
}

#[test]
fn a_saved_state_that_no_log_leads_to_is_refused() {
    let mut log = Log::default();
    log.propose(&register("a", &[]));
    log.propose(&register("b", &[]));
    let json = serde_json::to_string(&log.state).unwrap();
    assert_eq!(serde_json::from_str::<State>(&json).unwrap(), log.state);
    let twice = json.replace(r#""agent_id":"b""#, r#""agent_id":"a""#);
    assert!(serde_json::from_str::<State>(&twice).unwrap_err().to_string().contains("two agents with the id \"a\""));
    let late = json.replace(&format!(r#""clock":{START}"#), &format!(r#""clock":{}"#, FAR + 1));
    assert!(serde_json::from_str::<State>(&late).unwrap_err().to_string().contains("has passed"));
}
