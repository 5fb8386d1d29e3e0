//! The watch's audit: positions against the log's ends, for gaps, consumers that stand still, and what can't be read.

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

/// How often positions are compared with the log's ends.
const INTERVAL: Duration = Duration::from_secs(10);
/// How long may be looked for what can be read behind what can't; then all up to the end is given up.
const SEARCH: Duration = Duration::from_secs(5);

/// The audits of one reader.
pub(super) struct Audit {
    reader: Arc<Reader>,
    last: Instant,
    /// Positions of the partitions that had more to read.
    behind: BTreeMap<Partition, i64>,
    /// Positions of which nothing was heard.
    silent: BTreeMap<Partition, i64>,
    /// Why the last one could not be finished: true until the next one.
    pub(super) failed: Option<KafkaError>,
}

/// A partition that stands still: where, and where it ends.
#[derive(Clone, Copy)]
struct StalledPartition {
    at: Partition,
    next: i64,
    high: i64,
}

/// What a consumer is given that begins at a position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ProbeResult {
    /// Its offset.
    Record(i64),
    /// There are only ends of transactions, or aborted ones: those have offsets and are never delivered.
    End,
    /// An error that says that it can't be decoded.
    Undecodable,
}

impl Audit {
    pub fn new(reader: Arc<Reader>) -> Self {
        Self {
            reader,
            last: Instant::now(),
            behind: BTreeMap::new(),
            silent: BTreeMap::new(),
            failed: None,
        }
    }

    /// Audits the reader where that is due. `skips` are partitions that can't be asked for now.
    pub fn run_when_due(&mut self, broker: &mut BrokerClient, skips: impl Fn(&Partition) -> bool) {
        // Until the consumer has taken over what was changed, its positions say nothing.
        if self.reader.offsets.is_resetting() {
            return;
        }
        if self.reader.offsets.take_suspect() || self.last.elapsed() >= INTERVAL {
            self.last = Instant::now();
            self.failed = None;
            if let Err(error) = self.run(broker, skips) {
                self.failed = Some(error);
                // What was suspected is still to be looked at.
                self.reader.offsets.suspect();
            }
        }
    }

    /// Counts gaps, and makes a consumer anew that has more to read and doesn't (rust-rdkafka issue 597, librdkafka
    /// issue 5153).
    fn run(&mut self, broker: &mut BrokerClient, skips: impl Fn(&Partition) -> bool) -> KafkaResult<()> {
        let reader = Arc::clone(&self.reader);
        let mut before = reader.offsets.all();
        before.retain(|(at, _)| !skips(at));
        let all = |which| before.iter().map(|&(at, _)| (at, which)).collect::<Vec<_>>();
        let lows = broker.list_offsets(&all(Offset::Beginning))?;
        let highs = broker.list_offsets(&all(Offset::End))?;
        // Nothing below leaves early: what is begun is taken over with the restart that follows it.
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
            // It is inside again: the log was cut short and has been written again beyond where we are.
            broker.shared.metrics.kafka_gaps.inc();
            tracing::error!(
                thread = reader.thread,
                "a Kafka consumer met an offset that was not there: records may be missing, and it is made anew"
            );
        }
        // What is known to be missing is not kept waiting for a look at the others.
        if has_gap || was_missing || self.probe(broker, &stalled) {
            self.behind.clear();
            reader.offsets.restart();
        }
        Ok(())
    }

    /// Reads where partitions stand still. Whether the consumer is to be made anew.
    fn probe(&mut self, broker: &mut BrokerClient, stalled: &[StalledPartition]) -> bool {
        let reader = Arc::clone(&self.reader);
        let was_silent = std::mem::take(&mut self.silent);
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
            let results = match read_at(broker, topic, &positions) {
                Ok(results) => results,
                Err(error) => {
                    self.failed = Some(error);
                    continue;
                }
            };
            for one in of_topic {
                if reader.offsets.get(one.at) != Some(one.next) {
                    // It has only been slow.
                    continue;
                }
                match results.get(&one.at.1) {
                    Some(ProbeResult::Record(offset)) => is_stalled |= *offset < one.high,
                    Some(ProbeResult::End) => reader.offsets.advance([(&one.at, &one.high)]),
                    Some(ProbeResult::Undecodable) => match skip_undecodable(broker, &reader.offsets, one) {
                        Ok(skipped) => has_skipped |= skipped,
                        Err(error) => self.failed = Some(error),
                    },
                    None => {
                        // Maybe the consumer's connection, which it then has anew; or else the broker, which is slow or
                        // has something that nobody can read: that is for health to say, and no reason to skip records.
                        is_stalled |= was_silent.get(&one.at) != Some(&one.next);
                        self.silent.insert(one.at, one.next);
                        self.failed = Some(silence());
                    }
                }
            }
        }
        if is_stalled {
            tracing::warn!(
                thread = reader.thread,
                "a Kafka consumer stands still although there is more to read: it is made anew"
            );
        }
        is_stalled || has_skipped
    }
}

/// Goes on behind what can't be read, with the restart that follows; false where it was read meanwhile.
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
    // A batch is read whole: its offsets are all bad, and behind it they are good.
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
        let results = read_at(broker, stalled.at.0, &[(stalled.at.1, at)])?;
        match results.get(&stalled.at.1) {
            Some(ProbeResult::Record(_) | ProbeResult::End) => good = at,
            Some(ProbeResult::Undecodable) => bad = at,
            None => return Err(silence()),
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

/// What a consumer is given that begins at these positions of a topic. Partitions of which nothing was heard are
/// not in the answer.
fn read_at(
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
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break;
        }
        match client.poll(left) {
            Some(Ok(message)) => {
                let record = ProbeResult::Record(message.offset());
                results.entry(message.partition()).or_insert(record);
            }
            Some(Err(KafkaError::PartitionEOF(partition))) => {
                results.entry(partition).or_insert(ProbeResult::End);
            }
            Some(Err(error)) if is_undecodable(&error) => {
                // It does not say which: only of one it is known.
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

/// Nothing was heard in time.
fn silence() -> KafkaError {
    KafkaError::MessageConsumption(RDKafkaErrorCode::OperationTimedOut)
}

pub(super) fn is_silence(error: &KafkaError) -> bool {
    *error == silence()
}

/// An error of the records themselves: asking again gives the same.
pub(super) fn is_undecodable(error: &KafkaError) -> bool {
    use RDKafkaErrorCode::{BadCompression, BadMessage, InvalidMessage, NotImplemented};
    let code = error.rdkafka_error_code();
    matches!(
        code,
        Some(BadCompression | BadMessage | InvalidMessage | NotImplemented)
    )
}

/// The broker answers, and does not let us read.
pub(super) fn is_refusal(error: &KafkaError) -> bool {
    use RDKafkaErrorCode::{ClusterAuthorizationFailed, TopicAuthorizationFailed};
    let code = error.rdkafka_error_code();
    matches!(code, Some(TopicAuthorizationFailed | ClusterAuthorizationFailed))
}

/// Where to go on when records are missing between the positions and the log's ends. The position is taken `before`
/// the ends were asked for and after (`next`): what was delivered in between is no gap.
fn start_after_gap(before: i64, next: i64, low: i64, high: i64) -> Option<i64> {
    if next < low {
        // Behind the oldest: the rest of the log is news.
        Some(low)
    } else if before > high {
        // Beyond the newest: the log was cut short, and what is left of it has been read.
        Some(high)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_delivered_during_a_look_is_no_gap() {
        assert_eq!(start_after_gap(28, 29, 0, 28), None);
        assert_eq!(start_after_gap(20, 28, 25, 28), None);
        assert_eq!(start_after_gap(29, 29, 0, 28), Some(28), "the log was cut short");
        assert_eq!(start_after_gap(4, 4, 5, 28), Some(5), "the oldest are gone");
    }
}
