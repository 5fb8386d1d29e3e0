//! The connection to Redis: commands, scripts and what they answer. It is shared by the pipeline task and REST,
//! whose requests travel in the same pipeline.

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

use super::answers::{Facts, snapshot};
use super::cause::{Cause, told_to_a_ping};
use super::keys;
use super::listing::{Listing, Wants};
use crate::bus::{Health, Status};
use crate::config::RedisConfig;
use crate::presence::Unavailable;
use crate::protocol::ids::SessionId;
use crate::protocol::status::ConnectionStatus;
use crate::secret::Secret;

/// How long Redis may take to accept us.
pub const CONNECT_PATIENCE: Duration = Duration::from_secs(1);
/// How long it may take to answer.
pub const SHORT: Duration = Duration::from_secs(1);
/// How long it may take for a pipeline of many sessions: other clients' commands, and other nodes', come between.
pub const LONG: Duration = Duration::from_secs(4);
/// How long a REST request waits: its answer is promised within a second.
const REST_PATIENCE: Duration = Duration::from_millis(700);

const APPLY: &str = include_str!("apply.lua");
const HEARTBEAT: &str = include_str!("heartbeat.lua");
const BURY: &str = include_str!("bury.lua");
const SETTLE: &str = include_str!("settle.lua");
const DEPART: &str = include_str!("depart.lua");

/// The most sessions of a node's list in one answer: each comes within [`SHORT`], however long the list is.
pub const PAGE: usize = 100;
/// After damage to a session's keys, how long the nodes have to write again what they hold before anybody is said to
/// have left: all have looked by then ([`super::checks::CYCLE`]).
pub const SUSPICION: Duration = Duration::from_secs(10);

/// Error codes that are about the server and not about one key: nothing else will work either.
pub(super) const SERVER_ERRORS: [&str; 12] = [
    "NOSCRIPT",
    "READONLY",
    "LOADING",
    "OOM",
    "NOAUTH",
    "WRONGPASS",
    "NOPERM",
    "MASTERDOWN",
    "CLUSTERDOWN",
    "MISCONF",
    "BUSY",
    "NOREPLICAS",
];

pub struct Store {
    /// Without user, password and database: see [`Self::connect`].
    client: Client,
    /// The password in it is the URL's.
    login: RedisConnectionInfo,
    /// One that may change, which wins.
    password: Option<Secret>,
    apply: redis::Script,
    heartbeat: redis::Script,
    bury: redis::Script,
    settle: redis::Script,
    depart: redis::Script,
    /// `None` while Redis is away.
    connection: Mutex<Option<MultiplexedConnection>>,
    /// Redis answers, but not all nodes have written what they hold: it knows too little.
    is_settling: AtomicBool,
    /// How many names of this node's were in use: none is used twice, also when the task begins anew.
    names: AtomicU32,
    health: Mutex<(Status, Option<String>)>,
    /// What is wrong with this Redis, though it answers.
    warning: Mutex<Option<String>>,
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
            bury: redis::Script::new(BURY),
            settle: redis::Script::new(SETTLE),
            depart: redis::Script::new(DEPART),
            connection: Mutex::new(None),
            is_settling: AtomicBool::new(true),
            names: AtomicU32::new(0),
            health: Mutex::new((Status::Connecting, None)),
            warning: Mutex::default(),
        })
    }

    pub fn health(&self) -> Health {
        let (status, detail) = self.health.lock().clone();
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

    /// Host and port, without user and password.
    fn address(&self) -> &redis::ConnectionAddr {
        self.client.get_connection_info().addr()
    }

    pub fn is_connected(&self) -> bool {
        self.connection.lock().is_some()
    }

    /// Notes that Redis does not do what it should: the connection is made anew.
    pub fn fail(&self, error: &RedisError) {
        *self.connection.lock() = None;
        let cause = Cause::of(error);
        let mut health = self.health.lock();
        if health.1.is_none() {
            tracing::warn!(
                address = %self.address(),
                cause = cause.public,
                words = cause.words,
                "Redis is not available: presence waits for it"
            );
        }
        let status = if health.0 == Status::Connecting {
            Status::Connecting
        } else {
            Status::Degraded
        };
        *health = (status, Some(format!("Redis is not available: {}", cause.public)));
    }

    /// Notes that everything is written.
    pub fn succeed(&self) {
        let mut health = self.health.lock();
        if health.0 != Status::Ok {
            tracing::info!(address = %self.address(), "Redis is connected");
        }
        *health = (Status::Ok, None);
    }

    /// Connects, brings the scripts along, and says which server process this is, if it tells. The library would log
    /// in by itself, and forget why that was refused.
    pub async fn connect(&self) -> Result<Option<String>, RedisError> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_PATIENCE))
            // Each caller has a patience of its own.
            .set_response_timeout(None);
        let connect = self.client.get_multiplexed_async_connection_with_config(&config);
        let mut connection = timeout(2 * CONNECT_PATIENCE, connect).await?;
        let mut load = redis::pipe();
        let changing = self.password.as_ref().map(Secret::value);
        if let Some(password) = changing.as_deref().or(self.login.password()) {
            load.cmd("AUTH").arg(self.login.username()).arg(password);
        }
        if self.login.db() != 0 {
            load.cmd("SELECT").arg(self.login.db());
        }
        for script in [APPLY, HEARTBEAT, BURY, SETTLE, DEPART] {
            load.cmd("SCRIPT").arg("LOAD").arg(script);
        }
        // With a result for each, the first error is the one that explains the others.
        let load = load.ignore_errors();
        let loaded = timeout(CONNECT_PATIENCE, load.query_async(&mut connection)).await;
        let results: Vec<RedisResult<Value>> = match loaded {
            Err(error) if error.is_connection_dropped() => {
                let told = told_to_a_ping(self.address(), CONNECT_PATIENCE).await;
                return Err(told.unwrap_or(error));
            }
            loaded => loaded?,
        };
        results.into_iter().collect::<RedisResult<Vec<_>>>()?;
        // Forbidden by an ACL, it tells nothing: then a loss is seen by what is missing only.
        let info = redis::cmd("INFO");
        let info: RedisResult<String> = timeout(CONNECT_PATIENCE, info.query_async(&mut connection)).await;
        *self.connection.lock() = Some(connection);
        let facts = Facts::of(&info.unwrap_or_default());
        let known = std::mem::replace(&mut *self.warning.lock(), facts.warning.clone());
        if let Some(warning) = facts.warning.filter(|warning| known.as_ref() != Some(warning)) {
            tracing::warn!("{warning}");
        }
        Ok(facts.run_id)
    }

    /// Sends a pipeline; each command has its own result, unless the server as a whole refuses.
    pub async fn send(
        &self,
        pipeline: &mut Pipeline,
        patience: Duration,
    ) -> Result<Vec<RedisResult<Value>>, RedisError> {
        let connection = self.connection.lock().clone();
        let Some(mut connection) = connection else {
            return Err(away());
        };
        let answers: Vec<RedisResult<Value>> =
            timeout(patience, pipeline.ignore_errors().query_async(&mut connection)).await?;
        let is_servers = |error: &&RedisError| is_servers(error);
        match answers
            .iter()
            .filter_map(|answer| answer.as_ref().err())
            .find(is_servers)
        {
            Some(error) => Err(error.clone()),
            None => Ok(answers),
        }
    }

    /// Adds the renewal of a node's lease; with a `claim` it also takes on for so long the nodes that have left, and
    /// with `claims_dead` dead ones. `is_writing` while the node has not written all that it holds.
    pub fn add_heartbeat(
        &self,
        pipeline: &mut Pipeline,
        node: &str,
        lease: Duration,
        (claim, claims_dead): (Duration, bool),
        is_writing: bool,
        former: &[Arc<str>],
    ) {
        let command = pipeline.cmd("EVALSHA").arg(self.heartbeat.get_hash());
        command
            .arg(5)
            .arg(&[keys::LEASES, keys::CLAIMS, keys::EPOCH, keys::WRITING, keys::LEFT]);
        command
            .arg(node)
            .arg(lease.as_millis().to_string())
            .arg(claim.as_millis().to_string())
            .arg(flag(is_writing))
            .arg(flag(claims_dead));
        for name in former {
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
        wants: Wants,
        birth: &str,
    ) {
        let command = pipeline.cmd("EVALSHA").arg(self.apply.get_hash()).arg(3);
        command.arg(keys::users(session_id)).arg(keys::meta(session_id));
        command.arg(keys::untold(session_id, node)).arg(node);
        let (name, held) = match listing {
            Listing::Some(held) => ("some", held),
            Listing::All(held) => ("all", held),
            Listing::Left => ("left", [].as_slice()),
        };
        command.arg(name).arg(wants.as_str()).arg(birth);
        command.arg(SUSPICION.as_millis().to_string());
        for user in held {
            command.arg(user.user_id.as_str()).arg(user.user_type.as_str());
            let connections = user.connections.map_or(-1, i64::from);
            command.arg(&user.joined_at).arg(connections);
            command.arg(user.write.as_str());
        }
    }

    /// Who is connected, for REST.
    pub async fn status(&self, session_id: &SessionId) -> Result<ConnectionStatus, Unavailable> {
        let connection = self.connection.lock().clone();
        let mut connection = connection
            .filter(|_| !self.is_settling.load(Ordering::Acquire))
            .ok_or(Unavailable)?;
        let mut read = redis::cmd("HVALS");
        read.arg(keys::users(session_id.as_str()));
        let values: Vec<Vec<u8>> = timeout(REST_PATIENCE, read.query_async(&mut connection))
            .await
            .map_err(|_| Unavailable)?;
        Ok(snapshot(values.iter().map(Vec::as_slice)))
    }

    /// The node's next name: `NODE_ID` and boot id, and from the second on a number.
    pub fn next_name(&self, node: &str) -> Arc<str> {
        match self.names.fetch_add(1, Ordering::Relaxed) {
            0 => node.into(),
            number => format!("{node}.{number}").into(),
        }
    }

    /// Notes whether Redis knows less than the nodes do.
    pub fn settle(&self, is_settling: bool) {
        self.is_settling.store(is_settling, Ordering::Release);
    }

    /// Forgets a node that holds nobody any more, unless it has spoken again meanwhile.
    pub async fn bury(&self, node: &str) -> Result<Buried, RedisError> {
        let mut pipeline = redis::pipe();
        let command = pipeline.cmd("EVALSHA").arg(self.bury.get_hash());
        let names = [keys::LEASES, keys::CLAIMS, keys::WRITING, keys::LEFT];
        command.arg(names.len()).arg(&names).arg(node);
        let answer = self.send(&mut pipeline, SHORT).await?.pop();
        let buried: i64 = redis::from_redis_value(answer.unwrap_or(Ok(Value::Nil))?)?;
        Ok(match buried {
            0 => Buried::Not,
            1 => Buried::Dead,
            _ => Buried::Left,
        })
    }

    /// Says goodbye for a node. With `grace`, which is how long its users may still come back, it hands them to the
    /// others, if there are any.
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
            .arg(&[keys::LEASES, keys::LEFT])
            .arg(node)
            .arg(base);
        command.arg(grace.map_or_else(String::new, |grace| grace.as_millis().to_string()));
        let answer = self.send(&mut pipeline, SHORT).await?.pop();
        let answer = answer.unwrap_or(Ok(Value::Nil))?;
        let (has_others, left): (i64, Vec<String>) = redis::from_redis_value(answer)?;
        let has_others = has_others == 1;
        Ok(Departure { has_others, left })
    }

    /// Ends a node's lease: whoever sees it takes back what is left.
    pub async fn expire(&self, node: &str) -> Result<(), RedisError> {
        let mut pipeline = redis::pipe();
        pipeline.cmd("ZADD").arg(keys::LEASES).arg(0).arg(node);
        self.send(&mut pipeline, SHORT).await.map(|_| ())
    }

    /// Adds the removal of sessions from a node's list, each with the number it was seen with, if that matters.
    pub fn add_settle(&self, pipeline: &mut Pipeline, node: &str, sessions: &[(&str, Option<u64>)]) {
        let command = pipeline.cmd("EVALSHA").arg(self.settle.get_hash());
        command.arg(1).arg(keys::sessions(node));
        for (session_id, number) in sessions {
            command.arg(*session_id);
            command.arg(number.map_or_else(String::new, |number| number.to_string()));
        }
    }

    /// A page of the sessions in which a node may hold somebody, with the numbers of their last pipelines. A key that
    /// is somebody else's lists nothing. A list that changes meanwhile may show a session twice, and hides none that
    /// stays.
    pub async fn sessions_of(&self, node: &str, cursor: u64) -> Result<Page, RedisError> {
        let mut pipeline = redis::pipe();
        let command = pipeline.cmd("ZSCAN").arg(keys::sessions(node));
        command.arg(cursor).arg("COUNT").arg(PAGE);
        let Some(Ok(answer)) = self.send(&mut pipeline, SHORT).await?.pop() else {
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
    /// Where the next one begins; 0 behind the last.
    pub next: u64,
}

/// Whether a node is forgotten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Buried {
    Not,
    Dead,
    /// It had left in order.
    Left,
}

/// Who is there when a node leaves.
pub struct Departure {
    pub has_others: bool,
    /// Nodes that have left, and are not taken back yet.
    pub left: Vec<String>,
}

/// Whether Redis has answered at all: then nothing that was sent before can still be executed later.
pub fn is_answer(error: &RedisError) -> bool {
    error.code().is_some()
}

/// Redis answers, and never knows us again.
pub fn keeps_losing() -> RedisError {
    std::io::Error::other("presence is lost again and again").into()
}

async fn timeout<T>(
    patience: Duration,
    future: impl Future<Output = Result<T, RedisError>>,
) -> Result<T, RedisError> {
    tokio::time::timeout(patience, future)
        .await
        .unwrap_or_else(|_| Err(away()))
}

fn flag(set: bool) -> &'static str {
    if set { "1" } else { "0" }
}

fn away() -> RedisError {
    std::io::Error::new(std::io::ErrorKind::TimedOut, "no answer").into()
}

/// Whether nothing else will work either. What a script met carries the code in its text, with older servers.
fn is_servers(error: &RedisError) -> bool {
    let is_one = |code: &str| SERVER_ERRORS.contains(&code);
    let within = |text: &str| {
        text.split_whitespace()
            .any(|word| word.strip_prefix('-').is_some_and(is_one))
    };
    error.code().is_some_and(is_one) || error.detail().is_some_and(within)
}
