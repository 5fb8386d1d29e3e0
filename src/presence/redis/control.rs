//! Disconnects without Kafka: a stream in Redis, which every node reads on. When Redis has lost some of it, or is back
//! with what it had earlier, the nodes write again what they know better.
//!
//! An entry that was written again has the id of the first one in the field `restores`: nodes that know different things
//! may write at the same time, so the newer record counts, not the later entry.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use redis::{Pipeline, RedisError, Value};
use tokio::sync::Notify;
use tokio::time::sleep;

use super::control_ledger::{EntryId, Ledger};
use super::control_state::ControlState;
use super::keys;
use super::store::{SHORT, Store, is_answer};
use crate::bus::PublishError;
use crate::clock;
use crate::logging::LogLimit;
use crate::metrics::Metrics;
use crate::protocol::control::{Disconnect, Refusal};
use crate::session::disconnects::Disconnects;

/// How often the stream is read: a disconnect reaches every node within a second.
const INTERVAL: Duration = Duration::from_millis(300);
/// The most entries of one answer, and of one pipeline.
const PAGE: usize = 1_000;
/// How many entries are kept, about, in Redis and on a node: twice as many as a node keeps refusals.
const MOST: usize = 200_000;
/// How long the stream outlives its last entry, in seconds: longer than any refusal.
const LIFETIME: u64 = 25 * 60 * 60;
/// At most how long a node waits before it restores what was lost: another may be first.
const MAX_JITTER_MS: u64 = 200;
const LOG_INTERVAL: Duration = Duration::from_secs(10);
/// Within this, nodes that know it have written again what Redis has lost: they look every [`INTERVAL`].
const RESTORED_WITHIN: Duration = Duration::from_secs(1);
/// The field of an entry that says only that a node has found the stream empty: it was not lost since.
const WAS_READ: &str = "was_read";

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
        let written = self.append(&[(None, record.clone())]).await;
        self.written.notify_one();
        written.map_err(|error| match is_answer(&error) {
            true => PublishError::Unavailable,
            false => PublishError::Unknown,
        })
    }

    /// With the ids of the entries that they restore.
    async fn append(&self, records: &[(Option<EntryId>, Disconnect)]) -> Result<(), RedisError> {
        let mut pipeline = redis::pipe();
        for (restores, record) in records {
            let command = pipeline.cmd("XADD").arg(keys::CONTROL);
            command.arg("MAXLEN").arg("~").arg(MOST).arg("*");
            command.arg("user").arg(record.key());
            command.arg("value").arg(record.value().unwrap_or_default());
            if let Some(id) = restores {
                command.arg("restores").arg(id.to_string());
            }
        }
        self.add(pipeline).await
    }

    /// Executes commands that add entries; the stream then lives on.
    async fn add(&self, mut pipeline: Pipeline) -> Result<(), RedisError> {
        pipeline.cmd("EXPIRE").arg(keys::CONTROL).arg(LIFETIME);
        let answers = self.store.execute(&mut pipeline, SHORT).await?;
        answers.into_iter().try_for_each(|answer| answer.map(drop))
    }

    /// Reads on, as long as the process runs.
    pub async fn run(self: Arc<Self>) {
        let mut reader = StreamReader {
            stream: &self,
            last: None,
            newest: EntryId::default(),
            is_lost: false,
            is_new: true,
            ledger: Ledger::new(MOST, LIFETIME * 1_000),
        };
        let (mut error_log, mut poison_log) = (LogLimit::new(LOG_INTERVAL), LogLimit::new(LOG_INTERVAL));
        loop {
            if self.store.is_connected() {
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
            // Whichever comes first, it is time.
            tokio::select! {
                () = sleep(INTERVAL) => {}
                () = self.written.notified() => {}
                () = self.store.connected.notified() => {}
            }
        }
    }
}

struct StreamReader<'a> {
    stream: &'a ControlStream,
    /// The id of the last entry that was read.
    last: Option<String>,
    /// The newest of all that were ever read.
    newest: EntryId,
    /// Redis has lost entries, and does not have everything again.
    is_lost: bool,
    /// It was never read.
    is_new: bool,
    ledger: Ledger,
}

impl StreamReader<'_> {
    async fn catch_up(&mut self, poison_log: &mut LogLimit) -> Result<(), RedisError> {
        if let Some(last) = self.last.clone().filter(|_| !self.is_lost) {
            // Read once more, to see whether it is still there.
            let entries = self.entries(&last).await?;
            self.is_lost = entries.first().is_none_or(|(id, _)| *id != last);
            if self.is_lost {
                sleep(Duration::from_millis(fastrand::u64(0..MAX_JITTER_MS))).await;
            }
        }
        if !self.is_lost {
            self.read(poison_log).await?;
            if self.is_new && self.last.is_none() {
                self.wait_for_others(poison_log).await?;
            }
            self.is_new = false;
            return Ok(());
        }
        self.last = None;
        let there = self.read(poison_log).await?;
        let missing = self.ledger.missing(&there, now()).into_iter();
        let missing: Vec<_> = missing.map(|(id, record)| (Some(id), record)).collect();
        for some in missing.chunks(PAGE) {
            self.stream.append(some).await?;
        }
        self.is_lost = false;
        Ok(())
    }

    /// The stream is empty: Redis may just have lost it, and other nodes may be about to restore it. If there is nothing to
    /// restore, an entry says so to the nodes that start later.
    async fn wait_for_others(&mut self, poison_log: &mut LogLimit) -> Result<(), RedisError> {
        sleep(RESTORED_WITHIN).await;
        self.read(poison_log).await?;
        if self.last.is_none() {
            let mut pipeline = redis::pipe();
            let command = pipeline.cmd("XADD").arg(keys::CONTROL).arg("*");
            command.arg(WAS_READ).arg(1);
            self.stream.add(pipeline).await?;
        }
        Ok(())
    }

    /// Reads everything after the last entry that was read. Returns how new the records of each user are.
    async fn read(&mut self, poison_log: &mut LogLimit) -> Result<HashMap<String, EntryId>, RedisError> {
        let mut there = HashMap::new();
        let is_from_start = self.last.is_none();
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
                if field(WAS_READ).is_some() {
                    self.last = Some(id);
                    continue;
                }
                match Disconnect::read(field("user"), field("value")) {
                    Ok(disconnect) => {
                        let restores = field("restores").and_then(|id| std::str::from_utf8(id).ok());
                        let restores = restores.and_then(EntryId::parse);
                        let age = restores.or_else(|| EntryId::parse(&id)).unwrap_or_default();
                        let is_news = !is_from_start && restores.is_none();
                        if disconnect.refusal != Refusal::Stays {
                            let known = there.entry(disconnect.user_key()).or_default();
                            *known = age.max(*known);
                        }
                        self.carry_out(&disconnect, age, is_news);
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
                return Ok(there);
            }
        }
    }

    /// Unless it is older than what is known. An entry that was read before, or was replaced since, must not close
    /// anything, either.
    fn carry_out(&mut self, disconnect: &Disconnect, age: EntryId, is_news: bool) {
        let is_newer = match disconnect.refusal {
            Refusal::Stays => is_news || age > self.newest,
            Refusal::Ends | Refusal::Until(_) if is_news => {
                self.ledger.take_news(age, disconnect, now());
                true
            }
            Refusal::Ends | Refusal::Until(_) => self.ledger.take(age, disconnect, now()),
        };
        self.newest = self.newest.max(age);
        if is_newer {
            self.stream.disconnects.read(disconnect);
        } else {
            self.stream.disconnects.answer(disconnect);
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

/// In milliseconds since 1970.
fn now() -> u64 {
    u64::try_from(clock::unix_ms()).unwrap_or(0)
}
