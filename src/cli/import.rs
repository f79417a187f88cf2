//! The importer behind `propose --file` and `dev`: every line of a file is proposed under a request id of its own, so
//! that a line sent again, by a retry or by a second run, is recognised and applied once. Lines that change one record
//! (an agent, a configuration key) keep their order; all others run side by side.

use super::remember::{self, Import};
use super::{Failure, output};
use crate::api::{CallError, ProposalState, ProposalStatus, Propose, ProposeError, Wait};
use crate::certificate::AbortReason;
use crate::client::Client;
use crate::ids::{Digest, LogIndex, ProposalId};
use crate::limits::MAX_REQUEST_HORIZON_MS;
use crate::registry::{Key, Operation, Outcome};
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use indicatif::ProgressBar;
use serde::Serialize;
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::path::Path;
use std::time::Duration;
use tokio::time::Instant;

/// Largest file that is imported at once, in bytes.
const MAX_FILE: u64 = 256 * 1024 * 1024;
/// The client identity under which files are imported when none is given.
pub(super) const CLIENT: &str = "file-import";
/// How long the client tries by itself before the importer looks at what it has learned.
pub(super) const TRY: Duration = Duration::from_secs(10);
/// First and longest pause between two tries of one request.
const BACKOFF: [Duration; 2] = [Duration::from_millis(50), Duration::from_secs(1)];

/// How requests are made.
#[derive(Clone, Debug)]
pub(super) struct Options {
    pub(super) client: String,
    pub(super) wait: Wait,
    pub(super) required_quorum: Option<u16>,
    pub(super) ttl_ms: Option<u64>,
    /// How long one request is tried again before its outcome is given up as unknown.
    pub(super) patience: Duration,
    /// Until when the cluster remembers the request ids, milliseconds since the Unix epoch. The same at every try: with
    /// another deadline a retry may be another request.
    pub(super) deadline_ms: u64,
}

impl Options {
    pub(super) fn propose(&self, payload: Value, request_id: String) -> Propose {
        Propose {
            client: Some(self.client.clone()),
            request_id: Some(request_id),
            deadline_ms: Some(self.deadline_ms),
            required_quorum: self.required_quorum,
            ttl_ms: self.ttl_ms,
            wait: self.wait,
            ..Propose::new(payload)
        }
    }
}

/// The deadline of the requests of a file, under this client identity to this cluster: that of its first run, found in
/// the state file, or now `days` from now.
pub(super) fn deadline(
    state: &Path,
    lines: &Lines,
    client: &str,
    genesis_id: Digest,
    days: u64,
) -> Result<u64, Failure> {
    let now = super::now_ms();
    // An hour less than the horizon, for clocks that differ.
    let fresh = now + (days * 86_400_000).min(MAX_REQUEST_HORIZON_MS - 3_600_000);
    let import = Import { genesis_id, client: client.to_owned(), file: lines.digest.clone() };
    let deadline = remember::deadline(state, &import, fresh)?;
    if deadline <= now {
        return Err(Failure::new(format!(
            "the lines of this file were proposed before, and the cluster remembered that until {}: sent now, none could be told from a new request",
            output::time(deadline)
        ))
        .hint(format!(
            "the log holds what was applied; to propose every line anew, remove {} first",
            state.display()
        )));
    }
    Ok(deadline)
}

/// The lines of a file and its digest, which begins every request id.
pub(super) struct Lines {
    text: String,
    digest: String,
}

impl Lines {
    /// Reads a file.
    pub(super) fn read(path: &Path) -> Result<Self, Failure> {
        let bytes = output::read(path, MAX_FILE).map_err(|failure| {
            failure.hint("a file that is too large can be split; keep lines of one key in one part")
        })?;
        String::from_utf8(bytes).map(Self::new).map_err(|e| Failure::file("read", path, e))
    }

    /// Takes the contents of a file.
    pub(super) fn new(text: String) -> Self {
        let digest = hex::encode(Sha256::digest(&text)).chars().take(32).collect();
        Self { text, digest }
    }

    /// The request id of a line, counted from 1.
    pub(super) fn request_id(&self, number: usize) -> String {
        format!("{}:{number}", self.digest)
    }

    /// A line, counted from 1.
    pub(super) fn line(&self, number: usize) -> Option<&str> {
        self.text.lines().nth(number.checked_sub(1)?)
    }

    pub(super) fn len(&self) -> usize {
        self.text.lines().count()
    }
}

/// What became of a request, as far as this program could learn.
#[derive(Clone, Debug)]
pub(super) enum Answer {
    /// What the cluster says.
    Known(ProposalStatus),
    /// It was refused; nothing was applied.
    Refused(ProposeError),
    /// Its outcome was not learned in time: it may or may not be applied.
    Unknown(String),
}

/// One line of the importer's output.
#[derive(Clone, Debug, Serialize)]
pub(super) struct LineOutcome {
    /// Counted from 1.
    pub(super) line: usize,
    /// What became of it.
    pub(super) state: LineState,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) index: Option<LogIndex>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) id: Option<ProposalId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) outcome: Option<Outcome>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) abort_reason: Option<AbortReason>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(super) repeated: bool,
    pub(super) request_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) error: Option<String>,
}

/// What became of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum LineState {
    Certified,
    Committed,
    /// Only with `--wait accepted`: queued.
    Accepted,
    /// Decided against, for ever.
    Aborted,
    /// Not taken; without effect.
    Refused,
    /// No outcome learned within the patience; run the file again to learn it.
    Unknown,
    /// Not sent, because an earlier line of its key has no known outcome or because nothing answers any more.
    NotSent,
}

impl LineState {
    pub(super) fn is_success(self) -> bool {
        matches!(self, Self::Certified | Self::Committed | Self::Accepted)
    }

    fn name(self) -> &'static str {
        match self {
            Self::Certified => "certified",
            Self::Committed => "committed",
            Self::Accepted => "accepted",
            Self::Aborted => "aborted",
            Self::Refused => "refused",
            Self::Unknown => "unknown",
            Self::NotSent => "not sent",
        }
    }
}

/// How many lines came to what.
#[derive(Clone, Debug, Default)]
pub(super) struct Tally {
    states: std::collections::BTreeMap<LineState, u64>,
    pub(super) repeated: u64,
    conflicts: u64,
}

impl Tally {
    fn add(&mut self, outcome: &LineOutcome) {
        *self.states.entry(outcome.state).or_default() += 1;
        self.repeated += u64::from(outcome.repeated);
        self.conflicts += u64::from(matches!(outcome.outcome, Some(Outcome::Conflict { .. })));
    }

    pub(super) fn failed(&self) -> u64 {
        self.states.iter().filter(|(state, _)| !state.is_success()).map(|(_, count)| count).sum()
    }
}

impl std::fmt::Display for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let states: Vec<String> =
            self.states.iter().map(|(state, count)| format!("{count} {}", state.name())).collect();
        f.write_str(if states.is_empty() { "no lines" } else { "" })?;
        f.write_str(&states.join(", "))?;
        for (count, what) in [(self.repeated, "already there"), (self.conflicts, "conflicts recorded")] {
            if count > 0 {
                write!(f, ", {count} {what}")?;
            }
        }
        Ok(())
    }
}

/// Proposes every line, at most `concurrency` at a time, and gives each outcome to `each` as it becomes known: exactly
/// one per line.
pub(super) async fn run(
    client: &Client,
    lines: &Lines,
    options: &Options,
    concurrency: usize,
    bar: &ProgressBar,
    mut each: impl FnMut(&LineOutcome) -> Result<(), Failure>,
) -> Result<Tally, Failure> {
    let texts: Vec<&str> = lines.text.lines().collect();
    let payloads = |i: usize| texts.get(i).copied().unwrap_or_default();
    let mut schedule = Schedule::new(texts.iter().map(|text| subject(text)));
    let mut flying = FuturesUnordered::new();
    let mut tally = Tally::default();
    let mut last_answer = Instant::now();
    let mut given_up = false;
    loop {
        while flying.len() < concurrency {
            let Some(next) = schedule.next() else { break };
            let options = Options { wait: schedule.wait(next.line, options.wait), ..options.clone() };
            let work = propose_line(client, payloads(next.line), next.line + 1, lines, options);
            let started = Instant::now();
            let send = next.send && !given_up;
            flying.push(async move {
                let outcome = if send { work.await } else { not_sent(next.line + 1, lines) };
                (next.line, started, outcome)
            });
        }
        let Some((line, started, outcome)) = flying.next().await else { break };
        let known = !matches!(outcome.state, LineState::Unknown | LineState::NotSent);
        if known {
            last_answer = Instant::now();
        } else if outcome.state == LineState::Unknown && last_answer < started {
            // Not one line was answered in the whole patience of this one: waiting as long for each of the rest would
            // take hours to say the same.
            given_up = true;
        }
        schedule.finished(line, known);
        bar.inc(1);
        tally.add(&outcome);
        each(&outcome)?;
    }
    bar.finish_and_clear();
    Ok(tally)
}

/// The record that a line changes. A malformed operation changes none: it will be refused.
fn subject(text: &str) -> Option<Key> {
    let payload: Value = serde_json::from_str(text).ok()?;
    Operation::parse(&payload).ok().flatten().map(|operation| operation.action.key())
}

async fn propose_line(client: &Client, text: &str, line: usize, lines: &Lines, options: Options) -> LineOutcome {
    let request_id = lines.request_id(line);
    let payload = match serde_json::from_str(text) {
        Ok(payload) => payload,
        Err(e) => return LineOutcome::failed(line, request_id, LineState::Refused, format!("not JSON: {e}")),
    };
    match propose(client, &options.propose(payload, request_id.clone()), options.patience, |_| ()).await {
        Answer::Known(status) => LineOutcome::of(line, request_id, status),
        Answer::Refused(e) => LineOutcome::failed(line, request_id, LineState::Refused, e.to_string()),
        Answer::Unknown(detail) => LineOutcome::failed(line, request_id, LineState::Unknown, detail),
    }
}

fn not_sent(line: usize, lines: &Lines) -> LineOutcome {
    let error = "an earlier line of its key has no known outcome, or no node answers".to_owned();
    LineOutcome::failed(line, lines.request_id(line), LineState::NotSent, error)
}

impl LineOutcome {
    fn of(line: usize, request_id: String, status: ProposalStatus) -> Self {
        let state = match status.state {
            ProposalState::Pending => LineState::Accepted,
            ProposalState::Committed => LineState::Committed,
            ProposalState::Certified => LineState::Certified,
            ProposalState::Aborted => LineState::Aborted,
        };
        Self {
            line,
            state,
            index: status.index,
            id: status.id,
            outcome: status.outcome,
            abort_reason: status.abort_reason,
            repeated: status.repeated,
            request_id,
            error: None,
        }
    }

    fn failed(line: usize, request_id: String, state: LineState, error: String) -> Self {
        Self {
            line,
            state,
            index: None,
            id: None,
            outcome: None,
            abort_reason: None,
            repeated: false,
            request_id,
            error: Some(error),
        }
    }
}

/// Proposes until an outcome is known or `patience` runs out. The request id makes every further try the same request,
/// so that a leader that dies with or without the proposal changes nothing about its single outcome. `retrying` hears
/// why each further try is made.
pub(super) async fn propose(
    client: &Client,
    request: &Propose,
    patience: Duration,
    mut retrying: impl FnMut(&str),
) -> Answer {
    let end = Instant::now() + patience;
    let [mut pause, longest] = BACKOFF;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let attempt = tokio::time::timeout(left, client.propose_with(request.clone())).await;
        let why = match attempt {
            Err(_) => "no answer in time".to_owned(),
            Ok(Ok(status)) if reached(&status, request.wait) => return Answer::Known(status),
            Ok(Ok(status)) => {
                // The node waited as long as it was asked to: ask again at once.
                pause = BACKOFF[0];
                format!("still {:?} at the end of the wait", status.state).to_lowercase()
            }
            Ok(Err(CallError::Refused(e))) if !e.is_retryable() => return Answer::Refused(e),
            Ok(Err(e)) => e.to_string(),
        };
        if Instant::now() + pause >= end {
            return Answer::Unknown(format!("gave up after {} s: {why}", patience.as_secs()));
        }
        retrying(&why);
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(longest);
    }
}

fn reached(status: &ProposalStatus, wait: Wait) -> bool {
    match status.state {
        ProposalState::Aborted | ProposalState::Certified => true,
        ProposalState::Committed => wait != Wait::Certified,
        ProposalState::Pending => wait == Wait::Accepted,
    }
}

/// Which line may go next: file order, except that a line waits for the one before it that changes the same record.
struct Schedule {
    ready: BinaryHeap<Reverse<(usize, bool)>>,
    /// For each line, the next line of its key.
    successor: Vec<Option<usize>>,
}

/// A line that may go, by position from 0.
#[derive(Debug, PartialEq, Eq)]
struct Next {
    line: usize,
    /// Whether to send it: not when the line before it has no known outcome, or the two might change places.
    send: bool,
}

impl Schedule {
    fn new(subjects: impl Iterator<Item = Option<Key>>) -> Self {
        let mut newest: HashMap<Key, usize> = HashMap::new();
        let (mut ready, mut successor) = (BinaryHeap::new(), Vec::new());
        for (line, subject) in subjects.enumerate() {
            successor.push(None);
            match subject.and_then(|subject| newest.insert(subject, line)) {
                Some(before) => successor[before] = Some(line),
                None => ready.push(Reverse((line, true))),
            }
        }
        Self { ready, successor }
    }

    fn next(&mut self) -> Option<Next> {
        self.ready.pop().map(|Reverse((line, send))| Next { line, send })
    }

    /// What to wait for at a line. One that has a successor waits until it is committed, whatever is asked: what is only
    /// accepted may be lost with its leader, and sent again it would come after a successor that the next leader took.
    fn wait(&self, line: usize, asked: Wait) -> Wait {
        match (asked, self.successor.get(line)) {
            (Wait::Accepted, Some(Some(_))) => Wait::Committed,
            _ => asked,
        }
    }

    fn finished(&mut self, line: usize, known: bool) {
        if let Some(next) = self.successor.get(line).copied().flatten() {
            self.ready.push(Reverse((next, known)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(keys: &str) -> Schedule {
        Schedule::new(keys.chars().map(|c| (c != '-').then(|| Key::Agent(c.to_string()))))
    }

    fn drain(schedule: &mut Schedule) -> Vec<usize> {
        std::iter::from_fn(|| schedule.next()).map(|next| next.line).collect()
    }

    #[test]
    fn lines_of_one_key_wait_for_each_other_and_others_do_not() {
        let mut schedule = keys("ab-ab-a");
        assert_eq!(drain(&mut schedule), [0, 1, 2, 5]);
        schedule.finished(1, true);
        assert_eq!(drain(&mut schedule), [4]);
        schedule.finished(0, true);
        schedule.finished(2, true);
        assert_eq!(drain(&mut schedule), [3]);
        schedule.finished(3, true);
        assert_eq!(drain(&mut schedule), [6]);
        schedule.finished(6, true);
        assert_eq!(drain(&mut schedule), [0; 0]);
    }

    #[test]
    fn a_line_goes_only_after_the_one_before_it_of_its_key_is_committed() {
        let schedule = keys("aba");
        let waits = |asked| [0, 1, 2].map(|line| schedule.wait(line, asked));
        assert_eq!(waits(Wait::Accepted), [Wait::Committed, Wait::Accepted, Wait::Accepted]);
        assert_eq!(waits(Wait::Committed), [Wait::Committed; 3]);
        assert_eq!(waits(Wait::Certified), [Wait::Certified; 3]);
    }

    #[test]
    fn after_an_unknown_outcome_later_lines_of_the_key_are_not_sent() {
        let mut schedule = keys("aba");
        assert_eq!(drain(&mut schedule), [0, 1]);
        schedule.finished(0, false);
        assert_eq!(schedule.next(), Some(Next { line: 2, send: false }));
    }

    #[test]
    fn an_agent_and_a_configuration_key_of_one_name_are_two_records() {
        let agent = subject(r#"{"op":"deregister","agent_id":"x"}"#);
        let config = subject(r#"{"op":"set_config","key":"x","value":1}"#);
        assert!(agent.is_some() && config.is_some() && agent != config);
        assert_eq!(subject(r#"{"op":"other","agent_id":"x"}"#), None);
        assert_eq!(subject("not json"), None);
    }

    #[test]
    fn a_request_id_is_the_files_digest_and_the_lines_number() {
        let lines = Lines::new("a\nb\n".into());
        assert_eq!(lines.len(), 2);
        // printf 'a\nb\n' | sha256sum
        assert_eq!(lines.request_id(2), "911169ddaaf146aff539f58c26c489af:2");
    }
}
