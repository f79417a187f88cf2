use super::log::{FAR, Log, request};
use concordat::ids::LogIndex;
use concordat::registry::{AgentStatus, Key, Outcome, check_payload};
use serde_json::Value;

const UPDATES: &str = include_str!("../fixtures/registry-updates.jsonl");

#[test]
fn the_real_updates_end_with_4818_agents_and_a_second_pass_changes_nothing() {
    let mut log = Log::default();
    let (mut registered, mut gone) = (0, 0);
    for (number, line) in UPDATES.lines().enumerate() {
        check_payload(&serde_json::from_str::<Value>(line).unwrap()).unwrap();
        match log.propose_bytes(request(&number.to_string(), FAR), line.as_bytes()) {
            Outcome::Registered { .. } => registered += 1,
            Outcome::Deregistered { .. } => gone += 1,
            Outcome::StatusSet { .. } | Outcome::ConfigSet { .. } => {}
            other => panic!("line {number}: {other:?}"),
        }
    }
    assert_eq!((registered, gone), (5000, 182));
    let state = log.state.clone();
    assert_eq!((state.agents_len(), state.applied()), (4818, LogIndex(5661)));
    assert_eq!(state.agents(None, None).count(), 4818);
    assert_eq!(state.requests_len(), 5661, "two identical lines are two requests");

    for (number, line) in UPDATES.lines().enumerate() {
        let first = LogIndex(number as u64 + 1);
        let outcome = log.propose_bytes(request(&number.to_string(), FAR), line.as_bytes());
        assert_eq!(outcome, Outcome::Repeat { first });
    }
    assert!(state.agents(None, None).eq(log.state.agents(None, None)));
    assert!(state.configs().eq(log.state.configs()));
    assert_eq!(log.state.committed_count(), 2 * 5661);
}

#[test]
fn lookups_over_the_real_updates_agree_with_a_scan() {
    let mut log = Log::default();
    for line in UPDATES.lines() {
        log.propose(&serde_json::from_str(line).unwrap());
    }
    let state = &log.state;
    for tag in ["search", "finance", "general", "database", "no such tag"] {
        for status in [None, Some(AgentStatus::Available), Some(AgentStatus::Draining)] {
            let scan = state.agents(None, None).filter(|record| {
                record.agent.capabilities.iter().any(|capability| capability.tag == tag)
                    && status.is_none_or(|status| record.agent.status == status)
            });
            assert!(state.agents(Some(tag), status).eq(scan), "{tag} {status:?}");
        }
    }
    for record in state.agents(None, None) {
        let history = state.history(&Key::Agent(record.agent.agent_id.clone()));
        assert_eq!(history.last(), Some(&record.revision));
    }
}
