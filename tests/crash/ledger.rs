//! What the backend was asked and what the platform was answered, and the rules between them.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use serde_json::Value;

use crate::gateway::support::backend::Seen;
use crate::platform::Kept;
use crate::random;

/// Shared by the backend and the platform.
#[derive(Clone, Default)]
pub(crate) struct Ledger(Arc<Mutex<Books>>);

#[derive(Default)]
struct Books {
    /// Counts the processes; the first is 0.
    process: u32,
    deliveries: HashMap<String, Delivery>,
    /// Everything that was answered with success and may be asked for at any time.
    answers: Vec<Kept>,
    broken: Vec<String>,
    calls: u64,
    executions: u64,
    /// Executed by the backend, and then once more.
    executed_again: u64,
    highest_attempt: u32,
}

/// One delivery as both sides have seen it.
#[derive(Default)]
struct Delivery {
    idempotency_key: String,
    /// Those of earlier cycles.
    earlier_keys: Vec<String>,
    /// Of the latest call: process and attempt.
    latest: Option<(u32, u32)>,
    /// The success replies that the backend gave or tried to give.
    replies: Vec<String>,
    executed: bool,
    /// The process that was given a whole success reply at once.
    confirmed_to: Option<u32>,
    /// The process that answered with success.
    answered_by: Option<u32>,
}

/// What the backend does with a call.
pub(crate) enum Plan {
    /// Answers at once.
    Answer(String),
    /// Answers later.
    Late(String, Duration),
    /// 500.
    Fail,
    /// Hangs up.
    Reset,
    /// Breaks off in the reply.
    Break(String),
    /// Never answers.
    Stall,
}

impl Ledger {
    fn books(&self) -> MutexGuard<'_, Books> {
        self.0.lock().unwrap()
    }

    /// The number of the process that starts now.
    pub(crate) fn next_process(&self) -> u32 {
        let mut books = self.books();
        books.process += 1;
        books.process
    }

    /// The backend is called.
    pub(crate) fn called(&self, request: &Seen) -> Plan {
        let body = request.json();
        let header = |name: &str| request.header(name).unwrap_or_default().to_owned();
        let attempt: u32 = header("X-Spi-Attempt").parse().unwrap();
        // The first process was started with a url that has no number in it.
        let process = request.target.trim_start_matches('/').parse().unwrap_or(0);
        self.books().call(&body, process, attempt, &header("Idempotency-Key"))
    }

    /// The platform was answered with success.
    pub(crate) fn answered(&self, delivery: &str, body: &str) {
        let mut books = self.books();
        let process = books.process;
        let known = books.deliveries.entry(delivery.to_owned()).or_default();
        known.answered_by.get_or_insert(process);
        if !known.replies.iter().any(|reply| reply == body) {
            books.broken.push(format!("{delivery}: answered with {body}, which the backend never said"));
        }
    }

    /// An answer that may be asked for again at any time from now on.
    pub(crate) fn keep(&self, kept: Kept) {
        self.books().answers.push(kept);
    }

    /// The instance was renewed: what ends it is a new delivery.
    pub(crate) fn new_cycle(&self, delivery: &str) {
        let mut books = self.books();
        if let Some(known) = books.deliveries.get_mut(delivery) {
            let key = std::mem::take(&mut known.idempotency_key);
            known.earlier_keys.push(key);
            *known = Delivery { earlier_keys: std::mem::take(&mut known.earlier_keys), ..Delivery::default() };
        }
    }

    /// A rule was broken.
    pub(crate) fn broken(&self, how: String) {
        self.books().broken.push(how);
    }

    /// All answers.
    pub(crate) fn answers(&self) -> Vec<Kept> {
        self.books().answers.clone()
    }

    /// The latest answers and some of all.
    pub(crate) fn sample(&self, latest: usize, any: usize) -> Vec<Kept> {
        let books = self.books();
        let answers = &books.answers;
        if answers.is_empty() {
            return Vec::new();
        }
        let last = u64::try_from(answers.len()).unwrap() - 1;
        let any = (0..any).map(|_| answers[usize::try_from(random(last)).unwrap()].clone());
        answers.iter().rev().take(latest).cloned().chain(any).collect()
    }

    /// No rule was broken.
    pub(crate) fn assert_kept(&self) {
        let books = self.books();
        let process = books.process;
        assert!(books.broken.is_empty(), "before process {process}:\n{}\n{books}", books.broken.join("\n"));
    }
}

impl Books {
    fn call(&mut self, body: &Value, process: u32, attempt: u32, key: &str) -> Plan {
        let text = |name: &str| body[name].as_str().unwrap_or_default();
        let action = text("action");
        let id = delivery(action, text(if action == "ExpireAppInstance" { "instance_id" } else { "order_id" }));
        self.calls += 1;
        self.highest_attempt = self.highest_attempt.max(attempt);
        let known = self.deliveries.entry(id.clone()).or_default();
        let mut broken = Vec::new();

        if known.idempotency_key.is_empty() {
            key.clone_into(&mut known.idempotency_key);
        }
        if known.idempotency_key != key || known.earlier_keys.iter().any(|earlier| earlier == key) {
            broken.push(format!("another Idempotency-Key: {key}, not {}", known.idempotency_key));
        }
        if let Some((of, before)) = known.latest {
            // A call of a process that is dead by now may be read late, and counts as earlier.
            let rises = if process >= of { attempt > before } else { attempt < before };
            if !rises {
                broken.push(format!("attempt {attempt} of process {process} after {before} of {of}"));
            }
        }
        if known.latest.is_none_or(|(of, _)| process >= of) {
            known.latest = Some((process, attempt));
        }
        if known.answered_by.is_some_and(|by| process >= by) {
            broken.push(format!("attempt {attempt} after it was answered with success"));
        }
        if known.confirmed_to == Some(process) {
            broken.push(format!("attempt {attempt} of the process that had the confirmation"));
        }

        let number = self.calls;
        let reply = match action {
            "CreateAppInstance" => format!(r#"{{"success":true,"instanceId":"i-{number}","message":"开通成功"}}"#),
            _ => format!(r#"{{"success":true,"message":"{number}"}}"#),
        };
        let plan = match random(99) {
            0..70 => Plan::Answer(reply.clone()),
            70..80 => Plan::Late(reply.clone(), Duration::from_millis(random(450))),
            80..84 => Plan::Break(reply.clone()),
            84..88 => Plan::Reset,
            88..93 => Plan::Fail,
            93..95 => Plan::Answer(r#"{"success":"perhaps"}"#.to_owned()),
            95..98 => Plan::Answer(r#"{"success":false,"message":"not today"}"#.to_owned()),
            _ => Plan::Stall,
        };
        let says = match &plan {
            Plan::Answer(said) | Plan::Late(said, _) => *said == reply,
            Plan::Break(_) => true,
            Plan::Fail | Plan::Reset | Plan::Stall => false,
        };
        if says {
            self.executions += 1;
            self.executed_again += u64::from(known.executed);
            known.executed = true;
        }
        if matches!(&plan, Plan::Answer(said) if *said == reply) {
            known.confirmed_to = Some(process);
        }
        if says {
            known.replies.push(reply);
        }
        self.broken.extend(broken.into_iter().map(|how| format!("{id}: {how}")));
        plan
    }
}

/// The name of a delivery.
pub(crate) fn delivery(action: &str, id: &str) -> String {
    format!("{action} {id}")
}

impl fmt::Display for Ledger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.books().fmt(f)
    }
}

impl fmt::Display for Books {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} deliveries in {} calls of the backend, up to attempt {}; {} executions, {} of them once more because \
             nothing could tell",
            self.deliveries.len(),
            self.calls,
            self.highest_attempt,
            self.executions,
            self.executed_again
        )
    }
}
