//! The monitor's audit compares positions with the beginning and end of the log. It finds gaps, stalled consumers, and
//! records that can't be read.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::Offset;
use rdkafka::consumer::Consumer;
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::message::Message;

use super::Reader;
use super::broker::{ANSWER_TIMEOUT, BrokerClient};
use super::offsets::{Offsets, Partition};
use crate::protocol::record::Topic;

/// How often an audit runs.
const INTERVAL: Duration = Duration::from_secs(10);
/// How long to search for the next readable record; after that, everything up to the end is skipped.
const SEARCH: Duration = Duration::from_secs(5);

/// The audits of one reader.
pub(super) struct Audit {
    reader: Arc<Reader>,
    last: Instant,
    /// Positions of the partitions that had more to read at the last audit.
    behind: BTreeMap<Partition, i64>,
    /// Positions that the last probe got no answer for.
    unanswered: BTreeMap<Partition, i64>,
    /// Why the last audit could not be completed.
    pub(super) failed: Option<KafkaError>,
}

/// A partition whose reader has not advanced since the last audit.
#[derive(Clone, Copy)]
struct StalledPartition {
    at: Partition,
    next: i64,
    high: i64,
}

/// What a consumer that starts at a position receives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ProbeResult {
    /// A record, with its offset.
    Record(i64),
    /// Nothing: only transaction markers or aborted records follow, which have offsets and are never delivered.
    End,
    /// An error: what is there can't be decoded.
    Undecodable,
}

impl Audit {
    pub fn new(reader: Arc<Reader>) -> Self {
        Self {
            reader,
            last: Instant::now(),
            behind: BTreeMap::new(),
            unanswered: BTreeMap::new(),
            failed: None,
        }
    }

    /// Audits the reader if that is due, without the partitions that `skips` names, which can't be queried now.
    pub fn run_when_due(&mut self, broker: &mut BrokerClient, skips: impl Fn(&Partition) -> bool) {
        // Positions are stale until the consumer has applied the last change.
        if self.reader.offsets.is_resetting() {
            return;
        }
        if self.reader.offsets.take_audit_request() || self.last.elapsed() >= INTERVAL {
            self.last = Instant::now();
            self.failed = None;
            if let Err(error) = self.run(broker, skips) {
                self.failed = Some(error);
                // The request still stands.
                self.reader.offsets.request_audit();
            }
        }
    }

    /// Counts gaps, and recreates a consumer that has records to read but doesn't read them (rust-rdkafka issue 597,
    /// librdkafka issue 5153).
    fn run(&mut self, broker: &mut BrokerClient, skips: impl Fn(&Partition) -> bool) -> KafkaResult<()> {
        let reader = Arc::clone(&self.reader);
        let mut before = reader.offsets.all();
        before.retain(|(at, _)| !skips(at));
        let all = |which| before.iter().map(|&(at, _)| (at, which)).collect::<Vec<_>>();
        let lows = broker.list_offsets(&all(Offset::Beginning))?;
        let highs = broker.list_offsets(&all(Offset::End))?;
        // No early return from here on: the restart at the end applies the positions set before it.
        let was_missing = reader.offsets.take_missing();
        let was_behind = std::mem::take(&mut self.behind);
        let (mut stalled, mut has_gap) = (Vec::new(), false);
        for ((at, before), ends) in before.into_iter().zip(lows.into_iter().zip(highs)) {
            let (Some(next), (Some(low), Some(high))) = (reader.offsets.get(at), ends) else {
                continue;
            };
            if let Some(start) = start_after_gap(before, next, low, high) {
                has_gap = true;
                count_gap(broker, at, next, start);
                reader.offsets.start_at(at, start);
            } else if next < high {
                if was_behind.get(&at) == Some(&next) {
                    stalled.push(StalledPartition { at, next, high });
                }
                self.behind.insert(at, next);
            }
        }
        if was_missing && !has_gap {
            // The position is in range again: the log was truncated and has since grown beyond it.
            broker.shared.metrics.kafka_gaps.inc();
            tracing::error!(
                thread = reader.thread,
                "a Kafka consumer met an offset that was not there: records may be missing, and it is made anew"
            );
        }
        // After a gap, the restart does not wait for the probe.
        if has_gap || was_missing || self.probe(broker, &stalled) {
            self.behind.clear();
            reader.offsets.restart();
        }
        Ok(())
    }

    /// Reads at the stalled positions. Returns whether the consumer is to be recreated.
    fn probe(&mut self, broker: &mut BrokerClient, stalled: &[StalledPartition]) -> bool {
        let reader = Arc::clone(&self.reader);
        let was_unanswered = std::mem::take(&mut self.unanswered);
        let (mut is_stalled, mut has_skipped) = (false, false);
        for topic in Topic::ALL {
            let of_topic: Vec<_> = stalled
                .iter()
                .copied()
                .filter(|stalled| stalled.at.0 == topic)
                .collect();
            let positions: Vec<_> = of_topic
                .iter()
                .map(|stalled| (stalled.at.1, stalled.next))
                .collect();
            let results = match probe_positions(broker, topic, &positions) {
                Ok(results) => results,
                Err(error) => {
                    self.failed = Some(error);
                    continue;
                }
            };
            for one in of_topic {
                if reader.offsets.get(one.at) != Some(one.next) {
                    // It was only slow.
                    continue;
                }
                match results.get(&one.at.1) {
                    Some(ProbeResult::Record(offset)) => is_stalled |= *offset < one.high,
                    Some(ProbeResult::End) => {
                        reader.offsets.advance([(&one.at, &one.high)]);
                        if topic == Topic::Messages {
                            broker.shared.history.log.reached(one.at.1, one.high);
                        }
                    }
                    Some(ProbeResult::Undecodable) => match skip_undecodable(broker, &reader.offsets, one) {
                        Ok(skipped) => has_skipped |= skipped,
                        Err(error) => self.failed = Some(error),
                    },
                    None => {
                        // If the consumer's connection is at fault, recreating it helps. Otherwise the broker is slow,
                        // or has something that can't be read: health reports that, and no records are skipped.
                        is_stalled |= was_unanswered.get(&one.at) != Some(&one.next);
                        self.unanswered.insert(one.at, one.next);
                        self.failed = Some(timed_out());
                    }
                }
            }
        }
        if is_stalled {
            tracing::warn!(
                thread = reader.thread,
                "a Kafka consumer has stalled although there is more to read: recreating it"
            );
        }
        is_stalled || has_skipped
    }
}

/// Skips what can't be read, which takes effect with the next restart. Returns false if it has been read meanwhile.
///
/// # Errors
///
/// The broker does not answer: nothing is skipped.
fn skip_undecodable(
    broker: &mut BrokerClient,
    offsets: &Offsets,
    stalled: StalledPartition,
) -> KafkaResult<bool> {
    let until = Instant::now() + SEARCH;
    let (mut bad, mut good, mut step) = (stalled.next, stalled.high, 1);
    // A batch is decoded as a whole: all of its offsets are bad, and those after it are good.
    while good - bad > 1 {
        if Instant::now() >= until {
            good = stalled.high;
            break;
        }
        let at = if good == stalled.high {
            (bad + step).min(good - 1)
        } else {
            bad + (good - bad) / 2
        };
        let results = probe_positions(broker, stalled.at.0, &[(stalled.at.1, at)])?;
        match results.get(&stalled.at.1) {
            Some(ProbeResult::Record(_) | ProbeResult::End) => good = at,
            Some(ProbeResult::Undecodable) => bad = at,
            None => return Err(timed_out()),
        }
        step *= 2;
    }
    if offsets.get(stalled.at) != Some(stalled.next) {
        return Ok(false);
    }
    count_gap(broker, stalled.at, stalled.next, good);
    offsets.advance([(&stalled.at, &good)]);
    Ok(true)
}

fn count_gap(broker: &BrokerClient, (topic, partition): Partition, next: i64, start: i64) {
    broker.shared.metrics.kafka_gaps.inc();
    tracing::error!(
        topic = topic.name(),
        partition,
        next,
        start,
        "records are missing from the log, or can't be read: this node goes on with what there is"
    );
}

/// What a consumer that starts at these positions of a topic receives. Partitions without an answer are left out.
fn probe_positions(
    broker: &mut BrokerClient,
    topic: Topic,
    positions: &[(i32, i64)],
) -> KafkaResult<HashMap<i32, ProbeResult>> {
    let mut results = HashMap::new();
    if positions.is_empty() {
        return Ok(results);
    }
    let at = |&(partition, next): &(i32, i64)| ((topic, partition), Offset::Offset(next));
    let asked = broker.shared.positions(positions.iter().map(at))?;
    let client = broker.client()?;
    client.assign(&asked)?;
    let until = Instant::now() + ANSWER_TIMEOUT;
    let mut refused = None;
    while results.len() < positions.len() {
        let remaining = until.saturating_duration_since(Instant::now());
        if remaining.is_zero() {
            break;
        }
        match client.poll(remaining) {
            Some(Ok(message)) => {
                let record = ProbeResult::Record(message.offset());
                results.entry(message.partition()).or_insert(record);
            }
            Some(Err(KafkaError::PartitionEOF(partition))) => {
                results.entry(partition).or_insert(ProbeResult::End);
            }
            Some(Err(error)) if is_undecodable(&error) => {
                // The error does not name the partition: it is known only if there is just one.
                if let [(partition, _)] = positions {
                    results.insert(*partition, ProbeResult::Undecodable);
                }
            }
            Some(Err(error)) if is_refusal(&error) => {
                refused = Some(error);
                break;
            }
            Some(Err(_)) | None => {}
        }
    }
    client.unassign()?;
    refused.map_or(Ok(results), Err)
}

/// There was no answer in time.
fn timed_out() -> KafkaError {
    KafkaError::MessageConsumption(RDKafkaErrorCode::OperationTimedOut)
}

pub(super) fn is_timeout(error: &KafkaError) -> bool {
    *error == timed_out()
}

/// An error of the records themselves, which a retry would only repeat.
pub(super) fn is_undecodable(error: &KafkaError) -> bool {
    use RDKafkaErrorCode::{BadCompression, BadMessage, InvalidMessage, NotImplemented};
    let code = error.rdkafka_error_code();
    matches!(
        code,
        Some(BadCompression | BadMessage | InvalidMessage | NotImplemented)
    )
}

/// The broker answers, but denies us permission to read.
pub(super) fn is_refusal(error: &KafkaError) -> bool {
    use RDKafkaErrorCode::{ClusterAuthorizationFailed, TopicAuthorizationFailed};
    let code = error.rdkafka_error_code();
    matches!(code, Some(TopicAuthorizationFailed | ClusterAuthorizationFailed))
}

/// Where to resume if the position is outside the log. It is taken `before` the log's limits were requested and again
/// after that (`next`): what was delivered in between is no gap.
fn start_after_gap(before: i64, next: i64, low: i64, high: i64) -> Option<i64> {
    if next < low {
        // Before the oldest record: the whole log is new.
        Some(low)
    } else if before > high {
        // Beyond the newest record: the log was truncated, and what is left of it has been read.
        Some(high)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_delivered_during_an_audit_is_no_gap() {
        assert_eq!(start_after_gap(28, 29, 0, 28), None);
        assert_eq!(start_after_gap(20, 28, 25, 28), None);
        assert_eq!(start_after_gap(29, 29, 0, 28), Some(28), "the log was truncated");
        assert_eq!(
            start_after_gap(4, 4, 5, 28),
            Some(5),
            "the oldest records are gone"
        );
    }
}
