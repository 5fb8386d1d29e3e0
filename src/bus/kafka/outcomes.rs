//! What becomes of the records that we write: how long they take, and what fails for how long.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rdkafka::error::RDKafkaErrorCode;

/// Sends that fail for so long make health degraded; the watch, which looks every 1.5 s, adds to it.
const LONG: Duration = Duration::from_millis(3_500);
/// What has not failed again for so long is over, where no success says so: longer than a record waits for the log.
const FORGOTTEN: Duration = Duration::from_secs(35);
/// Senders that waited in vain are remembered for so long after the last one, whatever else succeeds.
const RECENT: Duration = Duration::from_secs(5);

/// Failures at one partition, or at a whole topic (-1), without a success since.
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
    /// Something below is set: as long as it is not, a success costs a look at it.
    is_troubled: AtomicBool,
    trouble: Mutex<Trouble>,
}

#[derive(Default)]
struct Trouble {
    failures: BTreeMap<(String, i32), Failure>,
    /// When a sender has last waited in vain.
    unanswered: Option<Instant>,
    /// When the newest record was sent that the log has acknowledged, of those in times of trouble.
    acknowledged: Option<Instant>,
}

impl Failure {
    /// Whether it is more than an accident. An answer says by itself what is wrong, and silence when it has come again.
    fn has_lasted(&self, now: Instant) -> bool {
        let is_silence = self.code == RDKafkaErrorCode::MessageTimedOut;
        let until = if is_silence { self.last } else { now };
        until.duration_since(self.since) >= LONG
    }
}

impl Outcomes {
    /// The log has a record, `latency` after it was sent.
    pub fn succeeded(&self, topic: &str, partition: i32, latency: Option<Duration>) {
        if !self.is_troubled.load(Ordering::Relaxed) {
            return;
        }
        let now = Instant::now();
        let mut trouble = self.trouble.lock();
        for partition in [partition, -1] {
            trouble.failures.remove(&(topic.to_owned(), partition));
        }
        let sent = now.checked_sub(latency.unwrap_or_default()).unwrap_or(now);
        trouble.acknowledged = trouble.acknowledged.max(Some(sent));
    }

    pub fn failed(&self, topic: &str, partition: i32, code: RDKafkaErrorCode) {
        let now = Instant::now();
        let mut trouble = self.trouble.lock();
        let failure = trouble
            .failures
            .entry((topic.to_owned(), partition))
            .or_insert(Failure {
                code,
                since: now,
                last: now,
            });
        (failure.code, failure.last) = (code, now);
        self.is_troubled.store(true, Ordering::Relaxed);
    }

    /// A sender has waited in vain. Whether it is the first one.
    pub fn unanswered(&self) -> bool {
        let mut trouble = self.trouble.lock();
        self.is_troubled.store(true, Ordering::Relaxed);
        trouble.unanswered.replace(Instant::now()).is_none()
    }

    /// Forgets what is over by `now`. `is_mended` says which failures are, of those before `asked`. Whether there is
    /// anything left.
    pub fn look(
        &self,
        now: Instant,
        asked: Instant,
        is_mended: impl Fn(&str, RDKafkaErrorCode) -> bool,
    ) -> bool {
        if !self.is_troubled.load(Ordering::Relaxed) {
            return false;
        }
        let mut trouble = self.trouble.lock();
        let acknowledged = trouble.acknowledged;
        trouble.failures.retain(|(topic, _), failure| {
            let is_mended = failure.last < asked && is_mended(topic, failure.code);
            now.duration_since(failure.last) < FORGOTTEN && !is_mended
        });
        trouble.unanswered.take_if(|last| {
            let quiet = now.duration_since(*last);
            quiet >= FORGOTTEN || (quiet >= RECENT && acknowledged > Some(*last))
        });
        let is_over = trouble.failures.is_empty() && trouble.unanswered.is_none();
        if is_over {
            trouble.acknowledged = None;
            self.is_troubled.store(false, Ordering::Relaxed);
        }
        !is_over
    }

    /// Topics whose records fail, with the newest reason of each, once that has lasted; refusals at once.
    pub fn failing(&self, now: Instant) -> Vec<Failing> {
        let trouble = self.trouble.lock();
        let mut failing: Vec<Failing> = Vec::new();
        for ((topic, _), failure) in &trouble.failures {
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

    /// Whether senders wait in vain.
    pub fn is_unanswered(&self) -> bool {
        self.is_troubled.load(Ordering::Relaxed) && self.trouble.lock().unanswered.is_some()
    }

    /// Whether a partition's records have been given up, one after the other and for lack of any answer, for as long as
    /// one may wait: then nothing is under way that was sent before that began.
    pub fn is_stuck(&self, now: Instant) -> bool {
        let trouble = self.trouble.lock();
        let is_stuck =
            |failure: &Failure| failure.code == RDKafkaErrorCode::MessageTimedOut && failure.has_lasted(now);
        trouble.failures.values().any(is_stuck)
    }

    /// Another producer: what the last one met says nothing of it.
    pub fn restart(&self) {
        let mut trouble = self.trouble.lock();
        trouble.failures.clear();
    }
}

/// The broker answers, and does not let us write.
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
        let mut trouble = outcomes.trouble.lock();
        let failure = trouble.failures.get_mut(&(topic.to_owned(), partition));
        let failure = failure.expect("it has just failed");
        (failure.since, failure.last) = (failure.since.min(at), at);
    }

    #[test]
    fn one_record_that_times_out_alone_is_no_outage() {
        let (outcomes, start) = (Outcomes::default(), Instant::now());
        timed_out_at(&outcomes, "t", 0, start);
        for seconds in [5, 34] {
            let now = after(start, seconds);
            assert!(outcomes.failing(now).is_empty() && !outcomes.is_stuck(now));
        }
    }

    #[test]
    fn a_failure_lasts_until_a_success_at_its_partition_or_long_silence() {
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
            assert!(topics(1).is_empty(), "that may pass");
            timed_out_at(&outcomes, "t", 1, after(start, seconds));
            timed_out_at(&outcomes, "t", 2, after(start, seconds));
        }
        assert_eq!(topics(5), ["t", "u"]);
        outcomes.succeeded("t", 1, None);
        outcomes.succeeded("u", 0, None);
        assert_eq!(topics(5), ["t"], "the other partition fails on");
        outcomes.look(after(start, 38), start, |_, _| false);
        assert_eq!(topics(38), ["t"]);
        assert!(!outcomes.look(after(start, 40), start, |_, _| false));
        assert!(topics(40).is_empty());
    }

    #[test]
    fn a_refusal_is_told_at_once_and_over_when_it_is_mended() {
        let (outcomes, start) = (Outcomes::default(), Instant::now());
        outcomes.failed("t", 0, RDKafkaErrorCode::TopicAuthorizationFailed);
        assert_eq!(outcomes.failing(start).len(), 1);
        let is_mended = |topic: &str, code| topic == "t" && is_refusal(code);
        assert!(
            outcomes.look(after(start, 1), start, is_mended),
            "it may have been mended before"
        );
        outcomes.look(after(start, 2), after(start, 1), is_mended);
        assert!(outcomes.failing(after(start, 1)).is_empty());
    }

    #[test]
    fn waiting_in_vain_is_over_when_what_was_sent_later_is_acknowledged() {
        let (outcomes, start) = (Outcomes::default(), Instant::now());
        outcomes.unanswered();
        outcomes.succeeded("t", 0, Some(Duration::from_secs(3_600)));
        outcomes.look(after(start, 6), start, |_, _| false);
        assert!(outcomes.is_unanswered(), "it had been sent before");
        outcomes.succeeded("t", 0, Some(Duration::ZERO));
        outcomes.look(after(start, 1), start, |_, _| false);
        assert!(outcomes.is_unanswered(), "others may still wait");
        outcomes.look(after(start, 6), start, |_, _| false);
        assert!(!outcomes.is_unanswered());
    }

    #[test]
    fn only_records_that_nobody_answers_for_make_a_producer_stuck() {
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
