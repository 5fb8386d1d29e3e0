//! Disconnects without Kafka: a stream in Redis, which every node reads on. When Redis has lost it, the nodes write
//! again which refusals they know.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use redis::{RedisError, Value};
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

use super::control_state::ControlState;
use super::keys;
use super::store::{SHORT, Store, is_answer};
use crate::bus::PublishError;
use crate::logging::LogLimit;
use crate::metrics::Metrics;
use crate::protocol::control::Disconnect;
use crate::session::disconnects::Disconnects;

/// How often the stream is read: a disconnect reaches every node within a second.
const INTERVAL: Duration = Duration::from_millis(300);
/// The most entries of one answer, and of one pipeline.
const PAGE: usize = 1_000;
/// How many entries are kept, about: twice as many as a node keeps refusals.
const MOST: usize = 200_000;
/// How long the stream outlives its last entry, in seconds: longer than any refusal.
const LIFETIME: u64 = 25 * 60 * 60;
/// At most how long a node waits before it restores what was lost: another may be first.
const MAX_JITTER_MS: u64 = 200;
const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// An entry: its id, and its fields with their values.
type Entry = (String, Vec<Vec<u8>>);

pub struct ControlStream {
    store: Arc<Store>,
    disconnects: Arc<Disconnects>,
    metrics: Arc<Metrics>,
    /// Something was written: it need not wait for the next round.
    written: Notify,
}

impl ControlStream {
    pub fn new(store: Arc<Store>, disconnects: Arc<Disconnects>, metrics: Arc<Metrics>) -> Self {
        store.set_control(ControlState::Unread);
        Self {
            store,
            disconnects,
            metrics,
            written: Notify::new(),
        }
    }

    /// Appends a record; this node reads it soon.
    ///
    /// # Errors
    ///
    /// It is not there, or that is not known.
    pub async fn write(&self, record: &Disconnect) -> Result<(), PublishError> {
        if !self.store.is_connected() {
            return Err(PublishError::Unavailable);
        }
        let written = self.append(std::slice::from_ref(record)).await;
        self.written.notify_one();
        written.map_err(|error| match is_answer(&error) {
            true => PublishError::Unavailable,
            false => PublishError::Unknown,
        })
    }

    async fn append(&self, records: &[Disconnect]) -> Result<(), RedisError> {
        let mut pipeline = redis::pipe();
        for record in records {
            let command = pipeline.cmd("XADD").arg(keys::CONTROL);
            command.arg("MAXLEN").arg("~").arg(MOST).arg("*");
            command.arg("user").arg(record.key());
            command.arg("value").arg(record.value().unwrap_or_default());
        }
        pipeline.cmd("EXPIRE").arg(keys::CONTROL).arg(LIFETIME);
        let answers = self.store.execute(&mut pipeline, SHORT).await?;
        answers.into_iter().try_for_each(|answer| answer.map(drop))
    }

    /// Reads on, as long as the process runs.
    pub async fn run(self: Arc<Self>) {
        let mut reader = StreamReader {
            stream: &self,
            last: None,
        };
        let (mut error_log, mut poison_log) = (LogLimit::new(LOG_INTERVAL), LogLimit::new(LOG_INTERVAL));
        loop {
            // Either way, it is time.
            let _ = timeout(INTERVAL, self.written.notified()).await;
            if !self.store.is_connected() {
                continue;
            }
            match reader.catch_up(&mut poison_log).await {
                Ok(()) => self.store.set_control(ControlState::Read),
                // The presence task notices a Redis that does not answer.
                Err(error) if is_answer(&error) => {
                    self.store.set_control(ControlState::Failed);
                    if error_log.allows() {
                        tracing::warn!(code = error.code(), "Redis does not give out who is refused");
                    }
                }
                Err(_) => {}
            }
        }
    }
}

struct StreamReader<'a> {
    stream: &'a ControlStream,
    /// The id of the last entry that was read.
    last: Option<String>,
}

impl StreamReader<'_> {
    async fn catch_up(&mut self, poison_log: &mut LogLimit) -> Result<(), RedisError> {
        let mut is_lost = false;
        if let Some(last) = self.last.clone() {
            // Read once more, to see whether it is still there.
            let entries = self.entries(&last).await?;
            is_lost = entries.first().is_none_or(|(id, _)| *id != last);
        }
        if !is_lost {
            self.read(&mut HashSet::new(), poison_log).await?;
            return Ok(());
        }
        self.last = None;
        sleep(Duration::from_millis(fastrand::u64(0..MAX_JITTER_MS))).await;
        let mut known = HashSet::new();
        self.read(&mut known, poison_log).await?;
        let mut missing = self.stream.disconnects.in_force();
        missing.retain(|refusal| !known.contains(&refusal.key()));
        for some in missing.chunks(PAGE) {
            self.stream.append(some).await?;
        }
        Ok(())
    }

    /// Reads everything after the last entry that was read, and adds the keys.
    async fn read(
        &mut self,
        keys: &mut HashSet<String>,
        poison_log: &mut LogLimit,
    ) -> Result<(), RedisError> {
        loop {
            let start = self.last.clone().unwrap_or_else(|| "-".to_owned());
            let entries = self.entries(&start).await?;
            let count = entries.len();
            for (id, fields) in entries {
                if self.last.as_ref() == Some(&id) {
                    continue;
                }
                let field = |name: &str| {
                    let mut pairs = fields.chunks_exact(2);
                    pairs
                        .find(|pair| pair[0] == name.as_bytes())
                        .map(|pair| &*pair[1])
                };
                match Disconnect::read(field("user"), field("value")) {
                    Ok(disconnect) => {
                        keys.insert(disconnect.key());
                        self.stream.disconnects.read(&disconnect);
                    }
                    Err(poison) => {
                        self.stream.metrics.poison(poison);
                        if poison_log.allows() {
                            tracing::warn!(
                                id,
                                reason = poison.name(),
                                "an entry about a refused user was skipped"
                            );
                        }
                    }
                }
                self.last = Some(id);
            }
            if count < PAGE {
                return Ok(());
            }
        }
    }

    async fn entries(&self, start: &str) -> Result<Vec<Entry>, RedisError> {
        let mut pipeline = redis::pipe();
        let command = pipeline.cmd("XRANGE").arg(keys::CONTROL);
        command.arg(start).arg("+").arg("COUNT").arg(PAGE);
        let answer = self.stream.store.execute(&mut pipeline, SHORT).await?.pop();
        Ok(redis::from_redis_value(answer.unwrap_or(Ok(Value::Nil))?)?)
    }
}
