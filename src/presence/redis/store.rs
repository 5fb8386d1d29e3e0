//! The connection to Redis: commands, scripts and their answers. The presence task and REST share it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use redis::aio::MultiplexedConnection;
use redis::io::tcp::TcpSettings;
use redis::{
    AsyncConnectionConfig, Client, IntoConnectionInfo, Pipeline, RedisConnectionInfo, RedisError,
    RedisResult, Value,
};
use tokio::sync::Notify;

use super::answers::{Facts, snapshot};
use super::cause::{Cause, answer_to_ping, is_server_error};
use super::control_state::ControlState;
use super::keys;
use super::listing::{Known, Listing, Requested};
use super::node_lease::NodeLease;
use super::session_index::Doubtful;
use super::timings::CONNECT_TIMEOUT;
use crate::bus::{Health, Status};
use crate::config::RedisConfig;
use crate::presence::unavailable::Unavailable;
use crate::protocol::ids::SessionId;
use crate::protocol::receipt::Receipt;
use crate::protocol::status::ConnectionStatus;
use crate::secret::Secret;

/// How long Redis may take to answer.
pub const SHORT: Duration = Duration::from_secs(1);
/// How long it may take for a pipeline of many sessions: commands of other clients and nodes come in between.
pub const LONG: Duration = Duration::from_secs(4);
/// How long a REST request waits: an answer is promised within a second.
const REST_TIMEOUT: Duration = Duration::from_millis(700);

const APPLY: &str = include_str!("apply.lua");
const HEARTBEAT: &str = include_str!("heartbeat.lua");
const DEREGISTER: &str = include_str!("deregister.lua");
const ACKNOWLEDGE: &str = include_str!("acknowledge.lua");
const DEPART: &str = include_str!("depart.lua");
const INDEX: &str = include_str!("index.lua");
const FEED: &str = include_str!("feed.lua");
const READ: &str = include_str!("read.lua");

/// How long it is kept how far users have read: seven days, in seconds.
const KEEP_READ: u32 = 7 * 24 * 60 * 60;
/// Of at most so many users of a session.
const MAX_READERS: usize = 1_000;

/// At most so many sessions of a node's list in one answer: each arrives within [`SHORT`], however long the list is.
const PAGE: usize = 100;
/// After damage to a session's keys, how long the nodes have to rewrite what they hold before anybody is announced as
/// having left: by then all have checked ([`super::checks::CYCLE`]).
pub const SUSPICION: Duration = Duration::from_secs(10);

pub struct Store {
    /// Without user, password and database: see [`Self::connect`].
    client: Client,
    /// The password in it is the URL's.
    login: RedisConnectionInfo,
    /// One that may change, and takes precedence.
    password: Option<Secret>,
    apply: redis::Script,
    heartbeat: redis::Script,
    deregister: redis::Script,
    acknowledge: redis::Script,
    depart: redis::Script,
    read: redis::Script,
    index: redis::Script,
    feed: redis::Script,
    /// `None` while Redis is unavailable.
    connection: Mutex<Option<MultiplexedConnection>>,
    /// Redis answers, but not all nodes have written what they hold.
    is_incomplete: AtomicBool,
    /// How many names this node has used: none is used twice, even if the task is restarted.
    names: AtomicU32,
    health: Mutex<(Status, Option<String>)>,
    /// What is wrong with this Redis although it answers.
    warning: Mutex<Option<String>>,
    /// The control stream waits for it.
    pub connected: Notify,
    /// Sessions that pages have not found as the index has them.
    pub doubtful: Doubtful,
    control: Mutex<ControlState>,
}

impl Store {
    pub fn new(settings: &RedisConfig) -> Result<Self, RedisError> {
        let info = settings
            .url
            .as_str()
            .into_connection_info()?
            .set_tcp_settings(TcpSettings::default().set_nodelay(true));
        let login = info.redis_settings().clone();
        let info = info.set_redis_settings(RedisConnectionInfo::default().set_skip_set_lib_name());
        Ok(Self {
            client: Client::open(info)?,
            login,
            password: settings.password.clone(),
            apply: redis::Script::new(APPLY),
            heartbeat: redis::Script::new(HEARTBEAT),
            deregister: redis::Script::new(DEREGISTER),
            acknowledge: redis::Script::new(ACKNOWLEDGE),
            depart: redis::Script::new(DEPART),
            read: redis::Script::new(READ),
            index: redis::Script::new(INDEX),
            feed: redis::Script::new(FEED),
            connection: Mutex::new(None),
            is_incomplete: AtomicBool::new(true),
            names: AtomicU32::new(0),
            health: Mutex::new((Status::Connecting, None)),
            warning: Mutex::default(),
            connected: Notify::new(),
            doubtful: Doubtful::default(),
            control: Mutex::new(ControlState::Elsewhere),
        })
    }

    pub fn health(&self) -> Health {
        let (status, detail) = self.health.lock().clone();
        let (status, detail) = self.control.lock().add_to(status, detail);
        let warning = self.warning.lock().clone();
        let detail = match (detail, warning) {
            (Some(detail), Some(warning)) => Some(format!("{detail}; {warning}")),
            (detail, warning) => detail.or(warning),
        };
        Health {
            mode: "redis",
            status,
            detail,
        }
    }

    /// Whether it is still to be read who is refused.
    pub fn is_control_unread(&self) -> bool {
        *self.control.lock() == ControlState::Unread
    }

    pub fn set_control(&self, state: ControlState) {
        *self.control.lock() = state;
    }

    /// Host and port, without user and password.
    fn address(&self) -> &redis::ConnectionAddr {
        self.client.get_connection_info().addr()
    }

    pub fn is_connected(&self) -> bool {
        self.connection.lock().is_some()
    }

    /// Redis has failed: drops the connection, and reports the cause.
    pub fn fail(&self, error: &RedisError) {
        *self.connection.lock() = None;
        let cause = Cause::of(error);
        let mut health = self.health.lock();
        if health.1.is_none() {
            tracing::warn!(
                address = %self.address(),
                cause = cause.public,
                words = cause.words,
                "Redis is not available: presence is suspended"
            );
        }
        let status = if health.0 == Status::Connecting {
            Status::Connecting
        } else {
            Status::Degraded
        };
        *health = (status, Some(format!("Redis is not available: {}", cause.public)));
    }

    /// Everything is written: Redis is healthy.
    pub fn succeed(&self) {
        let mut health = self.health.lock();
        if health.0 != Status::Ok {
            tracing::info!(address = %self.address(), "Redis is connected");
        }
        *health = (Status::Ok, None);
    }

    /// Connects, loads the scripts, and returns the id of the server process, if it is known. (If the library logged in
    /// by itself, the reason for a refusal would be lost.)
    pub async fn connect(&self) -> Result<Option<String>, RedisError> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_TIMEOUT))
            // Each caller has its own timeout.
            .set_response_timeout(None);
        let connect = self.client.get_multiplexed_async_connection_with_config(&config);
        let mut connection = timeout(2 * CONNECT_TIMEOUT, connect).await?;
        let mut load = redis::pipe();
        let changing = self.password.as_ref().map(Secret::value);
        if let Some(password) = changing.as_deref().or(self.login.password()) {
            load.cmd("AUTH").arg(self.login.username()).arg(password);
        }
        if self.login.db() != 0 {
            load.cmd("SELECT").arg(self.login.db());
        }
        for script in [
            APPLY,
            HEARTBEAT,
            DEREGISTER,
            ACKNOWLEDGE,
            DEPART,
            READ,
            INDEX,
            FEED,
        ] {
            load.cmd("SCRIPT").arg("LOAD").arg(script);
        }
        // With a result for each command, the first error is the one that explains the others.
        let load = load.ignore_errors();
        let loaded = timeout(CONNECT_TIMEOUT, load.query_async(&mut connection)).await;
        let results: Vec<RedisResult<Value>> = match loaded {
            Err(error) if error.is_connection_dropped() => {
                let answer = answer_to_ping(self.address(), CONNECT_TIMEOUT).await;
                return Err(answer.unwrap_or(error));
            }
            loaded => loaded?,
        };
        results.into_iter().collect::<RedisResult<Vec<_>>>()?;
        // An ACL may forbid it: then a loss of data only shows in what is missing.
        let info = redis::cmd("INFO");
        let info: RedisResult<String> = timeout(CONNECT_TIMEOUT, info.query_async(&mut connection)).await;
        *self.connection.lock() = Some(connection);
        self.connected.notify_one();
        let facts = Facts::of(&info.unwrap_or_default());
        let known = std::mem::replace(&mut *self.warning.lock(), facts.warning.clone());
        if let Some(warning) = facts.warning.filter(|warning| known.as_ref() != Some(warning)) {
            tracing::warn!("{warning}");
        }
        Ok(facts.run_id)
    }

    /// Sends a pipeline. Each command has its own result, unless the server as a whole refuses.
    pub async fn execute(
        &self,
        pipeline: &mut Pipeline,
        duration: Duration,
    ) -> Result<Vec<RedisResult<Value>>, RedisError> {
        let connection = self.connection.lock().clone();
        let Some(mut connection) = connection else {
            return Err(no_answer());
        };
        let answers: Vec<RedisResult<Value>> =
            timeout(duration, pipeline.ignore_errors().query_async(&mut connection)).await?;
        let is_server_error = |error: &&RedisError| is_server_error(error);
        match answers
            .iter()
            .filter_map(|answer| answer.as_ref().err())
            .find(is_server_error)
        {
            Some(error) => Err(error.clone()),
            None => Ok(answers),
        }
    }

    /// Adds the renewal of a node's lease, for this duration. For the duration of `claim`, unless it is zero, it also
    /// claims the nodes that were shut down, and dead ones if that is allowed. A node whose epoch is not that of Redis
    /// has not written everything it holds yet, either.
    pub fn add_heartbeat(
        &self,
        pipeline: &mut Pipeline,
        lease: &NodeLease,
        duration: Duration,
        claim: Duration,
    ) {
        let command = pipeline.cmd("EVALSHA").arg(self.heartbeat.get_hash());
        command.arg(5).arg(&[
            keys::LEASES,
            keys::CLAIMS,
            keys::EPOCH,
            keys::WRITING,
            keys::SHUT_DOWN,
        ]);
        command
            .arg(&**lease.name())
            .arg(duration.as_millis().to_string())
            .arg(claim.as_millis().to_string())
            .arg(flag(lease.state().must_write_all()))
            .arg(flag(lease.may_reap()))
            .arg(lease.epoch());
        for name in lease.retired_names() {
            command.arg(&**name);
        }
    }

    /// Adds a change of one session.
    pub fn add_apply(
        &self,
        pipeline: &mut Pipeline,
        node: &str,
        session_id: &str,
        listing: Listing<'_>,
        requested: Requested,
        known: Known<'_>,
    ) {
        let command = pipeline.cmd("EVALSHA").arg(self.apply.get_hash()).arg(3);
        command.arg(keys::users(session_id)).arg(keys::meta(session_id));
        command.arg(keys::pending_leaves(session_id, node)).arg(node);
        let (name, writes) = match listing {
            Listing::Some(writes) => ("some", writes),
            Listing::All(writes) => ("all", writes),
            Listing::NodeGone => ("gone", [].as_slice()),
        };
        command.arg(name).arg(requested.as_str()).arg(known.birth);
        command.arg(SUSPICION.as_millis().to_string());
        command.arg(known.state());
        for user in writes {
            command.arg(user.user_id.as_str()).arg(user.user_type.as_str());
            let connections = user.connections.map_or(-1, i64::from);
            command.arg(&user.joined_at).arg(connections);
            command.arg(user.mode.as_str());
        }
    }

    /// Adds a receipt.
    pub fn add_read(&self, pipeline: &mut Pipeline, receipt: &Receipt) {
        let command = pipeline.cmd("EVALSHA").arg(self.read.get_hash()).arg(1);
        command.arg(keys::read(&receipt.session_id));
        command.arg(receipt.user_id.as_str()).arg(receipt.stored());
        command.arg(KEEP_READ).arg(MAX_READERS);
    }

    /// The connection for REST, if what it reads can be believed.
    pub fn for_rest(&self) -> Option<MultiplexedConnection> {
        let connection = self.connection.lock().clone();
        connection.filter(|_| !self.is_incomplete.load(Ordering::Acquire))
    }

    pub fn index_hash(&self) -> &str {
        self.index.get_hash()
    }

    pub fn feed_hash(&self) -> &str {
        self.feed.get_hash()
    }

    /// Everyone connected to a session, for REST.
    pub async fn status(&self, session_id: &SessionId) -> Result<ConnectionStatus, Unavailable> {
        let mut connection = self.for_rest().ok_or(Unavailable)?;
        let mut read = redis::cmd("HVALS");
        read.arg(keys::users(session_id.as_str()));
        let values: Vec<Vec<u8>> = timeout(REST_TIMEOUT, read.query_async(&mut connection))
            .await
            .map_err(|_| Unavailable)?;
        Ok(snapshot(values.iter().map(Vec::as_slice)))
    }

    /// The node's next name: `NODE_ID` and boot id and, from the second name on, a number.
    pub fn next_name(&self, node: &str) -> Arc<str> {
        match self.names.fetch_add(1, Ordering::Relaxed) {
            0 => node.into(),
            number => format!("{node}.{number}").into(),
        }
    }

    /// Sets whether Redis knows less than the nodes do: then REST is not answered.
    pub fn set_incomplete(&self, is_incomplete: bool) {
        self.is_incomplete.store(is_incomplete, Ordering::Release);
    }

    /// Deregisters a node that holds no users any more, unless it has renewed its lease.
    pub async fn deregister(&self, node: &str) -> Result<Deregistered, RedisError> {
        let mut pipeline = redis::pipe();
        let command = pipeline.cmd("EVALSHA").arg(self.deregister.get_hash());
        let names = [keys::LEASES, keys::CLAIMS, keys::WRITING, keys::SHUT_DOWN];
        command.arg(names.len()).arg(&names).arg(node);
        let answer = self.execute(&mut pipeline, SHORT).await?.pop();
        let deregistered: i64 = redis::from_redis_value(answer.unwrap_or(Ok(Value::Nil))?)?;
        Ok(match deregistered {
            0 => Deregistered::Not,
            1 => Deregistered::Dead,
            _ => Deregistered::ShutDown,
        })
    }

    /// Announces that a node shuts down. With `grace`, which is how long its users may still reconnect, it hands them
    /// to the other nodes, if there are any.
    pub async fn depart(
        &self,
        node: &str,
        base: &str,
        grace: Option<Duration>,
    ) -> Result<Departure, RedisError> {
        let mut pipeline = redis::pipe();
        let command = pipeline.cmd("EVALSHA").arg(self.depart.get_hash());
        command
            .arg(2)
            .arg(&[keys::LEASES, keys::SHUT_DOWN])
            .arg(node)
            .arg(base);
        command.arg(grace.map_or_else(String::new, |grace| grace.as_millis().to_string()));
        let answer = self.execute(&mut pipeline, SHORT).await?.pop();
        let answer = answer.unwrap_or(Ok(Value::Nil))?;
        let (has_others, shut_down): (i64, Vec<String>) = redis::from_redis_value(answer)?;
        let has_others = has_others == 1;
        Ok(Departure {
            has_others,
            shut_down,
        })
    }

    /// Ends a node's lease: other nodes reap what is left.
    pub async fn expire(&self, node: &str) -> Result<(), RedisError> {
        let mut pipeline = redis::pipe();
        pipeline.cmd("ZADD").arg(keys::LEASES).arg(0).arg(node);
        self.execute(&mut pipeline, SHORT).await.map(|_| ())
    }

    /// Adds the removal of sessions from a node's list, each with the number it was read with, if that matters.
    pub fn add_acknowledge(&self, pipeline: &mut Pipeline, node: &str, sessions: &[(&str, Option<u64>)]) {
        let command = pipeline.cmd("EVALSHA").arg(self.acknowledge.get_hash());
        command.arg(1).arg(keys::sessions(node));
        for (session_id, number) in sessions {
            command.arg(*session_id);
            command.arg(number.map_or_else(String::new, |number| number.to_string()));
        }
    }

    /// A page of the sessions in which a node may hold users, with the numbers of their last pipelines. A key of
    /// another type counts as empty. If the list changes meanwhile, a session may appear twice, but none that stays is
    /// missed.
    pub async fn sessions_of(&self, node: &str, cursor: u64) -> Result<Page, RedisError> {
        let mut pipeline = redis::pipe();
        let command = pipeline.cmd("ZSCAN").arg(keys::sessions(node));
        command.arg(cursor).arg("COUNT").arg(PAGE);
        let Some(Ok(answer)) = self.execute(&mut pipeline, SHORT).await?.pop() else {
            return Ok(Page::default());
        };
        let (next, listed): (u64, Vec<(Vec<u8>, f64)>) = redis::from_redis_value(answer)?;
        let name = |id: Vec<u8>| String::from_utf8_lossy(&id).into_owned();
        let sessions = listed.into_iter().map(|(id, number)| (name(id), number as u64));
        Ok(Page {
            sessions: sessions.collect(),
            next,
        })
    }
}

/// Some sessions of a node's list.
#[derive(Default)]
pub struct Page {
    pub sessions: Vec<(String, u64)>,
    /// Where the next page starts; 0 after the last.
    pub next: u64,
}

/// Whether a node was deregistered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deregistered {
    Not,
    Dead,
    /// It had been shut down in order.
    ShutDown,
}

/// Which other nodes there are when a node shuts down.
pub struct Departure {
    pub has_others: bool,
    /// Nodes that were shut down and are not reaped yet.
    pub shut_down: Vec<String>,
}

/// Whether Redis has answered at all: then nothing that was sent before can be executed later.
pub fn is_answer(error: &RedisError) -> bool {
    error.code().is_some()
}

/// Redis answers, but loses our lease each time.
pub fn keeps_losing() -> RedisError {
    std::io::Error::other("presence is lost repeatedly").into()
}

async fn timeout<T>(
    duration: Duration,
    future: impl Future<Output = Result<T, RedisError>>,
) -> Result<T, RedisError> {
    tokio::time::timeout(duration, future)
        .await
        .unwrap_or_else(|_| Err(no_answer()))
}

fn flag(set: bool) -> &'static str {
    if set { "1" } else { "0" }
}

fn no_answer() -> RedisError {
    std::io::Error::new(std::io::ErrorKind::TimedOut, "no answer").into()
}
