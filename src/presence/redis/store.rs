//! The connection to Redis: commands, scripts and what they answer. It is shared by the pipeline task and REST,
//! whose requests travel in the same pipeline.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use redis::aio::MultiplexedConnection;
use redis::io::tcp::TcpSettings;
use redis::{
    AsyncConnectionConfig, Client, ConnectionInfo, IntoConnectionInfo, Pipeline, RedisError, RedisResult,
    Value,
};
use serde::Deserialize;

use super::keys;
use crate::bus::{Health, Status};
use crate::config::RedisConfig;
use crate::presence::Unavailable;
use crate::protocol::ids::{SessionId, UserId, UserType};
use crate::protocol::status::{ConnectedUser, ConnectionStatus};
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

/// Error codes that are about the server and not about one key: nothing else will work either.
const SERVER_ERRORS: [&str; 12] = [
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
    info: ConnectionInfo,
    /// Not in `info`, since it may change.
    password: Option<Secret>,
    apply: redis::Script,
    heartbeat: redis::Script,
    bury: redis::Script,
    settle: redis::Script,
    /// `None` while Redis is away.
    connection: Mutex<Option<MultiplexedConnection>>,
    /// Redis answers, but not all nodes have written what they hold: it knows too little.
    is_settling: AtomicBool,
    /// How many names of this node's were in use: none is used twice, also when the task begins anew.
    names: AtomicU32,
    health: Mutex<(Status, Option<String>)>,
}

/// What one node holds of one user, absolute.
pub struct Held {
    pub user_id: UserId,
    pub user_type: UserType,
    pub joined_at: String,
    pub connections: usize,
    /// Meanwhile there was none.
    pub anew: bool,
}

impl Held {
    /// Nothing of this user.
    pub fn none(user_id: UserId) -> Self {
        Self {
            user_id,
            user_type: UserType::Customer,
            joined_at: String::new(),
            connections: 0,
            anew: false,
        }
    }
}

/// What the store says of a session after a change.
pub struct Applied {
    pub version: u64,
    pub came: Vec<UserId>,
    pub gone: Vec<UserId>,
    /// Leaves to tell after a node has died, each with the version of its own time.
    pub left: Vec<(UserId, u64)>,
    /// There when it was asked for.
    pub snapshot: Option<ConnectionStatus>,
}

/// What a change says of a node's users in a session.
pub enum Listing<'a> {
    /// These; others stay.
    Some(&'a [Held]),
    /// These are all.
    All(&'a [Held]),
    /// None: the node has gone, and what that changes is kept until the log has it.
    Left,
}

impl Store {
    pub fn new(settings: &RedisConfig) -> Result<Self, RedisError> {
        let info = settings
            .url
            .as_str()
            .into_connection_info()?
            .set_tcp_settings(TcpSettings::default().set_nodelay(true));
        Ok(Self {
            info,
            password: settings.password.clone(),
            apply: redis::Script::new(APPLY),
            heartbeat: redis::Script::new(HEARTBEAT),
            bury: redis::Script::new(BURY),
            settle: redis::Script::new(SETTLE),
            connection: Mutex::new(None),
            is_settling: AtomicBool::new(true),
            names: AtomicU32::new(0),
            health: Mutex::new((Status::Connecting, None)),
        })
    }

    pub fn health(&self) -> Health {
        let (status, detail) = self.health.lock().clone();
        Health {
            mode: "redis",
            status,
            detail,
        }
    }

    pub fn is_connected(&self) -> bool {
        self.connection.lock().is_some()
    }

    /// Notes that Redis does not do what it should: the connection is made anew.
    pub fn fail(&self, error: &RedisError) {
        *self.connection.lock() = None;
        let mut health = self.health.lock();
        if health.1.is_none() {
            // Kind and code only: the text of a connection error may have the address and more in it.
            tracing::warn!(
                error = describe(error),
                "Redis is not available: presence waits for it"
            );
        }
        let status = if health.0 == Status::Connecting {
            Status::Connecting
        } else {
            Status::Degraded
        };
        *health = (
            status,
            Some(format!("Redis is not available: {}", describe(error))),
        );
    }

    /// Notes that everything is written.
    pub fn succeed(&self) {
        let mut health = self.health.lock();
        if health.0 != Status::Ok {
            tracing::info!("Redis is connected");
        }
        *health = (Status::Ok, None);
    }

    /// A client with the password of now.
    fn client(&self) -> Result<Client, RedisError> {
        let info = self.info.clone();
        let Some(password) = &self.password else {
            return Client::open(info);
        };
        let settings = info.redis_settings().clone().set_password(&*password.value());
        Client::open(info.set_redis_settings(settings))
    }

    /// Connects, brings the scripts along, and says which server process this is, if it tells.
    pub async fn connect(&self) -> Result<Option<String>, RedisError> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_PATIENCE))
            // Each caller has a patience of its own.
            .set_response_timeout(None);
        let client = self.client()?;
        let connect = client.get_multiplexed_async_connection_with_config(&config);
        let mut connection = timeout(2 * CONNECT_PATIENCE, connect).await?;
        let mut load = redis::pipe();
        for script in [APPLY, HEARTBEAT, BURY, SETTLE] {
            load.cmd("SCRIPT").arg("LOAD").arg(script);
        }
        timeout(CONNECT_PATIENCE, load.query_async::<()>(&mut connection)).await?;
        let mut info = redis::cmd("INFO");
        let info: RedisResult<String> =
            timeout(CONNECT_PATIENCE, info.arg("server").query_async(&mut connection)).await;
        *self.connection.lock() = Some(connection);
        let info = info.unwrap_or_default();
        let run_id = info.lines().find_map(|line| line.strip_prefix("run_id:"));
        Ok(run_id.map(|id| id.trim().to_owned()))
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

    /// Adds the renewal of a node's lease; with a `claim` it also takes on dead nodes for so long. `is_writing` while
    /// the node has not written all that it holds.
    pub fn add_heartbeat(
        &self,
        pipeline: &mut Pipeline,
        node: &str,
        lease: Duration,
        claim: Duration,
        is_writing: bool,
        former: &[Arc<str>],
    ) {
        let command = pipeline.cmd("EVALSHA").arg(self.heartbeat.get_hash());
        command
            .arg(4)
            .arg(&[keys::LEASES, keys::CLAIMS, keys::EPOCH, keys::WRITING]);
        command
            .arg(node)
            .arg(lease.as_millis().to_string())
            .arg(claim.as_millis().to_string())
            .arg(flag(is_writing));
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
        wants_snapshot: bool,
    ) {
        let command = pipeline.cmd("EVALSHA").arg(self.apply.get_hash()).arg(3);
        command.arg(keys::users(session_id)).arg(keys::meta(session_id));
        command.arg(keys::untold(session_id, node)).arg(node);
        let (name, held) = match listing {
            Listing::Some(held) => ("some", held),
            Listing::All(held) => ("all", held),
            Listing::Left => ("left", [].as_slice()),
        };
        command.arg(name).arg(flag(wants_snapshot));
        for user in held {
            command.arg(user.user_id.as_str()).arg(user.user_type.as_str());
            command.arg(&user.joined_at).arg(user.connections);
            command.arg(flag(user.anew));
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
    pub async fn bury(&self, node: &str) -> Result<bool, RedisError> {
        let mut pipeline = redis::pipe();
        let command = pipeline.cmd("EVALSHA").arg(self.bury.get_hash());
        let names = [keys::LEASES, keys::CLAIMS, keys::WRITING];
        command.arg(names.len()).arg(&names).arg(node);
        let answer = self.send(&mut pipeline, SHORT).await?.pop();
        Ok(redis::from_redis_value(answer.unwrap_or(Ok(Value::Nil))?)?)
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

    /// Up to `most` sessions in which a node may hold somebody, with the numbers of their last pipelines. A key that
    /// is somebody else's lists nothing.
    pub async fn sessions_of(&self, node: &str, most: usize) -> Result<Vec<(String, u64)>, RedisError> {
        let mut pipeline = redis::pipe();
        let command = pipeline.cmd("ZRANGE").arg(keys::sessions(node));
        command.arg(0).arg(most - 1).arg("WITHSCORES");
        let Some(Ok(answer)) = self.send(&mut pipeline, SHORT).await?.pop() else {
            return Ok(Vec::new());
        };
        let listed: Vec<(Vec<u8>, f64)> = redis::from_redis_value(answer)?;
        let name = |id: Vec<u8>| String::from_utf8_lossy(&id).into_owned();
        Ok(listed
            .into_iter()
            .map(|(id, number)| (name(id), number as u64))
            .collect())
    }
}

/// Whether Redis has answered at all: then nothing that was sent before can still be executed later.
pub fn is_answer(error: &RedisError) -> bool {
    error.code().is_some()
}

/// Redis answers, and never knows us again.
pub fn keeps_losing() -> RedisError {
    std::io::Error::other("presence is lost again and again").into()
}

/// A heartbeat's answer.
pub struct Heartbeat {
    /// Whether our lease was there and had not ended.
    pub is_held: bool,
    pub epoch: String,
    /// Dead nodes that are ours to take back.
    pub dead: Vec<String>,
    /// The nodes that live and have written all that they hold, and those that live and have not.
    pub done: Vec<String>,
    pub writing: Vec<String>,
}

pub fn read_heartbeat(answer: Value) -> Result<Heartbeat, RedisError> {
    type Reply = (i64, String, Vec<String>, Vec<String>, Vec<String>);
    let (held, epoch, dead, done, writing): Reply = redis::from_redis_value(answer)?;
    Ok(Heartbeat {
        is_held: held == 1,
        epoch,
        dead,
        done,
        writing,
    })
}

pub fn read_applied(answer: Value, wanted_snapshot: bool) -> Result<Applied, RedisError> {
    type Reply = (
        String,
        Vec<String>,
        Vec<String>,
        Vec<(String, String)>,
        Vec<Vec<u8>>,
    );
    let (version, came, gone, left, values): Reply = redis::from_redis_value(answer)?;
    let ids = |ids: Vec<String>| ids.iter().filter_map(|id| UserId::parse(id)).collect();
    let left = left
        .iter()
        .filter_map(|(id, version)| Some((UserId::parse(id)?, version.parse().ok()?)));
    Ok(Applied {
        version: version.parse().unwrap_or(0),
        came: ids(came),
        gone: ids(gone),
        left: left.collect(),
        snapshot: wanted_snapshot.then(|| snapshot(values.iter().map(Vec::as_slice))),
    })
}

/// The users among a hash's values; what is none of ours to read is left out.
fn snapshot<'a>(values: impl Iterator<Item = &'a [u8]>) -> ConnectionStatus {
    #[derive(Deserialize)]
    struct Stored {
        user_id: String,
        user_type: String,
        joined_at: String,
        #[serde(default)]
        nodes: Option<BTreeMap<String, serde_json::Value>>,
    }
    ConnectionStatus::of(values.filter_map(|value| {
        let stored: Stored = serde_json::from_slice(value).ok()?;
        if stored.nodes.is_some_and(|nodes| nodes.is_empty()) {
            return None;
        }
        Some(ConnectedUser {
            user_id: UserId::parse(&stored.user_id)?,
            user_type: UserType::parse(&stored.user_type)?,
            joined_at: stored.joined_at,
        })
    }))
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

fn describe(error: &RedisError) -> String {
    error
        .code()
        .map_or_else(|| error.category().to_owned(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn foreign_values_are_left_out_and_old_ones_are_users() {
        let values: [&[u8]; 5] = [
            br#"{"user_id":"a","user_type":"agent","joined_at":"J","nodes":{"n+1":2}}"#,
            br#"{"user_id":"b","user_type":"customer","joined_at":"J"}"#,
            br#"{"user_id":"c","user_type":"customer","joined_at":"J","nodes":{}}"#,
            br#"{"user_id":"d/","user_type":"customer","joined_at":"J"}"#,
            b"junk",
        ];
        let status = snapshot(values.into_iter());
        assert_eq!(
            status.users.keys().map(UserId::as_str).collect::<Vec<_>>(),
            ["a", "b"]
        );
        assert_eq!((status.total_agent, status.total_customer), (1, 1));
    }
}
