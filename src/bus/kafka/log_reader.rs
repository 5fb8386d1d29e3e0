//! Reads older records for clients that come back, on a thread and a client of its own, so that delivery never waits
//! for it. All clients that wait are served by one pass over the log.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rdkafka::Offset;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Message};
use uuid::Uuid;

use super::Shared;
use super::consumer::incoming;
use super::reasons::Reasons;
use crate::clock;
use crate::history::query::{Collector, LogQuery, frame_of};
use crate::history::recent_log::CLOCK_SKEW_MS;
use crate::history::sent::{Sent, SentMessages, SentRecord};
use crate::protocol::ids::SessionId;
use crate::protocol::record::{Converter, Incoming, Topic};
use crate::protocol::resume::NotResumed;
use crate::supervise::catch_panic;

/// The most clients that wait at once, and the most bytes that are held for them until they have got them.
const MAX_WAITING: usize = 1_000;
const MAX_BYTES: usize = 64 << 20;
/// How much of what was sent is remembered in a pass.
const MAX_SENT_BYTES: usize = 16 << 20;
/// How long queries gather for one pass.
const GATHER: Duration = Duration::from_millis(20);
/// How long one poll waits, and how soon the thread sees that the server stops.
const POLL: Duration = Duration::from_millis(100);
/// How long a client without queries stays connected.
const IDLE: Duration = Duration::from_secs(30);

type LogConsumer = BaseConsumer<Reasons>;

/// Takes queries for the reader.
pub struct LogReader {
    queries: SyncSender<LogQuery>,
    waiting: Arc<AtomicUsize>,
}

impl LogReader {
    pub(super) fn start(shared: Arc<Shared>) -> std::io::Result<Self> {
        let (queries, receiver) = sync_channel(MAX_WAITING);
        let waiting = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&waiting);
        thread::Builder::new()
            .name("log-reader".into())
            .spawn(move || run(&shared, &receiver, &counted))?;
        Ok(Self { queries, waiting })
    }

    /// Answers a query later, or at once if too many wait.
    pub fn ask(&self, query: LogQuery) {
        if self.waiting.fetch_add(1, Ordering::Relaxed) >= MAX_WAITING {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            return (query.reply)(Err(NotResumed::Busy));
        }
        if let Err(refused) = self.queries.try_send(query) {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            let (query, why) = match refused {
                TrySendError::Full(query) => (query, NotResumed::Busy),
                TrySendError::Disconnected(query) => (query, NotResumed::Unavailable),
            };
            (query.reply)(Err(why));
        }
    }
}

fn run(shared: &Shared, queries: &Receiver<LogQuery>, waiting: &AtomicUsize) {
    let (mut consumer, mut used) = (None, Instant::now());
    // Bytes of the frames that clients have yet to get.
    let held = Arc::new(AtomicUsize::new(0));
    while !shared.is_stopping() {
        let first = match queries.recv_timeout(POLL) {
            Ok(first) => first,
            Err(RecvTimeoutError::Disconnected) => return,
            Err(RecvTimeoutError::Timeout) => {
                if used.elapsed() > IDLE {
                    consumer = None;
                }
                if let Some(consumer) = &consumer {
                    // Serves the client's own events.
                    let consumer: &LogConsumer = consumer;
                    consumer.poll(Duration::ZERO);
                }
                continue;
            }
        };
        thread::sleep(GATHER);
        let mut collectors: Vec<_> = std::iter::once(first)
            .chain(queries.try_iter())
            .map(Collector::new)
            .collect();
        let count = collectors.len();
        let started = Instant::now();
        let read = catch_panic(|| read(shared, &mut consumer, &mut collectors, &held));
        if !matches!(read, Some(Ok(()))) {
            if let Some(Err(error)) = read {
                tracing::warn!(%error, "the log cannot be read for clients that come back");
            }
            collectors
                .iter_mut()
                .for_each(|one| one.refuse(NotResumed::Unavailable));
            consumer = None;
        }
        shared.metrics.history.log_read(started.elapsed());
        collectors.into_iter().for_each(Collector::finish);
        waiting.fetch_sub(count, Ordering::Relaxed);
        used = Instant::now();
    }
}

/// One pass for all collectors.
fn read(
    shared: &Shared,
    consumer: &mut Option<LogConsumer>,
    collectors: &mut [Collector],
    held: &Arc<AtomicUsize>,
) -> KafkaResult<()> {
    let (now, partitions) = (clock::unix_ms(), shared.history.partitions());
    let mut since = i64::MAX;
    for collector in collectors.iter_mut() {
        match collector.query().start_time(now) {
            Ok(time) => since = since.min(time),
            Err(why) => collector.refuse(why),
        }
    }
    let until = collectors.iter().map(Collector::deadline).max();
    let Some(until) = until.filter(|_| since < i64::MAX && partitions > 0) else {
        return Ok(());
    };
    // What precedes the records by that much tells which of them are repeats.
    let since = since - shared.history.dedup_ms - CLOCK_SKEW_MS;
    let consumer = match consumer {
        Some(consumer) => consumer,
        none => none.insert(connect(shared)?),
    };
    let ranges = ranges(shared, consumer, collectors, since, partitions, until)?;
    let mut pass = Pass::new(shared, collectors, held);
    pass.read(shared, consumer, ranges, until)
}

fn connect(shared: &Shared) -> KafkaResult<LogConsumer> {
    shared
        .consumer_config()
        // The end of a partition may be transaction markers, which are never delivered.
        .set("enable.partition.eof", "true")
        .set("fetch.wait.max.ms", "10")
        .set("queued.max.messages.kbytes", "16384")
        .create_with_context(Reasons::default())
}

/// The offsets to read, by partition. A query whose exact start is gone from the log is refused.
fn ranges(
    shared: &Shared,
    consumer: &LogConsumer,
    collectors: &mut [Collector],
    since: i64,
    partitions: i32,
    until: Instant,
) -> KafkaResult<HashMap<i32, (i64, i64)>> {
    let left = until.saturating_duration_since(Instant::now()).max(POLL);
    let all = |offset| (0..partitions).map(move |partition| ((Topic::Messages, partition), offset));
    let starts = consumer.offsets_for_times(shared.positions(all(Offset::Offset(since)))?, left)?;
    let name = shared.topic_name(Topic::Messages);
    let mut ranges = HashMap::new();
    for partition in 0..partitions {
        let end = collectors
            .iter()
            .map(|collector| collector.query().end(partition))
            .max()
            .unwrap_or(0);
        let found = starts.find_partition(name, partition);
        let mut start = match found.map(|found| (found.error(), found.offset())) {
            Some((Ok(()), Offset::Offset(start))) => start,
            // Nothing has such a timestamp or a later one.
            Some((Ok(()), _)) => end,
            _ => return Err(KafkaError::OffsetFetch(RDKafkaErrorCode::LeaderNotAvailable)),
        };
        let exact = collectors.iter_mut().filter_map(|collector| {
            let (own, offset) = collector.query().start_offset()?;
            (own == partition).then_some((offset, collector))
        });
        let exact: Vec<_> = exact.filter(|(offset, _)| *offset < start).collect();
        if !exact.is_empty() {
            let (low, _) = consumer.fetch_watermarks(name, partition, left)?;
            for (offset, collector) in exact {
                if offset < low {
                    collector.refuse(NotResumed::TooOld);
                } else {
                    start = start.min(offset);
                }
            }
        }
        if start < end {
            ranges.insert(partition, (start, end));
        }
    }
    Ok(ranges)
}

struct Pass<'a> {
    collectors: &'a mut [Collector],
    /// The collectors of each session.
    of_session: HashMap<SessionId, Vec<usize>>,
    converter: Converter,
    /// Messages of these sessions that the pass has read, by which repeats are recognized.
    sent: SentMessages,
    held: &'a Arc<AtomicUsize>,
}

/// A frame that is counted until its client has got it.
struct CountedFrame {
    frame: Bytes,
    held: Arc<AtomicUsize>,
}

impl CountedFrame {
    fn of(frame: &Bytes, held: &Arc<AtomicUsize>) -> Bytes {
        held.fetch_add(frame.len(), Ordering::Relaxed);
        Bytes::from_owner(Self {
            frame: frame.clone(),
            held: Arc::clone(held),
        })
    }
}

impl AsRef<[u8]> for CountedFrame {
    fn as_ref(&self) -> &[u8] {
        &self.frame
    }
}

impl Drop for CountedFrame {
    fn drop(&mut self) {
        self.held.fetch_sub(self.frame.len(), Ordering::Relaxed);
    }
}

impl<'a> Pass<'a> {
    fn new(shared: &Shared, collectors: &'a mut [Collector], held: &'a Arc<AtomicUsize>) -> Self {
        let mut of_session: HashMap<_, Vec<usize>> = HashMap::new();
        for (number, collector) in collectors.iter().enumerate() {
            of_session
                .entry(collector.query().session_id.clone())
                .or_default()
                .push(number);
        }
        Self {
            collectors,
            of_session,
            converter: Converter::default(),
            sent: SentMessages::new(MAX_SENT_BYTES, shared.history.dedup_window()),
            held,
        }
    }

    fn read(
        &mut self,
        shared: &Shared,
        consumer: &LogConsumer,
        mut ranges: HashMap<i32, (i64, i64)>,
        until: Instant,
    ) -> KafkaResult<()> {
        if ranges.is_empty() {
            return Ok(());
        }
        let starts = ranges
            .iter()
            .map(|(&partition, &(start, _))| ((Topic::Messages, partition), Offset::Offset(start)));
        consumer.assign(&shared.positions(starts)?)?;
        while !ranges.is_empty() {
            if Instant::now() >= until || shared.is_stopping() {
                return Err(KafkaError::MessageConsumption(
                    RDKafkaErrorCode::OperationTimedOut,
                ));
            }
            match consumer.poll(POLL) {
                Some(Ok(message)) => {
                    let partition = message.partition();
                    let Some(&(_, end)) = ranges.get(&partition) else {
                        continue;
                    };
                    if message.offset() < end {
                        self.add(shared, &message);
                    }
                    if message.offset() + 1 >= end {
                        ranges.remove(&partition);
                    }
                }
                Some(Err(KafkaError::PartitionEOF(partition))) => drop(ranges.remove(&partition)),
                Some(Err(error)) => tracing::debug!(%error, "Kafka consumer"),
                None => {}
            }
        }
        consumer.unassign()
    }

    fn is_repeat(&self, session_id: &str, record: &Incoming<'_>) -> bool {
        let key = record
            .client_id
            .and_then(|id| self.sent.key_of_header(session_id, id));
        key.is_some_and(|key| {
            let record = SentRecord {
                key,
                partition: record.partition,
                time: record.time,
            };
            self.sent.read(record, || Sent::Node(Uuid::nil())).is_repeat
        })
    }

    fn add(&mut self, shared: &Shared, message: &BorrowedMessage<'_>) {
        let record = incoming(Topic::Messages, message);
        let Some(value) = record
            .value
            .filter(|value| value.len() <= shared.max_record_bytes)
        else {
            return;
        };
        let of_session = &self.of_session;
        let wanted = |session_id: &str| of_session.contains_key(session_id);
        let found = frame_of(&mut self.converter, record.form, record.key, value, wanted);
        let Some((session_id, frame)) = found else {
            return;
        };
        if self.is_repeat(session_id.as_str(), &record) {
            return;
        }
        for &number in of_session.get(&session_id).into_iter().flatten() {
            let collector = &mut self.collectors[number];
            let at = (record.partition, record.offset, record.time);
            collector.add(at, &mut self.converter, || CountedFrame::of(&frame, self.held));
            if self.held.load(Ordering::Relaxed) > MAX_BYTES {
                collector.refuse(NotResumed::Busy);
            }
        }
    }
}
