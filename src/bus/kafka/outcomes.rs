//! The outcomes of the records this node writes: which writes fail, and for how long.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rdkafka::error::RDKafkaErrorCode;

/// Writes that fail for this long make health degraded; up to 1.5 s, the monitor's interval, come on top.
const LASTING: Duration = Duration::from_millis(3_500);
/// A failure that has not recurred for this long is forgotten, even without a success: longer than a record may wait
/// for the log.
const FAILURE_TTL: Duration = Duration::from_secs(35);
/// How long a sender's timeout is remembered, whatever else succeeds.
const UNANSWERED_TTL: Duration = Duration::from_secs(5);

/// Failures on one partition, or on a whole topic (-1), without a success since.
#[derive(Clone, Copy, Debug)]
pub struct Failure {
    pub code: RDKafkaErrorCode,
    since: Instant,
    last: Instant,
}

/// One topic's failures.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failing {
    pub topic: String,
    pub code: RDKafkaErrorCode,
}

#[derive(Default)]
pub struct Outcomes {
    /// Whether anything in `state` is set: as long as nothing is, a success only costs this check.
    is_failing: AtomicBool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    failures: BTreeMap<(String, i32), Failure>,
    /// When a sender's wait last timed out.
    unanswered: Option<Instant>,
    /// The latest send time among the records acknowledged while anything here was set.
    acknowledged: Option<Instant>,
}

impl Failure {
    /// Whether the failure has lasted long enough to report. An error counts from its first occurrence until now, a
    /// timeout only until its last occurrence.
    fn has_lasted(&self, now: Instant) -> bool {
        let is_timeout = self.code == RDKafkaErrorCode::MessageTimedOut;
        let until = if is_timeout { self.last } else { now };
        until.duration_since(self.since) >= LASTING
    }
}

impl Outcomes {
    /// The log has acknowledged a record, `latency` after it was sent.
    pub fn succeeded(&self, topic: &str, partition: i32, latency: Option<Duration>) {
        if !self.is_failing.load(Ordering::Relaxed) {
            return;
        }
        let now = Instant::now();
        let mut state = self.state.lock();
        for partition in [partition, -1] {
            state.failures.remove(&(topic.to_owned(), partition));
        }
        let sent = now.checked_sub(latency.unwrap_or_default()).unwrap_or(now);
        state.acknowledged = state.acknowledged.max(Some(sent));
    }

    pub fn failed(&self, topic: &str, partition: i32, code: RDKafkaErrorCode) {
        let now = Instant::now();
        let mut state = self.state.lock();
        let failure = state
            .failures
            .entry((topic.to_owned(), partition))
            .or_insert(Failure {
                code,
                since: now,
                last: now,
            });
        (failure.code, failure.last) = (code, now);
        self.is_failing.store(true, Ordering::Relaxed);
    }

    /// A sender's wait has timed out. Returns whether it is the first one.
    pub fn note_unanswered(&self) -> bool {
        let mut state = self.state.lock();
        self.is_failing.store(true, Ordering::Relaxed);
        state.unanswered.replace(Instant::now()).is_none()
    }

    /// Forgets what is over by `now`; a failure from before the probe `started` is over if it `is_resolved`. Returns
    /// whether anything is left.
    pub fn expire(
        &self,
        now: Instant,
        started: Instant,
        is_resolved: impl Fn(&str, RDKafkaErrorCode) -> bool,
    ) -> bool {
        if !self.is_failing.load(Ordering::Relaxed) {
            return false;
        }
        let mut state = self.state.lock();
        let acknowledged = state.acknowledged;
        state.failures.retain(|(topic, _), failure| {
            let is_resolved = failure.last < started && is_resolved(topic, failure.code);
            now.duration_since(failure.last) < FAILURE_TTL && !is_resolved
        });
        state.unanswered.take_if(|last| {
            let quiet = now.duration_since(*last);
            quiet >= FAILURE_TTL || (quiet >= UNANSWERED_TTL && acknowledged > Some(*last))
        });
        let is_clear = state.failures.is_empty() && state.unanswered.is_none();
        if is_clear {
            state.acknowledged = None;
            self.is_failing.store(false, Ordering::Relaxed);
        }
        !is_clear
    }

    /// Topics on which writing fails, with the newest error of each: refusals at once, other errors once they have
    /// lasted.
    pub fn failing(&self, now: Instant) -> Vec<Failing> {
        let state = self.state.lock();
        let mut failing: Vec<Failing> = Vec::new();
        for ((topic, _), failure) in &state.failures {
            let is_failing = failure.has_lasted(now) || is_refusal(failure.code);
            let found = Failing {
                topic: topic.clone(),
                code: failure.code,
            };
            if is_failing && !failing.contains(&found) {
                failing.push(found);
            }
        }
        failing
    }

    /// Whether senders' waits time out.
    pub fn is_unanswered(&self) -> bool {
        self.is_failing.load(Ordering::Relaxed) && self.state.lock().unanswered.is_some()
    }

    /// Whether a partition's records have kept timing out, for as long as a record may wait: then nothing is in flight
    /// that was sent before that began.
    pub fn is_stuck(&self, now: Instant) -> bool {
        let state = self.state.lock();
        let is_stuck =
            |failure: &Failure| failure.code == RDKafkaErrorCode::MessageTimedOut && failure.has_lasted(now);
        state.failures.values().any(is_stuck)
    }

    /// Forgets the failures of the producer that was replaced.
    pub fn reset(&self) {
        let mut state = self.state.lock();
        state.failures.clear();
    }
}

/// The broker answers, but denies us permission to write.
pub fn is_refusal(code: RDKafkaErrorCode) -> bool {
    use RDKafkaErrorCode::{ClusterAuthorizationFailed, TopicAuthorizationFailed};
    matches!(code, TopicAuthorizationFailed | ClusterAuthorizationFailed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(start: Instant, seconds: u64) -> Instant {
        start + Duration::from_secs(seconds)
    }

    fn timed_out_at(outcomes: &Outcomes, topic: &str, partition: i32, at: Instant) {
        outcomes.failed(topic, partition, RDKafkaErrorCode::MessageTimedOut);
        let mut state = outcomes.state.lock();
        let failure = state.failures.get_mut(&(topic.to_owned(), partition));
        let failure = failure.expect("it has just failed");
        (failure.since, failure.last) = (failure.since.min(at), at);
    }

    #[test]
    fn a_single_timed_out_record_is_not_reported() {
        let (outcomes, start) = (Outcomes::default(), Instant::now());
        timed_out_at(&outcomes, "t", 0, start);
        for seconds in [5, 34] {
            let now = after(start, seconds);
            assert!(outcomes.failing(now).is_empty() && !outcomes.is_stuck(now));
        }
    }

    #[test]
    fn a_failure_lasts_until_a_success_on_its_partition_or_its_expiry() {
        use RDKafkaErrorCode::MessageSizeTooLarge;
        let (outcomes, start) = (Outcomes::default(), Instant::now());
        let topics = |seconds| {
            let failing = outcomes.failing(after(start, seconds));
            failing
                .into_iter()
                .map(|failing| failing.topic)
                .collect::<Vec<_>>()
        };
        outcomes.failed("u", -1, MessageSizeTooLarge);
        for seconds in [0, 4] {
            assert!(topics(1).is_empty(), "it has not lasted yet");
            timed_out_at(&outcomes, "t", 1, after(start, seconds));
            timed_out_at(&outcomes, "t", 2, after(start, seconds));
        }
        assert_eq!(topics(5), ["t", "u"]);
        outcomes.succeeded("t", 1, None);
        outcomes.succeeded("u", 0, None);
        assert_eq!(topics(5), ["t"], "the other partition still fails");
        outcomes.expire(after(start, 38), start, |_, _| false);
        assert_eq!(topics(38), ["t"]);
        assert!(!outcomes.expire(after(start, 40), start, |_, _| false));
        assert!(topics(40).is_empty());
    }

    #[test]
    fn a_refusal_is_reported_at_once_and_forgotten_once_resolved() {
        let (outcomes, start) = (Outcomes::default(), Instant::now());
        outcomes.failed("t", 0, RDKafkaErrorCode::TopicAuthorizationFailed);
        assert_eq!(outcomes.failing(start).len(), 1);
        let is_resolved = |topic: &str, code| topic == "t" && is_refusal(code);
        assert!(
            outcomes.expire(after(start, 1), start, is_resolved),
            "the probe started before the failure"
        );
        outcomes.expire(after(start, 2), after(start, 1), is_resolved);
        assert!(outcomes.failing(after(start, 1)).is_empty());
    }

    #[test]
    fn a_senders_timeout_is_forgotten_once_a_later_record_is_acknowledged() {
        let (outcomes, start) = (Outcomes::default(), Instant::now());
        outcomes.note_unanswered();
        outcomes.succeeded("t", 0, Some(Duration::from_secs(3_600)));
        outcomes.expire(after(start, 6), start, |_, _| false);
        assert!(
            outcomes.is_unanswered(),
            "that record was sent before the timeout"
        );
        outcomes.succeeded("t", 0, Some(Duration::ZERO));
        outcomes.expire(after(start, 1), start, |_, _| false);
        assert!(outcomes.is_unanswered(), "others may still wait");
        outcomes.expire(after(start, 6), start, |_, _| false);
        assert!(!outcomes.is_unanswered());
    }

    #[test]
    fn only_repeated_timeouts_make_a_producer_stuck() {
        use RDKafkaErrorCode::NotEnoughReplicas;
        let (outcomes, start) = (Outcomes::default(), Instant::now());
        outcomes.failed("t", 0, NotEnoughReplicas);
        assert!(!outcomes.is_stuck(after(start, 60)));
        timed_out_at(&outcomes, "t", 1, start);
        timed_out_at(&outcomes, "t", 1, after(start, 4));
        assert!(outcomes.is_stuck(after(start, 5)));
        outcomes.succeeded("t", 1, None);
        assert!(!outcomes.is_stuck(after(start, 5)));
    }
}
