//! The connection to Redis: commands, scripts and what they answer. It is shared by the pipeline task and REST,
//! whose requests travel in the same pipeline.

use std::collections::BTreeMap;
use std::time::Duration;

use parking_lot::Mutex;
use redis::aio::MultiplexedConnection;
use redis::io::tcp::TcpSettings;
use redis::{AsyncConnectionConfig, Client, IntoConnectionInfo, Pipeline, RedisError, Value};
use serde::Deserialize;

use super::super::Unavailable;
use crate::bus::{Health, Status};
use crate::protocol::ids::{SessionId, UserId, UserType};
use crate::protocol::status::{ConnectedUser, ConnectionStatus};

/// How long Redis may take to accept us, and to answer.
const CONNECT_PATIENCE: Duration = Duration::from_secs(1);
const ANSWER_PATIENCE: Duration = Duration::from_secs(1);

const APPLY: &str = include_str!("apply.lua");
const HEARTBEAT: &str = include_str!("heartbeat.lua");

/// Leases of all nodes.
const LEASES: &str = "livechat:nodes";

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
    client: Client,
    /// This node's name and boot id.
    pub node: String,
    /// The lease's length.
    lease: Duration,
    apply: redis::Script,
    heartbeat: redis::Script,
    /// `None` while Redis is away.
    connection: Mutex<Option<MultiplexedConnection>>,
    health: Mutex<(Status, Option<String>)>,
}

/// What one node holds of one user, absolute.
pub struct Held {
    pub user_id: UserId,
    pub user_type: UserType,
    pub joined_at: String,
    pub connections: usize,
}

impl Held {
    /// Nothing of this user.
    pub fn none(user_id: UserId) -> Self {
        Self {
            user_id,
            user_type: UserType::Customer,
            joined_at: String::new(),
            connections: 0,
        }
    }
}

/// What the store says of a session after a change.
pub struct Applied {
    pub version: u64,
    pub came: Vec<UserId>,
    pub gone: Vec<UserId>,
    /// There when it was asked for.
    pub snapshot: Option<ConnectionStatus>,
}

pub fn users_key(session_id: &str) -> String {
    format!("session:{session_id}:users")
}

/// In the slot of [`users_key`]: the braces hold that key's whole name.
pub fn meta_key(session_id: &str) -> String {
    format!("{{session:{session_id}:users}}:meta")
}

pub fn typing_key(session_id: &SessionId, user_id: &UserId) -> String {
    format!("session:{session_id}:typing:{user_id}")
}

/// The sessions that a node may hold somebody in.
pub fn sessions_key(node: &str) -> String {
    format!("livechat:node:{node}:sessions")
}

impl Store {
    pub fn new(url: &str, node: String, lease: Duration) -> Result<Self, RedisError> {
        let info = url
            .into_connection_info()?
            .set_tcp_settings(TcpSettings::default().set_nodelay(true));
        Ok(Self {
            client: Client::open(info)?,
            node,
            lease,
            apply: redis::Script::new(APPLY),
            heartbeat: redis::Script::new(HEARTBEAT),
            connection: Mutex::new(None),
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

    /// Connects and brings the scripts along.
    pub async fn connect(&self) -> Result<(), RedisError> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_PATIENCE))
            .set_response_timeout(Some(ANSWER_PATIENCE));
        let connect = self.client.get_multiplexed_async_connection_with_config(&config);
        let mut connection = timeout(2 * CONNECT_PATIENCE, connect).await?;
        let mut load = redis::pipe();
        load.cmd("SCRIPT")
            .arg("LOAD")
            .arg(APPLY)
            .cmd("SCRIPT")
            .arg("LOAD")
            .arg(HEARTBEAT);
        timeout(ANSWER_PATIENCE, load.query_async::<()>(&mut connection)).await?;
        *self.connection.lock() = Some(connection);
        Ok(())
    }

    /// Sends a pipeline; each command has its own result, unless the server as a whole refuses.
    pub async fn send(&self, pipeline: &mut Pipeline) -> Result<Vec<Result<Value, RedisError>>, RedisError> {
        let connection = self.connection.lock().clone();
        let Some(mut connection) = connection else {
            return Err(away());
        };
        let answers: Vec<Result<Value, RedisError>> = timeout(
            ANSWER_PATIENCE * 2,
            pipeline.ignore_errors().query_async(&mut connection),
        )
        .await?;
        let is_servers = |error: &&RedisError| error.code().is_some_and(|code| SERVER_ERRORS.contains(&code));
        match answers
            .iter()
            .filter_map(|answer| answer.as_ref().err())
            .find(is_servers)
        {
            Some(error) => Err(error.clone()),
            None => Ok(answers),
        }
    }

    /// Adds the renewal of our lease.
    pub fn add_heartbeat(&self, pipeline: &mut Pipeline) {
        pipeline
            .cmd("EVALSHA")
            .arg(self.heartbeat.get_hash())
            .arg(1)
            .arg(LEASES)
            .arg(&self.node)
            .arg(self.lease.as_millis().to_string());
    }

    /// Adds a change of one session; `is_all` where `held` is everything that `node` holds of it.
    pub fn add_apply(
        &self,
        pipeline: &mut Pipeline,
        node: &str,
        session_id: &str,
        held: &[Held],
        is_all: bool,
        wants_snapshot: bool,
    ) {
        let flag = |set: bool| if set { "1" } else { "0" };
        let command = pipeline.cmd("EVALSHA").arg(self.apply.get_hash()).arg(2);
        command.arg(users_key(session_id)).arg(meta_key(session_id));
        command.arg(node).arg(flag(is_all)).arg(flag(wants_snapshot));
        for user in held {
            command.arg(user.user_id.as_str()).arg(user.user_type.as_str());
            command.arg(&user.joined_at).arg(user.connections);
        }
    }

    /// Who is connected, for REST.
    pub async fn status(&self, session_id: &SessionId) -> Result<ConnectionStatus, Unavailable> {
        let connection = self.connection.lock().clone();
        let mut connection = connection.ok_or(Unavailable)?;
        let mut read = redis::cmd("HVALS");
        read.arg(users_key(session_id.as_str()));
        let values: Vec<Vec<u8>> = read.query_async(&mut connection).await.map_err(|_| Unavailable)?;
        Ok(snapshot(values.iter().map(Vec::as_slice)))
    }

    /// Removes a node of which nothing is left: its lease and its list of sessions.
    pub async fn bury(&self, node: &str) -> Result<(), RedisError> {
        let mut pipeline = redis::pipe();
        pipeline
            .cmd("DEL")
            .arg(sessions_key(node))
            .cmd("ZREM")
            .arg(LEASES)
            .arg(node);
        self.send(&mut pipeline).await.map(|_| ())
    }

    /// Up to some hundred sessions in which a node may hold somebody; all of them for `all`.
    pub async fn sessions_of(&self, node: &str, all: bool) -> Result<Vec<String>, RedisError> {
        let mut pipeline = redis::pipe();
        if all {
            pipeline.cmd("SMEMBERS").arg(sessions_key(node));
        } else {
            pipeline.cmd("SRANDMEMBER").arg(sessions_key(node)).arg(500);
        }
        let answer = self.send(&mut pipeline).await?.pop().unwrap_or(Ok(Value::Nil))?;
        Ok(redis::from_redis_value(answer)?)
    }
}

/// A dead node's answer to its heartbeat: whether our lease was there, and whose has ended.
pub fn read_heartbeat(answer: Value) -> Result<(bool, Vec<String>), RedisError> {
    let (held, ended): (i64, Vec<String>) = redis::from_redis_value(answer)?;
    Ok((held == 1, ended))
}

pub fn read_applied(answer: Value, wanted_snapshot: bool) -> Result<Applied, RedisError> {
    type Reply = (String, Vec<String>, Vec<String>, Vec<Vec<u8>>);
    let (version, came, gone, values): Reply = redis::from_redis_value(answer)?;
    let ids = |ids: Vec<String>| ids.iter().filter_map(|id| UserId::parse(id)).collect();
    Ok(Applied {
        version: version.parse().unwrap_or(0),
        came: ids(came),
        gone: ids(gone),
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

fn away() -> RedisError {
    std::io::Error::new(std::io::ErrorKind::TimedOut, "no answer").into()
}

fn describe(error: &RedisError) -> String {
    error
        .code()
        .map_or_else(|| error.category().to_owned(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// CRC-16/XMODEM of what is between the braces, or of the whole key (the cluster specification).
    fn slot(key: &str) -> u16 {
        let hashed = match (key.find('{'), key.find('}')) {
            (Some(open), Some(close)) if close > open + 1 => &key[open + 1..close],
            _ => key,
        };
        let crc = hashed.bytes().fold(0u16, |crc, byte| {
            (0..8).fold(crc ^ (u16::from(byte) << 8), |crc, _| {
                if crc & 0x8000 == 0 {
                    crc << 1
                } else {
                    crc << 1 ^ 0x1021
                }
            })
        });
        crc % 16384
    }

    #[test]
    fn a_session_s_keys_share_a_slot() {
        assert_eq!(slot("123456789"), 0x31C3);
        for id in ["s1", "a@b", "018f4e3a-7c1e-7000-8000-000000000000", "~"] {
            assert_eq!(slot(&users_key(id)), slot(&meta_key(id)));
        }
    }

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
