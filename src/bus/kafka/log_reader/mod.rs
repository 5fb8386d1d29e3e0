//! Reads older records for clients that come back, on a thread and a client of its own, so that delivery never waits
//! for it.
//!
//! The clients that wait are served by passes over the log, each of which reads all partitions once. Those that have
//! been away for about as long share a pass, so that one who was away for long does not keep the others waiting. Passes
//! take turns, as there is one client for all of them.

mod ends;
mod pass;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use rdkafka::consumer::Consumer;
use rdkafka::error::KafkaResult;

use super::Shared;
use super::credentials::Credentials;
use super::unread::{self, LogConsumer};
use crate::clock;
use crate::history::query::{Collector, LogQuery};
use crate::logging::LogLimit;
use crate::protocol::resume::NotResumed;
use crate::supervise::catch_panic;
use pass::Pass;

/// The most clients that wait at once.
const MAX_WAITING: usize = 1_000;
/// How long queries gather for one pass.
const GATHER: Duration = Duration::from_millis(20);
/// How long a pass reads before another one has its turn.
const TURN: Duration = Duration::from_millis(250);
/// How soon the thread sees that the server stops.
const POLL: Duration = Duration::from_millis(100);
/// How long a client without queries stays connected.
const IDLE: Duration = Duration::from_secs(30);
const LOG_INTERVAL: Duration = Duration::from_secs(5);

/// How many groups of queries there are, by how far back they have to read, and how far that is for the first one,
/// besides `DEDUP_WINDOW`: each of the others reads twice as far as the one before it, and the last one all the rest.
const GROUPS: usize = 6;
const NEAREST_MS: i64 = 60_000;

/// Takes queries for the reader.
pub struct LogReader {
    queries: SyncSender<Waiting>,
    waiting: Arc<AtomicUsize>,
}

/// A query, and its place among those that may wait.
struct Waiting {
    query: LogQuery,
    place: Place,
}

/// One of the places, until it is dropped.
struct Place(Arc<AtomicUsize>);

impl Place {
    fn take(waiting: &Arc<AtomicUsize>) -> Option<Self> {
        let place = Self(Arc::clone(waiting));
        (waiting.fetch_add(1, Ordering::Relaxed) < MAX_WAITING).then_some(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl LogReader {
    pub(super) fn start(shared: Arc<Shared>) -> std::io::Result<Self> {
        let (reader, queries) = Self::new();
        let thread = ReaderThread::new(shared, queries);
        thread::Builder::new()
            .name("log-reader".into())
            .spawn(move || thread.run())?;
        Ok(reader)
    }

    fn new() -> (Self, Receiver<Waiting>) {
        let (queries, receiver) = sync_channel(MAX_WAITING);
        let waiting = Arc::default();
        (Self { queries, waiting }, receiver)
    }

    /// Answers a query later, or at once if too many wait.
    pub fn ask(&self, query: LogQuery) {
        let Some(place) = Place::take(&self.waiting) else {
            return (query.reply)(Err(NotResumed::Busy));
        };
        if let Err(refused) = self.queries.try_send(Waiting { query, place }) {
            let (TrySendError::Full(waiting) | TrySendError::Disconnected(waiting)) = refused;
            (waiting.query.reply)(Err(NotResumed::Unavailable));
        }
    }
}

/// A query that the thread has taken.
struct Waiter {
    collector: Collector,
    /// From which time on it has to read, in milliseconds since 1970.
    since: i64,
    /// Its session's own partition.
    partition: i32,
    _place: Place,
}

impl Waiter {
    fn deadline(&self) -> Instant {
        self.collector.query().deadline
    }

    fn refuse(mut self, why: NotResumed) {
        self.collector.refuse(why);
        self.collector.finish();
    }
}

/// Queries that read about equally far back.
#[derive(Default)]
struct Group {
    /// The pass that is under way.
    pass: Option<Pass>,
    /// Those for the next one.
    waiting: Vec<Waiter>,
}

impl Group {
    fn has_work(&self) -> bool {
        self.pass.is_some() || !self.waiting.is_empty()
    }

    /// Gives up on those whose time is over, and returns how many these are.
    fn expire(&mut self, now: Instant) -> usize {
        let is_over = |waiter: &mut Waiter| waiter.deadline() <= now;
        let mut expired = 0;
        for waiter in self.waiting.extract_if(.., is_over) {
            waiter.refuse(NotResumed::Unavailable);
            expired += 1;
        }
        expired + self.pass.as_mut().map_or(0, |pass| pass.expire(now))
    }
}

struct ReaderThread {
    shared: Arc<Shared>,
    queries: Receiver<Waiting>,
    groups: [Group; GROUPS],
    /// The group that had the last turn.
    turn: usize,
    consumer: Option<LogConsumer>,
    credentials: Credentials,
    /// Whether the consumer is assigned what the pass of the last turn reads.
    is_assigned: bool,
    used: Instant,
    /// Bytes of the frames that clients have yet to get.
    held: Arc<AtomicUsize>,
    error_log: LogLimit,
}

impl ReaderThread {
    fn new(shared: Arc<Shared>, queries: Receiver<Waiting>) -> Self {
        Self {
            shared,
            queries,
            groups: Default::default(),
            turn: 0,
            consumer: None,
            credentials: Credentials::default(),
            is_assigned: false,
            used: Instant::now(),
            held: Arc::default(),
            error_log: LogLimit::new(LOG_INTERVAL),
        }
    }

    fn run(mut self) {
        while !self.shared.is_stopping() && self.take_queries() {
            let Some(group) = next_group(&self.groups, self.turn) else {
                continue;
            };
            // A pass that panics is dropped: its clients get `unavailable`.
            if catch_panic(|| self.take_turn(group)).is_none() {
                self.disconnect();
            }
        }
    }

    /// Takes new queries, and waits for one if there are none. False if there will be no more.
    fn take_queries(&mut self) -> bool {
        if !self.groups.iter().any(Group::has_work) {
            match self.queries.recv_timeout(POLL) {
                Ok(first) => self.add(first),
                Err(RecvTimeoutError::Timeout) => self.idle(),
                Err(RecvTimeoutError::Disconnected) => return false,
            }
            if !self.groups.iter().any(Group::has_work) {
                return true;
            }
            thread::sleep(GATHER);
        }
        while let Ok(waiting) = self.queries.try_recv() {
            self.add(waiting);
        }
        let now = Instant::now();
        let expired: usize = self.groups.iter_mut().map(|group| group.expire(now)).sum();
        if expired > 0 && self.error_log.allows() {
            tracing::warn!(
                clients = expired,
                "the log cannot be read in time for clients that come back"
            );
        }
        true
    }

    fn add(&mut self, Waiting { query, place }: Waiting) {
        let now = clock::unix_ms();
        let since = query.start_time(now);
        let partition = self.shared.history.log.partition_of(query.session_id.as_str());
        let waiter = Waiter {
            partition,
            collector: Collector::new(query),
            since: since.unwrap_or(now),
            _place: place,
        };
        match since {
            Ok(since) => self.groups[group_of(now - since, self.shared.history.dedup_ms)]
                .waiting
                .push(waiter),
            Err(why) => waiter.refuse(why),
        }
    }

    /// Without queries.
    fn idle(&mut self) {
        if self.used.elapsed() > IDLE {
            self.disconnect();
        } else if let Some(consumer) = &self.consumer {
            // Serves the client's own events.
            consumer.poll(Duration::ZERO);
        }
    }

    fn disconnect(&mut self) {
        (self.consumer, self.is_assigned) = (None, false);
        self.credentials = Credentials::default();
    }

    /// The pass of a group reads for a while.
    fn take_turn(&mut self, number: usize) {
        let group = &mut self.groups[number];
        let mut pass = match group.pass.take() {
            Some(pass) => pass,
            None => Pass::new(
                std::mem::take(&mut group.waiting),
                self.shared.history.dedup_window(),
                &self.held,
            ),
        };
        self.is_assigned &= self.turn == number;
        (self.turn, self.used) = (number, Instant::now());
        let until = self.used + TURN;
        let read = self.read(&mut pass, until);
        pass.took += self.used.elapsed();
        if let Err(error) = read {
            // The pass may go on once the brokers are back.
            if self.error_log.allows() {
                tracing::warn!(%error, "the log cannot be read for clients that come back");
            }
            self.is_assigned = false;
            thread::sleep(POLL);
        }
        if pass.is_done() {
            self.shared.metrics.history.log_read(pass.took);
            self.is_assigned = false;
        } else {
            self.groups[number].pass = Some(pass);
        }
    }

    fn read(&mut self, pass: &mut Pass, until: Instant) -> KafkaResult<()> {
        let consumer = match &mut self.consumer {
            Some(consumer) => consumer,
            none => none.insert(unread::connect(&self.shared)?),
        };
        self.credentials.refresh(&self.shared, consumer.client());
        pass.find_start(&self.shared, consumer)?;
        if !self.is_assigned {
            pass.assign(&self.shared, consumer)?;
            self.is_assigned = true;
        }
        pass.read(&self.shared, consumer, until);
        if pass.is_done() {
            consumer.unassign()?;
        }
        Ok(())
    }
}

/// The group of queries that read back that far.
fn group_of(back_ms: i64, dedup_ms: i64) -> usize {
    let reaches = |group: &usize| back_ms + dedup_ms <= (NEAREST_MS + dedup_ms) << group;
    (0..GROUPS - 1).find(reaches).unwrap_or(GROUPS - 1)
}

/// The next group that has work, after the one of the last turn.
fn next_group(groups: &[Group], last: usize) -> Option<usize> {
    let after = (last + 1..groups.len()).chain(0..=last);
    after.into_iter().find(|&number| groups[number].has_work())
}

#[cfg(test)]
#[path = "reader_tests.rs"]
mod tests;
